"""Writing features: clips stream into segments, segments become visible by one short transaction each.

A catalog that somebody holds open does not stop the encoder: finished segments wait on disk, are committed
when the catalog is free, and at the latest by the next run.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from store.adopt import adopt
from store.catalog import CatalogBusyError, Notify, ReadOnlyBankError, say
from store.commit import (
    FAILURE_SCHEMA,
    FeatureSet,
    Finished,
    commit_failures,
    commit_features,
    field_shapes,
    require_shape,
)
from store.errors import FrameBankError
from store.layout import SegmentError
from store.manifest import SCHEMA
from store.places import field_directory, set_directory
from store.segment import (
    ClosedSegment,
    FieldShapeError,
    NonFiniteError,
    SegmentWriter,
    encode,
    new_segment_id,
)
from store.spec import FeatureSpec, FieldSpec, resolved_spec

if TYPE_CHECKING:
    from store.bank import Bank

MAX_BYTES = 128 << 20
MAX_SECONDS = 60.0
PATIENCE_SECONDS = 2.0  # a busy catalog delays the encoder by no more than this per commit
COMMIT_TIMEOUT_SECONDS = 300.0  # and the end of a run by no more than this


class WriterError(FrameBankError, ValueError):
    """The writer was used in a way that it cannot serve."""


@dataclass
class _Open:
    """A segment being written, and its manifest's rows so far."""

    writer: SegmentWriter
    rows: dict[str, list] = field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    keys: set[tuple[str, int]] = field(default_factory=set)

    def add(self, item_id: str, view: int, values: np.ndarray, times: list[float], key: str | None) -> None:
        first = self.writer.append(values)
        row = (item_id, view, first, len(values), times, key, self.writer.final.name)
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(value)
        self.keys.add((item_id, view))


@dataclass
class _Pending:
    """A finished segment whose rows are not committed yet."""

    closed: ClosedSegment
    finished: Finished


