"""MSR-VTT: look-alikes of the official files, the real test list, what evaluation finds in the catalog."""

import csv
import json
import subprocess
import sys
from collections import Counter

import pytest
from annotation_files import listed, parts
from conftest import ROOT

from extract.datasets import DatasetError, load_dataset
from extract.datasets.clips import Media
from extract.datasets.msrvtt import MSRVTT
from extract.register import register
from store import Bank

PARTS = {0: "train", 1: "train", 2: "train", 3: "validate", 4: "test", 5: "test", 6: "test", 7: "test"}
TESTS = ((6, "a dog, asleep"), (4, "a cat"))  # video, sentence


def data(parts=PARTS, captions=2):
    """Like MSRVTT_data.json."""
    videos = [
        {"video_id": f"video{k}", "split": part, "category": k % 20, "url": f"https://x/{k}", "id": k}
        | {"start time": 3.5, "end time": 12.0}
        for k, part in parts.items()
    ]
    sentences = [
        {"video_id": f"video{k}", "caption": f"caption {n} of {k} ", "sen_id": 0}
        for n in range(captions)
        for k in parts
    ]
    return {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}


def write_test(folder, rows=TESTS):
    with (folder / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", "vid_key", "video_id", "sentence"])
        table.writerows([f"ret{n}", f"msr{k}", f"video{k}", text] for n, (k, text) in enumerate(rows))


def write(folder, content=None, test=TESTS):
    """A root with annotations in a folder of their own, and videos 0, 4, 5 of three kinds in two folders."""
    notes = folder / "annotation"
    notes.mkdir(parents=True)
    (notes / "MSRVTT_data.json").write_text(json.dumps(content or data()))
    write_test(notes, test)
    for path in ("TrainVal/video0.mp4", "Test/some/video4.webm", "Test/video5.AVI", "Test/.video6.mp4"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def sizes(adapter):
    return {name: len(clips) for name, clips in parts(adapter).items()}


def names(*numbers):
    return [f"video{k}" for k in numbers]


def test_clips_media_and_captions(tmp_path):
    clips = listed(MSRVTT(write(tmp_path)))
    assert list(clips) == names(*range(8))
    assert clips["video4"].media == {
        "rgb": Media("Test/some/video4.webm", "video"),
        "audio": Media("Test/some/video4.webm", "audio"),
    }
    assert clips["video5"].media["rgb"].path == "Test/video5.AVI"
    assert clips["video6"].media == {} and clips["video1"].media == {}  # hidden; not there
    told = [(caption.text, caption.source) for caption in clips["video4"].captions]
    assert told == [("caption 0 of 4", "msrvtt"), ("caption 1 of 4", "msrvtt"), ("a cat", "jsfusion-test")]
    assert clips["video5"].attributes == {"category": 5, "url": "https://x/5"}
    assert (clips["video5"].start_seconds, clips["video5"].end_seconds) == (None, None)  # cut already


def test_protocols(tmp_path):
    assert parts(MSRVTT(write(tmp_path))) == {
        "full train": names(0, 1, 2),
        "full val": names(3),
        "full test": names(4, 5, 6, 7),
        "1k-A test": names(6, 4),
        "1k-A train": names(0, 1, 2, 3, 5, 7),  # all others
        "7k test": names(6, 4),
        "7k train": names(0, 1, 2, 3),  # the official train and val
    }


def test_train_lists_decide_where_they_are_there(tmp_path):
    root = write(tmp_path)
    (root / "MSRVTT_train.9k.csv").write_text("video_id\nvideo7\nvideo0\n")
    (root / "annotation" / "MSRVTT_train.7k.csv").write_text("video_id\r\nvideo1\r\n")
    found = parts(MSRVTT(root))
    assert found["1k-A train"] == names(7, 0) and found["7k train"] == names(1)


def test_the_authors_own_two_files(tmp_path):
    """train_val alone doesn't know the clips of 1k-A's train part that are in the official test part."""
    train_val = {k: part for k, part in PARTS.items() if part != "test"}
    (tmp_path / "train_val_videodatainfo.json").write_text(json.dumps(data(train_val)))
    write_test(tmp_path)
    adapter = MSRVTT(tmp_path)
    assert parts(adapter) == {
        "full train": names(0, 1, 2),
        "full val": names(3),
        "1k-A test": names(6, 4),
        "7k test": names(6, 4),
        "7k train": names(0, 1, 2, 3),
    }
    assert adapter.notes()[1].startswith("no clips in full test, 1k-A train; not there: MSRVTT_data.json (")
    test = {k: part for k, part in PARTS.items() if part == "test"}
    (tmp_path / "test_videodatainfo.json").write_text(json.dumps(data(test)))
    adapter = MSRVTT(tmp_path)
    assert parts(adapter)["1k-A train"] == names(0, 1, 2, 3, 5, 7)
    assert adapter.notes() == [f"8 of 8 clips have no video below {tmp_path}; they stay in their splits"]


def test_the_real_test_list(shared):
    """1,000 clips with one sentence each, all of the official test part (7010 to 9999), none repeated."""
    clips = list(MSRVTT(shared / "data" / "msrvtt").clips())
    assert len(clips) == 1000
    assert all([caption.source for caption in clip.captions] == ["jsfusion-test"] for clip in clips)
    numbers = [int(clip.clip_id.removeprefix("video")) for clip in clips]
    assert len(set(numbers)) == 1000 and min(numbers) >= 7010 and max(numbers) <= 9999
    texts = Counter(clip.captions[0].text for clip in clips)
    assert len(texts) == 995 and texts["a woman giving a photoshop tutorial"] == 2  # their label noise
    assert clips[0].clip_id == "video9770"
    assert clips[0].captions[0].text == "a person is connecting something to system"
    assert sizes(MSRVTT(shared / "data" / "msrvtt")) == {"1k-A test": 1000, "7k test": 1000}


# What an evaluation asks: the captions of one part of a protocol, and no others.
CAPTIONS_OF_PART = """
SELECT s.clip_id, t.text
FROM splits s JOIN captions c USING (dataset, clip_id) JOIN texts t USING (text_id)
JOIN datasets d ON d.name = s.dataset
WHERE s.dataset = ? AND s.protocol = ? AND s.part = ? AND list_contains(
    coalesce((d.config -> 'caption_sources' -> s.protocol -> s.part)::VARCHAR[], [c.source]), c.source)
ORDER BY ALL
"""


def test_register_only_tells_evaluation_everything(tmp_path):
    root = write(tmp_path / "data")
    command = [sys.executable, "-m", "extract", "--dataset", "msrvtt", "--register-only"]
    done = subprocess.run(
        [*command, "--root", root, "--bank", tmp_path / "bank"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"registered: 8 clips of 'msrvtt' in {tmp_path}/bank\n")
    assert "note: 5 of 8 clips have no video below" in done.stderr and "not there" not in done.stderr
    bank = Bank.open(tmp_path / "bank")

    def captions(protocol, part):
        rows = bank.sql(CAPTIONS_OF_PART, ["msrvtt", protocol, part]).to_pylist()
        return [tuple(row.values()) for row in rows]

    assert captions("1k-A", "test") == [("video4", "a cat"), ("video6", "a dog, asleep")]
    assert len(captions("1k-A", "train")) == 12 and len(captions("full", "test")) == 8
    assert ("video4", "a cat") not in captions("full", "test")
    counts = register(bank, *load_dataset("msrvtt", root), hashed=[])
    assert [counts[name] for name in ("new", "changed", "changed_media", "new_texts")] == [0, 0, 0, 0]
    # One of the two test clips has no video: the size of the protocol is known, and so is what is missing.
    query = """
        SELECT count(*) AS clips, count(m.path) AS with_sound FROM splits s
        LEFT JOIN media m ON m.dataset = s.dataset AND m.clip_id = s.clip_id AND m.modality = 'audio'
        WHERE s.dataset = 'msrvtt' AND protocol = '1k-A' AND part = 'test'
    """
    assert bank.sql(query).to_pylist() == [{"clips": 2, "with_sound": 1}]


def test_no_annotation_file_names_them_all(tmp_path):
    adapter, _ = load_dataset("msrvtt", tmp_path)
    with pytest.raises(DatasetError) as error:
        list(adapter.clips())
    message = str(error.value)
    assert message.startswith(f"dataset msrvtt: no annotation file below {tmp_path}; put them there, or")
    for told in ("MSRVTT_JSFUSION_test.csv (test clips and sentences of 1k-A and 7k)", "ArrowLuo/CLIP4Clip"):
        assert told in message


def changed(change):
    content = data()
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1], r"MSRVTT_data.json: the file is \[1\]; an object is needed"),
        ({"videos": []}, r"MSRVTT_data.json: the file has no 'sentences', but videos; give the file as"),
        (changed(lambda c: c["videos"][2].pop("split")), r"data.json: videos\[2\] has no 'split', but cat"),
        (
            changed(lambda c: c["videos"][1].update(split="dev")),
            r"videos\[1\].split is 'dev'; train or validate or test is needed",
        ),
        (
            changed(lambda c: c["videos"][1].update(video_id="clip1")),
            r"videos\[1\].video_id: 'clip1' is no clip of MSR-VTT; `video` and a number is needed",
        ),
        (
            changed(lambda c: c["videos"].append(c["videos"][0] | {"split": "test"})),
            r"videos\[8\]: 'video0' is in part 'test' of 'full', but in 'train' too",
        ),
        (changed(lambda c: c["sentences"][3].update(caption=7)), r"sentences\[3\].caption is 7; text is nee"),
        (
            changed(lambda c: c["sentences"][3].update(video_id="video99")),
            r"sentences\[3\]: 'video99' is not among the videos; take the whole file",
        ),
    ],
)
def test_faulty_json(tmp_path, content, match):
    with pytest.raises(DatasetError, match=match):
        listed(MSRVTT(write(tmp_path, content)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "key,vid_key,video_id\nret0,msr4,video4\n",
            r"test.csv, line 1: no column 'sentence' among key, vid",
        ),
        ("", r"test.csv, line 1: no column 'key' among none; key, vid_key, video_id, sentence are needed"),
        (
            "key,vid_key,video_id,sentence\nret0,msr4,video4,a cat\nret1,msr5,video5,cats, dogs\n",
            r"test.csv, line 3: does not have the header's 4 cells; quote commas",
        ),
        (
            "key,vid_key,video_id,sentence\nret0,msr4,video4,a cat\n\nret1,msr4,video4,a dog\n",
            r"test.csv, line 4: 'video4' is there twice; a test clip has one sentence",
        ),
        ("key,vid_key,video_id,sentence\nret0,msr4,4,a cat\n", r"line 2: '4' is no clip of MSR-VTT"),
        (b"\xff\xfe", r"test.csv: cannot be read \(.*\); give a UTF-8 file"),
    ],
)
def test_faulty_test_list(tmp_path, text, match):
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=match):
        listed(MSRVTT(tmp_path))


