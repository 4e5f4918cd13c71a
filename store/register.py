"""Registering a dataset: clips, media, splits, captions and label texts into the catalog, changes only.

Registering again what is there writes nothing, so every extraction may start with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from store.catalog import Catalog, fetch
from store.spec import canonical_json
from store.tables import COLUMNS, RegisterError, conformed, shortened, text_id

if TYPE_CHECKING:
    import duckdb


class DuplicateClipError(RegisterError):
    """A clip id occurs twice in one dataset."""


class LabelError(RegisterError):
    """A clip's label is outside the dataset's class list."""


# What a feature was made from: the file's content as far as it was hashed, and how it is read. Not its path
# or modification time when there is a hash: a moved or copied collection need not be encoded again.
MEDIA_KEY = """
md5(concat_ws('|', coalesce(m.sample_hash, concat_ws(':', m.path, m.bytes, m.mtime)), coalesce(m.reader, ''),
    coalesce(m.options, ''), coalesce(m.start_seconds, c.start_seconds, -1),
    coalesce(m.end_seconds, c.end_seconds, -1)))
"""

# Captions that were generated or imported are not the listing's to replace.
LISTED = "coalesce(source, '') NOT IN (SELECT k.source FROM captioned k WHERE k.dataset = captions.dataset)"


@dataclass(frozen=True)
class _Sync:
    """Makes part of one catalog table equal to ``new``, touching only the keys whose rows differ.

    Attributes:
        table: Name in the catalog.
        key: Column by whose values rows are replaced.
        new: Rows, without the dataset column.
        scope: Values of ``key`` whose old rows count; those absent from ``new`` are deleted.
        among: SQL condition that the old rows fulfil; others are left alone.
    """

    table: str
    key: str
    new: pa.Table
    scope: pa.Table
    among: str = "true"

    @property
    def _names(self) -> str:
        return ", ".join(f'"{name}"' for name in self.new.column_names)

    @property
    def _old(self) -> str:
        """The same columns of the catalog in the same types."""
        schema = self.new.schema
        return ", ".join(
            f'"{name}"::{_sql_type(schema.field(name).type)} AS "{name}"' for name in schema.names
        )

    def digests(self, connection: "duckdb.DuckDBPyConnection", dataset: str) -> tuple[tuple, tuple]:
        """(rows, sum of their 64-bit hashes) in the catalog, and of ``new``: equal if nothing changed."""
        summed = f"SELECT count(*) AS rows, coalesce(sum(hash({self._names})), 0)::VARCHAR AS hashes"
        rows = f'SELECT {self._old} FROM "{self.table}" WHERE dataset = $dataset AND {self.among}'
        old = f"{summed} FROM ({rows})"
        had = fetch(connection, old, {"dataset": dataset}).to_pylist()[0]
        has = fetch(connection, f"{summed} FROM new", tables={"new": self.new}).to_pylist()[0]
        return tuple(had.values()), tuple(has.values())

    def changed(self, connection: "duckdb.DuckDBPyConnection", dataset: str) -> pa.Table:
        """The keys to replace, with whether the catalog had any rows of them."""
        sql = f"""
            WITH old AS (
                SELECT {self._old} FROM "{self.table}" WHERE dataset = $dataset
                AND {self.among} AND "{self.key}" IN (SELECT "{self.key}" FROM scope)
            ), differing AS (
                (SELECT {self._names} FROM new EXCEPT FROM old)
                UNION ALL (FROM old EXCEPT SELECT {self._names} FROM new)
            )
            SELECT DISTINCT "{self.key}" AS key, "{self.key}" IN (SELECT "{self.key}" FROM old) AS known
            FROM differing
        """
        return fetch(connection, sql, {"dataset": dataset}, {"new": self.new, "scope": self.scope})

    def apply(self, connection: "duckdb.DuckDBPyConnection", dataset: str, change: "_Change") -> None:
        """Replace the rows of the changed keys."""
        distinct = "" if self.table in ("clips", "media") else "DISTINCT"  # those were checked to be unique
        columns = f'"{self.table}" (dataset, {self._names})'
        insert = f"INSERT INTO {columns} SELECT {distinct} ?, {self._names} FROM new_rows"
        connection.register("new_rows", self.new)
        if change.keys is None:
            connection.execute(insert, [dataset])
        else:
            connection.register("changed_keys", change.keys)
            some = f'"{self.key}" IN (SELECT key FROM changed_keys)'
            old = f'"{self.table}" WHERE dataset = ? AND {self.among}'
            connection.execute(f"DELETE FROM {old} AND {some}", [dataset])
            connection.execute(f"{insert} WHERE {some}", [dataset])
            connection.unregister("changed_keys")
        connection.unregister("new_rows")


@dataclass(frozen=True)
class _Change:
    """How a table is to change.

    Attributes:
        new: Keys that the catalog lacks.
        known: Keys whose rows differ.
        keys: All of them, in a column ``key``; None if the catalog has nothing and all is inserted.
    """

    new: int = 0
    known: int = 0
    keys: pa.Table | None = None

    def __bool__(self) -> bool:
        return self.new + self.known > 0


def _change(connection: "duckdb.DuckDBPyConnection", dataset: str, sync: _Sync) -> _Change:
    had, has = sync.digests(connection, dataset)
    if had == has:
        return _Change()
    if had[0] == 0:
        return _Change(new=sync.new.num_rows)
    keys = sync.changed(connection, dataset)
    known = int(pc.sum(keys["known"]).as_py() or 0)
    return _Change(keys.num_rows - known, known, keys)


def register(
    catalog: Catalog,
    dataset: str,
    clips: pa.Table,
    media: pa.Table | None = None,
    splits: pa.Table | None = None,
    captions: pa.Table | None = None,
    label_texts: pa.Table | None = None,
    adapter: str | None = None,
    root: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Bring the catalog up to date with a dataset's listing; see ``Bank.register``."""
    clips = conformed(clips, "clips")
    tables = {
        name: conformed(table, name)
        for name, table in (
            ("media", media),
            ("splits", splits),
            ("captions", captions),
            ("label_texts", label_texts),
        )
        if table is not None
    }
    texts = _texts(tables)
    with catalog.reading() as connection:
        if "captions" in tables:
            _check_sources(connection, dataset, tables["captions"])
        syncs = _syncs(connection, clips, tables)
        changes = {sync.table: _change(connection, dataset, sync) for sync in syncs}
        new_texts = _unknown_texts(connection, texts)
        row = _dataset_row(connection, dataset, adapter, root, config)
    if any(changes.values()):
        _check(dataset, clips, tables)  # what equals the catalog was checked when it got there
    if row or new_texts.num_rows or any(changes.values()):
        with catalog.transaction() as connection:
            for sync in syncs:
                if changes[sync.table]:
                    sync.apply(connection, dataset, changes[sync.table])
            insert_texts(connection, new_texts)
            _write_dataset(connection, row)
    return _counts(clips, tables, changes, new_texts.num_rows)


