"""What extraction learns on the way and keeps per clip: its views, and what reading its media showed."""

from typing import TYPE_CHECKING

from store.catalog import fetch
from store.tables import COLUMNS, conformed

if TYPE_CHECKING:
    import pyarrow as pa

    from store.catalog import Catalog


def record_views(catalog: "Catalog", dataset: str, views: "pa.Table") -> None:
    """Keep which crop, flip and window each view is, the same for all modalities of a clip.

    Args:
        catalog: The catalog.
        dataset: Name of the dataset.
        views: item_id, view, top, left, height, width (relative, 0 to 1), flip, start, end (relative).
    """
    _replace(catalog, dataset, "views", ("item_id", "view"), views)


def record_media(catalog: "Catalog", dataset: str, media: "pa.Table") -> None:
    """Keep what reading the media files showed: declared and decoded frames, rate, size.

    Args:
        catalog: The catalog.
        dataset: Name of the dataset.
        media: clip_id, modality, media_key, declared_frames, decoded_frames, fps, width, height,
            duration_seconds.
    """
    _replace(catalog, dataset, "media_read", ("clip_id", "modality"), media)


def _replace(catalog: "Catalog", dataset: str, name: str, key: tuple[str, ...], rows: "pa.Table") -> None:
    """Put ``rows`` in the place of those with the same key; equal ones are not written again."""
    table = conformed(rows, name)
    columns = ", ".join(f'"{column}"' for column in COLUMNS[name])
    with catalog.reading() as connection:
        sql = f"SELECT {columns} FROM new EXCEPT SELECT {columns} FROM {name} WHERE dataset = $dataset"
        changed = fetch(connection, sql, {"dataset": dataset}, {"new": table})
    if not changed.num_rows:
        return
    same = " AND ".join(f'{name}."{column}" = changed."{column}"' for column in key)
    with catalog.transaction() as connection:
        connection.register("changed", changed)
        connection.execute(f"DELETE FROM {name} USING changed WHERE {name}.dataset = ? AND {same}", [dataset])
        connection.execute(
            f"INSERT INTO {name} (dataset, {columns}) SELECT ?, {columns} FROM changed", [dataset]
        )
        connection.unregister("changed")
