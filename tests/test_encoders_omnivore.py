"""Omnivore: parity with the original code's outputs, its official files' keys, and what goes into it."""

import re
from dataclasses import replace

import golden_fixtures
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from encoders import load_encoder, swin3d
from encoders.checkpoint import load_strictly
from encoders.errors import EncoderError, WeightsError
from encoders.omnivore import Omnivore, OmnivoreModel, OmnivoreShape
from encoders.preprocess import CLIP_MEAN, CLIP_STD

FIXTURES = golden_fixtures.cases("omnivore_")
TINY = Omnivore.tiny
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _heads(weights) -> tuple[tuple[str, int], ...] | int:
    """The classes of the heads that a list of keys and shapes has: one of its own, or one for each input."""
    if "heads.1.weight" in weights:
        return int(weights["heads.1.weight"][0])
    found = ((re.fullmatch(r"heads\.([a-z]+)(\.1)?\.weight", key), shape) for key, shape in weights.items())
    return tuple((match[1], shape[0]) for match, shape in found if match)


def _shape(meta) -> OmnivoreShape:
    """The fixture's constructor arguments."""
    given = meta["constructor"]
    return OmnivoreShape(
        given["embed_dim"],
        tuple(given["depths"]),
        tuple(given["num_heads"]),
        tuple(given["window_size"]),
        tuple(given["patch_size"]),
        given["patch_norm"],
        given["depth_mode"] is not None,
        given.get("mlp_ratio", 4.0),
        given.get("qkv_bias", True),
        classes=_heads(meta["weights"]),
    )


def _model(fixture, weights=None) -> OmnivoreModel:
    model = OmnivoreModel(_shape(fixture.meta)).eval()
    weights = weights or fixture.part("weight")
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("cmvra_")})
    return model


@torch.inference_mode()
def _outputs(fixture, model: OmnivoreModel) -> dict[str, torch.Tensor]:
    """Everything that the fixture holds, under its names."""
    found = {}
    for name, pixels in fixture.part("input").items():
        clips = pixels[:, :, None] if pixels.ndim == 4 else pixels
        maps, blocks = _maps(model, clips)
        pooled = maps["final_normed_map"].mean((1, 2, 3))
        results = blocks | {key: one.movedim(-1, 1) for key, one in maps.items()} | {"pooled": pooled}
        for key in fixture.part("output", f"{name}/"):
            if key.startswith("logits"):
                kind = key.removeprefix("logits").removeprefix("_")
                results[key] = model.logits(pooled, kind if isinstance(model.heads, nn.ModuleDict) else None)
            elif key == "embedding":
                results[key] = functional.linear(pooled, fixture.part("weight")["cmvra_head.weight"])
        found |= {f"{name}/{key}": value for key, value in results.items()}
    return found


def _maps(model: OmnivoreModel, clips: torch.Tensor) -> tuple[dict, dict]:
    """The outputs of the stages, with what comes before and after them, and those of the blocks."""
    stages, blocks, hooks = {}, {}, []

    def watch(module, into, key):
        hooks.append(module.register_forward_hook(lambda _module, _inputs, out: into.update({key: out})))

    for i, stage in enumerate(model.trunk.layers):
        watch(stage, stages, f"interim{i}")
        for j, block in enumerate(stage.blocks):
            watch(block, blocks, f"stage{i}_block{j}")
    last = model(clips)
    for hook in hooks:
        hook.remove()
    return {"patch_embed": model.trunk.embed(clips), "final_normed_map": last, **stages}, blocks


def _worst(fixture, model) -> float:
    """The largest error over all outputs, as a share of what is allowed."""
    got = _outputs(fixture, model)
    wanted = fixture.part("output")
    return max(float(fixture.errors(got[name], value).max()) for name, value in wanted.items())


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_output_is_the_original_codes(fixture):
    got = _outputs(fixture, _model(fixture))
    assert fixture.part("output")
    for name in fixture.part("output"):
        fixture.check(got[name], name)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_position_index_that_files_carry_is_the_one_we_make(fixture):
    fresh = OmnivoreModel(_shape(fixture.meta)).state_dict()
    carried = {key: one for key, one in fixture.part("weight").items() if key.endswith("_position_index")}
    assert carried
    for key, value in carried.items():
        assert torch.equal(fresh[key], value), key


# Deliberate faults. Each takes the model (and pytest's monkeypatch) and spoils one thing.
def _other_eps(model, patch):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def _tanh_gelu(model, patch):
    exact = functional.gelu
    patch.setattr(functional, "gelu", lambda values: exact(values, approximate="tanh"))


def _quick_gelu(model, patch):
    patch.setattr(functional, "gelu", lambda values: values * torch.sigmoid(1.702 * values))


