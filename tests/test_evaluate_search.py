"""`evaluate search`: aligned, joint and text-to-text searches, likeness, thumbnails, and honest labels."""

import json
import os
import stat

import numpy as np
import pyarrow as pa
import pytest
from evaluate_bank import aligned_bank, joint_bank

import align
from encoders.errors import EncoderError
from evaluate.search import pictured_modalities, search
from evaluate.source import EvaluateError
from store.bank import Bank
from store.errors import FrameBankError
from store.places import thumbnail_path
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return aligned_bank(tmp_path_factory)


def table(text: str) -> list[list[str]]:
    """The lines between the rule and the blank line, split at two spaces or more."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("-----")) + 1
    return [
        [cell for cell in line.split("  ") if cell.strip()] for line in lines[start : lines.index("", start)]
    ]


def test_a_sentence_finds_its_class_in_the_aligned_space(toy, capsys) -> None:
    bank, checkpoint = toy
    search("kick, seen from afar", str(bank.path), checkpoint=checkpoint, top=4)
    out = capsys.readouterr().out
    assert (
        f"in the aligned {checkpoint.removeprefix('run:')} space of depth, skeleton, inertial and text" in out
    )
    rows = table(out)
    assert len(rows) == 4
    assert [row[3].strip() for row in rows] == ["kick"] * 4


def test_scores_are_cosines_of_the_clips_mean_embedding(toy, capsys) -> None:
    bank, checkpoint = toy
    search("sit", str(bank.path), checkpoint=checkpoint, modalities="inertial", top=3)
    rows = table(capsys.readouterr().out)
    alignment = align.load(checkpoint, bank.path)
    selection = bank.select("toy", "inertial")
    scores = alignment.embed("inertial", selection) @ alignment.embed_texts(bank.texts(["sit"]))[0]
    order = np.argsort(-scores)[:3]
    assert [row[2].strip() for row in rows] == selection.items[order].tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(scores[order].tolist(), abs=2e-4)


def test_a_clip_finds_others_like_it_but_not_itself(toy, capsys) -> None:
    bank, checkpoint = toy
    search("toy clip/0003", str(bank.path), like=True, checkpoint=checkpoint, top=5)
    rows = table(capsys.readouterr().out)
    assert len(rows) == 5
    assert "toy clip/0003" not in [row[2].strip() for row in rows]
    assert [row[3].strip() for row in rows].count("wave") >= 4


def test_raw_likeness_stays_within_one_modality(toy, capsys) -> None:
    bank, _ = toy
    search("toy clip/0003", str(bank.path), like=True)
    assert "by depth, raw" in capsys.readouterr().out
    with pytest.raises(EvaluateError, match="raw depth, inertial share no space; name one"):
        search("toy clip/0003", str(bank.path), like=True, modalities="depth,inertial")


def test_a_joint_space_needs_no_checkpoint(tmp_path, capsys) -> None:
    bank = joint_bank(tmp_path / "bank")
    search("a photo of a clap", str(bank.path), top=3)
    out = capsys.readouterr().out
    assert "in the joint space of text and rgb" in out
    assert [row[3].strip() for row in table(out)] == ["clap"] * 3


def test_without_a_space_it_compares_texts_and_says_so(toy, capsys) -> None:
    search("clap, seen from afar", str(toy[0].path), top=2)
    out = capsys.readouterr().out
    assert "TEXT TO TEXT: by captions or class texts, not by content" in out
    for row in table(out):
        assert row[4].strip() == "clap, seen from afar"


def test_a_named_modality_without_a_joint_space_is_refused(toy) -> None:
    with pytest.raises(
        EvaluateError, match=r"raw depth features share no space with text.*--modalities depth,text"
    ):
        search("clap", str(toy[0].path), modalities="depth")


def test_a_new_sentence_needs_its_encoder(toy) -> None:
    """The toy's text encoder is made up, so only sentences that the bank knows can be searched for."""
    with pytest.raises(EncoderError, match="no encoder named 'toy-text'; there are:"):
        search("never seen before", str(toy[0].path), checkpoint=toy[1])


def test_an_unknown_clip_is_named(toy) -> None:
    with pytest.raises(EvaluateError, match="of clip 'nobody' in toy"):
        search("nobody", str(toy[0].path), like=True, checkpoint=toy[1])


