"""Resolving what a selection is to hold: feature set, field, clips; and opening it."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from store.catalog import fetch
from store.commit import FeatureSet
from store.errors import FrameBankError, UnknownNameError
from store.places import field_directory
from store.readers import share
from store.selection import Selection
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXTS, shortened

if TYPE_CHECKING:
    import duckdb

    from store.bank import Bank

PREFERRED_FIELDS = ("embedding", "cls", "tokens")

SETS = """
SELECT name, encoder, spec::VARCHAR AS spec FROM feature_sets s
WHERE dataset = $dataset AND modality = $modality AND EXISTS (FROM features f WHERE f.set_id = s.set_id)
ORDER BY name
"""
FIELDS = """
SELECT field AS name, any_value(tokens) AS tokens, any_value(dim) AS dim, any_value(dtype) AS dtype
FROM segments WHERE set_id = $set AND state = 'live' GROUP BY field ORDER BY field
"""
CLIP_ROWS = """
WITH asked AS (
    SELECT clip_id, label FROM (
        SELECT c.* {columns} FROM clips c {join} WHERE c.dataset = $dataset
    ) WHERE {where}
)
SELECT f.item_id, f.segment_id, f.first_frame, f.frames, coalesce(a.label, -1)::BIGINT AS label
FROM features f JOIN asked a ON a.clip_id = f.item_id
LEFT JOIN sources m ON m.dataset = $dataset AND m.modality = $modality AND m.clip_id = f.item_id
WHERE f.set_id = $set AND f.field = $field AND f.view = $view
    AND NOT coalesce(f.media_key <> m.media_key, false)
