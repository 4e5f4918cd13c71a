"""How published code counts ties and missing clips, by name, for numbers that must match a paper's.

Ours (:func:`evaluate.metrics.retrieval_metrics`) is the expectation over the orders of tied items. The others
agree with it where nothing ties; where much does they do not: one point for all is 100 % to ``optimistic``.
"""

from collections.abc import Callable, Sequence

import numpy as np

from evaluate.metrics import RECALL_AT, Ranks, retrieval_metrics

Scores = dict[str, float]


def expected(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> Scores:
    """The expectation over the orders of tied items; chance for a collapsed model."""
    return retrieval_metrics(ranks, recall_at)


def averaged(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> Scores:
    """Multi-SK and Everything-At-Once: one rank a query, the mean of the tied places.

    A fractional rank counts for R@k up to k + 1/2 (for R@1 it must be 1).
    """
    places = ranks.expected()
    recalls = {f"R@{k}": float(np.mean(places == 1 if k == 1 else places < k + 1)) for k in recall_at}
    return recalls | {"MedR": float(np.median(places)), "MeanR": float(np.mean(places))}


def optimistic(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> Scores:
    """The best of the tied places."""
    return _of_places(np.asarray(ranks.above) + 1, len(ranks), recall_at)


def every_tied(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> Scores:
    """CLIP-ViP and CMVRA: every tied place is a query of its own, and the denominator grows with them."""
    places = _all_places(ranks)
    return _of_places(places, len(places), recall_at)


def every_tied_once(ranks: Ranks, recall_at: Sequence[int] = RECALL_AT) -> Scores:
    """AVLnet: every tied place is a hit of its own, divided by the number of queries: may exceed 1."""
    return _of_places(_all_places(ranks), len(ranks), recall_at)


CONVENTIONS: dict[str, Callable[[Ranks, Sequence[int]], Scores]] = {
    "expected": expected,
    "multi-sk": averaged,
    "optimistic": optimistic,
    "clip-vip": every_tied,
    "avlnet": every_tied_once,
}


def count_missing(scores: Scores, found: int, complete: int) -> Scores:
    """Queries whose clip is missing count as misses in R@k; MedR and MeanR stay those of the others.

    So Multi-SK (968 of MSR-VTT's 1,000 test clips, 3,339 of YouCook2's 3,350).

    Args:
        scores: Of the ``found`` queries.
        found: Queries with a clip.
        complete: Queries of the benchmark.

    Raises:
        ValueError: If there are fewer of them than were found.
    """
    if complete < found:
        raise ValueError(f"count_missing: {found} queries have a clip, more than the benchmark's {complete}")
    return {
        name: value * found / complete if name.startswith("R@") else value for name, value in scores.items()
    }


def average_by_id(ids: Sequence[str], vectors: np.ndarray, skip: str = "-1") -> tuple[list[str], np.ndarray]:
    """Several rows of one video -> their plain mean (not of unit vectors), in order of the ids.

    Args:
        ids: (n,).
        vectors: (n, D).
        skip: Rows with this id belong to no video.

    Returns:
        The ids, sorted as strings, and (len(ids), D).
    """
    names = np.asarray(ids, str)
    kept = names != skip
    unique, place = np.unique(names[kept], return_inverse=True)
    sums = np.zeros((len(unique), vectors.shape[1]), np.float64)
    np.add.at(sums, place, vectors[kept])
    means = sums / np.bincount(place, minlength=len(unique))[:, None]
    return unique.tolist(), means.astype(vectors.dtype)


def _all_places(ranks: Ranks) -> np.ndarray:
    """Every place (from 1) of each query's tied group, one after the other."""
    tied = np.asarray(ranks.tied)
    within = np.arange(int(tied.sum())) - np.repeat(np.cumsum(tied) - tied, tied)
    return np.repeat(np.asarray(ranks.above), tied) + within + 1


def _of_places(places: np.ndarray, queries: int, recall_at: Sequence[int]) -> Scores:
    recalls = {f"R@{k}": float(np.sum(places <= k) / queries) for k in recall_at}
    return recalls | {"MedR": float(np.median(places)), "MeanR": float(np.mean(places))}
