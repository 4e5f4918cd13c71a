"""Scores of retrieval and classification as pure functions of arrays; equal scores are treated fairly.

Where items tie, a ranking is one draw among all orders of the tied items. Every number here is the exact
expectation (in closed form) over those orders, so that a collapsed model, which scores everything alike,
scores exactly at chance: R@k = k / G and MeanR = (G + 1) / 2 for one relevant item among G. Breaking ties by
position (argsort) or optimistically (counting only strictly better items) rewards or punishes by luck.

Shapes: Q queries, G gallery items, C classes, n examples. Rates are fractions in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RECALL_AT = (1, 5, 10, 50)


@dataclass(frozen=True)
class Ranks:
    """Where each query's first relevant item stands, as counts from which every rank statistic follows.

    Attributes:
        above: (Q,) irrelevant items that score better than the best relevant one.
        tied: (Q,) items of the group that ties with the best relevant one, itself included.
        relevant: (Q,) relevant items within that group, at least 1.
    """

    above: np.ndarray
    tied: np.ndarray
    relevant: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(self.above), np.shape(self.tied), np.shape(self.relevant)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"Ranks: above, tied and relevant have shapes {shapes}; all must be (Q,)")
        if np.any(np.asarray(self.relevant) < 1) or np.any(np.asarray(self.tied) < np.asarray(self.relevant)):
            raise ValueError(
                "Ranks: each query needs 1 <= relevant <= tied; leave out queries without an answer"
            )

    def __len__(self) -> int:
        return len(self.above)

    def expected(self) -> np.ndarray:
        """(Q,) expected rank, from 1: ``above + (tied + 1) / (relevant + 1)``."""
        return self.above + (self.tied + 1) / (self.relevant + 1)

    def within(self, k: int) -> np.ndarray:
        """(Q,) probability that the first relevant item is among the best ``k``.

        With j = k - above places left for the tied group it is 1 - C(tied - relevant, j) / C(tied, j).
        """
        places = k - np.asarray(self.above, np.int64)
        missed = np.ones(len(self), np.float64)
        for drawn in range(max(0, min(k, int(places.max(initial=0))))):
            left = np.maximum(self.tied - drawn, 1)
            irrelevant_left = np.maximum(self.tied - self.relevant - drawn, 0)
            missed = np.where(drawn < places, missed * (irrelevant_left / left), missed)
        return 1.0 - missed

    def median(self) -> np.ndarray:
        """(Q,) median rank over the tied group's orders; the expected rank where one item is relevant."""
        lower = self._quantile(above_half=False)
        upper = self._quantile(above_half=True)
        return self.above + (lower + upper) / 2

    def _quantile(self, above_half: bool) -> np.ndarray:
        """(Q,) smallest j with P(first relevant within j) >= 1/2 (or > 1/2), by bisection."""
        low, high = np.ones(len(self), np.int64), np.asarray(self.tied, np.int64).copy()
        slack = 1e-9 if above_half else -1e-9  # an exact one half must not be decided by rounding
        while np.any(low < high):
            middle = (low + high) // 2
            enough = 1.0 - np.exp(self._log_missed(middle)) >= 0.5 + slack
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
            high = np.maximum(low, high)
        return low

    def _log_missed(self, j: np.ndarray) -> np.ndarray:
        """(Q,) log of C(tied - j, relevant) / C(tied, relevant): no relevant item among j of the group."""
        from scipy.special import gammaln

        left = np.asarray(self.tied - j, np.float64)
        possible = left >= self.relevant
        left = np.where(possible, left, self.tied)
        log = gammaln(left + 1) - gammaln(left - self.relevant + 1)
        log -= gammaln(self.tied + 1.0) - gammaln(self.tied - self.relevant + 1.0)
        return np.where(possible, log, -np.inf)


def first_relevant(scores: ArrayLike, relevant: ArrayLike, tolerance: float = 0.0) -> Ranks:
    """Score matrix -> where each query's first relevant item stands.

    Args:
        scores: (Q, G), higher is better, finite.
        relevant: (Q, G) bool; each query needs at least one.
        tolerance: Scores this close to the best relevant one count as tied with it (matrix products round
            equal vectors differently by position).

    Raises:
        ValueError: On shapes that differ, non-finite scores, or a query without a relevant item.
    """
    values, mask = np.asarray(scores), np.asarray(relevant, bool)
    if values.ndim != 2 or values.shape != mask.shape:
        raise ValueError(
            f"first_relevant: scores {values.shape} and relevant {mask.shape} must be one (Q, G)"
        )
    if not np.isfinite(values).all():
        raise ValueError("first_relevant: scores contain NaN or infinity; such a ranking has no meaning")
    if not mask.any(axis=1).all():
        missing = int(np.flatnonzero(~mask.any(axis=1))[0])
        raise ValueError(f"first_relevant: query {missing} has no relevant item; leave such queries out")
    best = np.where(mask, values, -np.inf).max(axis=1, keepdims=True)
    level = np.abs(values - best) <= tolerance
    return Ranks((values > best + tolerance).sum(1), level.sum(1), (level & mask).sum(1))


