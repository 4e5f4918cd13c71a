"""Statistics and linear read-outs, by hand and against scikit-learn."""

import numpy as np
import pytest

from evaluate.baseline import BASELINES
from evaluate.readout import RIDGE_STRENGTHS, logistic_scores, read_out, ridge_scores, standardised
from evaluate.statistics import bootstrap, paired_bootstrap, seed_interval

RNG = np.random.default_rng(0)


def blobs(n: int = 60, width: int = 100, classes: int = 4, noise: float = 1.0):
    labels = np.arange(n) % classes
    means = np.random.default_rng(1).normal(size=(classes, width))
    return means[labels] + noise * RNG.normal(size=(n, width)), labels


def test_seed_interval_is_students_t():
    low, high = seed_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    # t(0.975, 4) = 2.776, s = sqrt(2.5), s / sqrt(5) = sqrt(0.5)
    assert (low, high) == pytest.approx((3 - 2.7764 * 0.5**0.5, 3 + 2.7764 * 0.5**0.5), abs=1e-3)
    assert seed_interval(np.array([0.7])) == (0.7, 0.7)
    with pytest.raises(ValueError, match="no values"):
        seed_interval(np.array([]))


def test_bootstrap_of_a_share_is_as_wide_as_the_binomial_says():
    hits = (np.arange(400) < 240).astype(float)[None]
    found = bootstrap(hits)
    assert found.value == pytest.approx(0.6)
    reach = 1.96 * (0.6 * 0.4 / 400) ** 0.5
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.1)


def test_pairing_cancels_what_is_hard_for_both():
    rival = (RNG.random(200) < 0.5).astype(float)
    same = paired_bootstrap(np.stack([rival, rival]), rival)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = rival.copy()
    better[np.flatnonzero(rival == 0)[:20]] = 1.0
    gain = paired_bootstrap(better[None], rival)
    assert gain.value == pytest.approx(0.1)
    assert 0 < gain.low < 0.1 < gain.high < 0.2
    unpaired = bootstrap(better[None])
    assert gain.high - gain.low < unpaired.high - unpaired.low


def test_seeds_that_disagree_widen_the_interval():
    steady = np.tile((np.arange(1000) < 500).astype(float), (5, 1))
    moody = np.stack([np.full(1000, level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)])
    assert bootstrap(moody).high - bootstrap(moody).low > 3 * (bootstrap(steady).high - bootstrap(steady).low)


def test_unpaired_clips_are_refused():
    with pytest.raises(ValueError, match="10 clips against 9"):
        paired_bootstrap(np.zeros((2, 10)), np.zeros(9))


@pytest.mark.parametrize("width", [20, 300])
def test_ridge_is_scikit_learns(width):
    from sklearn.linear_model import RidgeClassifier

    (train, labels), (test, _) = blobs(width=width), blobs(24, width)
    size = ((train - train.mean(0)) ** 2).sum() / len(train)
    for strength, ours in zip((3.0, 0.01), ridge_scores(train, labels, test, 4, (3.0, 0.01)), strict=True):
        theirs = RidgeClassifier(alpha=strength * size).fit(train, labels).decision_function(test)
        np.testing.assert_allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("width", [20, 300])
def test_logistic_is_scikit_learns(width):
    from sklearn.linear_model import LogisticRegression

    (train, labels), (test, _) = blobs(width=width, noise=3.0), blobs(24, width)
    mean = train.mean(0)
    length = np.sqrt(((train - mean) ** 2).sum() / len(train))
    for strength, ours in zip((0.1, 0.01), logistic_scores(train, labels, test, 4, (0.1, 0.01)), strict=True):
        model = LogisticRegression(C=1 / (len(train) * strength), tol=1e-10, max_iter=5000)
        model.fit((train - mean) / length, labels)
        theirs = model.predict_log_proba((test - mean) / length)
        gap = ours - ours.mean(1, keepdims=True) - (theirs - theirs.mean(1, keepdims=True))
        assert np.abs(gap).max() < 1e-2


def test_a_class_that_was_never_taught_is_never_the_answer():
    train, labels = blobs(classes=3)
    for scorer in (ridge_scores, logistic_scores):
        scores = scorer(train, labels, train, 4, (0.1,))[0]
        assert scores.argmax(1).tolist() == labels.tolist()
        assert (scores[:, 3] < scores.max(1)).all()


def test_what_a_foot_does_not_do_stays_small_per_dim_but_not_per_channel():
    quiet, loud = 0.01 * RNG.normal(size=(8, 5, 1, 2)), RNG.normal(size=(8, 5, 1, 2))
    features = np.concatenate([quiet, loud], 2)
    shared, _ = standardised(features, features, "dim")
    own, _ = standardised(features, features, "channel")
    assert (shared.reshape(8, 5, 2, 2)[:, :, 0].std((0, 1)) < 0.05).all()
    np.testing.assert_allclose(own.reshape(8, 5, 2, 2).std((0, 1)), 1, atol=1e-3)


def test_per_clip_takes_away_what_does_not_change():
    features = RNG.normal(size=(6, 5, 2, 3))
    moved = features + RNG.normal(size=(6, 1, 2, 3))
    np.testing.assert_allclose(
        standardised(features, features, "clip")[0], standardised(moved, moved, "clip")[0], atol=1e-5
    )


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_nothing_but_the_scores_depends_on_the_clips_to_score(classifier):
    train, labels = blobs(48)
    groups = np.repeat(["a", "b"], 24)
    found = [
        read_out(train, labels, groups, test, 4, "none", classifier)
        for test in (RNG.normal(size=(9, 100)), 50 + RNG.normal(size=(3, 100)))
    ]
    assert found[0].strength == found[1].strength and found[0].held_out == found[1].held_out
    assert found[0].scores.shape == (9, 4)
    assert read_out(train, labels, groups, train, 4, "none", classifier).scores.argmax(1).tolist() == (
        labels.tolist()
    )


def test_held_out_scores_come_from_classifiers_that_never_saw_the_group():
    train, labels = blobs(48)
    groups = np.repeat(["a", "b", "c"], 16)
    found = read_out(train, labels, groups, train[:5], 4, "none")
    held = groups == "b"
    strength = [found.strength]
    again = ridge_scores(
        train[~held].astype(np.float32), labels[~held], train[held].astype(np.float32), 4, strength
    )
    np.testing.assert_allclose(found.held_out_scores[held], again[0], atol=1e-9)
    assert found.held_out == (found.held_out_scores.argmax(1) == labels).mean()


def test_with_one_group_the_strongest_is_taken():
    train, labels = blobs(12)
    found = read_out(train, labels, np.zeros(12), train, 4, "none")
    assert found.strength == max(RIDGE_STRENGTHS) and np.isnan(found.held_out)


def test_the_baselines_origin_is_the_hips():
    sequences = RNG.normal(size=(2, 4, 20, 3))
    centred = BASELINES["skeleton"](sequences)
    assert not centred[:, :, 3].any()
    np.testing.assert_allclose(BASELINES["skeleton"](sequences + 5.0), centred, atol=1e-5)
