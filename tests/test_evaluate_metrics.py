"""Metrics by hand, against a naive float64 enumeration of tie orders, at chance, and against other code."""

import itertools
import json

import numpy as np
import pytest

from evaluate.metrics import (
    Ranks,
    accuracy,
    balanced_accuracy,
    chance_ranks,
    class_average,
    class_weights,
    confusion,
    expected_confusion,
    first_relevant,
    retrieval_metrics,
    sole_best,
    top_k_hits,
)

# Four queries over eight items; the relevant item of query i is item i. Ranks by eye: 1, 2, 8, and a tie of
# three (items 3, 5 and 6 at 7) below one better item (item 0 at 9).
SCORES = np.array(
    [
        [9, 1, 2, 3, 4, 5, 6, 7],
        [1, 8, 2, 9, 3, 4, 5, 6],
        [2, 3, 1, 4, 5, 6, 7, 8],
        [9, 1, 2, 7, 3, 7, 7, 4],
    ],
    dtype=np.float64,
)
RELEVANT = np.eye(4, 8, dtype=bool)


def enumerate_orders(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """First relevant rank in every order of the items that agrees with the scores (ties in all orders)."""
    ranks = []
    for order in itertools.permutations(range(len(scores))):
        values = scores[list(order)]
        if np.all(values[:-1] >= values[1:]):
            ranks.append(1 + int(np.flatnonzero(relevant[list(order)])[0]))
    return np.array(ranks, np.float64)


def test_ranks_by_hand() -> None:
    ranks = first_relevant(SCORES, RELEVANT)
    assert ranks.above.tolist() == [0, 1, 7, 1]
    assert ranks.tied.tolist() == [1, 1, 1, 3]
    assert ranks.expected().tolist() == [1, 2, 8, 3]
    assert ranks.within(1).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(ranks.within(2), [1, 1, 0, 1 / 3])
    np.testing.assert_allclose(ranks.within(3), [1, 1, 0, 2 / 3])
    np.testing.assert_allclose(ranks.within(8), [1, 1, 1, 1])


def test_metrics_by_hand() -> None:
    metrics = retrieval_metrics(first_relevant(SCORES, RELEVANT), recall_at=(1, 3, 5, 10))
    assert metrics == pytest.approx(
        {"R@1": 0.25, "R@3": (1 + 1 + 2 / 3) / 4, "R@5": 0.75, "R@10": 1.0, "MedR": 2.5, "MeanR": 3.5}
    )


@pytest.mark.parametrize("seed", range(12))
def test_ties_equal_the_mean_over_every_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (3, 6)).astype(np.float64)
    relevant = rng.random((3, 6)) < 0.4
    relevant[:, rng.integers(6)] = True
    ranks = first_relevant(scores, relevant)
    orders = [enumerate_orders(row, mask) for row, mask in zip(scores, relevant, strict=True)]
    np.testing.assert_allclose(ranks.expected(), [order.mean() for order in orders], atol=1e-12)
    np.testing.assert_allclose(ranks.median(), [np.median(order) for order in orders], atol=1e-12)
    for k in range(1, 7):
        np.testing.assert_allclose(ranks.within(k), [np.mean(order <= k) for order in orders], atol=1e-12)


@pytest.mark.parametrize("relevant_items", [1, 3, 40])
def test_a_collapsed_model_scores_exactly_at_chance(relevant_items: int) -> None:
    gallery = 120
    relevant = np.zeros((7, gallery), bool)
    relevant[:, -relevant_items:] = True  # last, where a stable argsort would never find them
    metrics = retrieval_metrics(first_relevant(np.full((7, gallery), 0.5), relevant))
    chance = retrieval_metrics(chance_ranks([gallery] * 7, [relevant_items] * 7))
    assert metrics == chance
    assert metrics["R@1"] == pytest.approx(relevant_items / gallery)
    assert metrics["MeanR"] == pytest.approx((gallery + 1) / (relevant_items + 1))
    rng = np.random.default_rng(0)
    drawn = np.array([rng.permutation(gallery)[:relevant_items].min() + 1 for _ in range(20_000)])
    assert metrics["R@10"] == pytest.approx(np.mean(drawn <= 10), abs=0.012)
    assert metrics["MedR"] == pytest.approx(np.median(drawn), abs=1.5)


def test_one_relevant_item_has_median_equal_to_expected_rank() -> None:
    ranks = Ranks(np.arange(50), np.arange(1, 51), np.ones(50, np.int64))
    np.testing.assert_array_equal(ranks.median(), ranks.expected())


def test_metrics_do_not_depend_on_the_order_of_items_or_queries() -> None:
    rng = np.random.default_rng(1)
    scores, relevant = np.round(rng.normal(size=(20, 30)), 1), rng.random((20, 30)) < 0.2
    relevant[:, 0] = True
    rows, columns = rng.permutation(20), rng.permutation(30)
    shuffled = first_relevant(scores[rows][:, columns], relevant[rows][:, columns])
    assert retrieval_metrics(shuffled) == pytest.approx(retrieval_metrics(first_relevant(scores, relevant)))


