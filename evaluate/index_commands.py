"""`python -m evaluate index build | info | extend`: indexes that are kept beside the bank."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluate.source import AUTO, EvaluateError, open_sources
from store.cli import resolved
from store.errors import FrameBankError

if TYPE_CHECKING:
    from align.alignment import Alignment
    from evaluate.collection import Collection
    from evaluate.saved import SavedIndex


def build(
    bank: str = "bank",
    dataset: str | None = None,
    modalities: str | None = None,
    kind: str = "exact",
    name: str | None = None,
    checkpoint: str | None = None,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
    options: dict[str, int] | None = None,
) -> int:
    """Build an index over a dataset's clips and keep it in the bank, for `python -m evaluate search`.

    Clips are read and embedded block by block, and written to disk; memory holds the index's own structure.

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        modalities: Of the clips, with commas; several are averaged. `text`: their captions or class texts.
            None: all that the checkpoint embeds.
        kind: Name in evaluate.INDEXES: flat, exact, sq8, ivf-flat, ivf-pq, hnsw.
        name: Of the index; None: <dataset>-<modalities>-<kind>. One of the same name is replaced.
        checkpoint: run:<id>, a directory or `latest`: embeddings; None: features as stored, of one modality.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K, auto.
        options: Of the kind, {"lists": 4096} say; what they are, its class says.
    """
    asked = resolved(**locals())
    from evaluate import INDEXES
    from evaluate.collection import collect
    from evaluate.index import index_class
    from evaluate.saved import build as saved_from
    from store.tables import TEXT

    index_class(kind)
    if name in INDEXES:
        raise EvaluateError(f"--name: {name!r} is a kind of index; choose another name")
    source = open_sources(bank, dataset, "none", checkpoint, None, encoders, fields, pool)[0]
    names = [TEXT] if modalities == TEXT else source.modalities(modalities)
    collection = collect(source, names)
    name = name or f"{source.dataset}-{'+'.join(names)}-{kind}"
    print(f"embedding {len(collection):,} items of {source.dataset}, {', '.join(names)}", file=sys.stderr)
    with source.bank.record_run("evaluate index", asked | {"dataset": source.dataset}) as run:
        saved = saved_from(collection, name, kind, options or {}, checkpoint_name(source.alignment, bank))
        run.metric(
            "index/build_seconds", saved.facts["build_seconds"], len(collection), index=name, kind=kind
        )
        run.used(*source.used)
    print_indexes([saved], ["fits"])
    return 0


def info(bank: str = "bank", name: str | None = None) -> int:
    """List the bank's indexes, with what they hold, their size, and whether they still fit.

    Args:
        bank: The bank's directory.
        name: Only this one, its files verified.
    """
    from evaluate.saved import read_saved, saved_indexes
    from store.bank import Bank

    opened = Bank.open(bank)
    if name is not None:
        one = read_saved(opened.path, name)
        one.open()
        print_indexes([one], [state(bank, one)])
        print(f"\n{one.folder}\nmade by {one.rebuild}")
        return 0
    found = saved_indexes(opened.path)
    if not found:
        print(f"no index yet; `python -m evaluate index build --bank {bank}` makes one")
        return 0
    print_indexes(found, [state(bank, one) for one in found])
    return 0


def extend(bank: str = "bank", name: str | None = None) -> int:
    """Take clips that were extracted since into an index, without embedding the others again.

    Args:
        bank: The bank's directory.
        name: Which index; may be left out if the bank has one.
    """
    from evaluate.saved import extend as extend_saved
    from evaluate.saved import read_saved, saved_indexes
    from store.bank import Bank

    opened = Bank.open(bank)
    found = saved_indexes(opened.path)
    if name is None and len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise EvaluateError(f"index extend: which index? there are: {names}; pass --name")
    one = found[0] if name is None else read_saved(opened.path, name)
    collection = collection_of(bank, one)
    added = extend_saved(one, collection)
    print(f"{one.name}: {added} items added" if added else f"{one.name}: nothing is missing")
    return 0


def collection_of(bank: str, saved: "SavedIndex") -> "Collection":
    """What a saved index is made of, as the bank has it now."""
    from evaluate.collection import collect

    own = saved.defaults()
    names = own.pop("modalities").split(",")
    dataset, checkpoint = own.pop("dataset"), own.pop("checkpoint")
    source = open_sources(
        bank, dataset, "none", checkpoint, None, own["encoders"], own["fields"], own["pool"]
    )[0]
    return collect(source, names)


def state(bank: str, saved: "SavedIndex") -> str:
    """Whether an index still fits what the bank holds; why not, on stderr."""
    try:
        added = saved.check(collection_of(bank, saved))
    except FrameBankError as error:
        print(error, file=sys.stderr)
        return "stale"
    return f"{len(added):,} to add" if len(added) else "fits"


def checkpoint_name(alignment: "Alignment | None", bank: str) -> str:
    """``run:<id>`` for a checkpoint of the bank, its folder for another; empty for raw features."""
    from pathlib import Path

    from store.places import RUNS

    if alignment is None:
        return ""
    folder = alignment.directory.resolve()
    own = folder.parent == Path(bank).resolve() / RUNS
    return f"run:{folder.name}" if own else str(folder)


def print_indexes(found: "Sequence[SavedIndex]", states: Sequence[str]) -> None:
    """A row an index."""
    from evaluate.index import index_class
    from evaluate.records import print_table
    from store.text_table import byte_text

    rows = []
    for one, fits in zip(found, states, strict=True):
        facts = one.facts
        vectors = facts["files"]["vectors.npy"]["bytes"]
        structure = sum(size["bytes"] for file, size in facts["files"].items() if _is_structure(file))
        rows.append(
            {
                "name": one.name,
                "kind": one.kind,
                "dataset": facts["identity"]["dataset"],
                "modalities": ",".join(one.modalities),
                "source": facts["checkpoint"] or "raw",
                "vectors": f"{facts['count']:,} x {facts['dim']}",
                "on disk": byte_text(one.bytes),
                "of that mapped": byte_text(vectors),
                "bytes a vector": f"{structure / facts['count']:.0f}",
                "predicted": f"{index_class(one.kind).predicted_bytes(facts['dim'], facts['count']):.0f}",
                "seconds": f"{facts['build_seconds']:.1f}",
                "state": fits,
            }
        )
    print_table(rows)


def _is_structure(file: str) -> bool:
    return file not in ("vectors.npy", "items.parquet")
