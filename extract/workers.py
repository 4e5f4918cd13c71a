"""A pool of killable decode processes: a hang or a segfault costs one clip, never the run.

Each worker is a fresh interpreter (spawned, so that no lock or thread of ours is inherited) that answers jobs
in order. The pool gives a job only together with a free slot of shared memory, so a worker never waits for us
inside a job and its clock measures decoding alone.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Self

import numpy as np

from extract.worker import DecodeJob, Report
from extract.worker_process import WorkerProcess
from store.errors import FrameBankError

_TICK_SECONDS = 0.25  # how often a silent wait returns to the caller
_QUEUE_SECONDS = (
    1.0  # of decoding that may wait at one worker: enough to bridge a batch, too little to skew the end
)
_QUEUE_BYTES = 512 << 20  # of prepared frames that all workers together may hold
_FIRST_WORKERS = 4  # started at once; more (each takes 0.3 GB with torch) only if the caller has to wait
_STARVING_SECONDS = 0.01  # of waiting for a clip that count as that
_START_ATTEMPTS = 3  # workers in a row that may die before their first clip


class WorkerStartError(FrameBankError, RuntimeError):
    """Decode processes die before they read anything: the installation is broken, not a clip."""


@dataclass
class Decoded:
    """One clip's prepared frames; ``values`` looks into shared memory and is void after :meth:`release`."""

    job: DecodeJob
    values: np.ndarray
    report: Report
    release: Callable[[], None]


@dataclass(frozen=True)
class DecodeFailure:
    """A clip that could not be read or prepared: the stage it was in and the error, one line."""

    job: DecodeJob
    stage: str
    error: str


