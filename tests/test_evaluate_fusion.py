"""What fusions work on, and the convex ones: by hand, against references, and what absence means."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from align.model import OptionError
from evaluate import FUSIONS
from evaluate.fusion import (
    Joined,
    class_balance,
    groups_of,
    join,
    make_fusion,
    require_one_width,
    subsets,
)
from evaluate.fusion_linear import (
    TOWARDS_ONE,
    Concatenated,
    Late,
    MeanEmbedding,
    clip_weights,
    mean_embedding,
    pooling_weights,
)
from evaluate.logistic import choose_strength, fit_logistic
from evaluate.source import Clips, EvaluateError
from store.errors import UnknownNameError

QUICK = {"attention": {"epochs": 12}, "cmvra": {"epochs": 12, "learning_rate": 3e-3}}


def clips(modality: str, items: list[str], labels: list[int], vectors: np.ndarray) -> Clips:
    people = np.array([f"P{int(item[1:]) % 3}" for item in items], object)
    return Clips(
        modality,
        np.array(items, object),
        np.array(labels),
        people,
        np.asarray(vectors, np.float32),
        f"{modality} made",
    )


def made(n: int = 240, classes: int = 4, width: int = 16, kind: str = "features", seed: int = 0) -> Joined:
    """Two modalities that each tell half of the classes apart, and a third of noise; some clips lack some."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    told = np.random.default_rng(7).normal(size=(3, 2, width))  # the same directions for every seed
    vectors = {}
    for place, (name, code) in enumerate(
        {"a": labels % 2, "b": labels // 2 % 2, "noise": labels * 0}.items()
    ):
        rows = 1.2 * told[place, code] + rng.normal(size=(n, width))
        vectors[name] = rows.astype(np.float32)
    present = rng.random((n, 3)) < 0.85
    present[:, 0] |= ~present.any(axis=1)
    vectors = {name: one * present[:, [place]] for place, (name, one) in enumerate(vectors.items())}
    if kind == "embeddings":
        vectors = {name: one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-9)
                   for name, one in vectors.items()}  # fmt: skip
    items = np.array([f"{seed} {row}" for row in range(n)], object)
    people = np.array([f"P{row // classes % 4}" for row in range(n)], object)
    return Joined(items, labels, people, vectors, present, kind)


def accuracy(fusion, test: Joined) -> float:
    return float((fusion.scores(test).argmax(axis=1) == test.labels).mean())


# Clips side by side


def test_clips_are_joined_by_their_ids_not_by_their_place() -> None:
    a = clips("a", ["c2", "c1"], [1, 0], [[2, 2], [1, 1]])
    b = clips("rgb+depth", ["c3", "c2"], [2, 1], [[30], [20]])
    joined = join([a, b])
    assert joined.items.tolist() == ["c1", "c2", "c3"]
    assert joined.labels.tolist() == [0, 1, 2]
    assert joined.subjects.tolist() == ["P1", "P2", "P0"]
    assert joined.present.tolist() == [[True, False], [True, True], [False, True]]
    assert joined.vectors["a"].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert joined.vectors["rgb+depth"].tolist() == [[0], [20], [30]]
    assert joined.features == {"a": "a made", "rgb+depth": "rgb+depth made"}


def test_only_hides_the_others_and_drops_clips_that_have_nothing_left() -> None:
    joined = join(
        [clips("a", ["c1", "c2"], [0, 1], [[1], [2]]), clips("b", ["c2", "c3"], [1, 2], [[3], [4]])]
    )
    only = joined.only(["a"])
    assert only.items.tolist() == ["c1", "c2"]
    assert only.present.tolist() == [[True, False], [True, False]]
    assert only.vectors["b"].tolist() == [[0], [0]]
    assert joined.vectors["b"].tolist() == [[0], [3], [4]]  # the original is as it was


