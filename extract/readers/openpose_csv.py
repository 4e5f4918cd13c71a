"""Drive&Act's 3-D poses: a CSV of OpenPose joints for each frame of the inner mirror's camera -> NTU's 25.

Source: Martin et al., Drive&Act (ICCV 2019), files like
``openpose_3d/vp1/run1b_2018-05-29-14-02-47.ids_1.openpose.3d.csv``; the mapping and the rule for badly seen
frames are CMVRA's (github.com/Cappl1/CMVRA). Two of its slips are not repeated: it skips the first two frames
of every file, so that each pose is that of two frames later, and it puts the middle of a seen and an unseen
joint halfway to the camera.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.readers.media import (
    DamagedMediaError,
    Frames,
    MediaInfo,
    NoFramesError,
    checked_file,
)
from extract.sampling import Sampling, frame_indices

FRAME_COLUMN = "frame_id"
OPENPOSE_JOINTS = (
    "nose", "lElbow", "lWrist", "rHeel", "rHip", "rSmallToe", "neck", "lSmallToe", "rWrist", "rAnkle", "lHip",
    "lHeel", "lKnee", "lEye", "midHip", "background", "lEar", "rElbow", "rShoulder", "rKnee", "lShoulder",
    "lBigToe", "rEye", "rEar", "rBigToe", "lAnkle",
)  # fmt: skip
MIN_VISIBLE_JOINTS = 9  # with fewer, a frame shows the last pose that had as many

_SPINE = ("midHip", "neck")
# NTU RGB+D's joints in their order, each the middle of OpenPose joints; () = OpenPose has none (the thumbs).
NTU_JOINTS: tuple[tuple[str, ...], ...] = (
    ("midHip",), _SPINE, _SPINE, ("nose",),
    ("lShoulder",), ("lElbow",), ("lWrist",), ("lWrist",),
    ("rShoulder",), ("rElbow",), ("rWrist",), ("rWrist",),
    ("lHip",), ("lKnee",), ("lAnkle",), ("lBigToe", "lHeel"),
    ("rHip",), ("rKnee",), ("rAnkle",), ("rBigToe", "rHeel"),
    _SPINE, ("lWrist",), (), ("rWrist",), (),
)  # fmt: skip


class OpenPoseCsvReader:
    """Values (T, 1, 25, 3) float32: metres, in the axes of the inner mirror's camera; all-zero = not seen.

    A frame's time is its ``frame_id / fps``: that of the same frame of the inner mirror's video. Frames with
    fewer than nine visible joints (of 26) repeat the last pose with as many; before the first they are zero.
    The last file stays open: a recording has hundreds of clips. Option: ``fps`` (30.0), the camera's rate.
    """

    revision = 1

    def __init__(self) -> None:
        self._opened: tuple[tuple[object, ...], _Recording] | None = None

    def probe(self, path: str | Path, fps: float = 30.0) -> MediaInfo:
        """Count, and duration from frame 0 on. Raises: ReadError."""
        frames = self._open(path).frame_ids
        return MediaInfo(len(frames), fps, None, None, float(frames[-1] + 1) / fps)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        fps: float = 30.0,
    ) -> Frames:
        """The frames of [start, end) that ``sampling`` wants; of a cut file, those that are complete.

        Raises:
            ReadError: If the file is missing, is no such CSV, or nobody is seen in the frames wanted.
            SamplingError: If the span lies outside the recording.
        """
        recording = self._open(path)
        times = recording.frame_ids / fps
        wanted = frame_indices(times, sampling, start_seconds, end_seconds, fps)
        values = recording.poses[wanted][:, None]
        if not values.any():
            first, last = recording.frame_ids[wanted[[0, -1]]]
            problem = f"nobody is seen from frame {first} to {last}, nor before"
            raise NoFramesError(path, problem, "leave this clip's skeleton out")
        return Frames(values, times[wanted], fps, recording.declared, len(times))

    def _open(self, path: str | Path) -> "_Recording":
        found = checked_file(path)
        status = os.stat(found)
        key = (os.fspath(found), status.st_ino, status.st_size, status.st_mtime_ns)
        if self._opened is None or self._opened[0] != key:
            self._opened = (key, _parse(found))
        return self._opened[1]


@dataclass(frozen=True)
class _Recording:
    frame_ids: np.ndarray  # (T,) int64 ascending
    poses: np.ndarray  # (T, 25, 3) float32
    declared: int  # lines, complete or not


def ntu_joints(poses: np.ndarray, joints: Sequence[str] = OPENPOSE_JOINTS) -> np.ndarray:
    """(T, J, 3) OpenPose joints -> (T, 25, 3) in NTU's order.

    The middle of joints of which one is not seen (zero) is not seen either.
    """
    mapped = np.zeros((len(poses), len(NTU_JOINTS), 3), poses.dtype)
    for place, names in enumerate(NTU_JOINTS):
        if names:
            sources = poses[:, [joints.index(name) for name in names]]
            seen = (sources != 0).any(-1).all(-1)
            mapped[:, place] = sources.mean(1) * seen[:, None]
    return mapped


def hold_last_pose(poses: np.ndarray, least: int = MIN_VISIBLE_JOINTS) -> np.ndarray:
    """(T, J, 3): frames with fewer than ``least`` joints become the last one that has as many, or zeros."""
    good = (poses != 0).any(-1).sum(-1) >= least
    last = np.maximum.accumulate(np.where(good, np.arange(len(poses)), -1))
    return np.where((last >= 0)[:, None, None], poses[last], 0)


def _parse(path: Path) -> _Recording:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise _foreign(path, "is no text") from None
    header = [name.strip() for name in lines[0].split(",")]
    wanted = [FRAME_COLUMN, *(f"{joint}_{axis}" for joint in OPENPOSE_JOINTS for axis in "xyz")]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise _foreign(path, f"has no column {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)")
    rows = [line for line in lines[1:] if line.strip()]
    if not rows:
        raise NoFramesError(path, "holds no frame", "copy it again")
    values = _numbers(path, rows, len(header), [header.index(name) for name in wanted])
    frame_ids = values[:, 0].astype(np.int64)
    if (np.diff(frame_ids) <= 0).any() or frame_ids[0] < 0:
        raise _foreign(path, "its frame_id do not count upwards from 0")
    poses = np.nan_to_num(values[:, 1:].reshape(len(values), -1, 3), posinf=0.0, neginf=0.0)
    return _Recording(frame_ids, ntu_joints(hold_last_pose(poses)).astype(np.float32), len(rows))


def _numbers(path: Path, rows: list[str], count: int, columns: list[int]) -> np.ndarray:
    """(T, columns) float64 of the rows before the first that is cut."""
    complete = next((k for k, row in enumerate(rows) if row.count(",") != count - 1), len(rows))
    if not complete:
        raise _foreign(path, f"its first row does not have the header's {count} cells")
    try:
        return np.loadtxt(rows[:complete], delimiter=",", usecols=columns, ndmin=2, comments=None)
    except ValueError as error:
        raise _foreign(path, f"holds what is no number ({error})") from None


def _foreign(path: Path, problem: str) -> DamagedMediaError:
    remedy = f"{FRAME_COLUMN} and x, y, z of {len(OPENPOSE_JOINTS)} joints (nose_x, ...) are needed"
    return DamagedMediaError(path, f"{problem}: no 3-D poses of Drive&Act", remedy)
