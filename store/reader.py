"""Batches of ragged clips out of many segments: one copy a clip, no byte before its checksum was verified.

Every inner chunk is verified when a pool first touches it, so the first epoch pays for the checksums and
later ones run at the speed of memory.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from operator import getitem, setitem
from pathlib import Path

import numpy as np

from store.layout import SHARD, Layout, SegmentError
from store.mapped import ReadRangeError, Segment
from store.pieces import Geometry, Pieces, advise_willneed, cut, merge_ranges
from store.scan import BLOCK_BYTES, scan
from store.spec import FieldSpec

__all__ = ["ReadRangeError", "Segment", "SegmentPool"]

MAX_OPEN_SEGMENTS = 16384  # maps, not files; Linux allows a process 65530 maps
LARGE_SHARE = 0.5  # of the machine's memory: beyond it a collection will not stay in the page cache


class SegmentPool:
    """Random and sequential reads over a fixed list of segments of one field.

    Safe to use from several threads. Maps are opened on first use and kept, least recently used dropped.

    Args:
        paths: Segment folders; the methods speak of them by position.
        field: What all of them must hold.
        max_open: Maps kept at a time.
    """

    def __init__(self, paths: Sequence[Path], field: FieldSpec, max_open: int = MAX_OPEN_SEGMENTS):
        self.paths = [Path(path) for path in paths]
        self.field = field
        self.max_open = max_open
        self._frame = Layout(1, field.tokens, field.dim, field.dtype, 1)
        self._opened: OrderedDict[int, Segment] = OrderedDict()
        self._identity: dict[int, tuple[int, ...]] = {}
        self._geometry = Geometry.unknown(len(self.paths))
        self._verified = np.zeros(1024, bool)  # a flag a chunk, segments in the order of their first opening
        self._flags = 0
        self._lock = threading.RLock()
        self._advisor: ThreadPoolExecutor | None = None
        self._large: bool | None = None

    def segment(self, index: int) -> Segment:
        """The open segment at position ``index``.

        Raises:
            SegmentError: If it is damaged, or holds another shape or dtype than the field's.
        """
        with self._lock:
            segment = self._opened.get(index) or self._admit(index)
            self._opened.move_to_end(index)
            while len(self._opened) > self.max_open:
                self._opened.popitem(last=False)
            return segment

    def _admit(self, index: int) -> Segment:
        segment = Segment(self.paths[index])
        layout, field = segment.layout, self.field
        if (layout.tokens, layout.dim, layout.dtype) != (field.tokens, field.dim, field.dtype):
            holds = f"holds {layout.tokens} x {layout.dim} {layout.dtype}"
            catalog = f"the catalog says {field.tokens} x {field.dim} {field.dtype}"
            raise SegmentError(f"{segment.path}: {holds}, {catalog}; `python -m store reindex` mends it")
        flag = int(self._geometry.flag[index])
        if self._identity.get(index) != segment.identity:
            flag = self._new_flags(layout.chunks)
            self._identity[index] = segment.identity
        self._geometry.set(index, layout, flag, segment.address)
        self._opened[index] = segment
        return segment

    def _new_flags(self, chunks: int) -> int:
        flag, self._flags = self._flags, self._flags + chunks
        if self._flags > len(self._verified):
            self._verified = np.concatenate([self._verified, np.zeros(self._flags, bool)])
        return flag

    def gather(
        self, segments: np.ndarray, first: np.ndarray, count: np.ndarray, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copy B ragged clips side by side.

        Args:
            segments: Position of each clip's segment, integer (B,).
            first: First frame of each clip in its segment, integer (B,).
            count: Frames of each clip, integer (B,).
            out: Where to put them: C-contiguous (>= sum of count, tokens, dim) of the stored dtype. Reusing
                one saves the kernel's zeroing of fresh memory, which costs as much as the copy.

        Returns:
            values (sum of count, tokens, dim), in ``out`` if given: float16, or uint16 bits of bfloat16; and
            offsets int64 (B + 1): clip b is ``values[offsets[b]:offsets[b + 1]]``.

        Raises:
            SegmentError: For a missing or damaged segment, naming it.
            CorruptError: If a touched chunk differs from its checksum, naming its clips.
            ReadRangeError: For frames that are not there, or an unfit ``out``.
        """
        segments, first, count = (np.asarray(column, np.int64) for column in (segments, first, count))
        opened = self._open_all(segments, first, count)
        offsets = np.zeros(len(count) + 1, np.int64)
        np.cumsum(count, out=offsets[1:])
        values = self._target(out, int(offsets[-1]))
        pieces = cut(segments, first, count, self._geometry, self._frame.frame_bytes)
        self._verify(pieces, opened)
        _copy(values, pieces, opened)
        return values, offsets

    def _open_all(self, segments: np.ndarray, first: np.ndarray, count: np.ndarray) -> dict[int, Segment]:
        if len(segments) and not 0 <= segments.min() <= segments.max() < len(self.paths):
            raise ReadRangeError(f"gather: segment {segments.max()} asked for; there are {len(self.paths)}")
        opened = {index: self.segment(index) for index in np.unique(segments).tolist()}
        wrong = np.flatnonzero((first < 0) | (count < 0) | (first + count > self._geometry.frames[segments]))
        if len(wrong):
            row = wrong[0]
            segment = opened[int(segments[row])]
            asked = f"frames {first[row]} + {count[row]}"
            raise ReadRangeError(f"{segment.path}: {asked} asked for; it has {segment.frames}")
        return opened

    def _target(self, out: np.ndarray | None, total: int) -> np.ndarray:
        shape, dtype = (total, self.field.tokens, self.field.dim), self._frame.numpy_dtype
        if out is None:
            return np.empty(shape, dtype)
        fits = out.ndim == 3 and len(out) >= total and out.shape[1:] == shape[1:]
        if not fits or out.dtype != dtype or not out.flags.c_contiguous:
            raise ReadRangeError(f"gather: out is {out.dtype} {out.shape}; needs contiguous {dtype} {shape}")
        return out[:total]

    def _verify(self, pieces: Pieces, opened: Mapping[int, Segment]) -> None:
        flags = self._geometry.flag[pieces.segment] + pieces.chunk
        unverified = ~self._verified[flags]
        if not unverified.any():
            return
        flags, once = np.unique(flags[unverified], return_index=True)
        segment, chunk = pieces.segment[unverified][once], pieces.chunk[unverified][once]
        self._advise(segment, chunk)
        for index in np.unique(segment).tolist():
            opened[index].verify_chunks(chunk[segment == index])
        self._verified[flags] = True

    def _advise(self, segment: np.ndarray, chunk: np.ndarray) -> None:
        """Have whole inner chunks read ahead."""
        stride = self._geometry.stride[segment]
        start = self._geometry.address[segment] + chunk * stride
        advise_willneed(*merge_ranges(start, start + stride))

    def prefetch(self, segments: np.ndarray, first: np.ndarray, count: np.ndarray) -> "Future[None] | None":
        """Have the kernel read the next batch while this one is used; call it one batch ahead of ``gather``.

        Does nothing for what is in memory already: chunks verified before, in a collection that fits there.
        Runs in a thread of its own; damage that it meets is in the Future, and the ``gather`` raises it too.
        """
        with self._lock:
            self._advisor = self._advisor or ThreadPoolExecutor(1, "framebank-prefetch")
            return self._advisor.submit(
                self._prefetch, *(np.asarray(column, np.int64) for column in (segments, first, count))
            )

    def _prefetch(self, segments: np.ndarray, first: np.ndarray, count: np.ndarray) -> None:
        opened = self._open_all(segments, first, count)
        pieces = cut(segments, first, count, self._geometry, self._frame.frame_bytes)
        if not self.exceeds_memory():
            pieces = pieces.where(~self._verified[self._geometry.flag[pieces.segment] + pieces.chunk])
        if len(pieces.chunk):
            self._advise(pieces.segment, pieces.chunk)
        del opened  # keeps the maps alive until here

    def exceeds_memory(self) -> bool:
        """Whether the segments are too large to stay in the page cache."""
        if self._large is None:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            sizes = (path / SHARD for path in self.paths)
            self._large = sum(path.stat().st_size for path in sizes if path.exists()) > LARGE_SHARE * memory
        return self._large

    def blocks(
        self, order: Sequence[int] | None = None, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """All frames of all segments, in order, by large sequential reads; verified on first touch.

        Args:
            order: Positions of the segments to read; all by default.
            block_bytes: About how much to read at a time.

        Yields:
            (segment's position, number of the block's first frame, (frames, tokens, dim) block). The block is
            overwritten by the next one.
        """
        for index in range(len(self.paths)) if order is None else order:
            segment = self.segment(index)
            flag = int(self._geometry.flag[index])
            verified = self._verified[flag : flag + segment.layout.chunks]
            for first, block in scan(segment, verified, block_bytes):
                yield index, first, block

    def close(self) -> None:
        """Drop all maps and the prefetching thread; the pool can be used again."""
        with self._lock:
            self._opened.clear()
            advisor, self._advisor = self._advisor, None
        if advisor is not None:  # outside the lock, which its thread may be waiting for
            advisor.shutdown(wait=True, cancel_futures=True)


def _copy(values: np.ndarray, pieces: Pieces, opened: Mapping[int, Segment]) -> None:
    """One memcpy a piece, through memoryviews: the cheapest bounds-checked copy that Python has.

    ``target[start:stop] = view[source:end]`` for all pieces, as a loop that runs in C: a gap between two
    copies lets the memory idle, so half a microsecond of interpreter per piece costs a tenth of the speed.
    """
    target = values.view(np.uint8).reshape(-1).data
    views = {index: segment.view for index, segment in opened.items()}
    sources = map(slice, pieces.source.tolist(), pieces.source_end.tolist())
    contents = map(getitem, map(views.__getitem__, pieces.segment.tolist()), sources)
    targets = map(slice, pieces.target.tolist(), pieces.target_end.tolist())
    put: Callable[..., None] = setitem
    deque(map(put, repeat(target), targets, contents), maxlen=0)
