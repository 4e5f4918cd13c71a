"""What is missing: the (item, view, field) rows that a feature set lacks, with how to read their media."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from store.catalog import fetch
from store.commit import FeatureSet
from store.errors import FrameBankError, UnknownNameError
from store.spec import AUTO, FeatureSpec, resolved_spec
from store.tables import TEXTS

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from store.catalog import Catalog

MISSING_CLIPS = """
WITH asked AS (
    SELECT clip_id, start_seconds, end_seconds FROM (SELECT * FROM clips WHERE dataset = $dataset) c
    WHERE {where}
), wanted AS (
    SELECT m.clip_id AS item_id, v.view, f.field, m.path, m.reader, m.options::VARCHAR AS options,
        coalesce(m.start_seconds, a.start_seconds) AS start_seconds,
        coalesce(m.end_seconds, a.end_seconds) AS end_seconds,
        m.frames, m.fps, m.duration_seconds, {key_and_files}
    FROM media m JOIN asked a USING (clip_id) {beside}
    CROSS JOIN (SELECT unnest(range($views))::INTEGER AS view) v
    CROSS JOIN (SELECT unnest($fields::VARCHAR[]) AS field) f
    WHERE m.dataset = $dataset AND m.modality = $parts[1]
)
SELECT w.* FROM wanted w
LEFT JOIN features h ON h.set_id = $set AND h.item_id = w.item_id AND h.view = w.view AND h.field = w.field
LEFT JOIN (
    SELECT clip_id, media_key FROM failures
    WHERE dataset = $dataset AND modality = $modality AND feature_set = $name
) x ON x.clip_id = w.item_id AND x.media_key IS NOT DISTINCT FROM w.media_key
WHERE (h.item_id IS NULL OR coalesce(h.media_key <> w.media_key, false))
    AND ($retry OR x.clip_id IS NULL)
ORDER BY w.item_id, w.view, w.field
"""

# The further files of a modality like `rgb+depth`, for the clips that have all of them. The key covers each
# file, as in the catalog's view `sources`.
BESIDE = """JOIN (
    SELECT m.clip_id, md5(string_agg(m.media_key, '|' ORDER BY m.modality)) AS joint_key,
        list({
            modality: m.modality, path: m.path, reader: m.reader, options: m.options::VARCHAR,
            start_seconds: coalesce(m.start_seconds, c.start_seconds),
            end_seconds: coalesce(m.end_seconds, c.end_seconds)
        } ORDER BY list_position($parts, m.modality)) AS files
    FROM media m JOIN clips c USING (dataset, clip_id)
    WHERE dataset = $dataset AND list_contains($parts, m.modality)
    GROUP BY m.clip_id HAVING count(*) = len($parts)
) k USING (clip_id)"""

MISSING_TEXTS = """
WITH wanted AS (
    SELECT t.text_id AS item_id, 0 AS view, f.field, t.text
    FROM (SELECT * FROM texts WHERE {where}) t CROSS JOIN (SELECT unnest($fields::VARCHAR[]) AS field) f
)
SELECT w.* FROM wanted w
LEFT JOIN features h ON h.set_id = $set AND h.item_id = w.item_id AND h.view = 0 AND h.field = w.field
LEFT JOIN failures x ON x.dataset = $dataset AND x.modality = $modality AND x.feature_set = $name
    AND x.clip_id = w.item_id
WHERE h.item_id IS NULL AND ($retry OR x.clip_id IS NULL)
ORDER BY w.item_id, w.field
"""


class PlanError(FrameBankError, ValueError):
    """A plan was asked for that makes no sense."""


def missing(
    catalog: "Catalog",
    owner: FeatureSet,
    fields: Sequence[str],
    views: int = 1,
    where: str | None = None,
    retry_failed: bool = True,
) -> "pa.Table":
    """The rows that ``owner`` lacks; see ``Bank.plan``."""
    resolved_spec(owner.spec)
    if views < 1 or not fields:
        raise PlanError(f"plan: {views} views of fields {list(fields)}; at least one of each is needed")
    texts = owner.dataset == TEXTS
    if not texts:
        known = catalog.read("SELECT name FROM datasets ORDER BY name")["name"].to_pylist()
        if owner.dataset not in known:
            raise UnknownNameError(str(catalog.path.parent), "dataset", owner.dataset, known)
    parts = owner.modality.split("+")
    sql = MISSING_TEXTS if texts else _missing_clips(several=len(parts) > 1)
    sql = sql.replace("{where}", f"({where or 'true'})")
    params: dict[str, Any] = {
        "dataset": owner.dataset,
        "modality": owner.modality,
        "name": owner.name,
        "set": owner.set_id,
        "fields": list(fields),
        "retry": retry_failed,
    }
    return catalog.read(sql, params if texts else params | {"views": views, "parts": parts})


def _missing_clips(several: bool) -> str:
    chosen = "k.joint_key AS media_key, k.files[2:] AS beside" if several else "m.media_key"
    return MISSING_CLIPS.replace("{key_and_files}", chosen).replace("{beside}", BESIDE if several else "")


def resolve_precision(
    catalog: "Catalog", dataset: str, modality: str, spec: FeatureSpec, default: str
) -> FeatureSpec:
    """Settle ``reading["precision"] == "auto"``; see ``Bank.resolve_precision``."""
    if spec.precision != AUTO:
        return spec
    with catalog.reading() as connection:
        siblings = _specs(connection, dataset, modality, spec.encoder)
    equal = {other.precision for other in siblings if other.with_precision(AUTO) == spec and other.precision}
    return spec.with_precision(equal.pop() if len(equal) == 1 else default)


def _specs(
    connection: "duckdb.DuckDBPyConnection", dataset: str, modality: str, encoder: str
) -> list[FeatureSpec]:
    sql = """
        SELECT spec::VARCHAR AS spec FROM feature_sets
        WHERE dataset = $dataset AND modality = $modality AND encoder = $encoder
    """
    rows = fetch(connection, sql, {"dataset": dataset, "modality": modality, "encoder": encoder})
    return [FeatureSpec.from_json(text) for text in rows["spec"].to_pylist()]
