"""Folders and hub ids: loaded strictly or refused with the reason, found in the local cache."""

import json

import pytest
import torch
from hub_folders import CASES, encoded, sample_frames
from safetensors.torch import load_file, save_file

from encoders import hub, load_encoder
from encoders.errors import EncoderError, WeightsError


def test_sharded_folders_load(tmp_path):
    case = next(case for case in CASES if case.name == "videomae-b")
    model = case.save(tmp_path, shard="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_encoder(case.name, weights=str(tmp_path)).model
    expected = model.videomae.state_dict()
    assert expected.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_tensors_are_saved_as_a_folder_that_loads(case, tmp_path):
    """What training leaves: the encoder's tensors are the new ones, heads and processor the old ones."""
    whole = case.save(tmp_path / "official").state_dict()
    before = load_encoder(case.name, weights=str(tmp_path / "official"), modality="rgb")
    tensors = {
        key: value + 0.5 if value.is_floating_point() else value
        for key, value in before.model.state_dict().items()
    }
    digest = before.save(tmp_path / "trained", tensors)
    after = load_encoder(case.name, weights=str(tmp_path / "trained"), modality="rgb")
    found = after.model.state_dict()
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in found)
    assert after.space["weights"] == digest != before.space["weights"]
    assert after.name == before.name and after.preprocess == before.preprocess
    kept = type(case.model()).from_pretrained(tmp_path / "trained").state_dict()
    changed = sum(not torch.equal(kept[key], value) for key, value in whole.items())
    assert kept.keys() == whole.keys() and changed == sum(one.is_floating_point() for one in tensors.values())
    assert after.parameters() == sum(value.numel() for value in after.model.parameters())


@pytest.mark.parametrize("name", ["clip-vit-b32", "videomae-b-k400"])
def test_weights_load_whoever_asks_first(name, tmp_path):
    """Inside inference mode and bf16 autocast, as extraction does it; gradients still flow afterwards."""
    case = next(case for case in CASES if case.name == name)
    case.save(tmp_path)
    encoder = load_encoder(name, weights=str(tmp_path), modality="rgb")
    batch = torch.randint(0, 256, (1, case.frames, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(batch)["embedding"]
    assert inside.dtype == torch.float32
    assert not any(parameter.is_inference() for parameter in encoder.model.parameters())
    outside = encoder.features(batch)["embedding"]
    outside.sum().backward()
    assert torch.nn.functional.cosine_similarity(inside.flatten(), outside.flatten(), dim=0) > 0.998
    assert any(parameter.grad is not None for parameter in encoder.model.parameters())


def test_half_precision_weights_run_in_float32(tmp_path):
    case = CASES[0]
    model = case.save(tmp_path)
    model.half().save_pretrained(tmp_path)
    encoder = load_encoder(case.name, weights=str(tmp_path))
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"missing_keys \(1\): vision_model\.post_layernorm\.bias"),
        ("extra", r"unexpected_keys \(1\): vision_model\.surplus"),
        ("misshapen", r"mismatched_keys \(1\): visual_projection\.weight \(23, 48\) instead of \(24, 48\)"),
        ("damaged", r"holds NaN or infinite values: visual_projection\.weight"),
        ("truncated", r"cannot read .*"),
    ],
)
def test_faulty_folders_are_refused_and_say_why(tmp_path, fault, message):
    CASES[0].save(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    if fault == "missing":
        del state["vision_model.post_layernorm.bias"]
    if fault == "extra":
        state["vision_model.surplus"] = torch.zeros(3)
    if fault == "misshapen":
        state["visual_projection.weight"] = state["visual_projection.weight"][:-1].clone()
    if fault == "damaged":
        state["visual_projection.weight"][3, 4] = torch.inf
    save_file(state, path, metadata={"format": "pt"})
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=rf"^clip-vit-b32-custom: .*{message}"):
        load_encoder("clip-vit-b32", weights=str(tmp_path)).model  # noqa: B018 - the property loads


