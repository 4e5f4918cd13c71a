"""The main loop: what is missing -> decode -> encode -> store, for one dataset and modality at a time.

Decoding runs in killable processes (:mod:`extract.workers`), encoding in threads of this one
(:mod:`extract.encode`), storing in another thread (:mod:`extract.writing`); each side waits for the next, so
memory stays bounded whatever the speeds. A clip that fails goes to the ledger, and the run goes on.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from extract.encode import BatchEncoder, Encoded
from extract.progress import Progress
from extract.readings import Readings
from extract.rivals import Rivals
from extract.steps import StepsError, frames_per_step, step_times
from extract.task import Limits, Outcome, Task
from extract.views import View, views_of
from extract.wanted import Plan, Wanted
from extract.worker import DecodeJob, Medium
from extract.workers import Decoded, DecodeFailure, DecodePool
from extract.writing import WriterThread
from store.bank import Bank
from store.commit import FeatureSet
from store.places import thumbnail_path
from store.runs import Run

_JUDGED_AFTER = 20  # clips before a failure rate means something
_CUT_NOTE = "files end early: what decodes is kept (table media_read: decoded_frames < declared_frames)"

Stop = Callable[[], str | None]


def extract_clips(
    bank: Bank,
    task: Task,
    wanted: Plan,
    pool: DecodePool,
    run: Run,
    limits: Limits,
    stop: Stop = lambda: None,
) -> Outcome:
    """Extract the rows that the bank lacks of a task.

    Args:
        bank: Where they go; the dataset is registered.
        task: What.
        wanted: Which rows, as :func:`extract.wanted.plan` lists them.
        pool: The decode processes.
        run: Where the measurements go.
        limits: How it behaves.
        stop: Asked all the time; a reason makes the run end early, with everything committed that is done.

    Raises:
        FrameBankError: If nothing can be extracted at all (a full disk, decode processes that don't start).
    """
    outcome, start = Outcome(planned=len(wanted)), time.monotonic()
    with ExitStack() as stack:
        _Extraction(bank, task, pool, run, limits, wanted, stack).work(outcome, stop)
    outcome.seconds = time.monotonic() - start
    return outcome


class _Extraction:
    """The state of one run over one task."""

    def __init__(
        self,
        bank: Bank,
        task: Task,
        pool: DecodePool,
        run: Run,
        limits: Limits,
        wanted: Plan,
        stack: ExitStack,
    ):
        self.bank, self.task, self.pool, self.run = bank, task, pool, run
        self.limits, self.wanted = limits, wanted
        self.flying: dict[int, Wanted] = {}  # between being handed to a worker and to the store
        self.times: dict[int, np.ndarray] = {}  # of those that are decoded
        self.decoded = 0
        self.decode_seconds = self.decode_cpu_seconds = 0.0
        self.cut_short = 0
        self.notes: dict[str, int] = {}
        self.steps_width = frames_per_step(task.encoder)
        self.readings = Readings(bank, task.dataset, task.modality)
        owner = FeatureSet(task.dataset, task.modality, task.spec)
        self.rivals = Rivals(bank, owner, task.fields, task.views, run.id)
        self.views = views_of(bank.catalog, task.dataset, wanted.keys() if task.views > 1 else ())
        # Closed in reverse: the encoder first, then the thread, then the writer, which commits.
        writer = bank.writer(
            task.dataset, task.modality, task.spec, task.field_specs(), **limits.writer_options()
        )
        self.progress = stack.enter_context(Progress(task.label, len(wanted)))
        self.out = stack.enter_context(WriterThread(stack.enter_context(writer)))
        self.encoder = stack.enter_context(
            BatchEncoder(
                task.encoder, str(task.spec.precision), task.device, task.fields, limits.batch_frames
            )
        )

    def work(self, outcome: Outcome, stop: Stop) -> None:
        """Run to the end, or until there is a reason to stop."""
        with closing(self.pool.decode(self._jobs())) as events:
            for event in events:
                self._take(event)
                self._show()
                outcome.stopped = stop() or self._too_many_failures()
                if outcome.stopped:
                    break
        self._store(self.encoder.flush())
        self.out.call(self.readings.record)
        self.out.drain()
        self._show()
        self._record(outcome)

    def _jobs(self) -> Iterator[DecodeJob]:
        prepare = self.task.encoder.prepare()
        for index in self.rivals.order(len(self.wanted)):
            one = self.wanted[index]
            if self.rivals.has_done(one.item_id, one.view):
                self.out.skip()
                continue
            self.flying[index] = one
            view = self.views.get((one.item_id, one.view), View())
            yield DecodeJob(
                index,
                str(self.task.root / one.media["path"]),
                one.media["reader"],
                self.task.modality,
                self.task.sampling,
                prepare,
                self._options(one.media),
                one.media["start_seconds"],
                one.media["end_seconds"],
                view.crop,
                view.window,
                self._thumbnail(one),
                tuple(self._beside(row) for row in one.media.get("beside", ())),
            )

    def _beside(self, row: dict[str, Any]) -> Medium:
        """A further file of the clip, for encoders of several modalities."""
        path, span = str(self.task.root / row["path"]), (row["start_seconds"], row["end_seconds"])
        return Medium(row["modality"], path, row["reader"], self._options(row), *span)

    def _options(self, media: Mapping[str, Any]) -> dict[str, Any]:
        """A file's reader options: the listing's, and what the encoder needs of that reader."""
        needed = getattr(self.task.encoder, "reader_options", {}).get(media["reader"], {})
        return {**json.loads(media["options"] or "{}"), **needed}

    def _thumbnail(self, one: Wanted) -> Path | None:
        if one.view or "+" in self.task.modality:
            return None
        return thumbnail_path(self.bank.path, self.task.dataset, self.task.modality, one.item_id)

    def _take(self, event: Decoded | DecodeFailure | None) -> None:
        """One piece of news from the decode processes, and whatever the encoder has finished meanwhile."""
        if isinstance(event, DecodeFailure):
            self._fail(event.job.index, event.stage, event.error)
        elif isinstance(event, Decoded):
            self._note(event)
            try:
                self._store(self._encode(event))
            finally:
                event.release()
        self._store(self.encoder.ready())

    def _encode(self, event: Decoded) -> Iterator[Encoded]:
        index, report = event.job.index, event.report
        if not len(event.values):
            self._fail(index, "prepare", "NoFramesError: nothing is left of the clip after preparing it")
            return
        self.times[index] = report.times_seconds
        yield from self.encoder.add(index, event.values)

    def _note(self, event: Decoded) -> None:
        report = event.report
        self.decoded += 1
        self.decode_seconds += report.read_seconds + report.prepare_seconds
        self.decode_cpu_seconds += report.cpu_seconds
        if report.note:
            self.notes[report.note] = self.notes.get(report.note, 0) + 1
        one = self.flying[event.job.index]
        if report.decoded_frames < report.declared_frames:
            self.cut_short += 1
        if self.readings.add(one.item_id, one.media["media_key"], event.job, report):
            self.out.call(self.readings.record)

    def _store(self, finished: Iterator[Encoded]) -> None:
        for encoded in finished:
            if encoded.error is not None:
                self._fail(encoded.key, "encode", encoded.error)
                continue
            one = self.flying[encoded.key]
            fields = {name: encoded.fields[name] for name in one.fields}
            steps = max(len(values) for values in fields.values())
            try:
                times = step_times(self.times.pop(encoded.key), steps, self.steps_width)
            except StepsError as error:
                self._fail(encoded.key, "encode", f"StepsError: {self.task.encoder.name}: {error}")
                continue
            del self.flying[encoded.key]
            self.out.add(one.item_id, one.view, fields, times, one.media["media_key"])

    def _fail(self, index: int, stage: str, error: str) -> None:
        self.times.pop(index, None)
        one = self.flying.pop(index)
        self.out.fail(one.item_id, stage, error, one.media["media_key"])

    def _too_many_failures(self) -> str | None:
        """Why to stop, if more clips fail than may: for sure, or by two standard deviations."""
        failed, allowed = self.out.failed, self.limits.max_failures
        # Decoded clips count as good: failures come in at once, successes only with their batch.
        seen = failed + self.decoded
        deviation = math.sqrt(seen * allowed * (1 - allowed)) if allowed < 1 else 0.0
        certain = failed > allowed * len(self.wanted)
        if (
            not failed
            or (allowed and seen < _JUDGED_AFTER)
            or not (certain or failed > allowed * seen + 2 * deviation)
        ):
            return None
        return (
            f"{failed} of {seen} clips failed, more than --max-failures {allowed:g} allows; "
            f"most of them: {self.out.commonest_error()}"
        )

    def _show(self) -> None:
        busy = {"decode": self.decode_seconds, "encode": self.encoder.busy_seconds, "write": self.out.seconds}
        self.progress.update(self.out.finished, self.out.failed, busy)
        self.progress.show()

    def _record(self, outcome: Outcome) -> None:
        outcome.added, outcome.failed, outcome.skipped = self.out.added, self.out.failed, self.out.skipped
        outcome.commonest_error = self.out.commonest_error() if self.out.failed else None
        outcome.notes = self.notes
        if self.cut_short:
            outcome.notes[_CUT_NOTE] = self.cut_short
        self._measure("clips", self.out.added)
        self._measure("failed", self.out.failed)
        self._measure("bytes", self.out.nbytes)
        self._measure("clips_per_second", self.progress.clips_per_second())
        self._measure("decode_seconds", self.decode_seconds)
        self._measure("decode_cpu_seconds", self.decode_cpu_seconds)
        self._measure("encode_seconds", self.encoder.alone_seconds)
        self._measure("encode_busy_seconds", self.encoder.busy_seconds)
        self._measure("encode_cpu_seconds", self.encoder.cpu_seconds)
        self._measure("write_seconds", self.out.seconds)

    def _measure(self, name: str, value: float) -> None:
        task = self.task
        labels = {"dataset": task.dataset, "modality": task.modality, "feature_set": task.spec.name}
        self.run.metric(f"extract/{name}", value, self.out.added, low=None, high=None, **labels)
