"""What is to be extracted: a task with everything that decides its features, and the rows that it lacks."""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from encoders.protocols import Encoder
from extract.progress import readable_bytes
from extract.sampling import Sampling
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

_BYTES_PER_VALUE = 2  # float16


@dataclass(frozen=True)
class Task:
    """One dataset's modality and everything that decides its features, resolved.

    Attributes:
        fields: Names of the fields wanted.
        views: How many views of each clip.
        where: SQL condition over the columns of ``clips``.
    """

    dataset: str
    modality: str
    root: Path
    encoder: Encoder
    spec: FeatureSpec
    sampling: Sampling
    fields: tuple[str, ...]
    device: str = "cpu"
    views: int = 1
    where: str | None = None

    @property
    def label(self) -> str:
        """Short name for messages."""
        return f"{self.dataset}/{self.modality} {self.spec.name}"

    def field_specs(self) -> list[FieldSpec]:
        """The fields as the store wants them."""
        fields = (self.encoder.fields[name] for name in self.fields)
        return [FieldSpec(one.name, one.tokens, one.dim) for one in fields]


@dataclass(frozen=True)
class Limits:
    """How a run behaves.

    Attributes:
        max_failures: Share of failed clips above which it stops.
        batch_frames: Frames in an encoder batch; by device if None.
        max_segment_bytes: Size at which a segment is committed; the store's default if None.
        max_segment_seconds: Age at which it is; likewise.
    """

    max_failures: float = 0.2
    batch_frames: int | None = None
    max_segment_bytes: int | None = None
    max_segment_seconds: float | None = None

    def writer_options(self) -> dict[str, Any]:
        """Arguments of ``bank.writer``."""
        options = {"max_bytes": self.max_segment_bytes, "max_seconds": self.max_segment_seconds}
        return {name: value for name, value in options.items() if value is not None}


@dataclass
class Outcome:
    """What a run did with one task.

    Attributes:
        planned: (item, view) rows that were missing.
        added: Those that were stored.
        failed: Those that failed.
        skipped: Those that another run stored meanwhile.
        seconds: Wall time.
        stopped: Why the run ended before its time; None if it didn't.
        notes: Things that went wrong without costing a feature, and how often.
    """

    planned: int = 0
    added: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    commonest_error: str | None = None
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """One (item, view) of the plan, with the fields that it lacks and how to read its media."""

    item_id: str
    view: int
    fields: tuple[str, ...]
    media: dict[str, Any]


def plan(bank: Bank, task: Task) -> list[Wanted]:
    """The (item, view) rows that lack fields, sorted."""
    rows = bank.plan(task.dataset, task.modality, task.spec, task.fields, task.views, task.where).to_pylist()
    grouped = groupby(rows, key=lambda row: (row["item_id"], row["view"]))
    return [
        Wanted(item, view, tuple(row["field"] for row in same), same[0])
        for (item, view), same in ((key, list(group)) for key, group in grouped)
    ]


def size_estimate(task: Task, wanted: list[Wanted]) -> str:
    """How many bytes the missing rows will take, as far as the listing tells how long the clips are."""
    total, unknown = 0, 0
    for one in wanted:
        frames = _expected_frames(task.sampling, one.media)
        unknown += frames is None
        for name in one.fields:
            spec = task.encoder.fields[name]
            total += (1 if spec.per_clip else frames or 0) * spec.tokens * spec.dim * _BYTES_PER_VALUE
    if unknown == len(wanted):
        return "a size that depends on the clips' lengths"
    return f"{'at least' if unknown else 'about'} {readable_bytes(total)}"


def _expected_frames(sampling: Sampling, media: dict[str, Any]) -> int | None:
    if isinstance(sampling.frames, int):
        return sampling.frames
    start, end = media["start_seconds"], media["end_seconds"]
    seconds = media["duration_seconds"] if end is None else end - (start or 0.0)
    if seconds is None:
        return None
    if sampling.frames == "all":
        frames = media["frames"] if end is None else round(seconds * (media["fps"] or 30.0))
        return None if frames is None else min(frames, sampling.max_frames or frames)
    return sampling.count(seconds)
