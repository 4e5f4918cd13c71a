"""`evaluate zero-shot`: classes by hand, prompt averaging, chance, labels of supervision, and errors."""

import json

import numpy as np
import pytest
from evaluate_bank import aligned_bank, joint_bank, metrics_of, trained

import align
from align.config import TextConfig
from evaluate.leakage import LeakageError
from evaluate.source import Clips, EvaluateError
from evaluate.zero_shot import ALL_SETS, Prompts, averaged, classify, zero_shot
from store.errors import FrameBankError

AXES = np.eye(4, dtype=np.float32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def clips(vectors: np.ndarray, labels: list[int]) -> Clips:
    items = np.array([f"c{row}" for row in range(len(labels))], object)
    return Clips("rgb", items, np.array(labels), np.full(len(labels), None, object), vectors, "made")


def test_by_hand() -> None:
    """Three classes along axes; the clips lie near 0, near 1 (truly 2), between 1 and 2, and unlabelled."""
    vectors = np.array([[9, 1, 0, 0], [0, 5, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]], np.float32)
    found = classify(clips(vectors, [0, 2, 2, -1]), Prompts("p", np.arange(3), AXES[:3]), 3)
    assert found.labels.tolist() == [0, 2, 2]
    assert found.top_1.tolist() == [1, 0, 0.5]
    assert found.top_5.tolist() == [1, 1, 1]
    assert found.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1.5, 0.5]]


def test_length_of_a_vector_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 4, 30).tolist()
    prompts = Prompts("p", np.arange(4), AXES)
    scaled = vectors * rng.uniform(0.01, 100, (30, 1)).astype(np.float32)
    ours, theirs = (classify(clips(values, labels), prompts, 4).top_1 for values in (vectors, scaled))
    np.testing.assert_array_equal(ours, theirs)


def test_a_class_without_a_text_is_never_right() -> None:
    found = classify(clips(AXES, [0, 1, 2, 3]), Prompts("p", np.array([0, 1]), AXES[:2]), 4)
    assert found.top_1.tolist() == [1, 1, 0, 0]
    assert found.top_5.tolist() == [1, 1, 0, 0]


def test_prompts_are_averaged_as_unit_vectors() -> None:
    """A long text vector does not outweigh a short one: both are units before the mean."""
    one = averaged("p", [(3, AXES[0]), (3, AXES[1]), (0, AXES[2])])
    assert one.classes.tolist() == [0, 3]
    np.testing.assert_allclose(one.vectors, [AXES[2], (AXES[0] + AXES[1]) / np.sqrt(2)], atol=1e-6)


def test_a_collapsed_joint_space_is_at_chance(tmp_path) -> None:
    bank = joint_bank(tmp_path / "bank", collapsed=True)
    zero_shot(str(bank.path))
    rows = metrics_of(bank, "evaluate zero-shot")
    for row in rows:
        assert row["value"] == pytest.approx(row["detail"]["chance"])


def test_a_joint_space_needs_no_checkpoint(tmp_path, capsys) -> None:
    bank = joint_bank(tmp_path / "bank")
    zero_shot(str(bank.path))
    assert "joint, all clips; nearest class text; raw" in capsys.readouterr().out
    rows = metrics_of(bank, "evaluate zero-shot")
    assert {row["detail"]["prompt_set"] for row in rows} == {"name", "photo", ALL_SETS}
    assert all(row["value"] == 1.0 for row in rows)
    zero_shot(str(bank.path), prompt_set="photo")
    assert {row["detail"]["prompt_set"] for row in metrics_of(bank, "evaluate zero-shot")} == {"photo"}


