"""`--where`: an SQL condition over the columns of clips -> the rows of an index that it leaves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluate.source import EvaluateError

if TYPE_CHECKING:
    from store.bank import Bank


def fitting_clips(bank: "Bank", dataset: str, where: str) -> set[str]:
    """The clips of a dataset that fit, ``camera = 2 AND label_name LIKE 'drink%'`` say.

    Raises:
        QueryError: If it is no SQL condition.
        EvaluateError: If nothing fits.
    """
    query = f"SELECT clip_id FROM (SELECT * FROM clips WHERE dataset = ?) WHERE ({where}\n)"
    found = set(bank.sql(query, [dataset])["clip_id"].to_pylist())
    if not found:
        raise EvaluateError(f"--where: no clip of {dataset} fits {where!r}; loosen the condition")
    return found


def allowed_rows(items: Sequence[str] | np.ndarray, wanted: set[str]) -> np.ndarray:
    """Ascending int64 rows of the items that are wanted."""
    return np.array([row for row, item in enumerate(items) if item in wanted], np.int64)
