"""``python -m store info``: what a bank holds."""

import sys

COUNTS = """
SELECT d.name AS dataset, d.adapter, d.root,
    (SELECT count(*) FROM clips c WHERE c.dataset = d.name) AS clips,
    (SELECT count(DISTINCT label) FROM clips c WHERE c.dataset = d.name) AS classes,
    (SELECT string_agg(DISTINCT protocol, ', ' ORDER BY protocol) FROM splits s WHERE s.dataset = d.name)
        AS protocols,
    (SELECT count(*) FROM captions t WHERE t.dataset = d.name) AS captions
FROM datasets d ORDER BY d.name
"""
COVERAGE = """
SELECT dataset, modality, feature_set, field, clips, encoded, percent, failed, tokens, dim,
    round(bytes / 1e6, 2) AS megabytes
FROM coverage ORDER BY ALL
"""
TOTALS = """
SELECT (SELECT count(*) FROM segments WHERE state = 'live') AS segments,
    (SELECT coalesce(sum(bytes), 0) FROM segments WHERE state = 'live') AS bytes,
    (SELECT count(*) FROM texts) AS texts, (SELECT count(*) FROM failures) AS failures,
    (SELECT count(*) FROM runs) AS runs
"""


def info(bank: str = "bank") -> None:
    """Print the bank's datasets, what of each modality is encoded, and its size.

    Args:
        bank: The bank's folder.
    """
    from store.bank import Bank
    from store.text_table import byte_text, formatted

    opened = Bank.open(bank)
    totals = opened.sql(TOTALS).to_pylist()[0]
    print(
        f"{opened.path}: {totals['segments']} segments, {byte_text(totals['bytes'])}, "
        f"{totals['texts']} texts, {totals['runs']} runs, {totals['failures']} failures\n"
    )
    datasets = opened.sql(COUNTS)
    if not datasets.num_rows:
        print("no dataset yet; `python -m extract --dataset NAME --root DIR` registers and encodes one")
        return
    print(formatted(datasets), formatted(opened.sql(COVERAGE)), sep="\n\n")
    if totals["failures"]:
        print('see `python -m store sql "SELECT * FROM failures"`', file=sys.stderr)