def test_among_forgets_the_others() -> None:
    joined = join(
        [clips("a", ["c1", "c2"], [0, 1], [[1], [2]]), clips("b", ["c2", "c3"], [1, 2], [[3], [4]])]
    )
    among = joined.among(["b"])
    assert among.modalities == ("b",)
    assert among.items.tolist() == ["c2", "c3"]
    assert among.present.tolist() == [[True], [True]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_there_are_two_to_the_m_less_one_subsets(count) -> None:
    names = [f"m{place}" for place in range(count)]
    found = subsets(names)
    assert len(found) == len(set(found)) == 2**count - 1
    assert found[-1] == tuple(names)
    assert [len(one) for one in found] == sorted(len(one) for one in found)


def test_subjects_are_groups_only_where_all_are_known() -> None:
    joined = made(12)
    assert set(groups_of(joined)) == {"P0", "P1", "P2"}
    assert groups_of(replace(joined, subjects=np.array([None] * 12, object))) is None
    assert groups_of(replace(joined, subjects=np.array(["P1"] * 12, object))) is None


def test_balance_by_hand() -> None:
    """Counts 1, 3, 0, 2: inverses 1, 1/3, 0, 1/2 sum to 11/6."""
    weights = class_balance(np.array([0, 1, 1, 1, 3, 3]), 4)
    np.testing.assert_allclose(weights, np.array([6, 2, 0, 3]) / 11)
    per_clip = clip_weights(np.array([0, 1, 1, 1]), 4, balanced=True)
    np.testing.assert_allclose(per_clip, [1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_one_width_is_required_where_vectors_are_stacked() -> None:
    assert require_one_width(made(8), "cmvra") == 16
    odd = join([clips("a", ["c1"], [0], [[1, 2]]), clips("b", ["c1"], [0], [[3]])])
    with pytest.raises(EvaluateError, match="cmvra takes vectors of one width, these have a 2, b 1"):
        require_one_width(odd, "cmvra")


# A contract over the table: what every fusion must do


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_adds_up_what_modalities_know(name) -> None:
    """a tells one bit of the class and b the other: chance is 1/4, each alone 1/2 at best."""
    train, test = made(kind="embeddings"), made(160, kind="embeddings", seed=1)
    fusion = make_fusion(name, QUICK.get(name, {}))
    fusion.fit(train, 4)
    both = test.take(np.flatnonzero(test.present[:, :2].all(axis=1)))
    alone = [accuracy(fusion, both.only([one])) for one in ("a", "b")]
    assert accuracy(fusion, both) > 0.75
    assert max(alone) < 0.6
    assert fusion.told()


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_is_the_same_for_the_same_seed_and_in_any_order_of_clips(name) -> None:
    train, test = made(80, kind="embeddings"), made(20, kind="embeddings", seed=1)
    order = np.random.default_rng(0).permutation(len(test))
    found = []
    for rows in (np.arange(len(test)), order):
        fusion = make_fusion(name, QUICK.get(name, {}))
        fusion.fit(train, 4, seed=3)
        scores = fusion.scores(test.take(rows))
        assert scores.shape == (20, 4)
        found.append(scores[np.argsort(rows)])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "cmvra"])
def test_what_is_absent_has_no_influence(name) -> None:
    """Whatever lies in a missing modality's row; CMVRA's attends to it, so only its zeros are harmless."""
    train, test = made(80, kind="embeddings"), made(40, kind="embeddings", seed=1)
    dirty = {
        name: np.where(test.present[:, [place]], one, 1e3).astype(np.float32)
        for place, (name, one) in enumerate(test.vectors.items())
    }
    fusion = make_fusion(name, QUICK.get(name, {}))
    fusion.fit(train, 4)
    if name == "mean":  # its contract is that absent rows are zero, which join and only see to
        dirty = {key: one * test.present[:, [place]] for place, (key, one) in enumerate(dirty.items())}
    np.testing.assert_allclose(fusion.scores(test), fusion.scores(replace(test, vectors=dirty)), atol=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
def test_balancing_helps_the_rare_class(name) -> None:
    """Class 0 has 6 of 200 clips and overlaps class 1: unweighted, it is hardly ever the answer."""
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(200) < 6, 0, 1)
    rows = (rng.normal(size=(200, 8)) + 1.0 * labels[:, None]).astype(np.float32)
    vectors = {key: rows + rng.normal(size=(200, 8)).astype(np.float32) for key in ("a", "b")}
    people = np.array([f"P{row % 3}" for row in range(200)], object)
    train = Joined(
        np.arange(200).astype(object), labels, people, vectors, np.ones((200, 2), bool), "embeddings"
    )
    found = {}
    for balanced in (False, True):
        fusion = make_fusion(name, QUICK.get(name, {}))
        fusion.fit(train, 2, balanced=balanced)
        found[balanced] = (fusion.scores(train).argmax(axis=1) == 0).mean()
    assert found[True] > found[False]


def test_unknown_fusions_and_options_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"no fusion named 'attenton' \(did you mean 'attention'\?\)"):
        make_fusion("attenton", {})
    with pytest.raises(OptionError, match="fusion late: no option 'epochs'; accepted: weights"):
        make_fusion("late", {"epochs": 3})
    with pytest.raises(OptionError, match="weights: 'best' is unknown; accepted: auto, equal, learnt"):
        make_fusion("late", {"weights": "best"})


