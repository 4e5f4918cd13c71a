"""Where the bytes of ragged clips lie: batches of (segment, first frame, count) -> byte ranges, vectorised.

A clip of consecutive frames is one byte range per inner chunk that it touches (checksums lie between chunks).
"""

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np

from store.layout import Layout

MERGE_GAP_BYTES = 64 << 10  # ranges closer than this are read ahead as one
_LIBC = ctypes.CDLL(None)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass
class Geometry:
    """One row per segment of a pool, int64 (S,); rows of segments never opened are zero.

    Attributes:
        frames: Rows of the segment's array.
        inner: Frames of its inner chunks.
        stride: Bytes from chunk to chunk.
        flag: Position of its first chunk in the pool's list of verified chunks.
        address: Where its map starts in memory.
    """

    frames: np.ndarray
    inner: np.ndarray
    stride: np.ndarray
    flag: np.ndarray
    address: np.ndarray

    @classmethod
    def unknown(cls, segments: int) -> "Geometry":
        """A table of ``segments`` rows to be filled."""
        return cls(*(np.zeros(segments, np.int64) for _ in range(5)))

    def set(self, index: int, layout: Layout, flag: int, address: int) -> None:
        """Fill row ``index``."""
        row = (layout.frames, layout.inner_frames, layout.stride, flag, address)
        for column, value in zip(vars(self).values(), row, strict=True):
            column[index] = value


@dataclass(frozen=True)
class Pieces:
    """Byte ranges to copy, int64 (P,) each: ``out[target:target_end] = segment[source:source_end]``."""

    segment: np.ndarray
    chunk: np.ndarray
    target: np.ndarray
    target_end: np.ndarray
    source: np.ndarray
    source_end: np.ndarray

    def where(self, mask: np.ndarray) -> "Pieces":
        """The pieces for which ``mask`` (P,) is true."""
        return Pieces(*(column[mask] for column in vars(self).values()))


def cut(
    segments: np.ndarray, first: np.ndarray, count: np.ndarray, geometry: Geometry, frame_bytes: int
) -> Pieces:
    """Clips -> byte ranges within inner chunks, in the clips' order, packed one after another.

    Args:
        segments: Row of ``geometry`` of each clip, int64 (B,).
        first: First frame of each clip in its segment, int64 (B,).
        count: Frames of each clip, int64 (B,).
        geometry: Of the segments named, which must have been opened.
        frame_bytes: Bytes of one frame, the same in all of them.
    """
    inner = geometry.inner[segments]
    first_chunk = first // inner
    per_clip = (first + count - 1) // inner - first_chunk + 1
    clip = np.repeat(np.arange(len(first)), per_clip)
    chunk = np.arange(len(clip)) - np.repeat(np.cumsum(per_clip) - per_clip - first_chunk, per_clip)
    segment, inner = segments[clip], inner[clip]
    start = np.maximum(first[clip], chunk * inner)
    length = np.minimum((first + count)[clip], (chunk + 1) * inner) - start
    target = (np.cumsum(length) - length) * frame_bytes
    source = chunk * geometry.stride[segment] + (start - chunk * inner) * frame_bytes
    length *= frame_bytes
    return Pieces(segment, chunk, target, target + length, source, source + length)


def merge_ranges(
    start: np.ndarray, end: np.ndarray, gap: int = MERGE_GAP_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, disjoint ranges that cover all [start, end); those closer than ``gap`` become one."""
    order = np.argsort(start)
    start, reach = start[order], np.maximum.accumulate(end[order])
    new = np.ones(len(start), bool)
    new[1:] = start[1:] > reach[:-1] + gap
    last = np.append(np.flatnonzero(new)[1:], len(start)) - 1
    return start[new], reach[last]


def advise_willneed(start: np.ndarray, end: np.ndarray) -> None:
    """Ask the kernel to read the mapped addresses [start, end) soon; returns before it has.

    Cold random clips come 50-75x faster so than by page faults. It is advice: failure has no consequence but
    slower reads. The call releases the interpreter lock.
    """
    start = start // mmap.PAGESIZE * mmap.PAGESIZE
    for address, stop in zip(start.tolist(), end.tolist(), strict=True):
        _LIBC.madvise(address, stop - address, mmap.MADV_WILLNEED)
