"""How the vectors of one modality fill their space, as pure functions of (n, E) unit vectors.

All pairs of clips are compared, a block at a time: 40,000 clips are 800 million pairs and never more than
``CHUNK_VALUES`` of them in memory.
"""

from dataclasses import dataclass

import numpy as np

from evaluate.modality_gap import by_influence
from evaluate.statistics import Interval

BINS = 80
EDGES = np.linspace(0.0, 2.0, BINS + 1)  # of cosine distances
CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Pairs:
    """What the pairs of different clips say.

    Attributes:
        uniformity: Log of the mean of exp(-t |x_i - x_j|^2), in [-4t, 0]: 0 where all vectors are one, about
            -2t where they are spread over a sphere of many dimensions.
        same: (BINS,) pairs of one class by their cosine distance.
        other: (BINS,) pairs of two classes. Clips without a label are in neither.
    """

    uniformity: Interval
    same: np.ndarray
    other: np.ndarray


def pairs(x: np.ndarray, labels: np.ndarray, t: float = 2.0) -> Pairs:
    """Uniformity and the histograms of distances within and between classes.

    Source: Wang and Isola (ICML 2020), section 4.1, as their code takes it: over pairs of different clips.

    Args:
        x: (n, E) unit rows, n >= 2.
        labels: (n,), -1 = none.
        t: Of the kernel.

    Raises:
        ValueError: For fewer than two clips.
    """
    count = len(x)
    if count < 2:
        raise ValueError(f"spread: {count} clips have no pairs; at least 2 are needed")
    order = np.argsort(labels, kind="stable")  # clips without a label first, then class by class
    values = np.ascontiguousarray(x[order], np.float32)
    unknown = int((labels < 0).sum())
    near, total, same = np.zeros(count), np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for start, stop in _blocks(count, unknown):
        corner, rest = _distances(values[start:stop]), _distances(values[start:stop], values[stop:])
        kernel = np.exp(-2 * t * corner) * (1 - np.eye(stop - start, dtype=np.float32))
        near[start:stop] += kernel.sum(1)
        kernel = np.exp(-2 * t * rest)  # |a - b|^2 is twice the cosine distance
        near[start:stop] += kernel.sum(1)
        near[stop:] += kernel.sum(0)
        if start >= unknown:
            total += _counts(corner[np.triu_indices(stop - start, 1)]) + _counts(rest)
    for rows in np.split(values[unknown:], np.flatnonzero(np.diff(np.sort(labels)[unknown:])) + 1):
        for start, stop in _blocks(len(rows)):
            same += _counts(_distances(rows[start:stop])[np.triu_indices(stop - start, 1)])
            same += _counts(_distances(rows[start:stop], rows[stop:]))
    near /= count - 1
    mean = float(near.mean())
    # Of a mean over pairs, a clip's influence is twice what its own pairs deviate by (Hoeffding 1948).
    uniformity = by_influence(float(np.log(mean)), 2 * (near - mean) / mean, -4 * t, 0)
    return Pairs(uniformity, same, total - same)


def _blocks(count: int, boundary: int = 0) -> list[tuple[int, int]]:
    """Row ranges whose pairs with all later rows fit into a chunk; none reaches over the boundary."""
    step = max(1, CHUNK_VALUES // max(count, 1))
    starts = [*range(0, boundary, step), *range(boundary, count, step)]
    return [(start, min(start + step, boundary if start < boundary else count)) for start in starts]


def _distances(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    return np.clip(1 - x @ (x if y is None else y).T, 0, 2)


def _counts(distances: np.ndarray) -> np.ndarray:
    bins = np.minimum((distances.ravel() * (BINS / 2)).astype(np.intp), BINS - 1)
    return np.bincount(bins, minlength=BINS)


def effective_rank(x: np.ndarray) -> float:
    """How many directions the vectors use evenly: exp of the entropy of the singular values' shares.

    Source: Roy and Vetterli (EUSIPCO 2007); over embeddings Garrido et al., RankMe (ICML 2023). Unlike there
    the mean is taken out first, so that the offset of a modality from the origin is no direction. At most
    min(n - 1, E); 0 where all vectors are one.
    """
    values = np.asarray(x, np.float64)
    values = values - values.mean(0)
    small = values.T @ values if values.shape[1] <= len(values) else values @ values.T
    powers = np.maximum(np.linalg.eigvalsh(small), 0)
    lengths = np.sqrt(powers[powers > 1e-12 * max(powers.max(initial=0), 1e-6)])
    if not len(lengths):
        return 0.0
    shares = lengths / lengths.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
