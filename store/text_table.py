"""Arrow tables as aligned text, CSV or JSON lines: what the commands print on stdout."""

import csv
import datetime
import io
import json
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

from store.errors import FrameBankError

Format = Literal["table", "csv", "json"]
WIDEST_CELL = 60


def formatted(table: pa.Table, style: Format = "table") -> str:
    """A result as text.

    Args:
        table: Any query's result.
        style: ``table`` (aligned columns, long cells cut), ``csv``, or ``json`` (an object a line).

    Raises:
        FrameBankError: For another style.
    """
    if style == "table":
        return _aligned(table)
    if style == "csv":
        return _csv(table)
    if style == "json":
        return "\n".join(json.dumps(row, default=_json, ensure_ascii=False) for row in table.to_pylist())
    raise FrameBankError(f"format: {style!r}; accepted are: table, csv, json")


def _aligned(table: pa.Table) -> str:
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    numeric = [_is_numeric(kind) for kind in table.schema.types]
    widths = [
        max([len(name), *(len(row[column]) for row in rows)])
        for column, name in enumerate(table.column_names)
    ]

    def line(cells: list[str]) -> str:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(table.column_names), line(["-" * width for width in widths]), *map(line, rows)])


def _is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _json(value: Any) -> Any:
    """Decimals (DuckDB's sums of integers are some) as numbers, what JSON has no type for as text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list):
        return ", ".join(_cell(entry) for entry in value)
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 1] + "…"


def _csv(table: pa.Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(row.values() for row in table.to_pylist())
    return out.getvalue().rstrip("\n")


def byte_text(count: float) -> str:
    """``1234567`` -> ``1.2 MB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
