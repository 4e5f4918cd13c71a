"""Exact ranks out of a FAISS index equal those of the full score matrix, however deep they lie."""

import numpy as np
import pytest

from evaluate.index import FIRST_DEPTH, TOLERANCE, FlatIndex, make_index, ranked, unit
from evaluate.metrics import Ranks, first_relevant, retrieval_metrics
from evaluate.relevance import Pairs, SameKey, numbered
from store.errors import UnknownNameError


def clusters(count: int, classes: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(7).normal(size=(classes, 16))
    return unit(centres[labels] + noise * rng.normal(size=(count, 16))), labels


def same(ours: Ranks, reference: Ranks) -> None:
    for name in ("above", "tied", "relevant"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(reference, name))


@pytest.mark.parametrize("noise", [0.3, 3.0, 30.0])  # answers at the top, in the middle, anywhere
def test_ranks_equal_those_of_the_full_matrix(noise: float) -> None:
    gallery, found = clusters(12 * FIRST_DEPTH, 60, noise, 2)
    queries, asked = clusters(150, 60, noise, 3)
    relevance = SameKey(asked, found)
    nothing = SameKey(np.full(150, -1), found)
    answered = np.flatnonzero(relevance.counts() > 0)
    ours = ranked(FlatIndex(gallery), queries[answered], relevance.take(answered), nothing.take(answered))
    reference = first_relevant(queries[answered] @ gallery.T, asked[answered, None] == found[None], TOLERANCE)
    same(ours, reference)


def test_a_collapsed_model_is_at_chance_through_the_index() -> None:
    """Equal vectors score equal but for rounding that depends on their place: ties by tolerance."""
    vector = unit(np.random.default_rng(0).normal(size=(1, 333)))
    found = np.arange(1000) // 10
    relevance, nothing = SameKey(np.arange(100), found), SameKey(np.full(100, -1), found)
    ranks = ranked(FlatIndex(np.repeat(vector, 1000, 0)), np.repeat(vector, 100, 0), relevance, nothing)
    assert retrieval_metrics(ranks)["R@1"] == pytest.approx(10 / 1000)
    assert retrieval_metrics(ranks)["MeanR"] == pytest.approx(1001 / 11)


def test_excluded_items_take_no_place() -> None:
    """Each clip would find itself first; leaving it out equals deleting it from its row."""
    vectors, labels = clusters(200, 8, 1.5, 4)
    own = np.arange(200)
    relevance, itself = SameKey(labels, labels), SameKey(own, own)
    ours = ranked(FlatIndex(vectors), vectors, relevance, itself)
    for row in range(0, 200, 17):
        others = own != row
        scores = (vectors[row : row + 1] @ vectors.T)[:, others]
        reference = first_relevant(scores, (labels == labels[row])[None, others], TOLERANCE)
        assert (ours.above[row], ours.tied[row], ours.relevant[row]) == (
            reference.above[0], reference.tied[0], reference.relevant[0],
        )  # fmt: skip


def test_a_query_without_an_answer_is_an_error() -> None:
    vectors, labels = clusters(30, 3, 1.0, 5)
    with pytest.raises(ValueError, match="query 0 has no relevant item"):
        ranked(
            FlatIndex(vectors), vectors[:1], SameKey(np.array([9]), labels), SameKey(np.array([-1]), labels)
        )


def test_pairs_and_keys_say_the_same() -> None:
    rng = np.random.default_rng(6)
    asked, found = rng.integers(0, 5, 12), rng.integers(0, 5, 40)
    keys = SameKey(asked, found)
    pairs = Pairs([(q, g) for q in range(12) for g in range(40) if asked[q] == found[g]], 12, 40)
    rows, items = np.arange(12), np.tile(np.arange(40), (12, 1))
    np.testing.assert_array_equal(pairs(rows, items), keys(rows, items))
    np.testing.assert_array_equal(pairs.counts(), keys.counts())
    some = np.array([7, 2])
    np.testing.assert_array_equal(pairs.take(some)(rows[:2], items[:2]), keys.take(some)(rows[:2], items[:2]))


def test_repeated_pairs_count_once() -> None:
    assert Pairs([(0, 1), (0, 1), (0, 0)], 2, 3).counts().tolist() == [2, 0]


def test_names_become_keys_that_agree_across_sides() -> None:
    left, right = numbered(["b", "a", "b"], ["a", "c"])
    assert left.tolist() == [0, 1, 0]
    assert right.tolist() == [1, 2]


def test_unlabelled_items_match_nothing() -> None:
    keys = SameKey(np.array([-1, 2]), np.array([-1, 2, 2]))
    assert keys.counts().tolist() == [0, 2]
    assert keys(np.array([0]), np.array([[0, 1, 2]])).tolist() == [[False, False, False]]


def test_an_unknown_index_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no index named 'flatt' \(did you mean 'flat'\?\)"):
        make_index("flatt", np.zeros((1, 2), np.float32))


def test_what_an_approximate_index_never_finds_is_last() -> None:
    """One probe of two lists: the other list's items do not exist for it."""
    side = np.repeat([1.0, -1.0], [60, 40])[:, None] * np.eye(16)[0]
    vectors = unit(side + 0.01 * clusters(100, 3, 1.0, 8)[0])
    index = make_index("ivf-flat", vectors, options={"lists": 2, "probes": 1})
    labels = np.r_[np.zeros(60, np.int64), np.ones(40, np.int64)]
    relevance, nothing = SameKey(np.array([1]), labels), SameKey(np.array([-1]), labels)
    assert ranked(index, vectors[:1], relevance, nothing).expected().tolist() == [100]
