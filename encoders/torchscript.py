"""Tensors of a TorchScript archive, read without running its code.

OpenAI publishes CLIP in this form: a zip with the weights (``data/0``, ``data/1``...), a pickle of the module
tree that refers to them (``data.pkl``) and the modules' code (``code/``), which ``torch.jit.load`` would
compile. Here the tree is read by an unpickler that knows nothing but containers and tensors, and of the code
only the lines that say which attributes are parameters and buffers.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from typing import Any, ClassVar

import torch

from encoders.errors import WeightsError

_SCRIPT_PREFIX = "__torch__"
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n|\n)*)", re.MULTILINE)
_DECLARED = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*?)\]", re.MULTILINE | re.DOTALL)


class _ScriptModule:
    """What the archive's classes become: a bag of attributes."""

    script_name: ClassVar[str]
    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip is TorchScript's: ``torch.save`` writes no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_tensors(archive: zipfile.ZipFile) -> dict[str, torch.Tensor]:
    """Parameters and buffers under the keys that the module's ``state_dict`` would have.

    Raises:
        WeightsError: The archive refers to anything but tensors, containers and its own modules.
        KeyError, ValueError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError: It is damaged.
    """
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl"))
    root = root.removesuffix("constants.pkl")
    tree = _TreeUnpickler(archive, root).load()
    return _flat(tree, "", _declared(archive, root))


def _flat(module: Any, prefix: str, declared: dict[str, set[str]]) -> dict[str, torch.Tensor]:
    if not isinstance(module, _ScriptModule):
        raise WeightsError(f"the archive holds a {type(module).__name__} where a module belongs")
    kept = declared.get(module.script_name)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in module.attributes.items():
        if isinstance(value, _ScriptModule):
            tensors |= _flat(value, f"{prefix}{name}.", declared)
        elif isinstance(value, torch.Tensor) and (kept is None or name in kept):
            tensors[prefix + name] = value
    return tensors


def _declared(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """Class -> names of its parameters and buffers: other tensor attributes (masks) are no weights."""
    found = {}
    for name in archive.namelist():
        if name.startswith(root + "code/") and name.endswith(".py"):
            module = name.removeprefix(root + "code/").removesuffix(".py").replace("/", ".")
            for title, body in _CLASS.findall(archive.read(name).decode("utf-8")):
                lists = _DECLARED.findall(body)
                if len(lists) == 2:  # archives from before PyTorch 1.6 do not tell buffers
                    words = re.findall(r'"(.*?)"', " ".join(lists))
                    found[f"{module}.{title}"] = set(words)
    return found


class _TreeUnpickler(pickle.Unpickler):
    """Knows containers, tensors and bags of attributes; every other name is refused, nothing is imported."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(root + "data.pkl")))
        self.archive, self.root = archive, root
        self.records: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The few names that such a tree needs."""
        if module.split(".")[0] == _SCRIPT_PREFIX:
            return type(name, (_ScriptModule,), {"script_name": f"{module}.{name}"})
        if module == "torch" and name.endswith("Storage"):
            return name.removesuffix("Storage")
        if module == "torch.jit._pickle":  # typed lists, and marks that carry a type
            return _first
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        }
        if (module, name) not in known:
            raise WeightsError(f"the archive refers to {module}.{name}, which is refused")
        return known[module, name]

    def persistent_load(self, reference: Any) -> torch.Tensor:
        """``("storage", type, record, device, elements)`` -> that record's values, flat, read once."""
        _, kind, record, _, elements = reference
        if record not in self.records:
            content = bytearray(self.archive.read(f"{self.root}data/{record}"))
            dtype = _DTYPES[kind]
            values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(values) != elements:
                raise ValueError(f"record data/{record} has {len(values)} elements instead of {elements}")
            self.records[record] = values
        return self.records[record]


_DTYPES = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


def _tensor(record: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of a record; RuntimeError where it would reach beyond."""
    return record.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value
