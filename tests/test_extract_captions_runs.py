"""Captioning under fire (killed, interrupted, the catalog held); and from pictures to an alignment."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from extract_toys import ENVIRONMENT, write_corpus
from llava_folders import write_llava_next

from extract.datasets.synthetic import generate
from store.bank import Bank

CLIPS = 12
KILLS = 3

pytestmark = pytest.mark.slow

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT, "cwd": ROOT}
DRIVER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import extract.describing as describing
describing.PORTION_CLIPS = 2
describing.PATIENCE_SECONDS = 0.2
from extract.captions import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llava_next(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), CLIPS)


def started(*arguments):
    """`python -m extract.captions <arguments>` that commits every two clips, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        **{
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": ENVIRONMENT,
            "cwd": ROOT,
        },
    )


def ended(process, check=0):
    out, err = process.communicate(timeout=180)
    assert process.returncode == check, f"exit {process.returncode}\n{out}\n{err}"
    return out + err


def module(name, *arguments):
    """`python -m <name> <arguments>`; what it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", name, *map(str, arguments)],
        **{
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": ENVIRONMENT,
            "cwd": ROOT,
        },
    )
    return ended(process)


def options(corpus, model, bank):
    return (
        *("--dataset", corpus, "--model", model, "--bank", bank, "--prompt", "what is done ?"),
        *(
            "--max-new-tokens",
            60,
            "--precision",
            "fp32",
            "--device",
            "cpu",
            "--workers",
            1,
            "--batch-frames",
            1,
        ),
    )


def made(bank):
    sql = "SELECT clip_id, text_id, source FROM captions WHERE source LIKE 'llava-next@%' ORDER BY ALL"
    return Bank.open(bank).sql(sql).to_pylist()


def committed(bank):
    """How many clips have captions."""
    if not (bank / "catalog.duckdb").exists():
        return 0
    return Bank.open(bank).sql("SELECT clip_id FROM captioned").num_rows


def wait_for_captions(bank, process, clips):
    """Until so many clips are committed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if committed(bank) >= clips:
            return
        time.sleep(0.02)
    pytest.fail("it ended before it could be disturbed")


@pytest.fixture(scope="module")
def calm(corpus, model, tmp_path_factory):
    bank = tmp_path_factory.mktemp("calm") / "bank"
    ended(started(*options(corpus, model, bank)))
    rows = made(bank)
    assert len({row["clip_id"] for row in rows}) == CLIPS
    return rows


def test_killed_again_and_again_it_ends_as_if_undisturbed(corpus, model, calm, tmp_path):
    bank, done = tmp_path / "bank", 0
    for _ in range(KILLS):
        process = started(*options(corpus, model, bank))
        wait_for_captions(bank, process, done + 2)
        process.kill()
        process.communicate()
        before, done = done, committed(bank)
        some = {row["clip_id"] for row in made(bank)}
        assert len(some) == done >= before + 2  # what was committed stays, and nothing is there by half
        assert made(bank) == [row for row in calm if row["clip_id"] in some]
    ended(started(*options(corpus, model, bank)))
    assert made(bank) == calm
    assert "nothing is missing" in ended(started(*options(corpus, model, bank)))


def test_ctrl_c_commits_what_is_done(corpus, model, calm, tmp_path):
    bank = tmp_path / "bank"
    process = started(*options(corpus, model, bank))
    wait_for_captions(bank, process, 4)
    process.send_signal(signal.SIGINT)
    said = ended(process, check=130)
    assert "interrupted (SIGINT): what was done is committed" in said
    rows = made(bank)
    some = {row["clip_id"] for row in rows}
    assert 4 <= len(some) < CLIPS and rows == [row for row in calm if row["clip_id"] in some]
    assert f"{len(some)} clips captioned, {CLIPS - len(some)} left" in said
    ended(started(*options(corpus, model, bank)))
    assert made(bank) == calm


HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_catalog_held_by_somebody_else_costs_nothing(corpus, model, calm, tmp_path):
    bank = tmp_path / "bank"
    process = started(*options(corpus, model, bank))
    wait_for_captions(bank, process, 4)
    holder = None
    while holder is None:
        one = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(bank / "catalog.duckdb")],
            **{
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
                "text": True,
            },
        )
        holder = one if one.stdout.readline().strip() == "held" else None
    time.sleep(1)
    holder.communicate("")
    said = ended(process)
    assert "clips wait to be committed" in said and str(holder.pid) in said
    assert made(bank) == calm


def test_from_pictures_to_an_alignment(model, tmp_path):
    """The synthetic corpus as NTU: captions made here, encoded as texts, and aligned with the skeletons."""
    root, bank = tmp_path / "corpus", tmp_path / "bank"
    generate(root, clips=16, seed=5, size=(64, 48), modalities=("rgb", "skeleton"), workers=1)
    place = ("--dataset", "ntu", "--bank", bank)
    module("extract.captions", *place, "--root", root, "--model", model, "--prompt", "what is done ?",
           "--max-new-tokens", 8, "--samples", 2, "--workers", 1)  # fmt: skip
    module("extract", *place, "--modality", "skeleton,text", "--device", "cpu", "--workers", 1)
    rows = made(bank)
    assert len({row["clip_id"] for row in rows}) == 16
    encoded = Bank.open(bank).sql(
        "SELECT count(*) AS n FROM captions WHERE text_id IN (SELECT clip_id FROM clip_features"
        " WHERE dataset = '_texts')"
    )
    assert encoded["n"][0].as_py() == len(rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({
        "text": {"source": "captions"}, "modalities": "skeleton,text", "protocol": "none",
        "train": {"epochs": 2, "batch": 8}, "validation": {"min_clips": 400},
    }))  # fmt: skip
    module("align", "--config", recipe, *place, "--train.device", "cpu")
    sql = "SELECT status, config ->> '$.text_source' AS source FROM runs WHERE command = 'align'"
    (run,) = Bank.open(bank).sql(sql).to_pylist()
    assert run["status"] == "done", run
