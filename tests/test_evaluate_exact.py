"""The exact index gives float64's own answer, whatever int8 and float32 lose on the way."""

import numpy as np
import pytest

from evaluate.exact import ExactIndex, search_double
from evaluate.index import unit


@pytest.fixture(autouse=True, params=[0, 10**9], ids=["codes", "float32"])
def few(monkeypatch, request) -> int:
    """Small collections are searched without codes: every promise holds either way."""
    monkeypatch.setattr("evaluate.exact.FEW", request.param)
    return request.param


def naive(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows by float64 products; equal ones by row."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def gaussian(rng: np.random.Generator) -> np.ndarray:
    return unit(rng.normal(size=(20_000, 96)))


def clustered(rng: np.random.Generator) -> np.ndarray:
    """Clusters in order: the best come late for some queries, early for others."""
    centres = rng.normal(size=(40, 96)).repeat(500, 0)
    return unit(centres + 0.3 * rng.normal(size=centres.shape))


def outlying(rng: np.random.Generator) -> np.ndarray:
    """A few vectors a thousand times longer, which no common scale can hold."""
    vectors = rng.normal(size=(20_000, 96)).astype(np.float32)
    vectors[[7, 19_000]] *= 1000
    return vectors


def offset(rng: np.random.Generator) -> np.ndarray:
    """One dimension large in all vectors, as CLIP's have it."""
    return unit(rng.normal(size=(20_000, 96)) + 20 * np.eye(96)[5])


@pytest.mark.parametrize("make", [gaussian, clustered, outlying, offset])
@pytest.mark.parametrize("k", [1, 10])
def test_rows_are_those_of_float64(make, k: int) -> None:
    rng = np.random.default_rng(0)
    vectors = make(rng).astype(np.float32)
    queries = np.concatenate([vectors[::500] + 0.05, rng.normal(size=(30, 96))]).astype(np.float32)
    index = ExactIndex(vectors)
    scores, rows = index.search(queries, k)
    np.testing.assert_array_equal(rows, naive(vectors, queries, k))
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), rtol=1e-4, atol=1e-5)
    assert index.fallbacks == 0


def test_equal_vectors_come_in_order_and_count_as_fallbacks(few: int) -> None:
    """A collapsed model: no bound can tell 9,000 equal vectors apart."""
    rng = np.random.default_rng(1)
    vectors = np.concatenate(
        [unit(rng.normal(size=(1, 64))).repeat(9000, 0), unit(rng.normal(size=(99, 64)))]
    )
    index = ExactIndex(vectors)
    _, rows = index.search(np.concatenate([vectors[:3], -vectors[:1]]), 5)
    np.testing.assert_array_equal(rows[:3], np.arange(5)[None].repeat(3, 0))
    assert rows[3].min() >= 9000
    assert index.fallbacks == 0 if few else 3 <= index.fallbacks <= 4


def test_near_ties_are_ordered_by_float64() -> None:
    """Pairs whose scores differ by 1e-8, less than float32 can see."""
    rng = np.random.default_rng(2)
    vectors = unit(rng.normal(size=(5000, 64)))
    vectors[1::2] = vectors[::2]
    vectors[1::2, 3] += np.float32(6e-8)
    queries = unit(rng.normal(size=(50, 64)))
    np.testing.assert_array_equal(ExactIndex(vectors).search(queries, 8)[1], naive(vectors, queries, 8))


@pytest.mark.parametrize("native", [True, False])
def test_without_native_int8_it_is_as_exact(monkeypatch, native: bool) -> None:
    monkeypatch.setattr("evaluate.exact.native_int8", lambda: native)
    rng = np.random.default_rng(3)
    vectors = unit(np.round(rng.normal(size=(3000, 33)), 1))  # 3,000 and 33: nothing is a round number
    vectors[2000:2100] = vectors[7]
    queries = np.concatenate([vectors[:40], vectors[2000:2001]])
    np.testing.assert_array_equal(ExactIndex(vectors).search(queries, 9)[1], naive(vectors, queries, 9))


def test_any_depth_and_size() -> None:
    rng = np.random.default_rng(4)
    vectors, queries = unit(rng.normal(size=(70, 8))), unit(rng.normal(size=(3, 8)))
    for count in (1, 2, 70):
        for k in (1, 3, 70):
            _, rows = ExactIndex(vectors[:count]).search(queries, k)
            np.testing.assert_array_equal(rows, naive(vectors[:count], queries, k))
    assert ExactIndex(vectors).search(queries[:0], 4)[1].shape == (0, 4)


def test_the_definition_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.5, 0.5]], np.float32)
    scores, rows = search_double(vectors, np.array([[1, 0], [0, 2]], np.float32), 3)
    assert rows.tolist() == [[0, 2, 3], [1, 3, 0]]
    assert scores.tolist() == [[1, 1, 0.5], [2, 1, 0]]


def test_what_was_added_is_found_as_if_it_had_been_there(tmp_path) -> None:
    """Also what the old scale cannot hold, and through files."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(6000, 32)).astype(np.float32)
    vectors[5900:] *= 50
    index = ExactIndex(vectors[:5000])
    index.extend(vectors)
    index.save(tmp_path)
    queries = rng.normal(size=(20, 32)).astype(np.float32)
    for one in (index, ExactIndex(vectors, tmp_path)):
        np.testing.assert_array_equal(one.search(queries, 10)[1], naive(vectors, queries, 10))
    assert len(index) == 6000
