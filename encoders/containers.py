"""The file formats that weights come in, told apart by content, read without running anything in them.

``torch.save`` (zip, and the older pickle stream), safetensors, and TorchScript archives. Pickles are opened
by torch's weights-only unpickler, extended by a few harmless classes that published checkpoints hold.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PosixPath
from threading import Lock
from typing import Any

import numpy as np
import torch

from encoders.errors import WeightsError
from encoders.torchscript import is_torchscript, torchscript_tensors

ACCEPTED = "accepted are torch.save files, safetensors and TorchScript archives"
# What readers of damaged files raise.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
_LOCK = Lock()  # torch keeps one list of allowed classes for all threads
_REFUSED = re.compile(r"GLOBAL (\S+)|new object .* but got (.+)|unrecognized function (.+)")
# First bytes of what is often saved instead of a checkpoint.
_MISTAKEN = {
    b"version https://git-lfs": "a git-lfs pointer; fetch the file itself (git lfs pull)",
    b"<!doctype": "a web page; download the file again",
    b"<html": "a web page; download the file again",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
}


def read_container(path: Path) -> Mapping[Any, Any]:
    """A weights file's content as it was saved: a dictionary, nested or flat, that holds tensors on the CPU.

    Raises:
        WeightsError: The file is absent, damaged, no weights file, or holds a class that is not allowed.
    """
    try:
        content = _read(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except _DAMAGED as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} is no checkpoint that loads safely: {reason}; {ACCEPTED}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}, not a dictionary of tensors; save a state_dict()"
        )
    return content


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    for magic, what in _MISTAKEN.items():
        if start.lower().startswith(magic):
            raise WeightsError(f"is {what}")
    if not start:
        raise EOFError("it is empty")
    if start.startswith(b"PK"):
        return _read_zip(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"damaged safetensors: {error}") from error
    return _read_pickle(path)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if is_torchscript(archive):
            return torchscript_tensors(archive)  # every record's checksum is compared as it is read
        # torch does not look at them; a flipped bit would become a feature.
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, in either form; a zip is mapped, so that optimizer states are never read."""
    mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"  # torch would believe the name
    try:
        with _LOCK, torch.serialization.safe_globals(_allowed()), path.open("rb") as file:
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = _REFUSED.search(str(error))
        if found is None:
            raise
        name = next(group for group in found.groups() if group)
        raise WeightsError(
            f"holds an object of {name}, which could run code and is refused; save only its state_dict(), "
            "where its authors' code is installed"
        ) from None


def _allowed() -> list[Any]:
    """Harmless classes: arguments, paths, numpy numbers; under the names that older versions gave them."""
    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    named = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", scalar), ("_reconstruct", rebuild))
    ]
    dtypes = [type(np.dtype(kind)) for kind in "?bhilqBHILQefdUS"]  # numbers and texts, no objects
    named += [(PosixPath, f"pathlib.{name}") for name in ("_local.PosixPath", "WindowsPath")]
    return [argparse.Namespace, PosixPath, defaultdict, dict, np.ndarray, np.dtype, *dtypes, *named]
