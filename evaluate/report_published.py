"""The report's table of published figures: each beside ours, with the difference if they are comparable."""

from collections.abc import Sequence
from html import escape

from evaluate.page import Cell, table
from evaluate.report_tables import Row, share_cells


def published_table(rows: Sequence[Row]) -> str:
    """Rows of reproduce: a line a figure, grouped by experiment."""
    head = [Cell("protocol"), Cell("modality"), Cell("metric"), Cell("published %", number=True)]
    head += [Cell("ours %", number=True), Cell("95 %", number=True), Cell("")]
    head += [Cell("difference, points", number=True), Cell("n", number=True), Cell("comparable")]
    groups: dict[str, list[list[Cell] | str]] = {}
    for row in rows:
        heading = escape(row["detail"]["experiment"])
        groups.setdefault(heading, [heading]).append(_line(row))
    return table(head, [line for lines in groups.values() for line in lines])


def _line(row: Row) -> list[Cell]:
    detail = row["detail"]
    return [
        Cell(detail["published_protocol"]),
        Cell(detail["modality"]),
        Cell(row["name"].rpartition("/")[2].replace("_", " ")),
        Cell(f"{detail['published'] * 100:.1f}", number=True),
        *share_cells(row),
        Cell(detail["difference"], number=True),
        Cell(f"{row['n']:,}", number=True),
        Cell(detail["comparable"]),
    ]
