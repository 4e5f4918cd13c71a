"""What a killed or hindered writer left finished but uncommitted: found on disk and committed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from store.commit import FeatureSet, Finished, commit_features, conflicting
from store.layout import SHARD, SegmentError
from store.locks import PARTIAL, writer_lives
from store.manifest import read_manifest
from store.places import FEATURES
from store.spec import FieldSpec

if TYPE_CHECKING:
    import duckdb

    from store.catalog import Catalog

SEGMENT_ID_CHARACTERS = 26


def segment_directories(folder: Path) -> Iterator[Path]:
    """Finished segments anywhere below ``folder``, by name; unfinished ones are not among them."""
    for metadata in sorted(folder.rglob("zarr.json")):
        if is_segment_name(metadata.parent.name):
            yield metadata.parent


def is_segment_name(name: str) -> bool:
    """Whether a folder of this name may be a finished segment."""
    return len(name) == SEGMENT_ID_CHARACTERS and PARTIAL not in name


def unknown_segments(
    bank: Path, catalog: "Catalog", folder: Path, timeout_seconds: float | None = None
) -> list[Path]:
    """Finished segments below ``folder`` that belong to no running writer and to no row of the catalog.

    The order matters: a segment that is committed between our listing and our query has a row then.
    """
    if not folder.is_dir():
        return []
    idle = [path for path in segment_directories(folder) if not writer_lives(path)]
    if not idle:
        return []
    known = catalog.read(
        "SELECT segment_id FROM segments WHERE segment_id IN (SELECT segment_id FROM found)",
        tables={"found": pa.table({"segment_id": [path.name for path in idle]})},
        timeout_seconds=timeout_seconds,
    )
    committed = set(known["segment_id"].to_pylist())
    return [path for path in idle if path.name not in committed]


def described(bank: Path, path: Path) -> tuple[FeatureSet, Finished]:
    """The segment at ``path`` as its own manifest describes it.

    Raises:
        SegmentError: If its manifest cannot be read.
    """
    table, attributes = read_manifest(path)
    field = FieldSpec(**attributes["field"])
    try:
        nbytes = (path / SHARD).stat().st_size
    except OSError as error:
        raise SegmentError(f"{path / SHARD}: {error.strerror}; its clips are extracted again") from error
    frames = int(table["frames"].to_numpy().sum())
    finished = Finished(path.name, str(path.relative_to(bank)), field, frames, nbytes, table)
    return FeatureSet.from_attributes(attributes), finished


def adopt(
    bank: Path, catalog: "Catalog", folder: Path | None = None, timeout_seconds: float | None = None
) -> list[str]:
    """Commit the segments below ``folder`` (all of the bank by default) that nobody committed.

    Segments that cannot be read, or hold only rows that newer ones replaced, are left for ``gc``.

    Returns:
        Ids of the segments that are visible now.

    Raises:
        CatalogBusyError: If another process holds the catalog for longer than the timeout.
    """
    groups: dict[tuple[str, str, str], tuple[FeatureSet, list[Finished]]] = {}
    for path in unknown_segments(bank, catalog, folder or bank / FEATURES, timeout_seconds):
        try:
            owner, finished = described(bank, path)
        except SegmentError:
            continue  # damaged: `check` and `gc` report it; its clips count as missing
        key = (owner.dataset, owner.modality, owner.name)
        groups.setdefault(key, (owner, []))[1].append(finished)
    adopted: list[str] = []
    for owner, finished_ones in groups.values():
        with catalog.transaction(timeout_seconds) as connection:
            wanted = _still_there(bank, connection, finished_ones)
            refused = {one.segment_id for one in conflicting(connection, owner, wanted)}
            wanted = [one for one in wanted if one.segment_id not in refused]
            adopted += commit_features(connection, owner, wanted, newest=False)
    return adopted


def _still_there(
    bank: Path, connection: "duckdb.DuckDBPyConnection", finished: list[Finished]
) -> list[Finished]:
    """Those that no other process has adopted or removed meanwhile; we have the catalog for ourselves."""
    known = {row[0] for row in connection.execute("SELECT segment_id FROM segments").fetchall()}
    return [one for one in finished if one.segment_id not in known and (bank / one.location).is_dir()]
