"""Decoding by timestamp (PyAV): slower than by number in dense reads, but never the wrong frame."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from extract.readers.packets import PacketTable

# A seek flushes the decoder and reads the index; decoding past a few frames costs less.
SEEK_GAIN_FRAMES = 8


class ExactDecoder:
    """Finds the frames of a file's first video stream by their keys, in any file that libav decodes.

    Frames that are damaged are replaced by the next one that decodes (at the end: by the last), and the key
    of what was really taken is returned.
    """

    def __init__(self, path: Path, table: PacketTable):
        self._path, self._table = path, table
        self._container: Any = None
        self._seek_works = table.seekable
        self._bad_packets: set[tuple[int | None, int | None]] = set()
        self._end: tuple[int, Any] | None = None  # the last frame that decodes, once a read ran past it

    @property
    def damaged(self) -> int:
        """Packets met so far that gave no frame."""
        return len(self._bad_packets)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames for ascending, distinct ``keys``.

        Returns:
            values (n, H, W, 3) uint8 RGB, upright; and the keys (n,) of the frames taken. Both empty if
            nothing in the file decodes.
        """
        taken: list[int] = []
        images: list[np.ndarray] = []
        for key, frame in self._find(keys):
            taken.append(key)
            images.append(images[-1] if len(taken) > 1 and key == taken[-2] else self._rgb(frame, images))
        values = np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8)
        return values, np.array(taken, np.int64)

    def _find(self, keys: np.ndarray) -> Iterator[tuple[int, Any]]:
        frames: Iterator[tuple[int, Any]] = iter(())
        last: tuple[int, Any] | None = None
        for wanted in keys:
            if self._end is not None and self._end[0] < wanted:
                last = self._end
            elif last is None or last[0] < wanted:
                if last is None or self._is_further(last[0], wanted):
                    frames = self._from(int(wanted))
                last = next((item for item in frames if item[0] >= wanted), None) or self._last()
            if last is None:
                return
            yield last

    def _is_further(self, position: int, wanted: int) -> bool:
        """Whether a key frame lies so far ahead that seeking to it is cheaper than decoding up to it."""
        if not self._seek_works:
            return False
        key_frames = self._table.key_frames
        place = int(np.searchsorted(key_frames, wanted, side="right")) - 1
        if place < 0:
            return False
        here, there = np.searchsorted(self._table.keys, [position, key_frames[place]])
        return bool(there - here > SEEK_GAIN_FRAMES)

    def _from(self, wanted: int) -> Iterator[tuple[int, Any]]:
        """Frames from the key frame before ``wanted``; from the beginning if a seek lands behind it."""
        if self._seek_works and self._seek(wanted):
            frames = self._decode()
            first = next(frames, None)
            if first is not None and first[0] <= wanted:
                yield first
                yield from frames
                return
        self._seek_works = False
        self._rewind()
        yield from self._decode()

    def _seek(self, wanted: int) -> bool:
        if self._container is None:
            self._rewind()
        try:
            self._container.seek(wanted, stream=self._container.streams.video[0], backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _rewind(self) -> None:
        """Open the file afresh: seeking to the beginning fails in some containers, and after some errors."""
        if self._container is not None:
            self._container.close()
        self._container = av.open(os.fspath(self._path), metadata_errors="replace")
        # The worker process is the unit of parallelism: a decoder's own threads would only compete.
        self._container.streams.video[0].codec_context.thread_count = 1

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """(key, frame) until the end of the file, past damaged packets."""
        number = 0
        for packet in self._demux():
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                if packet.size:
                    self._bad_packets.add((packet.pos, packet.dts))
                continue
            for frame in decoded:
                key = frame.pts if self._table.by_timestamp else number
                number += 1
                if key is not None:
                    yield key, frame

    def _demux(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(video=0)
        except av.error.FFmpegError:
            return  # the container itself ends here; the header's count of frames tells what is lost

    def _last(self) -> tuple[int, Any] | None:
        """The last frame that decodes: what stands in for frames beyond a cut."""
        self._rewind()
        for item in self._decode():
            self._end = item
        return self._end

    def _rgb(self, frame: Any, images: list[np.ndarray]) -> np.ndarray:
        """(H, W, 3) uint8, upright, in the size of the first frame (streams may change size half-way)."""
        turns = round(frame.rotation / 90) % 4
        size = {}
        if images:
            height, width = images[0].shape[:2]
            size = {"width": height, "height": width} if turns % 2 else {"width": width, "height": height}
        image = frame.to_ndarray(format="rgb24", **size)
        return np.rot90(image, turns) if turns else image