def chance_ranks(gallery: ArrayLike, relevant: ArrayLike) -> Ranks:
    """What a model that scores everything alike gets: ``gallery`` items tied, ``relevant`` of them right.

    Args:
        gallery: (Q,) items that each query is compared with.
        relevant: (Q,) how many of them are relevant.
    """
    tied, right = np.asarray(gallery, np.int64), np.asarray(relevant, np.int64)
    return Ranks(np.zeros_like(tied), tied, right)


def retrieval_metrics(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Ranks -> ``R@k`` (fractions), ``MedR`` and ``MeanR`` (ranks from 1), expectations over ties.

    ``MeanR`` averages expected ranks; ``MedR`` is the median over queries of each query's median rank, which
    is its expected rank when one item is relevant (Multi-SK's "averaging" convention).

    Raises:
        ValueError: If there is no query.
    """
    if not len(ranks):
        raise ValueError("retrieval_metrics: no query to average over")
    recalls = {f"R@{k}": float(ranks.within(k).mean()) for k in recall_at}
    return recalls | {"MedR": float(np.median(ranks.median())), "MeanR": float(ranks.expected().mean())}


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Share of ``predictions`` (n,) that equal ``labels`` (n,). Chance: 1 / C for balanced classes."""
    predicted, truth = _same_length(predictions, labels)
    return float(np.mean(predicted == truth))


def balanced_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the classes present in ``labels`` of the share found. Chance: 1 / C whatever the balance."""
    predicted, truth = _same_length(predictions, labels)
    return class_average(predicted == truth, truth)


def class_average(values: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the class's mean of ``values`` (n,): balanced accuracy of per-example hits."""
    hits, truth = _same_length(values, labels)
    _, index, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(index, weights=hits.astype(np.float64)) / counts))


def class_weights(labels: ArrayLike) -> np.ndarray:
    """(n,) weights of mean 1 under which a plain mean is the classes' mean."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(index) / (len(counts) * counts[index])


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int) -> np.ndarray:
    """(C, C) counts, row = true class, column = predicted class.

    Raises:
        ValueError: If a label or prediction lies outside 0 .. classes - 1.
    """
    truth, predicted = _same_length(labels, predictions)
    _within_classes(truth, classes)
    _within_classes(predicted, classes)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def top_k_hits(scores: ArrayLike, labels: ArrayLike, k: int = 1, tolerance: float = 0.0) -> np.ndarray:
    """(n,) probability that the true class is among the best ``k``, ties fairly: all equal scores give k / C.

    Args:
        scores: (n, C), higher is better.
        labels: (n,) in 0 .. C - 1.
        k: How many guesses.
        tolerance: Scores this close to the true class's count as tied.
    """
    values, truth = np.asarray(scores), np.asarray(labels)
    _within_classes(truth, values.shape[1])
    return first_relevant(values, truth[:, None] == np.arange(values.shape[1]), tolerance).within(k)


def sole_best(scores: ArrayLike, tolerance: float = 0.0) -> np.ndarray:
    """(n, C) scores -> (n,) the class that scores best; -1 where several do."""
    values = np.asarray(scores)
    best = values >= values.max(axis=1, keepdims=True) - tolerance
    return np.where(best.sum(axis=1) == 1, best.argmax(axis=1), -1)


def expected_confusion(scores: ArrayLike, labels: ArrayLike, tolerance: float = 0.0) -> np.ndarray:
    """(C, C) confusion of the arg max, a tie shared equally among its classes; rows sum to class counts."""
    values, truth = np.asarray(scores), np.asarray(labels)
    classes = values.shape[1]
    _within_classes(truth, classes)
    best = values >= values.max(axis=1, keepdims=True) - tolerance
    matrix = np.zeros((classes, classes), np.float64)
    np.add.at(matrix, truth, best / best.sum(axis=1, keepdims=True))
    return matrix


def _same_length(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.asarray(first), np.asarray(second)
    if left.ndim != 1 or left.shape != right.shape or not len(left):
        raise ValueError(f"metrics: shapes {left.shape} and {right.shape} must be one non-empty (n,)")
    return left, right


def _within_classes(labels: np.ndarray, classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"metrics: class {int(outside[0])} is outside 0..{classes - 1}")