def insert_texts(connection: "duckdb.DuckDBPyConnection", texts: pa.Table) -> None:
    """Add the rows of ``texts`` (text_id, text) that the catalog lacks."""
    if texts.num_rows:
        connection.register("new_texts", texts)
        connection.execute(
            "INSERT INTO texts SELECT text_id, text FROM new_texts ANTI JOIN texts USING (text_id)"
        )
        connection.unregister("new_texts")


def text_table(texts: list[str]) -> pa.Table:
    """Unique texts -> table of text_id, text."""
    unique = list(dict.fromkeys(texts))
    return pa.table(
        {"text_id": pa.array(map(text_id, unique), pa.string()), "text": pa.array(unique, pa.string())}
    )


def _check(dataset: str, clips: pa.Table, tables: Mapping[str, pa.Table]) -> None:
    ids = clips["clip_id"]
    if pc.count_distinct(ids).as_py() < len(ids):
        repeated = [entry["values"] for entry in pc.value_counts(ids).to_pylist() if entry["counts"] > 1]
        raise DuplicateClipError(
            f"dataset {dataset!r}: clip ids occur twice: {shortened(repeated)}; a clip id must be unique"
        )
    if pc.any(pc.equal(ids, "")).as_py():
        raise RegisterError(f"dataset {dataset!r}: an empty clip id; give every clip a name")
    for name in ("media", "splits", "captions"):
        if name in tables:
            _check_known(dataset, name, tables[name], ids)
    _check_labels(dataset, clips["label"], tables.get("label_texts"))
    if "splits" in tables:
        _check_splits(dataset, tables["splits"])
    if "media" in tables:
        counted = tables["media"].group_by(["clip_id", "modality"]).aggregate([([], "count_all")])
        twice = counted.filter(pc.greater(counted["count_all"], 1))["clip_id"].to_pylist()
        if twice:
            raise RegisterError(f"dataset {dataset!r}: several media of one modality for: {shortened(twice)}")


def _check_known(dataset: str, name: str, table: pa.Table, ids: pa.ChunkedArray) -> None:
    unknown = pc.unique(table["clip_id"].filter(pc.invert(pc.is_in(table["clip_id"], ids)))).to_pylist()
    if unknown:
        raise RegisterError(f"dataset {dataset!r}: {name} of clips that are not listed: {shortened(unknown)}")


def _check_labels(dataset: str, labels: pa.ChunkedArray, label_texts: pa.Table | None) -> None:
    used = pc.unique(labels.drop_null())
    classes = label_texts["label"] if label_texts is not None and label_texts.num_rows else None
    bad = sorted(
        label
        for label in used.to_pylist()
        if label < 0 or (classes is not None and not _contains(classes, label))
    )
    if bad:
        accepted = (
            f"{len(pc.unique(classes))} classes are listed" if classes is not None else "0, 1, ... or null"
        )
        raise LabelError(
            f"dataset {dataset!r}: labels {shortened(bad)} are outside the class list; {accepted}"
        )


