"""The report's tables of methods compared: a line a task, a column a method; then differences to rivals."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from evaluate.page import Cell, table
from evaluate.report_tables import Row


def comparison_table(rows: Sequence[Row]) -> str:
    """Metrics with a task and a method each, one table for each ``table`` they name.

    Scores (``.../score``) come first, under a heading a part (``half``); then, for each rival that
    differences (``.../gain``, their ``rival``) are to, those of the last part, which is all parts together.
    """
    tables = dict.fromkeys(row["detail"].get("table", "") for row in rows)
    return "".join(_table([row for row in rows if row["detail"].get("table", "") == name]) for name in tables)


def _table(rows: Sequence[Row]) -> str:
    scores = [row for row in rows if row["name"].endswith("/score")] or list(rows)
    gains = [row for row in rows if row["name"].endswith("/gain")]
    methods = list(dict.fromkeys(row["detail"]["method"] for row in scores))
    head = [Cell("task"), *(Cell(f"{name} %", number=True) for name in methods)]
    head += [Cell("chance %", number=True), Cell("n", number=True)]
    parts = list(dict.fromkeys(row["detail"].get("half", "") for row in scores))
    lines: list[list[Cell] | str] = []
    for part in parts:
        lines += [escape(part)] if part else []
        lines += _lines([row for row in scores if row["detail"].get("half", "") == part], methods, _score)
    last = [row for row in gains if row["detail"].get("half", "") == parts[-1]]
    for rival in dict.fromkeys(row["detail"]["rival"] for row in last):
        lines.append(escape(f"points over the {rival}, {parts[-1]}"))
        lines += _lines([row for row in last if row["detail"]["rival"] == rival], methods, _gain)
    return table(head, lines)


def _lines(
    rows: Sequence[Row], methods: Sequence[str], cell: Callable[[Row, bool], Cell]
) -> list[list[Cell] | str]:
    """A line a task; the best of it is marked."""
    tasks: dict[str, dict[str, Row]] = {}
    for row in rows:
        tasks.setdefault(row["detail"]["task"], {})[row["detail"]["method"]] = row
    return [_line(task, found, methods, cell) for task, found in tasks.items()]


def _line(
    task: str, found: Mapping[str, Row], methods: Sequence[str], cell: Callable[[Row, bool], Cell]
) -> list[Cell]:
    best = max(row["value"] for row in found.values())
    cells = [
        cell(found[name], found[name]["value"] == best) if name in found else Cell(number=True)
        for name in methods
    ]
    first = next(iter(found.values()))
    chance = first["detail"].get("chance")
    ends = ["" if chance is None else f"{chance * 100:.1f}", "" if first["n"] is None else f"{first['n']:,}"]
    return [Cell(task), *cells, *(Cell(end, number=True) for end in ends)]


def _score(row: Row, best: bool) -> Cell:
    span = "" if row["low"] is None else f"[{row['low'] * 100:.1f}, {row['high'] * 100:.1f}]"
    return Cell(html=f"{row['value'] * 100:.1f} <small>{span}</small>", number=True, strong=best)


def _gain(row: Row, best: bool) -> Cell:
    """Strong where the interval leaves 0 out."""
    html = f"{row['value'] * 100:+.1f} <small>[{row['low'] * 100:.1f}, {row['high'] * 100:.1f}]</small>"
    return Cell(html=html, number=True, strong=row["low"] > 0 or row["high"] < 0)
