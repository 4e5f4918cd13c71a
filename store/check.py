"""The full check of a segment: every byte against its checksum, every label against its place."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.layout import METADATA, SHARD, CorruptError, SegmentError
from store.locks import WRITER_LOCK
from store.manifest import NAME as MANIFEST
from store.manifest import items_between, manifest_problems, name_items, read_manifest
from store.mapped import Segment
from store.places import path_part
from store.spec import FeatureSpec, SpecError

EXPECTED_FILES = {METADATA, MANIFEST, WRITER_LOCK, str(SHARD)}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a segment.

    Attributes:
        message: ``<path>: <what>``.
        items: (item_id, view) whose features cannot be trusted; None if that cannot be told from the segment,
            so that all clips which the catalog places there are meant.
    """

    message: str
    items: list[tuple[str, int]] | None


def segment_problems(path: Path) -> list[str]:
    """Everything wrong with the segment at ``path``, one line each, naming its clips; empty if it is sound.

    Reads every byte. Never raises for damage: missing, truncated, flipped, mislabelled and non-contiguous
    segments are all reported.
    """
    return [problem.message for problem in inspect_segment(path)]


def inspect_segment(path: Path) -> list[Problem]:
    """As ``segment_problems``, with the clips as data."""
    path = Path(path)
    try:
        table, attributes = read_manifest(path, verify=False)
        found = []
    except SegmentError as error:
        table, attributes = None, None
        found = [Problem(str(error), None)]
    try:
        segment = Segment(path)
    except SegmentError as error:
        items = None if table is None else items_between(table)
        return [Problem(f"{error} (clips: {name_items(items)})", items), *found]
    if table is not None:
        found += _manifest_problems(segment, table, attributes)
    labels = [Problem(f"{path}: mislabelled: {line}", None) for line in _label_problems(segment)]
    return [*found, *labels, *_strays(path), *_damage(segment, table)]


def _manifest_problems(
    segment: Segment, table: pa.Table, attributes: dict[str, Any] | None
) -> Iterator[Problem]:
    try:
        segment.manifest()
    except CorruptError as error:
        yield Problem(str(error), items_between(table))
    for line in manifest_problems(table, segment.frames):
        yield Problem(f"{segment.path / MANIFEST}: {line}", None)
    if attributes != segment.attributes:
        yield Problem(f"{segment.path}: {MANIFEST} and {METADATA} describe different features", None)


def _damage(segment: Segment, table: pa.Table | None) -> Iterator[Problem]:
    inner = segment.layout.inner_frames
    for chunk in segment.damaged_chunks(np.arange(segment.layout.chunks)):
        items = None if table is None else items_between(table, chunk * inner, (chunk + 1) * inner)
        yield Problem(f"{segment.path}: {segment.describe_damage(chunk)}", items)


def _label_problems(segment: Segment) -> Iterator[str]:
    """Contradictions among attributes, geometry and the place .../<dataset>/<modality>/<set>/<field>/<id>."""
    attributes, layout = segment.attributes, segment.layout
    try:
        field, feature_set = attributes["field"], FeatureSpec.from_json(attributes["spec"]).name
        labels = (attributes["dataset"], attributes["modality"], feature_set, field["name"])
        held = (field["tokens"], field["dim"], field["dtype"])
    except (KeyError, TypeError, SpecError) as error:
        yield f"attributes lack or garble {error}"
        return
    if held != (layout.tokens, layout.dim, layout.dtype):
        yield f"its field is {held}, its array {(layout.tokens, layout.dim, layout.dtype)}"
    place, expected = segment.path.absolute().parts[-5:-1], tuple(path_part(str(label)) for label in labels)
    if expected != place:
        yield f"lies under {'/'.join(place)}, belongs under {'/'.join(expected)}"


def _strays(path: Path) -> Iterator[Problem]:
    """Files that do not belong: more shards would be data that no crc of ours covers."""
    files = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    for name in sorted(files - EXPECTED_FILES):
        yield Problem(f"{path}: unexpected file {name!r}", [])
