"""Per-modality standardisation: statistics of the training clips, kept with the heads that learn from it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from align.data import ClipData, Track


@dataclass
class Statistics:
    """Mean and scale of features over the training clips: (N, D) or (1, D) each, float32."""

    mean: np.ndarray
    scale: np.ndarray

    LIMIT = 1000.0  # deviations; one broken reading must not overflow float16

    def apply(self, features: np.ndarray) -> np.ndarray:
        """(..., N, D) -> (features - mean) / scale as float32."""
        return np.clip((features.astype(np.float32) - self.mean) / self.scale, -self.LIMIT, self.LIMIT)


def statistics(features: np.ndarray, rows: np.ndarray, per: str = "dim", chunk: int = 1024) -> Statistics:
    """Mean and deviation of the given rows.

    Args:
        features: (R, ..., N, D).
        rows: Which rows: those of training clips only.
        per: ``dim``: shared by the tokens; ``token``: each (token, dim) has its own; ``none``: 0 and 1.
        chunk: Rows read at a time.

    Returns:
        Statistics; the scale is 1 where a feature is constant.
    """
    if per == "none" or not len(rows):
        D = features.shape[-1]
        return Statistics(np.zeros((1, D), np.float32), np.ones((1, D), np.float32))
    moments = Moments()
    for start in range(0, len(rows), chunk):
        moments.add(features[rows[start : start + chunk]])
    return moments.statistics(per)


@dataclass
class Moments:
    """Sums over frames of each token and dim, and of their squares, in float64: features need not stay."""

    count: int = 0
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, features: np.ndarray) -> None:
        """Count (..., N, D) in."""
        part = features.astype(np.float64).reshape(-1, *features.shape[-2:])
        self.count += len(part)
        self.total, self.squares = self.total + part.sum(0), self.squares + (part**2).sum(0)

    def statistics(self, per: str) -> Statistics:
        """Of what was counted; the scale is 1 where a feature is constant."""
        mean, square = np.asarray(self.total / self.count), np.asarray(self.squares / self.count)
        if per == "dim":
            mean, square = mean.mean(0, keepdims=True), square.mean(0, keepdims=True)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        constant = deviation <= 1e-4 * np.maximum(np.abs(mean), deviation.max() * 1e-2)
        return Statistics(mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32))


def standardise(
    data: ClipData,
    clips: np.ndarray,
    per: Mapping[str, str],
    chunk: int = 1024,
    given: Mapping[str, Statistics] | None = None,
) -> dict[str, Statistics]:
    """Standardise every track in place, by what the given (training) clips show; live ones are left.

    Args:
        data: Its arrays are overwritten, in their dtype.
        clips: Indices of the training clips.
        per: Modality -> ``token``, ``dim`` or ``none``.
        chunk: Rows converted at a time.
        given: Statistics of modalities that are standardised by these instead.
    """
    found = dict(given or {})
    for name, part in data.tracks.items():
        if part.live:
            found.setdefault(name, Statistics(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)))
            continue
        if name not in found:
            found[name] = _shown(part, clips, per[name], chunk)
        for start in range(0, len(part.features) if per[name] != "none" else 0, chunk):
            part.features[start : start + chunk] = found[name].apply(part.features[start : start + chunk])
    return {name: found[name] for name in data.tracks}


def _shown(part: Track, clips: np.ndarray, per: str, chunk: int) -> Statistics:
    """Statistics of the rows that these clips may draw."""
    rows = np.unique(np.concatenate([part.index[s : s + c] for s, c in _spans(part, clips)]))
    if part.offsets is not None:
        rows = np.concatenate([np.arange(part.offsets[row], part.offsets[row + 1]) for row in rows])
    return statistics(part.features, rows, per, chunk)


def _spans(part: Track, clips: np.ndarray) -> list[tuple[int, int]]:
    return [(0, 0), *zip(part.starts[clips].tolist(), part.counts[clips].tolist(), strict=True)]
