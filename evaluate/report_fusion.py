"""The report's table of fusions: a line for every subset of modalities present, with its interval drawn."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluate.fusion import BESIDE
from evaluate.page import Cell, table
from evaluate.report_tables import Row, by_kind, share_cells, source_tags

PRESENT, ABSENT = "●", "○"
OVER = "over_"  # metrics of differences to a rival


def fusion_table(rows: Sequence[Row]) -> str:
    """Rows of fuse: which modalities are present, accuracy with its interval, and the lead over rivals."""
    found = [metrics for metrics in by_kind(rows) if "accuracy" in metrics]
    modalities = list(dict.fromkeys(name for one in found for name in _names(one["accuracy"])))
    rivals = list(dict.fromkeys(name for one in found for name in one if name.startswith(OVER)))
    head = [Cell(name) for name in modalities]
    head += [Cell("accuracy %", number=True), Cell("95 %", number=True), Cell("")]
    head += [Cell(f"over {name.removeprefix(OVER)}, points", number=True) for name in rivals]
    head += [Cell(name, number=True) for name in ("balanced %", "chance %", "n", "lack some")]
    groups: dict[str, list[list[Cell] | str]] = {}
    for metrics in sorted(found, key=lambda one: len(_names(one["accuracy"]))):
        detail = metrics["accuracy"]["detail"]
        heading = f"{escape(detail['fusion'])} {source_tags(detail)}"
        groups.setdefault(heading, [heading]).append(_line(metrics, modalities, rivals))
    return table(head, [line for lines in groups.values() for line in lines])


def _line(metrics: Mapping[str, Row], modalities: Sequence[str], rivals: Sequence[str]) -> list[Cell]:
    main, present = metrics["accuracy"], _names(metrics["accuracy"])
    balanced = metrics.get("balanced_accuracy")
    return [
        *(Cell(PRESENT if name in present else ABSENT) for name in modalities),
        *share_cells(main),
        *(Cell(_lead(metrics.get(name)), number=True) for name in rivals),
        Cell(f"{balanced['value'] * 100:.1f}" if balanced else "", number=True),
        Cell(f"{main['detail']['chance'] * 100:.1f}", number=True),
        Cell(f"{main['n']:,}", number=True),
        Cell(f"{main['detail']['incomplete']:,}", number=True),
    ]


def _names(row: Mapping[str, Any]) -> list[str]:
    names: list[str] = row["detail"]["modality"].split(BESIDE)
    return names


def _lead(row: Row | None) -> str:
    """``+1.4 [-2.8, 6.0]`` percentage points."""
    if row is None:
        return ""
    return f"{row['value'] * 100:+.1f} [{row['low'] * 100:.1f}, {row['high'] * 100:.1f}]"
