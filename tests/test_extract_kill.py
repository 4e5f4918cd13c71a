"""Extraction under fire: killed at random moments, several at once, with the catalog held by a notebook."""

import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from extract_toys import ENVIRONMENT, assert_same, command, contents, start, write_corpus
from extract_toys import small_segments as small

from store.bank import Bank

KILLS = 20
CLIPS = 30

pytestmark = pytest.mark.slow


def no_row_twice_and_none_lost(bank, fields, clips=CLIPS):
    twice = "SELECT set_id, field, item_id, view FROM features GROUP BY ALL HAVING count(*) > 1"
    assert not len(bank.sql(twice))
    counts = bank.sql("SELECT field, count(*) n FROM features GROUP BY ALL ORDER BY ALL").to_pylist()
    assert counts == [{"field": field, "n": clips} for field in sorted(fields)]
    assert not len(bank.failures())


def store_command(name, bank, *options):
    done = subprocess.run(
        [sys.executable, "-m", "store", name, "--bank", str(bank), *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_until_done(dataset, bank, rng, longest, kills, *options):
    """Start again and again, each time killed after a random time, until a run ends by itself.

    Returns how many were killed.
    """
    for killed in range(kills):
        process = start("--dataset", dataset, "--bank", bank, "--modality", "rgb", *options, prepare=small)
        try:
            process.communicate(timeout=rng.uniform(0.2, 0.9) * longest)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            assert process.returncode == 0
            return killed
    return kills


def timed(*arguments):
    began = time.monotonic()
    command(*arguments, prepare=small)
    return time.monotonic() - began


def test_a_rerun_after_kill_9_at_any_moment_equals_an_undisturbed_run(tmp_path):
    """Weightless encoder: bit for bit, with a commit every clip or two."""
    dataset = write_corpus(tmp_path / "corpus", CLIPS, frames=lambda clip: 6, options={"delay_seconds": 0.05})
    longest = timed("--dataset", dataset, "--bank", tmp_path / "calm", "--modality", "rgb")
    calm = contents(Bank.open(tmp_path / "calm"))
    assert len(calm) == 2 * CLIPS
    rng, killed, rounds = random.Random(0), 0, 0
    while killed < KILLS:
        bank = tmp_path / f"bank {rounds}"
        killed += kill_until_done(dataset, bank, rng, longest, KILLS - killed)
        rounds += 1
        command("--dataset", dataset, "--bank", bank, "--modality", "rgb", prepare=small)
        opened = Bank.open(bank)
        assert_same(calm, contents(opened))
        no_row_twice_and_none_lost(opened, ["cls", "tokens"])
        store_command("check", bank)
        out, _ = command("--dataset", dataset, "--bank", bank, "--modality", "rgb")
        assert "nothing is missing" in out
        # Whatever the killed runs left is garbage that gc finds; nothing of ours is among it.
        store_command("gc", bank)
        assert not list(bank.glob("features/**/*.partial-*"))
        assert_same(calm, contents(Bank.open(bank)))
    assert killed >= KILLS


def test_a_rerun_after_kills_equals_an_undisturbed_run_with_a_neural_encoder(tmp_path):
    dataset = write_corpus(
        tmp_path / "corpus",
        CLIPS,
        frames=lambda clip: 6,
        encoder="efficientnet-lite0",
        sampling={"frames": 5},
    )
    options = ("--modality", "rgb", "--precision", "fp32")
    longest = timed("--dataset", dataset, "--bank", tmp_path / "calm", *options)
    bank, rng = tmp_path / "bank", random.Random(1)
    kill_until_done(dataset, bank, rng, longest, 4, "--precision", "fp32")
    command("--dataset", dataset, "--bank", bank, *options, prepare=small)
    assert_same(contents(Bank.open(tmp_path / "calm")), contents(Bank.open(bank)), ulps=1)
    no_row_twice_and_none_lost(Bank.open(bank), ["cls"])


TRAINER = """
import sys, time
import numpy as np
from store.bank import Bank
from store.errors import FrameBankError
from store.select import EmptySelectionError, NoFeaturesError
all_clips, epochs, seen, weights = int(sys.argv[2]), 0, 0, np.zeros((3, 2))
while seen < all_clips:
    try:
        selection = Bank.open(sys.argv[1]).select("toy", "rgb", field="cls")
        features = selection.materialise("mean")
    except (EmptySelectionError, NoFeaturesError):
        time.sleep(0.1)
        continue
    assert np.isfinite(features).all() and (features > 0.05).all() and (features < 0.95).all(), features
    logits = features @ weights
    error = np.eye(2)[selection.labels] - 1 / (1 + np.exp(-logits))
    weights += 0.1 * features.T @ error / len(features)
    epochs, seen = epochs + 1, len(features)
print(epochs, seen)
"""

HOLDER = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1] + "/catalog.duckdb")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_extractions_and_a_training_at_once_while_a_notebook_holds_the_catalog(tmp_path):
    """All rows are there at the end, each once, and nobody gave up."""
    held_seconds = 60.0
    dataset = write_corpus(tmp_path / "corpus", CLIPS, frames=lambda clip: 6, options={"delay_seconds": 0.2})
    command("--dataset", dataset, "--bank", tmp_path / "calm", "--modality", "rgb")
    bank = tmp_path / "bank"
    arguments = ("--dataset", dataset, "--bank", bank, "--modality", "rgb")
    command(*arguments, "--register-only")
    trainer = python(TRAINER, bank, CLIPS)
    extractions = [start(*arguments, prepare=small) for _ in range(2)]
    while not len(Bank.open(bank).sql("SELECT * FROM features LIMIT 1")):
        assert all(one.poll() is None for one in extractions)
        time.sleep(0.1)
    holder = python(HOLDER, bank, held_seconds)
    held, message = holder.stdout.readline(), ""
    if held != "held\n":  # somebody committed just then
        message = holder.communicate()[1]
        assert "lock" in message
        holder = python(HOLDER, bank, held_seconds)
    told = [one.communicate(timeout=held_seconds + 120) for one in extractions]
    assert [one.returncode for one in extractions] == [0, 0], told
    if not message:
        assert any(f"(pid {holder.pid})" in err for _, err in told), told
    out, err = trainer.communicate(timeout=120)
    assert trainer.returncode == 0, err
    epochs, clips = map(int, out.split())
    assert epochs > 1 and clips == CLIPS  # it began while rows were missing
    holder.kill()
    holder.communicate()
    opened = Bank.open(bank)
    no_row_twice_and_none_lost(opened, ["cls", "tokens"])
    assert_same(contents(Bank.open(tmp_path / "calm")), contents(opened))
    store_command("check", bank)
