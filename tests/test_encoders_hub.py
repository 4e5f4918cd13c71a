"""Encoders through transformers: what its own models and processors compute, on real frames."""

import json
from typing import Any

import pytest
import torch
from hub_folders import CASES, Case, encoded, sample_frames, save_gemma, save_sentencepiece
from test_encoders_openai_clip import OpenAIClip
from torch.nn.functional import cosine_similarity

from encoders import ENCODERS, load_encoder
from encoders.errors import EncoderError
from encoders.tokens import field_values

# Published parameter counts of whole checkpoints, where they are encoders only.
PARAMETERS = {
    "clip-vit-b32": 151_277_313,
    "clip-vit-b16": 149_620_737,
    "clip-vit-l14": 427_616_513,
    "siglip-b16-224": 203_155_970,
    "siglip-so400m-384": 877_960_498,
    "siglip2-b16-224": 375_187_970,
    "siglip2-so400m-384": 1_136_008_498,
    "xclip-b32": 196_585_729,
    "dinov2-s14": 22_056_576,
    "dinov2-b14": 86_580_480,
    "dinov2-l14": 304_368_640,
    "timesformer-b": 121_258_752,
}
NAMES = [
    name
    for name, target in ENCODERS.items()
    if target.split(":")[0] in ("encoders.clip", "encoders.vision_transformers")
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each case's folder and the model in it, made once."""
    made: dict[str, Any] = {}

    def get(case: Case):
        if case.name not in made:
            folder = tmp_path_factory.mktemp(case.name)
            made[case.name] = (folder, case.save(folder))
        return made[case.name]

    return get


def _official(case: Case, model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers' own methods and heads give for one clip's frames ``(T, 3, S, S)``."""
    with torch.inference_mode():
        if case.name.startswith(("clip", "siglip")):
            outputs = model.get_image_features(pixel_values=pixels)
            skipped = 1 if case.name.startswith("clip") else 0
            return {"cls": outputs.pooler_output, "tokens": outputs.last_hidden_state[:, skipped:]}
        clip = pixels[None]
        if case.name.startswith("xclip"):
            outputs = model(input_ids=torch.tensor([[1, 5, 2]]), pixel_values=clip)
            patches = outputs.vision_model_output.last_hidden_state[:, 1:]
            return {"unit embedding": outputs.video_embeds, "tokens": patches}
        if case.name.startswith("dinov2"):
            hidden = model.base_model(pixels).last_hidden_state
            first = 1 + case.config.get("num_register_tokens", 0)
            features = {"cls": hidden[:, 0], "tokens": hidden[:, first:]}
            return features | ({"logits": model(pixels).logits} if hasattr(model, "classifier") else {})
        if case.name.startswith("vjepa2"):
            body = model.base_model
            return {"tokens": body.get_vision_features(clip).unflatten(1, (2, 16))[0]}
        hidden = model.base_model(clip).last_hidden_state
        if case.name == "timesformer-b":
            places = [[hidden[0, 1 + place * case.frames + step] for place in range(16)] for step in range(4)]
            tokens = torch.stack([torch.stack(row) for row in places])
        else:
            tokens = hidden.unflatten(1, (2, 16))[0]
        if hasattr(model, "classifier"):
            return {"tokens": tokens, "logits": model(clip).logits}
        return {"tokens": tokens, "embedding": hidden.mean(1)}


def _as_official(case: Case, model: Any, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our fields in the official methods' shapes; the checkpoint's own head on what it reads."""
    got = {"tokens": outputs["tokens"]}
    if "cls" in outputs:
        got["cls"] = outputs["cls"][:, 0]
    if "embedding" in outputs:
        got["embedding"] = outputs["embedding"][0]
        got["unit embedding"] = torch.nn.functional.normalize(outputs["embedding"][0], dim=-1)
    if hasattr(model, "classifier") and not case.name.startswith("vjepa2"):
        read = outputs["embedding"][0] if "embedding" in outputs else None
        if read is None:
            read = torch.cat([got["cls"], outputs["tokens"].mean(1)], 1)
        with torch.inference_mode():
            got["logits"] = model.classifier(read)
    return got


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_features_are_those_of_transformers(case, saved):
    """To rounding on the same pixels; on its own processor's pixels as close as those are."""
    folder, model = saved(case)
    encoder = load_encoder(case.name, weights=str(folder), modality="rgb")
    frames = sample_frames(case.frames)
    pixels, outputs = encoded(encoder, frames)
    theirs = case.pixels(frames)
    std = torch.tensor(encoder.preprocess.std).view(3, 1, 1)
    assert ((pixels - theirs).abs() * std).mean() <= 1 / 255
    got = _as_official(case, model, outputs)
    exact, close = _official(case, model, pixels), _official(case, model, theirs)
    assert set(exact) <= set(got)
    for key, want in exact.items():
        assert got[key].shape == want.shape
        assert torch.allclose(got[key], want, atol=2e-5, rtol=1e-4), key
        assert cosine_similarity(got[key].flatten(), close[key].flatten(), dim=0) > 0.999
    assert encoder.name == f"{case.name}-custom"


# Weights of these outputs at zero: a token then knows nothing of the others.
MIXING = (
    "out_proj",
    "o_proj",
    "attention.output.dense",
    "attention.proj",
    "attention_output",
    "temporal_dense",
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_lie_where_their_patches_are(case, saved, tmp_path):
    """Without attention, a changed patch (step 1, row 2, column 1) changes that token and no other."""
    model = case.model()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if any(name in key for name in MIXING):
                weight.zero_()
    case.save(tmp_path)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(case.name, weights=str(tmp_path), modality="rgb")
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    changed = batch.clone()
    first = encoder.frames_per_step  # of the frames that step 1 covers
    changed[:, first, :, 16:24, 8:16] = 255 - changed[:, first, :, 16:24, 8:16]
    before, after = encoder.encode(batch)["tokens"], encoder.encode(changed)["tokens"]
    moved = (before - after).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[1, 2 * 4 + 1]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fields_are_declared_as_they_come(case, saved):
    folder, _ = saved(case)
    encoder = load_encoder(case.name, weights=str(folder), modality="rgb")
    outputs = encoder.encode(torch.zeros(2, case.frames, 3, 32, 32, dtype=torch.uint8))
    assert {name for name, one in encoder.fields.items() if one.source is None} == set(outputs)
    for name in encoder.fields:
        one = encoder.fields[name]
        values = field_values(one, outputs)
        assert values.shape[2:] == (one.tokens, one.dim)
        steps = 1 if one.per_clip and encoder.unit == "clip" else case.frames // encoder.frames_per_step
        assert values.shape[:2] == (2, steps)
    assert encoder.default_fields[-1] == "tokens.pooled"
    assert json.loads(json.dumps(encoder.space)) == encoder.space


@pytest.mark.parametrize("name", NAMES)
def test_every_name_counts_its_parameters_and_says_where_it_comes_from(name):
    encoder = load_encoder(name, weights="random")
    assert encoder.parameters() == PARAMETERS.get(name, encoder.parameters()) > 20e6
    assert encoder.name == f"{name}-random"
    if name != "clip":
        assert encoder.card.file.count("/") == 1 and encoder.card.published.startswith("github.com/")
        assert encoder.card.licence


@pytest.mark.parametrize("name", NAMES)
def test_the_small_twin_of_every_name_runs(name):
    encoder = load_encoder(name, weights="random", architecture="tiny")
    frames = encoder.sampling["frames"] if encoder.unit == "clip" else 1
    outputs = encoder.encode(
        torch.randint(0, 256, (2, frames, 3, *encoder.preprocess.sides), dtype=torch.uint8)
    )
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert encoder.name == f"{name}-tiny-random"
    again = load_encoder(name, weights="random", architecture="tiny")
    assert torch.equal(
        next(again.model.parameters()), next(encoder.model.parameters())
    )  # random, yet the same each time


def test_attention_is_fused_where_transformers_can(saved):
    for case in CASES:
        encoder = load_encoder(case.name, weights=str(saved(case)[0]), modality="rgb")
        expected = "eager" if case.name == "timesformer-b" else "sdpa"
        assert encoder.model.config._attn_implementation == expected


# Texts ----------------------------------------------------------------------------------------------------


def test_texts_of_random_weights_are_tokenised_by_clips_own_tokenizer():
    encoder = load_encoder("xclip-b16", weights="random", modality="text", architecture="tiny")
    texts = ["a person waves", "A person waves", "somebody drinks from a cup"]
    vectors = encoder.encode_text(texts)
    with torch.inference_mode():
        tokens = encoder.tokenizer(texts, padding=True, return_tensors="pt")
        expected = encoder.model.get_text_features(**tokens).pooler_output
    assert torch.allclose(vectors, expected, atol=1e-5)
    assert torch.equal(vectors[0], vectors[1])
    assert encoder.default_fields == ("embedding",) and set(encoder.fields) == {"embedding"}


@pytest.mark.parametrize(
    ("name", "save", "pad"), [("siglip-b16-224", save_sentencepiece, 1), ("siglip2-b16-224", save_gemma, 0)]
)
def test_siglips_texts_are_lower_case_and_padded_on_the_right(name, save, pad, tmp_path):
    """As its authors evaluate it: the feature is read off the last of all positions, padding or not."""
    case = next(case for case in CASES if case.name == name)
    model = case.save(tmp_path)
    save(tmp_path)
    encoder = load_encoder(name, weights=str(tmp_path), modality="text")
    with torch.inference_mode():
        ids = encoder.tokenizer("a cup")["input_ids"]
        assert ids[-1] == 1 and len(ids) < 16
        padded = torch.tensor([ids + [pad] * (16 - len(ids))])
        expected = model.get_text_features(input_ids=padded).pooler_output
    vectors = encoder.encode_text(["A Cup", "a cup", "the table"])
    assert torch.allclose(vectors[:1], expected, atol=1e-5)
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2], atol=1e-3)


def test_random_siglip_says_that_its_tokenizer_is_missing():
    encoder = load_encoder("siglip2-b16-224", weights="random", modality="text", architecture="tiny")
    with pytest.raises(EncoderError, match="its tokenizer comes with its folder"):
        encoder.encode_text(["a cup"])


# Files of OpenAI's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "said"), [("clip", "clip"), ("clip-vit-b16", "clip-vit-b16-custom")])
def test_a_file_of_openais_computes_what_its_module_computes(tmp_path, name, said):
    torch.manual_seed(0)
    reference = OpenAIClip().eval()
    torch.save(reference.state_dict(), tmp_path / "ViT-tiny.pt")
    encoder = load_encoder(name, weights=str(tmp_path / "ViT-tiny.pt"), modality="rgb")
    pixels, outputs = encoded(encoder, sample_frames(2))
    with torch.inference_mode():
        expected = reference.visual(pixels)
    assert torch.allclose(outputs["cls"][:, 0], expected, atol=1e-4)
    assert encoder.name == said
    assert encoder.preprocess.resize == "centre" and encoder.preprocess.interpolation == "bicubic"
    assert encoder.space != load_encoder(name, weights="random").space
    assert encoder.tokenizer("a cup")["input_ids"][0] == 49406


def test_a_files_activation_is_asked_for_as_its_tensors_do_not_tell(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "open_clip.pt"
    torch.save(OpenAIClip().state_dict(), path)
    quick = load_encoder("clip", weights=str(path), modality="rgb")
    exact = load_encoder("clip", weights=str(path), modality="rgb", activation="gelu")
    assert {exact.config.vision_config.hidden_act, exact.config.text_config.hidden_act} == {"gelu"}
    (_, one), (_, other) = encoded(quick, sample_frames(2)), encoded(exact, sample_frames(2))
    assert not torch.allclose(one["cls"], other["cls"], atol=1e-3)
    assert quick.space != exact.space
    with pytest.raises(EncoderError, match="activation is 'relu'; accepted are: quick_gelu, gelu"):
        load_encoder("clip", weights=str(path), activation="relu")
    with pytest.raises(EncoderError, match="activation is for weights in a file"):
        load_encoder("clip-vit-b16", weights="random", activation="gelu")


# Full size ------------------------------------------------------------------------------------------------


FULL_SIZE = {"clip-vit-b16": 1, "siglip-b16-224": 1, "dinov2-b14": 1, "xclip-b16": 8}
FULL_SIZE |= {"videomae-b": 16, "timesformer-b": 8, "vjepa2-l": 16}  # a quarter of its 64 frames


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), FULL_SIZE.items())
def test_full_size_models_run(name, count):
    encoder = load_encoder(name, weights="random", modality="rgb")
    frames = sample_frames(count)
    _, outputs = encoded(encoder, frames)
    for key, value in outputs.items():
        assert torch.isfinite(value).all()
        assert tuple(value.shape[1:]) == (encoder.fields[key].tokens, encoder.fields[key].dim)
    assert sum(one.numel() for one in encoder.model.parameters()) == encoder.parameters()
