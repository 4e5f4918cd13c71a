"""95 % intervals: what another draw of test clips (or queries) could have given.

They cover the choice of test clips, not of training subjects or seeds. With few test subjects the truth is
wider: clips of one person resemble each other.
"""

from collections.abc import Callable

import numpy as np

from evaluate.metrics import class_weights

RESAMPLES = 1000
Z = 1.959964  # standard deviations that hold 95 % of a normal distribution
CHUNK_VALUES = 20_000_000


def share_interval(
    hits: np.ndarray, classes: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Wilson's score interval of a share: unlike the bootstrap it does not collapse at 0 and 1.

    Source: Wilson, JASA 22 (1927). With ``classes`` the share is the classes' mean (balanced accuracy): a
    weighted mean, taken as a share of (sum w)^2 / sum(w^2) examples (Kish's effective number).
    Hits between 0 and 1 (fair ties) vary less than coin flips, so the interval is wide rather than narrow.

    Args:
        hits: (n,) in [0, 1].
        classes: (n,) of the examples; None: plain mean.
        weights: (n,), instead of classes.

    Raises:
        ValueError: For no hits.
    """
    if not len(hits):
        raise ValueError("share_interval: no examples")
    if weights is None:
        weights = np.ones(len(hits)) if classes is None else class_weights(classes)
    share, n = float(np.average(hits, weights=weights)), float(weights.sum() ** 2 / np.sum(weights**2))
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray] = np.mean, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of a statistic of (n,) values (``np.mean`` or ``np.median``): for ranks.

    Raises:
        ValueError: For no values.
    """
    if not len(values):
        raise ValueError("bootstrap_interval: no values")
    rng = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    step = max(1, CHUNK_VALUES // len(values))
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        drawn = values[rng.integers(len(values), size=(count, len(values)))]
        found[start : start + count] = statistic(drawn, axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
