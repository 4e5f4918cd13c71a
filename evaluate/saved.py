"""Indexes beside the bank: written atomically, memory-mapped, and refused when they no longer fit it.

``<bank>/indexes/<name>/`` holds ``index.json`` (what the vectors mean, checksums of the other files),
``items.parquet`` (a row a vector), ``vectors.npy`` and whatever the index keeps beside them.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.collection import Collection
from evaluate.source import AUTO
from store.durable import replacing
from store.errors import FrameBankError
from store.layout import crc32c
from store.locks import PARTIAL
from store.places import path_part

if TYPE_CHECKING:
    import pyarrow as pa

    from evaluate.index import Index

INDEXES_FOLDER = "indexes"
FORMAT = 1
FACTS_FILE, ITEMS_FILE, VECTORS_FILE = "index.json", "items.parquet", "vectors.npy"
PIECE_BYTES = 64 << 20  # of a file that is checked at a time


class SavedIndexError(FrameBankError, ValueError):
    """An index on disk that is stale, damaged, or of something else; holds the command that rebuilds it."""


@dataclass(frozen=True)
class SavedIndex:
    """An index on disk.

    Attributes:
        folder: Where.
        facts: Its index.json: name, kind, options, identity, checkpoint, count, dim, files, build_seconds.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """As it was given."""
        return str(self.facts["name"])

    @property
    def kind(self) -> str:
        """Name in ``evaluate.INDEXES``."""
        return str(self.facts["kind"])

    @property
    def modalities(self) -> list[str]:
        """Of which the vectors are."""
        return [one["modality"] for one in self.facts["identity"]["features"]]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(one["bytes"] for one in self.facts["files"].values())

    @property
    def rebuild(self) -> str:
        """The command that makes it anew."""
        facts = self.facts
        checkpoint = f" --checkpoint {facts['checkpoint']}" if facts["checkpoint"] else ""
        return (
            f"python -m evaluate index build --name {self.name} --kind {self.kind} "
            f"--dataset {facts['identity']['dataset']} --modalities {','.join(self.modalities)}{checkpoint} "
            f"--bank {self.folder.parent.parent}"
        )

    def defaults(self) -> dict[str, Any]:
        """What a search of it means if nothing else is said: the arguments of ``search``."""
        features = self.facts["identity"]["features"]
        return {
            "dataset": self.facts["identity"]["dataset"],
            "modalities": ",".join(self.modalities),
            "checkpoint": self.facts["checkpoint"] or None,
            "encoders": {one["modality"]: one["feature_set"] for one in features},
            "fields": {one["modality"]: one["field"] for one in features},
            "pool": AUTO if self.facts["checkpoint"] else features[0]["reduce"],
        }

    def items(self) -> "pa.Table":
        """item_id and version of each vector.

        Raises:
            SavedIndexError: If the file is not as it was written.
        """
        import pyarrow.parquet as pq

        self._verify(ITEMS_FILE)
        return pq.read_table(self.folder / ITEMS_FILE)

    def check(self, collection: Collection) -> np.ndarray:
        """Refuse what no longer fits; the places in the collection of items that were added since.

        Raises:
            SavedIndexError: If it is of other features, or of clips that are gone or were replaced.
        """
        self.check_identity(collection)
        mine, theirs = (
            dict(zip(table["item_id"].to_pylist(), table["version"].to_pylist(), strict=True))
            for table in (self.items(), collection.versions)
        )
        gone = [item for item, version in mine.items() if theirs.get(item) != version]
        if gone:
            raise SavedIndexError(
                f"index {self.name}: stale: {len(gone)} of its {len(mine)} items are gone or were encoded "
                f"again ({gone[0]!r}); {self.rebuild}"
            )
        return np.array([row for row, item in enumerate(collection.items) if item not in mine], np.int64)

    def check_identity(self, collection: Collection) -> None:
        """Refuse an index of other features, or by another head.

        Raises:
            SavedIndexError: Naming the first difference.
        """
        own, asked = self.facts["identity"], collection.identity
        for what in ("dataset", "features", "head"):
            if own[what] != asked[what]:
                raise SavedIndexError(
                    f"index {self.name}: is of {what} {_plain(own[what])}, not {_plain(asked[what])}; leave "
                    f"it out, or {self.rebuild} (with what you ask for)"
                )

    def open(self) -> "Index":
        """The index, its files verified, its vectors memory-mapped.

        Raises:
            SavedIndexError: If a file is not as it was written.
        """
        from evaluate.index import make_index

        for name in self.facts["files"]:
            self._verify(name)
        vectors = np.load(self.folder / VECTORS_FILE, mmap_mode="r")
        return make_index(self.kind, vectors, self.folder, self.facts["options"])

    def _verify(self, name: str) -> None:
        path = self.folder / name
        if not path.exists() or file_facts(path) != self.facts["files"][name]:
            raise SavedIndexError(f"index {self.name}: {path} is damaged or missing; {self.rebuild}")


def index_folder(bank: Path, name: str) -> Path:
    """``<bank>/indexes/<name>``."""
    return bank / INDEXES_FOLDER / path_part(name)


