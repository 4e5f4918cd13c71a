"""Registering: the catalog holds what the adapters list, and notices replaced files."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from extract.datasets import DatasetError, load_dataset
from extract.register import SAMPLE_BYTES, Stamp, register, stamp
from store import Bank
from store.register import DuplicateClipError, LabelError
from tests.media_files import write_depth_folder


@pytest.fixture
def bank(tmp_path):
    return Bank.open(tmp_path / "bank", create=True)


def dataset(folder, text, **options):
    """A listing dataset over ``clips.csv`` with that text."""
    folder.mkdir(exist_ok=True)
    (folder / "clips.csv").write_text(text, encoding="utf-8")
    config = {
        "adapter": "listing",
        "root": ".",
        "options": options,
        "modalities": {"rgb": "efficientnet-lite0"},
    }
    (folder / "mine.yaml").write_text(json.dumps(config))
    return load_dataset(folder / "mine.yaml")


CSV = """\
clip_id,rgb,label,split,subject,start,end,caption,note
a,a.mp4,wave,train,s1,1,2,waves,x
b,b.mp4,clap,test,s2,,,,
"""


def test_everything_lands_in_the_catalog(tmp_path, bank):
    adapter, config = dataset(tmp_path / "d", CSV)
    (tmp_path / "d" / "a.mp4").write_bytes(b"video a")
    counts = register(bank, adapter, config)
    assert (counts["clips"], counts["media"], counts["splits"], counts["captions"]) == (2, 2, 2, 1)
    rows = bank.sql("SELECT * FROM clips ORDER BY clip_id").to_pylist()
    assert [(r["clip_id"], r["label"], r["label_name"], r["subject"]) for r in rows] == [
        ("a", 1, "wave", "s1"),
        ("b", 0, "clap", "s2"),
    ]
    assert (rows[0]["start_seconds"], rows[0]["end_seconds"]) == (1.0, 2.0)
    assert json.loads(rows[0]["attributes"]) == {"note": "x"} and rows[1]["attributes"] is None
    a, b = bank.sql("SELECT * FROM media ORDER BY clip_id").to_pylist()
    assert (a["path"], a["reader"], a["bytes"]) == ("a.mp4", "video", 7) and len(a["sample_hash"]) == 32
    assert (b["bytes"], b["mtime"], b["sample_hash"]) == (None, None, None)  # b.mp4 is not there
    texts = bank.sql("SELECT text FROM texts ORDER BY text")["text"].to_pylist()
    assert texts == ["a video of clap", "a video of wave", "clap", "wave", "waves"]
    (row,) = bank.datasets().to_pylist()
    assert (row["name"], row["adapter"], row["root"]) == ("mine", "listing", str(tmp_path / "d"))
    assert json.loads(row["config"])["modalities"] == {"rgb": {"encoder": "efficientnet-lite0"}}


def test_registering_again_opens_no_file_and_changes_nothing(tmp_path, bank, monkeypatch):
    adapter, config = dataset(tmp_path / "d", CSV)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "d" / name).write_bytes(name.encode())
    register(bank, adapter, config)
    monkeypatch.setattr("extract.register._hash", lambda *_: pytest.fail("a file was opened"))
    counts = register(bank, adapter, config)
    assert (counts["new"], counts["changed"], counts["changed_media"], counts["new_texts"]) == (0, 0, 0, 0)


def test_replaced_file_changes_its_media_key_and_a_touched_one_does_not(tmp_path, bank):
    adapter, config = dataset(tmp_path / "d", CSV)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "d" / name).write_bytes(name.encode())
    register(bank, adapter, config)
    keys = "SELECT clip_id, media_key FROM media ORDER BY clip_id"
    before = bank.sql(keys).to_pylist()
    (tmp_path / "d" / "a.mp4").write_bytes(b"other")
    os.utime(tmp_path / "d" / "b.mp4", (1, 1))
    register(bank, adapter, config)
    after = bank.sql(keys).to_pylist()
    assert before[0] != after[0] and before[1] == after[1]


def test_duplicate_ids_and_labels_outside_the_list_are_refused(tmp_path, bank):
    twice = "clip_id,rgb\na,a.mp4\na,b.mp4\n"
    with pytest.raises(DuplicateClipError, match=r"line 3: clip id 'a' is also that of .*line 2"):
        register(bank, *dataset(tmp_path / "d", twice))
    with pytest.raises(LabelError, match=r"line 2: label 7 is outside the class list; 0 to 1"):
        register(bank, *dataset(tmp_path / "d", "rgb,label\na.mp4,7\n", classes=["x", "y"]))
    assert bank.sql("SELECT count(*) AS n FROM clips")["n"].to_pylist() == [0]


def test_folder_without_clips_says_what_to_do(tmp_path, bank):
    (tmp_path / "empty").mkdir()
    adapter, config = load_dataset("ntu", tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"adapter 'ntu' finds no clip in .*empty; .*--root DIR"):
        register(bank, adapter, config)


def test_only_the_wanted_modalities_are_hashed_and_known_hashes_stay(tmp_path, bank):
    text = "clip_id,rgb,audio\na,a.mp4,a.wav\n"
    adapter, config = dataset(tmp_path / "d", text)
    for name in ("a.mp4", "a.wav"):
        (tmp_path / "d" / name).write_bytes(name.encode())
    query = "SELECT sample_hash FROM media ORDER BY modality DESC"  # rgb, audio
    register(bank, adapter, config, hashed=["rgb"])
    rgb, audio = bank.sql(query)["sample_hash"].to_pylist()
    assert rgb and audio is None
    register(bank, adapter, config, hashed=["audio"])
    assert bank.sql(query)["sample_hash"].to_pylist()[0] == rgb
    assert bank.sql(query)["sample_hash"].to_pylist()[1] is not None


def test_progress_and_shared_recordings_are_looked_at_once(tmp_path, bank):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "long.mp4").write_bytes(b"long")
    rows = "".join(f"long.mp4,{k},{k + 1}\n" for k in range(30))
    seen = []
    counts = register(
        bank, *dataset(tmp_path / "d", "rgb,start,end\n" + rows), progress=lambda *n: seen.append(n)
    )
    assert counts["clips"] == 30 and seen == [(1, 1)]
    assert bank.sql("SELECT count(DISTINCT media_key) AS n FROM media")["n"].to_pylist() == [30]


# ---- stamps


def test_stamp_of_a_large_file_notices_both_ends_and_the_size(tmp_path):
    path = tmp_path / "f"
    content = bytearray(np.random.default_rng(0).bytes(4 * SAMPLE_BYTES))
    path.write_bytes(content)
    first = stamp(path)
    assert first.bytes == 4 * SAMPLE_BYTES and first.sample_hash is not None
    for change in (
        lambda c: c.__setitem__(10, c[10] ^ 1),
        lambda c: c.__setitem__(-10, c[-10] ^ 1),
        lambda c: c.append(0),
    ):
        changed = bytearray(content)
        change(changed)
        path.write_bytes(changed)
        assert stamp(path).sample_hash != first.sample_hash
    path.write_bytes(content)
    assert stamp(path).sample_hash == first.sample_hash  # the content counts, not the time


def test_stamp_just_above_the_sample_size(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(SAMPLE_BYTES) + b"a")
    first = stamp(path).sample_hash
    path.write_bytes(bytes(SAMPLE_BYTES) + b"b")
    assert stamp(path).sample_hash != first


def test_stamp_of_a_folder(tmp_path):
    folder = write_depth_folder(tmp_path / "d", frames=40)
    first = stamp(folder)
    assert first.sample_hash and stamp(folder, first) is first
    Image.fromarray(np.full((24, 32), 9, np.uint16)).save(folder / "MDepth-00000001.png")
    os.utime(folder, (first.mtime + 1, first.mtime + 1))
    changed = stamp(folder, first)
    assert changed.sample_hash != first.sample_hash
    (folder / "MDepth-00000017.png").unlink()
    os.utime(folder, (changed.mtime + 1, changed.mtime + 1))  # the clock may tick once in 10 ms only
    assert stamp(folder, changed).sample_hash != changed.sample_hash


def test_stamp_of_nothing_and_of_what_may_not_be_read(tmp_path):
    assert stamp(tmp_path / "absent") == Stamp()
    (tmp_path / "line\nbreak 動画").write_bytes(b"x")
    assert stamp(tmp_path / "line\nbreak 動画").bytes == 1
    assert stamp(tmp_path / "line\nbreak 動画", hash_it=False).sample_hash is None
