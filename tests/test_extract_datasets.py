"""NTU, UTD-MHAD and dataset YAMLs: names, layouts, official protocols."""

import json
import os
from collections import Counter

import numpy as np
import pytest

from extract.datasets import DatasetError
from extract.datasets.ntu import NTU
from extract.datasets.ntu_names import (
    MAXIMA,
    PROTOCOLS,
    TRAIN_PERFORMERS_60,
    TRAIN_PERFORMERS_120,
    NTUName,
    missing_skeletons,
)
from extract.datasets.utd_mhad import UTDMHAD

MISSING = "S001C002P005R002A008"  # on the official list
CLIPS = ("S001C001P001R001A001", "S001C002P003R002A060", MISSING)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def layout(root, clips=CLIPS):
    for clip in clips:
        touch(root / "nturgb+d_rgb" / f"{clip}_rgb.avi")
        touch(root / "nturgb+d_ir" / f"{clip}_ir.avi")
        touch(root / "nturgb+d_depth_masked" / clip / "MDepth-00000001.png")
        touch(root / "nturgb+d_skeletons" / f"{clip}.skeleton")
    return root


def listed(root, **options):
    return {clip.clip_id: clip for clip in NTU(root, **options).clips()}


# ---- names


def test_ntu_names_round_trip():
    draw = np.random.default_rng(0)
    for _ in range(300):
        numbers = [int(draw.integers(1, most + 1)) for most in MAXIMA.values()]
        name = NTUName(*numbers)
        assert NTUName.parse(str(name)) == name
        assert NTUName.find(f"{name}_rgb.avi") == name
        assert len(str(name)) == 20
    assert NTUName.parse("S017C003P040R002A060") == NTUName(17, 3, 40, 2, 60)
    assert sorted([NTUName(2, 1, 1, 1, 1), NTUName(1, 3, 9, 2, 60)])[0].setup == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "S001",
        "S001C001P001R001A001 ",
        "s001c001p001r001a001",
        "S001C001P001R001A1",
        "S1C1P1R1A1",
        "S00１C001P001R001A001",
    ],
)
def test_what_is_no_ntu_name(text):
    with pytest.raises(DatasetError, match="is no NTU clip name"):
        NTUName.parse(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("S001C001P001R001A121", "action 121 does not exist; NTU RGB\\+D has 1 to 120"),
        ("S001C001P001R001A000", "action 0"),
        ("S033C001P001R001A001", "setup 33"),
        ("S001C004P001R001A001", "camera 4"),
        ("S001C001P107R001A001", "performer 107"),
        ("S001C001P001R003A001", "replication 3"),
    ],
)
def test_numbers_that_do_not_exist(text, match):
    with pytest.raises(DatasetError, match=match):
        NTUName.parse(text)


# ---- the official protocols


def test_official_subject_sets():
    assert len(TRAIN_PERFORMERS_60) == 20 and max(TRAIN_PERFORMERS_60) == 38
    test = set(range(1, 41)) - TRAIN_PERFORMERS_60
    assert test == {3, 6, 7, 10, 11, 12, *range(20, 25), 26, 29, 30, 32, 33, 36, 37, 39, 40}
    assert len(TRAIN_PERFORMERS_120) == 53  # of 106
    assert {p for p in TRAIN_PERFORMERS_120 if p <= 40} == TRAIN_PERFORMERS_60


# Clips of train and test as released, and as published after removing those with missing skeletons (CTR-GCN,
# pyskl and others train on 40,091 / 37,646 / 63,026 / 54,468 clips). What lies between is on the missing
# list.
@pytest.mark.parametrize(
    ("protocol", "only_60", "raw", "kept"),
    [
        ("cross-subject", True, (40320, 16560), (40091, 16487)),
        ("cross-view", True, (37920, 18960), (37646, 18932)),
        ("cross-subject", False, (63360, 51120), (63026, 50919)),
        ("cross-setup", False, (54720, 59760), (54468, 59477)),
    ],
)
def test_missing_skeletons_fall_into_the_parts_as_published(protocol, only_60, raw, kept):
    names = [NTUName.parse(clip) for clip in missing_skeletons()]
    names = [name for name in names if name.in_60 or not only_60]
    assert len(names) == (302 if only_60 else 535)
    trains = sum(PROTOCOLS[protocol](name) for name in names)
    assert (trains, len(names) - trains) == (raw[0] - kept[0], raw[1] - kept[1])


