"""Drive&Act's 3-D poses: which OpenPose joint becomes which of NTU's, badly seen frames, times, damage."""

import numpy as np
import pytest
from daa_files import pose, write_poses

from extract.readers import load_reader
from extract.readers.media import DamagedMediaError, NoFramesError
from extract.readers.openpose_csv import NTU_JOINTS, OPENPOSE_JOINTS, ntu_joints
from extract.sampling import Sampling, SamplingError

ALL = Sampling(frames="all")


def read(path, sampling=ALL, *span, **options):
    return load_reader("openpose-3d").read(path, sampling, *span, **options)


def numbered():
    """OpenPose joint k at (k + 1, 0, 0); the background is never seen."""
    joints = np.zeros((26, 3))
    joints[:, 0] = np.arange(1, 27)
    joints[OPENPOSE_JOINTS.index("background")] = 0
    return joints


def test_every_joint_of_ntu_by_hand(tmp_path):
    """The file's order: nose 1, lElbow 2, lWrist 3, rHeel 4, rHip 5, ..., midHip 15, ..., lAnkle 26."""
    (values,) = read(write_poses(tmp_path / "p.csv", [numbered()])).values
    assert values.shape == (1, 25, 3) and values.dtype == np.float32
    spine = (15 + 7) / 2  # midHip and neck
    by_hand = [
        *(15, spine, spine, 1),  # base and middle of the spine, neck, head (nose)
        *(21, 2, 3, 3),  # left shoulder, elbow, wrist, hand (wrist)
        *(19, 18, 9, 9),  # right
        *(11, 13, 26, (22 + 12) / 2),  # left hip, knee, ankle, foot (big toe and heel)
        *(5, 20, 10, (25 + 4) / 2),  # right
        *(spine, 3, 0, 9, 0),  # spine at the shoulders, left hand's tip and thumb, right ones
    ]
    assert values[0, :, 0].tolist() == by_hand
    assert not values[0, :, 1:].any()
    assert len(NTU_JOINTS) == 25 and len(set(OPENPOSE_JOINTS)) == 26


def test_the_middle_of_a_joint_that_is_not_seen_is_not_seen():
    joints = numbered()
    joints[OPENPOSE_JOINTS.index("midHip")] = joints[OPENPOSE_JOINTS.index("rHeel")] = 0
    mapped = ntu_joints(joints[None])[0, :, 0]
    assert mapped[[0, 1, 2, 19, 20]].tolist() == [0, 0, 0, 0, 0] and mapped[15] == 17


def test_frames_with_fewer_than_nine_joints_repeat_the_last_pose(tmp_path):
    eight, nine = np.zeros((26, 3)), np.zeros((26, 3))
    eight[:8], nine[:9] = 1.0, 2.0
    empty = np.zeros((26, 3))
    path = write_poses(tmp_path / "p.csv", [eight, nine, eight, empty, numbered(), eight])
    noses = read(path).values[:, 0, 3, 0]
    assert noses.tolist() == [0, 2, 2, 2, 1, 1]  # before the first good one: nothing


def test_a_span_has_the_camera_s_times_even_if_frames_are_missing(tmp_path):
    path = write_poses(tmp_path / "p.csv", [pose(k) for k in range(60)], first=10)
    frames = read(path, ALL, 1.0, 1.2)
    assert np.allclose(frames.times_seconds, np.arange(30, 36) / 30)
    assert np.allclose(frames.values[:, 0, 3, 0], 1 + np.arange(20, 26))  # row 20 is frame 30
    assert (frames.fps, frames.declared_frames, frames.decoded_frames) == (30.0, 60, 60)
    slow = read(path, Sampling(frames=2), 1.0, 1.2, fps=25.0)
    assert slow.times_seconds.tolist() == [26 / 25, 28 / 25]
    info = load_reader("openpose-3d").probe(path, fps=25.0)
    assert (info.frames, info.fps, info.duration_seconds) == (60, 25.0, 70 / 25)
    with pytest.raises(SamplingError, match="holds none of the frames"):
        read(path, ALL, 5.0, 6.0)


def test_a_span_in_which_nobody_is_seen(tmp_path):
    path = write_poses(tmp_path / "p.csv", [np.zeros((26, 3))] * 20 + [pose(k) for k in range(10)])
    with pytest.raises(NoFramesError, match=r"nobody is seen from frame 6 to 11, nor before"):
        read(path, ALL, 0.2, 0.4)
    assert read(path, ALL, 0.8, 0.9).values.any()


def test_a_file_that_was_cut_gives_its_complete_frames(tmp_path):
    path = write_poses(tmp_path / "p.csv", [pose(k) for k in range(20)])
    text = path.read_text()
    path.write_text(text[: text.rindex(",0.9")])
    frames = read(path)
    assert (len(frames.values), frames.declared_frames, frames.decoded_frames) == (19, 20, 19)


def test_a_replaced_file_is_read_again(tmp_path):
    path = write_poses(tmp_path / "p.csv", [pose(0)])
    assert read(path).values[0, 0, 3, 0] == 1
    write_poses(path, [pose(5), pose(5)])
    assert read(path).values[0, 0, 3, 0] == 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text.replace("midHip_y", "hip_y"), r"has no column 'midHip_y' \(1 of 79 are missing\)"),
        (
            lambda text: "nonsense\n1\n",
            r"has no column 'frame_id' \(79 of 79 are missing\): no 3-D poses of Dri",
        ),
        (lambda text: text.replace("\n1,", "\n0,"), "frame_id do not count upwards from 0"),
        (lambda text: text.replace("\n1,", "\none,"), "holds what is no number"),
        (lambda text: text.splitlines()[0] + "\n0,1,2\n", "first row does not have the header's 106 cells"),
        (lambda text: "é" + text, "is no text"),
    ],
)
def test_foreign_files(tmp_path, change, match):
    path = write_poses(tmp_path / "p.csv", [pose(0), pose(1)])
    path.write_text(change(path.read_text()), encoding="utf-8")
    with pytest.raises(DamagedMediaError, match=match):
        read(path)


def test_only_a_header(tmp_path):
    with pytest.raises(NoFramesError, match="holds no frame"):
        read(write_poses(tmp_path / "p.csv", []))
