"""Skeletons in ``.npy`` files: NTU's pickled dictionaries (read safely) and plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from extract.readers.media import DamagedMediaError, Frames, MediaInfo, NoFramesError
from extract.readers.ntu_skeleton import persons_by_motion
from extract.readers.safe_npy import load_npy
from extract.sampling import Sampling, frame_indices


class SkeletonNpyReader:
    """Values (T, P, J, 3) float32 metres; all-zero = body not seen.

    Accepts a dictionary with ``skel_body0`` ... (T, J, 3) as CMVRA's ``prepskeletondata.py`` writes it, or a
    plain array (T, J, 3) or (T, P, J, 3). Bodies are ordered and limited as in `NTUSkeletonReader`. Options:
    ``max_persons`` (2), ``fps`` (30.0).
    """

    revision = 1

    def probe(self, path: str | Path, max_persons: int = 2, fps: float = 30.0) -> MediaInfo:
        """Count and duration. Raises: ReadError."""
        frames = len(_bodies(path))
        return MediaInfo(frames, fps, None, None, frames / fps)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        max_persons: int = 2,
        fps: float = 30.0,
    ) -> Frames:
        """The frames of [start, end) that ``sampling`` wants.

        Raises:
            UnsafeMediaError: If the file carries anything but arrays; it is not executed.
            ReadError: If it is missing, damaged, of another shape, or shows no body.
            SamplingError: If the span lies outside the clip.
        """
        bodies = _bodies(path)
        if not bodies.any():
            raise NoFramesError(path, "no body is seen in any frame", "leave it out (missing skeleton)")
        bodies = persons_by_motion(bodies, max_persons)
        wanted = frame_indices(np.arange(len(bodies)) / fps, sampling, start_seconds, end_seconds, fps)
        return Frames(bodies[wanted], wanted / fps, fps, len(bodies), len(bodies))


def _bodies(path: str | Path) -> np.ndarray:
    """(T, P, J, 3) float32 of all bodies in the file."""
    content = load_npy(path)
    array = _stacked(path, content) if isinstance(content, dict) else np.asarray(content)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype.kind not in "fiu":
        problem = f"holds {array.dtype} of shape {array.shape}"
        raise DamagedMediaError(
            path, problem, "(frames, joints, 3) or (frames, persons, joints, 3) is needed"
        )
    if not array.size:
        raise NoFramesError(path, "holds no frame", "leave it out (missing skeleton)")
    return array.astype(np.float32)


def _stacked(path: str | Path, content: dict[Any, Any]) -> np.ndarray:
    """The dictionary's bodies side by side, shorter ones filled up with zeros."""
    keys = sorted(key for key in content if isinstance(key, str) and key.startswith("skel_body"))
    arrays = [np.asarray(content[key]) for key in keys]
    arrays = [array for array in arrays if array.size]
    if not arrays:
        found = ", ".join(sorted(map(str, content)))
        raise NoFramesError(
            path, f"holds no skel_body (its keys: {found})", "leave it out (missing skeleton)"
        )
    if any(array.ndim != 3 or array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise DamagedMediaError(path, f"its bodies have shapes {shapes}", "(frames, joints, 3) is needed")
    stacked = np.zeros((max(map(len, arrays)), len(arrays), *arrays[0].shape[1:]), np.float64)
    for place, array in enumerate(arrays):
        stacked[: len(array), place] = array
    return stacked
