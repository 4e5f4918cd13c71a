"""Interrupted runs: killed or stopped, they continue to the same curve and heads, or say why they cannot."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from align_bank import Toy, make_bank

import align
from align.checkpoint import CheckpointError
from align.config import AlignConfig, TrainConfig
from align.run import ResumeError, continue_run, train
from store.locks import Lease

ROOT = Path(__file__).resolve().parent.parent
QUICK = TrainConfig(epochs=8, batch=32, learning_rate=3e-3, checkpoint_seconds=0)


def strip(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_curve_and_heads(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    whole = align.load(train(bank, AlignConfig(train=QUICK)))
    arguments = [f"--train.{key}={value}" for key, value in asdict(QUICK).items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "align", "--bank", str(bank.path), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    while not (states := list(bank.path.glob("runs/*/state.pt"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = states[0].parent
    if (killed / "heads.safetensors").exists():
        pytest.skip("training was over before the kill arrived")
    with pytest.raises(CheckpointError, match="training has not finished; python -m align --resume"):
        align.load(killed)
    resumed = align.load(continue_run(bank, "latest"))
    assert strip(resumed.curve()) == strip(whole.curve())
    assert (resumed.directory / "heads.safetensors").read_bytes() == (
        whole.directory / "heads.safetensors"
    ).read_bytes()
    with pytest.raises(CheckpointError, match="no such alignment: latest"):
        continue_run(bank, "latest")


def interrupted(bank, config):
    """A run that stopped after its third epoch, as Ctrl-C stops it."""
    import align.train as module

    original = module.progress

    def stopping(epochs):
        def show(row):
            if row["epoch"] == 4:
                raise KeyboardInterrupt

        return show

    module.progress = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            train(bank, config)
    finally:
        module.progress = original


def test_resuming_refuses_contradictions_and_changed_data(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    interrupted(bank, AlignConfig(train=QUICK))
    with pytest.raises(ResumeError, match=r"--embedding 64 is not what this run began with .256."):
        continue_run(bank, "latest", AlignConfig(embedding=64))
    bank.register(
        "toy",
        clips=bank.sql("SELECT * EXCLUDE (dataset) FROM clips"),
        splits=pa.table(
            {
                "protocol": ["cross-subject"] * 9,
                "clip_id": [f"toy clip/{number:04d}" for number in range(9)],
                "part": ["train"] * 9,
            }
        ),
    )
    with pytest.raises(ResumeError, match=r"is 9 now, was 30 when this run began|items.*when this run began"):
        continue_run(bank, "latest")


def test_an_interrupted_run_is_on_record_as_failed_and_its_state_is_kept(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    interrupted(bank, AlignConfig(train=QUICK))
    assert bank.sql("SELECT status FROM runs").column("status").to_pylist() == ["failed"]
    resumed = align.load(continue_run(bank, "latest"))
    assert len(resumed.curve()) == QUICK.epochs and "resumed_from" in resumed.config


def test_a_run_that_still_goes_is_not_resumed(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    interrupted(bank, AlignConfig(train=QUICK))
    state = next(bank.path.glob("runs/*/state.pt"))
    with Lease(state.parent / "run.lock"), pytest.raises(ResumeError, match="this run is still going"):
        continue_run(bank, "latest")
