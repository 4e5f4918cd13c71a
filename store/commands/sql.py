"""``python -m store sql``: any query over the catalog, read-only."""

from store.text_table import Format


def sql(query: str, bank: str = "bank", format: Format = "table") -> None:
    """Run a DuckDB query over the catalog and print the result.

    Views made for this: ``clip_features`` (a row per stored feature with its clip's labels), ``coverage``
    (per modality and feature set), ``clip_modalities`` (what each clip has) and ``leaderboard`` (metrics of runs).

    Args:
        query: For example "SELECT subject, camera, count(*) FROM clips GROUP BY ALL ORDER BY ALL".
        bank: The bank's folder.
        format: table, csv or json (one object a line).
    """
    from store.bank import Bank
    from store.text_table import formatted

    print(formatted(Bank.open(bank).sql(query), format))
