"""Arrow tables in the exact columns and types that the catalog has."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from store.errors import FrameBankError

TEXTS = "_texts"  # the dataset name under which texts are encoded
TEXT = "text"  # its modality


class RegisterError(FrameBankError, ValueError):
    """What was handed in cannot be registered; nothing was written."""


COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "clips": {
        "clip_id": pa.string(),
        "label": pa.int32(),
        "label_name": pa.string(),
        "subject": pa.string(),
        "camera": pa.string(),
        "setup": pa.string(),
        "replication": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "attributes": pa.string(),
    },
    "media": {
        "clip_id": pa.string(),
        "modality": pa.string(),
        "path": pa.string(),
        "reader": pa.string(),
        "options": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "frames": pa.int64(),
        "fps": pa.float64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "duration_seconds": pa.float64(),
        "bytes": pa.int64(),
        "mtime": pa.float64(),
        "sample_hash": pa.string(),
    },
    "splits": {"protocol": pa.string(), "clip_id": pa.string(), "part": pa.string()},
    "captions": {
        "clip_id": pa.string(),
        "text": pa.string(),
        "source": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
    },
    "label_texts": {
        "label": pa.int32(),
        "label_name": pa.string(),
        "prompt_set": pa.string(),
        "text": pa.string(),
    },
    "media_read": {
        "clip_id": pa.string(),
        "modality": pa.string(),
        "media_key": pa.string(),
        "declared_frames": pa.int64(),
        "decoded_frames": pa.int64(),
        "fps": pa.float64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "duration_seconds": pa.float64(),
    },
    "views": {
        "item_id": pa.string(),
        "view": pa.int32(),
        "top": pa.float64(),
        "left": pa.float64(),
        "height": pa.float64(),
        "width": pa.float64(),
        "flip": pa.bool_(),
        "start": pa.float64(),
        "end": pa.float64(),
    },
}
REQUIRED = {
    "clips": ("clip_id",),
    "media": ("clip_id", "modality", "path"),
    "splits": ("protocol", "clip_id", "part"),
    "captions": ("clip_id", "text"),
    "label_texts": ("label", "prompt_set", "text"),
    "media_read": ("clip_id", "modality"),
    "views": ("item_id", "view"),
}


def conformed(table: pa.Table, kind: str) -> pa.Table:
    """``table`` with exactly the columns of ``COLUMNS[kind]``; absent optional ones become null.

    Numbers become text where the catalog has text (subjects, cameras), structs and maps become JSON.

    Raises:
        RegisterError: For an unknown column, a missing one, a null where none may be, or a wrong type.
    """
    wanted = COLUMNS[kind]
    unknown = sorted(set(table.column_names) - wanted.keys())
    if unknown:
        raise RegisterError(f"{kind}: unknown columns {', '.join(unknown)}; accepted: {', '.join(wanted)}")
    columns = [_column(table, kind, name, target) for name, target in wanted.items()]
    result = pa.table(columns, names=list(wanted))
    for name in REQUIRED[kind]:
        if result[name].null_count:
            raise RegisterError(f"{kind}: {result[name].null_count} rows without {name!r}; it is required")
    return result


def _column(table: pa.Table, kind: str, name: str, target: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, target)
    column = table[name]
    if pa.types.is_nested(column.type):
        return pa.array([_json_text(value) for value in column.to_pylist()], target)
    try:
        return column.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RegisterError(
            f"{kind}: column {name!r} is {column.type}, expected {target} ({error})"
        ) from error


def _json_text(value: Any) -> str | None:
    if isinstance(value, list):  # Arrow gives maps as lists of pairs
        value = dict(value)
    return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)


def text_id(text: str) -> str:
    """The identity of a text: 32 hex digits of the SHA-256 of its UTF-8 bytes, exactly as given."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def set_id(dataset: str, modality: str, feature_set: str) -> int:
    """A feature set's key in the catalog: 63 bits of a digest, the same in every catalog of a bank."""
    key = "\0".join((dataset, modality, feature_set)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def shortened(names: Sequence[Any], most: int = 5) -> str:
    """``a, b, c and 7 more``."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
