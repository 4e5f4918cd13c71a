"""What an encoder is, without its weights: for ``python -m encoders list`` and ``show``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from encoders import ENCODERS, load_encoder
from encoders.generated import prepared
from encoders.weights import RANDOM

TEXT = "text"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Description:
    """One encoder.

    Attributes:
        name: A key of ``ENCODERS``.
        modalities: What it takes.
        fields: What it writes: ``{name: {tokens, dim, per_clip, source}}``.
        default_fields: What it writes unless asked otherwise.
        unit: ``frame``, ``clip`` or ``text``.
        sampling: The frames it wants by default.
        inputs: Modality -> shape of a prepared clip or frame, without the batch axis, time first.
        parameters: How many; 0 where nothing was learnt.
        presets: Preprocessings to choose from.
        file: The official checkpoint, hub id or package; None without weights.
        published: Where its authors publish it.
        licence: Of the weights.
        source: ``package``, ``hub``, ``file`` (to be got by hand) or ``none``.
        present: Whether the weights are on this machine; None where a file has to be given.
    """

    name: str
    modalities: tuple[str, ...]
    fields: dict[str, dict[str, Any]]
    default_fields: tuple[str, ...]
    unit: str
    sampling: dict[str, Any]
    inputs: dict[str, tuple[int, ...]]
    parameters: int
    presets: tuple[str, ...]
    file: str | None
    published: str | None
    licence: str | None
    source: str
    present: bool | None


def describe(name: str) -> Description:
    """An encoder of the table; loads code, and no weights but those of a package.

    Raises:
        EncoderError: Unknown name.
    """
    encoder = _weightless(name)
    card = getattr(encoder, "card", None)
    source, present = _source(encoder)
    media = [modality for modality in encoder.modalities if modality != TEXT]
    return Description(
        name=name,
        modalities=tuple(encoder.modalities),
        fields={key: _field(field) for key, field in encoder.fields.items()},
        default_fields=tuple(encoder.default_fields),
        unit=getattr(encoder, "unit", TEXT),
        sampling=dict(getattr(encoder, "sampling", {})),
        inputs={modality: prepared(_weightless(name, modality), modality).shape for modality in media},
        parameters=_parameters(encoder),
        presets=tuple(getattr(encoder, "presets", ())),
        file=card.file if card else None,
        published=card.published if card else None,
        licence=card.licence if card else None,
        source=source,
        present=present,
    )


def _weightless(name: str, modality: str | None = None) -> Any:
    """The encoder without a checkpoint file; those of packages and formulas need none."""
    family = name in ENCODERS and hasattr(_class(name), "architectures")
    return load_encoder(name, weights=RANDOM if family else None, modality=modality)


def _class(name: str) -> Any:
    module, attribute = ENCODERS[name].split(":")
    return getattr(import_module(module), attribute)


def _field(field: Any) -> dict[str, Any]:
    return {
        "tokens": field.tokens,
        "dim": field.dim,
        "per_clip": field.per_clip,
        "source": field.source,
    }


def _parameters(encoder: Any) -> int:
    if hasattr(encoder, "parameters"):
        return encoder.parameters()
    return sum(one.numel() for one in encoder.model.parameters()) if hasattr(encoder, "model") else 0


def _source(encoder: Any) -> tuple[str, bool | None]:
    """Where weights come from, and whether they are here."""
    package = getattr(encoder, "package", None)
    if package is not None:
        return "package", find_spec(package) is not None
    card = getattr(encoder, "card", None)
    if card is None:
        return "none", True
    if _HUB_ID.fullmatch(card.file):
        from huggingface_hub import try_to_load_from_cache

        return "hub", isinstance(try_to_load_from_cache(card.file, "config.json"), str)
    return "file", None
