"""The physical half of `python -m store.bench`: reading and writing segments against flat files."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from store.contest import Entry, Goal, contest
from store.reader import Segment, SegmentPool
from store.segment import SegmentWriter
from store.spec import FieldSpec

CLIP_FRAMES = (8, 24)  # shortest and longest clip
SEGMENT_BYTES = 128 << 20  # as the bank's writer closes them
RAW_BLOCK_BYTES = 16 << 20  # of the plain sequential read
RAW_WRITE_BYTES = 2 << 20  # the flat file gets huge folios too
ATTRIBUTES = {"dataset": "bench", "modality": "rgb", "spec": {"encoder": "bench", "space": {}, "reading": {}}}


@dataclass
class Corpus:
    """The same ragged clips twice: as segments and as one flat file.

    Attributes:
        field: Tokens, dim and dtype.
        paths: Segments.
        flat: The flat file, [frames, tokens, dim] float16.
        segments: Segment of each clip, (n,).
        first: First frame of each clip in its segment, (n,).
        flat_first: First frame of each clip in the flat file, (n,).
        count: Frames of each clip, (n,).
    """

    field: FieldSpec
    paths: list[Path]
    flat: Path
    segments: np.ndarray
    first: np.ndarray
    flat_first: np.ndarray
    count: np.ndarray

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.field.tokens * self.field.dim * 2

    def map_flat(self) -> np.ndarray:
        """The flat file as (frames, tokens, dim), mapped, every page touched."""
        shape = (int(self.count.sum()), self.field.tokens, self.field.dim)
        values = np.asarray(np.memmap(self.flat, np.float16, "r", shape=shape))
        values.reshape(-1)[:: 2048 // 2].max()
        return values


def build(directory: Path, clips: int, tokens: int, dim: int) -> Corpus:
    """Write ``clips`` random clips into ``directory``, as segments and flat."""
    rng = np.random.default_rng(0)
    field = FieldSpec("tokens", tokens, dim)
    count = rng.integers(CLIP_FRAMES[0], CLIP_FRAMES[1] + 1, clips)
    noise = rng.standard_normal((8 * CLIP_FRAMES[1] + 1, tokens, dim), np.float32).astype(np.float16)
    per_segment = max(1, int(SEGMENT_BYTES / (count.mean() * tokens * dim * 2)))
    segments = np.arange(clips) // per_segment
    first, paths = np.zeros(clips, np.int64), []
    with open(directory / "flat", "wb", buffering=0) as flat:
        for number in range(int(segments[-1]) + 1):
            members = np.flatnonzero(segments == number)
            writer = SegmentWriter(directory / f"segment-{number}", field, ATTRIBUTES)
            starts = members % (len(noise) - CLIP_FRAMES[1])  # neighbours differ: a wrong clip is noticed
            values = [noise[start:][:frames] for start, frames in zip(starts, count[members], strict=True)]
            first[members] = [writer.append(clip) for clip in values]
            _write_blocks(flat.fileno(), np.concatenate(values).view(np.uint8).reshape(-1).data)
            paths.append(_close(writer, first[members], count[members]))
    return Corpus(field, paths, directory / "flat", segments, first, np.cumsum(count) - count, count)


def _close(writer: SegmentWriter, first: np.ndarray, count: np.ndarray) -> Path:
    times = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(count)).astype(np.int32)), pa.nulls(int(count.sum()), pa.float32())
    )
    names = pa.array([f"clip-{row}" for row in range(len(count))])
    columns = {"item_id": names, "first_frame": pa.array(first), "frames": pa.array(count)}
    table = pa.table({**columns, "view": pa.array(np.zeros(len(count), np.int32)), "times_seconds": times})
    closed = writer.close(table)
    closed.release()
    return closed.path


LATER = "FrameBank, later epochs"
TAKES = ("flat mmap, slices", "flat mmap, np.take")
PREADV = ("flat file, preadv",)


def epochs(corpus: Corpus, batch: int, rounds: int, limits: tuple[str, ...], factor: float) -> bool:
    """All clips once, in random batches: a new pool (opens, maps, verifies) and a warm one, against flat."""
    order = np.random.default_rng(2).permutation(len(corpus.count))
    rows = [order[start : start + batch] for start in range(0, len(order), batch)]
    out = _out(corpus, batch)
    warm = SegmentPool(corpus.paths, corpus.field)
    flat = flat_entries(corpus, rows, out)

    def epoch(read: Entry, _: int) -> None:
        for number in range(len(rows)):
            read(number)

    def gather(pool: SegmentPool) -> Entry:
        return lambda number: pool.gather(*clips_of(corpus, rows[number]), out)

    entries: dict[str, Entry] = {
        **{name: partial(epoch, read) for name, read in flat.items()},
        "FrameBank, first epoch (verifies)": lambda _: epoch(
            gather(SegmentPool(corpus.paths, corpus.field)), 0
        ),
        LATER: partial(epoch, gather(warm)),
    }
    nbytes = int(corpus.count.sum()) * corpus.frame_bytes
    title = f"Epoch of {len(rows)} random batches of {batch} clips of 8-24 frames x {_shape(corpus)}"
    where = f"{nbytes / 1e6:.0f} MB in {len(corpus.paths)} segments"
    return contest(f"{title}, {where}", entries, nbytes, rounds, Goal(LATER, limits, factor))


def rivals(corpus: Corpus, batch: int, rounds: int) -> bool:
    """One random batch a round, verified before, against copies out of the flat file and public readers."""
    rng = np.random.default_rng(1)
    rows = [rng.choice(len(corpus.count), batch) for _ in range(rounds)]
    out = _out(corpus, batch)
    pool = SegmentPool(corpus.paths, corpus.field)
    pool.gather(corpus.segments, corpus.first, corpus.count)  # verifies and maps everything
    entries: dict[str, Entry] = {
        **flat_entries(corpus, rows, out),
        LATER: lambda number: pool.gather(*clips_of(corpus, rows[number]), out),
        **_rivals(corpus, rows, out),
    }
    _require_equal(entries, corpus, rows, out)
    nbytes = int(np.mean([corpus.count[chosen].sum() for chosen in rows])) * corpus.frame_bytes
    title = f"One random batch of {batch} clips x {_shape(corpus)}, {nbytes / 1e6:.1f} MB, and rivals"
    return contest(title, entries, nbytes, rounds, Goal(LATER, TAKES, None))


def _out(corpus: Corpus, batch: int) -> np.ndarray:
    return np.empty((batch * CLIP_FRAMES[1], corpus.field.tokens, corpus.field.dim), np.float16)


def _shape(corpus: Corpus) -> str:
    return f"{corpus.field.tokens} x {corpus.field.dim}"


def clips_of(corpus: Corpus, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment, first frame and frames of the clips ``rows``."""
    return corpus.segments[rows], corpus.first[rows], corpus.count[rows]


