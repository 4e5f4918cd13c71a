"""What holds for every encoder of the table, checked by name, so that a new line there is covered here.

Families with checkpoints are tested as their ``tiny`` architecture with random weights; names that come down
to the same one are computed once. The others (installed weights, formulas) are tested as they are.
"""

import json
import pickle
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from encoders import ENCODERS, encoders_for, load_encoder
from encoders.errors import EncoderError, WeightsError
from encoders.generated import prepared
from encoders.pretrained import OFFICIAL, TINY
from encoders.protocols import Field
from encoders.tokens import field_values
from encoders.weights import RANDOM

MODALITIES = ("rgb", "ir", "depth", "rgb+depth", "skeleton", "inertial", "audio", "text")
TOLERANCE = 1e-4
CLIPS = 3


def _class(name: str) -> Any:
    module, attribute = ENCODERS[name].split(":")
    return getattr(import_module(module), attribute)


def _is_family(name: str) -> bool:
    return hasattr(_class(name), "architectures")


def _fresh(name: str, modality: str, preset: str = OFFICIAL) -> Any:
    if not _is_family(name):
        options = {} if preset == OFFICIAL else {"preset": preset}
        return load_encoder(name, modality=modality, **options)
    return load_encoder(name, weights=RANDOM, modality=modality, architecture=TINY, preset=preset)


_encoder = cache(_fresh)


def _pairs() -> list[tuple[str, str]]:
    return [(name, modality) for name in ENCODERS for modality in _class(name).modalities]


def _distinct() -> list[tuple[str, str]]:
    """One name for each network that the pairs come down to."""
    found: dict[tuple[Any, ...], tuple[str, str]] = {}
    for name, modality in _pairs():
        encoder = _encoder(name, modality)
        architecture = repr(getattr(encoder, "architecture", name))
        prepares = encoder.prepare() if modality != "text" else None
        found.setdefault((ENCODERS[name], architecture, repr(prepares), modality), (name, modality))
    return list(found.values())


NAMES = list(ENCODERS)
FAMILIES = [name for name in ENCODERS if _is_family(name)]
MEDIA = [pair for pair in _pairs() if pair[1] != "text"]
COMPUTED = [pair for pair in _distinct() if pair[1] != "text"]
TEXTS = [pair[0] for pair in _distinct() if pair[1] == "text"]


@cache
def _clips(name: str, modality: str) -> tuple[torch.Tensor, ...]:
    """Generated clips, prepared ``(T, ...)``."""
    encoder = _encoder(name, modality)
    return tuple(torch.from_numpy(np.array(prepared(encoder, modality, seed))) for seed in range(CLIPS))


def _batch(name: str, modality: str) -> torch.Tensor:
    """``(B, 1, ...)`` frames or ``(B, T, ...)`` clips; of frames only some, to be quick."""
    clips = _clips(name, modality)
    if _encoder(name, modality).unit == "frame":
        return torch.cat([clip[:2] for clip in clips])[:, None]
    return torch.stack(clips)


