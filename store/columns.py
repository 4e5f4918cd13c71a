"""Columns of the catalog for the items of a selection."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from store.errors import UnknownNameError
from store.tables import COLUMNS, TEXTS

if TYPE_CHECKING:
    from store.bank import Bank


def item_column(bank: "Bank", dataset: str, protocol: str | None, items: np.ndarray, name: str) -> np.ndarray:
    """Values of one column for ``items``, in their order: object (n,), None where null.

    Raises:
        UnknownNameError: If there is no such column.
    """
    known = ["text_id", "text"] if dataset == TEXTS else [*COLUMNS["clips"], *(["part"] if protocol else [])]
    if name not in known:
        raise UnknownNameError(dataset, "column", name, known)
    wanted = pa.table({"item_id": pa.array(items, pa.string()), "row": np.arange(len(items))})
    if dataset == TEXTS:
        source = "SELECT text_id AS item_id, * FROM texts"
    elif name == "part":
        source = (
            "SELECT clip_id AS item_id, part FROM splits WHERE dataset = $dataset AND protocol = $protocol"
        )
    else:
        source = "SELECT clip_id AS item_id, * FROM clips WHERE dataset = $dataset"
    params = {"dataset": dataset, "protocol": protocol}
    used = {key: value for key, value in params.items() if f"${key}" in source}
    sql = f'SELECT s."{name}" AS value FROM wanted w LEFT JOIN ({source}) s USING (item_id) ORDER BY w.row'
    values = bank.catalog.read(sql, used, {"wanted": wanted})["value"]
    result = np.empty(len(items), object)
    result[:] = values.to_pylist()
    return result