def test_thumbnails_are_printed_whole_and_kept_for_the_report(tmp_path, capsys) -> None:
    bank = joint_bank(
        tmp_path / ("a folder whose name makes the path longer than a table's cell " * 2).strip()
    )
    path = thumbnail_path(bank, "joint", "rgb", "c02")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"jpeg")
    search("clap", str(bank.path), top=40)
    out = capsys.readouterr().out
    assert str(path) in out
    assert pictured_modalities(bank, "joint") == ["rgb"]
    folder = bank.sql("SELECT directory FROM runs WHERE command = 'evaluate search'").to_pylist()[0][
        "directory"
    ]
    entry = json.loads((bank.path / folder / "examples.json").read_text())[0]
    assert entry["query_item"] == {"modality": "text", "text": "clap", "class": ""}
    assert len(entry["results"]) == 40
    assert entry["results"][0].keys() == {"modality", "item", "class", "score", "right"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_bank_can_be_searched(tmp_path, capsys) -> None:
    bank = joint_bank(tmp_path / "bank")
    bank.path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    search("clap", str(bank.path))
    assert "not recorded" in capsys.readouterr().err
    bank.path.chmod(stat.S_IRWXU)


def with_texts_of(encoder, folder) -> Bank:
    """The toy clips with captions encoded by a real encoder, as extraction would store them."""
    from align_bank import Toy, make_bank

    bank = make_bank(folder / "bank", Toy(clips=24, modalities=("skeleton",)))
    texts = bank.sql("SELECT text_id, text FROM texts ORDER BY text_id").to_pylist()
    features = encoder.encode_text([row["text"] for row in texts]).numpy()
    field = FieldSpec("embedding", 1, features.shape[1])
    spec = FeatureSpec(encoder.name, encoder.space, {"precision": "fp32"})
    with bank.writer(TEXTS, TEXT, spec, [field]) as writer:
        for row, feature in zip(texts, features, strict=True):
            writer.add(row["text_id"], 0, {"embedding": feature.reshape(1, 1, -1)}, [0.0])
    return bank


@pytest.mark.parametrize("preset", ["official", "cmvra"])
def test_a_query_meets_the_texts_encoder_by_its_stored_name(tmp_path, capsys, preset) -> None:
    """``clip-vip-b16-tiny-random``, of either preset."""
    from encoders import load_encoder
    from evaluate.shelves import encoded
    from evaluate.source import open_sources

    options = {"modality": "text", "architecture": "tiny", "preset": preset}
    encoder = load_encoder("clip-vip-b16", "random", **options)
    bank = with_texts_of(encoder, tmp_path)
    (source,) = open_sources(bank.path, None, None, None, part=None, encoders={TEXT: encoder.name})
    typed = encoded(source, ["words that the bank has not"])
    np.testing.assert_allclose(typed, encoder.encode_text(["words that the bank has not"]), atol=1e-6)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Bank:
    """The toy clips with captions encoded by the real MiniLM."""
    from encoders.minilm import MiniLM

    return with_texts_of(MiniLM(), tmp_path_factory.mktemp("spoken"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("applauding with both palms", "clap"),
        ("taking a seat on a chair", "sit"),
        ("a foot hits the ball", "kick"),
    ],
)
def test_new_words_are_understood_by_the_real_encoder(spoken, capsys, sentence, found) -> None:
    search(sentence, str(spoken.path), top=1)
    assert table(capsys.readouterr().out)[0][3].strip() == found


@pytest.mark.slow
def test_other_weights_than_the_banks_are_refused(spoken, tmp_path) -> None:
    import shutil

    from encoders.minilm import MiniLM

    other = tmp_path / "other"
    shutil.copytree(MiniLM().folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(
        FrameBankError, match=r"text encoder minilm gives space \w+, the bank's texts are of \w+"
    ):
        search("words of today", str(spoken.path), text_weights=str(other))


def test_a_condition_is_honoured_exactly(toy, capsys) -> None:
    """The best of those that fit, also where the best of all do not."""
    bank, checkpoint = toy
    where = "label_name LIKE 'w%' AND subject IN ('P001', 'P002')"
    search("kick", str(bank.path), checkpoint=checkpoint, modalities="inertial", top=4, where=where)
    rows = table(capsys.readouterr().out)
    alignment, selection = align.load(checkpoint, bank.path), bank.select("toy", "inertial", where=where)
    scores = alignment.embed("inertial", selection) @ alignment.embed_texts(bank.texts(["kick"]))[0]
    assert [row[2].strip() for row in rows] == selection.items[np.argsort(-scores)[:4]].tolist()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("subject = 'nobody'", "no clip of toy fits"),
        ("colour = 1", "colour"),
        ("true); DROP TABLE clips; --", "the last statement"),
    ],
)
def test_a_condition_that_leaves_nothing_or_is_no_sql_is_an_error(toy, where, message) -> None:
    with pytest.raises(FrameBankError, match=message):
        search("kick", str(toy[0].path), checkpoint=toy[1], where=where)
    assert toy[0].sql("SELECT count(*) AS n FROM clips")["n"][0].as_py() == 96


