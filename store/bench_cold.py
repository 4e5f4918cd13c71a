"""The cold part of `python -m store.bench`: a random batch whose bytes are not in the page cache."""

import gc
import os
import time
from pathlib import Path

import numpy as np

from store.bench_segments import CLIP_FRAMES, Corpus, clips_of, flat_clips
from store.contest import Entry, Goal, contest
from store.layout import SHARD
from store.reader import SegmentPool

COMPUTE_SECONDS = 0.05  # what a training step leaves for the next batch to be read ahead


FAULTS = "flat mmap, page faults"
PREFETCHED = "FrameBank, prefetched one batch ahead"


def cold_batches(corpus: Corpus, batch: int, rounds: int) -> bool:
    """Each time all files are dropped from the page cache, then one batch of random clips is read."""
    rng = np.random.default_rng(4)
    rows = [rng.choice(len(corpus.count), batch) for _ in range(rounds)]
    out = np.empty((batch * CLIP_FRAMES[1], corpus.field.tokens, corpus.field.dim), np.float16)
    pools: list[SegmentPool] = []

    def prepare(name: str, number: int) -> None:
        pools.clear()  # its maps would keep their pages in the cache
        gc.collect()
        for path in [corpus.flat, *(path / SHARD for path in corpus.paths)]:
            _drop(path)
        pools.append(SegmentPool(corpus.paths, corpus.field))
        if name == PREFETCHED:
            pools[0].prefetch(*clips_of(corpus, rows[number]))
            time.sleep(COMPUTE_SECONDS)

    entries: dict[str, Entry] = {
        FAULTS: lambda number: _fault(corpus, rows[number], out),
        "flat file, preadv": lambda number: _pread(corpus, rows[number], out),
        "FrameBank, as it comes": lambda number: pools[0].gather(*clips_of(corpus, rows[number]), out),
        PREFETCHED: lambda number: pools[0].gather(*clips_of(corpus, rows[number]), out),
    }
    nbytes = int(np.mean([corpus.count[chosen].sum() for chosen in rows])) * corpus.frame_bytes
    title = f"Cold random batch (page cache dropped): {batch} clips, {nbytes / 1e6:.1f} MB, all verified"
    return contest(title, entries, nbytes, rounds, Goal(PREFETCHED, (FAULTS,), 1.0), before=prepare)


def _fault(corpus: Corpus, rows: np.ndarray, out: np.ndarray) -> None:
    shape = (int(corpus.count.sum()), corpus.field.tokens, corpus.field.dim)
    flat, at = np.asarray(np.memmap(corpus.flat, np.float16, "r", shape=shape)), 0
    for first, count in flat_clips(corpus, rows):
        out[at : at + count] = flat[first : first + count]
        at += count


def _pread(corpus: Corpus, rows: np.ndarray, out: np.ndarray) -> None:
    file, at = os.open(corpus.flat, os.O_RDONLY), 0
    target = out.view(np.uint8).reshape(-1).data
    for first, count in flat_clips(corpus, rows):
        size = count * corpus.frame_bytes
        os.preadv(file, [target[at : at + size]], first * corpus.frame_bytes)
        at += size
    os.close(file)


def _drop(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)  # dirty pages cannot be dropped
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
