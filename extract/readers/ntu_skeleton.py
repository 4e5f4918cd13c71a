"""NTU RGB+D ``.skeleton`` text files (Kinect v2: 25 joints, up to six tracked bodies, 30 Hz)."""

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


class NTUSkeletonReader:
    """Values (T, P, J, 3) float32: camera-space metres, x right, y up, z away; all-zero = body not seen.

    Bodies keep one place P through the clip by their tracking number. They are ordered by how much they move
    (the sensor also tracks furniture, which does not), and the first ``max_persons`` are kept. Frames in
    which nobody is seen stay, as zeros, so that times are true. Options: ``max_persons`` (2), ``fps`` (30.0).
    """

    revision = 1

    def probe(self, path: str | Path, max_persons: int = 2, fps: float = 30.0) -> MediaInfo:
        """Frames that are there (not those declared). Raises: ReadError."""
        frames = len(_parse(path).frames)
        return MediaInfo(frames, fps, None, None, frames / fps)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        max_persons: int = 2,
        fps: float = 30.0,
    ) -> Frames:
        """The frames of [start, end) that ``sampling`` wants; of a cut file, those that are complete.

        Raises:
            ReadError: If the file is missing or no skeleton file, or no body is seen in any frame (NTU lists
                535 such clips).
            SamplingError: If the span lies outside the clip.
        """
        recording = _parse(path)
        bodies = persons_by_motion(recording.bodies(path), max_persons)
        count = len(recording.frames)
        wanted = frame_indices(np.arange(count) / fps, sampling, start_seconds, end_seconds, fps)
        return Frames(bodies[wanted], wanted / fps, fps, recording.declared, count)


@dataclass(frozen=True)
class _Recording:
    declared: int
    frames: list[dict[str, np.ndarray]]  # per frame: tracking number -> (J, 3)

    def bodies(self, path: str | Path) -> np.ndarray:
        """(T, P, J, 3) float32, all bodies in the order of their first appearance."""
        numbers = list(dict.fromkeys(number for frame in self.frames for number in frame))
        if not numbers:
            raise NoFramesError(path, "no body is seen in any frame", "leave it out (missing skeleton)")
        joints = max(len(body) for frame in self.frames for body in frame.values())
        values = np.zeros((len(self.frames), len(numbers), joints, 3), np.float32)
        for index, frame in enumerate(self.frames):
            for number, body in frame.items():
                values[index, numbers.index(number), : len(body)] = body
        return values


def persons_by_motion(bodies: np.ndarray, max_persons: int) -> np.ndarray:
    """(T, P, J, 3) -> the ``max_persons`` bodies that move most, most first; equal ones keep their order.

    Motion is the summed variance over time of the joints' coordinates, times the frames in which the body is
    seen.
    """
    seen = (bodies != 0).any(axis=(2, 3))
    motion = [
        float(bodies[seen[:, p], p].var(axis=0).sum() * seen[:, p].sum()) if seen[:, p].any() else -1.0
        for p in range(bodies.shape[1])
    ]
    return bodies[:, np.argsort(-np.array(motion), kind="stable")[:max_persons]]


def _parse(path: str | Path) -> _Recording:
    """All complete frames of the file."""
    try:
        lines = checked_file(path).read_text(encoding="ascii").split("\n")
        declared = int(lines[0])
    except (UnicodeDecodeError, ValueError):
        raise DamagedMediaError(
            path, "is no NTU skeleton file (it must begin with a count of frames)", "copy it again"
        ) from None
    if declared <= 0:
        raise NoFramesError(path, f"declares {declared} frames", "leave it out (missing skeleton)")
    frames: list[dict[str, np.ndarray]] = []
    position = 1
    while len(frames) < declared:
        try:
            frame, position = _parse_frame(lines, position)
        except (IndexError, ValueError):
            break  # cut, or broken from here on
        frames.append(frame)
    if not frames:
        raise DamagedMediaError(path, f"declares {declared} frames and holds none complete", "copy it again")
    return _Recording(declared, frames)


def _parse_frame(lines: list[str], position: int) -> tuple[dict[str, np.ndarray], int]:
    """One frame: a count of bodies; each has a line with its number, a count, and that many joints."""
    frame: dict[str, np.ndarray] = {}
    count = int(lines[position])
    position += 1
    for _ in range(count):
        number = lines[position].split()[0]
        joints = int(lines[position + 1])
        first = position + 2
        rows = [line.split()[:3] for line in lines[first : first + joints]]
        body = np.array(rows, dtype=np.float32)
        if body.shape != (joints, 3) or joints < 1:
            raise ValueError("a joint is cut")
        frame[number] = body
        position = first + joints
    return frame, position