def test_clips_that_fit_but_lack_the_modality_are_told(toy) -> None:
    """Every fifth clip has no depth."""
    where = "clip_id = 'toy clip/0005'"
    with pytest.raises(EvaluateError, match=r"no clip that fits .* has depth features"):
        search("kick", str(toy[0].path), checkpoint=toy[1], modalities="depth", where=where)


def test_frames_tell_the_moment(tmp_path, capsys) -> None:
    """A clip of ten frames at 2 Hz that shows class 1 (kick) in frames 6 to 8, else class 0."""
    bank = joint_bank(tmp_path / "bank")
    frames = np.eye(8)[[0, 0, 0, 0, 0, 0, 1, 1, 1, 0]].reshape(10, 1, 8)
    spec, fields = FeatureSpec("clip", {"weights": "by hand"}), [FieldSpec("cls", 1, 8)]
    with bank.writer("joint", "rgb", spec, fields) as writer:
        for clip in ("c01", "c05", "c09"):
            writer.add(clip, 0, {"cls": frames}, np.arange(10) / 2)
    search("kick", str(bank.path), top=3, frames=True, where="clip_id IN ('c01', 'c05', 'c09')")
    out = capsys.readouterr().out
    assert out.count("2.75-4.25 s") == 3


def test_frames_of_an_aligned_sequence(toy, capsys) -> None:
    bank, checkpoint = toy
    search("kick", str(bank.path), checkpoint=checkpoint, modalities="skeleton", top=2, frames=True)
    rows = table(capsys.readouterr().out)
    selection = bank.select("toy", "skeleton", items=[row[2].strip() for row in rows])
    for row, times in zip(rows, selection.times(), strict=True):
        start, _, end = row[4].split()[0].partition("-")
        assert times[0] <= float(start) + 0.006 <= float(end) + 0.012 <= times[-1] + 0.02
    with pytest.raises(EvaluateError, match="have one vector a clip in this space"):
        search("clap", str(toy[0].path), frames=True)


def test_the_stretch_around_the_best_frame_by_hand() -> None:
    from evaluate.moments import moment

    times = np.arange(6, dtype=np.float32)
    one = moment(np.array([0.0, 0.9, 0.1, 0.8, 1.0, 0.2]), times)
    assert (one.start_seconds, one.end_seconds, one.score) == (2.5, 4.5, 1.0)
    everything = moment(np.ones(6), times)
    assert (everything.start_seconds, everything.end_seconds) == (0, 5)
    assert str(moment(np.ones(1), times[:1])) == "0.00-0.00 s (1.000)"


@pytest.mark.slow
def test_real_sentences_are_indexed_and_searched(tmp_path, shared, capsys) -> None:
    """Two hundred of MSR-VTT's captions by MiniLM; a sentence of other words finds its like."""
    import csv

    from encoders.minilm import MiniLM
    from evaluate.index_commands import build

    with (shared / "data" / "msrvtt" / "MSRVTT_JSFUSION_test.csv").open() as file:
        rows = list(csv.DictReader(file))[:200]
    clips, sentences = [row["video_id"] for row in rows], [row["sentence"] for row in rows]
    bank, encoder = Bank.open(tmp_path / "bank", create=True), MiniLM()
    captions = pa.table({"clip_id": clips, "text": sentences})
    bank.register("msrvtt", clips=pa.table({"clip_id": clips}), captions=captions)
    unique = list(dict.fromkeys(sentences))
    field, spec = FieldSpec("embedding", 1, 384), FeatureSpec(encoder.name, encoder.space)
    with bank.writer(TEXTS, TEXT, spec, [field]) as writer:
        for text_id, one in zip(bank.add_texts(unique), encoder.encode_text(unique).numpy(), strict=True):
            writer.add(text_id, 0, {"embedding": one.reshape(1, 1, -1)}, [0.0])
    build(str(bank.path), modalities="text", kind="exact", name="sentences")
    capsys.readouterr()
    search("somebody prepares food in a kitchen", str(bank.path), top=3)
    out = capsys.readouterr().out
    assert "by index sentences (exact)" in out
    assert all(any(word in row[3] for word in ("cook", "food", "kitchen")) for row in table(out))
