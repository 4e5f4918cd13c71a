"""Copies of what the bank holds, for programs that are not ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.errors import FrameBankError

if TYPE_CHECKING:
    from store.bank import Bank
    from store.selection import Selection

RELATIONS = """
SELECT table_name AS name FROM information_schema.tables
WHERE table_schema = 'main' AND table_name <> 'schema_migrations' ORDER BY name
"""


class ExportError(FrameBankError, ValueError):
    """The target cannot be written as asked."""


def export_catalog(bank: "Bank", folder: Path) -> Iterator[tuple[Path, int]]:
    """Write each table and view of the catalog to ``<folder>/<name>.parquet``, all of one moment.

    Yields:
        Path and number of rows of each file.
    """
    import pyarrow.parquet as pq

    from store.catalog import fetch

    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder}: is a file; give a folder for the Parquet files of the catalog")
    folder.mkdir(parents=True, exist_ok=True)
    with bank.catalog.reading() as connection:
        names = fetch(connection, RELATIONS)["name"].to_pylist()
        for name in names:
            table = fetch(connection, f'SELECT * FROM "{name}"')
            path = folder / f"{name}.parquet"
            pq.write_table(table, path, compression="zstd")
            yield path, table.num_rows


def export_selection(selection: "Selection", path: Path, reduce: str = "none") -> Path:
    """Write a selection to one ``.npz`` that loads without pickle.

    items (n,) text, labels (n,), values; for ``none`` also offsets (n + 1,) and times_seconds (sum T,);
    ``about`` is JSON: dataset, modality, feature set, its configuration, field, label names.

    Raises:
        ExportError: If ``path`` does not end in ``.npz``.
    """
    if path.suffix != ".npz":
        raise ExportError(f"{path}: features are exported to a .npz file; name it so")
    arrays: dict[str, Any] = {"items": selection.items.astype(str), "labels": selection.labels}
    if reduce == "none":
        arrays["values"], arrays["offsets"] = selection.materialise("none")
        arrays["times_seconds"] = np.concatenate(selection.times())
    else:
        arrays["values"] = selection.materialise(reduce)
    about = {
        "dataset": selection.dataset,
        "modality": selection.modality,
        "feature_set": selection.feature_set,
        "spec": selection.spec.as_json(),
        "field": selection.field.as_json(),
        "reduce": reduce,
        "label_names": selection.label_names,
    }
    arrays["about"] = np.array(json.dumps(about, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    return path
