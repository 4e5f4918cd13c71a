"""Checkpoints: a file's tensors without wrappers and prefixes, and loading them strictly into a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoders.containers import read_container
from encoders.errors import WeightsError
from encoders.weights import file_digest

Tensors = dict[str, torch.Tensor]

# What trainers put around a state dict; its siblings (epoch, args, optimizer...) are no weights.
WRAPPERS = ("state_dict", "model_state_dict", "model", "model_state")
# Entries beside weights where there is no wrapper.
NOT_WEIGHTS = (
    "optimizer",
    "optimizer_state_dict",
    "scheduler",
    "scheduler_state_dict",
    "lr_scheduler",
    "scaler",
)
PARALLEL = "module."  # DataParallel's prefix; CMVRA wraps twice
CMVRA = "modalities_encoders."
SHOWN = 8  # keys of each kind in an error
# A key that tells a family -> what it is.
FAMILIES = {
    "clipmodel.vision_model.embeddings.added_cls": "CLIP-ViP",
    "vision_model.embeddings.added_cls": "CLIP-ViP, without the prefix 'clipmodel.'",
    "vision_model.pre_layrnorm.weight": "transformers' CLIP",
    "visual.temporal_embed": "LaViLa",
    "visual.class_embedding": "OpenAI's CLIP",
    "trunk.depth_patch_embed.proj.weight": "Omnivore",
    "trunk.patch_embed.proj.1.weight": "OmniMAE",
    "enc_pe.position_embeddings.weight": "TAHAR",
    "fusion.masking_token": "EAO or Multi-SK",
    "batchnorm1.running_mean": "DAVEnet",
    "layer4.0.conv1.weight": "a ResNet or ResNeXt",
    "vit.encoder.layer.0.attention.attention.query.weight": "transformers' ViT",
}


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys.

    Attributes:
        loaded: In the model, from the checkpoint.
        missing: In the model only; fresh there.
        unexpected: In the checkpoint only; left out.
        misshapen: In both, with other shapes (or integers for floats); fresh in the model.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]


def read_checkpoint(path: Path, entry: str | None = None) -> Tensors:
    """A checkpoint file's tensors, flat, without wrappers and prefixes, floating ones as float32.

    ``trunk``/``heads`` dictionaries become ``trunk.x``/``heads.x``, a ``state_dict`` or ``model`` entry is
    unwrapped, ``module.`` goes where all keys have it. Integers stay as they are.

    Args:
        path: .pt, .pth, .torch, .safetensors or a TorchScript archive; the content decides.
        entry: Which encoder to take out of a CMVRA alignment checkpoint, which holds several: a modality, or
            what CMVRA called one (`rgb2`); of `ir.ceiling` it is `ceiling`'s, if there is one, else `ir`'s.

    Raises:
        WeightsError: The file cannot be read safely, holds no tensors, or holds several encoders and none
            (or another) was named.
    """
    tensors = read_tensors(path, entry)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def read_tensors(path: Path, entry: str | None = None) -> Tensors:
    """As :func:`read_checkpoint`, in the file's own dtypes; they may be mapped from the file."""
    content = read_container(path)
    tensors = _without_prefix(dict(_flat(_unwrapped(content))))
    if not tensors:
        entries = ", ".join(f"{key} ({type(value).__name__})" for key, value in list(content.items())[:SHOWN])
        raise WeightsError(f"{path}: holds no tensors, only: {entries or 'nothing'}")
    return _of_entry(tensors, path, entry)


