"""Making features visible: the rows of finished segments into the catalog, in one short transaction.

A row's ``origin`` is the id of the segment it was first written to; ids sort by time, and merging keeps the
origin. So which of two rows of one (item, view, field) is newer can be told from the segments alone: adopting
what a killed run left, or rebuilding the catalog, never brings back an older row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.errors import FrameBankError
from store.spec import FeatureSpec, FieldSpec, canonical_json
from store.tables import set_id

if TYPE_CHECKING:
    import duckdb

LIVE, REPLACED = "live", "replaced"
FAILURE_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("stage", pa.string()), ("error", pa.string()), ("media_key", pa.string())]
)


class FieldMismatchError(FrameBankError, ValueError):
    """A field of a feature set is to be written with another shape or dtype than it has."""


@dataclass(frozen=True)
class FeatureSet:
    """One feature set of one dataset and modality."""

    dataset: str
    modality: str
    spec: FeatureSpec

    @property
    def name(self) -> str:
        """``<encoder>@<fingerprint>``."""
        return self.spec.name

    @property
    def set_id(self) -> int:
        """Its key in the catalog."""
        return set_id(self.dataset, self.modality, self.name)

    def attributes(self) -> dict[str, Any]:
        """What ``zarr.json`` and the manifest say of it."""
        return {"dataset": self.dataset, "modality": self.modality, "spec": self.spec.as_json()}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> "FeatureSet":
        """Read back what a segment says of itself."""
        return cls(attributes["dataset"], attributes["modality"], FeatureSpec.from_json(attributes["spec"]))


@dataclass(frozen=True)
class Finished:
    """A finished segment whose rows are to be committed.

    Attributes:
        segment_id: Its folder's name.
        location: Its folder, relative to the bank.
        field: Shape and dtype.
        frames: Rows of the array.
        nbytes: Size of its file.
        manifest: Columns of ``store.manifest.SCHEMA``.
    """

    segment_id: str
    location: str
    field: FieldSpec
    frames: int
    nbytes: int
    manifest: pa.Table

    def rows(self) -> pa.Table:
        """The rows for ``features``, without what the manifest alone needs."""
        rows = self.manifest.select(["item_id", "view", "first_frame", "frames", "media_key", "origin"])
        constant = {"segment_id": self.segment_id, "field": self.field.name}
        for name, value in constant.items():
            rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))
        return rows


def commit_features(
    connection: "duckdb.DuckDBPyConnection", owner: FeatureSet, finished: Sequence[Finished], newest: bool
) -> list[str]:
    """Insert the rows of finished segments of one feature set.

    Args:
        connection: Inside a transaction.
        owner: The feature set.
        finished: Segments that the catalog does not know yet.
        newest: These rows replace whatever there is (a running writer); else only older rows are replaced.

    Returns:
        Ids of the segments that got rows; the others hold nothing that is wanted.

    Raises:
        FieldMismatchError: If a field exists with another shape or dtype.
    """
    if not finished:
        return []
    _ensure_set(connection, owner)
    for one in conflicting(connection, owner, finished):
        stored = field_shapes(connection, owner).get(one.field.name, finished[0].field)
        require_shape(owner, stored, one.field)
    rows = pa.concat_tables(one.rows() for one in finished)
    connection.register("incoming", rows)
    connection.execute(
        _FRESH, {"set": owner.set_id, "dataset": owner.dataset, "modality": owner.modality, "newest": newest}
    )
    connection.unregister("incoming")
    deleted = connection.execute(_DELETE_OLD, [owner.set_id]).fetchall()[0][0]
    connection.execute("INSERT INTO features BY NAME SELECT * FROM fresh")
    connection.execute(_DELETE_FAILURES, [owner.dataset, owner.modality, owner.name])
    kept = [row[0] for row in connection.execute("SELECT DISTINCT segment_id FROM fresh").fetchall()]
    connection.execute("DROP TABLE fresh")
    insert_segments(connection, owner, [one for one in finished if one.segment_id in set(kept)])
    if deleted:
        retire_empty(connection, owner.set_id)
    return kept


# Of several incoming rows of one (item, view, field) the newest counts; of equal ones, a merge's copies, the
# one in the later segment. A row whose media is not known takes that of the catalog.
_FRESH = """
CREATE TEMP TABLE fresh AS
SELECT $set::BIGINT AS set_id, i.segment_id, i.field, i.item_id, i.view, i.first_frame, i.frames,
    coalesce(i.media_key, m.media_key) AS media_key, coalesce(i.origin, i.segment_id) AS origin
FROM (
    SELECT * FROM incoming QUALIFY row_number() OVER (
        PARTITION BY field, item_id, view ORDER BY coalesce(origin, segment_id) DESC, segment_id DESC) = 1
) i
LEFT JOIN media m ON m.dataset = $dataset AND m.modality = $modality AND m.clip_id = i.item_id
LEFT JOIN features f
    ON f.set_id = $set AND f.field = i.field AND f.item_id = i.item_id AND f.view = i.view
WHERE f.item_id IS NULL OR $newest OR coalesce(i.origin, i.segment_id) > f.origin
"""
_DELETE_OLD = """
DELETE FROM features USING fresh
WHERE features.set_id = ? AND features.field = fresh.field AND features.item_id = fresh.item_id
    AND features.view = fresh.view
