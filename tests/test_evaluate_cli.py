"""`python -m evaluate ...` as typed: exit codes, what goes to stdout and stderr, options, YAML."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from evaluate_bank import aligned_bank, metrics_of

from evaluate.probe import probe
from evaluate.report import report
from evaluate.retrieve import retrieve
from evaluate.search import search
from evaluate.zero_shot import zero_shot

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("probe", "retrieve", "zero-shot", "search", "report")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def evaluate(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "evaluate", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_every_command() -> None:
    done = evaluate("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_every_option(name) -> None:
    done = evaluate(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--bank BANK" in done.stdout
    options = done.stdout.partition("options:")[2]
    for option in ("--config", "--dataset", "--checkpoint"):
        assert option in options


@pytest.mark.parametrize("function", [probe, retrieve, zero_shot, search, report])
def test_every_parameter_is_documented(function) -> None:
    described = set(re.findall(r"^    (\w+): ", inspect.getdoc(function), re.MULTILINE))
    assert described == set(inspect.signature(function).parameters)


def test_results_on_stdout_progress_on_stderr(toy) -> None:
    bank, checkpoint = toy
    done = evaluate("zero-shot", "--bank", bank.path, "--checkpoint", checkpoint, "--modalities", "depth")
    assert done.returncode == 0, done.stderr
    assert "classifying depth" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split() == [
        "modality",
        "prompts",
        "accuracy",
        "balanced",
        "top",
        "5",
        "chance",
        "n",
        "classes",
    ]
    assert lines[4].startswith("depth     names")
    assert lines[-1].startswith("read 2 feature sets from the bank; encoding them took 0.0 s")


def test_latest_is_the_last_checkpoint_of_the_bank(toy) -> None:
    bank, _ = toy
    done = evaluate("search", "wave", "--bank", bank.path, "--checkpoint", "latest", "--top", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("toy: 'wave'; in the aligned ")


def test_hyphens_switches_and_yaml(toy, tmp_path) -> None:
    bank, checkpoint = toy
    recipe = {"by": "label", "query": "inertial", "gallery": "depth", "checkpoint": checkpoint}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = evaluate(
        "retrieve", "--config", tmp_path / "recipe.yaml", "--bank", bank.path, "--other-clips-only"
    )
    assert done.returncode == 0, done.stderr
    detail = metrics_of(bank, "evaluate retrieve")[0]["detail"]
    assert (detail["by"], detail["query"], detail["gallery"]) == ("label", "inertial", "depth")
    run = bank.sql(
        "SELECT config FROM runs WHERE command = 'evaluate retrieve' ORDER BY started_at DESC LIMIT 1"
    )
    assert '"other_clips_only":true' in run["config"][0].as_py().replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "--bank", "nowhere"], "error: nowhere: not a bank"),
        (
            ["probe", "--bank", "{bank}", "--modalities", "rgb"],
            "python -m extract --dataset toy --modality rgb",
        ),
        (["probe", "--bank", "{bank}", "--part", "train", "--checkpoint", "{run}"], "were seen in training"),
        (["retrieve", "--bank", "{bank}"], "a clip always finds itself; use --by label"),
        (
            ["search", "brand new words", "--bank", "{bank}", "--checkpoint", "{run}"],
            "no encoder named 'toy-text'",
        ),
        (["report", "--bank", "{bank}", "--checkpoint", "run:none"], "run"),
    ],
)
def test_expected_errors_are_one_line_on_stderr(toy, tmp_path, arguments, message) -> None:
    bank, checkpoint = toy
    given = [argument.format(bank=bank.path, run=checkpoint) for argument in arguments]
    done = evaluate(*given, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probes"], "invalid choice: 'probes'"),
        (["probe", "--modality", "depth"], "modality"),
        (["retrieve", "--by", "clips"], "clips"),
        (["search"], "query"),
    ],
)
def test_bad_usage_names_what_was_wrong(arguments, message) -> None:
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_report_writes_the_page_and_says_where(toy, tmp_path) -> None:
    bank, checkpoint = toy
    done = evaluate(
        "report", "--bank", bank.path, "--out", "r.html", "--checkpoint", checkpoint, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("r.html (0.")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
