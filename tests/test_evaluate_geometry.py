"""`evaluate geometry`: what it records against slow references, which pairs it takes, and what it refuses."""

import numpy as np
import pytest
from evaluate_bank import aligned_bank, joint_bank, metrics_of, trained

import align
from align.config import TextConfig
from evaluate.geometry import geometry
from evaluate.source import EvaluateError
from store.errors import FrameBankError

MODALITY = {"uniformity", "effective_rank", "same_class_distance", "other_class_distance", "covariance_norm"}
TEXTS = {"own_text_distance", "other_text_distance", "text_ratio"}
PAIR = {"gap", "gap_share", "alignment", "centre_distance", "centre_cosine_distance", "covariance_distance"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def recorded(bank) -> dict[tuple[str, str], dict]:
    """(modality or pair, metric) -> row."""
    rows = metrics_of(bank, "evaluate geometry")
    return {
        (row["detail"].get("modality") or row["detail"]["pair"], row["name"].removeprefix("geometry/")): row
        for row in rows
    }


def test_an_aligned_space_has_all_pairs_and_its_numbers_are_the_naive_ones(toy, capsys) -> None:
    bank, checkpoint = toy
    assert geometry(str(bank.path), checkpoint=checkpoint, modalities="depth,skeleton") == 0
    out = capsys.readouterr().out
    assert "toy, cross-subject test; aligned" in out and "the checkpoint was supervised by captions" in out
    found = recorded(bank)
    assert {name for of, name in found if of == "depth"} == MODALITY | TEXTS
    assert {of for of, name in found if name == "gap"} == {
        "depth – skeleton",
        "depth – text",
        "skeleton – text",
    }
    assert {name for of, name in found if of == "depth – text"} == PAIR
    alignment = align.load(checkpoint, bank.path)
    views = {
        name: bank.select("toy", name, protocol="cross-subject", part="test")
        for name in ("depth", "skeleton")
    }
    x, y = (alignment.embed(name, views[name]).astype(np.float64) for name in views)
    y = y[np.isin(views["skeleton"].items, views["depth"].items)]
    labels = np.asarray(views["depth"].labels)
    texts = alignment.embed_texts(bank.texts(["wave", "kick", "clap", "sit"])).astype(np.float64)
    upper = np.triu_indices(len(x), 1)
    distance = 1 - x @ x.T
    expected = {
        ("depth – skeleton", "gap"): np.linalg.norm(x.mean(0) - y.mean(0)),
        ("depth – skeleton", "alignment"): ((x - y) ** 2).sum(1).mean(),
        ("depth – text", "gap"): np.linalg.norm(x.mean(0) - texts[labels].mean(0)),
        ("depth", "uniformity"): np.log(np.exp(-4 * distance[upper]).mean()),
        ("depth", "own_text_distance"): (1 - (x * texts[labels]).sum(1)).mean(),
        ("depth", "covariance_norm"): np.mean([np.linalg.norm(np.cov(x[labels == k].T)) for k in range(4)]),
        ("depth – skeleton", "covariance_distance"): np.mean(
            [np.linalg.norm(np.cov(x[labels == k].T) - np.cov(y[labels == k].T)) for k in range(4)]
        ),
        ("depth – text", "centre_distance"): np.mean(
            [np.linalg.norm(x[labels == k].mean(0) - texts[k]) for k in range(4)]
        ),
    }
    for key, value in expected.items():
        assert found[key]["value"] == pytest.approx(value, abs=1e-4), key
    for (of, name), row in found.items():
        assert row["n"] == (
            4 if "cent" in name or "covariance" in name else 48 if of.startswith("skel") else 38
        )
        assert name == "effective_rank" or row["low"] <= row["value"] <= row["high"]
        assert row["detail"]["seen_in_training"] is False and row["detail"]["supervision"] == ["captions"]
    assert found["depth", "text_ratio"]["value"] < 0.7  # by chance 1


def test_raw_features_of_different_spaces_have_no_pairs(toy, capsys) -> None:
    bank, _ = toy
    geometry(str(bank.path))
    found = recorded(bank)
    assert {name for _, name in found} == MODALITY
    assert {of for of, _ in found} == {"skeleton", "inertial", "depth"}
    out = capsys.readouterr().out
    assert "pair" not in out and "text" not in out  # no empty columns either


def test_a_joint_space_is_compared_with_its_texts_and_one_prompt_set_can_be_named(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank")
    geometry(str(bank.path))
    found = recorded(bank)
    assert found["rgb", "own_text_distance"]["detail"]["prompt_set"] == "all sets"
    assert found["rgb", "text_ratio"]["value"] < 0.2
    assert found["rgb – text", "gap"]["value"] < 0.15  # class k lies along axis k in both
    geometry(str(bank.path), prompt_set="photo")
    assert recorded(bank)["rgb", "own_text_distance"]["detail"]["prompt_set"] == "photo"
    with pytest.raises(EvaluateError, match="no class texts in prompt set 'song'; there are"):
        geometry(str(bank.path), prompt_set="song")


def test_a_collapsed_space_has_no_gap_and_no_spread(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank", collapsed=True)
    geometry(str(bank.path))
    found = recorded(bank)
    for key in (
        ("rgb", "uniformity"),
        ("rgb", "covariance_norm"),
        ("rgb – text", "gap"),
        ("rgb – text", "alignment"),
    ):
        assert found[key]["value"] == pytest.approx(0, abs=1e-5)
    assert found["rgb", "text_ratio"]["value"] == pytest.approx(1)
    assert found["rgb", "effective_rank"]["value"] == pytest.approx(0, abs=1e-3)


def test_clips_of_training_may_be_looked_at_and_are_marked(toy, capsys) -> None:
    bank, checkpoint = toy
    geometry(str(bank.path), checkpoint=checkpoint, modalities="depth", part="train")
    assert "training saw some of these clips" in capsys.readouterr().out
    assert all(row["detail"]["seen_in_training"] for row in recorded(bank).values())


def test_a_checkpoint_without_text_has_no_text_pairs(toy) -> None:
    bank, _ = toy
    without = trained(bank, modalities="depth,skeleton")
    geometry(str(bank.path), checkpoint=without)
    assert {of for of, _ in recorded(bank)} == {"depth", "skeleton", "depth – skeleton"}


def test_class_names_are_said_aloud(toy, capsys) -> None:
    bank, _ = toy
    named = trained(bank, modalities="depth,text", text=TextConfig(source="labels"))
    geometry(str(bank.path), checkpoint=named)
    assert (
        "SUPERVISED: the checkpoint was trained with these class names or labels" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "{0},{0}"}, "2 checkpoints; one at a time is accepted"),
        ({"modalities": "rgb"}, "no rgb features of toy"),
        ({"part": "val"}, "no part named 'val'; there are: test, train"),
        ({"pool": "none"}, "accepted: mean, cls, resample:K, auto"),
    ],
)
def test_errors_say_what_there_is(toy, options, message) -> None:
    bank, checkpoint = toy
    filled = {key: value.format(checkpoint) for key, value in options.items()}
    with pytest.raises(FrameBankError, match=message):
        geometry(str(bank.path), **filled)
