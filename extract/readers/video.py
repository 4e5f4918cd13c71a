"""Video files: only the frames asked for, in the right place of the file, from damaged files too."""

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch  # noqa: F401 - before decord, which loads CUDA's BLAS; torch's layers crash in that without a GPU

import decord  # isort: skip

from extract.readers.exact import ExactDecoder
from extract.readers.media import DamagedMediaError, Frames, MediaInfo, NoFramesError, ReadError, checked_file
from extract.readers.packets import PacketTable, packet_table
from extract.sampling import Sampling, frame_duration, frame_indices

# Their messages go to stderr between the progress lines; what is wrong with a file is told by our errors.
decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)

DECORD_ERRORS = (decord.DECORDError, RuntimeError, StopIteration, AssertionError, IndexError)


class VideoReader:
    """Reads any video container; values (T, H, W, 3) uint8 RGB, upright.

    decord decodes where frame numbers can be trusted (`packets.py` says when), PyAV by timestamp elsewhere
    and where decord fails; both give the same bits (a test compares them). Frames are taken one by one:
    decord's ``get_batch`` converts every frame that it skips to RGB, which costs most at high resolutions.

    The last file stays open: the next view of a clip, or the next clip of a long recording, does not read its
    packets again.
    """

    revision = 1

    def __init__(self) -> None:
        self._opened: tuple[tuple[Any, ...], _OpenVideo] | None = None

    def probe(self, path: str | Path) -> MediaInfo:
        """Count, rate, size and duration, from the packets. Raises: ReadError."""
        table = self._open(path).table
        duration = float(table.times_seconds[-1]) + frame_duration(table.times_seconds, table.fps)
        return MediaInfo(len(table.keys), table.fps, table.width, table.height, duration)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> Frames:
        """The frames of [start, end) that ``sampling`` wants; time 0 is the file's first frame.

        In a damaged file, a frame that does not decode is replaced by the next that does (at a cut: the
        last), ``times_seconds`` are those of the frames really taken, and ``decoded_frames`` is lower than
        ``declared_frames``.

        Raises:
            ReadError: If the file is missing, is no video, or no frame of it decodes.
            SamplingError: If the span lies outside the video.
        """
        video = self._open(path)
        table = video.table
        wanted = frame_indices(table.times_seconds, sampling, start_seconds, end_seconds, table.fps)
        distinct, places = np.unique(wanted, return_inverse=True)
        values, taken = video.frames(distinct)
        if len(places) != len(distinct):
            values = values[places]
        return Frames(
            values, table.times_seconds[taken][places], table.fps, table.declared, video.decoded_frames
        )

    def _open(self, path: str | Path) -> "_OpenVideo":
        found = checked_file(path)
        status = os.stat(found)
        key = (os.fspath(found), status.st_ino, status.st_size, status.st_mtime_ns)
        if self._opened is None or self._opened[0] != key:
            self._opened = None  # frees the old decoder before the new one allocates
            self._opened = (key, _OpenVideo(found))
        return self._opened[1]


class _OpenVideo:
    """One file with its packet table and whichever decoder it needs."""

    def __init__(self, path: Path):
        self.path = path
        self.table = _table(path)
        if not len(self.table.keys):
            raise NoFramesError(path, "the video stream holds no frame", "record or copy it again")
        self._exact = ExactDecoder(path, self.table)
        self._numbered: Any = self._decord() if self.table.numbered else None

    @property
    def decoded_frames(self) -> int:
        """Frames in the file, less those that turned out not to decode."""
        return len(self.table.keys) - self._exact.damaged

    def frames(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n, H, W, 3) and the indices (n,) of the frames taken, for ascending, distinct indices."""
        if self._numbered is not None:
            values = self._by_number(indices)
            if values is not None:
                return values, indices
            self._numbered = None
        values, keys = self._exact.read(self.table.keys[indices])
        if not len(values):
            raise NoFramesError(self.path, "no frame of the video stream decodes", "copy it again")
        return values, np.searchsorted(self.table.keys, keys).clip(0, len(self.table.keys) - 1)

    def _decord(self) -> Any:
        try:
            reader = decord.VideoReader(os.fspath(self.path), num_threads=1)
        except DECORD_ERRORS:
            return None
        # With another count its numbers are not those of our table.
        return reader if len(reader) == len(self.table.keys) else None

    def _by_number(self, indices: np.ndarray) -> np.ndarray | None:
        """The frames through decord, or None where it cannot be used (damage; rotated or resized frames)."""
        values = np.empty((len(indices), self.table.height, self.table.width, 3), np.uint8)
        try:
            for place, index in enumerate(indices):
                frame = self._numbered[int(index)].asnumpy()
                if frame.shape != values.shape[1:]:
                    return None
                values[place] = frame
        except DECORD_ERRORS:
            return None
        return values


def _table(path: Path) -> PacketTable:
    try:
        with av.open(os.fspath(path), metadata_errors="replace") as container:
            if not container.streams.video:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise NoFramesError(path, f"holds no video stream (it holds: {kinds})", "give a video file")
            return packet_table(container, container.streams.video[0])
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, ReadError):
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DamagedMediaError:
    cause = getattr(error, "strerror", None) or str(error)
    return DamagedMediaError(
        path,
        f"is no video, or is cut before its index ({cause})",
        "copy it again from its source",
    )
