"""Seen and unseen classes apart, and their harmonic mean: by hand, by a bootstrap, and on a bank."""

import numpy as np
import pytest
from align_bank import Toy, make_bank
from evaluate_bank import aligned_bank, metrics_of, trained

from evaluate.unseen import apart, harmonic, seen_of_both
from evaluate.zero_shot import zero_shot


def test_by_hand() -> None:
    """Seen classes 0 and 1: 2 of 2 and 1 of 2 right; unseen class 2: 1 of 4."""
    hits = np.array([[1, 1, 1, 0, 1, 0, 0, 0]], float)
    old, new, both = apart(hits, np.array([0, 0, 1, 1, 2, 2, 2, 2]), {0, 1}, {"a": 1})
    assert [one.name for one in (old, new, both)] == ["seen_accuracy", "unseen_accuracy", "harmonic_mean"]
    assert (old.value, old.n, new.value, new.n) == (0.75, 4, 0.25, 4)
    assert both.value == pytest.approx(2 * 0.75 * 0.25) and both.n == 8
    assert both.low < both.value < both.high and both.detail == {"a": 1}


def test_classes_count_alike() -> None:
    hits = np.array([[1, 1, 1, 0, 1]], float)
    old, _, _ = apart(hits, np.array([0, 0, 0, 1, 2]), {0, 1}, {})
    assert old.value == 0.5


def test_one_kind_of_class_has_no_harmonic_mean() -> None:
    hits, labels = np.ones((1, 3)), np.array([0, 1, 2])
    assert apart(hits, labels, {0, 1, 2}, {}) == apart(hits, labels, (), {}) == []


def test_a_model_that_never_names_the_unseen_gets_nothing() -> None:
    hits = np.array([[1, 1, 0, 0]], float)
    *_, both = apart(hits, np.array([0, 0, 1, 1]), {0}, {})
    assert both.value == both.low == 0 and both.high > 0
    *_, none = apart(np.zeros((1, 4)), np.array([0, 0, 1, 1]), {0}, {})
    assert none.value == none.low == 0 and 0 < none.high < 1
    assert harmonic(0, 0) == 0


def test_the_interval_is_about_that_of_a_bootstrap_within_each_kind() -> None:
    rng = np.random.default_rng(0)
    old, new = (rng.random(300) < 0.8).astype(float), (rng.random(200) < 0.4).astype(float)
    *_, both = apart(np.concatenate([old, new])[None], np.repeat([0, 1], [300, 200]), {0}, {})
    drawn = [harmonic(rng.choice(old, 300).mean(), rng.choice(new, 200).mean()) for _ in range(3000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (both.low, both.high) == pytest.approx((low, high), abs=0.012)


def test_training_on_some_classes_makes_the_others_unseen(tmp_path, capsys) -> None:
    bank = make_bank(tmp_path / "bank", Toy(clips=96, modalities=("depth", "text")))
    half = trained(bank, modalities="depth,text", where="label < 2")
    zero_shot(str(bank.path), checkpoint=half)
    assert "harmonic" in capsys.readouterr().out
    rows = {row["name"].removeprefix("zero-shot/"): row for row in metrics_of(bank, "evaluate zero-shot")}
    old, new, both = (rows[name] for name in ("seen_accuracy", "unseen_accuracy", "harmonic_mean"))
    assert both["value"] == pytest.approx(harmonic(old["value"], new["value"]))
    assert old["n"] + new["n"] == both["n"] == rows["accuracy"]["n"]
    total = (old["value"] + new["value"]) / 2  # two classes each
    assert rows["balanced_accuracy"]["value"] == pytest.approx(total)


def test_nothing_is_apart_where_training_saw_all_classes_or_was_elsewhere(tmp_path_factory) -> None:
    from evaluate.source import open_sources

    bank, checkpoint = aligned_bank(tmp_path_factory)
    sources = open_sources(bank.path, "toy", None, checkpoint)
    assert seen_of_both(sources, range(4)) == frozenset()
    assert seen_of_both(sources, [2, 3, 7]) == {2, 3}
    sources[0].dataset = "elsewhere"
    assert seen_of_both(sources, [2, 3, 7]) == frozenset()
