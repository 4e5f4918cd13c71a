"""The catalog half of `python -m store.bench`: a million clips inserted, planned and opened."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from store.spec import FeatureSpec, FieldSpec

if TYPE_CHECKING:
    from store.bank import Bank

DATASET, MODALITY = "million", "depth"
SPEC = FeatureSpec("bench", {"revision": 1}, {"frames": 1, "precision": "fp32"})
FIELD = FieldSpec("cls", 1, 4)  # small vectors: the catalog is measured, not the disk
SEGMENTS = 10
EXTRACTED_SHARE = 0.9
SUBJECTS = 100
BATCH = 256
GOAL_SECONDS = 10.0


def catalog(bank_path: Path, clips: int) -> bool:
    """Time the operations that touch every clip; True if each takes seconds, not minutes.

    Args:
        bank_path: Where to make a bank.
        clips: How many clips it gets.
    """
    from store.bank import Bank

    print(f"\nCatalog of {clips:,} clips\n{'':52}{'seconds':>8}")
    bank = Bank.open(bank_path, create=True)
    taken: list[float] = []
    names = np.array([f"S{number % SUBJECTS:03d}/clip {number:08d}" for number in range(clips)])
    tables = _tables(names)
    timed = _Stopwatch(taken)
    with timed("insert: clips, media and splits, one call"):
        bank.register(DATASET, root="media", **tables)
    with timed("insert again: nothing changed"):
        bank.register(DATASET, root="media", **tables)
    with timed(f"plan: all {clips:,} are missing"):
        _expect(_plan(bank), clips)
    done = int(EXTRACTED_SHARE * clips)
    _write_features(bank, names[:done])
    with timed(f"commit {done:,} rows of {SEGMENTS} finished segments"):
        bank.plan(DATASET, MODALITY, SPEC, [FIELD.name], where="false")
    with timed(f"plan: the last {clips - done:,} are missing"):
        _expect(_plan(bank), clips - done)
    _time_views(bank, timed, done)
    print(f"  catalog.duckdb: {(bank_path / 'catalog.duckdb').stat().st_size / 1e6:.0f} MB")
    slowest = max(taken)
    print(f"  the slowest took {slowest:.1f} s (goal {GOAL_SECONDS:.0f} s): {_verdict(slowest)}")
    return slowest <= GOAL_SECONDS


def _verdict(seconds: float) -> str:
    return "reached" if seconds <= GOAL_SECONDS else "MISSED"


class _Stopwatch:
    """Times a block and prints its line."""

    def __init__(self, taken: list[float]):
        self.taken = taken

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.taken.append(time.perf_counter() - started)
        print(f"  {what:<50}{self.taken[-1]:>8.2f}", flush=True)


def _plan(bank: "Bank") -> int:
    return bank.plan(DATASET, MODALITY, SPEC, [FIELD.name]).num_rows


def _expect(got: int, expected: int) -> None:
    if got != expected:
        raise AssertionError(f"store.bench: {got} rows where {expected} were expected")


def _time_views(bank: "Bank", timed: Callable, done: int) -> None:
    """Open a view of a ninth of the features (100,000 of 900,000) and read a batch of it."""
    condition = f"TRY_CAST(subject AS INTEGER) % 9 = 0 AND label < {SUBJECTS}"
    with timed("view: by subject, 1 in 9"):
        view = bank.select(DATASET, MODALITY, where=condition)
    print(f"    ({len(view):,} clips of {done:,})")
    rng = np.random.default_rng(0)
    with timed(f"  its first batch of {BATCH}"):
        view.read(rng.choice(len(view), BATCH))
    view.close()
    with timed("view: a protocol's training part"):
        view = bank.select(DATASET, MODALITY, protocol="cross-subject", part="train")
    print(f"    ({len(view):,} clips of {done:,})")
    view.close()


def _tables(names: np.ndarray) -> dict[str, pa.Table]:
    number = np.arange(len(names))
    clip = pa.array(names)
    subject = number % SUBJECTS
    part = np.where(subject < SUBJECTS // 10, "test", "train")
    clips = {
        "clip_id": clip,
        "label": pa.array((number % 60).astype(np.int32)),
        "label_name": pa.array(np.char.add("action ", (number % 60).astype(str))),
        "subject": pa.array(subject.astype(str)),
        "camera": pa.array((number % 3).astype(str)),
    }
    media = {
        "clip_id": clip,
        "modality": pa.array(np.full(len(names), MODALITY)),
        "path": pa.array(np.char.add(names, ".png")),
        "reader": pa.array(np.full(len(names), "depth-png")),
        "bytes": pa.array(number + 1000),
        "mtime": pa.array(number * 1.0),
        "sample_hash": pa.array(np.char.mod("%08x", number)),
    }
    splits = {
        "protocol": pa.array(np.full(len(names), "cross-subject")),
        "clip_id": clip,
        "part": pa.array(part),
    }
    return {"clips": pa.table(clips), "media": pa.table(media), "splits": pa.table(splits)}


def _write_features(bank: "Bank", names: np.ndarray) -> None:
    """Finished segments that nobody committed yet, as a killed extraction leaves them."""
    from store.places import field_directory
    from store.segment import SegmentWriter, new_segment_id

    folder = field_directory(bank.path, DATASET, MODALITY, SPEC.name, FIELD.name)
    described = {"dataset": DATASET, "modality": MODALITY, "spec": SPEC.as_json()}
    rng = np.random.default_rng(0)
    for members in np.array_split(names, SEGMENTS):
        writer = SegmentWriter(folder / new_segment_id(), FIELD, described)
        writer.append(rng.standard_normal((len(members), FIELD.tokens, FIELD.dim), np.float32))
        writer.close(_manifest(members)).release()


def _manifest(members: np.ndarray) -> pa.Table:
    rows = len(members)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32))
    return pa.table(
        {
            "item_id": pa.array(members),
            "view": pa.array(np.zeros(rows, np.int32)),
            "first_frame": pa.array(np.arange(rows)),
            "frames": pa.array(np.ones(rows, np.int32)),
            "times_seconds": pa.ListArray.from_arrays(offsets, pa.array(np.zeros(rows, np.float32))),
        }
    )
