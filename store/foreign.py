"""Reading features that others extracted: ``.npy .npz .pt .h5``, without ever executing a pickle."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import FrameBankError, UnknownNameError


class ForeignFileError(FrameBankError, ValueError):
    """A file that cannot be read, or only by executing code out of it."""


Arrays = dict[str, np.ndarray]
WHOLE = ""  # the name of the array of a file that has only one, without a name


def load_arrays(path: Path) -> Arrays:
    """The numeric arrays of a file: name -> array; a file with one nameless array has it under ``""``.

    Raises:
        ForeignFileError: If it is damaged, holds no arrays, or holds pickled objects: they are refused.
        UnknownNameError: For another file type.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UnknownNameError(str(path), "file type", path.suffix, sorted(READERS))
    try:
        arrays = reader(path)
    except (OSError, EOFError, KeyError, RuntimeError) as error:
        raise ForeignFileError(f"{path}: cannot be read: {_line(error)}") from error
    numeric = {name: array for name, array in arrays.items() if array.dtype.kind in "fiu"}
    if not numeric:
        raise ForeignFileError(f"{path}: holds no numeric array")
    return numeric


def _npy(path: Path) -> Arrays:
    return {WHOLE: _numpy(path)}


def _npz(path: Path) -> Arrays:
    with _numpy(path) as file:
        try:
            return {name: file[name] for name in file.files}
        except ValueError as error:
            raise _refused(path, error) from None


def _numpy(path: Path) -> Any:
    import zipfile

    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> ForeignFileError:
    if "allow_pickle" in str(error) or "pickle" in str(error):
        return ForeignFileError(
            f"{path}: holds pickled objects, which could execute code; save plain arrays (np.save of floats)"
        )
    return ForeignFileError(f"{path}: cannot be read: {_line(error)}")


def _pt(path: Path) -> Arrays:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignFileError(
            f"{path}: holds objects besides tensors, which could execute code; save a dict of tensors"
        ) from error
    return {name: _tensor(path, value) for name, value in _flat(path, loaded)}


def _flat(path: Path, loaded: Any, prefix: str = WHOLE) -> list[tuple[str, Any]]:
    if isinstance(loaded, Mapping):
        names = {key: f"{prefix}/{key}" if prefix else str(key) for key in loaded}
        return [pair for key, value in loaded.items() for pair in _flat(path, value, names[key])]
    return [(prefix, loaded)]


def _tensor(path: Path, value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        return np.array(str(value))  # a caption or a number beside the tensors; not numeric, so left out
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()


def _h5(path: Path) -> Arrays:
    import h5py

    arrays: Arrays = {}

    def visit(name: str, node: Any) -> None:
        # Object types (references, ragged arrays) are left out: they are no features.
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu" and not node.external:
            arrays[name] = node[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)  # does not follow links out of the file
    return arrays


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".h5": _h5,
    ".hdf5": _h5,
}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