def _contains(values: pa.ChunkedArray, value: int) -> bool:
    return bool(pc.any(pc.equal(values, value)).as_py())


def _check_splits(dataset: str, splits: pa.Table) -> None:
    if splits.group_by(["protocol", "clip_id"]).aggregate([]).num_rows == splits.num_rows:
        return
    distinct = splits.group_by(["protocol", "clip_id", "part"]).aggregate([])
    counted = distinct.group_by(["protocol", "clip_id"]).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted["count_all"], 1))
    if twice.num_rows:
        named = [f"{row['clip_id']} ({row['protocol']})" for row in twice.slice(0, 6).to_pylist()]
        raise RegisterError(
            f"dataset {dataset!r}: clips in several parts of one protocol: {shortened(named)}"
        )


def _texts(tables: Mapping[str, pa.Table]) -> pa.Table:
    texts = [
        text
        for name in ("captions", "label_texts")
        if name in tables
        for text in tables[name]["text"].to_pylist()
    ]
    return text_table(texts)


def _unknown_texts(connection: "duckdb.DuckDBPyConnection", texts: pa.Table) -> pa.Table:
    sql = "SELECT text_id, text FROM new_texts ANTI JOIN texts USING (text_id)"
    return fetch(connection, sql, tables={"new_texts": texts})


def _syncs(
    connection: "duckdb.DuckDBPyConnection", clips: pa.Table, tables: Mapping[str, pa.Table]
) -> list[_Sync]:
    scope = clips.select(["clip_id"])
    syncs = [_Sync("clips", "clip_id", clips, scope)]
    if "media" in tables:
        names = ", ".join(f'm."{name}"' for name in COLUMNS["media"])
        sql = f"SELECT {names}, {MEDIA_KEY} AS media_key FROM new_media m JOIN new_clips c USING (clip_id)"
        media = fetch(connection, sql, tables={"new_media": tables["media"], "new_clips": clips})
        syncs.append(_Sync("media", "clip_id", media, scope))
    if "captions" in tables:
        syncs.append(_Sync("captions", "clip_id", _with_text_ids(tables["captions"]), scope, LISTED))
    for name, key in (("splits", "protocol"), ("label_texts", "prompt_set")):
        if name in tables:
            table = _with_text_ids(tables[name]) if name == "label_texts" else tables[name]
            syncs.append(_Sync(name, key, table, table.select([key])))
    return syncs


def _check_sources(connection: "duckdb.DuckDBPyConnection", dataset: str, captions: pa.Table) -> None:
    made = fetch(connection, "SELECT source FROM captioned WHERE dataset = ?", [dataset])["source"].unique()
    both = made.filter(pc.is_in(made, pc.unique(captions["source"]))).to_pylist()
    if both:
        what = f"captions of source {shortened(both)}, as generated or imported ones are called"
        raise RegisterError(f"dataset {dataset!r}: lists {what}; call one of them otherwise")


def _with_text_ids(table: pa.Table) -> pa.Table:
    ids = pa.array(map(text_id, table["text"].to_pylist()), pa.string())
    return table.drop_columns(["text"]).append_column("text_id", ids)


def _dataset_row(
    connection: "duckdb.DuckDBPyConnection",
    dataset: str,
    adapter: str | None,
    root: str | None,
    config: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The datasets row to write: what is given, else what was known; None if nothing changes."""
    sql = "SELECT name, adapter, root, config::VARCHAR AS config FROM datasets WHERE name = $name"
    known = fetch(connection, sql, {"name": dataset}).to_pylist()
    row = dict(known[0]) if known else {"name": dataset, "adapter": None, "root": None, "config": None}
    given = {"adapter": adapter, "root": root, "config": None if config is None else canonical_json(config)}
    row |= {name: value for name, value in given.items() if value is not None}
    return None if known and row == known[0] else row


def _write_dataset(connection: "duckdb.DuckDBPyConnection", row: dict[str, Any] | None) -> None:
    if row is not None:
        connection.execute("DELETE FROM datasets WHERE name = ?", [row["name"]])
        connection.execute(
            "INSERT INTO datasets VALUES (?, ?, ?, ?, now())",
            [row["name"], row["adapter"], row["root"], row["config"]],
        )


def _counts(
    clips: pa.Table, tables: Mapping[str, pa.Table], changes: Mapping[str, _Change], texts: int
) -> dict[str, int]:
    counts = {"clips": clips.num_rows, "new": changes["clips"].new, "changed": changes["clips"].known}
    counts |= {name: table.num_rows for name, table in tables.items()}
    if "media" in changes:
        counts["changed_media"] = changes["media"].known
    return counts | {"new_texts": texts}


def _sql_type(kind: pa.DataType) -> str:
    names = {pa.string(): "VARCHAR", pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}
    return names.get(kind, "VARCHAR")
