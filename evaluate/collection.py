"""What an index holds: the vectors of a dataset's clips, or of its texts, read from the bank in blocks."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.source import AUTO, EvaluateError, Source, auto_pool
from store.tables import TEXT, TEXTS, text_id

if TYPE_CHECKING:
    import pyarrow as pa

    from store.selection import Selection

BLOCK = 8192  # items embedded at a time
READ_BYTES = 64 << 20  # that lie side by side on disk

VERSIONS = """
SELECT w.item_id,
    md5(string_agg(w.place || ':' || coalesce(f.media_key, ''), '|' ORDER BY w.place)) AS version
FROM wanted w JOIN features f ON f.item_id = w.item_id AND f.set_id = w.set_id AND f.field = w.field
    AND f.view = w.view
GROUP BY w.item_id
"""


@dataclass(frozen=True)
class Collection:
    """Clips with at least one of some modalities, whose unit vectors are averaged; or texts.

    Attributes:
        source: Raw features or a checkpoint's embeddings.
        modalities: Of the clips; ``text`` alone: the captions, or the texts of the classes.
        selections: The features that are read, a modality each.
        pools: How raw features of each become one vector.
        items: (n,) clip ids or text ids, as they lie on disk.
        rows: (M, n) rows of the selections; -1: the clip lacks this modality.
    """

    source: Source
    modalities: Sequence[str]
    selections: "Sequence[Selection]"
    pools: Sequence[str]
    items: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What vectors mean: equal identities, comparable and interchangeable vectors."""
        alignment = self.source.alignment
        features = [
            {
                "modality": name,
                "feature_set": one.feature_set,
                "space": one.space_digest,
                "field": one.field.name,
                "reduce": pool,
            }
            for name, one, pool in zip(self.modalities, self.selections, self.pools, strict=True)
        ]
        head = None if alignment is None else head_digest(alignment.directory)
        return {"dataset": self.source.dataset, "features": features, "head": head}

    @cached_property
    def versions(self) -> "pa.Table":
        """item_id, and a version that changes when the item's media were replaced and encoded again."""
        import pyarrow as pa

        from store.tables import set_id

        tables = []
        for place, one in enumerate(self.selections):
            table = pa.table({"item_id": pa.array(one.items, pa.string())})
            key = set_id(one.dataset, one.modality, one.feature_set)
            more = {"set_id": key, "field": one.field.name, "view": one.view, "place": place}
            for name, value in more.items():
                table = table.append_column(name, pa.array([value] * len(one)))
            tables.append(table)
        found: pa.Table = self.source.bank.catalog.read(VERSIONS, tables={"wanted": pa.concat_tables(tables)})
        return found

    def vectors(self, chunk: np.ndarray) -> np.ndarray:
        """(b, E) float32 unit rows of some items."""
        from evaluate.index import unit

        total: np.ndarray | None = None
        for name, selection, pool, rows in zip(
            self.modalities, self.selections, self.pools, self.rows, strict=True
        ):
            there = np.flatnonzero(rows[chunk] >= 0)
            values = unit(self._read(name, selection.take(rows[chunk][there]), pool))
            total = np.zeros((len(chunk), values.shape[1]), np.float32) if total is None else total
            if len(there) and values.shape[1] != total.shape[1]:
                raise EvaluateError(f"index: {', '.join(self.modalities)} have vectors of different lengths")
            total[there] += values
        assert total is not None
        return unit(total) if len(self.modalities) > 1 else total

    def blocks(self, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The vectors of all items, or of those chosen, block by block."""
        places = np.arange(len(self)) if chosen is None else chosen
        for at in range(0, len(places), BLOCK):
            yield self.vectors(places[at : at + BLOCK])

    def _read(self, name: str, selection: "Selection", pool: str) -> np.ndarray:
        alignment = self.source.alignment
        if name == TEXT:
            return self.source.embed_texts(selection.materialise("mean"), selection.space_digest)
        if alignment is not None:
            return alignment.embed(name, selection)
        values = selection.materialise(pool)
        return np.asarray(values.reshape(len(values), -1), np.float32)


def collect(source: Source, modalities: Sequence[str]) -> Collection:
    """The clips of a source's dataset that have any of the modalities, or its texts.

    Raises:
        EvaluateError: If ``text`` is mixed with others, or raw features of several modalities are.
    """
    if TEXT in modalities:
        if len(modalities) > 1:
            raise EvaluateError(
                f"index: {', '.join(modalities)}; text is indexed alone: name the others only"
            )
        selections = [_texts(source)]
    else:
        selections = [source.selection(name) for name in modalities]
    spaces = {one.space_digest for one in selections}
    if source.alignment is None and len(spaces) > 1:
        raise EvaluateError(
            f"index: raw {', '.join(modalities)} share no space; name one, or pass --checkpoint"
        )
    source.used += selections
    items, rows = _together(selections)
    return Collection(source, list(modalities), selections, _pools(source, selections), items, rows)


def head_digest(directory: Any) -> str:
    """12 hex digits of a checkpoint's heads."""
    from align.checkpoint import HEADS_FILE

    return hashlib.sha256((directory / HEADS_FILE).read_bytes()).hexdigest()[:12]


def written(source: Source) -> list[tuple[str, str]]:
    """(clip, text) for all captions; where a dataset has none, for the texts of the clips' classes."""
    clips = source.bank.sql("SELECT clip_id, label FROM clips WHERE dataset = ? ORDER BY 1", [source.dataset])
    captions = source.captions(clips["clip_id"].to_pylist())
    if captions:
        return [(clip, text) for clip, several in captions.items() for text in several]
    by_label: dict[int, list[str]] = {}
    for pairs in source.label_texts().values():
        for label, text in pairs:
            by_label.setdefault(label, []).append(text)
    return [(row["clip_id"], text) for row in clips.to_pylist() for text in by_label.get(row["label"], [])]


def _texts(source: Source) -> "Selection":
    ids = list(dict.fromkeys(text_id(text) for _, text in written(source)))
    if not ids:
        raise EvaluateError(f"index: {source.dataset} has no captions and no class texts")
    return source.bank.select(TEXTS, TEXT, encoder=source.encoder(TEXT), items=ids)


def _pools(source: Source, selections: "Sequence[Selection]") -> list[str]:
    if source.alignment is not None:
        return ["aligned"] * len(selections)
    return [auto_pool(one) if source.pool == AUTO else source.pool for one in selections]


def _together(selections: "Sequence[Selection]") -> tuple[np.ndarray, np.ndarray]:
    """Items (n,) in the order of the first selection's storage, then of the next; and their rows (M, n)."""
    orders = [np.concatenate([*one.in_storage_order(READ_BYTES)]) for one in selections]
    if len(selections) == 1:
        return selections[0].items[orders[0]], orders[0][None]
    found: dict[str, list[int]] = {}
    for place, (one, order) in enumerate(zip(selections, orders, strict=True)):
        for row, item in zip(order.tolist(), one.items[order].tolist(), strict=True):
            found.setdefault(item, [-1] * len(selections))[place] = row
    return np.array(list(found), object), np.array(list(found.values()), np.int64).T
