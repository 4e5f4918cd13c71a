"""Decoded clips in the order asked for, out of processes that may be killed; kept in memory if they fit."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from store.errors import FrameBankError

MOST_FAILURES = 0.2  # share of the clips that may be unreadable


@dataclass
class ClipStream:
    """Clips by number -> their prepared frames.

    Args:
        pool: An ``extract.workers.DecodePool``.
        job: The decode job of a number; its ``index`` is the number.
        name: The clip of a number, for messages.
        count: How many numbers there are.
        error: Raised when too many clips cannot be read, or make no batch; takes a message.
        where: Start of the message.
        keep_bytes: Memory that decoded clips may take, to be decoded once only; 0: none are kept.
        failures: Number -> why it could not be read.
        kept: Number -> its frames.
    """

    pool: Any
    job: Callable[[int], Any]
    name: Callable[[int], str]
    count: int
    error: type[FrameBankError]
    where: str
    keep_bytes: float = 0
    failures: dict[int, str] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)

    def batches(self, chunks: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For each chunk of numbers those that can be read, in its order.

        Yields:
            (b, T, ...) frames, and which of the chunk they are: bool, as long as the chunk.
        """
        arrived: dict[int, Tensor | None] = {}
        wanted = (int(number) for chunk in chunks for number in chunk)
        jobs = (self.job(number) for number in wanted if number not in self.kept)
        with closing(self.pool.decode(jobs)) as events:
            for chunk in chunks:
                numbers = [int(number) for number in chunk]
                while not all(number in arrived or number in self.kept for number in numbers):
                    self._take(next(events), arrived)
                frames = [self.kept.get(number, arrived.pop(number, None)) for number in numbers]
                read = [one for one in frames if one is not None]
                there = np.array([one is not None for one in frames], bool)
                yield self._stacked(read), there
            for _ in events:  # nothing is left: lets the workers live on
                pass

    def _stacked(self, read: Sequence[Tensor]) -> Tensor:
        shapes = sorted({tuple(one.shape) for one in read})
        if len(shapes) > 1:
            raise self.error(
                f"{self.where}: prepared clips of {shapes[0]} and of {shapes[-1]} make no batch; "
                "leave clips of one length and size with --where"
            )
        return torch.stack(list(read)) if read else torch.empty(0)

    def _take(self, event: Any, arrived: dict[int, Tensor | None]) -> None:
        if event is None:
            return
        number = event.job.index
        if hasattr(event, "error"):
            arrived[number] = None
            self._failed(number, event.error)
            return
        frames = torch.from_numpy(event.values.copy())
        event.release()
        arrived[number] = frames
        if self.keep_bytes >= frames.nbytes:
            self.keep_bytes -= frames.nbytes
            self.kept[number] = frames

    def _failed(self, number: int, error: str) -> None:
        if number not in self.failures:
            print(f"left out: {self.name(number)}: {error}", file=sys.stderr)
        self.failures[number] = error
        if len(self.failures) > MOST_FAILURES * self.count:
            raise self.error(
                f"{self.where}: {len(self.failures)} of {self.count} clips cannot be read, more than "
                f"{MOST_FAILURES:.0%}; the last one, {self.name(number)}: {error}"
            )
