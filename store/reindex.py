"""Rebuilding the catalog's features, feature sets and segments from the segments' own manifests."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from store.adopt import described, segment_directories
from store.catalog import CATALOG_FILE, Catalog, CatalogBusyError, CatalogError, NewerCatalogError
from store.commit import FeatureSet, Finished, commit_features, conflicting
from store.layout import SegmentError
from store.locks import writer_lives
from store.places import FEATURES, RUNS
from store.runs import RECORD, commit_run

if TYPE_CHECKING:
    from store.bank import Bank


@dataclass
class Rebuilt:
    """What ``reindex`` did.

    Attributes:
        segments: Segments that hold rows.
        sets: Feature sets.
        runs: Runs read from their records.
        unreadable: Messages about segments that were left out.
        set_aside: Where a catalog that could not be opened is now.
    """

    segments: int = 0
    sets: int = 0
    runs: int = 0
    unreadable: list[str] = field(default_factory=list)
    set_aside: Path | None = None


def reindex(path: str | Path) -> "tuple[Bank, Rebuilt]":
    """Rebuild the catalog of the bank in folder ``path``; clips, media, splits and texts stay as they are.

    Of several rows of one (item, view, field) the newest is taken. A catalog that is missing or cannot be
    opened is made anew; the datasets must be registered again then (``python -m extract ...`` does).

    Raises:
        NotABankError: If the folder has neither catalog nor features.
        NewerCatalogError: If a newer FrameBank wrote the catalog.
    """
    from store.bank import Bank, NotABankError

    folder = Path(path).resolve()
    if not (folder / CATALOG_FILE).exists() and not (folder / FEATURES).is_dir():
        raise NotABankError(f"{path}: neither a catalog nor features; not a bank")
    done = Rebuilt(set_aside=_set_aside_if_broken(folder / CATALOG_FILE))
    bank = Bank.open(path, create=True)
    with bank.catalog.transaction() as connection:
        known = {row[0] for row in connection.execute("SELECT segment_id FROM segments").fetchall()}
        # Looked for while nobody else can commit: what a running writer committed so far is among them.
        owners, segments = _found(bank.path, known, done)
        for table in ("features", "segments", "feature_sets"):
            connection.execute(f"DELETE FROM {table}")
        for key, owner in owners.items():
            refused = conflicting(connection, owner, segments[key])
            done.unreadable += [
                f"{one.location}: its shape differs from older ones of its set" for one in refused
            ]
            bad = {one.segment_id for one in refused}
            wanted = [one for one in segments[key] if one.segment_id not in bad]
            done.segments += len(commit_features(connection, owner, wanted, newest=False))
    done.sets = len(owners)
    for record in sorted((bank.path / RUNS).glob(f"*/{RECORD}")):
        done.runs += _commit_record(bank.catalog, record, done)
    return bank, done


def _found(
    bank: Path, known: set[str], done: Rebuilt
) -> tuple[dict[tuple[str, str, str], FeatureSet], dict[tuple[str, str, str], list[Finished]]]:
    """Feature sets and their segments on disk, without those that running writers will commit."""
    owners: dict[tuple[str, str, str], FeatureSet] = {}
    segments: dict[tuple[str, str, str], list[Finished]] = {}
    for path in segment_directories(bank / FEATURES):
        if path.name not in known and writer_lives(path):
            continue
        try:
            owner, finished = described(bank, path)
        except SegmentError as error:
            done.unreadable.append(str(error))
            continue
        key = (owner.dataset, owner.modality, owner.name)
        owners[key] = owner
        segments.setdefault(key, []).append(finished)
    return owners, segments


def _set_aside_if_broken(file: Path) -> Path | None:
    """Rename a catalog that DuckDB cannot open."""
    if not file.exists():
        return None
    try:
        Catalog(file).version()
    except (CatalogBusyError, NewerCatalogError):
        raise
    except CatalogError:
        number = 1
        while (aside := file.with_name(f"{file.name}.broken-{number}")).exists():
            number += 1
        file.rename(aside)
        log = file.with_name(f"{file.name}.wal")
        if log.exists():
            log.rename(aside.with_name(f"{aside.name}.wal"))
        return aside
    return None


def _commit_record(catalog: Catalog, record: Path, done: Rebuilt) -> int:
    try:
        commit_run(catalog, record.parent)
    except (json.JSONDecodeError, KeyError, OSError) as error:
        done.unreadable.append(f"{record}: not a run's record ({error})")
        return 0
    return 1
