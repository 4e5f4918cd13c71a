"""Linear classifiers of sequences: ridge and logistic, with the strength chosen between training groups.

`python -m evaluate probe` scales every number of a vector by its own deviation. Here a feature's tokens and
time steps share one, which matters for small sets: a foot that hardly moves stays quiet instead of being
blown up, tracking noise and all, to the size of a hand's movement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RIDGE_STRENGTHS = tuple(10.0**power for power in np.arange(2, -4.5, -0.5))  # strong to weak: ties: stronger
LOGISTIC_STRENGTHS = tuple(10.0**power for power in np.arange(-1, -5.5, -0.5))
MIN_DEVIATION = 1e-6
ITERATIONS = 300
GRADIENT = 1e-5  # largest one at the optimum
Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray, int, Sequence[float]], np.ndarray]


@dataclass(frozen=True)
class Readout:
    """A classifier's answers.

    Attributes:
        scores: (m, C) of the clips to score, higher is likelier.
        strength: Chosen on held-out training groups.
        held_out: Accuracy there; NaN where one group is all there is.
        held_out_scores: (n, C) of the training clips, each by the classifier that never saw its group.
    """

    scores: np.ndarray
    strength: float
    held_out: float
    held_out_scores: np.ndarray


def ridge_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, strengths: Sequence[float]
) -> np.ndarray:
    """One-against-all ridge regression on targets of +1 and -1, at several strengths at once.

    Solved in the dual, as there are fewer clips than numbers a clip. A strength is relative to the mean
    squared length of the centred training rows, so that it means the same for features of any size: strength
    s equals scikit-learn's ``RidgeClassifier(alpha=s * mean squared length)``.

    Args:
        train: (n, P).
        labels: (n,) in 0 .. classes - 1.
        test: (m, P).
        classes: C.
        strengths: S of them, above 0.

    Returns:
        (S, m, C) float64.
    """
    rows, asked = _centred(train, test)
    gram, near = rows @ rows.T, asked @ rows.T
    values, vectors = np.linalg.eigh(gram)
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    centre = targets.mean(axis=0)
    turned = vectors.T @ (targets - centre)
    solved = [vectors @ (turned / (np.maximum(values, 0) + strength)[:, None]) for strength in strengths]
    return np.stack([near @ dual + centre for dual in solved])


def logistic_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, strengths: Sequence[float]
) -> np.ndarray:
    """Multinomial logistic regression at its optimum, at several strengths (give them strong to weak).

    Minimises mean cross-entropy + strength / 2 * ||W||^2 (bias free) on centred rows of mean squared length
    1, in the span of the training rows, where the optimum lies: strength s equals scikit-learn's ``C = 1 /
    (n * s)`` on those rows. Arguments and result as :func:`ridge_scores`.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, asked = _centred(train, test)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > 1e-9 * values[-1]
    inside = vectors[:, kept] * np.sqrt(values[kept])
    outside = asked @ rows.T @ vectors[:, kept] / np.sqrt(values[kept])
    n, width = inside.shape
    truth = labels[:, None] == np.arange(classes)

    def objective(flat: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        weights, bias = np.split(flat.reshape(width + 1, classes), [width])
        log = log_softmax(inside @ weights + bias, axis=1)
        slope = (np.exp(log) - truth) / n
        loss = -log[truth].sum() / n + 0.5 * strength * float((weights**2).sum())
        return loss, np.concatenate([inside.T @ slope + strength * weights, slope.sum(0)[None]]).ravel()

    flat, found = np.zeros((width + 1) * classes), []
    options = {"maxiter": ITERATIONS, "gtol": GRADIENT, "ftol": 1e-12}
    for strength in strengths:  # each starts where the one before ended
        flat = minimize(objective, flat, (strength,), "L-BFGS-B", jac=True, options=options).x
        weights, bias = np.split(flat.reshape(width + 1, classes), [width])
        found.append(outside @ weights + bias)
    return np.stack(found)


CLASSIFIERS: dict[str, tuple[Scorer, Sequence[float]]] = {
    "ridge": (ridge_scores, RIDGE_STRENGTHS),
    "logistic": (logistic_scores, LOGISTIC_STRENGTHS),
}


def standardised(train: np.ndarray, test: np.ndarray, per: str) -> tuple[np.ndarray, np.ndarray]:
    """By the training clips' statistics, one row a clip.

    Args:
        train: (n, K, N, D), or (n, D) embeddings.
        test: (m, ...).
        per: ``channel``: each of the N x D channels has its own mean and deviation over time; ``dim``: the
            tokens share a dim's; ``clip``: each clip's own mean over time is taken away and nothing scaled
            (what changes, not how person and place look); ``none``: as it is.

    Returns:
        (n, K * N * D) and (m, K * N * D) float32.
    """
    axes = {"channel": (0, 1), "dim": (0, 1, 2), "clip": (), "none": ()}[per]
    first, second = train.astype(np.float32), test.astype(np.float32)
    if per == "clip":
        first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
    if axes:
        mean, deviation = first.mean(axis=axes), first.std(axis=axes) + MIN_DEVIATION
        first, second = (first - mean) / deviation, (second - mean) / deviation
    return first.reshape(len(first), -1), second.reshape(len(second), -1)


def read_out(
    train: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    test: np.ndarray,
    classes: int,
    per: str,
    classifier: str = "ridge",
) -> Readout:
    """Choose the strength with one training group (subject) held out after the other, fit on all, score.

    Args:
        train: (n, K, N, D) or (n, D).
        labels: (n,).
        groups: (n,) subjects; with a single one nothing can be held out, and the strongest is taken.
        test: (m, ...): nothing but the final scores depends on it.
        classes: C.
        per: See :func:`standardised`.
        classifier: Key of ``CLASSIFIERS``.
    """
    scorer, strengths = CLASSIFIERS[classifier]
    held_out = np.zeros((len(strengths), len(labels), classes))
    names = np.unique(groups)
    for group in names if len(names) > 1 else ():
        held = groups == group
        first, second = standardised(train[~held], train[held], per)
        held_out[:, held] = scorer(first, labels[~held], second, classes, strengths)
    shares = (held_out.argmax(axis=2) == labels).mean(axis=1) if len(names) > 1 else np.full(1, np.nan)
    best = int(np.argmax(shares))
    first, second = standardised(train, test, per)
    scores = scorer(first, labels, second, classes, strengths[best : best + 1])[0]
    return Readout(scores, strengths[best], float(shares[best]), held_out[best])


def _centred(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Less the training mean, scaled to a mean squared training length of 1; float64."""
    mean = train.mean(axis=0)
    rows, asked = (train - mean).astype(np.float64), (test - mean).astype(np.float64)
    length = max(float(np.sqrt((rows**2).sum() / len(rows))), np.finfo(np.float64).tiny)
    return rows / length, asked / length
