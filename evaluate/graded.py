"""Retrieval with many answers, more or less relevant: mAP and nDCG, with fair ties.

The expectations over the orders of tied items are those of McSherry & Najork 2008 (ECIR), section 2.
EPIC-Kitchens-100 multi-instance retrieval (Damen et al. 2022, IJCV; LaViLa evaluates so) averages precision
at the fully relevant items (relevance 1), where partly relevant ones above them count by their relevance, and
cuts nDCG at the number of items with any relevance.
"""

import numpy as np
from numpy.typing import ArrayLike


def average_precision(scores: ArrayLike, relevance: ArrayLike, tolerance: float = 0.0) -> np.ndarray:
    """(Q,) mean over a query's fully relevant items of the precision at their places, expected over ties.

    Args:
        scores: (Q, G), higher is better.
        relevance: (Q, G) in [0, 1], or bool. Precision at a place is the mean relevance down to it.
        tolerance: Neighbours in the ranking whose scores are this close tie.

    Returns:
        NaN for queries without a fully relevant item.
    """
    values, gains = np.asarray(scores, np.float64), np.asarray(relevance, np.float64)
    return np.array([_one_precision(*row, tolerance) for row in zip(values, gains, strict=True)])


def ndcg(scores: ArrayLike, relevance: ArrayLike, cut: bool = True, tolerance: float = 0.0) -> np.ndarray:
    """(Q,) discounted gain over the ideal order's, gain = relevance, discount = log2(place + 1).

    Args:
        scores: (Q, G), higher is better.
        relevance: (Q, G), at least 0.
        cut: Only as many places count as items have a relevance above 0.
        tolerance: As in :func:`average_precision`.

    Returns:
        NaN for queries without a relevant item.
    """
    values, gains = np.asarray(scores, np.float64), np.asarray(relevance, np.float64)
    return np.array([_one_gain(*row, cut, tolerance) for row in zip(values, gains, strict=True)])


def multi_instance_retrieval(scores: ArrayLike, relevance: ArrayLike) -> dict[str, float]:
    """EPIC-Kitchens-100's metrics, both ways and their mean: ``mAP_v2t``, ``mAP_t2v``, ``mAP``, ``nDCG``...

    Args:
        scores: (videos, texts).
        relevance: (videos, texts) in [0, 1].
    """
    values, gains = np.asarray(scores), np.asarray(relevance)
    found: dict[str, float] = {}
    for name, one in (("mAP", average_precision), ("nDCG", ndcg)):
        both = [float(np.nanmean(one(values, gains))), float(np.nanmean(one(values.T, gains.T)))]
        found |= {f"{name}_v2t": both[0], f"{name}_t2v": both[1], name: float(np.mean(both))}
    return found


def multiple_choice(scores: ArrayLike, answers: ArrayLike, kinds: ArrayLike) -> dict[int, float]:
    """Kind of question -> share answered right (EgoMCQ: 1 inter-video, 2 intra-video, or as the file says).

    Args:
        scores: (n, choices), a dot product of un-normalised vectors in LaViLa.
        answers: (n,) index of the right choice.
        kinds: (n,).
    """
    from evaluate.metrics import first_relevant

    values, right, kind = np.asarray(scores), np.asarray(answers), np.asarray(kinds)
    hits = first_relevant(values, right[:, None] == np.arange(values.shape[1])).within(1)
    return {int(one): float(hits[kind == one].mean()) for one in np.unique(kind)}


def mean_class_accuracy(confusion: ArrayLike, empty_counts: bool = False) -> float:
    """Mean over classes of the share found, from (C, C) counts (row = true class).

    Args:
        confusion: Counts.
        empty_counts: Count a class without examples as 0, as LaViLa does; else leave it out.
    """
    matrix = np.asarray(confusion, np.float64)
    totals = matrix.sum(1)
    shares = np.divide(np.diag(matrix), totals, out=np.zeros(len(matrix)), where=totals > 0)
    return float(shares.mean() if empty_counts else shares[totals > 0].mean())


def _groups(scores: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Descending order of the items, and the first place of each group of ties in it."""
    order = np.argsort(-scores, kind="stable")
    drops = -np.diff(scores[order]) > tolerance
    return order, np.concatenate([[0], np.flatnonzero(drops) + 1])


def _one_precision(scores: np.ndarray, gains: np.ndarray, tolerance: float) -> float:
    total = int((gains == 1).sum())
    if not total:
        return float("nan")
    order, starts = _groups(scores, tolerance)
    hits, gained = (np.add.reduceat(values[order], starts) for values in ((gains == 1) * 1.0, gains))
    sizes = np.diff(np.append(starts, len(order)))
    before = np.cumsum(gained) - gained
    # Place i of a group is a hit with probability hits / size; given that, the i - 1 places above it in the
    # group hold their share of what the group's other size - 1 items gain.
    inside = np.arange(len(order)) - np.repeat(starts, sizes)
    others = np.divide(gained - 1, sizes - 1, out=np.zeros(len(hits)), where=sizes > 1)
    above = np.repeat(before, sizes) + inside * np.repeat(others, sizes) + 1
    chance = np.repeat(hits / sizes, sizes)
    return float((chance * above / np.arange(1, len(order) + 1)).sum() / total)


def _one_gain(scores: np.ndarray, gains: np.ndarray, cut: bool, tolerance: float) -> float:
    count = int((gains > 0).sum())
    if not count:
        return float("nan")
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    if cut:
        discounts[count:] = 0
    order, starts = _groups(scores, tolerance)
    sizes = np.diff(np.append(starts, len(order)))
    means = np.add.reduceat(gains[order], starts) / sizes
    found = (np.repeat(means, sizes) * discounts).sum()
    return float(found / (np.sort(gains)[::-1] * discounts).sum())