ORDER BY f.item_id
"""
TEXT_ROWS = """
SELECT f.item_id, f.segment_id, f.first_frame, f.frames, (-1)::BIGINT AS label
FROM features f JOIN (SELECT * FROM texts WHERE {where}) t ON t.text_id = f.item_id
WHERE f.set_id = $set AND f.field = $field AND f.view = $view
ORDER BY f.item_id
"""


class AmbiguousError(FrameBankError, LookupError):
    """Several feature sets or fields fit; the message lists them."""


class NoFeaturesError(FrameBankError, LookupError):
    """There are no features of what was asked for; the message holds the command that makes them."""


class EmptySelectionError(FrameBankError, LookupError):
    """There are features, but none of the clips that were asked for has any."""


def select(
    bank: "Bank",
    dataset: str,
    modality: str,
    encoder: str | None = None,
    field: str | None = None,
    where: str | None = None,
    view: int = 0,
    protocol: str | None = None,
    part: str | None = None,
    items: Sequence[str] | np.ndarray | None = None,
) -> Selection:
    """See ``Bank.select``."""
    with bank.catalog.reading() as connection:
        owner = resolve_set(bank, connection, dataset, modality, encoder)
        chosen = _resolve_field(connection, owner, field)
        if protocol is not None or part is not None:
            _check_protocol(connection, dataset, protocol, part)
    folder = field_directory(bank.path, dataset, modality, owner.name, chosen.name)
    reading = share(folder)  # before the rows are looked up: what they name stays until we let go
    with contextlib.ExitStack() as undo:
        if reading is not None:
            undo.callback(reading.release)
        with bank.catalog.reading() as connection:
            rows = _rows(connection, owner, chosen, where, view, protocol, part)
            rows = rows if items is None else _in_order(rows, items)
            if not rows.num_rows:
                raise EmptySelectionError(
                    _nothing(connection, owner, chosen, where, view, protocol, part, items)
                )
            locations = _locations(connection, rows)
            names = _label_names(connection, dataset)
        undo.pop_all()
    ids = list(locations)
    place = pa.table({"segment_id": ids, "segment": np.arange(len(ids))})
    segment = pa.compute.index_in(rows["segment_id"], place["segment_id"].combine_chunks())
    rows = rows.drop_columns(["segment_id"]).append_column("segment", segment)
    paths = {one: bank.path / location for one, location in locations.items()}
    return Selection(bank, dataset, modality, owner.spec, chosen, view, protocol, rows, paths, names, reading)


def resolve_set(
    bank: "Bank", connection: "duckdb.DuckDBPyConnection", dataset: str, modality: str, encoder: str | None
) -> FeatureSet:
    """The one feature set that ``encoder`` (a name, ``name@fingerprint`` or the beginning of one) means.

    Raises:
        NoFeaturesError: If the dataset has no features of the modality.
        UnknownNameError: If no set fits.
        AmbiguousError: If several do.
    """
    rows = fetch(connection, SETS, {"dataset": dataset, "modality": modality}).to_pylist()
    if not rows:
        _check_dataset(bank, connection, dataset)
        raise NoFeaturesError(
            f"{bank.path}: no {modality} features of {dataset}; "
            f"python -m extract --dataset {dataset} --modality {modality} --bank {bank.path}"
        )
    fitting = [row for row in rows if _fits(row, encoder)]
    names = [row["name"] for row in rows]
    if not fitting:
        raise UnknownNameError(f"{dataset}/{modality}", "feature set", str(encoder), names)
    if len(fitting) > 1:
        raise AmbiguousError(
            f"{dataset}/{modality}: {len(fitting)} feature sets fit {encoder or 'any encoder'!r}: "
            f"{', '.join(row['name'] for row in fitting)}; name one, `python -m store diff A B` compares two"
        )
    return FeatureSet(dataset, modality, FeatureSpec.from_json(fitting[0]["spec"]))


def _fits(row: dict[str, Any], encoder: str | None) -> bool:
    if encoder is None:
        return True
    if "@" in encoder:
        return row["name"].startswith(encoder)
    return row["encoder"] == encoder


def _check_dataset(bank: "Bank", connection: "duckdb.DuckDBPyConnection", dataset: str) -> None:
    known = fetch(connection, "SELECT name FROM datasets ORDER BY name")["name"].to_pylist()
    if dataset not in [*known, TEXTS]:
        raise UnknownNameError(str(bank.path), "dataset", dataset, known)


def _resolve_field(connection: "duckdb.DuckDBPyConnection", owner: FeatureSet, name: str | None) -> FieldSpec:
    rows = fetch(connection, FIELDS, {"set": owner.set_id}).to_pylist()
    fields = {row["name"]: FieldSpec(**row) for row in rows}
    if name is not None:
        if name not in fields:
            raise UnknownNameError(owner.name, "field", name, sorted(fields))
        return fields[name]
    if len(fields) == 1:
        return next(iter(fields.values()))
    for preferred in PREFERRED_FIELDS:
        if preferred in fields:
            return fields[preferred]
    raise AmbiguousError(f"{owner.name}: several fields: {', '.join(sorted(fields))}; name one")


def _check_protocol(
    connection: "duckdb.DuckDBPyConnection", dataset: str, protocol: str | None, part: str | None
) -> None:
    sql = "SELECT DISTINCT protocol, part FROM splits WHERE dataset = $dataset ORDER BY ALL"
    rows = fetch(connection, sql, {"dataset": dataset}).to_pylist()
    protocols = sorted({row["protocol"] for row in rows})
    if protocol is None:
        raise AmbiguousError(f"{dataset}: part {part!r} of which protocol? there are: {', '.join(protocols)}")
    if protocol not in protocols:
        raise UnknownNameError(dataset, "protocol", protocol, protocols)
    parts = sorted({row["part"] for row in rows if row["protocol"] == protocol})
    if part is not None and part not in parts:
        raise UnknownNameError(f"{dataset}/{protocol}", "part", part, parts)


def _rows(
    connection: "duckdb.DuckDBPyConnection",
    owner: FeatureSet,
    field: FieldSpec,
    where: str | None,
    view: int,
    protocol: str | None,
    part: str | None,
) -> pa.Table:
    params: dict[str, Any] = {"set": owner.set_id, "field": field.name, "view": view}
    condition = f"({where})" if where else "true"
    if owner.dataset == TEXTS:
        return fetch(connection, TEXT_ROWS.replace("{where}", condition), params)
    params |= {"dataset": owner.dataset, "modality": owner.modality}
    columns = join = ""
    if protocol is not None:
        columns = ", s.protocol, s.part"
        join = "JOIN splits s ON s.dataset = $dataset AND s.clip_id = c.clip_id AND s.protocol = $protocol"
        params["protocol"] = protocol
    if part is not None:
        condition += " AND part = $part"
        params["part"] = part
    sql = CLIP_ROWS.replace("{columns}", columns).replace("{join}", join).replace("{where}", condition)
    return fetch(connection, sql, params)


def _in_order(rows: pa.Table, items: Sequence[str] | np.ndarray) -> pa.Table:
    """The rows of ``items``, in that order; items without features are left out."""
    wanted = pa.array([str(item) for item in items], pa.string())
    place = pa.compute.index_in(wanted, rows["item_id"].combine_chunks()).drop_null()
    return rows.take(place)


def _locations(connection: "duckdb.DuckDBPyConnection", rows: pa.Table) -> dict[str, str]:
    used = pa.table({"segment_id": pa.compute.unique(rows["segment_id"])})
    sql = "SELECT segment_id, location FROM segments JOIN used USING (segment_id) ORDER BY segment_id"
    found = fetch(connection, sql, tables={"used": used})
    return dict(zip(found["segment_id"].to_pylist(), found["location"].to_pylist(), strict=True))


def _label_names(connection: "duckdb.DuckDBPyConnection", dataset: str) -> dict[int, str]:
    sql = """
        SELECT label, coalesce(max(label_name), label::VARCHAR) AS name FROM (
            SELECT label, label_name FROM clips WHERE dataset = $dataset
            UNION ALL SELECT label, label_name FROM label_texts WHERE dataset = $dataset)
        WHERE label IS NOT NULL GROUP BY label ORDER BY label
    """
    rows = fetch(connection, sql, {"dataset": dataset})
    return dict(zip(rows["label"].to_pylist(), rows["name"].to_pylist(), strict=True))


def _nothing(
    connection: "duckdb.DuckDBPyConnection",
    owner: FeatureSet,
    field: FieldSpec,
    where: str | None,
    view: int,
    protocol: str | None,
    part: str | None,
    items: Sequence[str] | np.ndarray | None,
) -> str:
    sql = "SELECT count(*) AS n FROM features WHERE set_id = $set AND field = $field"
    total = fetch(connection, sql, {"set": owner.set_id, "field": field.name})["n"][0].as_py()
    given = {"where": where, "view": view or None, "protocol": protocol, "part": part}
    asked = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    if items is not None:
        asked += f"{', ' if asked else ''}items={shortened(list(items), 3)}"
    return (
        f"{owner.dataset}/{owner.modality}/{owner.name}/{field.name}: none of its {total} rows fits"
        f" {asked or 'the clips of the dataset'}; loosen the condition, or extract those clips"
    )
