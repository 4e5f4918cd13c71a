"""Two ranks are one process with the doubled batch: loss, gradients, training, resumption; under torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from align_bank import Toy, make_bank

import align
from align import LOSSES, distributed
from align.config import AugmentConfig, TrainConfig
from align.data import ClipData, text_track, track
from align.distributed import DistributedError
from align.model import Heads, HeadSpec, WeightedLosses, build_losses
from align.run import ResumeError, continue_run
from align.train import Trainer

ROOT = Path(__file__).resolve().parent.parent
RANKS, B = 2, 12
OPTIONS = {
    "infonce": [
        {"learn_temperature": True},
        {"same_label": "positive", "same_text": "positive", "direction": "forward"},
        {"dual_softmax": True, "hard_negatives": 5},
    ],
    "joint-nce": [{"learn_temperature": True}],
    "mil-nce": [{"learn_temperature": True, "same_label": "ignore"}],
}
CASES = [(name, options) for name in LOSSES for options in OPTIONS.get(name, [{}])]
SPECS = {
    "skeleton": HeadSpec("transformer", 3, 4, {"dropout": 0.0}),
    "depth": HeadSpec("mlp", 1, 5, {"dropout": 0.0}),
    "text": HeadSpec("linear", 1, 6),
}


def build(name: str, options: dict) -> tuple[Heads, WeightedLosses]:
    """Heads and one loss, the same on every rank and in the test."""
    torch.manual_seed(0)
    pairs = "anchor" if name == "joint-nce" else "all"
    term = {"name": name, "weight": 0.7, "pairs": pairs, "options": options}
    return Heads(SPECS, 8), build_losses([term], list(SPECS))


def batch(rows: slice) -> tuple:
    """Features of ragged length, masks, and who has what, for some of the RANKS x B clips."""
    draws = torch.Generator().manual_seed(1)
    n = RANKS * B
    lengths = torch.randint(2, 8, (n,), generator=draws)
    features = {
        name: torch.randn(n, 7 if name == "skeleton" else 1, spec.tokens, spec.dim, generator=draws)
        for name, spec in SPECS.items()
    }
    masks = {"skeleton": torch.arange(7) < lengths[:, None], "depth": None, "text": None}
    present = torch.rand(n, len(SPECS), generator=draws) > 0.25
    labels = torch.randint(-1, 4, (n,), generator=draws)
    texts = torch.where(present[:, 2], torch.randint(0, 9, (n,), generator=draws), -1)
    part = (
        {k: v[rows] for k, v in features.items()},
        {k: v if v is None else v[rows] for k, v in masks.items()},
    )
    return *part, present[rows], labels[rows], texts[rows]


def loss_and_gradients(name: str, options: dict, rows: slice) -> dict[str, torch.Tensor]:
    heads, losses = build(name, options)
    features, masks, *facts = batch(rows)
    # The padding of a rank's own longest clip differs from that of the whole batch: cut it.
    longest = int(masks["skeleton"].sum(1).max())
    features["skeleton"], masks["skeleton"] = (
        features["skeleton"][:, :longest],
        masks["skeleton"][:, :longest],
    )
    loss = losses(*distributed.gather_batch(heads(features, masks), *facts))
    loss.backward()
    parameters = dict(heads.named_parameters(prefix="heads")) | dict(losses.named_parameters(prefix="losses"))
    distributed.average_gradients(parameters.values())
    found = {key: value.grad for key, value in parameters.items() if value.grad is not None}
    return {"loss": loss.detach()} | found


def trainer(epochs: int, share: int) -> Trainer:
    """Three modalities of one latent, one of them ragged, one missing here and there; no augmentation."""
    rng, n = np.random.default_rng(0), 90
    latent = rng.normal(size=(n, 6))
    lengths = rng.integers(3, 9, n)
    motion = np.concatenate(
        [np.outer(np.linspace(0, 1, t), row) for t, row in zip(lengths, latent, strict=True)]
    )
    clips = [f"c{number}" for number in range(n)]
    tracks = {
        "skeleton": track(
            motion.reshape(-1, 3, 2).astype(np.float32), clips, clips, np.concatenate([[0], lengths.cumsum()])
        ),
        "depth": track(latent @ rng.normal(size=(6, 5)).astype(np.float32), clips, clips),
        "text": text_track(latent.astype(np.float32), [[k, (k + 1) % n] for k in range(n)]),
    }
    tracks["depth"].features = tracks["depth"].features.astype(np.float32)
    tracks["depth"].counts[::4] = 0
    torch.manual_seed(0)
    heads = Heads(
        {
            name: HeadSpec(
                "linear" if part.is_text else "mlp",
                *part.tokens_dim,
                {} if part.is_text else {"dropout": 0.0},
            )
            for name, part in tracks.items()
        },
        8,
    )
    losses = build_losses(
        [
            {
                "name": "infonce",
                "weight": 1.0,
                "pairs": "all",
                "options": {"learn_temperature": True, "queue": 40},
            }
        ],
        list(tracks),
    )
    off = AugmentConfig(frame_drop=0, token_drop=0, time_crop=1, time_warp=0)
    config = TrainConfig(epochs=epochs, batch=share, average=0.5, device="cpu")
    data = ClipData(np.array(clips, object), np.arange(n) % 3, tracks)
    return Trainer(heads, losses, data, np.arange(70), np.arange(70, n), config, off)


def first_step(run: Trainer) -> dict[str, torch.Tensor]:
    """Loss and (clipped) gradients of the first batch."""
    loss = run.step(next(iter(run.loader.epoch(0))))
    return {"loss": loss} | {name: value.grad for name, value in run.heads.named_parameters()}


def work(out: Path) -> None:
    """What each rank does: everything that the tests below compare, into one file a rank."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        rank = distributed.rank()
        rows = slice(rank * B, (rank + 1) * B)
        found = {f"case{k}": loss_and_gradients(*case, rows) for k, case in enumerate(CASES)}
        found["step"] = first_step(trainer(1, 15))
        run = trainer(3, 15)
        found["curve"], found["steps"] = strip(run.run()), run.steps
        found["weights"] = run.heads.state_dict()
        found["told"] = [
            distributed.from_first(3.5 + rank, -1.0 - rank),
            distributed.text_from_first(f"ränk {rank}"),
        ]
        torch.save(found, out / f"{rank}.pt")


