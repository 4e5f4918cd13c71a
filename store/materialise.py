"""A selection as one flat array: pooled, resampled in time, or as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from store.errors import FrameBankError
from store.layout import to_float32

if TYPE_CHECKING:
    from store.selection import Selection

BLOCK_BYTES = 64 << 20  # features held besides the result
ACCEPTED = "mean, cls, none, resample:K"


class MaterialiseError(FrameBankError, ValueError):
    """An unknown way to reduce."""


def materialise(
    selection: "Selection", reduce: str, path: Path | None = None
) -> "np.ndarray | tuple[np.ndarray, np.ndarray]":
    """See ``Selection.materialise``."""
    field, count = selection.field, len(selection)
    if reduce == "none" and path is None:
        return selection.read()
    if reduce in ("mean", "cls"):
        tokens = field.tokens if reduce == "mean" else 1
        result = _target((count, field.dim), np.float32, path)
        return _filled(selection, result, lambda values, offsets, rows: _pooled(values[:, :tokens], offsets))
    if reduce.startswith("resample:") and reduce[9:].isdecimal() and int(reduce[9:]) >= 1:
        steps = int(reduce[9:])
        result = _target((count, steps, field.tokens, field.dim), np.float16, path)
        return _filled(selection, result, lambda v, o, rows: resampled(v, o, selection.times(rows), steps))
    raise MaterialiseError(
        f"materialise: reduce={reduce!r}; accepted: {ACCEPTED} with K >= 1, in memory for none"
    )


def _target(shape: tuple[int, ...], dtype: type, path: Path | None) -> np.ndarray:
    if path is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def _filled(
    selection: "Selection",
    result: np.ndarray,
    function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """``function`` of each block of rows (float32 values, offsets, rows) into ``result``."""
    for rows in selection.in_storage_order(BLOCK_BYTES):
        if len(rows):
            values, offsets = selection.read(rows)
            result[rows] = function(to_float32(values, selection.field.dtype), offsets, rows)
    return result


def _pooled(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(sum T, N, D) -> mean over frames and tokens (B, D)."""
    frames = values.mean(1) if values.shape[1] > 1 else values[:, 0]
    return np.add.reduceat(frames, offsets[:-1], axis=0) / np.diff(offsets)[:, None].astype(np.float32)


def resampled(values: np.ndarray, offsets: np.ndarray, times: list[np.ndarray], steps: int) -> np.ndarray:
    """Linear interpolation in time at ``steps`` equidistant moments from each clip's first to last frame.

    Args:
        values: (sum T, N, D) float32.
        offsets: (B + 1,).
        times: B arrays (T,) of seconds; where they do not grow, the frames count as equidistant.
        steps: K. With K = 1 the middle of the clip.

    Returns:
        (B, K, N, D) float32.
    """
    position = np.stack([_positions(one, steps) for one in times])
    lower = np.floor(position).astype(np.int64)
    last = (np.diff(offsets) - 1)[:, None]
    upper = np.minimum(lower + 1, last)
    weight = (position - lower)[..., None, None].astype(np.float32)
    start = offsets[:-1, None]
    return values[start + lower] * (1 - weight) + values[start + upper] * weight


def _positions(times: np.ndarray, steps: int) -> np.ndarray:
    """Where in units of frames the K moments lie: float64 (K,) in [0, T - 1]."""
    share = np.linspace(0, 1, steps) if steps > 1 else np.array([0.5])
    frames = len(times)
    if frames == 1 or not (np.diff(times) > 0).all():
        return share * (frames - 1)
    span = times.astype(np.float64)
    return np.interp(span[0] + share * (span[-1] - span[0]), span, np.arange(frames))
