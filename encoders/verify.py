"""Whether a checkpoint is what an encoder needs: a strict load, and one forward pass on generated media."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from encoders import ENCODERS, base_modality, load_encoder
from encoders.checkpoint import read_tensors
from encoders.describe import TEXT
from encoders.errors import EncoderError
from encoders.generated import prepared

TEXTS = ["somebody drinks water", "a person takes off a shoe and throws it away"]


def verify(
    name: str, weights: str | None, modality: str | None, device: str, options: dict[str, Any]
) -> Iterator[str]:
    """Load an encoder strictly and run it; yields what was found, line by line.

    Args:
        name: A key of ``ENCODERS``.
        weights: File, folder or hub id; None for the installed package's or the official hub id's.
        modality: What it is tried with; None tries the first that it takes, and texts if it takes them.
        device: Where it runs.
        options: Further arguments of the encoder (``preset``, ``allow_partial``).

    Raises:
        WeightsError: The checkpoint does not fit.
        EncoderError: An output is not of the declared shape, or not finite.
    """
    encoder: Any = load_encoder(name, weights=weights, device=device, modality=modality, **options)
    yield f"{'encoder':12}{encoder.name} ({ENCODERS[name]})"
    yield from _file(encoder)
    if hasattr(encoder, "model"):
        yield from _loaded(encoder)
    yield f"{'digest':12}{encoder.space.get('weights', 'no weights')}"
    for one in [base_modality(modality)] if modality else _tried(encoder.modalities):
        yield from _texts(encoder) if one == TEXT else _media(encoder, one)


def _tried(modalities: Sequence[str]) -> list[str]:
    media = [one for one in modalities if one != TEXT]
    return media[:1] + [TEXT] * (TEXT in modalities)


def _file(encoder: Any) -> Iterator[str]:
    """Where the weights are; of a single file also its keys and dtypes as stored."""
    path = getattr(encoder, "path", None)
    if isinstance(path, Path) and path.is_dir():
        yield f"{'folder':12}{path}"
    elif isinstance(path, Path):
        tensors = read_tensors(path, encoder.entry)
        dtypes = Counter(str(one.dtype).removeprefix("torch.") for one in tensors.values())
        kinds = ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.most_common())
        yield f"{'file':12}{path}"
        yield f"{'stored':12}{len(tensors)} keys: {kinds}"


def _loaded(encoder: Any) -> Iterator[str]:
    parameters = sum(one.numel() for one in encoder.model.parameters())
    yield f"{'loaded':12}{len(encoder.model.state_dict())} keys, {parameters:,} parameters"
    report = getattr(encoder, "load_report", None)
    for kind in ("missing", "unexpected", "misshapen"):
        keys = getattr(report, kind, ())
        if keys:
            yield f"{kind:12}{len(keys)} keys, as allowed: {', '.join(keys[:8])}{'...' * (len(keys) > 8)}"


def _media(encoder: Any, modality: str) -> Iterator[str]:
    clip = torch.from_numpy(prepared(encoder, modality))
    yield f"{modality:12}{_shape(clip)} {str(clip.dtype).removeprefix('torch.')}, generated"
    features = encoder.encode(clip[:, None] if encoder.unit == "frame" else clip[None])
    for field, values in features.items():
        declared = encoder.fields[field]
        if tuple(values.shape[2:]) != (declared.tokens, declared.dim):
            raise EncoderError(
                f"{encoder.name}: {field} is {_shape(values)} and declared {declared.tokens} x {declared.dim}"
            )
        yield _finite(encoder, field, values)


def _texts(encoder: Any) -> Iterator[str]:
    yield f"{TEXT:12}{len(TEXTS)} texts"
    yield _finite(encoder, "embedding", encoder.encode_text(TEXTS))


def _finite(encoder: Any, field: str, values: torch.Tensor) -> str:
    if not values.isfinite().all():
        raise EncoderError(f"{encoder.name}: {field} holds NaN or infinite values; the weights are damaged")
    norm = values.flatten(0, -2).norm(dim=-1).mean()
    return f"{'':12}-> {field} {_shape(values)}, finite, mean length {norm:.3g}"


def _shape(values: torch.Tensor) -> str:
    return " x ".join(map(str, values.shape))
