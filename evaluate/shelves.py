"""What a search looks through: clips in a space that they share with the query, or the texts beside them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate import INDEXES
from evaluate.collection import Collection, collect, written
from evaluate.filters import allowed_rows
from evaluate.index import Index, make_index, unit
from evaluate.saved import SavedIndex, SavedIndexError, saved_indexes
from evaluate.source import EvaluateError, Source
from store.tables import TEXT, text_id


@dataclass(frozen=True)
class Shelf:
    """An index, the query in its space, and whose its rows are.

    Attributes:
        how: In which space, and by which index, for people.
        modalities: Of which the vectors are.
        items: n clip ids or text ids.
        index: Over n unit vectors.
        query: (E,) unit.
        owners: Text id -> clips that have it; None: the items are clips.
        texts: Text id -> text.
    """

    how: str
    modalities: Sequence[str]
    items: Sequence[str]
    index: Index
    query: np.ndarray
    owners: Mapping[str, list[str]] | None = None
    texts: Mapping[str, str] | None = None

    def best(
        self, top: int, wanted: set[str] | None = None, own: str | None = None
    ) -> list[tuple[str, float, str]]:
        """The best clips but ``own``, of those wanted: clip, score, and the text that stood for it."""
        allowed = None if wanted is None else allowed_rows(self.items, self._wanted(wanted))
        most = len(self.items) if allowed is None else len(allowed)
        depth = top + (own is not None)
        while most:
            depth = min(depth, most)
            scores, rows = self.index.search(self.query[None], depth, allowed)
            found: dict[str, tuple[str, float, str]] = {}
            for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
                item = self.items[row] if row >= 0 else ""
                for clip in self._clips(item) if row >= 0 else []:
                    if clip != own and (wanted is None or clip in wanted):
                        found.setdefault(clip, (clip, score, self.texts[item] if self.texts else ""))
            if len(found) >= top or depth >= most:
                return list(found.values())[:top]
            depth *= 4  # several texts of one clip
        return []

    def _clips(self, item: str) -> Sequence[str]:
        return [item] if self.owners is None else self.owners.get(item, [])

    def _wanted(self, clips: set[str]) -> set[str]:
        if self.owners is None:
            return clips
        return {item for item, several in self.owners.items() if clips.intersection(several)}


def text_shelf(
    source: Source,
    query: str,
    modalities: str | None,
    text_weights: str | None = None,
    index: str | SavedIndex | None = None,
) -> Shelf:
    """A sentence against clips, in the best space there is: aligned, joint, or that of their texts.

    Raises:
        EvaluateError: If the modalities that were named share no space with text; holds the command.
        SavedIndexError: If the saved index does not fit.
    """
    if modalities == TEXT:
        return caption_shelf(source, query, text_weights, index)
    if source.alignment is not None:
        names = source.modalities(modalities)
        space = f"in the {source.name} space of {', '.join(names)} and text"
    else:
        names = joint_modalities(source, modalities)
        space = f"in the joint space of text and {', '.join(names)}"
    if not names:
        return caption_shelf(source, query, text_weights, index)
    vector = unit(encoded(source, [query], text_weights))[0]
    collection = collect(source, names)
    made, told, items = opened(collection, index)
    return Shelf(space + told, names, items, made, vector)


def like_shelf(
    source: Source, clip: str, modalities: str | None, index: str | SavedIndex | None = None
) -> Shelf:
    """A clip against the other clips: aligned, or by the raw features of one modality.

    Raises:
        EvaluateError: If the clip has no features, or several raw modalities would be mixed.
        SavedIndexError: If the saved index does not fit.
    """
    names = source.modalities(modalities)
    if source.alignment is None and len(names) > 1:
        if modalities is not None:
            raise EvaluateError(
                f"search: raw {', '.join(names)} share no space; name one, or pass --checkpoint"
            )
        names = names[:1]
    collection = collect(source, names)
    if clip not in set(collection.items.tolist()):
        raise EvaluateError(
            f"search --like: no {', '.join(names)} features of clip {clip!r} in {source.dataset}"
        )
    made, told, items = opened(collection, index)
    how = f"by {', '.join(names)}, {source.name}{told}"
    return Shelf(how, names, items, made, np.array(made.vectors[list(items).index(clip)]))


def caption_shelf(
    source: Source, query: str, text_weights: str | None = None, index: str | SavedIndex | None = None
) -> Shelf:
    """A sentence against the clips' captions, or their class texts: it sees what was written, not the clips.

    Raises:
        EvaluateError: If the clips have neither.
        SavedIndexError: If the saved index does not fit.
    """
    pairs = written(source)
    if not pairs:
        raise EvaluateError(
            f"search: {source.dataset} has no captions, no class texts, and no features that share a space "
            f"with text; `python -m align --bank {source.bank.path}` makes one (then --checkpoint latest)"
        )
    vector = unit(encoded(source, [query], text_weights))[0]
    made, told, items = opened(collect(source, [TEXT]), index)
    owners: dict[str, list[str]] = {}
    for clip, text in pairs:
        owners.setdefault(text_id(text), []).append(clip)
    how = f"TEXT TO TEXT: by captions or class texts, not by content; pass --checkpoint for that{told}"
    return Shelf(how, [TEXT], items, made, vector, owners, {text_id(text): text for _, text in pairs})


def encoded(source: Source, texts: Sequence[str], weights: str | None = None) -> np.ndarray:
    """Typed texts -> (n, D or E) vectors: from the bank if it knows them, else by the text encoder.

    Raises:
        EvaluateError: If the encoder, as it is now, gives another space than the bank's texts.
    """
    from encoders import load_stored
    from store.spec import FeatureSpec
    from store.texts import MissingTextError

    try:
        return source.texts(texts)
    except MissingTextError:
        stored = source.selection(TEXT)
    source.used.append(stored)
    space = ""
    for encoder in load_stored(stored.spec.encoder, weights, modality=TEXT):
        space = FeatureSpec(encoder.name, encoder.space).space_digest
        if space == stored.space_digest:
            vectors = encoder.encode_text(list(texts)).numpy()  # type: ignore[union-attr]
            return source.embed_texts(vectors, stored.space_digest)
    raise EvaluateError(
        f"search: text encoder {stored.spec.encoder} gives space {space}, the bank's texts are of "
        f"{stored.space_digest}; pass the weights that extracted them as --text-weights"
    )


def joint_modalities(source: Source, asked: str | None) -> list[str]:
    """The modalities whose raw features lie in the text features' space; [] if none does.

    Raises:
        EvaluateError: If one that was asked for does not.
    """
    from align.recipe import covered
    from store.select import AmbiguousError

    space, joint = source.space(TEXT), []
    there = [name for name in covered(source.bank, source.dataset) if name != TEXT]
    names = there if asked is None else source.modalities(asked)
    for name in names:
        try:
            if source.space(name) == space:
                joint.append(name)
        except AmbiguousError:
            if asked is not None:
                raise
    if asked is not None and len(joint) < len(names):
        wrong = next(name for name in names if name not in joint)
        raise EvaluateError(
            f"search: raw {wrong} features share no space with text; leave out --modalities, or pass "
            f"--checkpoint latest after `python -m align --modalities {wrong},{TEXT} "
            f"--bank {source.bank.path}`"
        )
    return joint


def opened(collection: Collection, index: str | SavedIndex | None) -> tuple[Index, str, Sequence[str]]:
    """The index to search a collection by, what to say of it, and its items.

    Args:
        collection: What is searched.
        index: A kind to make anew, a saved index that must fit, or None: a saved one if one fits, else flat.

    Raises:
        SavedIndexError: If the saved index is of something else, stale or damaged.
    """
    if isinstance(index, SavedIndex):
        return _opened(collection, index)
    if index is None:
        for saved in saved_indexes(collection.source.bank.path):
            if saved.facts["identity"] == collection.identity:
                try:
                    return _opened(collection, saved)
                except SavedIndexError as error:
                    print(f"{error}; embedding all clips instead", file=sys.stderr)
    kind = index or "flat"
    made = make_index(kind, np.concatenate([*collection.blocks()]))
    return made, "" if made.exact else f", by {kind}, approximately", collection.items.tolist()


def _opened(collection: Collection, saved: SavedIndex) -> tuple[Index, str, Sequence[str]]:
    if len(added := saved.check(collection)):
        raise SavedIndexError(
            f"index {saved.name}: stale: {len(added)} items were added since; python -m evaluate index "
            f"extend --name {saved.name} --bank {collection.source.bank.path}"
        )
    made = saved.open()
    told = f", by index {saved.name} ({saved.kind}{'' if made.exact else ', approximate'})"
    return made, told, saved.items()["item_id"].to_pylist()


def as_saved(bank: Any, index: str | None) -> str | SavedIndex | None:
    """``--index``: the name of a kind stays; another one is that of a saved index.

    Raises:
        SavedIndexError: If there is no such index.
    """
    from evaluate.saved import read_saved
    from store.bank import Bank

    return index if index is None or index in INDEXES else read_saved(Bank.open(bank).path, index)