def strip(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


def environment(rank: int, port: int) -> dict[str, str]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": RANKS,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return (
        os.environ
        | {key: str(value) for key, value in own.items()}
        | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two real processes with gloo between them found."""
    out, port = tmp_path_factory.mktemp("ranks"), free_port()
    code = f"from pathlib import Path; from test_align_distributed import work; work(Path({str(out)!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment(r, port)) for r in range(RANKS)]
    assert [process.wait(120) for process in started] == [0] * RANKS
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


# Two ranks, one process ---------------------------------------


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)]
)
def test_loss_and_gradients_are_those_of_one_process_with_all_clips(ranks, number):
    """Heads and loss parameters; every loss; missing modalities; clips padded differently on each rank."""
    whole = loss_and_gradients(*CASES[number], slice(None))
    assert whole["loss"] > 0 and all(value.abs().max() > 1e-6 for value in whole.values())
    for rank in ranks:
        assert rank[f"case{number}"].keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(rank[f"case{number}"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_of_training_is_that_of_the_doubled_batch(ranks):
    whole = first_step(trainer(1, 30))
    for rank in ranks:
        for name, value in whole.items():
            torch.testing.assert_close(rank["step"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_training_follows_the_same_curve_and_the_ranks_stay_alike(ranks):
    run = trainer(3, 30)
    curve = strip(run.run())
    assert ranks[0]["steps"] == run.steps == 6
    for own, row in zip(ranks[0]["curve"], curve, strict=True):
        assert own == pytest.approx(row, rel=1e-5)
    assert ranks[0]["curve"] == ranks[1]["curve"]
    for name, value in ranks[0]["weights"].items():
        assert torch.equal(value, ranks[1]["weights"][name]), name


def test_what_rank_0_says_all_know(ranks):
    assert [rank["told"] for rank in ranks] == [[[3.5, -1.0], "ränk 0"]] * RANKS


def test_one_process_has_no_group_and_gets_back_what_it_gave():
    values = torch.ones(2, 3, requires_grad=True)
    assert (distributed.size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.gather(values) is values
    assert distributed.gather_batch({"a": values})[0]["a"] is values
    assert (distributed.from_first(2.0), distributed.text_from_first("x")) == ([2.0], "x")
    with distributed.joined():
        assert not torch.distributed.is_initialized()


def test_what_cannot_train_together_is_said_before_anything_starts(monkeypatch):
    for name, value in environment(1, 1).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(DistributedError, match=r"a GPU of its own, not cuda:0; use --train.device cuda"),
        distributed.joined("cuda:0"),
    ):
        pass
    monkeypatch.setenv("LOCAL_RANK", "99")
    with (
        pytest.raises(DistributedError, match="process 99 of this machine has no GPU of its own, there are"),
        distributed.joined("cuda"),
    ):
        pass


# Under torchrun ------------------------------------------------


def torchrun(bank, *arguments, **keywords):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "align",
    ]
    return subprocess.Popen(
        [*command, "--bank", str(bank.path), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


@pytest.mark.slow
def test_torchrun_writes_one_run_says_one_thing_and_is_resumed_after_a_kill(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    recipe = ["--train.epochs=40", "--train.batch=12", "--train.checkpoint_seconds=0"]
    out, said = (whole := torchrun(bank, *recipe)).communicate(timeout=120)
    assert whole.returncode == 0, said
    assert said.count("align toy (cross-subject/train): 30 clips") == 1
    assert len(out.splitlines()) == 1
    finished = align.load(out.strip())
    assert finished.config["training"]["processes"] == 2

    process = torchrun(bank, *recipe)
    while not (states := list(bank.path.glob("runs/*/state.pt"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    killed = states[0].parent
    os.kill(int((killed / "run.lock").read_text()), signal.SIGKILL)  # rank 0; torchrun ends the other
    assert process.wait(60) != 0
    assert not (killed / "heads.safetensors").exists()
    with pytest.raises(ResumeError, match="processes is 1 now, was 2"):
        continue_run(bank, "latest")
    resumed, said = (again := torchrun(bank, "--resume", "latest")).communicate(timeout=120)
    assert again.returncode == 0 and said.count(f"continuing {killed}") == 1, said
    assert strip(align.load(resumed.strip()).curve()) == strip(finished.curve())
    assert not list(bank.path.glob("runs/*/state.pt"))
    assert len(bank.sql("SELECT * FROM runs WHERE status = 'done'")) == 2


@pytest.mark.slow
def test_an_error_on_every_rank_is_said_once_and_ends_all(tmp_path):
    bank = make_bank(tmp_path / "bank", Toy(clips=60))
    out, said = (process := torchrun(bank, "--dataset", "nope")).communicate(timeout=60)
    assert process.returncode != 0 and out == ""
    assert said.count("error: ") == 1 and "no dataset named 'nope'" in said


FAILING = """
import sys
from align import distributed
from align.distributed import DistributedError
from store.cli import run

def command():
    with distributed.joined("cpu"):
        if distributed.rank() == 1:
            raise DistributedError("rank 1: out of luck; try again")
        distributed.barrier()

run(command, argv=[])
"""


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_others_without_a_word():
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING], env=environment(rank, port), stderr=subprocess.PIPE, text=True
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [distributed.EXIT_SILENT, 2]
    assert said[1] == "error: rank 1: out of luck; try again\n"
    assert "Error" not in said[0] and "Traceback" not in said[0]
