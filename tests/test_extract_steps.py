"""When features are: the times of prepared frames, and of output steps that cover several of them."""

import math

import numpy as np
import pytest
import torch

from encoders import ENCODERS, load_encoder
from extract.steps import StepsError, frames_per_step, prepared_times, step_times

SECONDS = np.arange(12, dtype=np.float32) / 4  # 12 frames at 4 Hz


@pytest.mark.parametrize(
    ("frames", "steps", "width", "expected"),
    [
        (6, 6, 1, [0, 0.25, 0.5, 0.75, 1, 1.25]),
        (6, 3, 2, [0.125, 0.625, 1.125]),
        (5, 3, 2, [0.125, 0.625, 1.0]),  # an odd clip: the last tubelet covers one frame (Omnivore)
        (5, 2, 2, [0.125, 0.625]),  # or is dropped
        (12, 3, 5, [0.5, 1.75, 2.625]),  # windows of 5, 5 and 2: not the 4, 4 and 4 of an even division
        (1, 1, 2, [0.0]),
    ],
)
def test_a_step_is_in_the_middle_of_the_frames_that_it_covers(frames, steps, width, expected):
    assert step_times(SECONDS[:frames], steps, width).tolist() == expected


def test_one_step_keeps_the_times_of_all_frames():
    """The store gives a clip-level field the middle of them."""
    assert step_times(SECONDS, 1, 2).tolist() == SECONDS.tolist()


def test_an_encoder_that_gives_other_steps_than_it_says_is_an_error():
    message = r"3 time steps from 12 frames, of which each step is said to cover 1; set frames_per_step"
    with pytest.raises(StepsError, match=message):
        step_times(SECONDS, 3, 1)


def test_spectrogram_frames_follow_each_other_evenly():
    times = prepared_times(np.array([2.0]), 5, 1.0)
    assert np.allclose(times, [2.0, 2.2, 2.4, 2.6, 2.8]) and times.dtype == np.float32
    assert np.allclose(step_times(times, 3, 2), [2.1, 2.5, 2.8])


def test_filled_up_frames_have_the_time_of_the_one_that_is_repeated():
    assert prepared_times(SECONDS[:2], 4, 0.5).tolist() == [0.0, 0.25, 0.25, 0.25]
    assert prepared_times(SECONDS[:3], 3, 0.75).tolist() == [0.0, 0.25, 0.5]


# The table of encoders: what a class declares is what it does.
MEDIA = {
    "rgb": lambda frames: np.full((frames, 32, 40, 3), 100, np.uint8),
    "depth": lambda frames: np.full((frames, 32, 40), 900, np.uint16),
    "skeleton": lambda frames: np.random.default_rng(0).normal(size=(frames, 1, 25, 3)).astype(np.float32),
}
CASES = []
for _name, _place in ENCODERS.items():
    _module, _class = _place.split(":")
    _factory = getattr(__import__(_module, fromlist=[_class]), _class)
    if hasattr(_factory, "architectures"):
        CASES += [(_name, modality) for modality in _factory.modalities if modality in MEDIA]


@pytest.mark.parametrize(("name", "modality"), CASES)
def test_encoders_give_as_many_steps_as_they_declare(name, modality):
    encoder = load_encoder(name, "random", modality=modality, architecture="tiny")
    count = encoder.sampling.get("frames")
    count = count if isinstance(count, int) else 40
    prepared = encoder.prepare()(MEDIA[modality](count), modality, None, np.arange(count) / 30)
    clip = torch.from_numpy(np.ascontiguousarray(prepared))
    outputs = encoder.encode(clip[:, None] if encoder.unit == "frame" else clip[None])
    width = frames_per_step(encoder)
    for field, values in outputs.items():
        if encoder.unit == "frame" or encoder.fields[field].per_clip:
            assert values.shape[1] == 1
        else:
            assert values.shape[1] in (len(clip) // width, math.ceil(len(clip) / width)), field
