"""`evaluate probe`: scikit-learn agrees, order in time matters, chance is chance, and cheating is refused."""

from dataclasses import replace

import numpy as np
import pytest
from evaluate_bank import aligned_bank, joint_bank, metrics_of, trained
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluate.adam import Schedule
from evaluate.leakage import LeakageError
from evaluate.probe import Lesson, Way, few, probe, probe_clips, probe_modality
from evaluate.source import Clips, EvaluateError, open_sources
from store.errors import FrameBankError, UnknownNameError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def clips(vectors: np.ndarray, labels: np.ndarray, subjects: list[str], prefix: str) -> Clips:
    items = np.array([f"{prefix}{row}" for row in range(len(labels))], object)
    people = np.array([subjects[row % len(subjects)] for row in range(len(labels))], object)
    return Clips("made", items, labels, people, vectors.astype(np.float32), "made")


def halves(n: int = 300, width: int = 30, seed: int = 0) -> tuple[Clips, Clips]:
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * n) % 5
    vectors = rng.normal(size=(5, width))[labels] * 0.5 + rng.normal(size=(2 * n, width))
    train = clips(vectors[:n], labels[:n], ["P1", "P2", "P3"], "a")
    return train, clips(vectors[n:], labels[n:], ["P4", "P5"], "b")


def test_hits_equal_those_of_scikit_learn_at_the_chosen_strength() -> None:
    train, test = halves()
    ours = probe_clips(train, test, 5)
    scale = StandardScaler().fit(train.vectors)
    width, n = train.vectors.shape[1], len(train)
    theirs = LogisticRegression(C=1 / (n * ours.strength), tol=1e-8, max_iter=5000)
    theirs.fit(scale.transform(train.vectors) / np.sqrt(width), train.labels)
    predicted = theirs.predict(scale.transform(test.vectors) / np.sqrt(width))
    assert np.mean(ours.hits == (predicted == test.labels)) >= 0.99
    assert 0.5 < ours.hits.mean() < 1
    assert ours.confusion.sum() == len(test)
    assert np.trace(ours.confusion) == pytest.approx(ours.hits.sum())


def test_strength_is_chosen_without_the_test_clips() -> None:
    train, test = halves()
    shuffled = replace(test, vectors=test.vectors[::-1].copy())
    assert probe_clips(train, test, 5).strength == probe_clips(train, shuffled, 5).strength


def test_collapsed_features_are_at_chance() -> None:
    train, test = halves()
    flat = np.full_like(train.vectors, 0.25)
    ours = probe_clips(replace(train, vectors=flat), replace(test, vectors=flat), 5)
    np.testing.assert_allclose(ours.hits, 0.2)


def test_unlabelled_clips_are_left_out() -> None:
    train, test = halves()
    labels = test.labels.copy()
    labels[:100] = -1
    assert len(probe_clips(train, replace(test, labels=labels), 5).hits) == 200
    with pytest.raises(EvaluateError, match="300 labelled clips to learn from and 0 to score"):
        probe_clips(train, replace(test, labels=np.full(300, -1)), 5)


def test_a_clip_on_both_sides_is_refused() -> None:
    train, test = halves()
    with pytest.raises(LeakageError, match=r"1 clips to score were seen in training \(a7\)"):
        probe_clips(train, replace(test, items=np.array(["a7", *test.items[1:]], object)), 5)


def test_unknown_subjects_fall_back_to_stratified_folds() -> None:
    train, test = halves()
    nobody = replace(train, subjects=np.full(len(train), None, object))
    assert probe_clips(nobody, test, 5).hits.mean() == pytest.approx(
        probe_clips(train, test, 5).hits.mean(), abs=0.1
    )


# On a bank


def test_order_in_time_is_what_tells_the_toy_classes_apart(toy) -> None:
    """The toy's clips rise or fall around one mean: pooled they say nothing, in order everything."""
    bank, _ = toy
    found = {}
    for pool in ("mean", "resample:8"):
        sources = open_sources(bank.path, None, None, None, pool=pool)
        found[pool] = probe_modality(sources, "skeleton", Lesson()).scores[0].value
    assert found["mean"] < 0.45
    assert found["resample:8"] > 0.9


def test_command_prints_and_records(toy, capsys) -> None:
    bank, checkpoint = toy
    assert probe(str(bank.path), checkpoint=checkpoint) == 0
    out = capsys.readouterr().out
    assert "toy, cross-subject: learnt on train, scored on test" in out
    assert "feature sets from the bank; encoding took" in out
    rows = metrics_of(bank, "evaluate probe")
    assert {row["name"] for row in rows} == {"probe/accuracy", "probe/balanced_accuracy"}
    assert {row["detail"]["modality"] for row in rows} == {"skeleton", "inertial", "depth"}
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["detail"]["chance"] == 0.25
        assert row["detail"]["source"] == f"aligned {checkpoint.removeprefix('run:')}"
        assert row["n"] == (38 if row["detail"]["modality"] == "depth" else 48)  # every fifth lacks depth


def test_several_checkpoints_are_averaged_clip_by_clip(toy) -> None:
    bank, first = toy
    second = trained(bank, seed=1, modalities="skeleton,inertial")
    one, two, both = (
        probe_modality(open_sources(bank.path, None, None, given), "skeleton", Lesson()).scores[0]
        for given in (first, second, f"{first},{second}")
    )
    assert both.value == pytest.approx((one.value + two.value) / 2)
    assert both.detail["each"] == pytest.approx([one.value, two.value])


