"""Ridge classifiers on sequences: what a reader would try in five minutes, and what has to be beaten.

The baseline resamples the sequence as the sensor gave it to a fixed length, standardises each channel and
fits a ridge classifier, whose strength is chosen between the training subjects. The same classifier reads
out stored features and aligned embeddings, so that only the features differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 48  # of the baseline's sequences
STRENGTHS = tuple(10.0**power for power in np.arange(2, -4.5, -0.5))  # strong to weak: ties take the stronger
MIN_DEVIATION = 1e-6
HIP_CENTRE = 3  # of the `joints` encoder's 20 joints


@dataclass(frozen=True)
class Readout:
    """A classifier's answers.

    Attributes:
        scores: (m, C) of the clips to score, higher is likelier.
        strength: Chosen on held-out training groups.
        held_out: Accuracy there.
    """

    scores: np.ndarray
    strength: float
    held_out: float


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
    mean = train.mean(axis=0)
    rows, asked = (train - mean).astype(np.float64), (test - mean).astype(np.float64)
    gram = rows @ rows.T
    size = max(float(np.trace(gram)) / len(rows), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(gram / size)
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    centre = targets.mean(axis=0)
    turned, near = vectors.T @ (targets - centre), asked @ rows.T / size
    solved = [vectors @ (turned / (np.maximum(values, 0) + strength)[:, None]) for strength in strengths]
    return np.stack([near @ dual + centre for dual in solved])


def standardised(train: np.ndarray, test: np.ndarray, per: str) -> tuple[np.ndarray, np.ndarray]:
    """By the training clips' statistics, one row a clip.

    Args:
        train: (n, K, N, D), or (n, D) embeddings.
        test: (m, ...).
        per: ``channel``: each of the N x D channels has its own mean and deviation over time; ``dim``: the
            tokens share a dim's (a foot that hardly moves stays quiet instead of being blown up to the size
            of a hand's movement); ``clip``: each clip's own mean over time is taken away and nothing scaled
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
    train: np.ndarray, labels: np.ndarray, groups: np.ndarray, test: np.ndarray, classes: int, per: str
) -> Readout:
    """Choose the strength with one training group (subject) held out after the other, fit on all, score.

    Args:
        train: (n, K, N, D) or (n, D).
        labels: (n,).
        groups: (n,) subjects; two or more different ones.
        test: (m, ...): nothing but the final scores depends on it.
        classes: C.
        per: See :func:`standardised`.
    """
    hits = np.zeros(len(STRENGTHS))
    for group in np.unique(groups):
        held = groups == group
        first, second = standardised(train[~held], train[held], per)
        scores = ridge_scores(first, labels[~held], second, classes, STRENGTHS)
        hits += (scores.argmax(axis=2) == labels[held]).sum(axis=1)
    best = int(np.argmax(hits))
    first, second = standardised(train, test, per)
    scores = ridge_scores(first, labels, second, classes, STRENGTHS[best : best + 1])[0]
    return Readout(scores, STRENGTHS[best], float(hits[best] / len(labels)))


def hip_centred(sequences: np.ndarray) -> np.ndarray:
    """(n, K, 20, 3) metres -> relative to each frame's hips: where the person stands says nothing."""
    values = sequences.astype(np.float32)
    return values - values[:, :, HIP_CENTRE : HIP_CENTRE + 1]


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "skeleton": hip_centred,
    "inertial": lambda sequences: sequences.astype(np.float32),
}
