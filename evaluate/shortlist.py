"""Rows proposed by something fast, scored again from the vectors themselves, which may lie on disk."""

from importlib import import_module
from typing import Any

import numpy as np


def library() -> Any:
    """The module ``faiss``, loaded when used; its annotations lack much of what it has."""
    return import_module("faiss")


def contiguous(queries: np.ndarray) -> np.ndarray:
    """(Q, E) float32 in C order, as FAISS reads it."""
    return np.ascontiguousarray(queries, np.float32)


def scores_of(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of each query with its own rows: no row is copied.

    Args:
        vectors: (n, E) float32 in C order, in memory or memory-mapped.
        queries: (Q, E) float32 in C order.
        rows: (Q, C) int64; -1: none.

    Returns:
        (Q, C) float32; -inf where there is no row.
    """
    faiss = library()

    rows = np.ascontiguousarray(rows, np.int64)
    scores = np.empty(rows.shape, np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, queries, vectors, rows)]
    faiss.fvec_inner_products_by_idx(*pointers, vectors.shape[1], len(queries), rows.shape[1])
    scores[rows < 0] = -np.inf
    return scores


def best_of(
    vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each query's rows by their true inner products: scores and rows (Q, k), as an index."""
    behind = -scores_of(vectors, queries, rows)
    if k < rows.shape[1]:
        near = np.argpartition(behind, k - 1, axis=1)[:, :k]
        behind, rows = np.take_along_axis(behind, near, 1), np.take_along_axis(rows, near, 1)
    order = np.argsort(behind, axis=1, kind="stable")
    return -np.take_along_axis(behind, order, 1), np.take_along_axis(rows, order, 1)


def search_all(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search of everything, or of the rows ``allowed`` through a FAISS selector: (Q, k) each.

    Places beyond the number of (allowed) rows hold -inf and -1.
    """
    faiss = library()

    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    arrays = (queries, vectors)
    sizes = (vectors.shape[1], len(queries), len(vectors), k)
    chosen = None if allowed is None else selector(allowed, len(vectors))
    results = (faiss.swig_ptr(scores), faiss.swig_ptr(rows))
    faiss.knn_inner_product(*(faiss.swig_ptr(array) for array in arrays), *sizes, *results, chosen)
    scores[rows < 0] = -np.inf
    return scores, rows


def search_few(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same for rows so few that a copy of them is searched faster: scores and rows (Q, k)."""
    if not len(allowed):
        return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    scores, places = search_all(np.ascontiguousarray(vectors[allowed]), queries, k)
    rows = np.full_like(places, -1)
    rows[places >= 0] = allowed[places[places >= 0]]
    return scores, rows


def search_allowed(
    vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exact search of the rows ``allowed``, by a copy or by a selector, whichever costs less."""
    few = len(allowed) <= len(vectors) // 2  # a selector skips the others one by one
    return (search_few if few else search_all)(vectors, queries, k, allowed)


def selector(allowed: np.ndarray, count: int) -> "object":
    """A FAISS selector of the rows ``allowed`` among ``count``: a bit a row."""
    faiss = library()

    marks = np.zeros(count, bool)
    marks[allowed] = True
    return faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