def _values(encoder: Any, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All fields, the pooled ones included."""
    return {key: field_values(field, outputs) for key, field in encoder.fields.items()}


@pytest.mark.parametrize("modality", [*MODALITIES, "ir.ceiling"])
def test_the_table_offers_an_encoder_for_every_modality(modality):
    assert encoders_for(modality)


@pytest.mark.parametrize(("name", "modality"), COMPUTED)
def test_outputs_are_those_declared(name, modality):
    encoder, batch = _encoder(name, modality), _batch(name, modality)
    outputs = encoder.encode(batch)
    assert set(outputs) == {key for key, field in encoder.fields.items() if field.source is None}
    assert set(encoder.default_fields) <= set(encoder.fields)
    steps = batch.shape[1] / getattr(encoder, "frames_per_step", 1)
    for key, values in _values(encoder, outputs).items():
        field = encoder.fields[key]
        assert isinstance(field, Field) and field.name == key
        assert values.shape[0] == len(batch)
        assert tuple(values.shape[2:]) == (field.tokens, field.dim)
        if field.per_clip:
            assert values.shape[1] == 1
        else:
            assert int(steps) <= values.shape[1] <= -(-steps // 1)
        assert values.dtype == torch.float32 and values.isfinite().all()
        assert not values.requires_grad


@pytest.mark.parametrize(("name", "modality"), COMPUTED)
def test_results_do_not_depend_on_batch_size_or_order(name, modality):
    encoder, batch = _encoder(name, modality), _batch(name, modality)
    together = _values(encoder, encoder.encode(batch))
    rows = [_values(encoder, encoder.encode(row[None])) for row in batch]
    backwards = _values(encoder, encoder.encode(batch.flip(0)))
    for key, values in together.items():
        alone = torch.cat([row[key] for row in rows])
        assert torch.allclose(values, alone, rtol=TOLERANCE, atol=TOLERANCE), key
        assert torch.allclose(values, backwards[key].flip(0), rtol=TOLERANCE, atol=TOLERANCE), key


@pytest.mark.parametrize(("name", "modality"), COMPUTED)
def test_different_clips_get_different_features(name, modality):
    """Else the two tests above could not fail."""
    encoder, batch = _encoder(name, modality), _batch(name, modality)
    for key, values in _values(encoder, encoder.encode(batch)).items():
        assert (values[0] - values[-1]).abs().max() > 10 * TOLERANCE, key


@pytest.mark.parametrize(("name", "modality"), [pair for pair in COMPUTED if _is_family(pair[0])])
def test_features_are_differentiable(name, modality):
    """For training end to end: gradients reach the parameters that the features depend on."""
    encoder, batch = _encoder(name, modality), _batch(name, modality)[:2]
    outputs = encoder.features(batch)
    encoder.model.zero_grad()
    sum((values * torch.randn_like(values)).sum() for values in outputs.values()).backward()
    gradients = [one.grad for one in encoder.model.parameters() if one.grad is not None]
    encoder.model.zero_grad()
    assert all(one.isfinite().all() for one in gradients)
    assert sum(bool((one != 0).any()) for one in gradients) > max(3, 0.8 * len(gradients))


@pytest.mark.parametrize("name", TEXTS)
def test_a_texts_feature_does_not_depend_on_its_neighbours(name):
    encoder = _encoder(name, "text")
    texts = ["wave", "somebody drinks water from a cup", "a person takes off a shoe and then the other shoe"]
    try:
        together = encoder.encode_text(texts)
    except EncoderError as error:
        if "tokenizer" not in str(error):
            raise
        pytest.skip(f"its tokenizer comes with its weights: {error}")
    alone = torch.cat([encoder.encode_text([text]) for text in reversed(texts)]).flip(0)
    assert together.shape == (len(texts), encoder.fields["embedding"].dim)
    assert together.dtype == torch.float32 and together.device.type == "cpu" and together.isfinite().all()
    assert torch.allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE)
    assert (together[0] - together[1]).abs().max() > 10 * TOLERANCE
    assert encoder.encode_text([]).shape == (0, together.shape[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("name", "modality"), [pair for pair in COMPUTED if _is_family(pair[0])])
def test_a_gpu_computes_what_the_cpu_does(name, modality):
    """The same random weights; TF32 off, since it rounds to 10 bits."""
    encoder, batch = _encoder(name, modality), _batch(name, modality)
    on_gpu = load_encoder(name, weights=RANDOM, device="cuda", modality=modality, architecture=TINY)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = on_gpu.encode(batch)
    for key, values in encoder.encode(batch).items():
        assert found[key].device.type == "cuda"
        assert torch.allclose(found[key].cpu(), values, rtol=1e-3, atol=1e-3), key


# Identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "modality"), _pairs())
def test_the_space_is_json_and_the_same_every_time(name, modality):
    space = _encoder(name, modality).space
    assert json.loads(json.dumps(space)) == space
    assert _fresh(name, modality).space == space
    assert {"encoder", "revision"} <= set(space)


@pytest.mark.parametrize(("name", "modality"), MEDIA)
def test_preparation_pickles_without_weights_and_prepares_the_same(name, modality):
    prepare = _encoder(name, modality).prepare()
    pickled = pickle.dumps(prepare)
    assert len(pickled) < 10_000
    assert repr(pickle.loads(pickled)) == repr(prepare)


@pytest.mark.parametrize(("name", "modality"), MEDIA)
def test_presets_have_spaces_of_their_own(name, modality):
    spaces = []
    for preset in getattr(_class(name), "presets", (OFFICIAL,)):
        try:
            spaces.append(json.dumps(_fresh(name, modality, preset).space))
        except EncoderError as error:
            assert preset in str(error).lower()  # a preset may leave a modality out, and says so
    assert spaces and len(set(spaces)) == len(spaces)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_and_tiny_architectures_are_named(name):
    modality = _class(name).modalities[0]
    tiny, full = _encoder(name, modality), load_encoder(name, weights=RANDOM, modality=modality)
    assert (tiny.name, full.name) == (f"{name}-tiny-random", f"{name}-random")
    assert tiny.space["weights"] == full.space["weights"] == RANDOM
    assert tiny.space["encoder"] == tiny.name
    assert tiny.space["architecture"] != full.space["architecture"]


def test_names_with_other_architectures_have_other_spaces():
    by_class: dict[str, list[tuple[Any, Any]]] = {}
    for name in FAMILIES:
        encoder = load_encoder(name, weights=RANDOM)
        by_class.setdefault(ENCODERS[name], []).append((encoder.architecture, encoder.space["architecture"]))
    for found in by_class.values():
        assert len({repr(one) for one, _ in found}) == len({json.dumps(space) for _, space in found})


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_weights_name_the_file_its_publisher_and_its_licence(name, tmp_path):
    card = _class(name).cards[name]
    with pytest.raises(WeightsError) as error:
        load_encoder(name, weights=str(tmp_path / "absent.pt"))
    said = str(error.value)
    assert said.startswith(f"{name}: ") and "absent.pt" in said
    assert card.file in said and card.published in said and f"licence: {card.licence}" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_unknown_modalities_presets_and_options_are_refused(name):
    with pytest.raises(EncoderError, match=f"{name} does not encode 'smell'; it takes: "):
        load_encoder(name, modality="smell")
    with pytest.raises(EncoderError, match=f"{name}: .*nonsense"):
        load_encoder(name, **({"weights": RANDOM} if _is_family(name) else {}), nonsense=1)
    if _is_family(name):
        with pytest.raises(EncoderError, match=f"{name}: preset is 'wrong'; accepted are: official"):
            load_encoder(name, weights=RANDOM, preset="wrong")
