"""The probe's solver against scikit-learn, by hand, and its choice of strength on held-out groups."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluate.logistic import (
    STRENGTHS,
    TIE,
    ProbeError,
    choose_strength,
    fit_logistic,
    fit_path,
    group_folds,
)
from evaluate.metrics import top_k_hits


def problem(n: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy class centres with feature scales between 0.1 and 5 and an offset, as real features have."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.normal(size=(classes, width)) * 0.3
    rows = (centres[labels] + rng.normal(size=(n, width))) * rng.uniform(0.1, 5, width) + 3
    return rows.astype(np.float32), labels


@pytest.mark.parametrize(("n", "width"), [(300, 40), (90, 700)])  # the second takes the rotated path
@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-5])
def test_optimum_equals_scikit_learn(n: int, width: int, strength: float) -> None:
    rows, labels = problem(n, width, 5)
    ours = fit_logistic(rows, labels, strength)
    scaled = (rows.astype(np.float64) - rows.mean(0)) / rows.std(0) / np.sqrt(width)
    theirs = LogisticRegression(C=1 / (n * strength), tol=1e-10, max_iter=5000).fit(scaled, labels)
    expected = theirs.predict_proba(scaled)
    scores = ours.scores(rows, 5).astype(np.float64)
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=2e-4)
    assert _objective(ours.weights, ours.bias, scaled, labels, strength) <= (
        _objective(theirs.coef_.T, theirs.intercept_, scaled, labels, strength) + 1e-6
    )


def _objective(weights, bias, rows, labels, strength) -> float:
    logits = rows @ np.asarray(weights, np.float64) + bias
    logits -= logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), labels]
    return loss.mean() + 0.5 * strength * float(np.square(weights, dtype=np.float64).sum())


def test_the_path_equals_each_strength_alone() -> None:
    rows, labels = problem(120, 30, 4)
    for strength, on_path in zip(STRENGTHS, fit_path(rows, labels, STRENGTHS), strict=True):
        alone = fit_logistic(rows, labels, strength)
        scores = alone.scores(rows, 4)
        np.testing.assert_allclose(on_path.scores(rows, 4), scores, atol=3e-3 * np.abs(scores).max())


def test_scores_do_not_depend_on_feature_scale_or_order_of_rows() -> None:
    rows, labels = problem(150, 20, 3)
    order = np.random.default_rng(1).permutation(150)
    plain = fit_logistic(rows, labels, 1e-3).scores(rows, 3)
    shuffled = fit_logistic(rows[order], labels[order], 1e-3).scores(rows, 3)
    scaled = fit_logistic(rows * 100 - 7, labels, 1e-3).scores(rows * 100 - 7, 3)
    np.testing.assert_allclose(shuffled, plain, atol=0.02)
    np.testing.assert_allclose(scaled, plain, atol=0.02)


@pytest.mark.parametrize("width", [8, 900])
def test_collapsed_features_score_at_chance(width: int) -> None:
    rows = np.full((100, width), 0.3, np.float32)
    labels = np.arange(100) % 4
    scores = fit_logistic(rows, labels, 1e-4).scores(rows, 4)
    np.testing.assert_allclose(top_k_hits(scores, labels, tolerance=TIE), 0.25)


def test_a_class_missing_from_training_is_never_predicted() -> None:
    rows, labels = problem(60, 10, 3)
    model = fit_logistic(rows, np.where(labels == 1, 4, labels), 1e-3)
    scores = model.scores(rows, 6)
    assert scores.shape == (60, 6)
    assert set(scores.argmax(1)) == {0, 2, 4}


def test_no_group_is_in_two_folds_and_folds_are_even() -> None:
    groups = np.repeat([f"subject {i}" for i in range(11)], [5, 40, 7, 9, 30, 12, 8, 6, 22, 3, 18])
    folds = group_folds(np.zeros(len(groups), np.int64), groups)
    assert len(np.unique(folds)) == 5
    for group in np.unique(groups):
        assert len(np.unique(folds[groups == group])) == 1
    assert np.bincount(folds).max() <= 1.5 * np.bincount(folds).min()


def test_folds_without_groups_are_stratified() -> None:
    labels = np.repeat([0, 1, 2], [50, 25, 10])
    folds = group_folds(labels, None, seed=3)
    for fold in range(5):
        assert np.bincount(labels[folds == fold]).tolist() == [10, 5, 2]


def test_one_group_cannot_be_held_out() -> None:
    with pytest.raises(ProbeError, match="one training group"):
        group_folds(np.zeros(4, np.int64), np.array(["s1"] * 4))


def test_strength_is_chosen_where_held_out_groups_score_best() -> None:
    rng = np.random.default_rng(5)
    labels, groups = np.arange(120) % 4, np.repeat(np.arange(4), 30)
    signal = np.eye(4)[labels] + rng.normal(size=(120, 4)) * 0.5
    rows = np.concatenate([signal, rng.normal(size=(120, 40))], axis=1).astype(np.float32)
    strength, means = choose_strength(rows, labels, groups)
    assert means[strength] == max(means.values())
    assert means[strength] > 0.4
    naive = {}
    for candidate in STRENGTHS:
        hits = 0
        for group in range(4):
            held = groups == group
            model = fit_logistic(rows[~held], labels[~held], candidate)
            hits += int((model.scores(rows[held], 4).argmax(1) == labels[held]).sum())
        naive[candidate] = hits / 120
    assert means == pytest.approx(naive, abs=2 / 120)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((3, 2), np.float32), np.zeros(4, np.int64), r"features \(3, 2\) and labels \(4,\)"),
        (np.array([[np.nan], [1]], np.float32), np.array([0, 1]), "NaN"),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int64), r"labels are \[0\]"),
        (np.zeros((3, 2), np.float32), np.array([-1, 0, 1]), "none negative"),
    ],
)
def test_bad_input_is_named(rows, labels, message) -> None:
    with pytest.raises(ProbeError, match=message):
        fit_logistic(rows, labels, 1e-3)
