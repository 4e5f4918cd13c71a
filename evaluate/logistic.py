"""Multinomial logistic regression, fitted to its optimum: the linear probe's solver.

The objective is convex: mean cross-entropy + strength / 2 * ||W||^2 (bias free) on features standardised with
training statistics and divided by sqrt(D), so that one strength means the same for every D.
:mod:`evaluate.logistic_solver` reaches the optimum in about ten passes and proves how near it is; first-order
training with a fixed rate (500 epochs of Adam at 1e-4 in CMVRA's probes, :mod:`evaluate.adam`) stops far
from it and makes numbers depend on the schedule.

Where n < D the features are first rotated into the n-dimensional span of the training rows. The penalty does
not change under rotation, so the optimum is the same and a pass costs n * n instead of n * D.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from store.errors import FrameBankError

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(0, -7, -1))  # strong to weak: each warm-starts the next
MAX_FOLDS = 5
# Certain bounds of (objective - optimum) / optimum: of the final fit; where a pass takes milliseconds (there
# the rest of the way costs nothing); while comparing strengths.
GAP, SMALL_GAP, CHOOSING = 1e-4, 1e-8, 1e-3
ROTATE_BELOW_ROWS = 6000  # an eigendecomposition of more rows costs more than it saves
BLOCK_ROWS = 4096  # that are converted to float64 at once
TIE = 1e-5  # class scores this close count as equal (float32 rounding of a collapsed model's scores)


class ProbeError(FrameBankError, ValueError):
    """Features or labels that a linear probe cannot be fitted to."""


@dataclass(frozen=True)
class Logistic:
    """A fitted model: ``scores = (features - mean) * scale @ weights + bias`` over ``classes``.

    Attributes:
        mean: (D,) of the training features.
        scale: (D,) one over standard deviation and sqrt(D); 0 for constant features.
        weights: (D, C) float32.
        bias: (C,) float32.
        classes: (C,) labels that the training rows have, ascending.
        gap: Of the fit: its objective lies at most this share above the optimum; infinite if nobody knows.
        passes: Passes over the rows that the fit took.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    gap: float = float("inf")
    passes: float = float("nan")

    def scores(self, features: np.ndarray, class_count: int) -> np.ndarray:
        """(n, D) -> (n, class_count) float32 logits; a class never trained on gets its row's lowest - 1."""
        known = ((features - self.mean) * self.scale) @ self.weights + self.bias
        scores = np.repeat(known.min(axis=1, keepdims=True) - 1, class_count, axis=1)
        scores[:, self.classes] = known
        return scores.astype(np.float32)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    strength: float,
    device: str = "cpu",
    weights: np.ndarray | None = None,
    spread: np.ndarray | None = None,
    gap: float | None = None,
) -> Logistic:
    """(n, D) features and (n,) labels >= 0 -> the optimum at one strength > 0; ``gap``: see :func:`fit_path`.

    ``strength`` s equals scikit-learn's ``C = 1 / (n * s)`` on the same standardised and scaled features.
    With ``weights`` (n,) > 0 the mean cross-entropy is a weighted one; with ``spread`` (D,) each feature is
    divided by the root of its own number instead of D (features of several kinds side by side).

    Raises:
        ProbeError: On shapes that differ, non-finite features, negative labels, fewer than two classes or a
            strength that is not positive.
    """
    return fit_path(features, labels, (strength,), device, gap, weights, spread)[0]


def fit_path(
    features: np.ndarray,
    labels: np.ndarray,
    strengths: Sequence[float],
    device: str = "cpu",
    gap: float | None = None,
    weights: np.ndarray | None = None,
    spread: np.ndarray | None = None,
) -> list[Logistic]:
    """The optima at several strengths, each warm-started from the one before (order them strong to weak).

    Args:
        features: (n, D).
        labels: (n,) >= 0.
        strengths: Each > 0.
        device: Where to solve.
        gap: Share of the optimum by which the objective may lie above it; None: GAP (few rows: SMALL_GAP).
        weights: (n,) > 0 of the rows.
        spread: See :func:`fit_logistic`.
    """
    from evaluate.logistic_solver import FLOAT64_BELOW_VALUES, solve_path

    classes, targets = checked(features, labels)
    if min(strengths) <= 0:
        raise ProbeError(f"probe: L2 strength {min(strengths):g}; an optimum is certain only above 0")
    rows, mean, scale = standardised(features, weights, spread)
    reduced, basis = _rotated(rows)
    if gap is None:
        gap = SMALL_GAP if reduced.size <= FLOAT64_BELOW_VALUES else GAP
    solutions = solve_path(reduced, targets, len(classes), strengths, gap, device, weights)
    return [
        Logistic(
            mean,
            scale,
            found.weights if basis is None else basis @ found.weights,
            found.bias,
            classes,
            found.gap,
            found.passes,
        )
        for found in solutions
    ]


