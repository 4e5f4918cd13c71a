"""What bfloat16 costs: cosine to float32 on real frames, for every encoder that ``auto`` runs in bfloat16.

The bar: 0.999 for a clip's ``embedding``, 0.998 for each row of other fields (a frame's ``cls``, a time
step's pooled tokens). EfficientNet has its real weights, the others random ones: tiny networks here, in the
slow tests one of full size of each family.

A network with fresh weights maps all clips close to one point (its attention is nearly uniform, its residual
stream mostly position and bias), so that a cosine of the features as they are proves little. Therefore the
clips' *differences* are compared too: features less their mean over all rows, wherever these differences are
more than a fraction of the features that bfloat16's rounding (2**-9 of a value) could drown.
"""

import pytest
import torch
from precision_cases import CLIPS, cosines, encoder_class, features, is_family, load

from encoders import ENCODERS
from extract.encode import BatchEncoder, default_precision

PER_CLIP, PER_ROW = 0.999, 0.998
CENTRED = 0.98  # median over the rows
SPREAD = 0.04  # median distance of a row from the mean of all, relative to its length

TOLERANT = [
    (name, mode)
    for name in ENCODERS
    for mode in encoder_class(name).modalities
    if mode != "text" and encoder_class(name).tolerates_bf16
]


def _distinct():
    """One name for each tiny network that names come down to; ir and depth where the weights are real."""
    found = {}
    for name, mode in TOLERANT:
        encoder = load(name, mode, tiny=True)
        kind = "rgb" if is_family(name) and mode in ("ir", "depth") else mode
        key = (ENCODERS[name], repr(getattr(encoder, "architecture", name)), kind)
        found.setdefault(key, (name, mode))
    return list(found.values())


def _full_size():
    """The smallest of each family with a checkpoint, in the first modality that it takes."""
    found = {}
    for name in ENCODERS:
        if is_family(name) and encoder_class(name).tolerates_bf16 and name != "clip":
            found.setdefault((ENCODERS[name], name.split("-")[0]), []).append(name)
    smallest = [min(names, key=lambda one: load(one, None, False).parameters()) for names in found.values()]
    return [(name, encoder_class(name).modalities[0]) for name in smallest]


def check(encoder, modality, clips):
    exact, rounded = (features(encoder, modality, precision, clips) for precision in ("fp32", "bf16"))
    assert exact.keys() == set(encoder.default_fields)
    for name, values in exact.items():
        bar = PER_CLIP if encoder.fields[name].per_clip else PER_ROW
        assert not torch.equal(values, rounded[name]), f"{name} was computed in float32 twice"
        assert cosines(values, rounded[name]).min() >= bar, name
        apart = values - values.mean(0)
        if (apart.norm(dim=-1) / values.norm(dim=-1)).median() >= SPREAD:
            assert cosines(apart, rounded[name] - values.mean(0)).median() >= CENTRED, name


@pytest.mark.parametrize(("name", "modality"), _distinct())
def test_bfloat16_keeps_the_direction_of_every_feature(name, modality):
    check(load(name, modality, tiny=True), modality, clips=3)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["rgb", "ir", "depth"])
def test_the_default_encoder_does_so_on_all_samples(modality):
    check(load("efficientnet-lite0", modality, tiny=False), modality, clips=len(CLIPS))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "modality"), _full_size())
def test_so_do_networks_of_full_size(name, modality, monkeypatch):
    encoder = load(name, modality, tiny=False)
    if name.startswith("vjepa2"):  # of 64 frames, whose 8,192 tokens take minutes here
        monkeypatch.setattr(encoder, "sampling", {"frames": 8})
    check(encoder, modality, clips=2)


@pytest.mark.parametrize(("amx", "avx512"), [(True, True), (True, False), (False, True), (False, False)])
def test_auto_is_bfloat16_where_it_is_native_and_the_encoder_bears_it(amx, avx512, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    taken = {name: default_precision("cpu", encoder_class(name).tolerates_bf16) for name in ENCODERS}
    assert {taken["joints"], taken["imu"], taken["minilm"]} == {"fp32"}
    assert taken["clip-vit-b16"] == taken["efficientnet-lite0"] == ("bf16" if amx or avx512 else "fp32")
    for name, precision in taken.items():
        assert precision == "fp32" or encoder_class(name).tolerates_bf16


def test_weights_that_bfloat16_cannot_hold_fail_the_bar(monkeypatch):
    """The check can fail: a layer whose large bias hides a small signal."""
    encoder = load("dinov2-s14", "rgb", tiny=True)
    with torch.no_grad():
        encoder.model.layernorm.bias.add_(300.0)
    build = encoder.features

    def shifted(batch):
        return {name: values - 300.0 for name, values in build(batch).items()}

    monkeypatch.setattr(encoder, "features", shifted)
    with pytest.raises(AssertionError):
        check(encoder, "rgb", clips=2)


def test_float32_stays_float32():
    """No layer is exchanged, no autocast is on, unless bfloat16 is asked for."""
    encoder = load("dinov2-s14", "rgb", tiny=True)
    seen = []
    original = encoder.features

    def looking(batch):
        forwards = [module for module in encoder.model.modules() if "forward" in module.__dict__]
        seen.append((torch.is_autocast_enabled("cpu"), bool(forwards)))
        return original(batch)

    encoder.features = looking
    for precision in ("fp32", "bf16", "fp32"):
        with BatchEncoder(encoder, precision, threads=1) as batches:
            list(batches.add(0, torch.zeros(2, 3, *encoder.preprocess.sides, dtype=torch.uint8).numpy()))
            list(batches.flush())
    assert [autocast for autocast, _ in seen] == [False, True, False]
    assert [exchanged for _, exchanged in seen][::2] == [False, False]
