"""The offline feature store: Zarr segments, a DuckDB catalog, and everything that reads and writes them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from store.bank import Bank
    from store.places import thumbnail_path
    from store.selection import Selection, intersect
    from store.spec import FeatureSpec, FieldSpec
    from store.tables import TEXT, TEXTS, text_id

_LAZY = {
    "Bank": "store.bank",
    "FeatureSpec": "store.spec",
    "FieldSpec": "store.spec",
    "Selection": "store.selection",
    "intersect": "store.selection",
    "TEXT": "store.tables",
    "TEXTS": "store.tables",
    "text_id": "store.tables",
    "thumbnail_path": "store.places",
}

__all__ = [
    "TEXT",
    "TEXTS",
    "Bank",
    "FeatureSpec",
    "FieldSpec",
    "Selection",
    "intersect",
    "text_id",
    "thumbnail_path",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``--help`` of every command stays instant."""
    if name not in _LAZY:
        raise AttributeError(f"module 'store' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