def _unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(True for _ in _flat(inner)):
            return _unwrapped(inner)
    return content


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    """Tensors under dotted keys; numbers, arguments and optimizer states beside them are no weights."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value.detach()
        elif isinstance(value, Mapping) and not (prefix == "" and key in NOT_WEIGHTS):
            yield from _flat(value, f"{prefix}{key}.")


def _without_prefix(tensors: Tensors) -> Tensors:
    while tensors and all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    return tensors


def entries(entry: str) -> tuple[str, ...]:
    """What CMVRA may have called an encoder: a view by its own name (``ir.ceiling``: ceiling, else ir)."""
    base, _, view = entry.partition(".")
    return (view, base) if view else (base,)


def _of_entry(tensors: Tensors, path: Path, entry: str | None) -> Tensors:
    """One encoder of a CMVRA checkpoint; other checkpoints as they are."""
    held = sorted({key.split(".")[1] for key in tensors if key.startswith(CMVRA)})
    if not held:
        return tensors
    name = next((name for name in entries(entry or "") if name in held), None)
    if name is None:
        asked = f"none for {entry!r}" if entry else "and no modality was named"
        raise WeightsError(f"{path}: holds encoders of several modalities, {asked}; held: {', '.join(held)}")
    prefix = f"{CMVRA}{name}."
    return _without_prefix(
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    )


def checkpoint_digest(path: Path, entry: str | None) -> str:
    """Identity of what :func:`read_checkpoint` returns; the entry counts where a file holds several."""
    digest = file_digest(path)
    if path.stat().st_size == 0:  # cannot be mapped; reading it will say so
        return digest
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if content.find(CMVRA.encode()) < 0:  # keys stand in the file as they are
            return digest
        held = (name for name in entries(entry or "") if content.find(f"{CMVRA}{name}.".encode()) >= 0)
        return f"{digest}:{next(held, entry)}"


def load_strictly(
    model: nn.Module, tensors: Tensors, where: str, allow_partial: Sequence[str] = ()
) -> LoadReport:
    """Load tensors into a module; every key that does not fit is an error unless it was named.

    Args:
        model: Its parameters and persistent buffers are overwritten, in their own dtypes.
        tensors: Under the module's keys.
        where: The encoder and the file, for errors.
        allow_partial: Keys, or prefixes ending in ``.``, that may be missing, unexpected or misshapen; what
            they name keeps the module's fresh values.

    Raises:
        WeightsError: With the missing, unexpected and misshapen keys that were not named, the names that
            fit none of them, or the tensors that hold NaN or infinity.
    """
    own = model.state_dict()
    report = LoadReport(
        loaded=tuple(key for key in tensors if key in own and _fits(tensors[key], own[key])),
        missing=tuple(key for key in own if key not in tensors),
        unexpected=tuple(key for key in tensors if key not in own),
        misshapen=tuple(key for key in tensors if key in own and not _fits(tensors[key], own[key])),
    )
    _refuse(report, own, tensors, where, allow_partial)
    _refuse_non_finite({key: tensors[key] for key in report.loaded}, where)
    model.load_state_dict({key: tensors[key] for key in report.loaded}, strict=False)
    return report


def _fits(given: torch.Tensor, own: torch.Tensor) -> bool:
    return given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _refuse(
    report: LoadReport, own: Tensors, tensors: Tensors, where: str, allow_partial: Sequence[str]
) -> None:
    wrong = [*report.missing, *report.unexpected, *report.misshapen]
    idle = [name for name in allow_partial if not any(_names(name, key) for key in wrong)]
    if idle:
        raise WeightsError(
            f"{where}: allow_partial names {', '.join(idle)}, but nothing there is missing, unexpected or "
            "misshapen; give keys, or prefixes that end in '.'"
        )
    refused = {key for key in wrong if not any(_names(name, key) for name in allow_partial)}
    if not refused:
        return
    lines = [f"{where}: the checkpoint does not fit; {len(report.loaded)} of {len(own)} keys do"]
    lines += _group("missing", [key for key in report.missing if key in refused])
    lines += _group("unexpected", [key for key in report.unexpected if key in refused])
    lines += _group(
        "misshapen",
        [
            f"{key} {_kind(tensors[key])} instead of {_kind(own[key])}"
            for key in report.misshapen
            if key in refused
        ],
    )
    lines += _hints(own, tensors)
    raise WeightsError(
        "\n  ".join([*lines, "to load the rest, name these with --allow-partial KEY or PREFIX."])
    )


def _names(name: str, key: str) -> bool:
    return key == name or (name.endswith(".") and key.startswith(name))


def _group(title: str, keys: Sequence[str]) -> list[str]:
    more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return [f"{title} ({len(keys)}): {', '.join(keys[:SHOWN])}{more}"] if keys else []


def _kind(tensor: torch.Tensor) -> str:
    dtype = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{dtype}"


def _hints(own: Tensors, tensors: Tensors) -> list[str]:
    """Whether another prefix, or another family, explains it."""
    fitting = len(own.keys() & tensors.keys())
    sizes = sum(not _fits(tensors[key], own[key]) for key in own.keys() & tensors.keys())
    if sizes > fitting / 2 > len(own) / 4:
        return ["hint: the names fit and the sizes do not; it looks like another variant of this encoder"]
    for prefix in sorted({key.split(".")[0] + "." for key in tensors}):
        if len(own.keys() & {key.removeprefix(prefix) for key in tensors}) > max(fitting, len(own) / 2):
            return [f"hint: most keys fit without the prefix {prefix!r}"]
    for prefix in sorted({key.split(".")[0] + "." for key in own}):
        if len(own.keys() & {prefix + key for key in tensors}) > max(fitting, len(own) / 2):
            return [f"hint: most keys fit with the prefix {prefix!r} before them"]
    family = next((name for key, name in FAMILIES.items() if key in tensors and key not in own), None)
    return [f"hint: it looks like a checkpoint of {family}"] if family else []


def _refuse_non_finite(tensors: Tensors, where: str) -> None:
    bad = {
        key: int((~value.isfinite()).sum()) for key, value in tensors.items() if not value.isfinite().all()
    }
    if bad:
        listed = _group(
            "NaN or infinite values", [f"{key} ({n} of {tensors[key].numel()})" for key, n in bad.items()]
        )
        raise WeightsError(f"{where}: {listed[0]}; the file is damaged, or its training diverged")
