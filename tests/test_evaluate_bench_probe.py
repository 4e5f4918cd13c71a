"""The probe's benchmark: what it makes up, and that both solvers are stopped where it says."""

import re

import numpy as np
import pytest
from scipy.special import logsumexp

from evaluate.bench_probe import made, objective, probe


def test_what_is_made_up_is_fixed_and_parts_share_no_subject() -> None:
    (features, labels, people), (asked, truth, others) = made(480, 240, 80, 12, 8)
    again = made(480, 240, 80, 12, 8)[0][0]
    np.testing.assert_array_equal(features, again)
    assert features.dtype == np.float32 and (features.shape, asked.shape) == ((480, 80), (240, 80))
    assert np.bincount(labels).tolist() == [40] * 12 and np.bincount(truth).tolist() == [20] * 12
    assert set(people) == {0, 1, 2, 3} and set(others) == {4, 5, 6, 7}
    assert all(len(set(people[labels == label])) == 4 for label in range(12))


def test_objective_by_hand() -> None:
    """Two rows, two classes, logits (1, 0) and (2, 0)."""
    rows, weights = np.array([[1.0], [2.0]]), np.array([[1.0, 0.0]])
    value = objective(rows, np.array([0, 1]), weights, np.zeros(2), 0.5)
    expected = (logsumexp([1, 0]) - 1 + logsumexp([2, 0]) - 0) / 2 + 0.25
    assert value == pytest.approx(expected)


def test_both_solvers_stop_within_the_gap(capsys) -> None:
    code = probe(train=960, test=480, dims=24, classes=8, subjects=8, gap=1e-3, rounds=1, epochs=1)
    out = capsys.readouterr().out
    rows = re.findall(
        r"^  (ours|scikit-learn, float\d\d) +([\d.]+) +([\d.]+) +(\S+e\S+) +([\d.]+) +[\d.]+$", out, re.M
    )
    assert [row[0] for row in rows] == ["ours", "scikit-learn, float64", "scikit-learn, float32"]
    for _, seconds, passes, gap, accuracy in rows:
        assert -1e-6 < float(gap) <= 1e-3
        assert float(seconds) > 0 and float(passes) >= 1
        assert float(accuracy) > 3 * 100 / 8  # chance 12.5
    assert "ours: " in out and "(goal 10x)" in out and "products alone (limit)" in out
    reached = int(re.search(r"^(\d) of 2 goals reached", out, re.M)[1])
    assert code == (0 if reached == 2 else 1)
