"""From one dataset or camera view to another: what passes on, what is refused, and that leakage is seen."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from align_bank import CLASSES, Toy, make_bank
from evaluate_bank import metrics_of, trained

from align.config import TextConfig
from evaluate.geometry import geometry
from evaluate.knn import knn
from evaluate.leakage import LeakageError
from evaluate.probe import probe
from evaluate.source import Clips, EvaluateError, Source
from evaluate.transfer import by_name, plain
from evaluate.zero_shot import zero_shot
from store.errors import FrameBankError
from store.spec import FieldSpec

OTHER = {"wave": "Wave", "kick": "KICK", "clap": "clap_", "sit": "stand up"}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """`toy`, and `far` with the same encoders: other clips, labels in another order, one class renamed.

    `toy` also has the view depth.side.
    """
    made = make_bank(tmp_path_factory.mktemp("transfer") / "bank", Toy(clips=96))
    make_bank(made.path, Toy(clips=72, name="far", seed=7))
    rows = made.sql(
        "SELECT clip_id, label, subject FROM clips WHERE dataset = 'far' ORDER BY clip_id"
    ).to_pylist()
    turned = [CLASSES[row["label"]] for row in rows]
    splits = made.sql("SELECT protocol, clip_id, part FROM splits WHERE dataset = 'far' ORDER BY clip_id")
    far = pa.table(
        {
            "clip_id": [row["clip_id"] for row in rows],
            "label": pa.array([3 - row["label"] for row in rows], pa.int32()),
            "label_name": [OTHER[name] for name in turned],
            "subject": [row["subject"] for row in rows],
        }
    )
    texts = pa.table(
        {
            "label": pa.array([3 - label for label in range(4)], pa.int32()),
            "label_name": [OTHER[name] for name in CLASSES],
            "prompt_set": ["names"] * 4,
            "text": list(CLASSES),
        }
    )
    made.register("far", clips=far, splits=splits, label_texts=texts)
    _side_view(made)
    return made


def _side_view(bank) -> None:
    """depth.side: the features of depth, a little turned, in the same space."""
    selection = bank.select("toy", "depth")
    turn = np.eye(16) + 0.05 * np.random.default_rng(0).normal(size=(16, 16))
    with bank.writer("toy", "depth.side", selection.spec, [FieldSpec("tokens", 1, 16)]) as writer:
        _copy(selection, writer, turn)


def _copy(selection, writer, turn=None) -> None:
    values, offsets = selection.read()
    for row, item in enumerate(selection.items):
        clip = values[offsets[row] : offsets[row + 1]].astype(np.float64)
        times = np.arange(len(clip), dtype=np.float32) / 10
        writer.add(item, 0, {"tokens": clip if turn is None else clip @ turn}, times)


@pytest.fixture(scope="module")
def checkpoint(bank) -> str:
    """Aligned on `far`, its class names told."""
    return trained(bank, dataset="far", modalities="skeleton,depth,text", text=TextConfig(source="labels"))


def accuracy(bank, command: str) -> dict:
    (row,) = [row for row in metrics_of(bank, f"evaluate {command}") if row["name"] == f"{command}/accuracy"]
    return row


@pytest.mark.parametrize("command", [probe, knn, zero_shot])
def test_a_checkpoint_of_another_dataset_is_evaluated_and_said_so(bank, checkpoint, command, capsys) -> None:
    command(str(bank.path), dataset="toy", checkpoint=checkpoint, modalities="skeleton")
    assert "on far; SUPERVISED: the checkpoint was trained with the class names or labels of far" in (
        capsys.readouterr().out
    )
    row = accuracy(bank, command.__name__.replace("_", "-"))
    assert row["detail"]["aligned_on"] == "far" and row["detail"]["supervision"] == ["labels"]
    assert row["value"] > 0.6  # chance 0.25


def test_geometry_of_another_dataset(bank, checkpoint, capsys) -> None:
    geometry(str(bank.path), dataset="toy", checkpoint=checkpoint)
    assert (
        "SUPERVISED: the checkpoint was trained with the class names or labels of far"
        in capsys.readouterr().out
    )


def test_equal_clip_ids_of_two_datasets_are_two_clips_unless_their_files_are_one(tmp_path) -> None:
    """`twin` has clips named as `toy`'s with other content; then files of equal content under both names."""
    sizes = {"skeleton": (3, 4), "depth": (1, 16)}
    toy = Toy(clips=24, modalities=tuple(sizes), without_depth=0)
    bank = make_bank(tmp_path / "bank", toy)
    other = make_bank(tmp_path / "other", replace(toy, seed=3))
    clips = bank.sql("SELECT clip_id, label, label_name, subject FROM clips ORDER BY clip_id")
    parts = pa.array(["test" if number % 6 < 3 else "train" for number in range(24)])  # toy trains on these
    splits = pa.table({"protocol": ["swapped"] * 24, "clip_id": clips["clip_id"], "part": parts})
    bank.register("twin", clips=clips, splits=splits)
    for modality, (tokens, dim) in sizes.items():
        selection = other.select("toy", modality)
        with bank.writer("twin", modality, selection.spec, [FieldSpec("tokens", tokens, dim)]) as writer:
            _copy(selection, writer)
    options = {"dataset": "twin", "modalities": "skeleton"}
    ways = {"checkpoint": trained(bank, dataset="toy", modalities="skeleton,depth")}, {"learn_dataset": "toy"}
    for way in ways:
        probe(str(bank.path), **options, **way)
    files = {"modality": ["skeleton"] * 24, "path": ["x"] * 24, "sample_hash": [f"{n}" for n in range(24)]}
    whole = {"clip_id": clips["clip_id"], **files}
    for name in ("toy", "twin"):
        bank.register(name, clips=clips, media=pa.table(whole))
    for way in ways:
        with pytest.raises(LeakageError, match="12 clips to score are recordings of toy that were seen in"):
            probe(str(bank.path), **options, **way)
    late = pa.table({**whole, "start_seconds": [2.0] * 24, "end_seconds": [3.0] * 24})
    bank.register("twin", clips=clips, media=late)  # spans of the whole files that toy has
    with pytest.raises(LeakageError, match="12 clips"):
        probe(str(bank.path), **options, **ways[1])
    bank.register("toy", clips=clips, media=pa.table({**whole, "end_seconds": [2.0] * 24}))
    probe(str(bank.path), **options, **ways[1])  # of one file, but apart in time