def _repeated_frame(model, patch):
    zeros = swin3d._pad

    def repeat(values, multiple, first):
        if first == 2 and values.shape[2] % multiple[0]:
            values = torch.cat([values, values[:, :, -1:]], 2)
        return zeros(values, multiple, first)

    patch.setattr(swin3d, "_pad", repeat)


def _no_mask(model, patch):
    patch.setattr(swin3d, "OTHER_REGION", 0.0)


def _true_offsets(model, patch):
    """The position bias of a shrunken window by its tokens' true offsets."""

    def correct(block, inputs):
        full, size = block.window, inputs[0].shape[1:4]
        window, _ = swin3d.shrink(full, block.shift, size)
        places = torch.stack(torch.meshgrid(*map(torch.arange, window), indexing="ij")).flatten(1)
        offset = places[:, :, None] - places[:, None] + torch.tensor(full).view(3, 1, 1) - 1
        index = (offset[0] * (2 * full[1] - 1) + offset[1]) * (2 * full[2] - 1) + offset[2]
        block.attn.relative_position_index[: len(index), : len(index)] = index

    for stage in model.trunk.layers:
        for block in stage.blocks:
            block.register_forward_pre_hook(correct)


def _swapped(model, patch):
    block = model.trunk.layers[0].blocks[1]
    block.norm1, block.norm2 = block.norm2, block.norm1


def _transposed(model, patch):
    projection = model.trunk.layers[-1].blocks[0].attn.proj
    projection.weight.data = projection.weight.data.T.contiguous()


FAULTS = (
    _other_eps,
    _tanh_gelu,
    _quick_gelu,
    _repeated_frame,
    _no_mask,
    _true_offsets,
    _swapped,
    _transposed,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_fixtures_catch(fault, monkeypatch):
    fixtures = [case.values[0] for case in FIXTURES if case.values[0]]
    if not fixtures:
        pytest.skip("no parity fixtures omnivore_")
    worst = []
    for fixture in fixtures:
        swin3d.arrange.cache_clear()  # of masks
        with monkeypatch.context() as patch:
            model = _model(fixture)
            fault(model, patch)
            worst.append(_worst(fixture, model))
    swin3d.arrange.cache_clear()
    assert max(worst) > 10, f"the largest error is {max(worst):.3g} times the tolerance"


def test_a_later_backward_pass_may_use_what_inference_has_cached():
    swin3d.arrange.cache_clear()
    encoder = Omnivore("random", modality="rgb", name="omnivore-swin-b", architecture="tiny")
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 3, 40, 56), dtype=np.uint8))
    stored = encoder.encode(batch)["embedding"]
    trained = encoder.features(batch)["embedding"]
    torch.testing.assert_close(stored, trained.detach(), atol=1e-5, rtol=0)  # other attention kernels
    trained.square().sum().backward()
    trunk = encoder.model.trunk
    for weight in (
        trunk.patch_embed.proj.weight,
        trunk.layers[0].blocks[1].attn.relative_position_bias_table,
    ):
        assert weight.grad.abs().sum() > 0