class FeatureWriter:
    """Writes the features of one feature set; a context manager, for one thread at a time.

    Leaving the context commits everything and merges this run's own small segments. After an error in the
    block, what was added before it is committed all the same: it is valid.

    Attributes:
        added: Number of (item, view) rows accepted.
        failures: item_id -> error of the clips that failed, in this run.
        pending: Number of finished segments that wait for the catalog.
    """

    def __init__(
        self,
        bank: "Bank",
        dataset: str,
        modality: str,
        spec: FeatureSpec,
        fields: Sequence[FieldSpec],
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        commit_timeout: float = COMMIT_TIMEOUT_SECONDS,
        notify: Notify = say,
    ):
        if bank.catalog.read_only:
            raise ReadOnlyBankError(f"{bank.path}: read-only; features cannot be written to this bank")
        if not fields:
            raise WriterError(f"{spec.name}: no fields to write; name at least one")
        self.bank = bank
        self.owner = FeatureSet(dataset, modality, resolved_spec(spec))
        self.fields = {one.name: one for one in fields}
        self.max_bytes, self.max_seconds, self.commit_timeout = max_bytes, max_seconds, commit_timeout
        self.notify = notify
        self.added = 0
        self.failures: dict[str, str] = {}
        self._open: dict[str, _Open] = {}
        self._opened_at = 0.0
        self._pending: list[_Pending] = []
        self._new_failures: dict[str, tuple[str, str, str | None]] = {}
        self._committed: list[str] = []
        self._told = False

    @property
    def pending(self) -> int:
        """Finished segments that the catalog does not know yet."""
        return len(self._pending)

    def __enter__(self) -> "FeatureWriter":
        """Commit what a killed run of this feature set left, then be ready.

        Raises:
            FieldMismatchError: If a field is stored with another shape.
        """
        folder = set_directory(self.bank.path, self.owner.dataset, self.owner.modality, self.owner.name)
        try:
            adopt(self.bank.path, self.bank.catalog, folder, PATIENCE_SECONDS)
            with self.bank.catalog.reading(PATIENCE_SECONDS) as connection:
                stored = field_shapes(connection, self.owner)
        except CatalogBusyError as error:
            self._tell(error)
            return self
        for one in self.fields.values():
            require_shape(self.owner, stored.get(one.name), one)
        return self

    def add(
        self,
        item_id: str,
        view: int,
        values: Mapping[str, np.ndarray],
        times_seconds: Sequence[float] | np.ndarray,
        media_key: str | None = None,
    ) -> bool:
        """Add one clip's features.

        Args:
            item_id: The clip or text.
            view: Number of the view; 0 is the evaluation view.
            values: Field name -> (T, tokens, dim), any float dtype; T may differ from field to field.
            times_seconds: (T,) seconds of the frames; a field with one frame may also be given T = 1.
            media_key: As the plan gave it: which content of the media the features were made from. Looked up
                at the commit if None.

        Returns:
            Whether the clip was taken. Not finite or overflowing values are not: the clip goes to
            ``failures``, stage ``store``, and nothing of it is stored.

        Raises:
            WriterError: For a field that was not declared.
            FieldShapeError: For an array of another shape than its field's.
            SegmentError: If the disk is full.
        """
        unknown = values.keys() - self.fields.keys()
        if unknown or not values:
            raise WriterError(f"{item_id}: fields {sorted(values)}; this writer takes {sorted(self.fields)}")
        try:
            stored = {name: encode(array, self.fields[name], item_id) for name, array in values.items()}
        except NonFiniteError as error:
            self.fail(item_id, "store", str(error), media_key)
            return False
        times = {name: _times(item_id, len(array), times_seconds) for name, array in stored.items()}
        if any((item_id, view) in one.keys for name, one in self._open.items() if name in stored):
            self._close_open()  # written twice in one run: the later one counts, in a segment of its own
        for name, array in stored.items():
            try:
                self._segment(name).add(item_id, view, array, times[name], media_key)
            except SegmentError:
                self._open.pop(name, None)  # the disk is full or broken: this segment is gone
                raise
        self.added += 1
        self._new_failures.pop(item_id, None)
        if self._is_due():
            self.commit()
        return True

    def fail(self, item_id: str, stage: str, error: str, media_key: str | None = None) -> None:
        """Record that a clip failed; committed with the next segment.

        Args:
            item_id: The clip.
            stage: ``read``, ``decode``, ``encode``, ``store``, ...
            error: One line.
            media_key: As for ``add``.
        """
        self.failures[item_id] = error
        self._new_failures[item_id] = (stage, error, media_key)

    def commit(self, timeout_seconds: float = PATIENCE_SECONDS) -> bool:
        """Close the open segments and make them visible.

        Returns:
            Whether everything is visible; if not, the catalog is busy and a later commit does it.
        """
        self._close_open()
        if not self._pending and not self._new_failures:
            return True
        try:
            self._commit_pending(timeout_seconds)
        except CatalogBusyError as error:
            self._tell(error)
            return False
        self._told = False
        return True

    def _commit_pending(self, timeout_seconds: float) -> None:
        failures = _failure_table(self._new_failures)
        finished = [one.finished for one in self._pending]
        with self.bank.catalog.transaction(timeout_seconds) as connection:
            self._committed += commit_features(connection, self.owner, finished, newest=True)
            commit_failures(connection, self.owner, failures)
        for one in self._pending:
            one.closed.release()
        self._pending, self._new_failures = [], {}

    def _segment(self, name: str) -> _Open:
        if name not in self._open:
            folder = field_directory(
                self.bank.path, self.owner.dataset, self.owner.modality, self.owner.name, name
            )
            writer = SegmentWriter(folder / new_segment_id(), self.fields[name], self.owner.attributes())
            self._opened_at = self._opened_at if self._open else time.monotonic()
            self._open[name] = _Open(writer)
        return self._open[name]

    def _is_due(self) -> bool:
        """Whether a segment is large enough, or its clips have waited long enough, to be committed."""
        large = any(one.writer.nbytes >= self.max_bytes for one in self._open.values())
        return large or time.monotonic() - self._opened_at >= self.max_seconds

    def _close_open(self) -> None:
        """Finish the open segments; they become pending."""
        for name in list(self._open):
            one = self._open.pop(name)
            manifest = pa.table(one.rows, schema=SCHEMA)
            closed = one.writer.close(manifest)
            location = str(closed.path.relative_to(self.bank.path))
            finished = Finished(
                closed.segment_id, location, self.fields[name], closed.frames, closed.nbytes, manifest
            )
            self._pending.append(_Pending(closed, finished))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            done = self.commit(self.commit_timeout)
        except FrameBankError as another:
            if error is None:
                raise
            self.notify(f"{self.owner.name}: {another}")  # the first error is the one to raise
            return
        finally:
            self._let_go()
        if not done:
            self.notify(
                f"{self.pending} finished segments of {self.owner.name} are on disk, not in the catalog:"
                " the next run commits them, or `python -m store gc` does"
            )
        elif error is None and len(self._committed) > len(self.fields):
            self._merge()

    def _let_go(self) -> None:
        """Give up what could not be finished: unfinished files are removed, finished ones left to adopt."""
        for one in self._open.values():
            one.writer.abort()
        self._open = {}
        for waiting in self._pending:
            waiting.closed.lease.release()

    def _merge(self) -> None:
        from store.compact import merge_small

        try:
            merge_small(self.bank, self.owner, self._committed, self.max_bytes)
        except CatalogBusyError as error:
            self.notify(f"small segments of {self.owner.name} are left unmerged: {error}")

    def _tell(self, error: CatalogBusyError) -> None:
        """Say once per busy spell who holds the catalog."""
        if not self._told:
            self._told = True
            self.notify(f"catalog busy, encoding goes on and commits later: {error}")


def _times(item_id: str, frames: int, times_seconds: Sequence[float] | np.ndarray) -> list[float]:
    """One time a frame; a clip-level field gets the middle of the clip.

    Raises:
        FieldShapeError: If there are neither one time a frame nor one frame.
    """
    times = np.asarray(times_seconds, np.float32).reshape(-1)
    if len(times) == frames:
        return times.tolist()
    if frames == 1:
        return [float((times[0] + times[-1]) / 2) if len(times) else 0.0]
    raise FieldShapeError(f"{item_id}: {frames} frames but {len(times)} times; one time a frame is needed")


def _failure_table(failures: Mapping[str, tuple[str, str, str | None]]) -> pa.Table:
    rows = [
        {"clip_id": item, "stage": stage, "error": error, "media_key": key}
        for item, (stage, error, key) in failures.items()
    ]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)