def read_saved(bank: Path, name: str) -> SavedIndex:
    """The saved index of that name.

    Raises:
        SavedIndexError: If there is none, or its folder holds something else.
    """
    folder = index_folder(bank, name)
    if not folder.is_dir():
        there = ", ".join(one.name for one in saved_indexes(bank)) or "none"
        raise SavedIndexError(
            f"{bank}: no index {name!r}; there are: {there}; `python -m evaluate index build --name {name} "
            f"--bank {bank}` makes one"
        )
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        own = facts.pop("crc32c")
        if facts["format"] != FORMAT or own != crc32c(json.dumps(facts, sort_keys=True).encode()):
            raise ValueError("other format or checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SavedIndexError(
            f"{folder}: not an index of ours, or damaged ({error}); delete the folder, then "
            f"`python -m evaluate index build --name {name} --bank {bank}`"
        ) from None
    return SavedIndex(folder, facts)


def saved_indexes(bank: Path) -> list[SavedIndex]:
    """All of a bank that can be read, the newest first."""
    found = []
    for path in (bank / INDEXES_FOLDER).glob(f"*/{FACTS_FILE}"):
        if PARTIAL not in path.parent.name:
            try:
                found.append(read_saved(bank, path.parent.name))
            except SavedIndexError:
                continue  # `index info --name` says what is wrong with it
    return sorted(found, key=lambda one: -one.facts["built_at"])


def build(
    collection: Collection, name: str, kind: str, options: dict[str, int], checkpoint: str
) -> SavedIndex:
    """Stream a collection into a new index, in place of one of the same name.

    Raises:
        UnknownNameError: For an unknown kind or option.
    """
    from evaluate.index import make_index

    began = time.perf_counter()
    with replacing(index_folder(collection.source.bank.path, name)) as folder:
        vectors = _written(folder, np.empty((0, 0), np.float32), collection, np.arange(len(collection)))
        index = make_index(kind, vectors, options=options)
        index.save(folder)
        facts = {
            "name": name,
            "kind": kind,
            "options": getattr(index, "options", {}),
            "identity": collection.identity,
            "checkpoint": checkpoint,
        }
        _finish(folder, facts, _versioned(collection, collection.items), vectors, began)
    return read_saved(collection.source.bank.path, name)


def extend(saved: SavedIndex, collection: Collection) -> int:
    """Take in the clips that were added to the bank; how many.

    Raises:
        SavedIndexError: If it is damaged, or stale in another way.
    """
    import pyarrow as pa

    added = saved.check(collection)
    if not len(added):
        return 0
    began = time.perf_counter()
    index = saved.open()
    with replacing(saved.folder) as folder:
        vectors = _written(folder, index.vectors, collection, added)
        index.extend(vectors)
        index.save(folder)
        table = pa.concat_tables([saved.items(), _versioned(collection, collection.items[added])])
        _finish(folder, saved.facts, table, vectors, began)
    return len(added)


def file_facts(path: Path) -> dict[str, int]:
    """Size and checksum of a file, which is read piece by piece."""
    size = path.stat().st_size
    content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    pieces = [crc32c(content[at : at + PIECE_BYTES]) for at in range(0, size, PIECE_BYTES)]
    return {"bytes": size, "crc32c": crc32c(np.array(pieces, "<u4"))}


def _written(folder: Path, old: np.ndarray, collection: Collection, chosen: np.ndarray) -> np.ndarray:
    """vectors.npy: those that are there, then the chosen items'; memory-mapped."""
    vectors, at = None, len(old)
    for block in collection.blocks(chosen):
        if vectors is None:
            shape = (len(old) + len(chosen), block.shape[1])
            vectors = np.lib.format.open_memmap(folder / VECTORS_FILE, "w+", np.float32, shape)
            vectors[: len(old)] = old.reshape(len(old), block.shape[1])
        vectors[at : at + len(block)] = block
        at += len(block)
    assert vectors is not None
    vectors.flush()
    return vectors


def _versioned(collection: Collection, items: np.ndarray) -> "pa.Table":
    import pyarrow as pa

    versions = collection.versions
    known = dict(zip(versions["item_id"].to_pylist(), versions["version"].to_pylist(), strict=True))
    ids = items.tolist()
    return pa.table({"item_id": pa.array(ids, pa.string()), "version": [known[item] for item in ids]})


def _finish(
    folder: Path, facts: dict[str, Any], items: "pa.Table", vectors: np.ndarray, began: float
) -> None:
    """items.parquet, and index.json as the last file."""
    import pyarrow.parquet as pq

    pq.write_table(items, folder / ITEMS_FILE)
    count, dim = vectors.shape
    facts = facts | {"format": FORMAT, "count": count, "dim": dim, "built_at": time.time()}
    facts["build_seconds"] = time.perf_counter() - began
    facts["files"] = {path.name: file_facts(path) for path in sorted(folder.iterdir())}
    facts = json.loads(json.dumps(facts))  # as it will be read back
    facts["crc32c"] = crc32c(json.dumps(facts, sort_keys=True).encode())
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(
            f"{one['modality']} {one['feature_set']} {one['field']} {one['reduce']}" for one in value
        )
    return "none (raw features)" if value is None else str(value)
