"""Which gallery items answer which queries: by one key each (clip, label) or by pairs (texts of clips)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SameKey:
    """Relevant where the keys are equal: clip numbers or labels; a negative key matches nothing.

    Attributes:
        queries: (Q,) int64.
        gallery: (G,) int64.
    """

    queries: np.ndarray
    gallery: np.ndarray

    def __call__(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Query rows (q,), gallery rows (q, k) -> (q, k) bool."""
        wanted = self.queries[rows][:, None]
        return (self.gallery[items] == wanted) & (wanted >= 0)

    def counts(self) -> np.ndarray:
        """(Q,) relevant items of each query."""
        keys, found = np.unique(self.gallery[self.gallery >= 0], return_counts=True)
        if not len(keys):
            return np.zeros(len(self.queries), np.int64)
        place = np.minimum(np.searchsorted(keys, self.queries), len(keys) - 1)
        return np.where(keys[place] == self.queries, found[place], 0)

    def take(self, rows: np.ndarray) -> "SameKey":
        """The relevance of some of the queries."""
        return SameKey(self.queries[rows], self.gallery)


class Pairs:
    """Relevant where listed: several texts of a clip, several clips with the same text.

    Args:
        pairs: (query row, gallery row), repetitions allowed.
        queries: Q.
        gallery: G.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]], queries: int, gallery: int):
        from scipy.sparse import csr_array

        found = np.array(sorted(set(pairs)), np.int64).reshape(-1, 2)
        marks = np.ones(len(found), bool)
        self._matrix: Any = csr_array((marks, (found[:, 0], found[:, 1])), shape=(queries, gallery))

    def __call__(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Query rows (q,), gallery rows (q, k) -> (q, k) bool."""
        marks = np.zeros(items.shape, bool)
        width = max(1, 64_000_000 // max(self._matrix.shape[1], 1))  # dense rows in memory at a time
        for start in range(0, len(rows), width):
            dense = self._matrix[rows[start : start + width]].toarray()
            marks[start : start + width] = np.take_along_axis(dense, items[start : start + width], axis=1)
        return marks

    def counts(self) -> np.ndarray:
        """(Q,) relevant items of each query."""
        return np.diff(self._matrix.indptr).astype(np.int64)

    def take(self, rows: np.ndarray) -> "Pairs":
        """The relevance of some of the queries."""
        part = Pairs([], len(rows), self._matrix.shape[1])
        part._matrix = self._matrix[rows]
        return part


Relevance = SameKey | Pairs


def numbered(*names: Iterable[Any]) -> list[np.ndarray]:
    """Sequences of names -> int64 keys, equal where the names are, over all the sequences."""
    keys: dict[Any, int] = {}
    return [np.array([keys.setdefault(name, len(keys)) for name in part], np.int64) for part in names]
