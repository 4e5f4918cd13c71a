"""`python -m evaluate ...` as typed: exit codes, what goes to stdout and stderr, options, YAML."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from evaluate_bank import aligned_bank, metrics_of, trained

from evaluate.__main__ import main
from evaluate.geometry import geometry
from evaluate.knn import knn
from evaluate.pooled import pooled
from evaluate.probe import probe
from evaluate.report import report
from evaluate.retrieve import retrieve
from evaluate.search import search
from evaluate.zero_shot import zero_shot

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("probe", "knn", "retrieve", "zero-shot", "geometry", "search", "report")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, *capsys.readouterr()


def test_help_names_every_command(capsys) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    for option in ("--config", "--bank", "--dataset", "--checkpoint"):
        assert option in out


def test_help_of_a_command_ends_with_its_examples(capsys) -> None:
    _, out, _ = run(capsys, "geometry", "--help")
    assert "python -m evaluate geometry --checkpoint latest           the aligned space" in out
    _, out, _ = run(capsys, "--help")
    assert "Examples:" not in out


@pytest.mark.parametrize("function", [probe, knn, retrieve, zero_shot, pooled, geometry, search, report])
def test_every_parameter_is_documented(function) -> None:
    described = set(re.findall(r"^    (\w+): ", inspect.getdoc(function), re.MULTILINE))
    assert described == set(inspect.signature(function).parameters)


def test_as_a_process_results_on_stdout_progress_on_stderr(toy) -> None:
    bank, checkpoint = toy
    arguments = ["--bank", str(bank.path), "--checkpoint", checkpoint, "--modalities", "depth"]
    done = subprocess.run(
        [sys.executable, "-m", "evaluate", "zero-shot", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "classifying depth" in done.stderr
    lines = done.stdout.splitlines()
    columns = ["modality", "prompts", "accuracy", "balanced", "top", "5", "chance", "n", "classes"]
    assert lines[2].split() == columns
    assert lines[4].startswith("depth     names")
    assert lines[-1].startswith("read 2 feature sets from the bank; encoding took 0.0 s")


def test_latest_is_the_last_checkpoint_of_the_bank(toy, capsys) -> None:
    bank, _ = toy
    newest = trained(bank, seed=9, modalities="depth,text").removeprefix("run:")
    code, out, _ = run(capsys, "search", "wave", "--bank", bank.path, "--checkpoint", "latest", "--top", 2)
    assert code == 0
    assert out.startswith(f"toy: 'wave'; in the aligned {newest} space of depth and text")


def test_hyphens_switches_and_yaml(toy, tmp_path, capsys) -> None:
    bank, checkpoint = toy
    recipe = tmp_path / "recipe.yaml"
    values = {"by": "label", "query": "inertial", "gallery": "depth", "checkpoint": checkpoint}
    recipe.write_text(yaml.safe_dump(values))
    code, _, err = run(capsys, "retrieve", "--config", recipe, "--bank", bank.path, "--other-clips-only")
    assert code == 0, err
    detail = metrics_of(bank, "evaluate retrieve")[0]["detail"]
    assert (detail["by"], detail["query"], detail["gallery"]) == ("label", "inertial", "depth")
    query = "SELECT config FROM runs WHERE command = 'evaluate retrieve' ORDER BY started_at DESC LIMIT 1"
    assert '"other_clips_only":true' in bank.sql(query)["config"][0].as_py().replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("probe --bank nowhere", "error: nowhere: not a bank"),
        ("probe --bank {bank} --modalities rgb", "python -m extract --dataset toy --modality rgb"),
        ("probe --bank {bank} --part train --checkpoint {run}", "were seen in training"),
        ("retrieve --bank {bank}", "a clip always finds itself; use --by label"),
        ("search new-words --bank {bank} --checkpoint {run}", "no encoder named 'toy-text'"),
        ("report --bank {bank} --checkpoint run:none", "run"),
    ],
)
def test_expected_errors_are_one_line_on_stderr(
    toy, capsys, monkeypatch, tmp_path, arguments, message
) -> None:
    bank, checkpoint = toy
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments.format(bank=bank.path, run=checkpoint).split())
    assert code == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("probes", "invalid choice: 'probes'"),
        ("probe --modality depth", "modality"),
        ("retrieve --by clips", "clips"),
        ("search", "query"),
    ],
)
def test_bad_usage_names_what_was_wrong(capsys, arguments, message) -> None:
    code, _, err = run(capsys, *arguments.split())
    assert code == 2
    assert message in err


def test_report_writes_the_page_and_says_where(toy, tmp_path, monkeypatch, capsys) -> None:
    bank, checkpoint = toy
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "report", "--bank", bank.path, "--out", "r.html", "--checkpoint", checkpoint)
    assert code == 0, err
    assert out.startswith("r.html (0.")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
