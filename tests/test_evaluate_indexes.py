"""The contract of every index of the table: what it finds, what a filter leaves, files, growth."""

from pathlib import Path

import numpy as np
import pytest

from evaluate import INDEXES
from evaluate.approximate import SmallCollectionError
from evaluate.gpu import gpu_copy
from evaluate.index import index_class, make_index, unit
from store.errors import UnknownNameError

DIM, COUNT, K = 32, 3000, 10


def vectors(seed: int = 0, count: int = COUNT) -> np.ndarray:
    """Thirty clusters, where neighbours mean something."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(30, DIM))
    return unit(centres[rng.integers(0, 30, count)] + 0.7 * rng.normal(size=(count, DIM)))


def recall(found: np.ndarray, gallery: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> float:
    scores = queries @ gallery[allowed].T
    true = allowed[np.argsort(-scores, axis=1)[:, : found.shape[1]]]
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(found, true, strict=True)]))


@pytest.fixture(scope="module", params=INDEXES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def index(name: str):
    return make_index(name, vectors())


def test_it_finds_the_nearest_with_their_true_scores(index) -> None:
    gallery, queries = vectors(), vectors(1, 40)
    scores, rows = index.search(queries, K)
    assert scores.shape == rows.shape == (40, K)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ gallery.T, rows, 1), atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    assert recall(rows, gallery, queries, np.arange(COUNT)) >= (1 if index.exact else 0.95)
    assert len(index) == COUNT


@pytest.mark.parametrize("left", [4, 60, 2500])
def test_a_filter_is_a_search_of_what_it_leaves(index, monkeypatch, left: int) -> None:
    """Whether those are searched one by one, or by FAISS's selector."""
    gallery, queries = vectors(), vectors(2, 20)
    allowed = np.sort(np.random.default_rng(left).choice(COUNT, left, replace=False))
    for few in (50_000, 0):
        monkeypatch.setattr("evaluate.approximate.FEW", few)
        scores, rows = index.search(queries, K, allowed)
        found = rows[:, : min(K, left)]
        assert np.isin(found, allowed).all()
        assert recall(found, gallery, queries, allowed) >= (1 if index.exact or few else 0.95)
        np.testing.assert_allclose(
            scores[:, : min(K, left)], np.take_along_axis(queries @ gallery.T, found, 1), atol=1e-6
        )
        assert (rows[:, left:] == -1).all()
    assert index.search(queries, K, np.empty(0, np.int64))[1].shape == (20, 0)


def test_files_give_the_same_index(index, name: str, tmp_path: Path) -> None:
    index.save(tmp_path)
    again = make_index(name, vectors(), tmp_path)
    queries = vectors(3, 15)
    for one, other in zip(index.search(queries, K), again.search(queries, K), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_takes_in_what_was_added(name: str, tmp_path: Path) -> None:
    gallery, more = vectors()[:2000], vectors()
    grown = make_index(name, gallery)
    grown.save(tmp_path)
    for one in (grown, make_index(name, gallery, tmp_path)):
        one.extend(more)
        assert len(one) == COUNT
        rows = one.search(more[2500:2540], 1)[1][:, 0]
        np.testing.assert_array_equal(rows, np.arange(2500, 2540))


def test_its_size_is_as_predicted(index, name: str, tmp_path: Path) -> None:
    index.save(tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    if written:
        predicted = index_class(name).predicted_bytes(DIM, COUNT) * COUNT
        assert predicted * 0.9 <= written <= predicted * 1.1 + 10_000


def test_depth_is_limited_by_what_there_is(name: str) -> None:
    few = vectors(4, 50)
    rows = make_index(name, few).search(few[:3], 200)[1]
    assert rows.shape == (3, 50)
    np.testing.assert_array_equal(rows[:, 0], np.arange(3))


def test_too_few_vectors_to_train_on_are_an_error() -> None:
    with pytest.raises(SmallCollectionError, match=r"5 vectors are too few for IvfPqIndex.*use --index flat"):
        make_index("ivf-pq", vectors(0, 5))


def test_options_are_named() -> None:
    assert make_index("ivf-flat", vectors(), options={"lists": 3, "probes": 3}).options["lists"] == 3
    with pytest.raises(UnknownNameError, match=r"no option named 'list'.*'lists'"):
        make_index("ivf-flat", vectors(), options={"list": 3})


@pytest.mark.parametrize("name", ["flat", "ivf-flat"])
def test_a_gpu_finds_the_same(name: str) -> None:
    faiss = pytest.importorskip("faiss")
    if not faiss.get_num_gpus():
        pytest.skip("FAISS sees no GPU")
    on_gpu = make_index(name, vectors())
    assert gpu_copy(faiss.IndexFlatIP(DIM)) is not None
    assert recall(on_gpu.search(vectors(1, 40), K)[1], vectors(), vectors(1, 40), np.arange(COUNT)) >= 0.95