# Late


def test_equal_weights_average_the_modalities_log_probabilities() -> None:
    train, test = made(120), made(40, seed=1)
    fusion = Late("equal")
    fusion.fit(train, 4)
    logs = np.zeros((40, 4))
    for place, name in enumerate(test.modalities):
        own = train.take(np.flatnonzero(train.present[:, place]))
        strength, _ = choose_strength(own.vectors[name], own.labels, groups_of(own))
        model = fit_logistic(own.vectors[name], own.labels, strength)
        rows = test.present[:, place]
        logs[rows] += log_softmax(model.scores(test.vectors[name][rows], 4), axis=1)
    expected = logs / test.present.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fusion.scores(test), expected, rtol=1e-3, atol=1e-4)


def test_pooling_weights_are_the_optimum() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    right = np.eye(3)[labels]
    log = np.stack(
        [log_softmax(scale * right + rng.normal(size=(2000, 3)), axis=1) for scale in (2, 1, 0)], 1
    )
    per_clip = clip_weights(labels, 3, balanced=False)
    found = pooling_weights(log, labels, per_clip)

    def objective(weights: np.ndarray) -> float:
        pooled = log_softmax(np.einsum("k,nkc->nc", weights, log), axis=1)
        penalty = TOWARDS_ONE / 2 * ((weights - 1) ** 2).sum()
        return float(-pooled[np.arange(2000), labels].mean() + penalty)

    reference = minimize(objective, np.full(3, 0.5), method="L-BFGS-B", bounds=[(0, None)] * 3)
    np.testing.assert_allclose(found, reference.x, atol=1e-3)
    np.testing.assert_allclose(found, [2, 1, 0], atol=0.2)  # log p = scale^2 x onehot + scale x noise there


def test_weights_stay_finite_where_everything_is_right() -> None:
    labels = np.arange(30) % 3
    log = log_softmax(5 * np.eye(3)[labels], axis=1)[:, None].repeat(2, axis=1)
    found = pooling_weights(log, labels, clip_weights(labels, 3, False))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_learnt_weights_distrust_noise_and_differ_by_what_a_clip_has() -> None:
    train, test = made(), made(40, seed=1)
    fusion = Late("learnt")
    fusion.fit(train, 4)
    assert fusion.told().startswith("L2 a ")
    assert "weights" not in fusion.told()
    fusion.scores(test)
    a, b = fusion.known[True, True, False][:2]
    assert f"weights a {a:.2g} b {b:.2g}" in fusion.told().replace(" | ", "; weights ")
    patterns = {tuple(one.tolist()) for one, _ in test.patterns()}
    assert set(fusion.known) == patterns
    whole = fusion.known[True, True, True]
    assert whole[2] < 0.5 * min(whole[:2])
    assert fusion.known[True, False, True][1] == 0
    np.testing.assert_allclose(fusion.known[False, True, False], [0, 1, 0])


