"""MATLAB arrays: depth, skeleton and inertial recordings (UTD-MHAD and the like)."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from extract.readers.media import DamagedMediaError, Frames, MediaInfo, NoFramesError, checked_file
from extract.sampling import Sampling, frame_indices

# Axes by letter: what each layout becomes. T time, H height, W width, J joints, X coordinates, C channels.
TARGETS = {"depth": "THW", "skeleton": "TJX", "inertial": "TC"}
MAT_ERRORS = (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, OSError, zlib.error)


class MatReader:
    """One array of a ``.mat`` file (version 5 by scipy, 7.3 by h5py).

    Options: ``layout``, the array's axes by letter, time included: ``"HWT"`` (depth) gives values (T, H, W)
    uint16 millimetres; ``"JXT"`` (skeleton) gives (T, 1, J, 3) float32 metres; ``"TC"`` (inertial) gives
    (T, C) float32; any order of the letters is accepted. ``fps``: frames a second. ``variable``: the
    array's name in the file; needed only where there are several.
    """

    revision = 1

    def probe(self, path: str | Path, layout: str, fps: float, variable: str | None = None) -> MediaInfo:
        """Count, duration and, for depth, size. Raises: ReadError."""
        array = _arranged(path, layout, variable)
        height, width = array.shape[1:] if _kind(path, layout) == "depth" else (None, None)
        return MediaInfo(len(array), fps, width, height, len(array) / fps)

    def read(
        self,
        path: str | Path,
        sampling: Sampling,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        layout: str,
        fps: float,
        variable: str | None = None,
    ) -> Frames:
        """The frames of [start, end) that ``sampling`` wants.

        Raises:
            ReadError: If the file is missing or damaged, or its array does not fit the layout.
            SamplingError: If the span lies outside the recording.
        """
        array = _arranged(path, layout, variable)
        if not len(array):
            raise NoFramesError(path, "its array holds no frame", "leave it out")
        wanted = frame_indices(np.arange(len(array)) / fps, sampling, start_seconds, end_seconds, fps)
        values = _typed(np.ascontiguousarray(array[wanted]), _kind(path, layout))
        return Frames(values, wanted / fps, fps, len(array), len(array))


def _kind(path: str | Path, layout: str) -> str:
    for kind, target in TARGETS.items():
        if sorted(layout) == sorted(target):
            return kind
    accepted = "HWT (depth), JXT (skeleton), TC (inertial), in any order of the letters"
    raise DamagedMediaError(path, f"layout {layout!r} is unknown", f"accepted are {accepted}")


def _typed(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "depth":
        return values.astype(np.uint16)
    if kind == "skeleton":
        return values.astype(np.float32)[:, None]
    return values.astype(np.float32)


def _arranged(path: str | Path, layout: str, variable: str | None) -> np.ndarray:
    """The array with time first, its other axes in the order of ``TARGETS``."""
    target = TARGETS[_kind(path, layout)]
    array = _array(path, variable)
    if array.ndim != len(layout) or array.dtype.kind not in "fiu":
        problem = f"holds {array.dtype} of shape {array.shape}"
        raise DamagedMediaError(path, problem, f"numbers with axes {layout!r} are needed")
    return array.transpose([layout.index(axis) for axis in target])


def _array(path: str | Path, variable: str | None) -> np.ndarray:
    found = checked_file(path)
    try:
        arrays = _variables(found)
    except MAT_ERRORS as error:
        problem = f"is no .mat file, or is cut ({type(error).__name__}: {error})"
        raise DamagedMediaError(path, problem, "copy it again") from None
    if variable is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if variable not in arrays:
        names = ", ".join(sorted(arrays)) or "none"
        raise DamagedMediaError(path, f"has no array {variable!r}", f"it has: {names}; set `variable`")
    return arrays[variable]


def _variables(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of everything in the file."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        return _variables_hdf5(path)
    return {name: np.asarray(value) for name, value in content.items() if not name.startswith("__")}


def _variables_hdf5(path: Path) -> dict[str, Any]:
    """Version 7.3 is HDF5 with the axes reversed (MATLAB stores columns first)."""
    import h5py

    with h5py.File(path, "r") as file:
        return {name: item[()].T for name, item in file.items() if isinstance(item, h5py.Dataset)}
