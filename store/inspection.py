"""The full check of a bank: segments against their checksums, and the catalog against the segments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.check import inspect_segment
from store.commit import retire_empty
from store.errors import UnknownNameError
from store.layout import SegmentError
from store.manifest import read_manifest

if TYPE_CHECKING:
    from store.bank import Bank

SEGMENTS = """
SELECT s.dataset, s.modality, s.name AS feature_set, g.set_id, g.field, g.segment_id, g.location, g.bytes
FROM segments g JOIN feature_sets s USING (set_id)
WHERE g.state = 'live' AND s.dataset = coalesce(?, s.dataset) ORDER BY ALL
"""
ROWS = (
    "SELECT item_id, view, first_frame, frames FROM features WHERE set_id = ? AND segment_id = ? ORDER BY ALL"
)


@dataclass(frozen=True)
class Damage:
    """One row of ``features`` that cannot be trusted."""

    dataset: str
    modality: str
    feature_set: str
    field: str
    item_id: str
    view: int
    problem: str
    set_id: int
    segment_id: str


@dataclass
class Report:
    """What ``inspect_bank`` found.

    Attributes:
        segments: How many were read.
        nbytes: Their size.
        damage: The rows that cannot be trusted.
        messages: All problems, those that concern no row of the catalog too.
    """

    segments: int = 0
    nbytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def inspect_bank(bank: "Bank", dataset: str | None = None) -> Report:
    """Check every committed segment and every row that points into it.

    Raises:
        UnknownNameError: If the bank has no features of ``dataset``.
    """
    report = Report()
    segments = bank.sql(SEGMENTS, [dataset]).to_pylist()
    if dataset is not None and not segments:
        known = bank.sql("SELECT DISTINCT dataset FROM feature_sets ORDER BY 1")["dataset"].to_pylist()
        raise UnknownNameError(str(bank.path), "dataset with features", dataset, known)
    for segment in segments:
        report.segments += 1
        report.nbytes += segment["bytes"]
        rows = bank.sql(ROWS, [segment["set_id"], segment["segment_id"]]).to_pylist()
        _inspect(bank, segment, rows, report)
    return report


def _inspect(bank: "Bank", segment: dict[str, Any], rows: Sequence[dict[str, Any]], report: Report) -> None:
    path = bank.path / segment["location"]
    bad: dict[tuple[str, int], str] = {}
    for problem in inspect_segment(path):
        report.messages.append(problem.message)
        keys = [(row["item_id"], row["view"]) for row in rows] if problem.items is None else problem.items
        bad |= {key: problem.message for key in keys}
    try:
        manifest, _ = read_manifest(path)
    except SegmentError:
        manifest = None  # reported by inspect_segment, for all rows
    if manifest is not None:
        bad |= _misplaced(path.name, rows, manifest, report)
    names = {
        name: segment[name]
        for name in ("dataset", "modality", "feature_set", "field", "set_id", "segment_id")
    }
    known = {(row["item_id"], row["view"]) for row in rows}
    for (item, view), message in sorted(bad.items()):
        if (item, view) in known:
            report.damage.append(Damage(**names, item_id=item, view=view, problem=message))


def _misplaced(
    segment_id: str, rows: Sequence[dict[str, Any]], manifest: pa.Table, report: Report
) -> dict[tuple[str, int], str]:
    """Rows of the catalog that say something else than the segment's own manifest."""
    columns = (manifest[name].to_pylist() for name in ("item_id", "view", "first_frame", "frames"))
    places = {(item, view): (first, count) for item, view, first, count in zip(*columns, strict=True)}
    bad = {}
    for row in rows:
        key, place = (row["item_id"], row["view"]), (row["first_frame"], row["frames"])
        if places.get(key) != place:
            says = f"catalog says frames {place}, manifest {places.get(key, 'nothing')}"
            bad[key] = f"{segment_id}: {row['item_id']}: {says}; `python -m store reindex` mends it"
            report.messages.append(bad[key])
    return bad


def damage_table(report: Report) -> pa.Table:
    """The damaged rows for printing: dataset, modality, feature_set, field, clip, view, segment."""
    names = ("dataset", "modality", "feature_set", "field", "item_id", "view", "segment_id")
    return pa.table([[getattr(one, name) for one in report.damage] for name in names], names=list(names))


def forget_damage(bank: "Bank", report: Report) -> int:
    """Drop the damaged rows from the catalog; their clips are missing then. The number of rows."""
    rows = pa.table(
        {
            "set_id": pa.array([one.set_id for one in report.damage], pa.int64()),
            "segment_id": [one.segment_id for one in report.damage],
            "item_id": [one.item_id for one in report.damage],
            "view": [one.view for one in report.damage],
        }
    )
    with bank.catalog.transaction() as connection:
        connection.register("damaged", rows)
        deleted = connection.execute(
            "DELETE FROM features USING damaged d WHERE features.set_id = d.set_id"
            " AND features.segment_id = d.segment_id AND features.item_id = d.item_id"
            " AND features.view = d.view"
        ).fetchall()[0][0]
        connection.unregister("damaged")
        for set_id in {one.set_id for one in report.damage}:
            retire_empty(connection, set_id)
    return int(deleted)