def test_rules_on_the_full_grid():
    grid = [NTUName(s, c, p, 1, 1) for s in range(1, 33) for c in (1, 2, 3) for p in range(1, 107)]
    counts = {protocol: sum(map(trains, grid)) for protocol, trains in PROTOCOLS.items()}
    assert counts["cross-subject"] * 2 == counts["cross-setup"] * 2 == len(grid)
    assert counts["cross-view"] * 3 == 2 * len(grid)


# ---- layouts


def test_directory_layout(tmp_path):
    clips = listed(layout(tmp_path))
    assert list(clips) == sorted(CLIPS)
    clip = clips["S001C002P003R002A060"]
    assert {name: (media.path, media.reader) for name, media in clip.media.items()} == {
        "depth": ("nturgb+d_depth_masked/S001C002P003R002A060", "depth-png"),
        "ir": ("nturgb+d_ir/S001C002P003R002A060_ir.avi", "video"),
        "rgb": ("nturgb+d_rgb/S001C002P003R002A060_rgb.avi", "video"),
        "skeleton": ("nturgb+d_skeletons/S001C002P003R002A060.skeleton", "ntu-skeleton"),
    }
    assert (clip.label, clip.label_name) == (59, "walking apart from each other")
    assert (clip.subject, clip.camera, clip.setup, clip.replication) == ("3", "2", "1", "2")


def test_missing_skeletons_are_kept_out_of_skeletons_and_official_protocols_and_in_raw_ones(tmp_path):
    adapter = NTU(layout(tmp_path))
    clips = list(adapter.clips())
    missing = next(clip for clip in clips if clip.clip_id == MISSING)
    assert sorted(missing.media) == ["depth", "ir", "rgb"] and missing.attributes == {
        "missing_skeleton": True
    }
    splits = set(adapter.splits(clips))
    assert {protocol for protocol, clip_id, _ in splits if clip_id == MISSING} == {
        "cross-subject-raw",
        "cross-view-raw",
        "cross-setup-raw",
    }
    assert ("cross-subject", "S001C001P001R001A001", "train") in splits
    assert ("cross-subject", "S001C002P003R002A060", "test") in splits
    assert ("cross-view", "S001C001P001R001A001", "test") in splits
    assert ("cross-view", "S001C002P003R002A060", "train") in splits
    assert ("cross-setup", "S001C001P001R001A001", "test") in splits  # odd setup


def test_archives_unpacked_into_folders_of_their_own(tmp_path):
    touch(tmp_path / "nturgb+d_rgb_s001" / "nturgb+d_rgb" / "S001C001P001R001A001_rgb.avi")
    touch(tmp_path / "nturgb+d_rgb_s002" / "nturgb+d_rgb" / "S002C001P001R001A001_rgb.avi")
    touch(tmp_path / "S003C001P001R001A001.skeleton")
    touch(tmp_path / "nturgb+d_rgb" / ".123-S004C001P001R001A001_rgb.avi")  # somebody is still writing it
    touch(tmp_path / "notes" / "S005.txt")
    assert list(listed(tmp_path)) == ["S001C001P001R001A001", "S002C001P001R001A001", "S003C001P001R001A001"]


def test_better_files_win_unless_a_folder_is_named(tmp_path):
    clip = "S001C001P001R001A001"
    touch(tmp_path / "a_rgb_cropped_320x320" / f"{clip}_rgb" / "0001.jpg")
    touch(tmp_path / "nturgb+d_rgb_low_res" / f"{clip}_rgb_low_res.avi")
    touch(tmp_path / "nturgb+d_skeletons_npy" / f"{clip}.skeleton.npy")
    media = listed(tmp_path)[clip].media
    assert (media["rgb"].path, media["rgb"].reader) == (
        f"nturgb+d_rgb_low_res/{clip}_rgb_low_res.avi",
        "video",
    )
    assert media["skeleton"].reader == "skeleton-npy"
    touch(tmp_path / "nturgb+d_rgb" / f"{clip}_rgb.avi")
    assert listed(tmp_path)[clip].media["rgb"].path == f"nturgb+d_rgb/{clip}_rgb.avi"
    chosen = listed(tmp_path, folders={"rgb": "a_rgb_cropped_320x320"})[clip].media["rgb"]
    assert (chosen.path, chosen.reader) == (f"a_rgb_cropped_320x320/{clip}_rgb", "images")


