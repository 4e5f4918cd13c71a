"""Drive&Act as CMVRA's scripts cut it: folders of clips, list lines whose paths hold spaces, captions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from daa_files import CAMERAS, CLIPS, SEARCHING, cut_name, write_cut, write_release
from media_files import frame_numbers, write_video

from extract.datasets import DatasetError
from extract.datasets.daa import DriveAct
from extract.datasets.daa_cut import split_line
from extract.datasets.daa_names import parse_cut
from extract.readers import load_reader
from extract.sampling import Sampling

VIEWS = (*CAMERAS, "openpose_3d")
# The columns of CMVRA's lists, in their order.
COLUMNS = {
    "kinect_color": "rgb",
    "kinect_ir": "ir",
    "kinect_depth_mp4": "depth",
    "openpose_3d": "skeleton",
    "ceiling": "ir.ceiling",
    "inner_mirror": "ir.inner_mirror",
    "a_column_co_driver": "ir.a_column_co_driver",
    "a_column_driver": "ir.a_column_driver",
    "steering_wheel": "ir.steering_wheel",
}


def touch(path):
    Path(path).write_bytes(b"x")


def clips_of(root, **options):
    return {clip.clip_id: clip for clip in DriveAct(root, **options).clips()}


def list_line(participant, clip, label, part="train", missing=()):
    paths = [
        "None"
        if folder in missing or folder not in VIEWS
        else f"{folder}/clips/{part}/{cut_name(folder, participant, clip)}"
        for folder in COLUMNS
    ]
    return " ".join([*paths, str(label)])


# ---- names


@pytest.mark.parametrize(
    ("stem", "name", "activity"),
    [
        (
            "closing_door_outside_1_vp1_run1b_2018-05-29-14-02-47.kinect_color_44_68_3_0",
            "vp1_run1b_2018-05-29-14-02-47_3_0",
            "closing_door_outside",
        ),
        (
            f"{SEARCHING}_12_vp12_run2_2018-06-05-10-11-12.ids_3_89_137_40_12",
            "vp12_run2_2018-06-05-10-11-12_40_12",
            SEARCHING,
        ),
        ("7_vp7_run1_2018-05-03-14-08-31.kinect_color_44_68_3_1", "vp7_run1_2018-05-03-14-08-31_3_1", None),
        ("eating_7_vp7_run1_0_44_0_2", "vp7_run1_0_2", "eating"),
    ],
)
def test_names_of_cut_clips(stem, name, activity):
    found, told = parse_cut("list", stem)
    assert (str(found), told) == (name, activity)


@pytest.mark.parametrize(
    "stem", ["S001C001P001R001A001_rgb", "eating_7_vp8_run1_0_44_0_2", "eating_run1_0_44_0_2", ""]
)
def test_what_is_no_cut_clip(stem):
    with pytest.raises(
        DatasetError, match="is no clip of Drive&Act; <activity>_<participant>_vp<participant>"
    ):
        parse_cut("list", stem)


# ---- folders


def test_folders_of_cut_clips_are_the_release_s_clips(tmp_path):
    cut = clips_of(write_cut(tmp_path / "cut", VIEWS, touch))
    release = clips_of(write_release(tmp_path / "release", ["kinect_color"]))
    assert list(cut) == list(release)
    for clip_id, clip in cut.items():
        assert (clip.label, clip.subject, clip.attributes) == (
            release[clip_id].label,
            release[clip_id].subject,
            release[clip_id].attributes,
        )
        assert sorted(clip.media) == ["depth", "ir", "ir.ceiling", "ir.inner_mirror", "rgb", "skeleton"]
    clip = cut["vp5_run1_2018-05-22-15-32-37_1_1"]
    assert clip.media["ir"].path == (
        f"kinect_ir/clips/test/{SEARCHING}_5_vp5_run1_2018-05-22-15-32-37.kinect_ir_54_71_1_1.avi"
    )
    skeleton = clip.media["skeleton"]
    assert skeleton.path == "openpose_3d/clips/test/5_vp5_run1_2018-05-22-15-32-37.kinect_color_27_35_1_1.npy"
    assert (skeleton.reader, skeleton.options) == ("skeleton-npy", {"max_persons": 1, "fps": 30.0})
    adapters = DriveAct(tmp_path / "cut"), DriveAct(tmp_path / "release")
    cut_splits, release_splits = (set(one.splits(one.clips())) for one in adapters)
    assert cut_splits == release_splits and len(cut_splits) == 27


def test_cut_clips_are_read_whole(tmp_path):
    """The scripts write 15 fps into every file: of 24 infrared frames the last is frame 23 all the same."""
    camera_frames = {"kinect_color": 12, "kinect_ir": 24}
    for camera, count in camera_frames.items():
        folder = tmp_path / camera / "clips" / "train"
        folder.mkdir(parents=True)
        write_video(folder / cut_name(camera, 1, CLIPS[0]), count, 15)
    folder = tmp_path / "openpose_3d" / "clips" / "train"
    folder.mkdir(parents=True)
    np.save(folder / cut_name("openpose_3d", 1, CLIPS[0]), np.arange(1.0, 24 * 75 + 1).reshape(24, 25, 3))
    (clip,) = clips_of(tmp_path).values()
    taken = {}
    for modality in ("rgb", "ir", "skeleton"):
        media = clip.media[modality]
        read = load_reader(media.reader).read(tmp_path / media.path, Sampling(frames=4), **media.options)
        taken[modality] = read.values
    assert frame_numbers(taken["rgb"]) == [1, 4, 7, 10] and frame_numbers(taken["ir"]) == [3, 9, 15, 21]
    assert taken["skeleton"][:, 0, 0, 0].tolist() == [75 * k + 1 for k in (3, 9, 15, 21)]


def test_only_skeletons_have_no_label(tmp_path):
    adapter = DriveAct(write_cut(tmp_path, ["openpose_3d"], touch))
    assert {clip.label for clip in adapter.clips()} == {None}
    assert adapter.notes() == ["9 clips have only a skeleton, whose name tells no activity: no label"]


def test_folders_that_are_wrong(tmp_path):
    write_cut(tmp_path, ["kinect_color"], touch)
    folder = tmp_path / "kinect_color" / "clips"
    touch(folder / "train" / "notes.txt")
    (folder / "old").mkdir()
    touch(folder / "old" / "x.avi")
    assert len(clips_of(tmp_path)) == 9  # neither is a clip
    touch(folder / "train" / cut_name("kinect_color", 5, CLIPS[0]))
    with pytest.raises(
        DatasetError, match=r"train/closing.*: participant 5 is in part 'train' of split 0, off"
    ):
        clips_of(tmp_path)
    (folder / "train" / cut_name("kinect_color", 5, CLIPS[0])).unlink()
    touch(folder / "train" / "holiday.avi")
    with pytest.raises(DatasetError, match=r"clips/train/holiday\.avi: 'holiday' is no clip of Drive&Act"):
        clips_of(tmp_path)
    (folder / "train" / "holiday.avi").rename(
        folder / "train" / "flying_1_vp1_run1b_2018-05-29-14-02-47.kinect_color_1_9_3_0.avi"
    )
    with pytest.raises(DatasetError, match=r"no classes of Drive&Act: 'flying'; the 34"):
        clips_of(tmp_path)


# ---- lists


def test_list_lines_of_ten_fields(tmp_path):
    (tmp_path / "train.txt").write_text(
        "\n".join(
            [
                list_line(1, CLIPS[0], 0),
                list_line(1, CLIPS[1], 19, missing=("kinect_ir", "openpose_3d")),
                list_line(1, CLIPS[0], 0),  # the balanced lists repeat clips
            ]
        )
    )
    (tmp_path / "test.txt").write_text(list_line(5, CLIPS[2], 19, "test") + "\n\n")
    adapter = DriveAct(tmp_path, lists={"train": "train.txt", "test": "test.txt"})
    clips = {clip.clip_id: clip for clip in adapter.clips()}
    first, searching, last = clips.values()
    assert sorted(first.media) == ["depth", "ir", "ir.ceiling", "ir.inner_mirror", "rgb", "skeleton"]
    assert sorted(searching.media) == ["depth", "ir.ceiling", "ir.inner_mirror", "rgb"]
    assert searching.media["rgb"].path == f"kinect_color/clips/train/{cut_name('kinect_color', 1, CLIPS[1])}"
    assert " (e.g. searching)_1_vp1_run1b" in searching.media["rgb"].path
    assert (first.label, searching.label, last.label) == (0, 19, 19)
    splits = [split for split in adapter.splits(clips.values()) if split.protocol == "listed"]
    assert Counter(split.part for split in splits) == {"train": 2, "test": 1}
    assert ("split-0", last.clip_id, "test") in list(adapter.splits(clips.values()))


def test_a_line_is_split_from_both_ends():
    line = list_line(1, CLIPS[1], 19, missing=("kinect_ir",))
    assert len(line.split()) == 10 + 2 * 4  # four paths hold two spaces each
    paths, label = split_line("list", line)
    assert label == 19 and len(paths) == 9
    assert [path is None for path in paths] == [False, True, False, False, False, False, True, True, True]
    assert paths[3] == f"openpose_3d/clips/train/{cut_name('openpose_3d', 1, CLIPS[1])}"


def test_paths_are_told_by_their_folder_else_by_their_place(tmp_path):
    folders = ["kinect_depth_mp4", "kinect_color"]
    paths = [f"{folder}/clips/train/{cut_name(folder, 1, CLIPS[0])}" for folder in folders]
    (tmp_path / "a.txt").write_text(" ".join([*paths, "0"]))  # the scripts leave out what is missing
    (clip,) = clips_of(tmp_path, lists={"train": "a.txt"}).values()
    assert {name: media.path for name, media in clip.media.items()} == {"depth": paths[0], "rgb": paths[1]}
    here = [
        f"x/{cut_name('kinect_color', 1, CLIPS[0])}",
        *["None"] * 7,
        f"y/{cut_name('ceiling', 1, CLIPS[0])}",
    ]
    (tmp_path / "a.txt").write_text(" ".join([*here, "0"]))
    (clip,) = clips_of(tmp_path, lists={"train": "a.txt"}).values()
    assert {name: media.path for name, media in clip.media.items()} == {
        "rgb": here[0],
        "ir.steering_wheel": here[8],
    }


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda line: line.rsplit(" ", 1)[0] + " 34", "line 1: ends in '34'; a label from 0 to 33"),
        (
            lambda line: line.rsplit(" ", 1)[0] + " 3",
            r"line 1: label 3 is not that of 'kinect_color/.*zero-shot",
        ),
        (lambda line: line.rsplit(" ", 1)[0], r"line 1: ends in 'None'; a label from 0 to 33"),
        (lambda line: "readme " + line.replace(".avi", ".doc"), r"ends like no media file"),
        (lambda line: line.replace("_0_0.avi kinect_ir", "_0_1.avi kinect_ir"), "its paths name 2 clips"),
        (lambda line: line.replace("kinect_ir/", "kinect_color/"), "is a second file of rgb"),
        (lambda line: line.replace("kinect_color/", "a/").replace(" None", "", 1), "is of no view; 9 paths"),
        (
            lambda line: line.replace("closing_door", "flying_door"),
            "no classes of Drive&Act: 'flying_door_outside'",
        ),
        (lambda line: " ".join(["None"] * 9 + ["0"]), "its paths name 0 clips"),
    ],
)
def test_list_lines_that_are_wrong(tmp_path, change, match):
    (tmp_path / "a.txt").write_text(change(list_line(1, CLIPS[0], 0)))
    with pytest.raises(DatasetError, match=match):
        clips_of(tmp_path, lists={"train": "a.txt"})


def test_a_clip_in_two_parts_of_the_lists(tmp_path):
    (tmp_path / "a.txt").write_text(list_line(1, CLIPS[0], 0))
    with pytest.raises(DatasetError, match=r"a\.txt, line 1: clip vp1_.* is in part 'train' too"):
        clips_of(tmp_path, lists={"train": "a.txt", "val": "a.txt"})


def test_captions_of_cmvra(tmp_path):
    write_cut(tmp_path, ["kinect_color"], touch)
    rows = [
        {"clip_id": Path(cut_name("kinect_color", 1, CLIPS[1])).stem, "text": ["a", "b", "a"]},
        {"clip_id": "vp5_run1_2018-05-22-15-32-37_1_1", "text": "ours"},
    ]
    (tmp_path / "llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = clips_of(tmp_path, captions="llava.jsonl", caption_source="llava-v1.6-34b")
    told = {
        clip_id: [(c.text, c.source) for c in clip.captions]
        for clip_id, clip in clips.items()
        if clip.captions
    }
    assert told == {
        "vp1_run1b_2018-05-29-14-02-47_1_0": [("a", "llava-v1.6-34b"), ("b", "llava-v1.6-34b")],
        "vp5_run1_2018-05-22-15-32-37_1_1": [("ours", "llava-v1.6-34b")],
    }
    (tmp_path / "llava.jsonl").write_text(json.dumps({"clip_id": "S001C001P001R001A001", "text": "a"}))
    with pytest.raises(DatasetError, match=r"llava\.jsonl: 'S001C001P001R001A001' is no clip of Drive&Act"):
        clips_of(tmp_path, captions="llava.jsonl")
