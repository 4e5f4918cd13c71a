"""Stored poses: TAHAR's own preparation, with zeros where nobody is seen."""

import numpy as np
import pytest
import torch

from encoders import load_encoder
from encoders.errors import EncoderError
from encoders.prenormalize import prenormalise
from encoders.tahar import Tahar


def clip() -> np.ndarray:
    """(T, P, 25, 3): one body, unseen in frame 2, and a second person who is seen less."""
    bodies = np.random.default_rng(0).normal(0, 0.5, (6, 2, 25, 3)) + 2
    bodies[2, 0], bodies[3:, 1] = 0, np.nan
    return bodies


def test_poses_are_what_tahar_is_given():
    poses = load_encoder("poses", modality="skeleton")
    prepared = poses.prepare()(clip(), "skeleton", None, np.arange(6) / 30)
    assert prepared.shape == (6, 25, 3) and (prepared[2] == 0).all()
    seen = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(prepared[seen], prenormalise(clip()[seen, :1].swapaxes(0, 1))[0], atol=1e-6)
    tahar = Tahar("random", name="tahar", architecture="tiny").prepare()
    given = tahar(clip(), "skeleton", None, np.arange(6) / 30)
    np.testing.assert_array_equal(prepared, np.nan_to_num(given))
    stored = poses.encode(torch.from_numpy(prepared)[None])["tokens"]
    assert torch.equal(stored[0], torch.from_numpy(prepared))


def test_poses_have_no_weights():
    with pytest.raises(EncoderError, match="it has no weights, so not 'random' either"):
        load_encoder("poses", "random")
