"""Texts: every unique text is kept and encoded once, whichever dataset or query it comes from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from store.errors import FrameBankError
from store.register import insert_texts, text_table
from store.select import EmptySelectionError, NoFeaturesError
from store.tables import TEXT, TEXTS, shortened, text_id

if TYPE_CHECKING:
    from store.bank import Bank
    from store.selection import Selection


class MissingTextError(FrameBankError, LookupError):
    """Texts that are not encoded yet.

    Attributes:
        texts: Those.
    """

    def __init__(self, message: str, texts: Sequence[str]):
        super().__init__(message)
        self.texts = list(texts)


def add_texts(bank: "Bank", texts: Sequence[str]) -> list[str]:
    """See ``Bank.add_texts``."""
    table = text_table(list(texts))
    sql = "SELECT text_id, text FROM wanted ANTI JOIN texts USING (text_id)"
    unknown = bank.catalog.read(sql, tables={"wanted": table})
    if unknown.num_rows:
        with bank.catalog.transaction() as connection:
            insert_texts(connection, unknown)
    return [text_id(text) for text in texts]


def text_features(bank: "Bank", texts: Sequence[str], encoder: str | None = None) -> np.ndarray:
    """See ``Bank.texts``."""
    ids = [text_id(text) for text in texts]
    unique = list(dict.fromkeys(ids))
    selection = _selection(bank, unique, texts, encoder)
    place = {item: row for row, item in enumerate(selection.items.tolist())}
    missing = [text for text, one in zip(texts, ids, strict=True) if one not in place]
    if missing:
        raise MissingTextError(_message(bank, missing), missing)
    return selection.materialise("mean")[[place[one] for one in ids]]


def _selection(bank: "Bank", ids: list[str], texts: Sequence[str], encoder: str | None) -> "Selection":
    try:
        return bank.select(TEXTS, TEXT, encoder=encoder, items=ids)
    except (EmptySelectionError, NoFeaturesError):
        raise MissingTextError(_message(bank, texts), texts) from None


def _message(bank: "Bank", missing: Sequence[str]) -> str:
    quoted = [repr(text) for text in dict.fromkeys(missing)]
    return (
        f"{bank.path}: {len(quoted)} texts are not encoded: {shortened(quoted, 3)}; "
        f"python -m extract --dataset DATASET --modality text --bank {bank.path}"
    )