def choose_strength(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    device: str = "cpu",
    weights: np.ndarray | None = None,
    spread: np.ndarray | None = None,
) -> tuple[float, dict[float, float]]:
    """Cross-validate within the training rows, whole groups held out -> best strength, mean accuracy of each.

    Args:
        features: (n, D) training rows.
        labels: (n,).
        groups: (n,) subjects (or recordings); None: folds stratified by label.
        strengths: Candidates; equal accuracies prefer the stronger.
        seed: Of the folds.
        device: Where to solve.
        weights: (n,) of the rows, both in the loss and in the accuracy; None: equal.
        spread: See :func:`fit_logistic`.
    """
    folds = group_folds(labels, groups, seed)
    hits = np.zeros((len(strengths), len(labels)))
    for fold in np.unique(folds):
        train, held = folds != fold, folds == fold
        known = None if weights is None else weights[train]
        models = fit_path(features[train], labels[train], strengths, device, CHOOSING, known, spread)
        hits[:, held] = [held_out_hits(model, features[held], labels[held]) for model in models]
    means = dict(zip(strengths, np.average(hits, axis=1, weights=weights).tolist(), strict=True))
    return max(means, key=lambda strength: (means[strength], strength)), means


def held_out_hits(model: Logistic, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(m,) probability of the right answer on rows (m, D), ties fairly."""
    from evaluate.metrics import top_k_hits

    count = int(max(labels.max(), model.classes.max())) + 1
    return top_k_hits(model.scores(features, count), labels, tolerance=TIE)


def group_folds(
    labels: np.ndarray, groups: np.ndarray | None, seed: int = 0, most: int = MAX_FOLDS
) -> np.ndarray:
    """(n,) fold numbers: at most ``most`` folds, no group in two; without groups, stratified by label.

    Raises:
        ProbeError: If there is only one group, so that nothing could be held out.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        folds = np.empty(len(labels), np.int64)
        folds[order] = np.arange(len(labels)) % min(most, len(labels))
        return folds
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ProbeError(f"probe: one training group ({names[0]!r}) cannot be held out; give groups=None")
    loads, fold_of = np.zeros(min(most, len(names))), np.zeros(len(names), np.int64)
    shuffled = rng.permutation(len(names))
    for group in shuffled[np.argsort(-counts[shuffled], kind="stable")]:  # largest first into the lightest
        fold_of[group] = int(np.argmin(loads))
        loads[fold_of[group]] += counts[group]
    return fold_of[index]


def checked(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) classes that occur, ascending, and (n,) their places.

    Raises:
        ProbeError: See :func:`fit_logistic`.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        shapes = f"features {features.shape} and labels {labels.shape}"
        raise ProbeError(f"probe: {shapes}; needed: (n, D) and (n,)")
    if not np.isfinite(features).all():
        raise ProbeError("probe: features contain NaN or infinity; run `python -m store check`")
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or classes[0] < 0:
        found = classes[:5].tolist()
        raise ProbeError(f"probe: labels are {found}; needed: two or more classes, none negative")
    return classes, targets


def standardised(
    features: np.ndarray, weights: np.ndarray | None = None, spread: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, D) -> rows (n, D), mean (D,) and scale (D,), all float32.

    With weights the mean is theirs, which the free bias makes up for: the solver wants it.
    """
    import torch

    x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    mean, deviation = _moments(x, np.ones(len(x)))
    if weights is not None:
        mean = _moments(x, weights)[0]
    # A constant feature says nothing; rounding leaves its deviation at about eps * |mean|, not at 0.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    root = np.sqrt(features.shape[1] if spread is None else spread)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation) / root)
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    rows = torch.sub(x, torch.from_numpy(mean)).mul_(torch.from_numpy(scale))
    return rows.numpy(), mean, scale


def _moments(x: "Tensor", weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and deviation (D,) in float64, by one reading of (n, D) values."""
    import torch

    shares = torch.from_numpy(np.asarray(weights, np.float64) / np.sum(weights))
    first, second = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(2))
    for share, block in zip(shares.split(BLOCK_ROWS), x.split(BLOCK_ROWS), strict=True):
        values = block.double()
        first += share @ values
        second += share @ values.square_()
    return first.numpy(), (second - first.square()).clamp_min(0).sqrt().numpy()


def _rotated(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(n, D) rows -> coordinates (n, r) in an orthonormal basis of their span, and that basis (D, r).

    Without a basis where the rotation would not pay: the coordinates are then the rows themselves.
    """
    n, width = rows.shape
    if n >= width or n > ROTATE_BELOW_ROWS:
        return rows, None
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    kept = values > 1e-6 * max(values[-1], 1e-12)
    lengths = np.sqrt(values[kept])
    basis = rows.T @ (vectors[:, kept] / lengths).astype(np.float32)
    return (vectors[:, kept] * lengths).astype(np.float32), basis
