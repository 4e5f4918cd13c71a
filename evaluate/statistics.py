"""Intervals of what was trained several times, and differences to a rival on the same clips.

``evaluate.intervals`` covers the draw of test clips for one model. Here hits have a row a seed, (S, n).
Test clips and seeds are both draws, so both are drawn again; test subjects are not (there are too few of
them), so that the truth about new people is wider than any of these intervals.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
MOST_COUNTS = 1 << 21  # held at a time
QUANTILES = (0.025, 0.975)


def seed_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over seeds by Student's t: (S,) -> (low, high); S = 1 gives no width.

    Raises:
        ValueError: For no values.
    """
    from scipy.stats import t

    count = len(values)
    if not count:
        raise ValueError("seed_interval: no values")
    mean = float(np.mean(values))
    if count == 1:
        return mean, mean
    reach = float(t.ppf(QUANTILES[1], count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean - reach, mean + reach


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(hits: np.ndarray, seed: int = 0) -> Interval:
    """Mean of (S, n) hits; clips, and the seeds that saw them, are drawn again."""
    return _percentiles(hits, seed)


def paired_bootstrap(hits: np.ndarray, rival: np.ndarray, seed: int = 0) -> Interval:
    """Mean of ``hits`` minus that of ``rival`` on the same clips, which are drawn together.

    What makes a clip hard for both cancels, so the interval is narrower than two separate ones suggest; the
    difference is beyond chance at the 5 % level where the interval leaves 0 out.

    Args:
        hits: (S, n) in [0, 1].
        rival: (n,), or (S', n): its mean over seeds is what is compared with.
        seed: Of the draws.

    Raises:
        ValueError: If the clips differ in number.
    """
    other = np.atleast_2d(rival).mean(axis=0)
    if hits.shape[-1] != len(other):
        raise ValueError(f"paired_bootstrap: {hits.shape[-1]} clips against {len(other)}; pair them first")
    return _percentiles(np.atleast_2d(hits) - other, seed)


def _percentiles(values: np.ndarray, seed: int) -> Interval:
    rows = np.atleast_2d(np.asarray(values, np.float64))
    if not rows.size:
        raise ValueError("bootstrap: no clips")
    seeds, clips = rows.shape
    rng = np.random.default_rng(seed)
    of_seed = _counts(rng, RESAMPLES, seeds)
    at_once = max(1, MOST_COUNTS // clips)
    sums = [
        (_counts(rng, len(part), clips) @ rows.T * part).sum(axis=1)
        for part in (of_seed[start : start + at_once] for start in range(0, RESAMPLES, at_once))
    ]
    means = np.concatenate(sums) / rows.size  # divided last: all ones give 1 exactly
    low, high = np.quantile(means, QUANTILES)
    return Interval(float(rows.mean()), float(low), float(high))


def _counts(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """How often each of ``size`` things is among as many drawn of them: (draws, size) float64."""
    places = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    counts = np.bincount(places.ravel(), minlength=draws * size)
    return counts.reshape(draws, size).astype(np.float64)
