"""Masked pre-training of OmniMAE on real depth files: what is read, hidden, counted; resuming; the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT
from golden_fixtures import manifest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from align.checkpoint import read_state
from align.mae import OMNIMAE, MaeError, mae, prepare
from align.mae_config import MaeConfig
from align.pretraining_run import go_on, interrupted, pretrain
from align.recipe import RecipeError
from align.run import ResumeError
from align.train import TrainingError
from encoders import load_encoder
from encoders.errors import WeightsError
from encoders.omnimae import OmniMae
from encoders.omnimae_model import OmniMaeModel
from evaluate.trained import trainings
from extract.command import Request, execute
from extract.datasets.config import parse_modalities
from extract.datasets.synthetic import generate
from extract.resolve import Choices
from extract.workers import DecodePool
from store.bank import Bank
from store.locks import Lease

CLIPS = 16
QUICK = {
    "dataset": "synthetic",
    "modality": "depth",
    "weights": "random",
    "architecture": "tiny",
    "device": "cpu",
    "precision": "fp32",
    "workers": 1,
    "epochs": 2,
    "batch": 4,
    "learning_rate": 3e-3,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mae") / "corpus"
    generate(root, CLIPS, actions=4, size=(64, 48), modalities=("depth",), workers=1)
    return root


@pytest.fixture(scope="module")
def registered(corpus) -> Path:
    path = corpus.parent / "bank"
    execute(Request("synthetic", "depth", str(corpus), str(path), Choices(), register_only=True))
    return path


@pytest.fixture
def bank(registered, tmp_path) -> Bank:
    shutil.copytree(registered, tmp_path / "bank")
    return Bank.open(tmp_path / "bank")


@pytest.fixture(scope="module")
def workers():
    with DecodePool(1, timeout_seconds=20) as pool:
        yield pool


@pytest.fixture(autouse=True)
def shared_workers(monkeypatch, workers):
    """Starting decode processes is most of the time that these runs would take."""
    monkeypatch.setattr("extract.workers.DecodePool", lambda *_: nullcontext(workers))


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def config(**changed) -> MaeConfig:
    return MaeConfig(**(QUICK | changed))


def trained(bank: Bank, **changed) -> Path:
    with ExitStack() as stack:
        return pretrain(bank, prepare(bank, config(**changed), stack))


def curve(weights: Path) -> list[dict]:
    rows = json.loads((weights.parent / "curve.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# What is read


def test_clips_come_in_the_order_asked_for_as_extraction_sees_them(bank, stack):
    task = prepare(bank, config(), stack).trainer.task
    task.pool = stack.enter_context(DecodePool(2))
    chunks = [np.array([5, 1, 4]), np.array([0, 2])]
    plain = list(task.batches(chunks, 0))
    assert [batch.shape for batch in plain] == [(3, 4, 1, 32, 32), (2, 4, 1, 32, 32)]
    (alone,) = task.batches([np.array([4])], 0)
    assert torch.equal(plain[0][2], alone[0])
    first, again, other = (list(task.batches(chunks, view)) for view in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], plain[0]) and not torch.equal(first[0], other[0])


def test_only_the_training_part_is_read_and_the_run_says_so(bank):
    weights = trained(bank, epochs=1)
    rows = pq.read_table(weights.parent / "training_rows.parquet").to_pydict()
    query = "SELECT clip_id, part, subject FROM splits JOIN clips USING (dataset, clip_id) WHERE protocol = ?"
    parts = bank.sql(query, ["cross-subject"]).to_pylist()
    assert sorted(rows["clip_id"]) == sorted(row["clip_id"] for row in parts if row["part"] == "train")
    test = {row["subject"] for row in parts if row["part"] == "test"}
    told = json.loads(weights.with_suffix(".json").read_text())
    assert test and told["training"]["subjects"] and not test & set(told["training"]["subjects"])
    assert told["protocol"] == "cross-subject" and told["supervision"] == []
    with safe_open(weights, "pt") as file:
        assert json.loads(file.metadata()["framebank"])["training"] == told["training"]
    metrics = bank.sql("SELECT name, n FROM metrics ORDER BY name").to_pylist()
    assert [row["name"] for row in metrics] == [
        f"mae/{part}_{name}" for part in ("train", "validation") for name in ("loss", "mean")
    ]
    assert sum(row["n"] for row in metrics) == 2 * len(rows["clip_id"])


def test_unreadable_files_are_left_out_until_they_are_too_many(bank, stack, capsys):
    task = prepare(bank, config(), stack).trainer.task
    rows = [dict(row) for row in task.rows]
    rows[1]["path"] += "-missing"
    task.rows = rows
    (batch,) = task.batches([np.arange(3)], 0)
    assert len(batch) == 2 and f"left out: {rows[1]['clip_id']}: " in capsys.readouterr().err
    rows[2]["path"] += "-missing"
    with pytest.raises(MaeError, match=r"2 of 8 clips cannot be read, more than 20%; the last one, S0"):
        list(task.batches([np.arange(4)], 0))


# What is hidden and counted


def test_the_error_of_guessing_means_is_one_on_noise_and_zero_on_blanks(bank, stack):
    """A patch of P pixels a channel, of unbiased variance 1, has a mean square of 1 - 1/P."""
    task = prepare(bank, config(mask=0.75, repeat=2), stack).trainer.task
    task.model.train()
    noise = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    errors = task.errors(noise, torch.Generator().manual_seed(0))
    assert errors["mean"].item() == pytest.approx(1 - 1 / (2 * 8 * 8), abs=1e-4)
    assert errors["loss"].item() > errors["mean"].item()  # an untrained guess is worse than none
    blank = task.errors(torch.full_like(noise, 7), torch.Generator().manual_seed(0))
    assert blank["mean"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("share", "repeat", "hidden"), [(0.9, 1, 29), (0.75, 3, 24)])
def test_the_share_of_patches_is_hidden_of_each_repeat(bank, stack, share, repeat, hidden):
    task = prepare(bank, config(mask=share, repeat=repeat), stack).trainer.task
    seen = []
    whole = task.model.reconstruct
    task.model.reconstruct = lambda pixels, mask: seen.append(mask) or whole(pixels, mask)
    frames = torch.zeros(2, 4, 1, 32, 32, dtype=torch.uint8)
    task.model.train()
    task.errors(frames, torch.Generator().manual_seed(0))
    task.model.eval()
    task.errors(frames, torch.Generator().manual_seed(0))
    assert [mask.flatten(1).sum(1).tolist() for mask in seen] == [[hidden] * 2 * repeat, [hidden] * 2]


def test_what_visible_patches_tell_is_learnt(bank, stack):
    """Stripes as wide as half a patch: all patches of a clip are alike, any visible one tells the others."""
    trainer = prepare(bank, config(epochs=75, learning_rate=1e-2), stack).trainer
    columns = torch.arange(32)

    def stripes(chunks, view):
        for chunk in chunks:
            phases = torch.from_numpy(np.random.default_rng([view, *chunk]).integers(0, 8, len(chunk)))
            rows = ((columns + phases[:, None]) // 4 % 2 * 200).to(torch.uint8)
            yield rows[:, None, None, None].expand(-1, 4, 1, 32, 32)

    trainer.task.batches = stripes
    last = trainer.run()[-1]
    assert last["train_mean"] == pytest.approx(1 - 1 / 128, abs=1e-3)
    assert last["validation_loss"] < 0.3


def test_recomputing_activations_changes_nothing_but_memory(bank, stack):
    plain, saving = (prepare(bank, config(checkpointing=on), stack).trainer.task for on in (False, True))
    (batch,) = plain.batches([np.arange(2)], 0)
    gradients = []
    for task in (plain, saving):
        task.errors(batch, torch.Generator().manual_seed(1))["loss"].backward()
        gradients.append([value.grad for value in task.model.parameters()])
    assert all(map(torch.equal, *gradients))


# Seeds and resuming


def test_a_seed_is_a_run(bank):
    one, same, other = (trained(bank, seed=seed) for seed in (0, 0, 1))
    assert curve(one) == curve(same) and one.read_bytes() == same.read_bytes()
    assert curve(one) != curve(other)


def stopped(bank: Bank, steps: int, **changed) -> Path:
    """The folder of a run that was interrupted after some steps, having saved each of them."""
    with ExitStack() as stack:
        prepared = prepare(bank, config(checkpoint_seconds=0, **changed), stack)
        trainer, step = prepared.trainer, prepared.trainer._step

        def interrupt(*arguments):
            if trainer.step == steps:
                raise KeyboardInterrupt
            step(*arguments)

        trainer._step = interrupt
        with pytest.raises(KeyboardInterrupt):
            pretrain(bank, prepared)
    return trainer.state_path.parent


def test_an_interrupted_run_goes_on_with_the_next_step(bank):
    whole = trained(bank, epochs=3, batch=3)
    directory = stopped(bank, 4, epochs=3, batch=3)  # in the second epoch of three steps each
    assert read_state(directory / "state.pt")["step"] == 4
    found, own = interrupted(bank, "latest", MaeConfig(epochs=3))
    assert found == directory
    with ExitStack() as stack:
        resumed = go_on(bank, found, prepare(bank, own, stack))
    assert curve(resumed) == curve(whole) and resumed.read_bytes() == whole.read_bytes()
    assert not (directory / "state.pt").exists()
    assert json.loads((resumed.parent / "config.json").read_text())["resumed_from"] == str(directory)


def test_resuming_refuses_what_contradicts_the_run(bank, stack):
    directory = stopped(bank, 1)
    with pytest.raises(ResumeError, match=r"--resume: --learning-rate 0.5 is not what this run began with"):
        interrupted(bank, "latest", config(learning_rate=0.5))
    with Lease(directory / "run.lock"), pytest.raises(ResumeError, match="this run is still going"):
        interrupted(bank, str(directory), MaeConfig())
    with pytest.raises(ResumeError, match="no such interrupted training: run:nothing"):
        interrupted(bank, "run:nothing", MaeConfig())
    fewer = prepare(bank, config(where="label < 4"), stack)
    with pytest.raises(ResumeError, match="training where is 'label < 4' now, was None when this run began"):
        go_on(bank, directory, fewer)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_curve_and_weights(bank):
    whole = trained(bank, epochs=30, batch=2)
    command = [sys.executable, "-m", "align.mae", "--bank", str(bank.path), "--checkpoint-seconds", "0"]
    asked = [f"--{key}={value}" for key, value in (QUICK | {"epochs": 30, "batch": 2}).items()]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command + asked, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (states := list(bank.path.glob("runs/*/state.pt"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = read_state(states[0])["step"]
    assert 0 < step < 30 * 4, "training was over before the kill arrived"
    assert mae(str(bank.path), resume="latest") == 0
    (resumed,) = (
        path for path in bank.path.glob("runs/*/encoder_depth.safetensors") if path.parent != whole.parent
    )
    assert curve(resumed) == curve(whole) and resumed.read_bytes() == whole.read_bytes()
    status = bank.sql("SELECT status, count(*) AS n FROM runs GROUP BY ALL ORDER BY ALL").to_pylist()
    assert status == [{"status": "done", "n": 2}, {"status": "failed", "n": 1}]


# The file


def test_extraction_loads_the_file_strictly_into_a_feature_set_of_its_own(bank, corpus, workers):
    weights = trained(bank)
    recipe = {"depth": {"encoder": OMNIMAE, "options": {"architecture": "tiny"}}}
    for source in ("random", str(weights)):
        choices = Choices(
            modalities=parse_modalities("test", recipe), weights=source, precision="fp32", device="cpu"
        )
        request = Request("synthetic", "depth", str(corpus), str(bank.path), choices)
        assert execute(request, workers) == 0
    sets = bank.sql("SELECT name FROM feature_sets ORDER BY name")["name"].to_pylist()
    assert len(sets) == 2
    selections = [bank.select("synthetic", "depth", encoder=name, field="embedding") for name in sets]
    learnt = [trainings(bank, one) for one in selections]
    (seen,) = (found for found in learnt if found)  # by the note beside the file
    assert seen[0].supervision == [] and len(seen[0].rows()) == CLIPS / 2
    one, other = (
        bank.select("synthetic", "depth", encoder=name, field="embedding").materialise("mean")
        for name in sets
    )
    assert len(one) == CLIPS and not np.allclose(one, other, atol=1e-2)


def test_the_note_beside_the_file_says_how_to_extract_with_it(bank):
    weights = trained(bank, epochs=1, preset="cmvra", mask=0.8)
    told = json.loads(weights.with_suffix(".json").read_text())
    command = (
        "python -m extract --dataset synthetic --modality depth --encoder omnimae-vit-b"
        f" --weights {weights} --bank {bank.path} --preset cmvra"
    )
    assert told["extract"] == command
    assert told["mask"] == 0.8 and told["encoder"]["initial"] == "random"
    assert told["final"]["epoch"] == 1 and told["training"]["rows_sha256"]


def test_pre_training_goes_on_from_its_own_file(bank, stack):
    weights = trained(bank)
    prepared = prepare(bank, config(weights=str(weights)), stack)
    tensors = load_file(weights)
    assert all(torch.equal(value, tensors[name]) for name, value in prepared.weights().items())
    assert set(tensors) == set(prepared.weights())  # the decoder and the pixel head are kept
    assert prepared.trainer.evaluate()["loss"] == pytest.approx(curve(weights)[-1]["validation_loss"])


@pytest.mark.slow
def test_the_published_size_trains_into_a_file_of_the_official_form(bank):
    listed = manifest("omnimae_vitb_pretrain")
    changed = {"architecture": None, "where": "label = 0", "batch": 1, "accumulate": 2, "checkpointing": True}
    weights = trained(bank, epochs=1, **changed)
    assert {name: list(value.shape) for name, value in load_file(weights).items()} == listed
    encoder = load_encoder(OMNIMAE, str(weights), modality="depth")
    assert encoder.model is not None and encoder.form == "pre-trained"
    assert np.isfinite(list(curve(weights)[-1].values())).all()


# Errors


def test_other_checkpoints_are_refused(bank, tmp_path):
    shape = OmniMae.tiny
    wider = OmniMaeModel(replace(shape, encoder=replace(shape.encoder, width=32))).state_dict()
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError, match=r"wider\.safetensors"):
        mae(str(bank.path), **(QUICK | {"weights": str(tmp_path / "wider.safetensors")}))
    tahar = load_encoder("tahar", "random", architecture="tiny").model.state_dict()
    save_file(tahar, tmp_path / "tahar.safetensors")
    with pytest.raises(WeightsError, match="TAHAR"):
        mae(str(bank.path), **(QUICK | {"weights": str(tmp_path / "tahar.safetensors")}))
    save_file(OmniMaeModel(replace(shape, decoder=None, classes=5)).state_dict(), tmp_path / "ft.st")
    with pytest.raises(MaeError, match="fine-tuned, without the decoder that predicts pixels"):
        mae(str(bank.path), **(QUICK | {"weights": str(tmp_path / "ft.st")}))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/align/mae").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_parses(path):
    run = subprocess.run(
        [sys.executable, "-m", "align.mae", "--config", str(path), "--print-config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    resolved = yaml.safe_load(run.stdout)
    assert yaml.safe_load(path.read_text()).items() <= resolved.items()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"weights": None}, MaeError, "--weights is missing; name the checkpoint of omnimae-vit-b"),
        ({"modality": "audio"}, MaeError, "--modality audio; accepted are rgb, ir, depth and camera views"),
        ({"modality": "rgb+depth"}, MaeError, r"--modality rgb\+depth; accepted"),
        (
            {"modality": "rgb"},
            RecipeError,
            r"no rgb files of synthetic in cross-subject/train; it has: depth",
        ),
        ({"where": "label > 99"}, RecipeError, "no depth files of synthetic .* where label > 99"),
        ({"where": "clip_id = 'S002C001P001R001A001'"}, TrainingError, "1 training clips; at least 2"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(bank, changed, error, message):
    with pytest.raises(error, match=message) as caught:
        mae(str(bank.path), **(QUICK | changed))
    assert "\n" not in str(caught.value)