"""
_DELETE_FAILURES = """
DELETE FROM failures WHERE dataset = ? AND modality = ? AND feature_set = ?
    AND clip_id IN (SELECT item_id FROM fresh)
"""


def insert_segments(
    connection: "duckdb.DuckDBPyConnection", owner: FeatureSet, finished: Sequence[Finished]
) -> None:
    """Insert the rows of ``segments``."""
    if not finished:
        return
    fields = [one.field for one in finished]
    table = pa.table(
        {
            "segment_id": [one.segment_id for one in finished],
            "set_id": pa.array([owner.set_id] * len(finished), pa.int64()),
            "field": [field.name for field in fields],
            "tokens": [field.tokens for field in fields],
            "dim": [field.dim for field in fields],
            "dtype": [field.dtype for field in fields],
            "frames": [one.frames for one in finished],
            "bytes": [one.nbytes for one in finished],
            "location": [one.location for one in finished],
            "state": [LIVE] * len(finished),
        }
    )
    connection.register("incoming", table)
    connection.execute("INSERT INTO segments BY NAME SELECT *, now() AS committed_at FROM incoming")
    connection.unregister("incoming")


def retire_empty(connection: "duckdb.DuckDBPyConnection", set_id: int) -> None:
    """Mark the segments of a set that hold no row any more as replaced: ``gc`` removes them."""
    connection.execute(
        "UPDATE segments SET state = ? WHERE set_id = ? AND state = ? AND segment_id NOT IN"
        " (SELECT segment_id FROM features WHERE set_id = ?)",
        [REPLACED, set_id, LIVE, set_id],
    )


def commit_failures(connection: "duckdb.DuckDBPyConnection", owner: FeatureSet, failures: pa.Table) -> None:
    """Add failures (``FAILURE_SCHEMA``, a clip once); a clip that failed before counts one attempt more."""
    if not failures.num_rows:
        return
    connection.register("incoming", failures)
    key = {"dataset": owner.dataset, "modality": owner.modality, "feature_set": owner.name}
    connection.execute(_NEW_FAILURES, key)
    connection.unregister("incoming")
    connection.execute(
        "DELETE FROM failures WHERE dataset = $dataset AND modality = $modality"
        " AND feature_set = $feature_set AND clip_id IN (SELECT clip_id FROM failed_now)",
        key,
    )
    connection.execute(
        "INSERT INTO failures BY NAME SELECT *, $encoder AS encoder, now() AS last_at FROM failed_now",
        {"encoder": owner.spec.encoder},
    )
    connection.execute("DROP TABLE failed_now")


_NEW_FAILURES = """
CREATE TEMP TABLE failed_now AS
SELECT $dataset AS dataset, i.clip_id, $modality AS modality, $feature_set AS feature_set, i.stage, i.error,
    coalesce(f.attempts, 0) + 1 AS attempts, coalesce(i.media_key, m.media_key) AS media_key
FROM incoming i
LEFT JOIN failures f ON f.dataset = $dataset AND f.modality = $modality AND f.feature_set = $feature_set
    AND f.clip_id = i.clip_id
LEFT JOIN media m ON m.dataset = $dataset AND m.modality = $modality AND m.clip_id = i.clip_id
"""


def _ensure_set(connection: "duckdb.DuckDBPyConnection", owner: FeatureSet) -> None:
    known = connection.execute("SELECT 1 FROM feature_sets WHERE set_id = ?", [owner.set_id]).fetchall()
    if not known:
        spec = owner.spec
        connection.execute(
            "INSERT INTO feature_sets VALUES (?, ?, ?, ?, ?, ?, ?, ?, now())",
            [owner.set_id, owner.dataset, owner.modality, spec.name, spec.encoder, spec.fingerprint,
             spec.space_digest, canonical_json(spec.as_json())],
        )  # fmt: skip


def conflicting(
    connection: "duckdb.DuckDBPyConnection", owner: FeatureSet, finished: Sequence[Finished]
) -> list[Finished]:
    """Those whose field has another shape or dtype than in the catalog, or than in the first of them."""
    shapes = field_shapes(connection, owner)
    return [one for one in finished if shapes.setdefault(one.field.name, one.field) != one.field]


def field_shapes(connection: "duckdb.DuckDBPyConnection", owner: FeatureSet) -> dict[str, FieldSpec]:
    """The fields of a feature set as they are stored."""
    rows = connection.execute(
        "SELECT field, any_value(tokens), any_value(dim), any_value(dtype) FROM segments"
        " WHERE set_id = ? AND state = ? GROUP BY field",
        [owner.set_id, LIVE],
    ).fetchall()
    return {row[0]: FieldSpec(*row) for row in rows}


def require_shape(owner: FeatureSet, stored: FieldSpec | None, field: FieldSpec) -> None:
    """Compare a field to be written with the one that is stored, if any.

    Raises:
        FieldMismatchError: If they differ.
    """
    if stored is not None and stored != field:
        has, new = (f"{one.tokens} x {one.dim} {one.dtype}" for one in (stored, field))
        raise FieldMismatchError(
            f"{owner.name}: field {field.name!r} is stored as {has}, new features are {new};"
            " give the encoder's `space` what makes the difference"
        )
