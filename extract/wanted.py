"""The plan of an extraction: the (item, view) rows that lack features, as columns, however many they are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from extract.progress import readable_bytes
from extract.steps import frames_per_step
from extract.task import Task
from store.bank import Bank

_BYTES_PER_VALUE = 2  # float16
_USUAL_FPS = 30.0  # of media whose rate the listing doesn't tell


@dataclass(frozen=True)
class Wanted:
    """One (item, view), with the fields that it lacks and how to read its media (the plan's columns)."""

    item_id: str
    view: int
    fields: tuple[str, ...]
    media: dict[str, Any]


class Plan(Sequence[Wanted]):
    """A sequence of :class:`Wanted` over the table that ``bank.plan`` returns, sorted by item, view, field.

    A million clips stay an Arrow table; a row becomes Python objects when its turn comes.
    """

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()
        self._items, self._fields = self.table["item_id"], self.table["field"]
        self._views = self.table["view"].to_numpy()
        codes = self._items.combine_chunks().dictionary_encode().indices.to_numpy()
        new = np.ones(len(codes), bool)
        new[1:] = (codes[1:] != codes[:-1]) | (self._views[1:] != self._views[:-1])
        self._starts = np.append(np.flatnonzero(new), len(codes))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Wanted: ...
    @overload
    def __getitem__(self, index: slice) -> list[Wanted]: ...
    def __getitem__(self, index: int | slice) -> Wanted | list[Wanted]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, stop = self._starts[index % len(self)], self._starts[index % len(self) + 1]
        (media,) = self.table.slice(start, 1).to_pylist()
        fields = tuple(self._fields.slice(start, stop - start).to_pylist())
        return Wanted(media["item_id"], media["view"], fields, media)

    def keys(self) -> Iterator[tuple[str, int]]:
        """(item, view) of all rows, in order."""
        first = self._starts[:-1]
        return zip(self._items.take(pa.array(first)).to_pylist(), self._views[first].tolist(), strict=True)

    def rows_of(self, field: str) -> int:
        """How many rows lack a field."""
        return int((self._fields.to_numpy(zero_copy_only=False) == field).sum())


def plan(bank: Bank, task: Task) -> Plan:
    """The (item, view) rows of a task that lack fields, sorted."""
    return Plan(bank.plan(task.dataset, task.modality, task.spec, task.fields, task.views, task.where))


@dataclass(frozen=True)
class Size:
    """What the missing rows of a task will take on disk.

    Attributes:
        fields: Field -> bytes, as far as the listing tells how long the clips are.
        known: Whether it told.
    """

    fields: dict[str, int]
    known: bool = True

    @property
    def total(self) -> int:
        """Bytes of all fields."""
        return sum(self.fields.values())

    def __str__(self) -> str:
        """``about 7.2 KB (tokens 6.8 KB, cls 432 B)``."""
        if not self.known:
            return "a size that depends on the clips' lengths"
        largest_first = sorted(self.fields.items(), key=lambda one: -one[1])
        parts = ", ".join(f"{name} {readable_bytes(size)}" for name, size in largest_first)
        return f"about {readable_bytes(self.total)} ({parts})"


def size_estimate(task: Task, wanted: Plan, fields: Sequence[str] | None = None) -> Size:
    """How many bytes the missing rows will take.

    Args:
        task: What is to be extracted.
        wanted: Its missing rows.
        fields: Instead of those that the task asks for, with every row of the plan lacking them.
    """
    steps = _mean_steps(task, wanted)
    sizes, known = {}, True
    for name in fields or task.fields:
        spec = task.encoder.fields[name]
        rows = wanted.rows_of(name) if fields is None else len(wanted)
        known &= spec.per_clip or steps is not None or not rows
        count = 1.0 if spec.per_clip else (steps or 0.0)
        sizes[name] = round(rows * count * spec.tokens * spec.dim * _BYTES_PER_VALUE)
    return Size(sizes, known)


def _mean_steps(task: Task, wanted: Plan) -> float | None:
    """Time steps of a clip's features on average; None where no clip's length is known."""
    width, sampling = frames_per_step(task.encoder), task.sampling
    if isinstance(sampling.frames, int):
        return math.ceil(sampling.frames / width)
    columns = ("start_seconds", "end_seconds", "duration_seconds", "fps")
    start, end, duration, fps = (_numbers(wanted.table, name) for name in columns)
    seconds = np.where(np.isnan(end), duration, end - np.nan_to_num(start))
    rate = np.nan_to_num(fps, nan=_USUAL_FPS) if sampling.fps is None else sampling.fps
    rate = getattr(task.encoder, "prepared_hz", rate)  # a spectrogram's, not the waveform's
    frames = np.maximum(seconds * rate, 1)[~np.isnan(seconds)]
    if not len(frames):
        return None
    return float(np.ceil(np.minimum(frames, sampling.max_frames or np.inf) / width).mean())


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
