"""Search among unit vectors: an exact FAISS index, and exact, tie-fair ranks out of its answers.

A ranking needs the place of the first relevant item, not the whole order. So each query first gets its best
few neighbours; only those whose relevant item (or its ties) may lie deeper are asked again, eight times
deeper. A good model is ranked by one shallow search, a collapsed one by a full search, with equal results.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np

from evaluate import INDEXES
from evaluate.metrics import Ranks
from store.errors import UnknownNameError

FIRST_DEPTH = 64
DEEPER = 8
CHUNK_VALUES = 8_000_000  # scores of one search that are in memory at a time
TOLERANCE = 1e-6  # float32 inner products of equal unit vectors differ by as much, depending on their place


class Index(Protocol):
    """Vectors that can be searched by inner product; made with ``Index(vectors (G, E))``."""

    def __len__(self) -> int:
        """G."""
        ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, E) -> scores (Q, k) in descending order, and rows (Q, k) int64."""
        ...


class FlatIndex:
    """Exact inner products with everything (``faiss.IndexFlatIP``)."""

    def __init__(self, vectors: np.ndarray):
        import faiss

        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Index`; k is at most G."""
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return scores, rows


def make_index(name: str, vectors: np.ndarray) -> Index:
    """The index ``name`` of ``INDEXES`` over (G, E) vectors.

    Raises:
        UnknownNameError: For a name that is not there.
    """
    if name not in INDEXES:
        raise UnknownNameError("--index", "index", name, sorted(INDEXES))
    module, attribute = INDEXES[name].split(":")
    made: Index = getattr(import_module(module), attribute)(vectors)
    return made


Marks = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Query rows (q,), gallery rows (q, k) -> (q, k) bool."""


def ranked(
    index: Index, queries: np.ndarray, relevant: Marks, excluded: Marks, tolerance: float = TOLERANCE
) -> Ranks:
    """Where each query's first relevant item stands among all items of the index.

    Args:
        index: Holds the gallery.
        queries: (Q, E); each has at least one relevant item that is not excluded.
        relevant: Which gallery items answer which queries.
        excluded: Which items do not take part (the query itself).
        tolerance: Scores this close count as tied.
    """
    found = np.zeros((3, len(queries)), np.int64)
    open_rows, depth = np.arange(len(queries)), min(FIRST_DEPTH, len(index))
    while len(open_rows):
        unresolved = []
        step = max(1, CHUNK_VALUES // depth)
        for start in range(0, len(open_rows), step):
            rows = open_rows[start : start + step]
            scores, items = index.search(queries[rows], depth)
            hits, out = relevant(rows, items), excluded(rows, items)
            counts, resolved = _counts(scores, hits & ~out, out, tolerance, depth == len(index))
            found[:, rows[resolved]] = counts[:, resolved]
            unresolved.append(rows[~resolved])
        open_rows = np.concatenate(unresolved)
        if depth == len(index) and len(open_rows):
            missing = int(open_rows[0])
            raise ValueError(f"ranked: query {missing} has no relevant item; leave such queries out")
        depth = min(depth * DEEPER, len(index))
    return Ranks(*found)


def _counts(
    scores: np.ndarray, hits: np.ndarray, out: np.ndarray, tolerance: float, complete: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(above, tied, relevant) (3, q) of the best hit's level, and which queries (q,) that settles."""
    any_hit = np.asarray(hits.any(axis=1))
    first = np.take_along_axis(scores, hits.argmax(axis=1)[:, None], axis=1)
    best = np.where(any_hit[:, None], first, np.inf)
    level = np.abs(scores - best) <= tolerance
    counts = [((scores > best + tolerance) & ~out).sum(1), (level & ~out).sum(1), (level & hits).sum(1)]
    # Settled once the worst score seen lies below the level: no deeper item can tie.
    return np.stack(counts), any_hit & (complete | (scores[:, -1] < best[:, 0] - tolerance))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, E) -> float32 rows of length 1; a zero row stays zero (and ties with everything)."""
    values = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(lengths, 1e-12)