class DecodePool:
    """Decodes clips in ``workers`` processes; use as a context manager and iterate over :meth:`decode`.

    Args:
        workers: Most processes; fewer run while the caller is the slower side.
        timeout_seconds: A clip that takes longer is killed and fails.
        recycle_after: Clips after which a worker is replaced (native decoders leak).
        slots: Most jobs that one worker may hold, results that were not yet taken included.

    Create and use it in a thread that outlives it: the kernel ties the children to that thread.
    """

    def __init__(
        self, workers: int, timeout_seconds: float = 60.0, recycle_after: int = 1000, slots: int = 8
    ):
        self.timeout_seconds = timeout_seconds
        self._count, self._recycle_after, self._slots = max(1, workers), recycle_after, max(1, slots)
        self._staff = min(self._count, _FIRST_WORKERS)
        self._workers: list[WorkerProcess] = []
        self._again: deque[DecodeJob] = deque()  # jobs whose worker died while they waited
        self._clip_seconds = self._clip_bytes = 0.0  # running mean, running maximum
        self._failed_starts = 0
        self._exhausted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._again.clear()

    def decode(self, jobs: Iterable[DecodeJob]) -> Generator[Decoded | DecodeFailure | None]:
        """Decode jobs, in order of completion; pulls from ``jobs`` only as slots come free.

        Yields None when a quarter of a second passed without news, so that the caller can show progress or
        stop. Stopping early (closing the generator) ends the workers; the next call starts others.

        Raises:
            WorkerStartError: If workers cannot even start.
        """
        waiting = iter(jobs)
        self._exhausted, self._failed_starts = False, 0
        try:
            while self._feed(waiting):
                events = self._news()
                if not events:
                    yield None
                yield from events
        finally:
            if self._unfinished():
                self.close()

    def _feed(self, waiting: Iterator[DecodeJob]) -> bool:
        """Hand out jobs while workers have room; returns whether any is left or in work."""
        for worker in [worker for worker in self._workers if worker.retiring and not worker.queue]:
            self._remove(worker)
        depth = self._depth()
        while self._has_room(depth):
            job = self._again.popleft() if self._again else next(waiting, None)
            if job is None:
                self._exhausted = True
                break
            worker = self._least_loaded(depth)
            worker.give(job)
            worker.retiring = worker.given >= self._recycle_after
        return self._unfinished()

    def _unfinished(self) -> bool:
        return bool(self._again) or not self._exhausted or any(worker.queue for worker in self._workers)

    def _has_room(self, depth: int) -> bool:
        staff = [worker for worker in self._workers if not worker.retiring]
        return len(staff) < self._staff or any(worker.has_room(depth) for worker in staff)

    def _least_loaded(self, depth: int) -> WorkerProcess:
        """An idle worker, else a new one while there are too few, else the one with the shortest queue."""
        staff = [worker for worker in self._workers if not worker.retiring]
        best = min(
            (worker for worker in staff if worker.has_room(depth)), key=lambda it: len(it.queue), default=None
        )
        if best is None or (best.queue and len(staff) < self._staff):
            best = WorkerProcess(self._slots)
            self._workers.append(best)
        return best

    def _depth(self) -> int:
        """Jobs per worker: about a second of decoding, within the memory allowed."""
        by_time = math.ceil(_QUEUE_SECONDS / self._clip_seconds) if self._clip_seconds else 2
        by_memory = int(_QUEUE_BYTES / self._count / self._clip_bytes) if self._clip_bytes else 2
        return max(1, min(max(2, by_time), by_memory, self._slots))

    def _news(self) -> list[Decoded | DecodeFailure]:
        """Wait a moment for messages, then look for workers that died or overran their time."""
        by_connection = {worker.connection: worker for worker in self._workers}
        events: list[Decoded | DecodeFailure] = []
        began = time.monotonic()
        ready = wait(list(by_connection), _TICK_SECONDS)
        if time.monotonic() - began > _STARVING_SECONDS and all(worker.proven for worker in self._workers):
            self._staff = min(self._staff + 1, self._count)
        for connection in ready:
            worker = by_connection[connection]  # type: ignore[index]
            try:
                while worker.connection.poll():
                    events += self._message(worker)
            except (EOFError, ConnectionResetError):
                events += self._died(worker)
        # Judged only after every message was taken: time that we spent elsewhere is not the worker's.
        overdue = [worker for worker in self._workers if worker.overrun(self.timeout_seconds)]
        for worker in overdue:
            events += self._charge(worker, f"TimeoutError: killed after {worker.waited():.0f} s")
        return events

    def _message(self, worker: WorkerProcess) -> list[Decoded | DecodeFailure]:
        kind, _, *content = worker.connection.recv()
        if kind == "stage":
            self._failed_starts = 0
            worker.enter(content[0])
            return []
        job, slot = worker.finish()
        if kind == "failed":
            worker.free.append(slot)
            return [DecodeFailure(job, *content)]
        report: Report = content[0]
        values = worker.buffers[slot].view(report.shape, report.dtype)
        self._learn(report.read_seconds + report.prepare_seconds, values.nbytes)
        return [Decoded(job, values, report, lambda: worker.free.append(slot))]

    def _learn(self, seconds: float, nbytes: int) -> None:
        self._clip_seconds = seconds if not self._clip_seconds else 0.9 * self._clip_seconds + 0.1 * seconds
        self._clip_bytes = max(self._clip_bytes, nbytes)

    def _died(self, worker: WorkerProcess) -> list[Decoded | DecodeFailure]:
        """A worker is gone: charge the clip that it was working on, or nobody if it never began."""
        if worker.stage is not None:
            return self._charge(worker, f"WorkerDied: {worker.epitaph()}")
        self._failed_starts += bool(worker.queue)
        epitaph = worker.epitaph()
        self._remove(worker)
        if self._failed_starts >= _START_ATTEMPTS:
            raise WorkerStartError(f"extract: decode workers die at start: {epitaph}; run from the checkout")
        return []

    def _charge(self, worker: WorkerProcess, error: str) -> list[Decoded | DecodeFailure]:
        """Fail the worker's current job and give its other jobs to others."""
        stage = worker.stage or "start"
        job, _ = worker.finish()
        self._remove(worker)
        return [DecodeFailure(job, stage, error)]

    def _remove(self, worker: WorkerProcess) -> None:
        """Kill a worker; what waited at it is handed out again."""
        worker.kill()
        self._workers.remove(worker)
        self._again.extendleft(reversed([job for job, _ in worker.queue]))


def default_workers() -> int:
    """One decode process for each core that this process may use (encoding shares them; they yield to it)."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
