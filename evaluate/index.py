"""Search among unit vectors: what an index is, the plain one, and exact, tie-fair ranks out of its answers.

A ranking needs the place of the first relevant item, not the whole order. So each query first gets its best
few neighbours; only those whose relevant item (or its ties) may lie deeper are asked again, eight times
deeper. A good model is ranked by one shallow search, a collapsed one by a full search, with equal results.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluate import INDEXES
from evaluate.gpu import GPU_DEPTH, gpu_flat
from evaluate.metrics import Ranks
from evaluate.shortlist import contiguous, search_all, search_allowed
from store.errors import UnknownNameError

FIRST_DEPTH = 64
DEEPER = 8
CHUNK_VALUES = 8_000_000  # scores of one search that are in memory at a time
TOLERANCE = 1e-6  # float32 inner products of equal unit vectors differ by as much, depending on their place


class Index(Protocol):
    """Vectors that can be searched by inner product.

    Made with ``Index(vectors)``, (n, E) float32 that may be memory-mapped, or with ``Index(vectors, folder)``
    out of what ``save`` left there.

    Attributes:
        exact: Whether the best k are surely found.
        vectors: Those.
    """

    exact: bool
    vectors: np.ndarray

    def __len__(self) -> int:
        """N."""
        ...

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query.

        Args:
            queries: (Q, E).
            k: How many; fewer where there are fewer.
            allowed: int64, ascending: only these rows; None: all.

        Returns:
            scores (Q, k) in descending order, and rows (Q, k) int64; -inf and -1 where no more was found.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write everything but the vectors into a folder."""
        ...

    def extend(self, vectors: np.ndarray) -> None:
        """Take in the rows of ``vectors`` beyond the first n, which are as before."""
        ...

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves, by the default options."""
        ...


class FlatIndex:
    """Exact float32 inner products with everything, as ``faiss.IndexFlatIP``, the vectors where they are."""

    exact = True

    def __init__(self, vectors: np.ndarray, folder: Path | None = None):
        self.vectors = vectors if isinstance(vectors, np.memmap) else contiguous(vectors)
        self._gpu = gpu_flat(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Index`."""
        queries = contiguous(queries)
        if allowed is not None:
            return search_allowed(self.vectors, queries, min(k, len(allowed)), allowed)
        k = min(k, len(self))
        if self._gpu is not None and k <= GPU_DEPTH:
            scores, rows = self._gpu.search(queries, k)
            return scores, rows
        return search_all(self.vectors, queries, k)

    def save(self, folder: Path) -> None:
        """There is nothing beside the vectors."""

    def extend(self, vectors: np.ndarray) -> None:
        """See :class:`Index`."""
        self.vectors = vectors
        self._gpu = gpu_flat(vectors)

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """See :class:`Index`."""
        return 0


def index_class(name: str) -> Any:
    """The class ``name`` of ``INDEXES``.

    Raises:
        UnknownNameError: For a name that is not there.
    """
    if name not in INDEXES:
        raise UnknownNameError("--index", "index", name, sorted(INDEXES))
    module, attribute = INDEXES[name].split(":")
    return getattr(import_module(module), attribute)


def make_index(
    name: str, vectors: np.ndarray, folder: Path | None = None, options: Mapping[str, int] | None = None
) -> Index:
    """The index ``name`` of ``INDEXES`` over (n, E) vectors, built, or read from a folder.

    Raises:
        UnknownNameError: For a name or an option that is not there.
    """
    made = index_class(name)
    known = {**getattr(made, "OPTIONS", {}), **(made.sized(1) if hasattr(made, "sized") else {})}
    for option in options or {}:
        if option not in known:
            raise UnknownNameError(f"--index {name}", "option", option, sorted(known))
    index: Index = made(vectors, folder, **(options or {}))
    return index


Marks = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Query rows (q,), gallery rows (q, k) -> (q, k) bool."""


def ranked(
    index: Index, queries: np.ndarray, relevant: Marks, excluded: Marks, tolerance: float = TOLERANCE
) -> Ranks:
    """Where each query's first relevant item stands among all items of the index.

    An approximate index that never finds the answer puts it last.

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
            none = items < 0  # an approximate index found no more
            hits, out = relevant(rows, items) & ~none, excluded(rows, items) | none
            counts, resolved = _counts(scores, hits & ~out, out, tolerance, depth == len(index))
            found[:, rows[resolved]] = counts[:, resolved]
            unresolved.append(rows[~resolved])
        open_rows = np.concatenate(unresolved)
        if depth == len(index) and len(open_rows) and not index.exact:
            found[:, open_rows] = np.array([[len(index) - 1], [1], [1]])
            break
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
