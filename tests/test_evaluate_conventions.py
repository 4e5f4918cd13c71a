"""Conventions, graded relevance and re-scoring: by hand, against every order of the ties, golden parity."""

import itertools

import numpy as np
import pytest
from golden_fixtures import cases

from evaluate.conventions import CONVENTIONS, average_by_id, count_missing
from evaluate.graded import (
    average_precision,
    mean_class_accuracy,
    multi_instance_retrieval,
    multiple_choice,
    ndcg,
)
from evaluate.metrics import Ranks, expected_confusion, first_relevant, top_k_hits
from evaluate.rescoring import dual_softmax, inverted_softmax


def diagonal(scores):
    return first_relevant(scores, np.eye(len(scores), dtype=bool))


# Conventions ---------------------------------------------


def test_all_agree_without_ties() -> None:
    ranks = diagonal(np.random.default_rng(0).normal(size=(30, 30)))
    reference = CONVENTIONS["expected"](ranks, (1, 5, 10))
    for name, convention in CONVENTIONS.items():
        assert convention(ranks, (1, 5, 10)) == pytest.approx(reference), name


def test_a_collapsed_model_by_each_convention() -> None:
    ranks = diagonal(np.zeros((10, 10)))
    found = {name: convention(ranks, (1, 5)) for name, convention in CONVENTIONS.items()}
    assert found["expected"] == pytest.approx({"R@1": 0.1, "R@5": 0.5, "MedR": 5.5, "MeanR": 5.5})
    # The averaged place 5.5 counts for R@5, as it is below 6.
    assert found["multi-sk"] == {"R@1": 0, "R@5": 1, "MedR": 5.5, "MeanR": 5.5}
    assert found["optimistic"] == {"R@1": 1, "R@5": 1, "MedR": 1, "MeanR": 1}
    assert found["clip-vip"] == {"R@1": 0.1, "R@5": 0.5, "MedR": 5.5, "MeanR": 5.5}
    assert found["avlnet"] == {"R@1": 1, "R@5": 5, "MedR": 5.5, "MeanR": 5.5}


def test_ties_by_hand() -> None:
    # Query 0: rank 1; query 1: shares places 2 and 3.
    ranks = Ranks(np.array([0, 1]), np.array([1, 2]), np.array([1, 1]))
    assert CONVENTIONS["clip-vip"](ranks, (2,)) == {"R@2": 2 / 3, "MedR": 2, "MeanR": 2}
    assert CONVENTIONS["avlnet"](ranks, (2,)) == {"R@2": 1, "MedR": 2, "MeanR": 2}
    assert CONVENTIONS["multi-sk"](ranks, (2,)) == {"R@2": 1, "MedR": 1.75, "MeanR": 1.75}


def test_missing_clips_are_misses() -> None:
    scores = {"R@1": 0.5, "MedR": 2.0}
    assert count_missing(scores, 968, 1000) == {"R@1": 0.484, "MedR": 2.0}
    with pytest.raises(ValueError, match="1001 queries have a clip, more than the benchmark's 1000"):
        count_missing(scores, 1001, 1000)


@pytest.mark.parametrize("fixture", cases("retrieval_metrics"))
def test_golden_conventions(fixture) -> None:
    tolerance = fixture.meta["tolerance"]["abs"]
    for case in fixture.meta["cases"]:
        scores, complete = np.array(case["sims"], np.float64), case["complete_dataset_size"]
        for values, convention, theirs in (
            (scores, "multi-sk", case["multisk_averaging"]),
            (scores, "optimistic", case["multisk_optimistically"]),
            (scores.T, "multi-sk", case["multisk_v2t_inverse"]),
            (scores, "avlnet", case["avlnet_t2v"]),
            (scores.T, "avlnet", case["avlnet_v2t"]),
        ):
            ours = CONVENTIONS[convention](diagonal(values), (1, 5, 10, 50))
            if complete and convention != "avlnet":
                ours = count_missing(ours, len(scores), complete)
            unit = 1 if convention == "avlnet" else 100
            for k in (1, 5, 10, 50):
                if f"R{k}" in theirs:
                    assert ours[f"R@{k}"] * unit == pytest.approx(theirs[f"R{k}"], abs=tolerance), case[
                        "name"
                    ]
            for name, other in (("MedR", "MedR"), ("MedR", "MR"), ("MeanR", "MeanR")):
                if other in theirs:
                    assert ours[name] == pytest.approx(theirs[other], abs=tolerance), (case["name"], other)
        whole = count_missing(CONVENTIONS["avlnet"](diagonal(scores), (1, 5, 10)), len(scores), 1000)
        for k in (1, 5, 10):
            assert whole[f"R@{k}"] == pytest.approx(case["avlnet_t2v_eval_msrvtt"][f"R{k}"], abs=tolerance)


@pytest.mark.parametrize("fixture", cases("cmvra_losses_heads"))
def test_golden_clip_vip_metrics_and_dual_softmax(fixture) -> None:
    inputs, outputs = fixture.part("input"), fixture.part("output", "retrieval/")
    plain = outputs["sim_text_by_video"].numpy()
    np.testing.assert_allclose(dual_softmax(plain), outputs["sim_dsl"], rtol=2e-5, atol=1e-6)
    matrices = {
        "sim": plain,
        "dsl": outputs["sim_dsl"].numpy(),
        "sim_hard": inputs["sim_hard"].numpy(),
        "sim_hard_dsl": dual_softmax(inputs["sim_hard"].numpy()),
        "sim_ties": inputs["sim_ties"].numpy(),
    }
    for name, matrix in matrices.items():
        for way, values in (("t2v", matrix), ("v2t", matrix.T)):
            ours = CONVENTIONS["clip-vip"](diagonal(values), (1, 5, 10))
            np.testing.assert_allclose(
                list(ours.values()), outputs[f"metrics_{way}_{name}"], rtol=1e-6, err_msg=f"{way} {name}"
            )