def test_few_clips_are_the_same_in_every_modality() -> None:
    train, _ = halves()
    drawn = few(train, 3, seed=1)
    assert np.bincount(drawn.labels).tolist() == [3] * 5
    order = np.random.default_rng(0).permutation(len(train))
    parts = {name: getattr(train, name)[order] for name in ("items", "labels", "subjects", "vectors")}
    assert set(few(replace(train, **parts), 3, seed=1).items) == set(drawn.items)
    assert set(few(train, 3, seed=2).items) != set(drawn.items)
    assert len(few(train, 10_000, seed=1)) == (train.labels >= 0).sum()


def test_more_shots_teach_more_and_their_draws_are_averaged(toy) -> None:
    bank, checkpoint = toy
    sources = open_sources(bank.path, None, None, checkpoint)
    found = [probe_modality(sources, "skeleton", Lesson(shots=shots, draws=3)).scores[0] for shots in (1, 8)]
    assert 0.25 < found[0].value < found[1].value
    assert len(found[0].detail["each"]) == 3


def test_a_classifier_passes_from_one_modality_to_another(toy, capsys) -> None:
    bank, checkpoint = toy
    probe(str(bank.path), checkpoint=checkpoint, modalities="inertial", learn_from="skeleton")
    assert "learnt on train (skeleton), scored on test" in capsys.readouterr().out
    (row,) = [row for row in metrics_of(bank, "evaluate probe") if row["name"] == "probe/accuracy"]
    assert (row["detail"]["modality"], row["detail"]["learn_from"]) == ("inertial", "skeleton")
    assert row["value"] > 0.6  # chance 0.25: the aligned spaces agree
    with pytest.raises(EvaluateError, match="raw skeleton and inertial features lie in different spaces"):
        probe(str(bank.path), modalities="inertial", learn_from="skeleton")


def test_cmvra_s_protocol_is_an_option(toy, capsys) -> None:
    bank, checkpoint = toy
    probe(
        str(bank.path),
        checkpoint=checkpoint,
        modalities="skeleton",
        solver="cmvra",
        cmvra=Schedule(epochs=60, learning_rate=0.02, held_out=0.1),
        balanced=True,
    )
    assert "scored on test by 60 epochs of Adam, classes balanced" in capsys.readouterr().out
    (row,) = [row for row in metrics_of(bank, "evaluate probe") if row["name"] == "probe/accuracy"]
    detail = row["detail"]
    assert (detail["solver"], detail["epochs"], detail["balanced"]) == ("cmvra", 60, True)
    assert 1 <= detail["epoch"][0] <= 60
    assert row["value"] > 0.6  # chance 0.25


def test_balanced_classes_count_alike() -> None:
    """A class of a tenth of the clips is hardly ever said, unless its clips weigh ten times as much."""
    rng = np.random.default_rng(0)
    labels = (np.arange(800) % 10 == 0).astype(np.int64)
    vectors = labels[:, None] * 0.8 + rng.normal(size=(800, 4))
    train = clips(vectors[:400], labels[:400], ["P1", "P2", "P3"], "a")
    test = clips(vectors[400:], labels[400:], ["P4"], "b")
    for way in (Way(), Way("cmvra", Schedule(epochs=100, learning_rate=0.01))):
        said = [probe_clips(train, test, 2, way=replace(way, balanced=on)).guesses for on in (False, True)]
        assert said[1].mean() > 2 * said[0].mean()


def test_the_training_part_of_a_checkpoint_cannot_be_scored(toy) -> None:
    bank, checkpoint = toy
    with pytest.raises(LeakageError, match="48 of the 48 clips to score were seen in training"):
        probe(str(bank.path), checkpoint=checkpoint, train_part="test", part="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "tox"}, r"no dataset named 'tox' \(did you mean 'toy'\?\); there are: toy"),
        ({"protocol": "cross-view"}, "no protocol named 'cross-view'.*there are: cross-subject, none"),
        ({"part": "val"}, "no part named 'val'; there are: test, train"),
        ({"modalities": "rgb"}, "no rgb features of toy; python -m extract --dataset toy --modality rgb"),
        ({"pool": "max"}, "reduce='max'; accepted: mean, cls, none, resample:K"),
        ({"pool": "none"}, "accepted: mean, cls, resample:K, auto"),
        ({"protocol": "none"}, "a probe needs a protocol with parts"),
        ({"checkpoint": "run:nothing"}, "nothing"),
    ],
)
def test_errors_say_what_there_is(toy, options, message) -> None:
    bank, _ = toy
    with pytest.raises(FrameBankError, match=message):
        probe(str(bank.path), **options)


def test_a_dataset_without_splits_says_so(tmp_path) -> None:
    joint_bank(tmp_path / "bank")
    with pytest.raises(EvaluateError, match="joint: a probe needs a protocol"):
        probe(str(tmp_path / "bank"))
    with pytest.raises(UnknownNameError, match="no protocol named 'cross-subject'"):
        probe(str(tmp_path / "bank"), protocol="cross-subject")
