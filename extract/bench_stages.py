"""What `python -m extract.bench` measures: the stages alone, and the whole pipeline into a real bank."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from extract.bench_loop import LOOPS
from extract.encode import BatchEncoder
from extract.pipeline import extract_clips
from extract.task import Limits, Task
from extract.wanted import plan
from extract.worker import DecodeJob
from extract.workers import Decoded, DecodeFailure, DecodePool
from store.bank import Bank
from store.errors import FrameBankError

_KEPT_CLIPS = 64  # prepared clips in memory, which encode-only goes through again and again
_SAME = 0.99  # cosine between the loop's features and the bank's: both do the same work


class BenchError(FrameBankError, RuntimeError):
    """A measurement that would mean nothing."""


@dataclass
class Stage:
    """One measurement.

    Attributes:
        seconds: Wall time.
        core_seconds: Processor time of its own work, over all processes and threads.
        parts: Core-seconds by name, as far as the stage knows them.
    """

    seconds: float
    core_seconds: float
    parts: dict[str, float] = field(default_factory=dict)


def jobs_of(task: Task, bank: Bank) -> list[DecodeJob]:
    """What the decode processes get for the clips that the bank lacks, thumbnails left out."""
    prepare, jobs = task.encoder.prepare(), []
    for index, one in enumerate(plan(bank, task)):
        path, reader = str(task.root / one.media["path"]), one.media["reader"]
        jobs.append(DecodeJob(index, path, reader, task.modality, task.sampling, prepare))
    return jobs


def decode_only(jobs: list[DecodeJob], pool: DecodePool) -> tuple[Stage, list[np.ndarray]]:
    """Decode and prepare clips in the decode processes, and drop them; keeps some, for encoding."""
    kept: list[np.ndarray] = []
    read = prepared = core = 0.0
    started = time.perf_counter()
    for event in pool.decode(jobs):
        if isinstance(event, DecodeFailure):
            raise BenchError(f"extract.bench: {event.job.path} fails to {event.stage}: {event.error}")
        if isinstance(event, Decoded):
            if len(kept) < _KEPT_CLIPS:
                kept.append(event.values.copy())
            core += event.report.cpu_seconds
            read += event.report.read_seconds
            prepared += event.report.prepare_seconds
            event.release()
    # A worker's clocks are wall clocks; on a busy machine they count the waiting too.
    scale = core / (read + prepared)
    parts = {"decode": read * scale, "resize, hand over": prepared * scale}
    return Stage(time.perf_counter() - started, core, parts), kept


def encode_only(task: Task, prepared: list[np.ndarray], clips: int) -> Stage:
    """Encode clips that are in memory already."""
    with BatchEncoder(task.encoder, str(task.spec.precision), task.device, task.fields) as encoder:
        for clip in (prepared[0], prepared[-1]):  # weights, and the layout of threads
            _drain(encoder.add(None, clip))
        _drain(encoder.flush())
        core, started = time.process_time(), time.perf_counter()
        for number in range(clips):
            _drain(encoder.add(number, prepared[number % len(prepared)]))
        _drain(encoder.flush())
        return Stage(time.perf_counter() - started, time.process_time() - core)


def _drain(finished: Iterator[object]) -> None:
    for _ in finished:
        pass


def pipeline(task: Task, bank: Bank, pool: DecodePool) -> Stage:
    """What `python -m extract` does with the clips, from its plan to the last commit."""
    forget_peak_memory()
    started, process = time.perf_counter(), time.process_time()
    rows = plan(bank, task)
    with bank.record_run("extract", {"dataset": task.dataset, "modality": task.modality}) as run:
        outcome = extract_clips(bank, task, rows, pool, run, Limits())
    seconds, own = time.perf_counter() - started, time.process_time() - process
    if outcome.added != len(rows):
        raise BenchError(f"extract.bench: {outcome.failed} clips failed: {outcome.commonest_error}")
    measured = bank.sql("SELECT name, value FROM metrics WHERE run_id = ?", [run.id])
    found = dict(zip(measured["name"].to_pylist(), measured["value"].to_pylist(), strict=True))
    decode, encode = found["extract/decode_cpu_seconds"], found["extract/encode_cpu_seconds"]
    write = found["extract/write_seconds"]
    parts = {"decode processes": decode, "encoder": encode, "write": write}
    if task.device == "cpu":
        parts["rest of the main process"] = max(0.0, own - encode - write)
    return Stage(seconds, decode + own, parts)


def forget_peak_memory() -> None:
    """Start the peak anew (proc(5): clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """This process's peak resident memory since :func:`forget_peak_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def loop(task: Task, paths: list[Path], out: Path) -> float:
    """Seconds of the user's loop over the clips; it leaves a file of features for each in ``out``."""
    name, frames = task.encoder.name.removesuffix("-random"), task.sampling.frames
    given = {"encoder": name, "device": task.device, "frames": frames, "paths": [str(one) for one in paths]}
    # The loop has the defaults of its libraries, not what our commands set.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", "from extract.bench_loop import main; main()"],
        input=json.dumps({**given, "out": str(out)}),
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[1],
    )
    if done.returncode:
        raise BenchError(f"extract.bench: the loop failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def require_same(task: Task, bank: Bank, paths: list[Path], out: Path) -> None:
    """Neither side may win by computing something else: the loop's features against the bank's.

    Raises:
        BenchError: If they differ by more than the processors and precisions do.
    """
    names = [path.stem for path in paths]
    selection = bank.select(task.dataset, task.modality, task.encoder.name, "cls", items=names)
    values, offsets = selection.read(np.arange(len(names)))
    for name, first in zip(names, offsets, strict=False):
        theirs = np.load(out / f"{name}.npy")
        ours = np.asarray(values[first : first + len(theirs), 0], np.float32)
        cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        if not cosine.min() >= _SAME:
            raise BenchError(f"extract.bench: {name}: the loop's features differ, cosine {cosine.min():.4f}")


def has_loop(encoder: str) -> bool:
    """Whether there is a loop to compare this encoder with."""
    return encoder in LOOPS
