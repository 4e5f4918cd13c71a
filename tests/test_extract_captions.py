"""`python -m extract.captions` with a tiny LLaVA-NeXT that generates: what is missing, and only that."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from extract_toys import ENVIRONMENT, extract, shared_pool, write_corpus
from llava_folders import write_llava_next
from media_files import write_video

from encoders.llava_next import LlavaNext
from extract.captioning import CaptionRequest, execute
from extract.captions import main
from extract.pictures import AtPositions, Pictures
from extract.sampling import SamplingError, frame_indices
from store.bank import Bank

CLIPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llava_next(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), CLIPS)


@pytest.fixture
def caption(model, corpus, tmp_path):
    """Captions the corpus in this process; the bank, after checking the exit status."""

    def run(check=0, bank="bank", **choices):
        asked = CaptionRequest(str(corpus), str(model), bank=str(tmp_path / bank), prompt="what is done ?")
        asked = replace(asked, max_new_tokens=8, precision="fp32", device="cpu")
        assert execute(replace(asked, **choices), shared_pool()) == check
        return Bank.open(tmp_path / bank)

    return run


def made(bank, like="llava-next@%"):
    """{clip: its texts, sorted} of the generated captions."""
    sql = """SELECT clip_id, list(text ORDER BY text) AS texts FROM captions JOIN texts USING (text_id)
        WHERE source LIKE ? GROUP BY clip_id ORDER BY clip_id"""
    return {row["clip_id"]: row["texts"] for row in bank.sql(sql, [like]).to_pylist()}


def sources(bank):
    rows = bank.sql("SELECT source, count(*) AS n FROM captions GROUP BY source ORDER BY source").to_pylist()
    return {row["source"].partition("@")[0]: row["n"] for row in rows}


# Which frames


@pytest.mark.parametrize("fps", [30, 25, 29.97, 12])
def test_the_default_positions_are_the_frames_of_cmvra(fps):
    sampling = AtPositions.parse_positions("1/3,1/2,2/3")
    for total in range(1, 300):
        expected = [total // 3, total // 2, 2 * total // 3]
        assert frame_indices(np.arange(total) / fps, sampling, fps=fps).tolist() == expected, total


def test_positions_lie_in_the_clip_s_own_span():
    halves = AtPositions.parse_positions("0, 0.5")
    assert frame_indices(np.arange(100) / 10, halves, 2.0, 6.0).tolist() == [20, 40]
    assert halves.key() == {"positions": [0.0, 0.5]} and halves.frames == 2
    assert AtPositions.parse_positions("2/3,1/3,0.5") == AtPositions.parse_positions("1/3,1/2,2/3")


@pytest.mark.parametrize("text", ["", "a", "1", "-0.1", "1/0", "0.5,,"])
def test_positions_that_are_none_are_refused(text):
    with pytest.raises(SamplingError, match="numbers from 0 to below 1"):
        AtPositions.parse_positions(text)


def test_only_colour_pictures_are_shown():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert Pictures()(frames, "rgb", None, np.zeros(3)) is frames
    with pytest.raises(ValueError, match="uint16"):
        Pictures()(frames[..., 0].astype(np.uint16), "depth", None, np.zeros(3))


# What is done


def test_every_clip_is_described_once_and_then_nothing_is_missing(caption, capsys):
    bank = caption()
    texts = made(bank)
    assert len(texts) == CLIPS and all(1 <= len(several) <= 9 for several in texts.values())
    assert len({tuple(several) for several in texts.values()}) == CLIPS  # other pictures, other texts
    assert sources(bank) == {"listing": CLIPS, "llava-next": sum(map(len, texts.values()))}
    out, err = capsys.readouterr()
    assert f"{CLIPS} clips captioned in" in out and f"captions of toy/rgb: {CLIPS}/{CLIPS} clips" in err
    assert "to encode the texts: python -m extract --dataset toy --modality text" in err
    runs = bank.sql(
        "SELECT status, config ->> '$.spec.reading.sampling.positions' AS p FROM runs"
    ).to_pylist()
    assert runs == [{"status": "done", "p": "[0.3333333333333333,0.5,0.6666666666666666]"}]
    caption()
    assert f"nothing is missing: all {CLIPS} clips of toy/rgb llava-next@" in capsys.readouterr().out
    assert made(bank) == texts and len(bank.sql("SELECT * FROM runs")) == 1
    caption(where="start_seconds IS NULL AND subject = '2'")
    assert "nothing is missing: all 1 clips of toy/rgb" in capsys.readouterr().out
    caption(where="subject = 'nobody'")
    assert "no clip of toy/rgb fits --where" in capsys.readouterr().out


def test_texts_do_not_depend_on_batches_limits_and_order(caption):
    texts = made(caption(batch_frames=2))
    assert made(caption(bank="other", batch_frames=7)) == texts
    for limit in (1, CLIPS):
        bank = caption(bank="piecemeal", limit=limit, batch_frames=1)
    assert made(bank) == texts
    some = caption(bank="some", where="subject = '1'")
    assert made(some) == {"c001": texts["c001"]}
    assert made(caption(bank="again", seed=1)) != texts


def test_other_settings_are_another_source_and_auto_takes_the_precision_that_is_there(caption, capsys):
    bank = caption(samples=1)
    caption(samples=2)
    caption(samples=1, positions="1/2")
    assert len(bank.sql("SELECT DISTINCT source FROM captions WHERE source LIKE 'llava%'")) == 3
    for precision in ("fp32", "bf16"):
        caption(bank=precision, precision=precision, samples=1)
        capsys.readouterr()
        caption(bank=precision, precision="auto", samples=1)
        assert "nothing is missing" in capsys.readouterr().out


def test_extraction_keeps_them_and_a_replaced_file_is_described_anew(caption, model, tmp_path):
    corpus = write_corpus(tmp_path / "own", 3)
    bank = caption(dataset=str(corpus))
    before = made(bank)
    extract(corpus, tmp_path / "bank", device="cpu")
    assert made(bank) == before and sources(bank)["listing"] == 3
    write_video(
        tmp_path / "own" / "clip 001.avi", 9, 10, pattern=lambda k: np.full((48, 64, 3), 200 + k, "u1")
    )
    caption(dataset=str(corpus))
    after = made(bank)
    assert {clip for clip in before if after[clip] != before[clip]} == {"c001"}


def test_no_file_no_picture_no_text_are_failures_that_are_tried_again(caption, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "own", 3)
    broken = tmp_path / "own" / "clip 001.avi"
    whole = broken.read_bytes()
    broken.write_bytes(b"this is no video")
    bank = caption(1, dataset=str(corpus), max_failures=0.5)
    assert set(made(bank)) == {"c000", "c002"}
    (failure,) = bank.failures().to_pylist()
    assert (failure["clip_id"], failure["modality"], failure["stage"]) == ("c001", "rgb", "caption")
    assert failure["error"].startswith("read: ") and failure["feature_set"].startswith("llava-next@")
    err = capsys.readouterr().err
    assert "failed: c001 (attempt 1): read: " in err and "python -m store sql" in err
    broken.write_bytes(whole)
    caption(dataset=str(corpus))
    assert set(made(bank)) == {"c000", "c001", "c002"} and not len(bank.failures())


def test_an_empty_text_is_a_failure_and_never_the_class_name(caption, tmp_path):
    mute = write_llava_next(tmp_path / "mute", mute=True)
    bank = caption(1, model=str(mute), samples=1, temperature=0.0, max_failures=1.0)
    assert made(bank) == {}
    errors = bank.failures()["error"].to_pylist()
    assert errors == ["EmptyCaptionError: all 3 texts are empty"] * CLIPS


def test_too_many_failures_stop_the_run(caption, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "own", 4)
    for clip in (1, 2):
        (tmp_path / "own" / f"clip 00{clip}.avi").write_bytes(b"")
    caption(1, dataset=str(corpus), max_failures=0.2)
    assert "more than --max-failures 0.2 allows; most of them: " in capsys.readouterr().err


def test_frames_of_several_sizes_in_one_dataset(caption, tmp_path):
    corpus = write_corpus(tmp_path / "own", 3)
    for clip, size in ((0, (48, 64)), (1, (96, 32))):
        path = tmp_path / "own" / f"clip 00{clip}.avi"
        write_video(path, 6, 10, size=size, pattern=lambda k, s=size: np.full((s[1], s[0], 3), 9 * k, "u1"))
    texts = made(caption(dataset=str(corpus), batch_frames=5))
    assert len(texts) == 3
    assert made(caption(dataset=str(corpus), bank="one", batch_frames=1)) == texts


def test_a_device_with_too_little_memory_gets_smaller_batches(caption, monkeypatch):
    """The fault is made up, what follows is not: the batch is halved once, for all that come."""
    texts = made(caption())
    describe, refused = LlavaNext.describe, []

    def small(self, frames, seeds):
        if len(frames) > 2:
            refused.append(len(frames))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return describe(self, frames, seeds)

    monkeypatch.setattr(LlavaNext, "describe", small)
    assert made(caption(bank="small", batch_frames=4)) == texts
    assert refused == [4]


def test_one_bad_frame_costs_only_its_clip(caption, monkeypatch):
    texts = made(caption())
    describe = LlavaNext.describe

    def strict(self, frames, seeds):
        if any(frame[0, 0, 0] == pictured for frame in frames):
            raise ValueError("this frame cannot be looked at")
        return describe(self, frames, seeds)

    seen = []
    monkeypatch.setattr(LlavaNext, "describe", lambda self, f, s: seen.extend(f) or describe(self, f, s))
    caption(bank="look", where="clip_id = 'c001'")
    pictured = seen[0][0, 0, 0]
    monkeypatch.setattr(LlavaNext, "describe", strict)
    bank = caption(1, bank="bad", batch_frames=5, max_failures=1.0)
    assert made(bank) == {clip: several for clip, several in texts.items() if clip != "c001"}
    (failure,) = bank.failures().to_pylist()
    assert failure["error"] == "ValueError: this frame cannot be looked at"


# Files


@pytest.fixture
def command(capsys):
    """The command as typed, in this process; what it prints, after checking the exit status."""

    def typed(*arguments, check=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert exit_.value.code == check, out + err
        return out if check == 0 else err

    return typed


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_captions_go_to_a_file_and_come_back(caption, command, tmp_path):
    bank = caption()
    file = tmp_path / "captions.jsonl"
    named = bank.sql("SELECT DISTINCT source FROM captions WHERE source LIKE 'llava%'")
    (source,) = named["source"].to_pylist()
    place = ("--dataset", "toy", "--bank", bank.path, "--file", file)
    assert "name one by --source: listing, llava-next@" in command("export", *place, check=2)
    command("export", *place, "--source", source)
    assert {row["clip_id"]: row["text"] for row in lines(file)} == made(bank)
    assert f"captions of {CLIPS} clips imported as 'friends'" in command(
        "import", *place, "--source", "friends"
    )
    assert made(bank, "friends") == made(bank)
    command("import", *place, "--source", "friends")
    assert made(bank, "friends") == made(bank)
    assert "own captions; choose another" in command("import", *place, "--source", "listing", check=2)


def test_import_takes_cmvra_s_files_and_says_which_clips_it_does_not_know(caption, command, tmp_path):
    bank = caption(limit=1)
    file = tmp_path / "theirs.jsonl"
    rows = [
        {"clip_id": "c000", "text": "someone wavés"},
        {"clip_id": "clip 001", "text": ["kicks", "kicks", "a kick", ""]},  # by its file's name
        {"clip_id": "c001", "text": ["a kick", "again"]},
        {"clip_id": "c002", "text": ["", " "]},
        {"clip_id": "c777", "text": "nobody"},
        {"clip_id": "c778", "text": "nobody"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    place = ("--dataset", "toy", "--bank", bank.path, "--file", file, "--source", "theirs")
    said = command("import", *place, check=1)
    assert "2 clips are not in toy: c777, c778" in said and "1 clips have no text" in said
    assert made(bank, "theirs") == {"c000": ["someone wavés"], "c001": ["a kick", "again", "kicks"]}
    file.write_text('{"clip_id": "c000"}\n')
    assert "theirs.jsonl, line 1: is no" in command("import", *place, check=2)


def test_what_makes_no_sense_is_said_in_one_line(command, corpus, model, tmp_path):
    known = ("--dataset", corpus, "--bank", tmp_path / "bank", "--model", model)
    for arguments, said in (
        ((), "--dataset NAME and --model FOLDER are needed"),
        (("--dataset", corpus, "--model", tmp_path / "none", "--bank", tmp_path / "b"), "licence: "),
        (("--dataset", "nope", "--model", model), "nope"),
        ((*known, "--samples", 0), "--samples 0; at least 1"),
        ((*known, "--max-failures", -1), "--max-failures -1"),
        ((*known, "--temperature", 0), "--samples 1"),
        ((*known, "--positions", "1.5"), "'1.5'; accepted are numbers"),
        ((*known, "--modality", "skeleton"), "accepted are: rgb, ir"),
        ((*known, "--modality", "ir"), "no clip of toy has ir"),
        ((*known, "--where", "no such"), "error: "),
        ((*known, "--device", "tpu"), "no device 'tpu'"),
        (("export", "--dataset", "toy"), "--file FILE.jsonl are needed"),
        (("import", "--dataset", "toy", "--file", "x"), "--source NAME are needed"),
    ):
        told = command(*arguments, check=2)
        assert said in told and "Traceback" not in told, told
        assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 1


def test_help_needs_no_torch():
    code = (
        "import sys, extract.captions\n"
        "try: extract.captions.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "False"
    assert "extract.captions import" in done.stdout and "--max-new-tokens" in done.stdout