def test_aligned_equals_naive(toy) -> None:
    bank, checkpoint = toy
    zero_shot(str(bank.path), checkpoint=checkpoint, modalities="depth")
    rows = {row["name"]: row for row in metrics_of(bank, "evaluate zero-shot")}
    alignment = align.load(checkpoint, bank.path)
    selection = bank.select("toy", "depth", protocol="cross-subject", part="test")
    texts = alignment.embed_texts(bank.texts(["wave", "kick", "clap", "sit"]))
    guess = (alignment.embed("depth", selection) @ texts.T).argmax(1)
    assert rows["zero-shot/accuracy"]["value"] == pytest.approx(np.mean(guess == selection.labels))
    assert rows["zero-shot/accuracy"]["value"] > 0.6
    per_class = [np.mean(guess[selection.labels == label] == label) for label in range(4)]
    assert rows["zero-shot/balanced_accuracy"]["value"] == pytest.approx(np.mean(per_class))
    folder = bank.sql(
        "SELECT directory FROM runs WHERE command = 'evaluate zero-shot' ORDER BY started_at"
    ).to_pylist()[-1]
    entry = json.loads((bank.path / folder["directory"] / "confusion.json").read_text())[0]
    assert entry["names"] == ["wave", "kick", "clap", "sit"]
    assert np.trace(entry["matrix"]) == pytest.approx(np.sum(guess == selection.labels))


def test_unseen_classes_are_told_apart_among_themselves(tmp_path, capsys) -> None:
    """A zero-shot protocol: two of the four classes are in the part, and chance is one half."""
    import pyarrow as pa

    bank = joint_bank(tmp_path / "bank")
    clips = bank.sql("SELECT clip_id, label FROM clips ORDER BY clip_id")
    labels = np.array(clips["label"].to_pylist())
    parts = pa.array(np.where(np.isin(labels, [1, 3]), "test", "train"))
    splits = pa.table({"protocol": ["zs0"] * len(clips), "clip_id": clips["clip_id"], "part": parts})
    bank.register("joint", clips=bank.sql("SELECT clip_id, label, label_name FROM clips"), splits=splits)
    for classes, chance in (("all", 0.25), ("part", 0.5)):
        zero_shot(str(bank.path), protocol="zs0", classes=classes)
        rows = [row for row in metrics_of(bank, "evaluate zero-shot") if row["name"] == "zero-shot/accuracy"]
        assert {row["detail"]["chance"] for row in rows} == {chance} and rows[0]["n"] == 20
    with pytest.raises(EvaluateError, match="zs0 val has no labelled clip; use --classes all"):
        zero_shot(str(bank.path), protocol="zs0", part="val", classes="part")


def test_supervision_by_the_class_names_is_said_aloud(toy, capsys) -> None:
    bank, checkpoint = toy
    zero_shot(str(bank.path), checkpoint=checkpoint, modalities="depth")
    assert "supervised by captions" in capsys.readouterr().out
    named = trained(bank, modalities="depth,text", text=TextConfig(source="labels"))
    zero_shot(str(bank.path), checkpoint=named, modalities="depth")
    assert (
        "SUPERVISED: the checkpoint was trained with these class names or labels" in capsys.readouterr().out
    )
    assert metrics_of(bank, "evaluate zero-shot")[0]["detail"]["supervision"] == ["labels"]


def test_different_spaces_are_refused_with_the_command(toy) -> None:
    with pytest.raises(
        EvaluateError, match=r"raw depth features and text features lie in different spaces.*align"
    ):
        zero_shot(str(toy[0].path), modalities="depth")


def test_a_checkpoint_without_text_is_refused(toy) -> None:
    bank, _ = toy
    without = trained(bank, modalities="depth,inertial")
    with pytest.raises(FrameBankError, match="no head for modality 'text'; it has: depth, inertial"):
        zero_shot(str(bank.path), checkpoint=without)


def test_training_clips_are_refused(toy) -> None:
    with pytest.raises(LeakageError, match="seen in training"):
        zero_shot(str(toy[0].path), checkpoint=toy[1], part="train")


def test_unlabelled_clips_have_nothing_to_score() -> None:
    with pytest.raises(EvaluateError, match="none of 4 rgb clips has a label"):
        classify(clips(AXES, [-1] * 4), Prompts("p", np.arange(4), AXES), 4)
