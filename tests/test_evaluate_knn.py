"""Nearest-neighbour classification: votes by hand, scikit-learn on distinct points, chance, the command."""

import numpy as np
import pytest
from evaluate_bank import aligned_bank, metrics_of
from sklearn.neighbors import KNeighborsClassifier

from evaluate.knn import knn, vote
from evaluate.leakage import LeakageError
from evaluate.source import Clips, EvaluateError


def clips(vectors, labels, prefix):
    items = np.array([f"{prefix}{number}" for number in range(len(labels))])
    subjects = np.array([None] * len(labels), object)
    return Clips("rgb", items, np.array(labels), subjects, np.asarray(vectors, np.float32), "by hand")


def test_votes_by_hand() -> None:
    known = clips([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], [0, 0, 1, 2], "k")
    asked = clips([[1, 0.05], [0, 2], [0.05, 1]], [0, 1, 0], "a")
    found = vote(known, asked, 2, classes=3)
    # Two votes for class 0; one each for 1 and 2: half right; the same again, where class 0 has no vote.
    assert found.top_1.tolist() == [1.0, 0.5, 0.0]
    assert found.confusion.tolist() == [[1, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 0]]


def test_majorities_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16))
    labels, asked_labels = rng.integers(0, 4, 200), rng.integers(0, 4, 100)
    known = clips(centres[labels] + rng.normal(size=(200, 16)), labels, "k")
    asked = clips(centres[asked_labels] + rng.normal(size=(100, 16)), asked_labels, "a")
    found = vote(
        known, asked, 1, classes=4
    )  # one neighbour: no ties, whose rule scikit-learn has its own for
    reference = KNeighborsClassifier(1, metric="cosine").fit(known.vectors, labels).predict(asked.vectors)
    np.testing.assert_array_equal(found.top_1, reference == asked_labels)
    assert vote(known, asked, 25, classes=4).top_1.mean() > 0.8


def test_more_neighbours_than_clips_and_unlabelled_clips() -> None:
    known = clips([[1, 0], [0, 1], [1, 1]], [0, 1, -1], "k")
    asked = clips([[1, 0], [1, 0]], [0, -1], "a")
    assert vote(known, asked, 50, classes=2).top_1.tolist() == [0.5]
    with pytest.raises(EvaluateError, match="0 labelled rgb clips to search and 1 labelled"):
        vote(clips([[1, 0]], [-1], "k"), asked, 1, classes=2)


def test_a_clip_on_both_sides_is_refused() -> None:
    one = clips([[1, 0]], [0], "k")
    with pytest.raises(LeakageError):
        vote(one, one, 1, classes=1)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def test_command_prints_and_records(toy, capsys) -> None:
    bank, checkpoint = toy
    knn(str(bank.path), checkpoint=checkpoint, neighbours=3)
    own = {row["detail"]["modality"]: row["value"] for row in metrics_of(bank, "evaluate knn")
           if row["name"] == "knn/accuracy"}  # fmt: skip
    assert len(own) >= 2 and max(own.values()) > 0.5
    first, second = list(own)[:2]
    knn(str(bank.path), checkpoint=checkpoint, modalities=first, among=second)
    (row,) = [row for row in metrics_of(bank, "evaluate knn") if row["name"] == "knn/accuracy"]
    assert (row["detail"]["modality"], row["detail"]["among"]) == (first, second)
    assert row["value"] > row["detail"]["chance"]
    assert "5 nearest of train, test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "--neighbours 0; 1 or more"),
        ({"among": "skeleton"}, "--among needs --checkpoint"),
        ({"protocol": "none"}, "needs a protocol with parts"),
    ],
)
def test_errors_say_what_is_needed(toy, options, message) -> None:
    with pytest.raises(EvaluateError, match=message):
        knn(str(toy[0].path), **options)
