"""Masked modelling of skeleton sequences: what is hidden, what counts, the naive guesses, TAHAR's file."""

import json
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pytest
import torch
from golden_fixtures import manifest
from safetensors.torch import load_file
from torch import nn

from align.mae import mae, prepare
from align.mae_config import MaeConfig
from align.masked_tokens import PoseTask, Sequences, interpolated, load_sequences, visible_places
from align.pretraining_run import pretrain
from align.recipe import RecipeError
from align.train import TrainingError
from encoders import load_encoder
from encoders.prenormalize import MIRRORED
from encoders.tahar import POSITION_IDS
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

SUBJECTS = 6
CONFIG = {
    "modality": "skeleton",
    "mask": 0.75,
    "weights": "random",
    "architecture": "tiny",
    "device": "cpu",
    "precision": "fp32",
    "batch": 6,
    "learning_rate": 3e-3,
    "seed": 3,
}


def waving(clip: int, frames: int) -> np.ndarray:
    """(T, 25, 3): a fixed symmetric body that sways, both hands more, at the clip's own rate."""
    body = np.random.default_rng(1).normal(0, 0.4, (25, 3))
    body = (body + body[list(MIRRORED)] * [-1, 1, 1]) / 2
    poses = np.repeat(body[None], frames, 0)
    sway = 0.2 * np.sin(np.arange(frames)[:, None, None] * (0.2 + 0.05 * (clip % 4)) + [0, 1, 2])
    poses += sway
    poses[:, [7, 11]] += 2 * sway
    return poses.astype(np.float32)


@pytest.fixture
def bank(tmp_path) -> Bank:
    bank = Bank.open(tmp_path / "bank", create=True)
    clips = [f"clip {k:02d}" for k in range(24)]
    subjects = [f"P{k % SUBJECTS}" for k in range(len(clips))]
    parts = ["train" if k % SUBJECTS < SUBJECTS - 1 else "test" for k in range(len(clips))]
    bank.register(
        "toy",
        clips=pa.table({"clip_id": clips, "subject": subjects}),
        splits=pa.table({"protocol": ["cross-subject"] * len(clips), "clip_id": clips, "part": parts}),
    )
    spec = FeatureSpec("poses", {"encoder": "poses"}, {"precision": "fp32"})
    with bank.writer("toy", "skeleton", spec, [FieldSpec("tokens", 25, 3)]) as writer:
        for k, clip in enumerate(clips):
            poses = waving(k, 12 + k)
            poses[3] = 0.0  # nobody is seen
            writer.add(clip, 0, {"tokens": poses}, np.arange(len(poses), dtype=np.float32) / 30)
    return bank