@pytest.mark.parametrize("fixture", cases("msk_average_embeddings"))
def test_golden_several_clips_of_one_video(fixture) -> None:
    vectors = fixture.part("input")["embed"].numpy()
    for ids, name in ((fixture.meta["ids_plain"], "avg_plain"), (fixture.meta["ids_skip"], "avg_skip")):
        names, means = average_by_id(ids, vectors)
        assert names == sorted(set(ids) - {"-1"})
        np.testing.assert_allclose(
            means, fixture.part("output")[name], atol=fixture.meta["tolerance"]["atol"]
        )


# Graded relevance ---------------------------------------------


def naive_precision(order, gains):
    found = [gains[item] for item in order]
    return np.mean([np.mean(found[: place + 1]) for place, gain in enumerate(found) if gain == 1])


def test_precision_by_hand() -> None:
    # Right, wrong, right: (1 + 2/3) / 2.
    assert average_precision([[3.0, 2.0, 1.0]], [[1, 0, 1]]) == pytest.approx([5 / 6])
    assert np.isnan(average_precision([[1.0, 2.0]], [[0, 0]])[0])


def test_gain_by_hand() -> None:
    # Relevance 0.5 found before 1, discounts 1 and 1 / log2(3); the third place is beyond the cut.
    found = ndcg([[3.0, 2.0, 1.0]], [[0.5, 1.0, 0.0]])
    assert found == pytest.approx([(0.5 + 1 / np.log2(3)) / (1 + 0.5 / np.log2(3))])
    assert ndcg([[1.0, 2.0, 3.0]], [[1.0, 0.0, 0.0]]) == pytest.approx([0.0])
    assert ndcg([[1.0, 2.0, 3.0]], [[1.0, 0.0, 0.0]], cut=False) == pytest.approx([0.5])


@pytest.mark.parametrize("scores", [[1, 1, 1, 0, 0], [2, 1, 1, 1, 0], [0, 0, 0, 0, 0], [3, 3, 2, 2, 1]])
def test_ties_are_the_mean_over_all_their_orders(scores) -> None:
    gains = np.array([1.0, 0.0, 0.25, 1.0, 0.5])
    scores = np.array(scores, float)
    orders = [
        order
        for order in itertools.permutations(range(5))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    precision = np.mean([naive_precision(order, gains) for order in orders])
    assert average_precision(scores[None], gains[None]) == pytest.approx([precision])
    for cut in (True, False):
        strict = [ndcg(-np.argsort(order)[None].astype(float), gains[None], cut)[0] for order in orders]
        assert ndcg(scores[None], gains[None], cut) == pytest.approx([np.mean(strict)])


@pytest.mark.parametrize("fixture", cases("lavila_metrics"))
def test_golden_lavila_metrics(fixture) -> None:
    given, expected = fixture.meta["inputs"], fixture.meta["expected"]
    tolerance = fixture.meta["tolerance"]["abs"]
    found = multi_instance_retrieval(given["similarity"], given["relevancy"])
    for name in ("mAP", "nDCG"):
        ours = [found[f"{name}_v2t"], found[f"{name}_t2v"], found[name]]
        assert ours == pytest.approx(expected[name], abs=tolerance)
    hits = [top_k_hits(given["cls_logits"], given["cls_targets"], k).mean() * 100 for k in (1, 5)]
    assert hits == pytest.approx(expected["top1_top5"], abs=tolerance)
    matrix = np.array(given["confusion"])
    ours = [mean_class_accuracy(matrix, empty_counts=True) * 100, np.trace(matrix) / matrix.sum() * 100]
    assert ours == pytest.approx(expected["mean_acc"], abs=tolerance)
    answered = multiple_choice(given["mcq_preds"], given["mcq_labels"], given["mcq_types"])
    names = {1: "Intra-video", 2: "Inter-video"}
    assert {names[kind]: share * 100 for kind, share in answered.items()} == pytest.approx(expected["egomcq"])


def test_mean_class_accuracy_leaves_empty_classes_out() -> None:
    matrix = expected_confusion(np.eye(3)[[0, 0, 1]], [0, 1, 1])
    assert mean_class_accuracy(matrix) == pytest.approx(0.75)
    assert mean_class_accuracy(matrix, empty_counts=True) == pytest.approx(0.5)


# Re-scoring ---------------------------------------------


def test_a_hub_loses_its_lead() -> None:
    # Item 0 is everybody's nearest; by columns, each query still prefers its own.
    scores = np.array([[0.9, 0.1, 0.1], [0.8, 0.7, 0.1], [0.8, 0.1, 0.7]])
    assert scores.argmax(1).tolist() == [0, 0, 0]
    for rescored in (dual_softmax(scores, 20.0), inverted_softmax(scores, 20.0)):
        assert rescored.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(inverted_softmax(scores, 20.0).sum(0), 1)
    assert np.isfinite(dual_softmax(scores * 1e3, 1e3)).all()
