"""LLaVA-NeXT with random weights, really generating: against transformers' loop and one without a cache."""

import shutil

import numpy as np
import pytest
import torch
from llava_folders import as_published_in_2024, write_llava_next
from safetensors.torch import load_file, save_file

from encoders.errors import EncoderError, WeightsError
from encoders.llava_next import LlavaNext, chosen_tokens

TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava_next(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def loaded(folder, precision="fp32", **options):
    model = LlavaNext(str(folder), **{"prompt": "what is done ?", "max_new_tokens": TOKENS, **options})
    model.load(precision)
    return model


def pictures(count, size=(60, 80), seed=0):
    """Each of another colour, with noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    return list(np.clip(colours + rng.integers(-20, 20, (count, *size, 3)), 0, 255).astype(np.uint8))


def given(model, frames):
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    return model.processor(images=images, text=[model.text] * len(frames), return_tensors="pt")


# Sampling


def test_tokens_come_with_their_probabilities():
    """Over 20,000 evenly spread numbers, each token is chosen as often as its probability says, to one."""
    logits = torch.tensor([[2.0, -1.0, 0.5, -torch.inf, 1.0]])
    numbers = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (0.5, 1.0, 3.0):
        chosen = chosen_tokens(logits.expand(20000, -1), numbers, temperature)
        expected = 20000 * torch.softmax(logits[0].double() / temperature, 0)
        assert (torch.bincount(chosen, minlength=5) - expected).abs().max() <= 1
        assert not (chosen == 3).any()


def test_the_smallest_and_the_largest_number_choose_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
    numbers = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert chosen_tokens(logits, numbers, 1.0).tolist() == [1, 1]
    assert chosen_tokens(torch.tensor([[0.1, 0.3, 0.2]]), numbers[:1], 0.0).tolist() == [1]


# Generation


def test_greedy_texts_are_those_of_transformers(folder):
    model, frames = loaded(folder, temperature=0.0), pictures(6)
    inputs = given(model, frames)
    out = model.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    words = out[:, inputs["input_ids"].shape[1] :]
    expected = model.processor.tokenizer.batch_decode(words, skip_special_tokens=True)
    ours = [text for (text,) in model.describe(frames, [[0]] * len(frames))]
    assert ours == expected
    assert len(set(ours)) > 1 and any(ours)  # what is seen decides what is said


@torch.no_grad()
def naive(model, frame, seed):
    """One text by the definition: no batch, no cache, the whole sequence anew for each token."""
    inputs, network = given(model, [frame]), model.model
    seen = network.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    said = network.get_input_embeddings()(inputs["input_ids"])
    said[inputs["input_ids"] == network.config.image_token_id] = torch.cat(list(seen))
    tokens, numbers = (
        [],
        torch.rand(TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
    )
    for number in numbers.tolist():
        logits = network(inputs_embeds=said, use_cache=False).logits[0, -1]
        cumulated = np.cumsum(torch.softmax(logits.double() / model.temperature, 0).numpy())
        token = int(np.searchsorted(cumulated, number * cumulated[-1], side="right"))
        if token == model.processor.tokenizer.eos_token_id:
            break
        tokens.append(token)
        said = torch.cat([said, network.get_input_embeddings()(torch.tensor([[token]]))], 1)
    return model.processor.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("size", [(60, 80), (90, 30), (28, 28)])
def test_sampled_texts_are_those_of_the_definition(folder, size):
    model, frames = loaded(folder, temperature=2.0), pictures(2, size)
    texts = model.describe(frames, [[1, 2, 3], [4, 5, 6]])
    expected = [[naive(model, frame, 3 * row + k) for k in (1, 2, 3)] for row, frame in enumerate(frames)]
    assert texts == expected
    assert len({len(text.split()) for several in texts for text in several}) > 1  # some end before the limit


def test_a_text_depends_on_its_frame_and_its_seed_and_on_nothing_else(folder):
    model, frames = loaded(folder), pictures(4)
    seeds = [[10 * row + k for k in range(3)] for row in range(4)]
    together = model.describe(frames, seeds)
    assert [model.describe([frame], [one])[0] for frame, one in zip(frames, seeds, strict=True)] == together
    assert model.describe(frames[::-1], seeds[::-1]) == together[::-1]
    alone = [[model.describe([frame], [[seed]])[0][0] for seed in seeds[0]] for frame in frames[:1]]
    assert alone == together[:1]
    state = torch.get_rng_state()
    assert model.describe(frames, [[one + 100 for one in several] for several in seeds]) != together
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers are used up


def test_a_longer_limit_only_goes_on(folder):
    frames = pictures(2)
    short = loaded(folder, temperature=2.0, max_new_tokens=3).describe(frames, [[1], [2]])
    long = loaded(folder, temperature=2.0, max_new_tokens=30).describe(frames, [[1], [2]])
    assert all(more.startswith(less) for (less,), (more,) in zip(short, long, strict=True))
    assert all(len(less.split()) <= 3 for (less,) in short)


def test_an_end_before_the_first_word_is_an_empty_text(tmp_path):
    model = loaded(write_llava_next(tmp_path / "mute", mute=True), temperature=0.0)
    assert model.describe(pictures(2), [[0], [0]]) == [[""], [""]]


def test_bf16_halves_the_weights_and_still_speaks(folder):
    model = loaded(folder, "bf16")
    assert {value.dtype for value in model.model.parameters()} == {torch.bfloat16}
    assert any(text for several in model.describe(pictures(3), [[1, 2]] * 3) for text in several)


@pytest.mark.slow
def test_pictures_of_the_datasets_sizes_fit_the_official_geometry(tmp_path):
    """Tiles of 336 pixels: the prompt has as many picture tokens as the model has features, at any size."""
    model = loaded(write_llava_next(tmp_path / "wide", official_size=True), max_new_tokens=2)
    for size in [(1080, 1920), (424, 512), (240, 320), (1024, 1280), (720, 1280), (288, 352), (333, 97)]:
        assert len(model.describe(pictures(2, size), [[1, 2], [3, 4]])) == 2, size


# Folders


def test_older_folders_are_read_alike(folder, copy):
    model, old, frames = loaded(folder), loaded(as_published_in_2024(copy)), pictures(2)
    assert (old.text, old.space["preprocess"]) == (model.text, model.space["preprocess"])
    assert old.describe(frames, [[1, 2], [3, 4]]) == model.describe(frames, [[1, 2], [3, 4]])


def test_the_space_tells_what_decides_the_texts(folder, copy, tmp_path):
    space = LlavaNext(str(folder)).space
    assert LlavaNext(str(copy)).space == space
    others = {"prompt": "what is done ?", "temperature": 0.7, "max_new_tokens": 5}
    for name, value in others.items():
        assert LlavaNext(str(folder), **{name: value}).space != space, name
    assert LlavaNext(str(write_llava_next(tmp_path / "other", seed=1))).space != space
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " well ,")
    assert LlavaNext(str(copy)).space != space


@pytest.mark.parametrize(
    "lost, said",
    [
        (("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
        (("chat_template.jinja",), "has no chat template; put the chat_template.json"),
        (("processor_config.json",), "has no image processor"),
    ],
)
def test_a_folder_that_lacks_a_part_says_which(copy, lost, said):
    for name in lost:
        (copy / name).unlink()
    with pytest.raises(EncoderError, match=said):
        LlavaNext(str(copy))


def test_a_template_without_the_picture_and_a_strange_image_token_are_refused(copy):
    template = copy / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept.replace("<image>", ""))
    with pytest.raises(EncoderError, match="leaves the image out"):
        LlavaNext(str(copy))
    template.write_text(kept)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"image_token_index": 3', '"image_token_index": 7'))
    with pytest.raises(EncoderError, match="<image> is token 3, the model's 7"):
        LlavaNext(str(copy))


def test_weights_are_loaded_strictly(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "projector" in name and name.endswith("bias"))
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing_keys \(1\).*projector"):
        loaded(copy)
    loaded(copy, allow_partial=["model.multi_modal_projector."])


def test_a_missing_model_names_the_official_ones_and_their_licence(tmp_path):
    with pytest.raises(WeightsError, match=r"llava-v1.6-34b-hf.*huggingface.co/llava-hf; licence: "):
        LlavaNext(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="'clip' model; accepted are: llava_next"):
        LlavaNext(str(tmp_path))