class Copy(nn.Module):
    """A network that knows the answer, but for a constant."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def guess(self, frames, places):
        return frames + self.shift


def task(clips, share=0.5, training=None):
    sequences = Sequences([torch.as_tensor(clip, dtype=torch.float32) for clip in clips], None)
    model = Copy()
    training = np.arange(len(clips)) if training is None else training
    return PoseTask(model, sequences, training, share, model.guess, MIRRORED)


# What is hidden


@pytest.mark.parametrize(
    ("frames", "share", "shown"), [(8, 0.75, 2), (10, 0.9, 1), (10, 0.99, 1), (10, 0.01, 9), (2, 0.5, 1)]
)
def test_the_share_of_frames_is_hidden_evenly_and_some_are_always_shown(frames, share, shown):
    places = visible_places(4000, frames, share, torch.Generator().manual_seed(0))
    assert places.shape == (4000, 1 + shown) and (places[:, 0] == 0).all()
    assert (places.diff(dim=1) > 0).all() and places.max() <= frames
    counts = torch.bincount(places[:, 1:].flatten() - 1, minlength=frames) / 4000
    torch.testing.assert_close(counts, torch.full((frames,), shown / frames), rtol=0, atol=0.05)


def test_lines_between_the_frames_shown_by_hand():
    frames = torch.tensor([[0.0, 9.0, 4.0, 9.0, 9.0, 10.0, 9.0]])[..., None]
    guess = interpolated(frames, torch.tensor([[0, 2, 5]]))
    assert guess[0, :, 0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 10.0]
    assert interpolated(frames, torch.tensor([[2]]))[0, :, 0].tolist() == [4.0] * 7


# What counts


def test_errors_are_in_units_of_the_training_poses_variance():
    """Half of the poses are all +1, half all -1: their mean is 0, their variance 1."""
    one = task([np.ones((6, 75)), -np.ones((6, 75))])
    (batch,) = one.batches([np.arange(2)], 0)
    errors = one.errors(batch, torch.Generator().manual_seed(0))
    assert errors["loss"].item() == pytest.approx(0.25) and errors["mean"].item() == pytest.approx(1.0)
    assert "interpolated" not in errors
    one.model.eval()
    assert one.errors(batch, torch.Generator().manual_seed(0))["interpolated"].item() == 0.0


def test_frames_that_fill_up_and_frames_that_are_shown_do_not_count():
    short, long = np.full((3, 75), 2.0), np.random.default_rng(0).normal(size=(9, 75))
    one = task([short, long])
    (batch,) = one.batches([np.arange(2)], 0)
    assert batch.real.sum(1).tolist() == [3, 9] and (batch.frames[0] == 2.0).all()
    seen = {}

    def only(frames, places):
        seen["places"] = places
        wrong = torch.full_like(frames, 1e6)  # at every frame that must not count
        hidden = batch.real.clone().scatter_(1, places[:, 1:] - 1, False)[..., None]
        return torch.where(hidden, frames, wrong)

    one.reconstruct = only
    assert one.errors(batch, torch.Generator().manual_seed(1))["loss"].item() == 0.0
    assert seen["places"].shape == (2, 1 + 5)


def test_mirroring_swaps_left_and_right_for_half_of_the_clips():
    clips = [np.random.default_rng(k).normal(size=(4, 75)) for k in range(200)]
    one = task(clips)
    (plain,), (mirrored,) = one.batches([np.arange(200)], 0), one.batches([np.arange(200)], 1)
    changed = (plain.frames != mirrored.frames).flatten(1).any(1)
    assert 70 < changed.sum() < 130
    k = int(changed.nonzero()[0])
    left, right = (frames[k].unflatten(1, (25, 3)) for frames in (plain.frames, mirrored.frames))
    assert torch.equal(right[:, 4], left[:, 8] * torch.tensor([-1.0, 1.0, 1.0]))
    (again,) = one.batches([np.arange(200)], 1)
    assert torch.equal(again.frames, mirrored.frames)


def test_impossible_shares_are_refused():
    with pytest.raises(
        TrainingError, match=r"--mask 1\.0 of the frames; accepted is a share between 0 and 1"
    ):
        task([np.ones((4, 75))], share=1.0)


# From the bank to TAHAR's file


def test_sequences_are_the_frames_that_show_a_body(bank):
    sequences = load_sequences(bank, "toy", "cross-subject", "train", None, 20)
    assert len(sequences) == 20 and len(sequences.frames[0]) == 11  # 12, less the one that shows nobody
    assert max(map(len, sequences.frames)) == 20
    longest = sequences.frames[-1]  # 34 frames without one: from the first to the last of them
    np.testing.assert_allclose(longest[0], waving(22, 34)[0].ravel(), atol=1e-3)
    np.testing.assert_allclose(longest[-1], waving(22, 34)[-1].ravel(), atol=1e-3)


def test_pre_training_learns_and_its_file_is_tahar_s(bank):
    config = MaeConfig(dataset="toy", epochs=20, **CONFIG)
    with ExitStack() as stack:
        prepared = prepare(bank, config, stack)
        path = pretrain(bank, prepared)
    curve = json.loads((path.parent / "curve.json").read_text())
    assert curve[-1]["validation_loss"] < 0.75 * curve[-1]["validation_mean"]
    encoder = load_encoder("tahar", str(path), modality="skeleton", architecture="tiny")
    poses = torch.from_numpy(waving(0, 12))[None]
    trained = encoder.encode(poses)["embedding"]
    fresh = load_encoder("tahar", "random", modality="skeleton", architecture="tiny").encode(poses)
    assert trained.shape == (1, 1, 1, 32) and not torch.allclose(trained, fresh["embedding"], atol=0.1)
    again = MaeConfig(dataset="toy", epochs=1, **(CONFIG | {"weights": str(path)}))
    with ExitStack() as stack:
        prepared = prepare(bank, again, stack)
        assert prepared.record["encoder"]["initial"] != "random"
        start = prepared.trainer.evaluate()["loss"]
    assert start < 0.9 * curve[-1]["validation_mean"]  # goes on from there, with a new mask token


@pytest.mark.slow
def test_the_published_size_trains_into_a_file_of_the_official_form(bank):
    with ExitStack() as stack:
        prepared = prepare(
            bank, MaeConfig(dataset="toy", epochs=1, **(CONFIG | {"architecture": None})), stack
        )
        path = pretrain(bank, prepared)
    listed = {name: shape for name, shape in manifest("tahar_ntu").items() if name not in POSITION_IDS}
    assert {name: list(value.shape) for name, value in load_file(path).items()} == listed
    encoder = load_encoder("tahar", str(path), modality="skeleton")
    assert encoder.encode(torch.from_numpy(waving(0, 12))[None])["embedding"].shape == (1, 1, 1, 512)


def test_held_out_subjects_are_never_seen(bank):
    with ExitStack() as stack:
        prepared = prepare(bank, MaeConfig(dataset="toy", **CONFIG), stack)
    assert "P5" not in prepared.rows["subject"] and len(prepared.rows["clip_id"]) == 20
    roles = dict(zip(prepared.rows["subject"], prepared.rows["role"], strict=True))
    assert sorted(set(roles.values())) == ["train", "validation"]  # whole subjects
    assert prepared.record["training"]["subjects"] == ["P0", "P1", "P2", "P3", "P4"]


def test_without_stored_poses_the_command_that_stores_them_is_named(tmp_path):
    bank = Bank.open(tmp_path / "bank", create=True)
    bank.register("toy", clips=pa.table({"clip_id": ["a", "b"]}))
    command = "python -m extract --dataset toy --modality skeleton --encoder poses"
    with pytest.raises(RecipeError, match=command):
        mae(str(bank.path), dataset="toy", **CONFIG)
