"""Which frames of a clip are read: chosen in seconds, so that streams of different rates cover the same span.

CMVRA takes ``linspace(0, N_rgb - 2, n)`` of the RGB file's *indices* for every modality; a stream with
twice the frames is then seen for the first half of the clip only. Here the grid is in seconds and each
stream maps it to its own frames by their timestamps.

Who must match CMVRA's choice has the rule ``cmvra``: the same formula over the N of each stream itself. Where
all streams have equally many frames (NTU RGB+D) that is what the original reads; where they do not
(Drive&Act's infrared has twice the frames), the original's frames are of another moment than RGB's, which is
a mistake that nobody needs to repeat.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Literal

import numpy as np

from store.errors import FrameBankError

WHERE = "sampling"
CMVRA = "cmvra"
RULES = (CMVRA,)


class SamplingError(FrameBankError, ValueError):
    """A sampling that cannot be parsed or that selects from an impossible time span."""


@dataclass(frozen=True)
class Sampling:
    """How many frames of a clip are read, and which. Exactly one of ``frames`` and ``fps`` is given.

    Attributes:
        frames: A count: the middles of that many equal parts of the span (a clip with fewer frames repeats
            some, so that the count is fixed). ``"all"``: every frame of the span.
        fps: A rate in Hz: one frame at the middle of every 1/fps seconds (at least one).
        max_frames: More frames than this (of ``"all"`` or ``fps``) are thinned out evenly over the
            whole span; the end of a long clip is never cut off.
        rule: Another way to choose a count of frames. ``cmvra``: from the first frame to the last but one,
            ``int(linspace(0, N - 2, n))`` of the N frames in the span.
    """

    frames: int | Literal["all"] | None = None
    fps: float | None = None
    max_frames: int | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.fps is None):
            raise SamplingError(
                f"{WHERE}: frames={self.frames!r} and fps={self.fps!r}; exactly one of them is needed"
            )
        if not (self.frames is None or self.frames == "all" or _is_count(self.frames)):
            raise SamplingError(
                f"{WHERE}: frames={self.frames!r}; a count of at least 1 or 'all' is accepted"
            )
        if self.fps is not None and not (_is_number(self.fps) and 0 < self.fps < float("inf")):
            raise SamplingError(f"{WHERE}: fps={self.fps!r}; a rate above 0 Hz is accepted")
        if self.max_frames is not None and not _is_count(self.max_frames):
            raise SamplingError(f"{WHERE}: max_frames={self.max_frames!r}; a count of at least 1 is accepted")
        if self.rule is not None and self.rule not in RULES:
            raise SamplingError(f"{WHERE}: rule={self.rule!r}; accepted are: {', '.join(RULES)}")
        if self.rule is not None and not _is_count(self.frames):
            raise SamplingError(f"{WHERE}: rule={self.rule!r} chooses a count of frames; give frames: N too")

    @classmethod
    def parse(cls, value: "Sampling | Mapping[str, Any] | int | str") -> "Sampling":
        """A sampling from what YAML or an encoder's ``sampling`` holds: a mapping, a count or ``"all"``.

        Raises:
            SamplingError: For unknown keys, wrong types or an impossible combination.
        """
        if isinstance(value, Sampling):
            return value
        if not isinstance(value, Mapping):
            return cls(frames=value)  # type: ignore[arg-type]  # __post_init__ judges it
        known = [one.name for one in dataclass_fields(cls)]
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise SamplingError(f"{WHERE}: unknown key {unknown[0]!r}; accepted are {', '.join(known)}")
        return cls(**value)

    def key(self) -> dict[str, Any]:
        """The JSON-able identity of this sampling, for a feature set's fingerprint (values that matter only).

        ``max_frames`` has no effect on a fixed count, and ``fps`` is written as a float, so that
        configurations which select the same frames have the same key.
        """
        if self.fps is not None:
            return {"fps": float(self.fps), **self._cap()}
        rule = {} if self.rule is None else {"rule": self.rule}
        return {"frames": self.frames, **(self._cap() if self.frames == "all" else rule)}

    def _cap(self) -> dict[str, int]:
        return {} if self.max_frames is None else {"max_frames": self.max_frames}

    def count(self, seconds: float) -> int:
        """How many frames a span of ``seconds`` gets.

        Raises:
            SamplingError: For ``"all"``, where only the frames' timestamps can tell.
        """
        if self.frames == "all":
            raise SamplingError(f"{WHERE}: frames='all' has no count in seconds; ask frame_indices()")
        if self.frames is not None:
            return self.frames
        assert self.fps is not None
        # The epsilon keeps 2.0 s x 4 Hz at 8 frames when the 2.0 is a sum of 1/30ths.
        return min(max(1, int(seconds * self.fps + 1e-6)), self.max_frames or np.iinfo(np.int64).max)

    def times(self, start_seconds: float, end_seconds: float) -> np.ndarray:
        """The grid (T,) float64 of seconds at which frames are wanted, inside [start, end).

        Raises:
            SamplingError: If the span is empty or not finite, or for ``"all"`` or a rule, which go by frames.
        """
        if self.rule is not None:
            raise SamplingError(f"{WHERE}: rule={self.rule!r} has no grid in seconds; ask frame_indices()")
        span = _span(start_seconds, end_seconds)
        count = self.count(span)
        # A rate leaves a rest shorter than 1/fps at the end; a capped rate and a count cover the span evenly.
        capped = self.fps is None or count == self.max_frames or span * self.fps < 1
        step = span / count if capped else 1.0 / self.fps  # type: ignore[operator]
        return start_seconds + (np.arange(count) + 0.5) * step


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _span(start_seconds: float, end_seconds: float) -> float:
    span = end_seconds - start_seconds
    if not 0 < span < float("inf"):
        raise SamplingError(
            f"{WHERE}: the span {start_seconds!r} to {end_seconds!r} seconds is empty or not finite; "
            "start < end is needed"
        )
    return span


def frame_duration(timestamps: np.ndarray, fallback_fps: float = 30.0) -> float:
    """Seconds that a frame is shown: the median gap of ``timestamps`` (n,), 1/fallback for a single one."""
    gaps = np.diff(timestamps)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if len(gaps) else 1.0 / fallback_fps


def frame_indices(
    timestamps: np.ndarray,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    fps: float = 30.0,
) -> np.ndarray:
    """The indices (T,) int64, non-decreasing, of the frames that ``sampling`` wants.

    A frame is shown from its timestamp until the next one's, so the frame wanted at a time is the last
    that began at or before it. Frame k of a stream with constant rate is at k / fps.

    Args:
        timestamps: (n,) seconds at which each frame begins, ascending.
        sampling: What is wanted.
        start_seconds: Beginning of the clip in the recording; its first frame if None.
        end_seconds: End of the clip, exclusive; the end of the last frame if None (and at most that: a
            clip that is annotated past the recording's end is cut to what exists).
        fps: Rate of a stream that has one frame only.

    Raises:
        SamplingError: If there are no frames, or the span holds none of them.
    """
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if not len(timestamps):
        raise SamplingError(f"{WHERE}: there are no frames to choose from")
    last = float(timestamps[-1]) + frame_duration(timestamps, fps)
    start = float(timestamps[0]) if start_seconds is None else max(start_seconds, float(timestamps[0]))
    end = last if end_seconds is None else min(end_seconds, last)
    if start >= end:
        raise SamplingError(
            f"{WHERE}: the clip's span {start_seconds} to {end_seconds} seconds holds none of the frames, "
            f"which cover {timestamps[0]:.3f} to {last:.3f}; correct the clip's start and end"
        )
    if sampling.frames == "all":
        return _thin(_frames_within(timestamps, start, end), sampling.max_frames)
    if sampling.rule == CMVRA:
        assert isinstance(sampling.frames, int)  # a rule chooses a count
        within = _frames_within(timestamps, start, end)
        return within[np.linspace(0, max(len(within) - 2, 0), sampling.frames).astype(np.int64)]
    return _shown_at(timestamps, sampling.times(start, end))


# Timestamps are rounded by containers (Matroska: milliseconds) and by float32; without some slack a grid
# time that falls on a frame's first instant would pick the frame before it in one container and the frame
# itself in another.
SLACK_SECONDS = 1e-3


def _shown_at(timestamps: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.clip(
        np.searchsorted(timestamps, times + SLACK_SECONDS, side="right") - 1, 0, len(timestamps) - 1
    )


def _frames_within(timestamps: np.ndarray, start: float, end: float) -> np.ndarray:
    first = int(_shown_at(timestamps, np.array([start]))[0])
    last = int(np.searchsorted(timestamps, end - SLACK_SECONDS, side="left"))
    return np.arange(first, max(last, first + 1))


def _thin(indices: np.ndarray, max_frames: int | None) -> np.ndarray:
    if max_frames is None or len(indices) <= max_frames:
        return indices
    middles = ((np.arange(max_frames) + 0.5) * len(indices) / max_frames).astype(np.int64)
    return indices[middles]
