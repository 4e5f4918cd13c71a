"""FAISS's compact and its sub-linear indexes: they propose rows, which are scored again from the vectors.

The vectors themselves (n, E) may lie on disk; what is kept in memory is the structure. Training reads a
bounded sample, adding goes block by block. All answers carry true inner products, but some rows may be
missing among them. A filter is honoured exactly: nothing else is returned, and never fewer than there are;
the search becomes as much wider as the filter leaves less, so that it finds as much as without one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.gpu import GPU_DEPTH, gpu_copy
from evaluate.shortlist import best_of, contiguous, library, search_all, search_few, selector
from store.errors import FrameBankError

BLOCK = 32_768  # vectors added at a time
TRAINING = 65_536  # vectors that training sees at most, or
TRAINING_A_LIST = 40  # for so many a list, if that is more; FAISS wants 39
ITERATIONS = 10  # of k-means; the assignment hardly changes after them
FEW = 50_000  # rows left by a filter that are searched one by one
LEAST_PROPOSED = 64  # rows that codes propose, however few are asked for
STRUCTURE_FILE = "structure.faiss"


class SmallCollectionError(FrameBankError, ValueError):
    """Fewer vectors than an index can be trained on."""


class Structure:
    """What the indexes below share; a class says how it is made, asked, and how large it is.

    Args:
        vectors: (n, E) float32, in memory or memory-mapped.
        folder: Where ``save`` left the structure, which is memory-mapped as far as FAISS can; None: build it.
        options: Those of the class, see ``OPTIONS`` and ``sized``.

    Raises:
        SmallCollectionError: If there are too few vectors to train on.
    """

    exact = False
    on_gpu = False  # whether FAISS can search it there
    least = 1  # vectors that training needs
    OPTIONS: Mapping[str, int] = {}

    def __init__(self, vectors: np.ndarray, folder: Path | None = None, **options: int):
        faiss = library()

        self.vectors = vectors
        self.options = {**self.OPTIONS, **self.sized(len(vectors)), **options}
        if folder is None:
            self._file = None
            self._faiss = self._built()
        else:
            self._file = str(folder / STRUCTURE_FILE)
            self._faiss = faiss.read_index(self._file, faiss.IO_FLAG_MMAP)
        self._gpu = gpu_copy(self._faiss) if self.on_gpu else None

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    @classmethod
    def sized(cls, count: int) -> dict[str, int]:
        """Options that depend on how many vectors there are."""
        return {}

    def description(self, dim: int) -> str:
        """In the language of ``faiss.index_factory``."""
        raise NotImplementedError

    def prepare(self, empty: Any) -> None:
        """Settings of the FAISS index before it is trained."""

    def parameters(self, chosen: Any, depth: int, wider: float) -> Any:
        """FAISS's search parameters, with the filter's selector (or None), ``wider`` times as thorough."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the structure into ``folder``."""
        faiss = library()

        faiss.write_index(self._faiss, str(folder / STRUCTURE_FILE))

    def extend(self, vectors: np.ndarray) -> None:
        """Take in the rows of ``vectors`` beyond those that are there."""
        faiss = library()

        if self._file is not None:
            self._faiss, self._file = faiss.read_index(self._file), None  # a memory map cannot grow
        self.vectors = vectors
        self._add(self._faiss)
        self._gpu = gpu_copy(self._faiss) if self.on_gpu else None

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) in descending order, and rows (Q, k); -inf and -1 where no more was found."""
        queries = contiguous(queries)
        if allowed is not None and len(allowed) <= max(FEW, k):
            return search_few(self.vectors, queries, min(k, len(allowed)), allowed)
        k, times = min(k, len(self)), self.options["shortlist"]
        depth = k if times == 1 else min(max(k * times, LEAST_PROPOSED), len(self))
        scores, rows = best_of(self.vectors, queries, self._proposed(queries, depth, allowed), k)
        if allowed is not None and (lacking := np.flatnonzero(rows[:, -1] < 0)).size:
            scores[lacking], rows[lacking] = search_all(self.vectors, queries[lacking], k, allowed)
        return scores, rows

    def _proposed(self, queries: np.ndarray, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        chosen, wider = None, 1.0
        if allowed is not None:
            chosen, wider = selector(allowed, len(self)), len(self) / len(allowed)
        on_gpu = self._gpu is not None and allowed is None and depth <= GPU_DEPTH
        searched: Any = self._gpu if on_gpu else self._faiss
        rows: np.ndarray = searched.search(queries, depth, params=self.parameters(chosen, depth, wider))[1]
        return rows

    def _built(self) -> Any:
        faiss = library()

        count, dim = self.vectors.shape
        if count < self.least:
            raise SmallCollectionError(
                f"index: {count} vectors are too few for {type(self).__name__}, which trains on at least "
                f"{self.least}; use --index flat"
            )
        empty = faiss.index_factory(dim, self.description(dim), faiss.METRIC_INNER_PRODUCT)
        self.prepare(empty)
        most = max(TRAINING, TRAINING_A_LIST * self.options.get("lists", 0))
        empty.train(_sample(self.vectors, most))
        self._add(empty)
        return empty

    def _add(self, structure: Any) -> None:
        for at in range(structure.ntotal, len(self.vectors), BLOCK):
            structure.add(contiguous(self.vectors[at : at + BLOCK]))


class Sq8Index(Structure):
    """Everything is compared, a byte a dimension (``faiss.IndexScalarQuantizer``)."""

    OPTIONS = {"shortlist": 4}

    def description(self, dim: int) -> str:
        """See :class:`Structure`."""
        return "SQ8"

    def parameters(self, chosen: Any, depth: int, wider: float) -> Any:
        """See :class:`Structure`."""
        faiss = library()

        return faiss.SearchParameters(sel=chosen)

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves."""
        return dim


