"""``python -m store sql``: any query over the catalog, read-only."""

import sys
from typing import Literal

Format = Literal["table", "csv", "json", "parquet"]


def sql(query: str, bank: str = "bank", format: Format = "table") -> None:
    """Run a DuckDB query over the catalog and print the result.

    Views made for this: ``clip_features`` (a row per stored feature with its clip's labels), ``coverage``
    (per modality and feature set), ``clip_modalities`` (what each clip has), ``leaderboard`` (runs).

    Args:
        query: For example "SELECT subject, camera, count(*) FROM clips GROUP BY ALL ORDER BY ALL".
        bank: The bank's folder.
        format: table, csv, json (one object a line) or parquet (redirect stdout to a file).
    """
    from store.bank import Bank
    from store.text_table import formatted

    result = Bank.open(bank).sql(query)
    if format == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(result, sys.stdout.buffer)
    else:
        print(formatted(result, format))
