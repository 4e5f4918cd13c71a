"""Captions that were generated or imported: kept beside those of a dataset's listing, under their own source.

A source belongs either to the listing, whose captions are replaced when it is read again, or to what is done
here: table ``captioned`` has a row for each clip that got captions of such a source. A replaced media file
makes its clip's generated captions missing again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from store.catalog import Catalog
from store.commit import FAILURE_SCHEMA, FeatureSet, commit_failures
from store.errors import FrameBankError, UnknownNameError
from store.register import LISTED, insert_texts, text_table
from store.tables import TEXT, RegisterError, text_id

if TYPE_CHECKING:
    import duckdb

_MISSING = """
SELECT m.clip_id, m.path, m.reader, m.options::VARCHAR AS options,
    coalesce(m.start_seconds, a.start_seconds) AS start_seconds,
    coalesce(m.end_seconds, a.end_seconds) AS end_seconds, m.media_key
FROM (
    SELECT clip_id, start_seconds, end_seconds FROM (SELECT * FROM clips WHERE dataset = $dataset)
    WHERE {where}
) a
JOIN media m ON m.dataset = $dataset AND m.modality = $modality AND m.clip_id = a.clip_id
LEFT JOIN captioned k ON k.dataset = $dataset AND k.clip_id = m.clip_id AND k.source = $source
LEFT JOIN failures x ON x.dataset = $dataset AND x.modality = $modality AND x.feature_set = $source
    AND x.clip_id = m.clip_id
WHERE k.clip_id IS NULL OR k.media_key IS DISTINCT FROM m.media_key
ORDER BY x.clip_id IS NOT NULL, m.clip_id
"""
_TEXTS = """
SELECT clip_id, list(text ORDER BY text) AS text FROM captions JOIN texts USING (text_id)
WHERE dataset = $dataset AND source = $source GROUP BY clip_id ORDER BY clip_id
"""
_REPLACE = (
    "DELETE FROM captions WHERE dataset = $dataset AND source = $source"
    " AND clip_id IN (SELECT clip_id FROM given_clips)",
    "DELETE FROM captioned WHERE dataset = $dataset AND source = $source"
    " AND clip_id IN (SELECT clip_id FROM given_clips)",
    "INSERT INTO captions BY NAME SELECT DISTINCT $dataset AS dataset, clip_id, text_id, $source AS source"
    " FROM given_texts",
    "INSERT INTO captioned BY NAME SELECT $dataset AS dataset, clip_id, $source AS source,"
    " $modality AS modality, media_key FROM given_clips",
)


@dataclass(frozen=True)
class Captioned:
    """One clip's captions.

    Attributes:
        clip_id: Which.
        texts: At least one; equal ones count once.
        media_key: Of the file that they describe; None if that is not known.
    """

    clip_id: str
    texts: Sequence[str]
    media_key: str | None = None


def missing_captions(
    catalog: Catalog, dataset: str, modality: str, source: str, where: str | None = None
) -> pa.Table:
    """The clips that lack captions of a source, with how to read their media; those that failed come last.

    Args:
        catalog: The bank's.
        dataset: Its name.
        modality: Which of the clips' media would be described.
        source: Of the captions.
        where: SQL condition over the columns of ``clips``.

    Returns:
        clip_id, path, reader, options (JSON), start_seconds, end_seconds, media_key.

    Raises:
        QueryError: If ``where`` is no SQL.
    """
    sql = _MISSING.replace("{where}", f"({where or 'true'})")
    return catalog.read(sql, {"dataset": dataset, "modality": modality, "source": source})


def commit_captions(
    catalog: Catalog,
    owner: FeatureSet,
    done: Sequence[Captioned],
    failed: pa.Table,
    timeout_seconds: float | None = None,
) -> None:
    """Store generated captions and failures, in one transaction; the source is ``owner.name``.

    Args:
        catalog: The bank's.
        owner: The dataset, the modality described, and everything that decides the texts.
        done: Captions; they replace those that the clips had of this source.
        failed: Columns of ``store.commit.FAILURE_SCHEMA``.
        timeout_seconds: How long to wait for other processes; the catalog's own if None.

    Raises:
        CatalogBusyError: If another process holds the catalog for longer.
    """
    with catalog.transaction(timeout_seconds) as connection:
        _insert(connection, owner.dataset, owner.name, done, owner.modality)
        connection.execute(
            "DELETE FROM failures WHERE dataset = ? AND modality = ? AND feature_set = ?"
            " AND list_contains(?::VARCHAR[], clip_id)",
            [owner.dataset, owner.modality, owner.name, [one.clip_id for one in done]],
        )
        commit_failures(connection, owner, failed.select(FAILURE_SCHEMA.names))


def add_captions(catalog: Catalog, dataset: str, source: str, captions: Sequence[Captioned]) -> None:
    """Store captions that others made; they replace those that the clips had of this source.

    Raises:
        RegisterError: If the source is the listing's.
    """
    listed = catalog.read(
        f"SELECT clip_id FROM captions WHERE dataset = $dataset AND source = $source AND {LISTED} LIMIT 1",
        {"dataset": dataset, "source": source},
    )
    if listed.num_rows:
        raise RegisterError(
            f"captions: source {source!r} is that of {dataset}'s own captions; choose another --source"
        )
    with catalog.transaction() as connection:
        _insert(connection, dataset, source, captions, TEXT)


def caption_sources(catalog: Catalog, dataset: str) -> pa.Table:
    """source, clips and texts of the dataset's captions, whoever brought them."""
    return catalog.read(
        "SELECT source, count(DISTINCT clip_id) AS clips, count(*) AS texts FROM captions WHERE dataset = ?"
        " GROUP BY source ORDER BY source",
        [dataset],
    )


def caption_texts(catalog: Catalog, dataset: str, source: str | None = None) -> pa.Table:
    """clip_id and its texts (a list, sorted) of one source; the only one if None.

    Raises:
        UnknownNameError: If the dataset has no such captions.
        FrameBankError: If it has several sources and none is named.
    """
    known = [str(name) for name in caption_sources(catalog, dataset)["source"].to_pylist()]
    if source is None and len(known) > 1:
        raise FrameBankError(
            f"captions: {dataset} has several sources; name one by --source: {', '.join(known)}"
        )
    source = known[0] if source is None and known else source
    if source not in known:
        raise UnknownNameError(f"captions of {dataset}", "source", str(source), known)
    return catalog.read(_TEXTS, {"dataset": dataset, "source": source})


def _insert(
    connection: "duckdb.DuckDBPyConnection",
    dataset: str,
    source: str,
    captions: Sequence[Captioned],
    modality: str,
) -> None:
    if not captions:
        return
    pairs = [(one.clip_id, text) for one in captions for text in one.texts]
    clips, keys = zip(*((one.clip_id, one.media_key) for one in captions), strict=True)
    named = pa.table({"clip_id": pa.array(clips, pa.string()), "media_key": pa.array(keys, pa.string())})
    ids = [text_id(text) for _, text in pairs]
    insert_texts(connection, text_table([text for _, text in pairs]))
    connection.register("given_clips", named)
    connection.register("given_texts", pa.table({"clip_id": [clip for clip, _ in pairs], "text_id": ids}))
    values = {"dataset": dataset, "source": source}
    for statement in _REPLACE:
        connection.execute(statement, values | ({"modality": modality} if "$modality" in statement else {}))
    connection.unregister("given_clips")
    connection.unregister("given_texts")
