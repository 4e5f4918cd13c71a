"""Sequential reading: a whole segment in order, by large scattering reads instead of page faults.

``preadv`` puts the frames of consecutive chunks side by side into one buffer and their checksums into
another, so a block is contiguous [frames, tokens, dim] without a second copy.
"""

import os
from collections.abc import Iterator

import numpy as np

from store.layout import CRC_BYTES, CorruptError, SegmentError, crc32c
from store.mapped import HINT, Segment, open_shard

BLOCK_BYTES = 640 << 10  # stays in a core's L2 cache while it is verified and used
READ_AHEAD_BYTES = 32 << 20
MAX_CHUNKS = 512  # two buffers each; IOV_MAX is 1024


def scan(
    segment: Segment, verified: np.ndarray, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, np.ndarray]]:
    """All frames of ``segment`` in order.

    Args:
        segment: An open segment.
        verified: bool (chunks,): chunks that need no checksum any more; those verified here are set.
        block_bytes: About how much to read at a time.

    Yields:
        Number of the block's first frame and the block (frames, tokens, dim), valid until the next one.

    Raises:
        CorruptError: When a chunk differs from its checksum; it was not yielded.
    """
    layout = segment.layout
    fd, identity = open_shard(segment.path, layout)
    try:
        if identity != segment.identity:
            raise SegmentError(f"{segment.path}: was replaced while in use; segments are immutable")
        step = min(max(1, block_bytes // layout.stride), MAX_CHUNKS, layout.chunks)
        block = np.empty((step * layout.inner_frames, layout.tokens, layout.dim), layout.numpy_dtype)
        for first, chunks, crcs in _blocks(fd, segment, block, step):
            _verify(segment, first, block, crcs[:chunks], verified)
            start = first * layout.inner_frames
            yield start, block[: min(chunks * layout.inner_frames, layout.frames - start)]
    finally:
        os.close(fd)


def _blocks(fd: int, segment: Segment, block: np.ndarray, step: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Fill ``block`` again and again: (first chunk, number of chunks, their stored checksums)."""
    layout = segment.layout
    content = block.view(np.uint8).reshape(-1).data
    crcs = np.empty(step, "<u4")
    checks = crcs.view(np.uint8).data
    buffers = []
    for chunk in range(step):
        buffers.append(content[chunk * layout.inner_bytes : (chunk + 1) * layout.inner_bytes])
        buffers.append(checks[chunk * CRC_BYTES : (chunk + 1) * CRC_BYTES])
    advised = 0
    for first in range(0, layout.chunks, step):
        chunks = min(step, layout.chunks - first)
        at = first * layout.stride
        if at >= advised:
            os.posix_fadvise(fd, at, 2 * READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            advised = at + READ_AHEAD_BYTES
        _read_fully(fd, buffers[: 2 * chunks], at, chunks * layout.stride, segment)
        yield first, chunks, crcs


def _read_fully(fd: int, buffers: list[memoryview], at: int, expected: int, segment: Segment) -> None:
    """One ``preadv``, continued where a signal or the kernel's 2 GB limit cut it short."""
    done = os.preadv(fd, buffers, at)
    while done < expected:
        rest, skip = [], done
        for buffer in buffers:
            rest += [buffer[skip:]] if skip < len(buffer) else []
            skip = max(0, skip - len(buffer))
        got = os.preadv(fd, rest, at + done)
        if not got:
            raise SegmentError(f"{segment.path}: shortened while it was read; {HINT}")
        done += got


def _verify(segment: Segment, first: int, block: np.ndarray, crcs: np.ndarray, verified: np.ndarray) -> None:
    done = verified[first : first + len(crcs)]
    if done.all():
        return
    inner = segment.layout.inner_frames
    for chunk in np.flatnonzero(~done).tolist():
        if crc32c(block[chunk * inner : (chunk + 1) * inner]) != crcs[chunk]:
            raise CorruptError(f"{segment.path}: {segment.describe_damage(first + chunk)}; {HINT}")
    done[:] = True