def test_folders_of_images_without_a_suffix_are_what_their_parent_says(tmp_path):
    clip, cropped = "S001C001P001R001A001", "nturgb+d_depth_masked_cropped_320x320"
    for folder in ("nturgb+d_rgb_frames", "nturgb+d_ir", cropped):
        touch(tmp_path / folder / clip / "0001.png")
    media = listed(tmp_path)[clip].media
    assert media["rgb"].path.startswith("nturgb+d_rgb_fr") and media["ir"].path.startswith("nturgb+d_ir/")
    assert {one.reader for one in media.values()} == {"images"}  # cropped depth has eight bits
    (tmp_path / "list.txt").write_text(f"None None {cropped}/{clip} None 001\n")
    assert listed(tmp_path, lists="list.txt")[clip].media["depth"].reader == "images"


def test_sixty_actions_of_a_hundred_and_twenty(tmp_path):
    layout(tmp_path, ("S001C001P001R001A001", "S018C001P041R001A061"))
    assert list(listed(tmp_path)) == ["S001C001P001R001A001"]
    all_clips = listed(tmp_path, actions=120)
    assert all_clips["S018C001P041R001A061"].label_name == "put on headphone"
    assert [len(NTU(tmp_path, actions=n).class_names()) for n in (60, 120)] == [60, 120]
    with pytest.raises(DatasetError, match="actions is 61; 60 or 120"):
        NTU(tmp_path, actions=61)


def test_a_class_that_does_not_exist_in_a_file_name(tmp_path):
    touch(tmp_path / "S001C001P001R001A121_rgb.avi")
    with pytest.raises(DatasetError, match="action 121 does not exist"):
        list(NTU(tmp_path).clips())


def test_unlistable_folder_is_an_error_and_no_silent_gap(tmp_path, monkeypatch):
    layout(tmp_path)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("nturgb+d_ir"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"nturgb\+d_ir: cannot be listed \(Permission denied\)"):
        list(NTU(tmp_path).clips())


# ---- list files


def line(clip, label, skeleton=True):
    paths = [f"nturgb+d_rgb/{clip}_rgb.avi", f"nturgb+d_ir/{clip}_ir.avi", f"nturgb+d_depth_masked/{clip}"]
    return " ".join([*paths, f"nturgb+d_skeletons_npy/{clip}.skeleton.npy" if skeleton else "None", label])


def test_list_files_of_cmvra(tmp_path):
    a, b = "S001C001P001R001A001", "S001C002P003R002A060"
    (tmp_path / "CS_train.txt").write_text(f"{line(a, '001')}\n")
    (tmp_path / "CS_test.txt").write_text(f"{line(b, '060', skeleton=False)}\n\n")
    adapter = NTU(tmp_path, lists={"train": "CS_train.txt", "test": "CS_test.txt"})
    clips = {clip.clip_id: clip for clip in adapter.clips()}
    assert {name: media.reader for name, media in clips[a].media.items()} == {
        "depth": "depth-png",
        "ir": "video",
        "rgb": "video",
        "skeleton": "skeleton-npy",
    }
    assert sorted(clips[b].media) == ["depth", "ir", "rgb"] and clips[b].label == 59
    listed_parts = [split for split in adapter.splits(clips.values()) if split.protocol == "listed"]
    assert listed_parts == [("listed", a, "train"), ("listed", b, "test")]
    assert list(listed(tmp_path, lists="CS_train.txt")) == [a]
    assert list(listed(tmp_path, lists=["CS_train.txt", "CS_test.txt"])) == [a, b]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (line("S001C001P001R001A001", "002"), r"line 1: label 002 is not the action 1 of clip"),
        (line("S001C001P001R001A121", "121"), r"action 121 does not exist"),
        (
            f"{line(CLIPS[0], '001')}\n{line(CLIPS[0], '001')}",
            r"line 2: clip S001C001P001R001A001 is listed twice",
        ),
        ("only two", r"line 1: has 2 fields; 4 paths \(rgb ir depth skeleton\)"),
        (f"{line(CLIPS[0], '001')}".replace("001_ir", "002_ir"), r"its paths name 2 clips"),
        ("a b c d 1", r"its paths name 1 clips; all of one NTU clip"),
    ],
)
def test_lists_that_are_wrong_name_the_line(tmp_path, content, match):
    (tmp_path / "list.txt").write_text(content + "\n")
    with pytest.raises(DatasetError, match=match):
        list(NTU(tmp_path, lists="list.txt").clips())


