"""`--frames`: where in a clip a query fits best, by the features of its frames and their stored times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluate.source import EvaluateError, Source
from store.tables import TEXT

if TYPE_CHECKING:
    from store.selection import Selection

WINDOW = 0.25  # of a clip's frames around each moment, for heads that read sequences
PER_FRAME = "cls"  # the field in which an encoder with a joint space keeps its frames


@dataclass(frozen=True)
class Moment:
    """A stretch of a clip.

    Attributes:
        start_seconds: Half-way to the frame before it.
        end_seconds: Half-way to the frame after it.
        score: Of its best frame.
    """

    start_seconds: float
    end_seconds: float
    score: float

    def __str__(self) -> str:
        return f"{self.start_seconds:.2f}-{self.end_seconds:.2f} s ({self.score:.3f})"


def best_moments(
    source: Source, modalities: Sequence[str], clips: Sequence[str], query: np.ndarray
) -> dict[str, Moment]:
    """Clip -> its best moment, by the first of the modalities that has frames in the query's space.

    Raises:
        EvaluateError: If none has.
    """
    for name in modalities:
        selection = None if name == TEXT else _frames(source, name, len(query))
        if selection is None:
            continue
        chosen = selection.take(np.isin(selection.items.astype(str), [*clips]))
        values, offsets = _plain(chosen)
        found = {}
        for row, times in enumerate(chosen.times()):
            frames = values[offsets[row] : offsets[row + 1]]
            found[chosen.items[row]] = moment(_embedded(source, name, frames, times) @ query, times)
        return found
    raise EvaluateError(
        f"search --frames: {', '.join(modalities)} of {source.dataset} have one vector a clip in this space; "
        f"leave it out, or extract a field with frames ({PER_FRAME}, tokens)"
    )


def moment(scores: np.ndarray, times: np.ndarray) -> Moment:
    """The stretch around the best frame whose frames are nearer to its score than to the clip's median.

    Args:
        scores: (T,) of the frames.
        times: (T,) seconds, ascending.
    """
    best = int(scores.argmax())
    fits = scores >= (scores[best] + np.median(scores)) / 2
    first = best - int(np.argmin(np.append(fits[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(fits[best:], False))) - 1
    edges = np.concatenate([times[:1], (times[1:] + times[:-1]) / 2, times[-1:]])
    return Moment(float(edges[first]), float(edges[last + 1]), float(scores[best]))


def _frames(source: Source, name: str, dim: int) -> "Selection | None":
    """Features with several frames a clip that lie in the query's space."""
    from store.errors import UnknownNameError

    selection = source.selection(name)
    if source.alignment is None:
        try:
            media = source.media(name)
            selection = source.bank.select(source.dataset, media, selection.feature_set, PER_FRAME)
        except UnknownNameError:
            return None
        if selection.field.dim != dim:
            return None
    return selection if int(selection.lengths.max(initial=0)) > 1 else None


def _plain(selection: "Selection") -> tuple[np.ndarray, np.ndarray]:
    from store.layout import to_float32

    values, offsets = selection.read()
    return to_float32(values, selection.field.dtype), offsets


def _embedded(source: Source, name: str, frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(T, N, D) -> a unit vector a frame (T, E); heads of sequences get the frames around it, too."""
    from evaluate.index import unit

    if source.alignment is None:
        return unit(frames[:, 0])
    reduce = source.alignment.settings(name)["reduce"]
    if reduce in ("mean", "cls"):
        pooled = frames.mean(1) if reduce == "mean" else frames[:, 0]
        return source.alignment.embed_features(name, pooled)
    half = max(1, int(len(frames) * WINDOW) // 2)
    spans = [np.arange(max(0, at - half), min(len(frames), at + half + 1)) for at in range(len(frames))]
    values, offsets = frames[np.concatenate(spans)], np.cumsum([0, *map(len, spans)])
    if reduce == "none":
        return source.alignment.embed_features(name, values, offsets)
    from store.materialise import resampled

    steps = int(reduce.partition(":")[2])
    return source.alignment.embed_features(name, resampled(values, offsets, [times[s] for s in spans], steps))