def test_json_cut_in_the_middle(tmp_path):
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(data(), indent=1)[:100])
    with pytest.raises(DatasetError, match=r"MSRVTT_data.json, line \d+: is no JSON \(.*\); copy the file"):
        listed(MSRVTT(tmp_path))


def test_a_train_list_with_a_test_clip(tmp_path):
    root = write(tmp_path)
    (root / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo4\n")
    with pytest.raises(
        DatasetError, match=r"9k.csv, line 3: 'video4' is in part 'train' of '1k-A', but in 't"
    ):
        listed(MSRVTT(root))


def test_a_test_clip_without_sentence_stays_in_the_protocol(tmp_path):
    adapter = MSRVTT(write(tmp_path, test=((6, " "), (4, "a cat"))))
    clips = listed(adapter)
    assert {caption.source for caption in clips["video6"].captions} == {"msrvtt"}
    assert parts(adapter)["1k-A test"] == names(6, 4)


def test_full_size_listing(tmp_path):
    """All 10,000 clips and 200,000 captions have the published sizes."""
    official = {k: "train" if k < 6513 else "validate" if k < 7010 else "test" for k in range(10_000)}
    tests = [(k, f"sentence {k}") for k in range(7010, 9010)[::2]]
    adapter = MSRVTT(write(tmp_path, data(official, captions=20), tests))
    assert sizes(adapter) == {
        "full train": 6513,
        "full val": 497,
        "full test": 2990,
        "1k-A test": 1000,
        "1k-A train": 9000,
        "7k test": 1000,
        "7k train": 7010,
    }
    assert sum(len(clip.captions) for clip in adapter.clips()) == 201_000
