"""What readers return, what they promise, and how they say that a file cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from extract.sampling import Sampling
from store.errors import FrameBankError


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, told without decoding its frames.

    Attributes:
        frames: Frames in the file (video frames, images, skeleton frames, audio samples).
        fps: Frames a second (audio: samples a second).
        width: Pixels, None for media without.
        height: Pixels, None for media without.
        duration_seconds: From the first frame's beginning to the last one's end.
    """

    frames: int
    fps: float
    width: int | None
    height: int | None
    duration_seconds: float


@dataclass(frozen=True)
class Frames:
    """The frames that were asked for.

    Attributes:
        values: rgb, ir: (T, H, W, 3) uint8. depth: (T, H, W) uint16 millimetres, 0 = no measurement.
            skeleton: (T, P, J, 3) float32 metres, all-zero = body not seen. inertial: (T, C) float32.
            audio: (samples,) float32 in [-1, 1], mono. text: (1,) object, one string.
        times_seconds: (T,) float64, when each frame begins, on the file's clock: its first frame is at 0.
            Audio and text: (1,), the beginning of the values.
        fps: Rate of the file (not of the frames taken).
        declared_frames: How many frames the file says it has.
        decoded_frames: How many of them could be read, as far as this read got to know: fewer than declared
            means that the file is damaged or cut.
    """

    values: np.ndarray
    times_seconds: np.ndarray
    fps: float
    declared_frames: int
    decoded_frames: int


class Reader(Protocol):
    """Reads one kind of file. Stateless to its users; cheap to make; used by one thread at a time.

    ``revision`` is raised by hand when the values that ``read`` returns change: it is part of a feature set's
    identity.
    """

    revision: int

    def probe(self, path: str | Path, **options: Any) -> MediaInfo:
        """What the file holds. Raises: ReadError."""
        ...

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        **options: Any,
    ) -> Frames:
        """The frames of the span [start, end) that ``sampling`` wants. Raises: ReadError, SamplingError."""
        ...


class ReadError(FrameBankError):
    """A file that cannot be read; the message names the file and the cause."""

    def __init__(self, path: str | Path, problem: str, remedy: str):
        super().__init__(f"{printable(path)}: {problem}; {remedy}")


class MissingMediaError(ReadError, FileNotFoundError):
    """The file or folder is not there (or not of the kind that the reader reads)."""


class UnreadableMediaError(ReadError, PermissionError):
    """The file or folder is there, but the system does not let us read it."""


class DamagedMediaError(ReadError, ValueError):
    """The content is not what the reader reads, or is broken before its first frame."""


class NoFramesError(ReadError, ValueError):
    """The file is sound but holds no frame."""


class UnsafeMediaError(ReadError, ValueError):
    """Loading the file would run code that it carries; nothing of it was run."""


def printable(path: str | Path) -> str:
    """A path on one line: file names may hold newlines and undecodable bytes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def checked_file(path: str | Path) -> Path:
    """The path of a non-empty, readable regular file.

    Raises:
        MissingMediaError, UnreadableMediaError, DamagedMediaError: For what it is instead.
    """
    found = Path(path)
    if found.is_dir():
        raise MissingMediaError(path, "is a folder", "this reader needs a file")
    try:
        size = found.stat().st_size
        with found.open("rb"):
            pass
    except FileNotFoundError:
        raise MissingMediaError(path, "there is no such file", "restore it") from None
    except PermissionError as error:
        raise UnreadableMediaError(
            path, f"cannot be opened ({error.strerror})", "grant read access"
        ) from None
    if size == 0:
        raise DamagedMediaError(path, "the file is empty (0 bytes)", "copy it again")
    return found
