"""Views of clips: which crop, flip and window each one is, the same for all modalities of a clip."""

from typing import TYPE_CHECKING

from store.catalog import fetch
from store.tables import COLUMNS, conformed

if TYPE_CHECKING:
    import pyarrow as pa

    from store.catalog import Catalog


def record_views(catalog: "Catalog", dataset: str, views: "pa.Table") -> None:
    """Keep ``views``; rows that are there already are not written again.

    Args:
        catalog: The catalog.
        dataset: Name of the dataset.
        views: item_id, view, top, left, height, width (relative, 0 to 1), flip, start, end (relative).
    """
    table = conformed(views, "views")
    names = ", ".join(f'"{name}"' for name in COLUMNS["views"])
    with catalog.reading() as connection:
        sql = f"SELECT {names} FROM new EXCEPT SELECT {names} FROM views WHERE dataset = $dataset"
        changed = fetch(connection, sql, {"dataset": dataset}, {"new": table})
    if not changed.num_rows:
        return
    with catalog.transaction() as connection:
        connection.register("changed", changed)
        connection.execute(
            "DELETE FROM views USING changed WHERE views.dataset = ? AND views.item_id = changed.item_id"
            " AND views.view = changed.view",
            [dataset],
        )
        connection.execute(f"INSERT INTO views (dataset, {names}) SELECT ?, {names} FROM changed", [dataset])
        connection.unregister("changed")
