"""Loads ``.npy`` files, those with pickled dictionaries too, without running any code that they carry.

NTU's common ``.skeleton.npy`` files are ``np.save(np.array(dict))``: a 0-d object array, which numpy loads
with ``allow_pickle=True`` only, and that runs whatever the pickle asks for. Here the unpickler can build
numpy arrays of plain numbers, and dicts, lists, tuples, strings, bytes and numbers; anything else is refused
before it is looked up.
"""

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from extract.readers.media import DamagedMediaError, ReadError, UnsafeMediaError, checked_file

PLAIN_DTYPE = re.compile(r"[<>=|]?([?biufSU][0-9]*|O8?)")
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    AssertionError,
)


class _Allowed:
    """A callable that a pickle may use but not modify (BUILD sets attributes on what it holds)."""

    __slots__ = ("_call",)
    _call: Any

    def __init__(self, call: Any):
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"sets attribute {name}")


def _dtype(specification: Any, *_: Any) -> np.dtype:
    if not (isinstance(specification, str) and PLAIN_DTYPE.fullmatch(specification)):
        raise pickle.UnpicklingError(f"asks for dtype {specification!r:.80}")
    # A copy: BUILD sets the byte order of what it gets, and np.dtype("f4") itself is shared by the process.
    return np.dtype(specification, False, True)


def _empty_array(kind: Any, shape: Any, _: Any) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("builds an array in an unusual way")
    return np.ndarray((0,), np.int8)


def _scalar(dtype: Any, data: Any) -> Any:
    if not (isinstance(dtype, np.dtype) and dtype.kind in "biufSU?" and isinstance(data, bytes)):
        raise pickle.UnpicklingError("builds a scalar in an unusual way")
    return np.frombuffer(data, dtype, 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not (isinstance(dtype, np.dtype) and dtype.kind in "biufSU?"):
        raise pickle.UnpicklingError("builds an array in an unusual way")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"asks for encoding {encoding!r:.80}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Any] = {
        ("numpy", "dtype"): _Allowed(_dtype),
        ("numpy", "ndarray"): np.ndarray,
        ("_codecs", "encode"): _Allowed(_latin1),
    }
    for module in ("numpy.core", "numpy._core"):  # before numpy 2, and since
        table[(f"{module}.multiarray", "_reconstruct")] = _Allowed(_empty_array)
        table[(f"{module}.multiarray", "scalar")] = _Allowed(_scalar)
        table[(f"{module}.numeric", "_frombuffer")] = _Allowed(_from_buffer)
    return table


class _NumpyUnpickler(pickle.Unpickler):  # the restricted unpickler itself
    _table = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._table:
            raise _Refused(f"{module}.{name}")
        return self._table[(module, name)]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a persistent id")


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is not allowed."""


def load_npy(path: str | Path) -> Any:
    """The content of an ``.npy`` file: an array, or the object inside a 0-d object array.

    Raises:
        MissingMediaError, UnreadableMediaError: If there is nothing to read.
        UnsafeMediaError: If the pickle in it names anything but plain numpy arrays.
        DamagedMediaError: If it is no ``.npy`` file, or is cut.
    """
    try:
        with checked_file(path).open("rb") as stream:
            return _load(stream)
    except ReadError:
        raise
    except _Refused as error:
        problem = f"a pickle in it calls for {error}, which could run code; it was not run"
        remedy = "numpy arrays, dicts, lists, strings and numbers are accepted: save it as such"
        raise UnsafeMediaError(path, problem, remedy) from None
    except PICKLE_ERRORS as error:
        problem = f"is no .npy file, or is cut ({type(error).__name__}: {error})"
        raise DamagedMediaError(path, problem, "copy it again") from None


def _load(stream: BinaryIO) -> Any:
    version = np.lib.format.read_magic(stream)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = header(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return np.load(stream, allow_pickle=False)
    content = _NumpyUnpickler(stream, encoding="latin1").load()
    if not isinstance(content, np.ndarray) or content.shape != shape:
        raise pickle.UnpicklingError("the pickle is not the array that the header promises")
    return content.item() if content.shape == () else content