def flat_entries(corpus: Corpus, rows: list[np.ndarray], out: np.ndarray) -> dict[str, Entry]:
    """The named limits: three ways to copy the batches ``rows[number]`` from the flat file to ``out``."""
    flat = corpus.map_flat()
    frames = _as_items(flat)
    file = os.open(corpus.flat, os.O_RDONLY)

    def slices(number: int) -> None:
        at = 0
        for first, count in flat_clips(corpus, rows[number]):
            out[at : at + count] = flat[first : first + count]
            at += count

    def take(number: int) -> None:
        first, count = corpus.flat_first[rows[number]], corpus.count[rows[number]]
        index = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
        np.take(frames, index, out=_as_items(out)[: len(index)], mode="clip")

    def preadv(number: int) -> None:
        at, target = 0, out.view(np.uint8).reshape(-1).data
        for first, count in flat_clips(corpus, rows[number]):
            size = count * corpus.frame_bytes
            os.preadv(file, [target[at : at + size]], first * corpus.frame_bytes)
            at += size

    return {TAKES[0]: slices, TAKES[1]: take, PREADV[0]: preadv}


def _as_items(values: np.ndarray) -> np.ndarray:
    """(frames, tokens, dim) as (frames,) of opaque bytes, the fastest thing that np.take can move."""
    rows = values.reshape(len(values), -1)
    return rows.view(f"V{rows.shape[1] * rows.itemsize}").reshape(-1)


def flat_clips(corpus: Corpus, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """First frame in the flat file and frames of the clips ``rows``."""
    return zip(corpus.flat_first[rows].tolist(), corpus.count[rows].tolist(), strict=True)


def _rivals(corpus: Corpus, rows: list[np.ndarray], out: np.ndarray) -> dict[str, Entry]:
    """The same clips of the same segments, through the two public Zarr readers."""
    import zarr

    zarrs = [zarr.open_array(path, mode="r") for path in corpus.paths]
    entries: dict[str, Entry] = {"zarr-python": lambda number: _one_by_one(zarrs, corpus, rows[number], out)}
    if find_spec("tensorstore"):
        entries["tensorstore"] = _tensorstore(corpus, rows, out)
    return entries


def _one_by_one(arrays: list, corpus: Corpus, rows: np.ndarray, out: np.ndarray) -> None:
    at = 0
    for segment, first, count in zip(*(column.tolist() for column in clips_of(corpus, rows)), strict=True):
        out[at : at + count] = arrays[segment][first : first + count]
        at += count


def _tensorstore(corpus: Corpus, rows: list[np.ndarray], out: np.ndarray) -> Entry:
    import tensorstore

    specs = ({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}} for path in corpus.paths)
    arrays = [tensorstore.open(spec, open=True, read=True).result() for spec in specs]

    def read(number: int) -> None:
        columns = zip(*(column.tolist() for column in clips_of(corpus, rows[number])), strict=True)
        reads = [arrays[segment][first : first + count].read() for segment, first, count in columns]
        at = 0
        for pending in reads:
            values = pending.result()
            out[at : at + len(values)] = values
            at += len(values)

    return read


