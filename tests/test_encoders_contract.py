"""What holds for every encoder of the table, checked by name, so that a new line there is covered here."""

import contextlib
import json
import pickle

import numpy as np
import pytest
import torch

from encoders import ENCODERS, encoders_for, load_encoder
from encoders.errors import WeightsError

RNG = np.random.default_rng(0)
# One clip of each modality, as the readers hand it out.
MEDIA = {
    "rgb": lambda frames: RNG.integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8),
    "ir": lambda frames: RNG.integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8),
    "depth": lambda frames: RNG.integers(0, 5000, (frames, 48, 64), dtype=np.uint16),
    "skeleton": lambda frames: RNG.normal(size=(frames, 1, 25, 3)).astype(np.float32),
    "inertial": lambda frames: RNG.normal(size=(frames, 6)).astype(np.float32),
}
MEDIA_CASES = []
for _name in ENCODERS:
    # Those that need weights from outside are covered by test_encoders_image.py with saved random ones.
    with contextlib.suppress(WeightsError):
        MEDIA_CASES += [(_name, modality) for modality in load_encoder(_name).modalities if modality in MEDIA]


def _prepared(encoder, modality: str, frames: int) -> torch.Tensor:
    values = MEDIA[modality](frames)
    return torch.from_numpy(np.array(encoder.prepare()(values, modality, None, np.arange(frames) / 30.0)))


def test_the_table_offers_an_encoder_for_every_modality_we_read():
    for modality in (*MEDIA, "text", "ir.ceiling"):
        assert encoders_for(modality)


@pytest.mark.parametrize(("name", "modality"), MEDIA_CASES)
def test_shapes_are_those_declared(name, modality):
    encoder = load_encoder(name, modality=modality)
    clip = _prepared(encoder, modality, 6)
    batch = clip[:, None] if encoder.unit == "frame" else clip[None]
    features = encoder.encode(batch)
    assert set(encoder.default_fields) <= set(encoder.fields) <= set(features) | set(encoder.fields)
    for field in encoder.default_fields:
        declared = encoder.fields[field]
        assert features[field].shape[0] == len(batch)
        assert tuple(features[field].shape[2:]) == (declared.tokens, declared.dim)
        assert features[field].dtype == torch.float32
        assert torch.isfinite(features[field]).all()


@pytest.mark.parametrize(("name", "modality"), MEDIA_CASES)
def test_results_do_not_depend_on_batch_size_or_order(name, modality):
    encoder = load_encoder(name, modality=modality)
    clips = [_prepared(encoder, modality, 4) for _ in range(3)]
    batch = torch.cat(clips)[:, None] if encoder.unit == "frame" else torch.stack(clips)
    together = encoder.encode(batch)
    for field in encoder.default_fields:
        alone = torch.cat([encoder.encode(row[None])[field] for row in batch])
        backwards = encoder.encode(batch.flip(0))[field].flip(0)
        assert torch.allclose(together[field], alone, atol=1e-4)
        assert torch.allclose(together[field], backwards, atol=1e-4)


@pytest.mark.parametrize(("name", "modality"), MEDIA_CASES)
def test_preparation_pickles_without_weights_and_space_is_json(name, modality):
    encoder = load_encoder(name, modality=modality)
    assert len(pickle.dumps(encoder.prepare())) < 10_000
    assert json.loads(json.dumps(encoder.space)) == encoder.space
    assert encoder.space == load_encoder(name, modality=modality).space
    assert {"encoder", "revision"} <= set(encoder.space)
