"""When an encoder's output is: the times of prepared frames, and of the steps that cover several of them."""

import math
from typing import Any

import numpy as np

from store.errors import FrameBankError


class StepsError(FrameBankError, ValueError):
    """An encoder gave another number of time steps than it says it does."""


def frames_per_step(encoder: Any) -> int:
    """Prepared frames that one output step of an encoder covers; see :class:`encoders.protocols.Encoder`."""
    return getattr(encoder, "frames_per_step", 1)


def step_times(times_seconds: np.ndarray, steps: int, width: int) -> np.ndarray:
    """The times ``(T',)`` of an encoder's steps: the mean of the frames that each covers.

    Args:
        times_seconds: (T,) seconds at which the prepared frames begin.
        steps: T', as the encoder gave it; for 1 and T the frames' own times are returned.
        width: Frames that a step covers; the last one may cover fewer (an odd clip in tubelets of two), and a
            rest that is no whole step may have been dropped.

    Raises:
        StepsError: If T' is neither.
    """
    frames = len(times_seconds)
    if steps in (1, frames):
        return times_seconds
    if steps not in (frames // width, math.ceil(frames / width)):
        raise StepsError(
            f"{steps} time steps from {frames} frames, of which each step is said to cover {width}; "
            "set frames_per_step of the encoder's class to what it does"
        )
    parts = (times_seconds[k * width : (k + 1) * width] for k in range(steps))
    return np.array([part.mean() for part in parts], np.float32)


def prepared_times(times_seconds: np.ndarray, count: int, duration_seconds: float) -> np.ndarray:
    """The times ``(count,)`` of prepared frames, where preparing has changed their number.

    Args:
        times_seconds: (T,) of what was read. One time stands for a continuous stretch (audio): the frames
            made of it (a spectrogram's) follow each other evenly. Of several, the last repeats: that is how
            short clips are filled up.
        count: Frames there are now.
        duration_seconds: Of what was read.
    """
    times = np.asarray(times_seconds, np.float32)
    if len(times) == 1 and count > 1:
        return (times[0] + np.arange(count) * (duration_seconds / count)).astype(np.float32)
    return np.pad(times, (0, max(0, count - len(times))), "edge")[:count]
