"""Intervals by known values and by coverage; leakage guards by hand."""

import numpy as np
import pyarrow as pa
import pytest

from evaluate.intervals import bootstrap_interval, share_interval
from evaluate.leakage import LeakageError, guard_checkpoint, keeps_apart, refuse_overlap


def test_wilson_by_published_value() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662."""
    hits = np.array([1.0] * 81 + [0.0] * 182)
    assert share_interval(hits) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_no_miss_is_not_certainty() -> None:
    low, high = share_interval(np.ones(20))
    assert high == 1.0
    assert low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_truth_is_inside_nineteen_times_of_twenty(share: float) -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        low, high = share_interval((rng.random(120) < share).astype(float))
        inside += low <= share <= high
    assert 0.92 <= inside / 600 <= 0.985


def test_balanced_interval_is_the_plain_one_for_equal_classes_and_wider_for_unequal() -> None:
    hits = np.tile([1.0, 1.0, 0.0], 40)
    assert share_interval(hits, np.arange(120) % 4) == pytest.approx(share_interval(hits))
    rare = np.array([0] * 110 + [1] * 10)
    low, high = share_interval(hits, rare)
    plain = share_interval(hits)
    assert high - low > 1.5 * (plain[1] - plain[0])


def test_bootstrap_of_the_mean_has_the_width_that_theory_says() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_interval(values)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.03)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(np.full(9, 3.0), np.median) == (3.0, 3.0)


@pytest.mark.parametrize("interval", [share_interval, bootstrap_interval])
def test_nothing_has_no_interval(interval) -> None:
    with pytest.raises(ValueError, match="no "):
        interval(np.zeros(0))


def test_overlap_names_how_many_and_the_first() -> None:
    with pytest.raises(
        LeakageError, match=r"here: 4 clips were seen in training \(a, b, c, \.\.\.\); do that"
    ):
        refuse_overlap("here", ["d", "c", "b", "a", "x"], ["a", "b", "c", "d"], "clips", "do that")
    refuse_overlap("here", ["a", None], ["b", None], "clips", "unknown is not equal")


def seen(*clips: tuple[str, str, str]) -> pa.Table:
    dataset, clip, subject = zip(*clips, strict=True)
    return pa.table({"dataset": dataset, "clip_id": clip, "subject": subject})


TEST = pa.table({"clip_id": ["t1", "t2"], "subject": ["P2", "P3"]})


def test_a_checkpoint_that_saw_a_test_clip_is_refused() -> None:
    with pytest.raises(LeakageError, match="1 of the 2 clips to score were seen in training"):
        guard_checkpoint("run", seen(("d", "t2", "P1")), "d", TEST, subjects_apart=False)


def test_a_clip_of_the_same_name_in_another_dataset_is_another_clip() -> None:
    guard_checkpoint("run", seen(("e", "t2", "P2")), "d", TEST, subjects_apart=True)


def test_a_test_subject_is_refused_only_where_the_protocol_keeps_subjects_apart() -> None:
    rows = seen(("d", "x", "P2"))
    with pytest.raises(LeakageError, match=r"subjects to score were seen in training \(P2\)"):
        guard_checkpoint("run", rows, "d", TEST, subjects_apart=True)
    guard_checkpoint("run", rows, "d", TEST, subjects_apart=False)  # cross-view: the same people, by design


def test_keeping_apart_needs_known_subjects_on_both_sides() -> None:
    assert keeps_apart(["P1", None], ["P2"])
    assert not keeps_apart(["P1"], ["P1", "P2"])
    assert not keeps_apart([None], ["P2"])