def test_clip_in_two_parts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(line(CLIPS[0], "001"))
    with pytest.raises(DatasetError, match="is in another part too"):
        list(NTU(tmp_path, lists={"train": "a.txt", "test": "a.txt"}).clips())


def test_captions_of_cmvra(tmp_path):
    layout(tmp_path)
    rows = [
        {"clip_id": f"{CLIPS[0]}_rgb", "text": ["a person drinks", "someone drinks", "a person drinks"]},
        {"clip_id": CLIPS[1], "text": "two people walk apart"},
    ]
    (tmp_path / "llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = listed(tmp_path, captions="llava.jsonl", caption_source="llava-v1.6-34b")
    assert [(c.text, c.source) for c in clips[CLIPS[0]].captions] == [
        ("a person drinks", "llava-v1.6-34b"),
        ("someone drinks", "llava-v1.6-34b"),
    ]
    assert len(clips[CLIPS[1]].captions) == 1 and clips[MISSING].captions == ()
    (tmp_path / "llava.jsonl").write_text('{"clip_id": "x"}')
    with pytest.raises(DatasetError, match=r"line 1: is no \{\"clip_id\""):
        listed(tmp_path, captions="llava.jsonl")


# ---- UTD-MHAD


def test_utd_mhad(tmp_path):
    for subject in range(1, 9):
        touch(tmp_path / "Depth" / f"a1_s{subject}_t1_depth.mat")
        touch(tmp_path / "Inertial" / f"a27_s{subject}_t4_inertial.mat")
    touch(tmp_path / "RGB" / "a1_s1_t1_color.avi")
    adapter = UTDMHAD(tmp_path)
    clips = list(adapter.clips())
    assert len(clips) == 16
    first = clips[0]
    assert (first.clip_id, first.label, first.label_name) == ("a1_s1_t1", 0, "right arm swipe to the left")
    assert sorted(first.media) == ["depth", "rgb"] and first.media["depth"].options["layout"] == "HWT"
    assert clips[-1].media["inertial"].options["fps"] == 50.0
    splits = list(adapter.splits(clips))
    parts = {(s.protocol, s.clip_id.split("_")[1], s.part) for s in splits}
    assert ("cross-subject", "s1", "train") in parts and ("cross-subject", "s8", "test") in parts
    assert ("cross-subject-swapped", "s1", "test") in parts
    assert set(Counter((s.protocol, s.part) for s in splits).values()) == {8}
    touch(tmp_path / "Depth" / "a28_s1_t1_depth.mat")
    with pytest.raises(DatasetError, match="action 28 does not exist"):
        list(adapter.clips())


def test_utd_mhad_here(shared):
    adapter = UTDMHAD(shared / "data" / "utd_mhad")
    clips = list(adapter.clips())
    assert len(clips) == 431 and all(len(clip.media) == 3 for clip in clips)
    listed_names = [
        text.split(" ", 1)[1] for text in (shared / "data/utd_mhad/actions.txt").read_text().splitlines()
    ]
    assert adapter.class_names() == listed_names
    parts = Counter((split.protocol, split.part) for split in adapter.splits(clips))
    assert parts["cross-subject", "train"] == parts["cross-subject-swapped", "test"] == 215
    assert parts["cross-subject", "test"] == 216


def test_shipped_lists_are_the_official_ones(shared):
    labels = shared / "data" / "labels"
    official = set((labels / "NTU_RGBD120_samples_with_missing_skeletons.txt").read_text().split())
    assert missing_skeletons() == official
    names = (labels / "nturgbd_120.txt").read_text().replace("’", "'").splitlines()
    assert NTU(labels, actions=120).class_names() == [name.strip() for name in names]
