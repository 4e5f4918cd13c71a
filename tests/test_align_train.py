"""The loop on plain arrays: it learns, it resumes bit for bit, it survives kill -9, it refuses nonsense."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from align.checkpoint import CheckpointError, read_state
from align.config import AugmentConfig, TrainConfig
from align.data import ClipData, text_track, track
from align.model import Heads, HeadSpec, build_losses
from align.scores import pair_recall, recall_at_1
from align.standardise import standardise
from align.train import Trainer, TrainingError, resolve_device

ROOT = Path(__file__).resolve().parent.parent
LOSS = [
    {
        "name": "infonce",
        "weight": 1.0,
        "pairs": "all",
        "options": {"temperature": 0.1, "learn_temperature": True},
    }
]


def shared_latent(n=300, held_out=100, seed=0):
    """Three modalities of one 6-dim latent: a frame sequence whose order carries it, a vector, and texts.

    ``motion`` moves from noise to latent or back, so its mean over time hides the sign of half the latent.
    """
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n + held_out, 6))
    ramp = np.linspace(-1, 1, 10)[None, :, None, None]
    mixed = (latent @ rng.normal(size=(6, 12))).reshape(-1, 1, 3, 4)
    motion = ramp * mixed + 0.1 * rng.normal(size=(len(latent), 10, 3, 4)) + 5
    vector = np.tanh(latent @ rng.normal(size=(6, 20)) / 2) + 0.05 * rng.normal(size=(len(latent), 20))
    texts = latent @ rng.normal(size=(6, 16)) + 0.05 * rng.normal(size=(len(latent), 16))
    clips = [f"c{number}" for number in range(len(latent))]
    tracks = {
        "skeleton": track(motion.astype(np.float16), clips, clips),
        "depth": track(vector.astype(np.float16), clips, clips),
        "text": text_track(texts.astype(np.float32), [[number] for number in range(len(latent))]),
    }
    labels = (latent[:, 0] > 0).astype(np.int64)
    return ClipData(np.array(clips, object), labels, tracks), np.arange(n), np.arange(n, n + held_out)


def trainer(config=None, state=None, seed=0, head="conv", augment=None, **shape):
    data, training, validation = shared_latent(**shape)
    standardise(data, training, dict.fromkeys(data.tracks, "token"))
    torch.manual_seed(seed)
    options = {"skeleton": (head, {"steps": 10} if head in ("conv", "sequence") else {})}
    specs = {name: HeadSpec(*_pick(options, name, part.tokens_dim)) for name, part in data.tracks.items()}
    heads = Heads(specs, 16)
    config = config or TrainConfig(epochs=30, batch=100, learning_rate=3e-3)
    losses = build_losses(LOSS, heads.modalities)
    return Trainer(heads, losses, data, training, validation, config, augment or AugmentConfig(), seed, state)


def _pick(options, name, shape):
    head, extra = options.get(name, ("mlp", {}))
    return head, *shape, extra


def strip(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


def test_learns_a_shared_latent_to_high_retrieval_on_held_out_clips():
    run = trainer()
    assert run.evaluate()[1] < 0.1, "chance is 1 %"
    curve = run.run()
    assert len(curve) == 30 and curve[-1]["train_loss"] < curve[0]["train_loss"] / 2
    loss, recall = run.evaluate()
    assert recall > 0.75
    assert loss == pytest.approx(min(row["validation_loss"] for row in curve), rel=1e-5), (
        "the best epoch is kept"
    )


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, average):
    config = TrainConfig(epochs=6, batch=100, checkpoint_seconds=0, average=average)
    whole = trainer(config, tmp_path / "whole.pt")
    whole.run()

    class StopError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 4:  # the state of epoch 3 is on disk; epoch 4 is lost and must be repeated
            raise StopError

    with pytest.raises(StopError):
        trainer(config, tmp_path / "cut.pt").run(stop)
    resumed = trainer(config, tmp_path / "cut.pt", seed=0)
    resumed.restore(read_state(tmp_path / "cut.pt"))
    assert resumed.epoch == 3
    resumed.run()
    assert strip(resumed.curve) == strip(whole.curve)
    for name, value in whole.heads.state_dict().items():
        assert torch.equal(value, resumed.heads.state_dict()[name]), name
    assert torch.equal(whole.losses.terms[0].log_scale, resumed.losses.terms[0].log_scale)


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    run = trainer(TrainConfig(epochs=1, batch=100))
    torch.manual_seed(7)
    run.run()
    assert torch.equal(torch.rand(3), expected)


def test_seeds_matter():
    curves = [strip(trainer(TrainConfig(epochs=1, batch=100), seed=seed).run()) for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_align_train import *
from align.checkpoint import read_state, write_json
state = Path(sys.argv[1])
run = trainer(TrainConfig(epochs=8, batch=100, checkpoint_seconds=0), state)
if state.exists():
    run.restore(read_state(state))
print("ready", run.epoch, flush=True)
run.run(lambda row: print("epoch", row["epoch"], flush=True))
write_json(state.with_suffix(".json"), strip(run.curve))
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_then_resume_gives_the_same_curve(tmp_path):
    script = KILLED.format(tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(state):
        return subprocess.Popen(
            [*command, str(state)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    whole = start(tmp_path / "whole.pt")
    assert whole.wait(120) == 0, whole.stderr.read()
    rng = np.random.default_rng()
    kills = 0
    for _ in range(8):
        process = start(tmp_path / "cut.pt")
        assert process.stdout.readline().startswith("ready")
        for _ in range(rng.integers(1, 4)):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    last = start(tmp_path / "cut.pt")
    assert last.wait(120) == 0, last.stderr.read()
    assert kills >= 1
    assert json.loads((tmp_path / "cut.json").read_text()) == json.loads(
        (tmp_path / "whole.json").read_text()
    )


def test_a_state_that_is_no_state_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(
        CheckpointError, match=r"no saved training state .state.pt.; start anew without --resume"
    ):
        read_state(path)
    path.write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="unreadable training state"):
        read_state(path)


def test_a_pickled_object_in_a_state_is_refused_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"heads": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="unreadable training state"):
        read_state(tmp_path / "state.pt")
    assert not (tmp_path / "executed").exists()


def test_patience_ends_training_early():
    config = TrainConfig(epochs=200, batch=100, learning_rate=1e-2, patience=3)
    run = trainer(config, n=100, held_out=40)
    curve = run.run()
    losses = [row["validation_loss"] for row in curve]
    assert len(curve) < 200 and len(curve) - 1 - int(np.argmin(losses)) == 3


def test_without_held_out_clips_the_last_weights_are_kept():
    data, training, _ = shared_latent(n=60, held_out=0)
    heads = Heads({name: HeadSpec("linear", *part.tokens_dim) for name, part in data.tracks.items()}, 8)
    run = Trainer(
        heads,
        build_losses(LOSS, heads.modalities),
        data,
        training,
        np.arange(0),
        TrainConfig(epochs=2, batch=64),
    )
    assert [set(row) for row in run.run()] == [
        {"epoch", "train_loss", "learning_rate", "temperature", "seconds"}
    ] * 2


def test_missing_modalities_are_trained_around():
    data, training, validation = shared_latent(n=200, held_out=50)
    depth = data.tracks["depth"]
    depth.counts[::2] = 0  # every second clip lacks depth
    standardise(data, training, dict.fromkeys(data.tracks, "token"))
    heads = Heads({name: HeadSpec("linear", *part.tokens_dim) for name, part in data.tracks.items()}, 8)
    run = Trainer(
        heads,
        build_losses(LOSS, heads.modalities),
        data,
        training,
        validation,
        TrainConfig(epochs=10, batch=50),
    )
    assert all(math.isfinite(row["train_loss"]) for row in run.run())


def test_one_clip_is_not_enough():
    with pytest.raises(TrainingError, match="1 training clips; contrasting needs at least 2"):
        trainer(n=1, held_out=2)


def test_a_diverging_loss_stops_with_advice():
    run = trainer(TrainConfig(epochs=2, batch=100))
    with torch.no_grad():
        next(run.heads.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 0; lower --train.learning_rate"):
        run.run()


def test_nothing_to_train_is_said():
    data, training, validation = shared_latent(n=20, held_out=0)
    del data.tracks["text"], data.tracks["skeleton"]
    heads = Heads({"depth": HeadSpec("identity", 1, 20)}, 20)
    with pytest.raises(TrainingError, match="no head has parameters to train"):
        Trainer(heads, build_losses([], []), data, training, validation, TrainConfig())


def test_unusable_device_is_named():
    with pytest.raises(TrainingError, match="'abacus' is not usable"):
        resolve_device("abacus")


# The running check -------------------------------------------


def test_recall_by_hand_and_ties_share_the_place():
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.1], [0.8, 0.0, 0.2]])
    assert recall_at_1(similarity, torch.eye(3, dtype=torch.bool)) == pytest.approx((1 + 0.5 + 0) / 3)


def test_collapsed_embeddings_are_at_chance_also_with_shared_texts():
    point = torch.ones(8, 4) / 2
    present = torch.ones(8, 2, dtype=torch.bool)
    assert pair_recall({"rgb": point, "ir": point}, present) == {"rgb-ir": pytest.approx(1 / 8)}
    ids = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    shared = pair_recall({"rgb": point, "text": point}, present, {"text": ids})
    assert shared == {"rgb-text": pytest.approx(1 / 2)}


def test_recall_leaves_out_clips_that_lack_a_modality():
    eye = torch.eye(4)
    present = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 1]], dtype=torch.bool)
    swapped = eye[[0, 1, 3, 2]]
    assert pair_recall({"a": eye, "b": swapped}, present) == {"a-b": 1.0}
