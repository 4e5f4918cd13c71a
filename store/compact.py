"""Merging small or half-dead segments into large ones, and removing what was replaced when nobody reads it.

A merge writes a new segment and moves the rows in one transaction; rows that changed meanwhile stay where
they are. The old segments stay on disk, marked ``replaced``, until no reader can hold them: every reader
shares a lock on the field's folder before it looks the rows up, and removal needs that lock alone.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.commit import REPLACED, FeatureSet, Finished, insert_segments, retire_empty
from store.mapped import Segment
from store.places import field_directory
from store.readers import alone, share
from store.segment import ClosedSegment, SegmentWriter, new_segment_id
from store.spec import FeatureSpec, FieldSpec

if TYPE_CHECKING:
    from store.bank import Bank
    from store.catalog import Catalog

SMALL_SHARE = 0.5  # of the target size: smaller segments are worth merging
DEAD_SHARE = 0.2  # of a segment's frames without a row: worth rewriting

SEGMENTS = """
SELECT g.segment_id, g.set_id, g.field, g.tokens, g.dim, g.dtype, g.frames, g.bytes, g.location,
    s.dataset, s.modality, s.spec::VARCHAR AS spec, coalesce(f.used, 0) AS used
FROM segments g JOIN feature_sets s USING (set_id)
LEFT JOIN (SELECT segment_id, sum(frames)::BIGINT AS used FROM features GROUP BY ALL) f USING (segment_id)
WHERE g.state = 'live' ORDER BY g.set_id, g.field, g.segment_id
"""
ROWS = """
SELECT segment_id, item_id, view, first_frame, frames, media_key, origin FROM features
WHERE set_id = $set AND field = $field AND segment_id IN (SELECT segment_id FROM asked)
ORDER BY segment_id, first_frame
"""
MOVE = """
UPDATE features SET segment_id = $new, first_frame = moved.new_first
FROM moved WHERE features.set_id = $set AND features.field = $field AND features.item_id = moved.item_id
    AND features.view = moved.view AND features.segment_id = moved.segment_id
    AND features.first_frame = moved.first_frame
"""


def merge_small(bank: "Bank", owner: FeatureSet, segment_ids: Sequence[str], max_bytes: int) -> int:
    """Merge a run's own small segments; the number of segments that went into others."""
    wanted = set(segment_ids)
    rows = [row for row in bank.catalog.read(SEGMENTS).to_pylist() if row["segment_id"] in wanted]
    small = [row for row in rows if row["bytes"] < SMALL_SHARE * max_bytes]
    merged = sum(merge(bank, group) for group in _groups(small, max_bytes))
    if merged:
        remove_replaced(bank)
    return merged


def compact(bank: "Bank", max_bytes: int) -> int:
    """Merge the small segments of every field and rewrite those with many dead frames."""
    rows = bank.catalog.read(SEGMENTS).to_pylist()
    worth = [
        row
        for row in rows
        if row["bytes"] < SMALL_SHARE * max_bytes or row["used"] < (1 - DEAD_SHARE) * row["frames"]
    ]
    return sum(merge(bank, group) for group in _groups(worth, max_bytes))


