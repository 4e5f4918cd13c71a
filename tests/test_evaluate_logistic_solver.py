"""The solver's duality gap: a bound that holds everywhere, and is kept in every arithmetic."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from evaluate import logistic_solver, quasi_newton
from evaluate.logistic_solver import native_bfloat16, solve_path


def problem(n: int = 400, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Uneven classes; rows centred, of mean squared length 1, the directions of very different weight."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(classes, size=n) * (rng.random(n) < 0.6))
    rows = (rng.normal(size=(classes, width))[labels] * 0.4 + rng.normal(size=(n, width))) @ np.diag(
        np.arange(1, width + 1) ** -0.7
    )
    rows -= rows.mean(axis=0)
    rows = (rows / np.sqrt(np.square(rows).sum(axis=1).mean())).astype(np.float32)
    return rows - rows.mean(axis=0), labels


def objective(flat, rows, labels, classes, strength) -> tuple[float, np.ndarray]:
    """Naive, float64: value and gradient."""
    parameters = np.asarray(flat, np.float64).reshape(-1, classes)
    rows = rows.astype(np.float64)
    logits = rows @ parameters[:-1] + parameters[-1]
    total = logsumexp(logits, axis=1, keepdims=True)
    error = np.exp(logits - total) - np.eye(classes)[labels]
    value = float((total[:, 0] - logits[np.arange(len(rows)), labels]).mean())
    slope = np.concatenate([rows.T @ error / len(rows) + strength * parameters[:-1], [error.mean(axis=0)]])
    return value + 0.5 * strength * float(np.square(parameters[:-1]).sum()), slope.ravel()


def optimum(rows, labels, classes, strength) -> float:
    start = np.zeros((rows.shape[1] + 1) * classes)
    options = {"gtol": 1e-12, "ftol": 1e-16, "maxiter": 20000, "maxfun": 40000, "maxcor": 50}
    arguments = (rows, labels, classes, strength)
    return float(minimize(objective, start, arguments, "L-BFGS-B", jac=True, options=options).fun)


@pytest.fixture(params=["float64", "float32", "bfloat16"])
def arithmetic(request, monkeypatch) -> str:
    """Few rows are solved in float64; here they go the ways of many rows, too."""
    if request.param != "float64":
        monkeypatch.setattr(logistic_solver, "FLOAT64_BELOW_VALUES", 0)
    if request.param == "float32":
        monkeypatch.setattr(logistic_solver, "native_bfloat16", lambda device: False)
    elif not native_bfloat16("cpu"):  # slower then, but it is the same arithmetic
        monkeypatch.setattr(logistic_solver, "native_bfloat16", lambda device: True)
    return request.param


@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("goal", [1e-3, 1e-5])
def test_the_gap_is_kept(arithmetic, strength, goal) -> None:
    rows, labels = problem()
    (found,) = solve_path(rows, labels, 4, [strength], goal)
    best = optimum(rows, labels, 4, strength)
    value, _ = objective(np.concatenate([found.weights, [found.bias]]), rows, labels, 4, strength)
    assert found.gap <= goal
    assert -1e-9 <= value / best - 1 <= found.gap + 1e-6  # parameters come back in float32


def test_the_bound_holds_at_any_point() -> None:
    rows, labels = problem(seed=3)
    rng, strength = np.random.default_rng(0), 1e-2
    best = optimum(rows, labels, 4, strength)
    bounds = []
    for size in [0.0, 0.01, 0.3, 3.0] * 5:
        parameters = rng.normal(size=(rows.shape[1] + 1, 4)) * size
        value, gradient = objective(parameters, rows, labels, 4, strength)
        slope = gradient.reshape(-1, 4)
        logits = rows @ parameters[:-1] + parameters[-1]
        bound = logistic_solver._duality_gap(
            float(np.linalg.norm(slope[:-1])),
            torch.as_tensor(slope[-1]),
            torch.as_tensor(parameters[-1]),
            torch.as_tensor(np.bincount(labels, minlength=4) / len(labels)),
            float(logsumexp(logits, axis=1).mean()),
            strength,
            1.0,
        )
        assert value - best <= bound + 1e-12
        bounds.append(bound)
    assert min(bounds) < np.log(4) * 100  # a bound that is always huge would hold, too


def test_a_row_of_weight_two_counts_like_two_rows(arithmetic) -> None:
    rows, labels = problem()
    weights = np.random.default_rng(1).integers(1, 4, len(rows))
    rows = rows - np.average(rows, axis=0, weights=weights).astype(np.float32)
    (weighted,) = solve_path(rows, labels, 4, [1e-2], 1e-5, weights=weights)
    copies, repeated = np.repeat(rows, weights, axis=0), np.repeat(labels, weights)
    best = optimum(copies, repeated, 4, 1e-2)
    parameters = np.concatenate([weighted.weights, [weighted.bias]])
    assert weighted.gap <= 1e-5
    assert objective(parameters, copies, repeated, 4, 1e-2)[0] / best - 1 <= weighted.gap + 1e-6


def test_a_start_at_the_optimum_costs_one_pass_more() -> None:
    rows, labels = problem()
    first, again = solve_path(rows, labels, 4, [1e-2, 1e-2], 1e-6)
    assert again.passes <= 1.5 < first.passes
    np.testing.assert_allclose(again.weights, first.weights, rtol=1e-3, atol=1e-6)


def test_wide_rows_use_the_leading_directions_of_their_spectrum(monkeypatch) -> None:
    monkeypatch.setattr(quasi_newton, "WHOLE_SPECTRUM", 8)
    monkeypatch.setattr(quasi_newton, "LEADING", 5)
    rows, labels = problem()
    (found,) = solve_path(rows, labels, 4, [1e-3], 1e-8)
    value, _ = objective(np.concatenate([found.weights, [found.bias]]), rows, labels, 4, 1e-3)
    assert value / optimum(rows, labels, 4, 1e-3) - 1 <= 1e-7


def test_ten_passes_do_at_a_common_strength() -> None:
    """Hundreds without the Kronecker product: its guess of the Hessian is what makes them few."""
    rows, labels = problem(3000, 60, 10)
    (found,) = solve_path(rows, labels, 10, [1e-3], 1e-4)
    assert found.passes <= 10


def test_the_order_of_the_rows_does_not_make_the_hessian_worse(monkeypatch) -> None:
    """Classes that take turns: every fourth row is one of only 3 of the 12."""
    monkeypatch.setattr(logistic_solver, "SAMPLE_ROWS", 700)
    rng = np.random.default_rng(0)
    labels = np.arange(2880) % 12
    rows = rng.normal(size=(12, 40))[labels] * 0.4 + rng.normal(size=(2880, 40))
    rows = ((rows - rows.mean(axis=0)) * np.arange(1, 41) ** -0.7).astype(np.float32)
    shuffled = rng.permutation(len(rows))
    (turns,) = solve_path(rows, labels, 12, [1e-3], 1e-6)
    (mixed,) = solve_path(rows[shuffled], labels[shuffled], 12, [1e-3], 1e-6)
    assert turns.passes <= mixed.passes + 1.5
