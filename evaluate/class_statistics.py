"""Where the classes lie in one modality, and between two: centres, covariances, distances to class texts.

Pure functions of (n, E) vectors and (n,) labels. CMVRA's `analyse_embbedings` (zeta/eval_vip_textencoder.py)
takes these quantities; distances are of cosine, 1 - cos, in [0, 2].
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Centres:
    """The means of classes, not normalised.

    Attributes:
        classes: (C,) labels that have clips, ascending.
        means: (C, E).
        counts: (C,) clips.
    """

    classes: np.ndarray
    means: np.ndarray
    counts: np.ndarray


def centres(x: np.ndarray, labels: np.ndarray) -> Centres:
    """Of the clips that have a label (>= 0)."""
    known = labels >= 0
    classes, place, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
    sums = np.zeros((len(classes), x.shape[1]))
    np.add.at(sums, place, x[known])
    return Centres(classes, sums / counts[:, None], counts)


def centre_distances(one: Centres, other: Centres) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean and cosine distance between the centres of the K classes that both have: (K,), (K,).

    A centre at the origin has no direction: its cosine distance is 1, as that to a random one.
    """
    _, here, there = np.intersect1d(one.classes, other.classes, return_indices=True)
    a, b = one.means[here], other.means[there]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(lengths > 1e-12, (a * b).sum(1) / np.maximum(lengths, 1e-12), 0.0)
    return np.linalg.norm(a - b, axis=1), 1 - cosines


def covariance_distance(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """Frobenius norm of Cov(x) - Cov(y), or of Cov(x) alone; (n, E) and (m, E), n and m at least 2.

    No E x E matrix where there are fewer clips than dimensions: tr(X'X Y'Y) = |XY'|_F^2.
    """
    a = (x - x.mean(0, dtype=np.float64)) / (len(x) - 1) ** 0.5
    if y is None:
        return float(_product(a, a) ** 0.5)
    b = (y - y.mean(0, dtype=np.float64)) / (len(y) - 1) ** 0.5
    return float(max(_product(a, a) + _product(b, b) - 2 * _product(a, b), 0.0) ** 0.5)


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """tr(A'A B'B)."""
    if a.shape[1] <= max(len(a), len(b)):
        return float(((a.T @ a) * (b.T @ b)).sum())
    return float(((a @ b.T) ** 2).sum())


def class_distances(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each labelled clip's mean cosine distance to the others of its class, and to those of other classes.

    Out of the classes' sums: no pair is looked at. NaN where a clip is alone in its class (or its class
    alone).

    Args:
        x: (n, E) unit rows.
        labels: (n,), -1 = none.

    Returns:
        (m,) and (m,) for the m clips with a label, in order.
    """
    known = labels >= 0
    values, found = x[known].astype(np.float64), centres(x, labels)
    place = np.searchsorted(found.classes, labels[known])
    sums, counts = found.means * found.counts[:, None], found.counts[place]
    own = (values * sums[place]).sum(1)
    others = values @ sums.sum(0) - own
    with np.errstate(invalid="ignore", divide="ignore"):
        same = 1 - (own - (values**2).sum(1)) / (counts - 1)
        apart = 1 - others / (len(values) - counts)
    return np.where(counts > 1, same, np.nan), np.where(len(values) > counts, apart, np.nan)


@dataclass(frozen=True)
class TextDistances:
    """Clips against class texts.

    Attributes:
        own: (m,) cosine distance to the text of the own class.
        others: (m, K - 1) to those of the other classes.
        ratio: (m,) own over the mean of the others: below 1 the own text is nearer than most. 1 where both
            are 0.
    """

    own: np.ndarray
    others: np.ndarray
    ratio: np.ndarray


def text_distances(
    x: np.ndarray, labels: np.ndarray, classes: np.ndarray, texts: np.ndarray
) -> TextDistances:
    """Distances of the clips whose class has a text.

    Args:
        x: (n, E) unit rows.
        labels: (n,), -1 = none.
        classes: (K,) labels of the texts, ascending, K >= 2.
        texts: (K, E) unit rows.

    Raises:
        ValueError: For fewer than two texts.
    """
    if len(classes) < 2:
        raise ValueError(f"text_distances: {len(classes)} class texts; at least 2 are needed to compare")
    known = np.isin(labels, classes)
    distances = np.clip(1 - x[known].astype(np.float32) @ texts.astype(np.float32).T, 0, 2)
    mine = np.searchsorted(classes, labels[known])[:, None] == np.arange(len(classes))
    own, others = distances[mine], distances[~mine].reshape(len(distances), -1)
    mean = others.mean(axis=1)
    ratio = np.where(own == mean, 1.0, own / np.maximum(mean, 1e-12))
    return TextDistances(own, others, ratio)
