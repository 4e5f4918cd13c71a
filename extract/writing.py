"""Storing features beside the encoder: a thread that feeds the bank's writer, behind a bounded queue."""

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from store.writer import FeatureWriter

_QUEUE_BYTES = 256 << 20  # of features that may wait; more makes the encoder wait
_IDLE_COMMIT_SECONDS = 60.0  # what was added is committed by then even if nothing more comes


class WriterThread:
    """Calls ``writer.add`` and ``writer.fail`` in order, in one thread; use as a context manager.

    An error of the writer (a full disk) is raised by the next call here, and at the latest by :meth:`drain`.

    Attributes:
        added: Rows that the bank took.
        failed: Rows that failed, at whatever stage.
        skipped: Rows that another run stored first.
        errors: How often each kind of error came, by stage and type, with its first message.
        seconds: Time spent in the writer.
        nbytes: Features handed over, as float16.
    """

    def __init__(self, writer: FeatureWriter):
        self.added = self.failed = self.skipped = self.nbytes = 0
        self.seconds = 0.0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._writer = writer
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None:
            self._raise()

    def add(
        self,
        item_id: str,
        view: int,
        fields: Mapping[str, np.ndarray],
        times_seconds: Sequence[float] | np.ndarray,
        media_key: str | None,
    ) -> None:
        """Hand over one clip's features; waits while too much is queued."""
        nbytes = sum(values.nbytes for values in fields.values())

        def store() -> None:
            if self._writer.add(item_id, view, fields, times_seconds, media_key):
                self.added += 1
                self.nbytes += nbytes // 2
            else:
                self._count("store", self._writer.failures[item_id])

        self._put(store, nbytes)

    def fail(self, item_id: str, stage: str, error: str, media_key: str | None) -> None:
        """Hand over a failure."""

        def store() -> None:
            self._writer.fail(item_id, stage, error, media_key)
            self._count(stage, error)

        self._put(store, 0)

    def call(self, function: Callable[[], None]) -> None:
        """Have something else done in the thread, after what was handed over before."""
        self._put(function, 0)

    def skip(self) -> None:
        """Count a row that another run has stored meanwhile."""
        self.skipped += 1

    def drain(self) -> None:
        """Wait until the writer has everything (it commits when a segment is full, and at the end)."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting)
            self._raise()

    @property
    def finished(self) -> int:
        """Rows that are added, failed or skipped."""
        return self.added + self.failed + self.skipped

    def commonest_error(self) -> str:
        """The kind of error that came most often, how often, and its first message."""
        if not self.errors:
            return "none"
        kind, times = self.errors.most_common(1)[0]
        return f"{times} x {kind}: for example {self.examples[kind]}"

    def _count(self, stage: str, error: str) -> None:
        kind = error.split(":", 1)[0] if re.match(r"\w+:", error) else "error"
        self.failed += 1
        self.errors[f"{stage}, {kind}"] += 1
        self.examples.setdefault(f"{stage}, {kind}", error)

    def _put(self, call: Callable[[], None], nbytes: int) -> None:
        with self._changed:
            # One item always fits, however large.
            self._changed.wait_for(
                lambda: self._error or not self._waiting or self._waiting_bytes + nbytes <= _QUEUE_BYTES
            )
            self._raise()
            self._waiting.append((call, nbytes))
            self._waiting_bytes += nbytes
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        committed = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing, _IDLE_COMMIT_SECONDS)
                call, nbytes = self._waiting[0] if self._waiting else (None, 0)
                if call is None and self._closing:
                    return
            start = time.monotonic()
            try:
                if call is not None:
                    call()
                elif start - committed >= _IDLE_COMMIT_SECONDS:
                    self._writer.commit()
                    committed = time.monotonic()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that hands over
                self._stop(error)
                return
            self.seconds += time.monotonic() - start
            with self._changed:
                if call is not None:
                    self._waiting.popleft()
                    self._waiting_bytes -= nbytes
                self._changed.notify_all()

    def _stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._waiting.clear()
            self._changed.notify_all()
