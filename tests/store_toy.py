"""A small real bank for the tests of the store: known clips, known features, known splits."""

import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from conftest import ROOT

from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

CLS, TOKENS = FieldSpec("cls", 1, 8), FieldSpec("tokens", 3, 8)
DATASET, MODALITY = "toy", "depth"
ACTIONS = ("wave", "kick", "clap")


def spec(frames: int = 12, revision: int = 1, **reading) -> FeatureSpec:
    return FeatureSpec("joints", {"name": "joints", "revision": revision}, {"frames": frames, **reading})


def clip_ids(count: int) -> list[str]:
    return [f"clip {number:03d}" for number in range(count)]


def clips(count: int) -> pa.Table:
    """Clip i: class i % 3, subject i % 4, camera i % 2."""
    numbers = range(count)
    return pa.table(
        {
            "clip_id": clip_ids(count),
            "label": [number % 3 for number in numbers],
            "label_name": [ACTIONS[number % 3] for number in numbers],
            "subject": [number % 4 for number in numbers],
            "camera": [number % 2 for number in numbers],
        }
    )


def media(count: int, version: int = 1, modality: str = MODALITY) -> pa.Table:
    ids = clip_ids(count)
    hashes = [f"{clip}/{version}" for clip in ids]
    paths = [f"{clip}.avi" for clip in ids]
    return pa.table({"clip_id": ids, "modality": [modality] * count, "path": paths, "sample_hash": hashes})


def splits(count: int) -> pa.Table:
    """Subjects 0 and 1 train, 2 and 3 test."""
    parts = ["train" if number % 4 < 2 else "test" for number in range(count)]
    return pa.table({"protocol": ["cross-subject"] * count, "clip_id": clip_ids(count), "part": parts})


def label_texts() -> pa.Table:
    texts = [f"a person who does a {name}" for name in ACTIONS]
    columns = {"label": range(3), "label_name": ACTIONS, "prompt_set": ["plain"] * 3, "text": texts}
    return pa.table({name: list(values) for name, values in columns.items()})


def registered(path: Path, count: int = 12, **options) -> Bank:
    """A bank with ``count`` clips and no features."""
    bank = Bank.open(path, create=True, **options)
    bank.register(
        DATASET, clips=clips(count), media=media(count), splits=splits(count), label_texts=label_texts()
    )
    return bank


def values(clip: str, version: int = 1) -> np.ndarray:
    """The features of a clip: (T, 3, 8) float32, T from 1 to 5, exact in float16; another per version."""
    rng = np.random.default_rng([*clip.encode(), version])
    return rng.integers(-500, 500, (rng.integers(1, 6), 3, 8)).astype(np.float32) / 8


def add(writer, clip: str, version: int = 1, view: int = 0) -> bool:
    """Write the clip's features to whichever of ``cls`` and ``tokens`` the writer takes."""
    full = values(clip, version)
    both = {"cls": full[:, :1], "tokens": full}
    mine = {name: array for name, array in both.items() if name in writer.fields}
    return writer.add(clip, view, mine, np.arange(len(full)) / 4)


def filled(path: Path, count: int = 12, **options) -> Bank:
    """A bank with ``count`` clips and all their features."""
    bank = registered(path, count)
    with bank.writer(DATASET, MODALITY, spec(), [CLS, TOKENS], **options) as writer:
        for clip in clip_ids(count):
            add(writer, clip)
    return bank


def stored(bank: Bank, field: str = "tokens", **options) -> dict[str, np.ndarray]:
    """Everything that a selection reads: clip -> (T, N, D)."""
    selection = bank.select(DATASET, MODALITY, field=field, **options)
    array, offsets = selection.read()
    selection.close()
    pieces = (array[a:b] for a, b in pairwise(offsets))
    return dict(zip(selection.items.tolist(), pieces, strict=True))


def assert_complete(bank: Bank, count: int, version: int = 1) -> None:
    """All clips are there once, in both fields, with their own values, and nothing is missing."""
    for field, tokens in (("cls", 1), ("tokens", 3)):
        found = stored(bank, field)
        assert list(found) == clip_ids(count)
        for clip, array in found.items():
            np.testing.assert_array_equal(array, values(clip, version)[:, :tokens])
    rows = bank.sql("SELECT count(*) AS n FROM features")["n"][0].as_py()
    assert rows == 2 * count
    assert bank.plan(DATASET, MODALITY, spec(), ["cls", "tokens"]).num_rows == 0


def script(code: str, *arguments: object, preexec_fn=None) -> subprocess.Popen:
    """Run Python code in another process, in the tests' folder, with stdin and stdout as pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT / "tests",
        env={
            "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1], read_only=len(sys.argv) > 2)
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""


class Holder:
    """Another process that has the catalog open until ``release``, as a notebook would."""

    def __init__(self, bank: Bank, read_only: bool = False):
        self.process = script(HOLD, bank.catalog.path, *(["r"] if read_only else []))
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        self.process.communicate("\n", timeout=30)

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.release()
