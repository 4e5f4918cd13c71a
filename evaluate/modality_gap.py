"""How far apart two modalities of the same clips lie, as pure functions of unit vectors.

x and y are (n, E), row i of both is clip i. Intervals (95 %) cover the draw of clips; they come from each
clip's influence on the number, so that nothing is drawn again (the infinitesimal jackknife).
"""

from dataclasses import dataclass

import numpy as np

from evaluate.intervals import Z
from evaluate.statistics import Interval


@dataclass(frozen=True)
class Gap:
    """The modality gap.

    Attributes:
        distance: Of the two centroids, in [0, 2]. Never quite 0: see ``chance``.
        share: Of the mean squared distance between any clip in one and any clip in the other modality, the
            part that is due to the centroids, in [0, 1]. 0: one cloud; 1: each modality is a point.
        chance: What ``distance`` is on average (root mean square) where there is no gap, for so many clips:
            each clip's two vectors changed places by the toss of a coin.
    """

    distance: Interval
    share: Interval
    chance: float


def gap(x: np.ndarray, y: np.ndarray) -> Gap:
    """Liang et al., Mind the gap (NeurIPS 2022), section 2: the norm of the difference of the means.

    E |x - y|^2 of independent x and y is |difference of means|^2 + the two variances, hence the share.

    Raises:
        ValueError: For shapes that differ, or no clips.
    """
    first, second = _paired(x, y)
    mean_x, mean_y = first.mean(0), second.mean(0)
    apart = first - second
    between = mean_x - mean_y
    square = float(between @ between)
    distance = square**0.5
    # Influences on |between|^2, and on the mean squared distance of independent x and y.
    on_square = 2 * (apart @ between - square)
    lengths = (first**2).sum(1) + (second**2).sum(1)
    total = float(lengths.mean() - 2 * mean_x @ mean_y)
    on_total = lengths - 2 * (first @ mean_y + second @ mean_x)
    on_total -= on_total.mean()
    share = square / total if total > 1e-12 else 0.0  # all vectors are one: there is nothing to share
    on_share = (on_square - share * on_total) / total if total > 1e-12 else np.zeros(len(first))
    on_distance = on_square / (2 * distance) if distance > 1e-12 else np.zeros(len(first))
    return Gap(
        by_influence(distance, on_distance, 0, 2),
        by_influence(share, on_share, 0, 1),
        float(((apart**2).sum(1).mean() / len(first)) ** 0.5),
    )


def alignment(x: np.ndarray, y: np.ndarray, alpha: float = 2.0) -> Interval:
    """Mean of |x_i - y_i|^alpha: 0 where the modalities agree, 2 where they are unrelated (alpha 2).

    Source: Wang and Isola, Understanding contrastive representation learning through alignment and
    uniformity on the hypersphere (ICML 2020), section 4.1. There the pair is two crops of an image, here two
    modalities of a clip.
    """
    first, second = _paired(x, y)
    values = ((first - second) ** 2).sum(1) ** (alpha / 2)
    return by_influence(float(values.mean()), values - values.mean(), 0, 2**alpha)


def by_influence(value: float, influence: np.ndarray, lowest: float, highest: float) -> Interval:
    """A value with its 95 % interval, cut to where such values can be.

    Args:
        value: A function of the means over n clips.
        influence: (n,) each clip's first-order influence on it, of mean 0.
        lowest: Possible value.
        highest: Possible value.
    """
    reach = Z * float(np.std(influence)) / len(influence) ** 0.5
    return Interval(value, max(value - reach, lowest), min(value + reach, highest))


def _paired(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or x.shape != y.shape or not len(x):
        raise ValueError(f"modality_gap: shapes {x.shape} and {y.shape}; both must be one (n, E), n >= 1")
    return x.astype(np.float64), y.astype(np.float64)
