"""Drive&Act's release: clips of all cameras show the same time, official splits, classes, what is wrong."""

from collections import Counter

import numpy as np
import pytest
from daa_files import (
    CAMERAS,
    CLIPS,
    DRIVES,
    SEARCHING,
    SPLITS,
    pose,
    row,
    second,
    write_annotations,
    write_camera,
    write_poses,
    write_release,
)
from media_files import write_video

from extract.datasets import DatasetError, load_dataset
from extract.datasets.daa import DriveAct
from extract.datasets.daa_names import official_part
from extract.readers import load_reader
from extract.sampling import Sampling

FIRST = "vp1_run1b_2018-05-29-14-02-47_0_0"
VIDEOS = ("rgb", "ir", "depth", "ir.inner_mirror", "ir.ceiling")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("daa"))


def clips_of(root, **options):
    return {clip.clip_id: clip for clip in DriveAct(root, **options).clips()}


def read(root, media, sampling):
    reader = load_reader(media.reader)
    return reader.read(root / media.path, sampling, media.start_seconds, media.end_seconds, **media.options)


def rewrite(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def train_csv(root, camera="kinect_color", split=0):
    return root / "activities_3s" / camera / f"midlevel.chunks_90.split_{split}.train.csv"


# ---- the same time in every camera


def test_all_cameras_of_a_clip_show_the_same_time(release):
    """The cameras run at 15, 25 and 30 Hz and start at different moments; CMVRA's frames are 0.4 s apart."""
    for clip in clips_of(release).values():
        _, _, _, start, end = CLIPS[clip.attributes["annotation"] + clip.attributes["chunk"]]
        middles = start + (np.arange(4) + 0.5) * (end - start) / 4
        for modality in VIDEOS:
            shown = second(read(release, clip.media[modality], Sampling(frames=4)).values)
            fps = 15 if modality == "rgb" else 25 if modality == "ir.ceiling" else 30
            behind = middles - shown  # a frame is shown from its own time on, until the next
            assert (behind > -1e-3).all() and (behind < 1 / fps + 1e-6).all(), (clip.clip_id, modality)
        poses = read(release, clip.media["skeleton"], Sampling(frames=4)).values
        assert np.abs(poses[:, 0, 3, 0] - 1 - middles).max() < 1 / 30 + 1e-6


def test_all_frames_of_a_clip_and_no_others(release):
    for clip in clips_of(release).values():
        _, _, _, start, end = CLIPS[clip.attributes["annotation"] + clip.attributes["chunk"]]
        for modality, fps in (("rgb", 15), ("ir", 30), ("ir.ceiling", 25), ("ir.inner_mirror", 30)):
            shown = second(read(release, clip.media[modality], Sampling(frames="all")).values)
            assert len(shown) == round((end - start) * fps), modality
            assert shown[0] == pytest.approx(start, abs=1e-6)
            assert shown[-1] == pytest.approx(end - 1 / fps, abs=1e-6)
        poses = read(release, clip.media["skeleton"], Sampling(frames="all"))
        assert np.allclose(poses.values[:, 0, 3, 0], 1 + np.arange(start, end - 0.01, 1 / 30), atol=1e-5)
        assert poses.times_seconds[0] == pytest.approx(start + CAMERAS["inner_mirror"][2])


def test_rates_come_from_the_files_and_are_nominal_where_none_is(release, tmp_path):
    media = clips_of(release)[FIRST].media
    assert (media["ir.ceiling"].start_seconds, media["ir.ceiling"].end_seconds) == (10 / 25, 30 / 25)
    assert (media["rgb"].start_seconds, media["rgb"].end_seconds) == (3 / 15, 15 / 15)
    write_annotations(tmp_path, "inner_mirror")
    write_poses(tmp_path / "openpose_3d" / "vp1" / f"{DRIVES[1]}.ids_1.openpose.3d.csv", [pose(0.0)] * 84)
    skeleton = clips_of(tmp_path)[FIRST].media["skeleton"]
    assert skeleton.options == {"fps": 30.0}
    assert (skeleton.start_seconds, skeleton.end_seconds) == (9 / 30, 33 / 30)
    (tmp_path / "inner_mirror" / "vp1").mkdir(parents=True)
    (tmp_path / "inner_mirror" / "vp1" / f"{DRIVES[1]}.ids_1.mp4").write_bytes(b"no video")
    assert clips_of(tmp_path)[FIRST].media["ir.inner_mirror"].start_seconds == 9 / 30


def test_a_camera_without_annotations_of_its_own_takes_the_colour_cameras_seconds(tmp_path):
    write_release(tmp_path, ["kinect_color"], [1])
    write_camera(tmp_path, "kinect_ir", [1])
    adapter = DriveAct(tmp_path)
    clip = next(iter(adapter.clips()))
    assert second(read(tmp_path, clip.media["ir"], Sampling(frames="all")).values) == pytest.approx(
        np.arange(0.2, 0.99, 1 / 30), abs=1e-6
    )
    assert "kinect_ir: no annotations of its own; kinect_color's are used, in seconds" in adapter.notes()


# ---- identity, labels, splits


def test_clips_are_the_same_in_all_views(release):
    clips = clips_of(release)
    assert len(clips) == len(DRIVES) * len(CLIPS)
    clip = clips["vp5_run1_2018-05-22-15-32-37_1_1"]
    assert (clip.label, clip.label_name, clip.subject) == (19, SEARCHING, "5")
    assert (clip.start_seconds, clip.end_seconds) == (27 / 15, 36 / 15)
    assert clip.attributes == {"recording": "run1_2018-05-22-15-32-37", "annotation": 1, "chunk": 1}
    assert {name: (media.path, media.reader) for name, media in clip.media.items()} == {
        "rgb": ("kinect_color/vp5/run1_2018-05-22-15-32-37.kinect_color.mp4", "video"),
        "ir": ("kinect_ir/vp5/run1_2018-05-22-15-32-37.kinect_ir.mp4", "video"),
        "depth": ("kinect_depth_mp4/vp5/run1_2018-05-22-15-32-37.kinect_depth.mp4", "video"),
        "ir.inner_mirror": ("inner_mirror/vp5/run1_2018-05-22-15-32-37.ids_1.mp4", "video"),
        "ir.ceiling": ("ceiling/vp5/run1_2018-05-22-15-32-37.ids_3.mp4", "video"),
        "skeleton": ("openpose_3d/vp5/run1_2018-05-22-15-32-37.ids_1.openpose.3d.csv", "openpose-3d"),
    }


def test_protocols_and_their_sizes(release):
    adapter = DriveAct(release)
    sizes = Counter((split.protocol, split.part) for split in adapter.splits(adapter.clips()))
    assert sizes == {
        ("split-0", "train"): 3,
        ("split-0", "val"): 3,
        ("split-0", "test"): 3,
        ("split-1", "train"): 9,
        ("split-2", "train"): 6,
        ("split-2", "val"): 3,
    }


def test_every_participant_is_in_one_part_as_officially():
    """Ten train, two validate, three test; each of the 15 is held out in exactly one split."""
    held = [who for parts in SPLITS.values() for people in parts.values() for who in people]
    assert sorted(held) == list(range(1, 16)) and len(set(held)) == 15
    for split, parts in SPLITS.items():
        counts = Counter(official_part(split, who) for who in range(1, 16))
        assert counts == {"train": 10, "val": 2, "test": 3}
        assert {who for who in range(1, 16) if official_part(split, who) == "test"} == parts["test"]
        assert {who for who in range(1, 16) if official_part(split, who) == "val"} == parts["val"]


def test_class_texts(release):
    adapter = DriveAct(release)
    names = adapter.class_names()
    assert len(names) == 34 and names[0] == "closing_door_outside" and names[19] == SEARCHING
    assert names[6] == "sitting_still" and names[33] == "taking_laptop_from_backpack"
    texts = list(adapter.label_texts())
    assert Counter(text.prompt_set for text in texts) == {"name": 34, "video": 34, "sentence": 34}
    assert all(text.label_name == names[text.label] for text in texts)
    assert len({text.text for text in texts}) == 3 * 34
    by_set = {text.prompt_set: text.text for text in texts if text.label == 12}
    assert by_set["name"] == "drinking" and by_set["sentence"] == "A driver drinks from a bottle."
    assert "looking or moving around (e.g. searching)" in {text.text for text in texts}


ZERO_SHOT = {
    "seen_classes": range(14),
    "unseen_classes_val": range(14, 24),
    "unseen_classes_test": range(24, 34),
}


def write_zero_shot(folder, split=0):
    folder.mkdir(parents=True, exist_ok=True)
    names = DriveAct(folder).class_names()
    for part, labels in ZERO_SHOT.items():
        (folder / f"midlevel_{part}_{split}.txt").write_text("".join(f"{names[k]}\n" for k in labels))


def test_zero_shot_parts_are_classes(tmp_path):
    write_annotations(tmp_path, "kinect_color")
    write_zero_shot(tmp_path / "zs-drive_and_act" / "splits", 0)
    write_zero_shot(tmp_path / "zs-drive_and_act" / "splits", 7)
    adapter = DriveAct(tmp_path)
    clips = list(adapter.clips())
    splits = [split for split in adapter.splits(clips) if split.protocol.startswith("zs")]
    assert {split.protocol for split in splits} == {"zs0", "zs7"}
    labels = {clip.clip_id: clip.label for clip in clips}
    assert {(labels[split.clip_id], split.part) for split in splits} == {(0, "train"), (19, "val")}
    (tmp_path / "zs-drive_and_act" / "splits" / "midlevel_seen_classes_7.txt").write_text("eating\nflying\n")
    with pytest.raises(DatasetError, match=r"_7\.txt, line 2: 'flying' is no class of Drive&Act"):
        list(adapter.splits(clips))
    (tmp_path / "zs-drive_and_act" / "splits" / "midlevel_seen_classes_7.txt").write_text("writing\n")
    with pytest.raises(DatasetError, match=r"test_7\.txt, line 2: class 'writing' is in part 'train' too"):
        list(adapter.splits(clips))
    (tmp_path / "zs-drive_and_act" / "splits" / "midlevel_seen_classes_7.txt").unlink()
    with pytest.raises(DatasetError, match=r"midlevel_seen_classes_7\.txt: cannot be read"):
        list(adapter.splits(clips))
    with pytest.raises(DatasetError, match=r"nowhere: no zero-shot splits; midlevel_seen_classes_0\.txt"):
        list(DriveAct(tmp_path, zero_shot="nowhere").splits(clips))


# ---- what is not there, and what is wrong


def test_views_and_recordings_that_are_not_there(tmp_path):
    write_release(tmp_path / "data", ["kinect_color"])
    write_annotations(tmp_path / "data", "kinect_ir")
    (tmp_path / "data" / "kinect_color" / "vp5" / f"{DRIVES[5]}.kinect_color.mp4").unlink()
    adapter = DriveAct(tmp_path)  # one folder above
    clips = list(adapter.clips())
    assert len(clips) == 9
    assert Counter(tuple(clip.media) for clip in clips) == {("rgb", "skeleton"): 6, ("skeleton",): 3}
    assert clips[0].media["rgb"].path.startswith("data/kinect_color/vp1/")
    notes = adapter.notes()
    example = "vp1/run1b_2018-05-29-14-02-47"
    assert (
        f"kinect_color: 1 of 3 recordings have no file such as kinect_color/{example}.kinect_color.mp4"
        in notes
    )
    assert f"ceiling: 3 of 3 recordings have no file such as ceiling/{example}.ids_3.mp4" in notes


def test_a_view_that_names_another_activity_is_left_out_of_the_clip(tmp_path):
    write_release(tmp_path, ["kinect_color"], [1])
    write_camera(tmp_path, "kinect_ir", [1])
    write_annotations(tmp_path, "kinect_ir", drives=[1])
    for path in (tmp_path / "activities_3s" / "kinect_ir").glob("*.csv"):
        path.write_text(path.read_text().replace("closing_door_outside", "drinking"))
    adapter = DriveAct(tmp_path)
    clips = list(adapter.clips())
    assert ["ir" in clip.media for clip in clips] == [False, True, True] and clips[0].label == 0
    assert any(note.startswith("1 clips of ir are left out") for note in adapter.notes())


def test_videos_of_another_rate_than_their_annotations_are_noted(tmp_path):
    """Infrared with every second frame dropped: its annotations still count 30 a second."""
    write_release(tmp_path, ["kinect_color", "kinect_ir"], [1])
    assert not any("times as long" in note for note in DriveAct(tmp_path).notes())
    write_video(tmp_path / "kinect_ir" / "vp1" / f"{DRIVES[1]}.kinect_ir.mp4", 42, 15)
    notes = DriveAct(tmp_path).notes()
    assert any("kinect_ir: clips last 2.00 times as long as in kinect_color" in note for note in notes)


def test_unknown_activities_are_all_listed(tmp_path):
    write_annotations(tmp_path, "kinect_color")
    for path in (tmp_path / "activities_3s" / "kinect_color").glob("*.csv"):
        text = path.read_text().replace("closing_door_outside", "fasten_seat_belt")
        path.write_text(text.replace(SEARCHING, "eat_drink"))
    with pytest.raises(
        DatasetError, match=r"'eat_drink', 'fasten_seat_belt'; the 34 .* closing_door_outside, "
    ):
        list(DriveAct(tmp_path).clips())


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("frame_end,", "", "line 1: no column 'frame_end'"),
        (",3,14,", ",3,2,", "line 2: frame_end 2 comes before frame_start 3"),
        (",3,14,", ",three,14,", "line 2: frame_start is 'three'; a number from 0"),
        ("1,vp1/", "2,vp1/", "participant_id 2 and file_id 'vp1/.*are two participants"),
        ("1,vp1/", "16,vp16/", "participant 16 does not exist; Drive&Act has 1 to 15"),
        ("vp1/run1b", "run1b", "file_id is 'run1b.*vp<participant>/<recording> is needed"),
        ("1,vp1/", "5,vp5/", r"participant 5 is in part 'train' of split 0, officially in 'test'"),
        (
            ",3,14,",
            ",4,14,",
            r"split_1.train.csv, line 2: clip vp1_run1b.* is frames 3 to 14.*tells otherwise",
        ),
    ],
)
def test_annotations_that_are_wrong_name_file_and_line(tmp_path, old, new, match):
    write_annotations(tmp_path, "kinect_color")
    rewrite(train_csv(tmp_path), old, new)
    with pytest.raises(DatasetError, match=match):
        list(DriveAct(tmp_path).clips())


def test_nothing_there_says_what_is_expected(tmp_path):
    with pytest.raises(
        DatasetError, match=r"neither activities_3s/ .* nor cut clips \(kinect_color/clips/train"
    ):
        list(DriveAct(tmp_path).clips())
    (tmp_path / "activities_3s" / "kinect_color").mkdir(parents=True)
    wanted = r"activities_3s/kinect_color/midlevel\.chunks_90\.split_0\.train\.csv is needed"
    with pytest.raises(DatasetError, match=wanted):
        list(DriveAct(tmp_path).clips())
    with pytest.raises(DatasetError, match="layout is 'zip'; release or cut is accepted"):
        DriveAct(tmp_path, layout="zip")
    with pytest.raises(DatasetError, match=r"lists is 'train\.txt'; a mapping from part to file"):
        DriveAct(tmp_path, lists="train.txt")


def test_the_yaml(release):
    adapter, config = load_dataset("daa", release)
    assert isinstance(adapter, DriveAct) and config.modality("ir.ceiling") == config.modality("ir")
    assert row("kinect_color", 1, CLIPS[0])[3:5] == [3, 14]  # the look-alike's frames, by hand
