"""The main loop of captioning: clips -> frames -> texts -> catalog.

Decoding runs in the same killable processes as for features; the model runs here, on batches of frames of one
size that cross clip boundaries. What is done is committed in portions: a kill loses one at most.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from encoders.errors import WeightsError
from extract.pictures import AtPositions, Pictures
from extract.progress import Progress
from extract.task import Outcome
from extract.worker import DecodeJob
from extract.workers import Decoded, DecodeFailure, DecodePool
from store.bank import Bank
from store.captions import Captioned, commit_captions
from store.catalog import CatalogBusyError
from store.commit import FAILURE_SCHEMA, FeatureSet
from store.runs import Run

if TYPE_CHECKING:
    from encoders.llava_next import LlavaNext

STAGE = "caption"
PORTION_CLIPS, PORTION_SECONDS = 100, 60.0  # whichever is first
PATIENCE_SECONDS = 5.0  # for a catalog that another process holds, while there is other work
JUDGED_AFTER = 20  # clips before a failure rate means something
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, which this module does not load
CUT = 500  # characters of an error that are kept


@dataclass(frozen=True)
class Plan:
    """What is to be described, and how.

    Attributes:
        owner: Dataset, modality, and the settings; its name is the captions' source.
        rows: The clips, as ``store.captions.missing_captions`` lists them.
        root: Folder of the media.
        sampling: Where in the clip its frames are.
        samples: Texts of each frame.
        seed: Of all random numbers.
        batch_frames: Frames that the model gets at once.
        max_failures: Share of failed clips above which it stops.
    """

    owner: FeatureSet
    rows: Sequence[Mapping[str, Any]]
    root: Path
    sampling: AtPositions
    samples: int
    seed: int
    batch_frames: int
    max_failures: float


@dataclass(frozen=True)
class _Frame:
    """A frame that waits for the model: of which clip, at which of its positions."""

    clip: int
    place: int
    values: np.ndarray


@dataclass
class _Clip:
    """A clip on its way: frames that are not described yet, and the texts so far."""

    missing: int
    texts: dict[int, list[str]] = field(default_factory=dict)


def seed_of(clip_id: str, position: float, sample: int, seed: int) -> int:
    """63 bits that depend on nothing else, so that a rerun gives the same text."""
    key = json.dumps([clip_id, position, sample, seed])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


class Describing:
    """One run over the clips of a plan."""

    def __init__(self, bank: Bank, model: "LlavaNext", plan: Plan, run: Run):
        self.bank, self.model, self.plan, self.run = bank, model, plan, run
        self.clips: dict[int, _Clip] = {}
        self.waiting: dict[tuple[int, ...], list[_Frame]] = {}  # by height and width
        self.done: list[Captioned] = []
        self.failures: list[dict[str, Any]] = []
        self.added = self.failed = self.texts = self.empty = 0
        self.batch_frames = plan.batch_frames  # less once the device's memory has turned out too small
        self.errors: Counter[str] = Counter()
        self.seconds = {"decode": 0.0, "describe": 0.0, "write": 0.0}
        self.committed = time.monotonic()

    def work(self, pool: DecodePool, stop: Callable[[], str | None]) -> Outcome:
        """To the end, or until there is a reason to stop; what is done then is committed."""
        outcome, began = Outcome(planned=len(self.plan.rows)), time.monotonic()
        label = f"captions of {self.plan.owner.dataset}/{self.plan.owner.modality}"
        with Progress(label, len(self.plan.rows)) as self.progress:
            try:
                with closing(pool.decode(self._jobs())) as events:
                    for event in events:
                        self._take(event)
                        outcome.stopped = self._after(stop)
                        if outcome.stopped:
                            break
                while self.waiting and not outcome.stopped:
                    self._describe(self.waiting.pop(next(iter(self.waiting))))
                    outcome.stopped = self._after(stop)
            finally:
                self._commit(None)
                self._show()
        outcome.added, outcome.failed, outcome.seconds = self.added, self.failed, time.monotonic() - began
        self._record(outcome)
        return outcome

    def _jobs(self) -> Iterator[DecodeJob]:
        prepare = Pictures()
        for index, row in enumerate(self.plan.rows):
            yield DecodeJob(
                index,
                str(self.plan.root / row["path"]),
                row["reader"],
                self.plan.owner.modality,
                self.plan.sampling,
                prepare,
                json.loads(row["options"] or "{}"),
                row["start_seconds"],
                row["end_seconds"],
            )

    def _take(self, event: Decoded | DecodeFailure | None) -> None:
        if isinstance(event, DecodeFailure):
            self._fail(event.job.index, f"{event.stage}: {event.error}")
        elif isinstance(event, Decoded):
            values = np.array(event.values)  # ours; the worker's memory goes back to it
            event.release()
            self.seconds["decode"] += event.report.read_seconds + event.report.prepare_seconds
            self._frames(event.job.index, values)

    def _frames(self, index: int, values: np.ndarray) -> None:
        if not len(values):
            self._fail(index, "NoFramesError: the clip has no frames")
            return
        self.clips[index] = _Clip(len(values))
        waiting = self.waiting.setdefault(values.shape[1:3], [])
        waiting += [_Frame(index, place, frame) for place, frame in enumerate(values)]
        while len(waiting) >= self.batch_frames:
            batch, waiting[:] = waiting[: self.batch_frames], waiting[self.batch_frames :]
            self._describe(batch)
        # Videos of many sizes: bounded memory counts for more than full batches.
        if sum(map(len, self.waiting.values())) > 8 * self.plan.batch_frames:
            self._describe(self.waiting.pop(max(self.waiting, key=lambda size: len(self.waiting[size]))))

    def _describe(self, frames: list[_Frame]) -> None:
        """A batch; if that fails, its halves, so that one bad frame costs only its clip."""
        batch = [one for one in frames if one.clip in self.clips]
        if not batch:
            return
        began = time.perf_counter()
        texts, error = self._attempt(batch)
        self.seconds["describe"] += time.perf_counter() - began
        if texts is not None:
            for frame, several in zip(batch, texts, strict=True):
                self._add(frame, several)
        elif len(batch) > 1:
            half = len(batch) // 2
            if error.startswith(OUT_OF_MEMORY):
                self.batch_frames = min(self.batch_frames, half)
            self._describe(batch[:half])
            self._describe(batch[half:])
        else:
            self._fail(batch[0].clip, error)

    def _attempt(self, batch: list[_Frame]) -> tuple[list[list[str]] | None, str]:
        try:
            return self.model.describe([one.values for one in batch], [self._seeds(one) for one in batch]), ""
        except WeightsError:
            raise
        except Exception as error:  # noqa: BLE001 - recorded, under the clip that it hits
            return None, f"{type(error).__name__}: {' '.join(str(error).split())[:CUT]}"

    def _seeds(self, frame: _Frame) -> list[int]:
        clip_id, position = self.plan.rows[frame.clip]["clip_id"], self.plan.sampling.positions[frame.place]
        return [seed_of(clip_id, position, sample, self.plan.seed) for sample in range(self.plan.samples)]

    def _add(self, frame: _Frame, texts: list[str]) -> None:
        """One frame's texts; with the last one the clip is done."""
        clip = self.clips[frame.clip]
        clip.texts[frame.place] = texts
        clip.missing -= 1
        if clip.missing:
            return
        made = [text for _, several in sorted(clip.texts.items()) for text in several]
        kept = list(dict.fromkeys(text for text in made if text))
        if not kept:
            self._fail(frame.clip, f"EmptyCaptionError: all {len(made)} texts are empty")
            return
        self.empty += sum(not text for text in made)
        self.texts += len(kept)
        self.added += 1
        row = self.plan.rows[frame.clip]
        self.done.append(Captioned(row["clip_id"], kept, row["media_key"]))
        del self.clips[frame.clip]

    def _fail(self, index: int, error: str) -> None:
        self.clips.pop(index, None)
        self.failed += 1
        self.errors[error] += 1
        row = self.plan.rows[index]
        self.failures.append(
            {"clip_id": row["clip_id"], "stage": STAGE, "error": error, "media_key": row["media_key"]}
        )

    def _after(self, stop: Callable[[], str | None]) -> str | None:
        """Commit if it is time, show how far it is; returns a reason to stop."""
        waited = time.monotonic() - self.committed
        if len(self.done) + len(self.failures) >= PORTION_CLIPS or waited >= PORTION_SECONDS:
            self._commit(PATIENCE_SECONDS)
        self._show()
        return stop() or self._too_many_failures()

    def _commit(self, timeout_seconds: float | None) -> None:
        """What is done, into the catalog; if that is busy, with the next portion."""
        began = self.committed = time.monotonic()
        if not (self.done or self.failures):
            return
        failed = pa.Table.from_pylist(self.failures, schema=FAILURE_SCHEMA)
        try:
            commit_captions(self.bank.catalog, self.plan.owner, self.done, failed, timeout_seconds)
        except CatalogBusyError as error:
            if timeout_seconds is None:
                raise
            self.progress.say(f"{len(self.done)} clips wait to be committed: {error}")
        else:
            self.done, self.failures = [], []
        self.seconds["write"] += time.monotonic() - began

    def _too_many_failures(self) -> str | None:
        seen, allowed = self.added + self.failed, self.plan.max_failures
        certain = self.failed > allowed * len(self.plan.rows)
        if not self.failed or not (certain or (seen >= JUDGED_AFTER and self.failed > allowed * seen)):
            return None
        return f"{self.failed} of {seen} clips failed, more than --max-failures {allowed:g} allows"

    def _show(self) -> None:
        self.progress.update(self.added + self.failed, self.failed, self.seconds)
        self.progress.show()

    def _record(self, outcome: Outcome) -> None:
        if self.errors:
            error, times = self.errors.most_common(1)[0]
            outcome.commonest_error = f"{times} x {error}"
        if self.empty:
            outcome.notes["empty text, left out"] = self.empty
        owner = self.plan.owner
        labels = {"dataset": owner.dataset, "modality": owner.modality, "source": owner.name}
        values = {"clips": self.added, "failed": self.failed, "texts": self.texts, "empty": self.empty}
        spent = {f"{name}_seconds": value for name, value in self.seconds.items()}
        for name, value in {**values, **spent}.items():
            self.run.metric(f"captions/{name}", value, n=self.added, low=None, high=None, **labels)
