"""What nobody needs any more: found, adopted if it is worth it, and removed once nobody can hold it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from store.adopt import adopt, unknown_segments
from store.catalog import Catalog
from store.compact import remove_replaced
from store.locks import PARTIAL, writer_lives
from store.places import FEATURES
from store.readers import alone
from store.runs import commit_left, end_killed

if TYPE_CHECKING:
    from store.bank import Bank


@dataclass
class Collected:
    """What ``collect`` did.

    Attributes:
        adopted: Finished segments of killed runs that are in the catalog now.
        unfinished: Folders of killed writers, removed.
        unwanted: Finished segments whose rows newer ones replaced, or that are damaged; removed.
        replaced: Segments that a merge or a newer extraction replaced; removed.
        ended: Runs whose process is gone, marked as failed.
        nbytes: Freed.
    """

    adopted: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    nbytes: int = 0


def collect(bank: "Bank") -> Collected:
    """Adopt finished segments that nobody committed, then remove what is of no use.

    A segment whose writer lives is never touched, nor a replaced one that a reader may hold.
    """
    features = bank.path / FEATURES
    before = _size(features)
    done = Collected(adopted=adopt(bank.path, bank.catalog))
    done.unfinished = [path.name for path in _unfinished(features)]
    for path in list(_unfinished(features)):
        shutil.rmtree(path, ignore_errors=True)
    done.unwanted = _remove_unknown(bank.path, bank.catalog)
    done.replaced = remove_replaced(bank)
    commit_left(bank.path, bank.catalog)
    done.ended = end_killed(bank.path, bank.catalog)
    done.nbytes = max(0, before - _size(features))
    return done


def _unfinished(features: Path) -> Iterator[Path]:
    for path in sorted(features.rglob(f"*{PARTIAL}*")):
        if path.is_dir() and not writer_lives(path):
            yield path


def _remove_unknown(bank: Path, catalog: Catalog) -> list[str]:
    """Remove finished segments that even adopting did not want, unless a reader may hold them.

    They are renamed while we hold the catalog, so that no other process adopts them at the same time.
    """
    doomed: list[Path] = []
    for path in unknown_segments(bank, catalog, bank / FEATURES):
        lease = alone(path.parent)
        if lease is not None:
            with lease:
                doomed += _renamed(catalog, [path])
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name.split(PARTIAL)[0] for path in doomed]


def _renamed(catalog: Catalog, paths: Sequence[Path]) -> list[Path]:
    renamed = []
    with catalog.transaction() as connection:
        for path in paths:
            known = connection.execute("SELECT 1 FROM segments WHERE segment_id = ?", [path.name]).fetchall()
            if not known and path.exists() and not writer_lives(path):
                renamed.append(path.rename(path.with_name(f"{path.name}{PARTIAL}{os.getpid()}")))
    return renamed


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue  # a running writer renamed it
    return total
