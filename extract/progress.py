"""Progress on stderr: clips done and left, speed, time to go, failures, and where the time goes."""

import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from typing import Self, TextIO

_TERMINAL_SECONDS = 0.25  # between redraws of the one line on a terminal
_PLAIN_SECONDS = 15.0  # between lines in a log file
_WINDOW_SECONDS = 60.0  # over which the speed is taken


class Progress:
    """Counts what a run does and shows it: one line redrawn on a terminal, a line now and then elsewhere.

    Args:
        label: What is being extracted.
        total: Items to do.
        unit: What an item is called.
        stream: Where to write; stderr by default.
    """

    def __init__(self, label: str, total: int, unit: str = "clips", stream: TextIO | None = None):
        self.label, self.total, self.unit = label, total, unit
        self.finished = self.failed = 0
        self.busy_seconds: dict[str, float] = {}
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self._start, 0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, finished: int, failed: int, busy_seconds: Mapping[str, float]) -> None:
        """Say how far the run is.

        Args:
            finished: Items that are done, failed ones included.
            failed: Those that failed.
            busy_seconds: Stage -> time spent in it, summed over its processes and threads.
        """
        self.finished, self.failed, self.busy_seconds = finished, failed, dict(busy_seconds)

    def show(self) -> None:
        """Draw, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_SECONDS if self._terminal else _PLAIN_SECONDS):
            self._draw(now)

    def say(self, message: str) -> None:
        """Print a line of its own, above the progress line."""
        print(f"\r\x1b[K{message}" if self._terminal else message, file=self._stream, flush=True)

    def close(self) -> None:
        """Draw the final state and end the line."""
        self._draw(time.monotonic())
        if self._terminal:
            print(file=self._stream, flush=True)

    def clips_per_second(self) -> float:
        """Over the whole run so far; start-up included."""
        return self.finished / max(time.monotonic() - self._start, 1e-9)

    def line(self, now: float) -> str:
        """The state as one line."""
        speed = self._speed(now)
        left = self.total - self.finished
        eta = (
            str(timedelta(seconds=round(left / speed))) if speed and left else ("unknown" if left else "done")
        )
        failures = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.label}: {self.finished}/{self.total} {self.unit}{failures}, {speed:.1f} {self.unit}/s, "
            f"ETA {eta}, {self.shares()}"
        )

    def shares(self) -> str:
        """Share of the busy time in each stage."""
        total = sum(self.busy_seconds.values())
        if not total:
            return "starting"
        return " ".join(f"{stage} {100 * spent / total:.0f}%" for stage, spent in self.busy_seconds.items())

    def _speed(self, now: float) -> float:
        while len(self._history) > 1 and now - self._history[0][0] > _WINDOW_SECONDS:
            self._history.popleft()
        since, before = self._history[0]
        return (self.finished - before) / (now - since) if now > since else 0.0

    def _draw(self, now: float) -> None:
        self._shown = now
        text = self.line(now)
        self._history.append((now, self.finished))
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)


def readable_bytes(count: float) -> str:
    """1536 -> ``1.5 KB``; powers of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"