def test_an_encoder_computes_what_the_module_does(tmp_path):
    model = OmnivoreModel(TINY)
    tensors = model.state_dict()
    nested = {
        part: {key.removeprefix(f"{part}."): one for key, one in tensors.items() if key.startswith(part)}
        for part in ("trunk", "heads")
    }
    torch.save(nested, tmp_path / "swinB_checkpoint.torch")
    path = str(tmp_path / "swinB_checkpoint.torch")
    encoder = load_encoder("omnivore-swin-b", path, modality="rgb", architecture="tiny")
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    prepared = torch.from_numpy(encoder.prepare()(frames, "rgb", None, np.arange(5) / 30))
    got = encoder.encode(prepared[None])
    pixels = (frames / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(pixels).float().permute(3, 0, 1, 2)[None])
    assert got["tokens"].shape == (1, 3, 16, 32)
    torch.testing.assert_close(got["tokens"], wanted.flatten(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(got["embedding"][0, 0, 0], wanted.mean((1, 2, 3))[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fault", ["missing", "misshapen", "extra"])
def test_a_file_that_does_not_fit_is_refused(tmp_path, fault):
    tensors = {key: one.clone() for key, one in OmnivoreModel(TINY).state_dict().items()}
    key = "trunk.layers.0.blocks.1.attn.relative_position_index"
    if fault == "missing":
        del tensors[key]
    elif fault == "misshapen":
        tensors[key] = tensors[key][:-1]
    else:
        key = "trunk.layers.0.blocks.1.attn.extra"
        tensors[key] = torch.zeros(1)
    torch.save(tensors, tmp_path / "some.pth")
    encoder = Omnivore(
        str(tmp_path / "some.pth"), modality="rgb", name="omnivore-swin-b", architecture="tiny"
    )
    with pytest.raises(WeightsError, match=re.escape(key)):
        _ = encoder.model


def test_a_missing_file_names_the_official_one_and_its_licence():
    with pytest.raises(WeightsError, match=r"swinL_In21k.*facebookresearch/omnivore.*CC-BY-NC"):
        load_encoder("omnivore-swin-l", modality="rgb")


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("modality", Omnivore.modalities)
def test_every_input_has_a_step_for_each_two_frames(modality, frames):
    encoder = load_encoder("omnivore-swin-s", "random", modality=modality, architecture="tiny")
    prepared = encoder.prepare()(_media(modality, frames), modality, None, np.arange(frames) / 30)
    features = encoder.encode(torch.from_numpy(prepared)[None])
    assert features["tokens"].shape == (1, (frames + 1) // 2, 16, 32)
    assert features["embedding"].shape == (1, 1, 1, 32)
    assert encoder.frames_per_step == 2
    pooled = features["tokens"].mean((1, 2))
    torch.testing.assert_close(features["embedding"][:, 0, 0], pooled)


def _media(modality, frames, seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)
    depth = rng.integers(500, 5000, (frames, 36, 48), dtype=np.uint16)
    return {"rgb": pictures, "ir": pictures, "depth": depth, "rgb+depth": {"rgb": pictures, "depth": depth}}[
        modality
    ]


def test_rgbd_carries_both_exactly():
    encoder = load_encoder("omnivore-swin-b", "random", modality="rgb+depth", architecture="tiny")
    media = _media("rgb+depth", 3)
    prepare = encoder.prepare()
    both = prepare(media, "rgb+depth", None, np.arange(3) / 30)
    assert (both.shape, both.dtype) == ((3, 4, 32, 32), np.float16)
    assert np.array_equal(both[:, :3], prepare(media["rgb"], "rgb", None, None))
    assert np.array_equal(both[:, 3:], prepare(media["depth"], "depth", None, None))
    normalised = prepare.normalise(torch.from_numpy(both))
    alone = prepare.normalise(torch.from_numpy(both[:, 3:]))
    assert torch.equal(normalised[:, 3], alone[:, 3])
    assert (alone[:, :3] == 0).all()  # the mean colour, as where colour was dropped in training
    assert torch.equal(normalised[:, :3], prepare.normalise(torch.from_numpy(both[:, :3].astype(np.uint8))))


def test_rgb_and_depth_of_different_lengths_are_refused():
    encoder = load_encoder("omnivore-swin-b", "random", modality="rgb+depth", architecture="tiny")
    media = {"rgb": _media("rgb", 3), "depth": _media("depth", 4)}
    with pytest.raises(EncoderError, match="3 and 4 frames"):
        encoder.prepare()(media, "rgb+depth", None, np.arange(3) / 30)


def test_grey_infrared_is_no_depth():
    encoder = load_encoder("omnivore-swin-b", "random", modality="ir", architecture="tiny")
    grey = _media("ir", 2)[..., 0]
    spread = np.repeat(grey[..., None], 3, -1)
    prepare = encoder.prepare()
    assert np.array_equal(prepare(grey, "ir.left", None, None), prepare(spread, "ir", None, None))


def test_cmvra_gives_every_modality_clips_statistics_and_depth_its_first_channel_twice():
    encoder = load_encoder("omnivore-swin-b", "random", modality="depth", architecture="tiny", preset="cmvra")
    assert encoder.sampling == {"frames": 12}
    depth = np.full((2, 40, 64), 100, np.uint16)
    depth[1] = 3000  # saturates
    prepare = encoder.prepare()
    prepared = prepare(depth, "depth", None, None)
    assert (prepared.shape, prepared.dtype) == ((2, 1, 32, 32), np.uint8)  # squashed, not cropped
    got = prepare.normalise(torch.from_numpy(prepared))
    assert got.shape == (2, 4, 32, 32)
    for frame, level in enumerate((100 / 255, 1.0)):
        wanted = [(level - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
        assert torch.allclose(got[frame, :, 0, 0], torch.tensor([*wanted, wanted[0]]), atol=1e-5)
    # Depth that was stored as a video keeps its three channels.
    video = np.stack([np.full((1, 40, 64), level, np.uint8) for level in (10, 20, 30)], -1)
    stored = torch.from_numpy(prepare(video, "depth", None, None))
    assert stored[0, :, 0, 0].tolist() == [10, 20, 30, 10]
    normalised = prepare.normalise(stored)
    assert torch.equal(normalised[:, 3], normalised[:, 0])
    assert torch.equal(normalised[:, :3], prepare.normalise(stored[:, :3]))
    with pytest.raises(EncoderError, match=r"no rgb\+depth"):
        load_encoder("omnivore-swin-b", "random", modality="rgb+depth", architecture="tiny", preset="cmvra")


def test_cmvras_aligned_checkpoints_end_in_a_projection(tmp_path):
    model = OmnivoreModel(replace(TINY, projection=6)).eval()
    assert list(model.heads.state_dict()) == ["weight"]
    # As its trainer wraps several encoders and itself in DataParallel.
    prefix = "module.modalities_encoders."
    states = {f"{prefix}ir.module.{key}": value for key, value in model.state_dict().items()}
    states |= {f"{prefix}rgb.module.other": torch.zeros(1)}
    torch.save({"epoch": 3, "model_state_dict": states}, tmp_path / "aligned.pth")
    encoder = load_encoder(
        "omnivore-swin-b",
        str(tmp_path / "aligned.pth"),
        modality="ir",
        architecture="tiny",
        preset="cmvra",
        projection=6,
    )
    assert encoder.fields["embedding"].dim == 6
    features = encoder.encode(torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8))
    wanted = features["tokens"].mean((1, 2)) @ model.heads.weight.T
    torch.testing.assert_close(features["embedding"][:, 0, 0], wanted)


@pytest.mark.parametrize(
    ("modality", "options", "held"),
    [
        ("ir.ceiling", {}, "ceiling"),
        ("ir.inner_mirror", {}, "ir"),
        ("ir", {}, "ir"),
        ("rgb", {"entry": "rgb2"}, "rgb2"),
    ],
)
def test_a_camera_is_encoded_by_its_own_encoder_of_an_aligned_checkpoint(tmp_path, modality, options, held):
    """CMVRA keys Drive&Act's cameras by their names, and a second encoder of RGB as rgb2."""
    models = {name: OmnivoreModel(replace(TINY, projection=6)).eval() for name in ("ir", "ceiling", "rgb2")}
    states = {
        f"module.modalities_encoders.{name}.module.{key}": value
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }
    torch.save({"epoch": 3, "model_state_dict": states}, tmp_path / "aligned.pth")
    encoder = load_encoder(
        "omnivore-swin-b",
        str(tmp_path / "aligned.pth"),
        modality=modality,
        architecture="tiny",
        projection=6,
        **options,
    )
    assert torch.equal(encoder.model.heads.weight, models[held].heads.weight)
    assert encoder.space["weights"].endswith(f":{held}")


def test_another_number_of_channels_is_refused():
    trunk = OmnivoreModel(replace(TINY, depth_channel=False, classes=7)).trunk
    with pytest.raises(EncoderError, match=r"C is 3"):
        trunk(torch.zeros(1, 4, 2, 32, 32))


@pytest.mark.parametrize(("name", "parameters"), [("s", 49.8e6), ("l", 197.0e6)])
def test_s_and_l_have_the_published_number_of_parameters(name, parameters):
    """Video Swin's, of trunk and Kinetics head; Omnivore adds the patch embedding of depth and two heads."""
    shape = replace(
        Omnivore.architectures[f"omnivore-swin-{name}"], depth_channel=False, classes=(("video", 400),)
    )
    with torch.device("meta"):
        count = sum(one.numel() for one in OmnivoreModel(shape).parameters())
    assert round(count / 1e5) == round(parameters / 1e5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("B", 88_660_168), ("T", 27_853_830)])
def test_the_official_file_fits_key_for_key_and_runs(name, parameters):
    manifest = golden_fixtures.manifest(f"omnivore_swin{name}")
    wanted = {f"{part}.{key}": shape for part, keys in manifest.items() for key, shape in keys.items()}
    encoder = Omnivore("random", modality="rgb", name=f"omnivore-swin-{name.lower()}")
    model = encoder.model
    built = model.state_dict()
    assert {key: list(value.shape) for key, value in built.items()} == wanted
    whole = {key for key, value in built.items() if value.dtype == torch.int64}
    assert whole == {key for key in wanted if key.endswith("relative_position_index")}
    assert sum(one.numel() for one in model.trunk.parameters()) == parameters
    random = {key: torch.randn(shape) * 0.02 for key, shape in wanted.items() if key not in whole}
    tensors = encoder.translate(random | {key: built[key] for key in whole})
    load_strictly(model, tensors, f"swin{name}")
    features = encoder.encode(torch.randint(0, 256, (1, 3, 3, 224, 224), dtype=torch.uint8))
    width = wanted["trunk.norm.weight"][0]
    assert features["tokens"].shape == (1, 2, 49, width)
    assert features["embedding"].shape == (1, 1, 1, width)
    assert all(torch.isfinite(value).all() for value in features.values())
    for kind, classes in Omnivore.architectures[encoder.name.removesuffix("-random")].classes:
        assert model.logits(features["embedding"][:, 0, 0].clone(), kind).shape == (1, classes)
