"""CLIP-ViP's checkpoints: whole, of one tower, of an alignment, of skeletons; strict about every key."""

from pathlib import Path

import pytest
import torch
from golden_fixtures import manifest

from encoders import load_encoder
from encoders.checkpoint import load_strictly
from encoders.clip_vip import ClipVip
from encoders.errors import WeightsError

IMAGE_KEYS = (
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
)


def tiny(modality: str | None = None, weights: str = "random", **options) -> ClipVip:
    return load_encoder("clip-vip-b16", weights, modality=modality, architecture="tiny", **options)


def official() -> dict[str, torch.Tensor]:
    """A whole tiny checkpoint under the official names."""
    model = tiny(None).model
    tensors = {f"clipmodel.{key}": value for key, value in model.state_dict().items()}
    tensors["clipmodel.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["clipmodel.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    return tensors


def save(tensors: dict, folder: Path) -> str:
    torch.save(tensors, folder / "clip.pt")
    return str(folder / "clip.pt")


def stripped(tensors: dict[str, torch.Tensor], *parts: str) -> dict[str, torch.Tensor]:
    """CMVRA's files of one tower."""
    bare = {key.removeprefix("clipmodel."): value for key, value in tensors.items()}
    return {key: value for key, value in bare.items() if key.split(".")[0] in parts}


def test_whole_and_stripped_and_alignment_checkpoints_give_the_same_features(tmp_path):
    tensors = official()
    vision = stripped(tensors, "vision_model", "visual_projection")
    text = stripped(tensors, "text_model", "text_projection")
    aligned = {f"module.modalities_encoders.ir.module.{key}": value for key, value in vision.items()}
    aligned |= {f"module.modalities_encoders.rgb.module.{key}": value * 0 for key, value in vision.items()}
    batch = torch.randint(0, 256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    want, words = tiny(None).encode(batch)["embedding"], tiny(None).encode_text(["a cat"])
    for content in (tensors, vision, {"epoch": 3, "model_state_dict": aligned}):
        found = tiny("ir", save(content, tmp_path)).encode(batch)["embedding"]
        assert torch.allclose(found, want, atol=1e-5)
    for content in (tensors, text):
        assert torch.allclose(tiny("text", save(content, tmp_path)).encode_text(["a cat"]), words, atol=1e-5)


def test_a_checkpoint_of_the_other_tower_is_refused(tmp_path):
    vision = stripped(official(), "vision_model", "visual_projection")
    with pytest.raises(WeightsError, match=r"missing \(37\): text_model"):
        tiny("text", save(vision, tmp_path)).encode_text(["a cat"])


@pytest.mark.parametrize("modality", ["rgb", "text", None])
@pytest.mark.parametrize("change", ["missing", "misshapen", "unexpected", "unexpected in either tower"])
def test_a_key_too_few_or_many_is_refused(modality, change, tmp_path):
    tensors = official()
    part = "text_model.final_layer_norm.bias" if modality == "text" else "vision_model.pre_layrnorm.bias"
    key = f"clipmodel.{part}"
    if change == "missing":
        del tensors[key]
    elif change == "misshapen":
        tensors[key] = torch.zeros(7)
    else:
        part = "bogus" if change == "unexpected" else "vision_model.encoder.layers.2.mlp.fc1.bias"
        tensors[f"clipmodel.{part}"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=part):
        tiny(modality, save(tensors, tmp_path)).model  # noqa: B018 - loads


def test_an_image_checkpoint_fits_skeletons_only_with_the_two_keys_named(tmp_path):
    path = save(official(), tmp_path)
    with pytest.raises(WeightsError, match="patch_embedding"):
        tiny("skeleton", path).model  # noqa: B018 - loads
    with pytest.raises(WeightsError, match="position_embedding"):
        tiny("skeleton", path, allow_partial=IMAGE_KEYS[:1]).model  # noqa: B018
    encoder = tiny("skeleton", path, allow_partial=IMAGE_KEYS)
    fresh, taken = encoder.model.state_dict(), tiny("rgb", path).model.state_dict()
    assert {key for key in fresh if fresh[key].shape != taken[key].shape} == set(IMAGE_KEYS)
    assert all(torch.equal(fresh[key], taken[key]) for key in fresh if key not in IMAGE_KEYS)
    assert encoder.space["allow_partial"] == sorted(IMAGE_KEYS)


def test_a_trained_skeleton_checkpoint_loads_as_it_is(tmp_path):
    trained = tiny("skeleton").model
    embeddings = trained.vision_model.embeddings
    assert embeddings.patch_embedding.weight.shape == (32, 1, 1, 3)
    assert embeddings.position_embedding.weight.shape == (26, 32)
    path = save({f"module.{key}": value for key, value in trained.state_dict().items()}, tmp_path)
    bodies = torch.randn(2, 4, 25, 3)
    assert torch.equal(
        tiny("skeleton", path).encode(bodies)["embedding"], tiny("skeleton").encode(bodies)["embedding"]
    )
    # A joint's token is its own three coordinates through the patch projection.
    first = trained.vision_model.embeddings(bodies[:, :, None])[0, 4]
    place = embeddings.position_embedding.weight[1]
    time = embeddings._times(4)[0, 0]
    joint = bodies[0, 0, 0] @ embeddings.patch_embedding.weight[:, 0, 0].T
    assert torch.allclose(first, joint + place + time, atol=1e-6)


def test_without_weights_the_error_names_the_official_file():
    with pytest.raises(WeightsError, match=r"pretrain_clipvip_base_32\.pt, from github\.com/microsoft/.*MIT"):
        load_encoder("clip-vip-b32", modality="rgb")


MANIFESTS = [
    ("clipvip_base_16", "clip-vip-b16", None),
    ("clipvip_base_32", "clip-vip-b32", "rgb"),
    ("cmvra_clipvip_vision_base_16", "clip-vip-b16", "depth"),
    ("cmvra_clipvip_text_base_16", "clip-vip-b16", "text"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name", "modality"), MANIFESTS)
def test_official_files_fit_key_for_key_and_run_at_full_size(file, name, modality):
    listed = manifest(file)
    tensors = {
        key: torch.arange(shape[1])[None] if key.endswith("position_ids") else 0.02 * torch.randn(shape)
        for key, shape in listed.items()
    }
    encoder = load_encoder(name, "random", modality=modality)
    model = encoder.build().eval()
    load_strictly(model, encoder.translate(tensors), name)
    encoder.model = model
    if modality != "text":
        frames = torch.randint(0, 256, (1, 12, 3, 224, 224), dtype=torch.uint8)
        found = encoder.encode(frames)
        tokens = encoder.fields["tokens"].tokens
        assert found["embedding"].shape == (1, 1, 1, 512)
        assert found["tokens"].shape == (1, 12, tokens, 768)
        assert torch.isfinite(found["tokens"]).all()
    if modality in ("text", None):
        assert encoder.encode_text(["a person drinks water"]).shape == (1, 512)
    tower = "text_model.encoder" if modality == "text" else "vision_model.encoder"
    key = next(key for key in tensors if f"{tower}.layers.11.mlp.fc2.weight" in key)
    for change in ({"bogus": torch.zeros(1)}, {key: tensors[key][:-1]}):
        with pytest.raises(WeightsError, match=r"bogus|fc2"):
            load_strictly(model, encoder.translate(tensors | change), name)
    del tensors[key]
    with pytest.raises(WeightsError, match="fc2"):
        load_strictly(model, encoder.translate(tensors), name)