@pytest.mark.parametrize("lesson", ["heads saw the clips", "one subject"])
def test_nothing_is_learnt_about_weights_where_it_would_mislead(lesson) -> None:
    train = made(60)
    if lesson == "one subject":
        train = replace(train, subjects=np.array(["P1"] * 60, object))
    else:
        train = replace(train, fresh=False)
    fusion = Late()
    fusion.fit(train, 4)
    fusion.scores(train)
    assert fusion.held is None
    np.testing.assert_allclose(fusion.known[True, True, True], 1 / 3)


def test_log_probabilities_are_pooled_as_they_are() -> None:
    """Two experts a modality; equal weights: the plain mean of what the present modalities' experts say."""
    rng = np.random.default_rng(0)
    log = {name: log_softmax(rng.normal(size=(4, 2, 3)), axis=2).astype(np.float32) for name in "ab"}
    present = np.array([[True, True], [True, False], [False, True], [True, True]])
    vectors = {name: one.reshape(4, 6) * present[:, [place]] for place, (name, one) in enumerate(log.items())}
    people = np.array(["P"] * 4, object)
    evidence = Joined(
        np.arange(4).astype(object), np.arange(4) % 3, people, vectors, present, "log-probabilities"
    )
    fusion = Late("equal")
    fusion.fit(evidence, 3)
    found = fusion.scores(evidence)
    np.testing.assert_allclose(found[0], np.concatenate([log["a"][0], log["b"][0]]).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found[1], log["a"][1].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found[2], log["b"][2].mean(axis=0), atol=1e-6)


# Concatenated, and the mean embedding


def test_concatenation_fills_in_the_mean_and_gives_each_modality_the_same_variance() -> None:
    train = made(60)
    wide = {**train.vectors, "b": np.repeat(train.vectors["b"], 5, axis=1)}
    fusion = Concatenated()
    fusion.fit(replace(train, vectors=wide), 4)
    dims = [16, 80, 16]
    rows = (fusion._joined(replace(train, vectors=wide)) - fusion.model.mean) * fusion.model.scale
    for part in np.split(rows, np.cumsum(dims)[:-1], axis=1):
        assert (part**2).sum(axis=1).mean() == pytest.approx(1, rel=1e-4)
    lacks = np.flatnonzero(~train.present[:, 0])[0]
    np.testing.assert_allclose(rows[lacks, :16], 0, atol=1e-4)


def test_mean_embedding_by_hand() -> None:
    a, b = clips("a", ["c1", "c2"], [0, 1], [[1, 0], [0, 1]]), clips("b", ["c1"], [0], [[0, 1]])
    joined = join([a, b], "embeddings")
    np.testing.assert_allclose(mean_embedding(joined), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)
    with pytest.raises(EvaluateError, match="--methods mean takes embeddings of one space, not features"):
        MeanEmbedding().fit(made(20), 4)


# Weights in the solver


def test_weighted_rows_count_as_often_as_their_weight() -> None:
    """A weight of 2 is the row twice; scikit-learn's sample_weight agrees."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (rng.normal(size=(60, 5)) + np.eye(3)[labels] @ rng.normal(size=(3, 5))).astype(np.float32)
    features -= features.mean(axis=0)
    weights = 1.0 + (labels == 0)
    ours = fit_logistic(features, labels, 0.01, weights=weights)
    rows = features * ours.scale
    theirs = LogisticRegression(C=1 / (0.01 * weights.sum()), tol=1e-9, max_iter=5000)
    theirs.fit(rows, labels, sample_weight=weights)
    np.testing.assert_allclose(ours.weights.T - ours.weights.mean(1), theirs.coef_, atol=2e-3)
