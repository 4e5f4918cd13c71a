"""``manifest.parquet``: what a segment's rows are, beside the rows, so that the catalog can be rebuilt.

One row per clip in the order of their frames; the file's metadata key ``framebank`` is the JSON that
``zarr.json`` carries too: dataset, modality, the feature set's whole configuration, field, format.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from store.layout import METADATA, CorruptError, SegmentError, crc32c, read_metadata

NAME = "manifest.parquet"
METADATA_KEY = b"framebank"
NAMED_ITEMS = 8  # clips that a message names before it only counts
ALL_FRAMES = 2**63 - 1
SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("view", pa.int32()),
        ("first_frame", pa.int64()),
        ("frames", pa.int32()),
        ("times_seconds", pa.list_(pa.float32())),
        ("media_key", pa.string()),  # digest of the media that the row was made from; null: not known
        ("origin", pa.string()),  # id of the segment that the row was first written to; null: this one
    ]
)
OPTIONAL = ("media_key", "origin")


def conform(table: pa.Table) -> pa.Table:
    """``table`` in exactly the columns and types of ``SCHEMA``; absent optional columns become null."""
    for name in OPTIONAL:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table.select(SCHEMA.names).replace_schema_metadata(None).cast(SCHEMA)


def write_manifest(directory: Path, table: pa.Table, attributes: Mapping[str, Any]) -> int:
    """Write ``table`` (columns of ``SCHEMA``) into a segment's folder; the crc32c of the file."""
    import pyarrow.parquet as pq

    described = conform(table).replace_schema_metadata(
        {METADATA_KEY: json.dumps(dict(attributes), sort_keys=True)}
    )
    content = io.BytesIO()
    pq.write_table(described, content, compression="zstd")
    (directory / NAME).write_bytes(content.getvalue())
    return crc32c(content.getvalue())


def read_manifest(directory: Path, verify: bool = True) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and the attributes of the segment at ``directory``.

    Args:
        directory: The segment's folder.
        verify: Whether to compare it with the checksum in ``zarr.json``; off only to name the clips of a
            segment that is damaged anyway.

    Raises:
        SegmentError: If the manifest is missing, unreadable, or has other columns.
        CorruptError: If its bytes differ from their checksum.
    """
    path = directory / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SegmentError(f"{directory}: has no {NAME}; extract its clips again") from None
    if verify and crc32c(content) != read_metadata(directory)[2]:
        raise CorruptError(f"{path}: differs from its checksum in {METADATA}; extract its clips again")
    return _parse(path, content)


def _parse(path: Path, content: bytes) -> tuple[pa.Table, dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content), partitioning=None)
        attributes = json.loads((table.schema.metadata or {})[METADATA_KEY])
    except KeyError:
        raise SegmentError(f"{path}: its metadata lack `framebank`; extract its clips again") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise SegmentError(f"{path}: unreadable ({cause}); extract its clips again") from error
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise SegmentError(f"{path}: columns {table.schema.names}; expected {SCHEMA.names}")
    return table.replace_schema_metadata(None), attributes


def manifest_problems(table: pa.Table, frames: int) -> list[str]:
    """What contradicts a segment of ``frames`` frames in its manifest; empty if nothing.

    Clips must follow each other without gap or overlap, each with one time per frame and only once a view.
    """
    first = table["first_frame"].to_numpy()
    count = table["frames"].to_numpy().astype(np.int64)
    times = pc.list_value_length(table["times_seconds"]).fill_null(-1).to_numpy()
    problems = []
    if not np.array_equal(first, np.cumsum(count) - count) or (count < 1).any():
        problems.append("rows are not consecutive")
    if count.sum() != frames:
        problems.append(f"rows hold {count.sum()} frames, the array {frames}")
    if not np.array_equal(times, count):
        problems.append("times_seconds do not match frames")
    if table.group_by(["item_id", "view"]).aggregate([]).num_rows != table.num_rows:
        problems.append("an (item, view) occurs twice")
    return problems


def items_between(table: pa.Table, first: int = 0, last: int = ALL_FRAMES) -> list[tuple[str, int]]:
    """(item_id, view) of the clips whose frames touch [first, last)."""
    start = table["first_frame"].to_numpy()
    touched = table.filter(pa.array((start < last) & (start + table["frames"].to_numpy() > first)))
    return list(zip(touched["item_id"].to_pylist(), touched["view"].to_pylist(), strict=True))


def name_items(items: list[tuple[str, int]] | None) -> str:
    """Item ids for a message: the first few, and how many more."""
    if items is None:
        return "unknown, as the manifest cannot be read"
    names = sorted({item for item, _ in items})
    more = f" and {len(names) - NAMED_ITEMS} more" if len(names) > NAMED_ITEMS else ""
    return ", ".join(names[:NAMED_ITEMS]) + more