def test_partial_folders_load_when_told_which_keys_they_lack(tmp_path):
    CASES[0].save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith("text_model.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder("clip", weights=str(tmp_path), allow_partial=("text_model.",))
    assert torch.equal(encoder.model.visual_projection.weight, state["visual_projection.weight"])
    torch.rand(5)  # wherever the generator stands, what is missing is filled in the same way
    again = load_encoder("clip", weights=str(tmp_path), allow_partial=("text_model.",))
    fresh = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(encoder.model.state_dict()[fresh], again.model.state_dict()[fresh])
    assert fresh in encoder.load_report.missing
    assert encoder.space["allow_partial"] == ["text_model."]
    with pytest.raises(WeightsError, match=r"missing_keys \(36\): text_model\.embeddings"):
        load_encoder("clip", weights=str(tmp_path), allow_partial=("text_model",)).model  # noqa: B018


def test_a_missing_head_is_reported_too(tmp_path):
    """A classification checkpoint without its classifier is not the one that it says it is."""
    case = next(case for case in CASES if case.name == "timesformer-b")
    case.save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing_keys \(1\): classifier\.bias"):
        load_encoder(case.name, weights=str(tmp_path)).model  # noqa: B018


def test_a_folder_of_another_family_is_refused(tmp_path):
    CASES[0].save(tmp_path)
    with pytest.raises(WeightsError, match=r"is a 'clip' model; accepted are: siglip"):
        load_encoder("siglip-b16-224", weights=str(tmp_path))
    with pytest.raises(WeightsError, match=r"is a 'clip' model; accepted are: dinov2"):
        load_encoder("dinov2-b14", weights=str(tmp_path))


def test_the_official_configuration_keeps_its_name(tmp_path):
    """Only the numbers of the name's own architecture do; the weights are not looked at for that."""
    from transformers import TimesformerConfig

    TimesformerConfig().save_pretrained(tmp_path)
    assert load_encoder("timesformer-b", weights=str(tmp_path)).name == "timesformer-b"
    TimesformerConfig(num_frames=96).save_pretrained(tmp_path)
    encoder = load_encoder("timesformer-b", weights=str(tmp_path))
    assert encoder.name == "timesformer-b-custom"
    assert encoder.sampling == {"frames": 96}


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("xclip-b16", 3, r"3 frames a clip; it takes 4: pass --frames 4"),
        ("videomae-b", 6, r"6 frames a clip; made for 4, it takes that number only: pass --frames 4"),
        ("vjepa2-l", 5, r"5 frames a clip; made for 4, it takes a multiple of 2"),
    ],
)
def test_clips_of_another_length_are_refused(name, frames, message):
    encoder = load_encoder(name, weights="random", architecture="tiny")
    with pytest.raises(EncoderError, match=message):
        encoder.encode(torch.zeros(1, frames, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(("name", "frames"), [("timesformer-b", 7), ("vjepa2-l", 10)])
def test_some_take_longer_clips(name, frames):
    encoder = load_encoder(name, weights="random", architecture="tiny")
    tokens = encoder.encode(torch.zeros(2, frames, 3, 32, 32, dtype=torch.uint8))["tokens"]
    assert tokens.shape == (2, frames // encoder.frames_per_step, 16, 32)


def test_frames_of_another_size_are_taken_where_positions_are_interpolated(tmp_path):
    case = next(case for case in CASES if case.name == "dinov2-s14")
    model = case.save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 40}})
    )
    encoder = load_encoder(case.name, weights=str(tmp_path), modality="rgb")
    pixels, outputs = encoded(encoder, sample_frames(2))
    assert pixels.shape == (2, 3, 48, 40) and encoder.fields["tokens.grid4"].grid == (6, 5)
    with torch.inference_mode():
        assert torch.allclose(outputs["tokens"], model(pixels).last_hidden_state[:, 1:], atol=2e-5)


@pytest.mark.parametrize("name", ["videomae-b", "vjepa2-l"])
def test_a_processor_for_another_size_than_the_models_is_refused(name, tmp_path):
    """V-JEPA 2 would give its tokens wrong positions without a word."""
    case = next(case for case in CASES if case.name == name)
    case.save(tmp_path)
    (tmp_path / case.file).write_text(json.dumps({"size": {"shortest_edge": 48}, "crop_size": 48}))
    with pytest.raises(WeightsError, match=r"frames of \(48, 48\) for a model of \(32, 32\) pixels"):
        load_encoder(name, weights=str(tmp_path))


# The hub --------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty local cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _snapshot(cache, hub_id: str):
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots").mkdir()
    return folder / "snapshots" / "abc"


def test_without_weights_the_official_ones_are_taken_from_the_local_cache(cache):
    model = CASES[0].save(_snapshot(cache, "openai/clip-vit-base-patch32"))
    encoder = load_encoder("clip-vit-b32")
    assert torch.equal(encoder.model.visual_projection.weight, model.visual_projection.weight)
    by_id = load_encoder("clip", weights="openai/clip-vit-base-patch32")
    assert by_id.path == encoder.path


def test_weights_that_cannot_be_had_name_the_official_ones_and_their_licence(cache):
    with pytest.raises(
        WeightsError,
        match=r"^videomae-b: cannot get 'MCG-NJU/videomae-base' from the hub .* the official one is "
        r"MCG-NJU/videomae-base, from github\.com/MCG-NJU/VideoMAE; licence: CC-BY-NC-4\.0",
    ):
        load_encoder("videomae-b")
    with pytest.raises(WeightsError, match=r"no model folder at '/absent'.*from github\.com/openai/CLIP"):
        load_encoder("clip-vit-b16", weights="/absent")


def test_a_snapshot_that_lacks_a_shard_does_not_count(cache, tmp_path):
    case = CASES[0]
    snapshot = _snapshot(cache, "openai/clip-vit-base-patch32")
    case.save(snapshot, shard="40KB")
    assert hub._cached("openai/clip-vit-base-patch32") == snapshot
    next(snapshot.glob("model-00002*")).unlink()
    assert hub._cached("openai/clip-vit-base-patch32") is None


def test_a_file_is_accepted_for_clip_only(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    for name in ("siglip-b16-224", "xclip-b32", "dinov2-s14"):
        with pytest.raises(WeightsError, match="is a file; give a folder or a hub id"):
            load_encoder(name, weights=str(path))
    with pytest.raises(WeightsError, match="not those of OpenAI's CLIP"):
        load_encoder("clip-vit-b16", weights=str(path))
