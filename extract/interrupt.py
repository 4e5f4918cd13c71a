"""Stopping on purpose: Ctrl-C and SIGTERM let a run commit what is done; a second one ends it at once."""

import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Self

from store.cli import Command, run

EXIT_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While in its context, the first SIGINT or SIGTERM only sets :attr:`reason`.

    Works in the main thread only, as Python's signal handlers do.

    Attributes:
        number: The signal's number; None until one comes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Why to stop; None to go on."""
        return None if self.number is None else f"interrupted ({signal.Signals(self.number).name})"

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + (self.number or 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


def run_resumable(component: Command | Mapping[str, Command], argv: Sequence[str] | None, prog: str) -> None:
    """Run a command that can be interrupted and goes on when it is run again; see :func:`store.cli.run`."""
    from encoders.errors import EncoderError

    try:
        run(component, expected=(EncoderError, OSError), argv=argv, prog=prog)
    except KeyboardInterrupt:
        # Before the first clip, or a second Ctrl-C: what was committed stays.
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