def _require_equal(
    entries: dict[str, Entry], corpus: Corpus, rows: list[np.ndarray], out: np.ndarray
) -> None:
    """No entry may win by returning something else."""
    total = int(corpus.count[rows[0]].sum())
    expected = None
    for name, entry in entries.items():
        out[:] = 0
        entry(0)
        got = out[:total].tobytes()
        if expected is not None and got != expected:
            raise AssertionError(f"store.bench: {name} returned other values than the flat file")
        expected = got


def sequential(corpus: Corpus, rounds: int) -> bool:
    """All frames in order into a reused block, against plain preadv of the flat file."""
    pool = SegmentPool(corpus.paths, corpus.field)
    nbytes = int(corpus.count.sum()) * corpus.frame_bytes

    def drain(one: SegmentPool) -> None:
        for _ in one.blocks():
            pass

    entries: dict[str, Entry] = {
        "flat file, preadv of 16 MB": lambda _: _read_flat(corpus.flat, RAW_BLOCK_BYTES),
        "flat file, preadv of 1 MB": lambda _: _read_flat(corpus.flat, 1 << 20),
        "FrameBank, verified": lambda _: drain(pool),
        "FrameBank, first pass (verifies)": lambda _: drain(SegmentPool(corpus.paths, corpus.field)),
    }
    limits = ("flat file, preadv of 16 MB", "flat file, preadv of 1 MB")
    title = f"Sequential pass, {nbytes / 1e6:.0f} MB, {corpus.field.tokens} x {corpus.field.dim}"
    return contest(title, entries, nbytes, rounds, Goal("FrameBank, verified", limits, 0.8))


def _read_flat(path: Path, block_bytes: int) -> None:
    block = np.empty(block_bytes, np.uint8)
    file = os.open(path, os.O_RDONLY)
    at = 0
    while got := os.preadv(file, [block.data], at):
        at += got
    os.close(file)


def writing(directory: Path, dim: int, rounds: int) -> bool:
    """One segment of ragged clips, checksums, manifest and fsync, against the same bytes into one file."""
    rng = np.random.default_rng(3)
    field = FieldSpec("cls", 1, dim)
    noise = rng.standard_normal((SEGMENT_BYTES // (2 * dim), 1, dim), np.float32).astype(np.float16)
    count = rng.integers(CLIP_FRAMES[0], CLIP_FRAMES[1] + 1, 2 * len(noise) // sum(CLIP_FRAMES))
    count = count[np.cumsum(count) <= len(noise)]
    first = np.cumsum(count) - count
    clips = [noise[start : start + size] for start, size in zip(first, count, strict=True)]
    nbytes = int(count.sum()) * dim * 2
    whole = noise[: count.sum()].view(np.uint8).reshape(-1).data
    entries: dict[str, Entry] = {
        "raw file, blocks of 2 MB, fsync": _removing(directory / "raw", lambda path: _write_raw(path, whole)),
        "FrameBank, checksums, fsync": _removing(
            directory / "written", lambda path: _write_segment(path, field, clips, first, count)
        ),
    }
    goal = Goal("FrameBank, checksums, fsync", ("raw file, blocks of 2 MB, fsync",), 0.3)
    return contest(f"Write {nbytes / 1e6:.0f} MB, {len(clips)} clips", entries, nbytes, rounds, goal)


def _removing(path: Path, write: Callable[[Path], None]) -> Entry:
    """Write under a new name each time and remove the last round's, so that both sides pay that equally."""

    def entry(number: int) -> None:
        write(path)
        shutil.rmtree(path)

    return entry


def _write_raw(path: Path, content: memoryview) -> None:
    path.mkdir()
    file = os.open(path / "data", os.O_WRONLY | os.O_CREAT)
    _write_blocks(file, content)
    os.fsync(file)
    os.close(file)


def _write_blocks(file: int, content: memoryview) -> None:
    for start in range(0, len(content), RAW_WRITE_BYTES):
        os.write(file, content[start : start + RAW_WRITE_BYTES])


def _write_segment(
    path: Path, field: FieldSpec, clips: list[np.ndarray], first: np.ndarray, count: np.ndarray
) -> None:
    writer = SegmentWriter(path, field, ATTRIBUTES)
    for clip in clips:
        writer.append(clip)
    _close(writer, first, count)
    Segment.open(path)