def _groups(rows: Sequence[dict[str, Any]], max_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Consecutive segments of one field up to ``max_bytes`` together; single ones only if partly dead."""
    group: list[dict[str, Any]] = []
    for row in [*rows, None]:
        full = bool(group) and (
            row is None
            or (row["set_id"], row["field"]) != (group[0]["set_id"], group[0]["field"])
            or sum(one["bytes"] for one in group) + row["bytes"] > max_bytes
        )
        if full:
            if len(group) > 1 or group[0]["used"] < group[0]["frames"]:
                yield group
            group = []
        if row is not None:
            group.append(row)


def merge(bank: "Bank", group: Sequence[dict[str, Any]]) -> int:
    """Write the rows of ``group`` (rows of ``SEGMENTS``, one field) into one new segment.

    Returns:
        How many segments were replaced.

    Raises:
        SegmentError: If one of them is damaged; nothing is changed then.
    """
    first = group[0]
    owner = FeatureSet(first["dataset"], first["modality"], FeatureSpec.from_json(first["spec"]))
    field = FieldSpec(first["field"], first["tokens"], first["dim"], first["dtype"])
    asked = pa.table({"segment_id": [row["segment_id"] for row in group]})
    reading = share(field_directory(bank.path, owner.dataset, owner.modality, owner.name, field.name))
    try:
        params = {"set": owner.set_id, "field": field.name}
        rows = bank.catalog.read(ROWS, params, {"asked": asked})
        closed, moved = _rewritten(bank.path, owner, field, group, rows) if rows.num_rows else (None, None)
    finally:
        if reading is not None:
            reading.release()
    with bank.catalog.transaction() as connection:
        if closed is not None and moved is not None:
            finished = _finished(bank.path, field, closed, moved)
            connection.register("moved", moved)
            connection.execute(MOVE, {"new": closed.segment_id, "set": owner.set_id, "field": field.name})
            connection.unregister("moved")
            insert_segments(connection, owner, [finished])
        retire_empty(connection, owner.set_id)
    if closed is not None:
        closed.release()
    return len(group)


def _rewritten(
    bank: Path, owner: FeatureSet, field: FieldSpec, group: Sequence[dict[str, Any]], rows: pa.Table
) -> tuple[ClosedSegment, pa.Table]:
    """Copy the live rows, verified, into a new segment."""
    folder = field_directory(bank, owner.dataset, owner.modality, owner.name, field.name)
    writer = SegmentWriter(folder / new_segment_id(), field, owner.attributes())
    starts: list[int] = []
    times: list[list[float]] = []
    try:
        for row in group:
            segment = Segment.open(bank / row["location"])
            known = {
                (one["item_id"], one["view"]): one["times_seconds"] for one in segment.manifest().to_pylist()
            }
            for one in rows.filter(pa.compute.equal(rows["segment_id"], row["segment_id"])).to_pylist():
                values = segment.read(one["first_frame"], one["frames"])
                starts.append(writer.append(values))
                times.append(known[one["item_id"], one["view"]])
        moved = rows.append_column("new_first", pa.array(starts, pa.int64()))
        moved = moved.append_column("times_seconds", pa.array(times, pa.list_(pa.float32())))
        return writer.close(_manifest(moved)), moved
    except BaseException:
        writer.abort()
        raise


def _manifest(moved: pa.Table) -> pa.Table:
    return moved.drop_columns(["first_frame", "segment_id"]).rename_columns({"new_first": "first_frame"})


def _finished(bank: Path, field: FieldSpec, closed: ClosedSegment, moved: pa.Table) -> Finished:
    location = str(closed.path.relative_to(bank))
    return Finished(closed.segment_id, location, field, closed.frames, closed.nbytes, _manifest(moved))


def remove_replaced(bank: "Bank") -> list[str]:
    """Delete replaced segments that no reader can hold; their ids.

    Nobody who takes the readers' lock after us can have seen rows that point to them.
    """
    rows = bank.catalog.read(
        "SELECT segment_id, location FROM segments WHERE state = ?", [REPLACED]
    ).to_pylist()
    folders = sorted({(bank.path / row["location"]).parent for row in rows})
    removed: list[str] = []
    for folder in folders:
        mine = [row for row in rows if (bank.path / row["location"]).parent == folder]
        lease = alone(folder)
        if lease is None and folder.is_dir():
            continue  # someone reads this field; a later gc removes them
        for row in mine:
            shutil.rmtree(bank.path / row["location"], ignore_errors=True)
        removed += [row["segment_id"] for row in mine]
        if lease is not None:
            lease.release()
    _forget(bank.catalog, removed)
    return removed


def _forget(catalog: "Catalog", segment_ids: Sequence[str]) -> None:
    """Drop the rows of segments that are gone from disk: the folder first, so that none is adopted again."""
    if segment_ids:
        with catalog.transaction() as connection:
            connection.register("gone", pa.table({"segment_id": list(segment_ids)}))
            connection.execute(
                "DELETE FROM segments WHERE state = ? AND segment_id IN (SELECT segment_id FROM gone)",
                [REPLACED],
            )
            connection.unregister("gone")