class IvfFlatIndex(Structure):
    """The vectors in lists around centres, of which the nearest few are compared (``faiss.IndexIVFFlat``).

    The lists hold the vectors, so that building keeps them all in memory; reading maps them from the file.

    Options: ``lists``; ``probes`` of them that a query visits; ``shortlist``: how many times k are proposed.
    """

    on_gpu = True
    OPTIONS = {"shortlist": 1}

    @classmethod
    def sized(cls, count: int) -> dict[str, int]:
        """See :func:`_lists`."""
        return _lists(count)

    def description(self, dim: int) -> str:
        """See :class:`Structure`."""
        return f"IVF{self.options['lists']},Flat"

    def prepare(self, empty: Any) -> None:
        """How the centres are found."""
        _plain_means(empty.cp)

    def parameters(self, chosen: Any, depth: int, wider: float) -> Any:
        """See :class:`Structure`."""
        return _probing(chosen, self.options, wider)

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves: it again, its number, its share of the centres."""
        return 4 * dim + 8 + 4 * dim * _lists(count)["lists"] / count


class IvfPqIndex(Structure):
    """The same lists with 4-bit product codes, compared by table look-ups in registers (fast-scan).

    Options: ``lists``, ``probes``, ``shortlist`` as above; ``dims`` that share a code of 4 bits.
    """

    least = 16
    OPTIONS = {"shortlist": 16, "dims": 2}

    @classmethod
    def sized(cls, count: int) -> dict[str, int]:
        """See :func:`_lists`."""
        return _lists(count)

    def description(self, dim: int) -> str:
        """See :class:`Structure`."""
        parts = max(1, dim // self.options["dims"])
        while dim % parts:
            parts -= 1
        return f"IVF{self.options['lists']},PQ{parts}x4fs"

    def prepare(self, empty: Any) -> None:
        """The same, and codes that may be learnt from few vectors."""
        _plain_means(empty.cp)
        empty.pq.cp.min_points_per_centroid = 1

    def parameters(self, chosen: Any, depth: int, wider: float) -> Any:
        """See :class:`Structure`."""
        return _probing(chosen, self.options, wider)

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves: its codes and number, its share of the centres.

        Fast-scan rounds each list up to 32 vectors, by 16 on average.
        """
        lists = _lists(count)["lists"] / count
        return dim / 2 / 2 * (1 + 16 * lists) + 8 + 4 * dim * lists


class HnswIndex(Structure):
    """A graph of near neighbours over one byte a dimension (``faiss.IndexHNSWSQ``).

    Options: ``links`` a vector on each level; ``build``, ``breadth``: how many candidates building and
    searching keep; ``shortlist``: how many times k are proposed.
    """

    OPTIONS = {"shortlist": 3, "links": 16, "build": 96, "breadth": 64}

    def description(self, dim: int) -> str:
        """See :class:`Structure`."""
        return f"HNSW{self.options['links']}_SQ8"

    def prepare(self, empty: Any) -> None:
        """How thoroughly the graph is built."""
        empty.hnsw.efConstruction = self.options["build"]

    def parameters(self, chosen: Any, depth: int, wider: float) -> Any:
        """See :class:`Structure`."""
        faiss = library()

        breadth = min(len(self), int(max(self.options["breadth"], depth) * wider))
        return faiss.SearchParametersHNSW(sel=chosen, efSearch=breadth)

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves: codes, 32 links on the ground level, some above."""
        return dim + 4 * (2 * 16 + 1) + 16


def _lists(count: int) -> dict[str, int]:
    """Four times the root of the number of vectors, as FAISS's guidelines have it; each is to hold 39."""
    lists = max(1, min(int(4 * count**0.5), count // 39))
    return {"lists": lists, "probes": min(lists, max(16, lists // 128))}


def _plain_means(clustering: Any) -> None:
    """Centres of length one, so that the nearest by product are the nearest; few iterations, no warnings."""
    clustering.spherical, clustering.niter, clustering.min_points_per_centroid = True, ITERATIONS, 1


def _probing(chosen: Any, options: Mapping[str, int], wider: float) -> Any:
    probes = min(options["lists"], int(options["probes"] * wider))
    return library().SearchParametersIVF(sel=chosen, nprobe=probes)


def _sample(vectors: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Rows to train on: all, or so many at random, in order."""
    if len(vectors) <= most:
        return contiguous(vectors)
    chosen = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
    return contiguous(vectors[np.sort(chosen)])