def test_a_classifier_passes_to_another_dataset_by_the_names_of_classes(bank, checkpoint, capsys) -> None:
    """Of four classes three have one name in both; labels differ throughout."""
    capsys.readouterr()
    options = {"modalities": "skeleton", "dataset": "toy", "learn_dataset": "far"}
    probe(str(bank.path), checkpoint=checkpoint, **options)
    assert "toy, cross-subject: learnt on train (far), scored on test" in capsys.readouterr().out
    aligned = accuracy(bank, "probe")
    probe(str(bank.path), **options)
    raw = accuracy(bank, "probe")
    for row in (aligned, raw):
        assert row["n"] == 36  # 12 clips a class
        assert row["detail"]["chance"] == pytest.approx(1 / 3)
        assert row["detail"]["learn_dataset"] == "far"
        assert row["value"] > 0.8


def test_labels_are_translated_by_name(bank) -> None:
    def clips(labels: list[int]) -> Clips:
        items = np.array([f"c{row}" for row in range(len(labels))], object)
        nobody = np.full(len(labels), None, object)
        return Clips("ir", items, np.array(labels), nobody, np.eye(len(labels), dtype=np.float32), "made")

    far, toy = Source(bank, "far", None), Source(bank, "toy", None)
    assert far.label_names == ["stand up", "clap_", "KICK", "Wave"] and toy.label_names == list(CLASSES)
    train, test = by_name(far, clips([0, 1, 2, 3, -1]), toy, clips([0, 1, 2, 3, -1]))
    assert train.labels.tolist() == [-1, 2, 1, 0, -1]
    assert test.labels.tolist() == [0, 1, 2, -1, -1]
    assert train.items.tolist()[0] == "far: c0" and test.items.tolist()[0] == "c0"
    strange = pa.table({"clip_id": ["a"], "label": pa.array([0], pa.int32()), "label_name": ["read"]})
    bank.register("strange", clips=strange)
    with pytest.raises(EvaluateError, match="strange and toy have no class name in common"):
        by_name(Source(bank, "strange", None), clips([0]), toy, clips([0]))
    assert plain(" Drinking_Water ") == "drinking water"


def test_another_camera_view_is_scored_without_training_on_it(bank) -> None:
    for checkpoint in (None, trained(bank, dataset="toy", modalities="skeleton,depth")):
        options = {"dataset": "toy", "checkpoint": checkpoint}
        probe(str(bank.path), modalities="depth.side", learn_from="depth", **options)
        row = accuracy(bank, "probe")
        assert (row["detail"]["modality"], row["detail"]["learn_from"]) == ("depth.side", "depth")
        assert row["value"] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_dataset": "toy"}, "--learn-dataset toy is the scored dataset"),
        ({"learn_dataset": "near"}, "no dataset named 'near'"),
        ({"learn_dataset": "far", "learn_protocol": "x"}, "no protocol named 'x'.*there are: cross-subject"),
        (
            {"learn_dataset": "far", "learn_from": "inertial"},
            "raw inertial and skeleton features lie in diff",
        ),
        ({"learn_dataset": "far", "learn_protocol": "none"}, "far: a probe needs a protocol with parts"),
    ],
)
def test_errors_say_what_is_accepted(bank, options, message) -> None:
    with pytest.raises(FrameBankError, match=message):
        probe(str(bank.path), dataset="toy", modalities="skeleton", **options)