def test_tolerance_ties_scores_that_differ_by_rounding() -> None:
    scores = np.full((1, 100), 0.7, np.float32)
    scores[0, 1:] += np.float32(6e-8)
    relevant = np.eye(1, 100, dtype=bool)
    assert first_relevant(scores, relevant).expected()[0] == 100
    assert first_relevant(scores, relevant, tolerance=1e-6).expected()[0] == 50.5


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        (np.zeros((2, 3)), np.ones((3, 2), bool), r"scores \(2, 3\) and relevant \(3, 2\)"),
        (np.array([[np.nan, 1]]), np.ones((1, 2), bool), "NaN"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "query 1 has no relevant"),
    ],
)
def test_bad_input_is_named(scores: np.ndarray, relevant: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        first_relevant(scores, relevant)


def test_no_query_is_an_error_not_a_nan() -> None:
    empty = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="no query"):
        retrieval_metrics(Ranks(empty, empty, empty))


def test_classification_by_hand() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    assert accuracy(predictions, labels) == pytest.approx(4 / 6)
    assert balanced_accuracy(predictions, labels) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert confusion(labels, predictions, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_classification_equals_scikit_learn() -> None:
    from sklearn import metrics as reference

    rng = np.random.default_rng(2)
    labels, predictions = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert accuracy(predictions, labels) == reference.accuracy_score(labels, predictions)
    expected = reference.balanced_accuracy_score(labels, predictions)
    assert balanced_accuracy(predictions, labels) == pytest.approx(expected)
    matrix = reference.confusion_matrix(labels, predictions)
    np.testing.assert_array_equal(confusion(labels, predictions, 5), matrix)


def test_scores_without_ties_agree_with_the_arg_max() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    np.testing.assert_array_equal(top_k_hits(scores, labels), scores.argmax(1) == labels)
    np.testing.assert_array_equal(expected_confusion(scores, labels), confusion(labels, scores.argmax(1), 4))


def test_equal_class_scores_are_at_chance() -> None:
    labels = np.array([3, 3, 3, 0, 1])
    assert top_k_hits(np.zeros((5, 4)), labels).tolist() == [0.25] * 5
    assert top_k_hits(np.zeros((5, 4)), labels, k=3) == pytest.approx([0.75] * 5)
    assert expected_confusion(np.zeros((5, 4)), labels)[3].tolist() == [0.75] * 4


def test_a_class_outside_the_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"class 7 is outside 0\.\.2"):
        confusion([0, 7], [0, 1], 3)


def test_parity_with_multi_sk_and_avlnet(golden) -> None:
    """The same ranks give the conventions of both codebases; ours differ from theirs on ties only."""
    fixture = json.loads((golden / "retrieval_metrics.json").read_text())
    for case in fixture["cases"]:
        scores = np.array(case["sims"], np.float64)
        share = len(scores) / (case["complete_dataset_size"] or len(scores))
        for values, theirs in ((scores, case["multisk_averaging"]), (scores.T, case["multisk_v2t_inverse"])):
            ranks = first_relevant(values, np.eye(len(values), dtype=bool))
            ours = retrieval_metrics(ranks, recall_at=(1, 5, 10, 50))
            assert ours["MedR"] == pytest.approx(theirs["MedR"], abs=1e-9), case["name"]
            assert ours["MeanR"] == pytest.approx(theirs["MeanR"], abs=1e-9), case["name"]
            for k in (1, 5, 10, 50):
                # Theirs counts the averaged 0-based rank: == 0 for R1, < k (so up to rank k + 1/2) otherwise.
                hits = ranks.expected() == 1 if k == 1 else ranks.expected() < k + 1
                by_mean_rank = float(np.mean(hits)) * share * 100
                assert by_mean_rank == pytest.approx(theirs[f"R{k}"], abs=1e-9), (case["name"], k)
                if ranks.tied.max() == 1:
                    assert ours[f"R@{k}"] * share * 100 == pytest.approx(theirs[f"R{k}"], abs=1e-9)
            optimistic = case["multisk_optimistically"]
            if values is scores:
                assert np.mean(ranks.above < 1) * share * 100 == pytest.approx(optimistic["R1"], abs=1e-9)
                if ranks.tied.max() == 1:
                    assert ours["MedR"] == pytest.approx(case["avlnet_t2v"]["MR"], abs=1e-9)


def test_class_weights_turn_a_mean_into_the_classes_mean() -> None:
    labels, hits = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 1, 0, 1])
    weights = class_weights(labels)
    assert weights.mean() == pytest.approx(1)
    assert np.mean(hits * weights) == pytest.approx(class_average(hits, labels))


def test_the_sole_best_class_or_none() -> None:
    scores = np.array([[1, 3, 2], [3, 3, 2], [0, 0, 0], [1.0, 1.0 + 1e-7, 0]])
    assert sole_best(scores).tolist() == [1, -1, -1, 1]
    assert sole_best(scores, 1e-6).tolist() == [1, -1, -1, -1]
