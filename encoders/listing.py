"""Descriptions of encoders as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from encoders.describe import Description

HEADER = ("encoder", "modalities", "input", "fields (tokens x dims)", "parameters", "licence", "weights")


def row(one: Description) -> tuple[str, ...]:
    """A description as a line of the table; pooled variants of tokens are left to ``show``."""
    fields = [
        f"{name} {values['tokens']}x{values['dim']}" if values["tokens"] > 1 else f"{name} {values['dim']}"
        for name, values in one.fields.items()
        if values["source"] is None
    ]
    return (
        one.name,
        ", ".join(one.modalities),
        _input(one),
        ", ".join(fields),
        f"{one.parameters / 1e6:.1f} M" if one.parameters else "none",
        one.licence or "none needed",
        _weights(one),
    )


def _input(one: Description) -> str:
    """Frames x pixels (or joints, windows) of the first modality."""
    if not one.inputs:
        return "texts"
    steps, *shape = next(iter(one.inputs.values()))
    frames = (
        f"{one.sampling['fps']:g} a second" if "fps" in one.sampling else one.sampling.get("frames", steps)
    )
    return " x ".join(str(size) for size in (frames, *shape))


def _weights(one: Description) -> str:
    where = {
        "none": "none needed",
        "package": f"{'installed' if one.present else 'not installed'}: {one.file}",
        "hub": f"{'in the local cache' if one.present else 'on the hub'}: {one.file}",
        "file": f"needs a file: {one.file}",
    }
    return where[one.source]


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns under a header."""
    widths = [max(len(line[column]) for line in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [HEADER, tuple("-" * width for width in widths), *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def detail(one: Description) -> str:
    """All that is known of an encoder, a fact a line."""
    fields = [
        f"{name}: {values['tokens']} x {values['dim']}"
        + (" a clip" if values["per_clip"] else " a step")
        + (f", pooled from {values['source']}" if values["source"] else "")
        + (" (default)" if name in one.default_fields else "")
        for name, values in one.fields.items()
    ]
    facts: Mapping[str, list[str]] = {
        "modalities": [", ".join(one.modalities)],
        "unit": [one.unit],
        "sampling": [", ".join(f"{key} {value}" for key, value in one.sampling.items()) or "none"],
        "input": [f"{key}: {' x '.join(map(str, shape))}" for key, shape in one.inputs.items()] or ["texts"],
        "fields": fields,
        "parameters": [f"{one.parameters:,}"],
        "presets": [", ".join(one.presets) or "none"],
        "weights": [_weights(one)],
        "published": [one.published or "nowhere: it has none"],
        "licence": [one.licence or "none needed"],
    }
    lines = [f"{title:12}{line}" for title, texts in facts.items() for title, line in _hanging(title, texts)]
    return "\n".join([one.name, *lines])


def _hanging(title: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(title if place == 0 else "", text) for place, text in enumerate(texts)]


def as_json(descriptions: list[Description]) -> str:
    """A JSON list, one object an encoder."""
    return json.dumps([asdict(one) for one in descriptions], indent=2)
