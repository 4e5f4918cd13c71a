"""The bench measures fairly, and every part of it runs."""

import subprocess
import sys

import pytest
from conftest import ROOT

from store.contest import Goal, alternate, contest


def test_all_entries_see_all_inputs_and_take_turns_at_going_first():
    calls = []
    entries = {name: lambda number, name=name: calls.append((name, number)) for name in "abc"}
    seconds = alternate(entries, 6, before=lambda name, number: calls.append((f"before {name}", number)))
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 6, "b": 6, "c": 6}
    counted = [call for call in calls[6:] if not call[0].startswith("before")]
    for name in "abc":
        assert sorted(number for who, number in counted if who == name) == list(range(6))
        assert calls[calls.index((name, 1)) - 1] == (f"before {name}", 1)
    rounds = [counted[start : start + 3] for start in range(0, 18, 3)]
    assert [one[0][0] for one in rounds] == ["a", "b", "c", "a", "b", "c"]
    assert all(
        len({number for _, number in one}) == 3 for one in rounds
    )  # nobody reads what a rival just did


@pytest.mark.parametrize(("factor", "reached"), [(0.1, True), (0.9, False), (None, True)])
def test_a_goal_is_a_ratio_of_medians_to_the_fastest_limit(monkeypatch, capsys, factor, reached):
    """Limits take 2 and 4 s, the entry 8 s: a quarter of the speed of the faster one."""
    seconds = {"x": [1, 2, 9], "y": [4, 4, 4], "z": [8, 0, 80]}
    monkeypatch.setattr("store.contest.alternate", lambda entries, rounds, before: seconds)
    assert contest("title", {}, 10**9, 1, Goal("z", ("x", "y"), factor)) is reached
    printed = capsys.readouterr().out
    assert "z: 0.25x the speed of x" in printed
    assert ("MISSED" in printed) is not reached


@pytest.mark.slow
def test_the_bench_runs_and_prints_every_figure(tmp_path):
    options = ["--rounds", "2", "--clips", "600", "--token_clips", "4", "--catalog_clips", "20000"]
    result = subprocess.run(
        [sys.executable, "-m", "store.bench", *options, "--directory", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stderr  # 1: a goal was missed on a busy machine
    for figure in (
        "Epoch of 3 random batches",
        "zarr-python",
        "tensorstore",
        "197 x 768",
        "Sequential pass",
        "Write 134 MB",
        "Cold random batch",
        "insert: clips, media and splits",
        "plan: the last 2,000",
        "of 9 goals reached",
    ):
        assert figure in result.stdout
    assert list(tmp_path.iterdir()) == []
