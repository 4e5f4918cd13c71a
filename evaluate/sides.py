"""The two sides of a search: clips of a modality, or texts; and what answers what between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluate.index import unit
from evaluate.relevance import Pairs, Relevance, SameKey, numbered
from evaluate.source import EvaluateError, Source
from store.tables import TEXT

By = Literal["clip", "label"]


@dataclass(frozen=True)
class Side:
    """Things that can be asked for or found.

    Attributes:
        modality: Name; ``text`` for texts.
        items: n clip ids, or the texts themselves.
        labels: (n,) int64, -1 = none.
        vectors: (n, E) float32 unit rows.
        features: What the vectors are, for people.
    """

    modality: str
    items: Sequence[str]
    labels: np.ndarray
    vectors: np.ndarray
    features: str

    def __len__(self) -> int:
        return len(self.items)

    def keep(self, rows: np.ndarray) -> "Side":
        """Some of it."""
        items = [self.items[row] for row in rows]
        return Side(self.modality, items, self.labels[rows], self.vectors[rows], self.features)


def clip_side(source: Source, modality: str, part: str) -> Side:
    """The clips of a part."""
    clips = source.clips(modality, part)
    return Side(modality, clips.items.tolist(), clips.labels, unit(clips.vectors), clips.features)


def caption_side(source: Source, captions: Mapping[str, Sequence[str]]) -> Side:
    """The unique captions of some clips; they have no label."""
    texts = sorted({text for several in captions.values() for text in several})
    vectors = unit(source.texts(texts))
    return Side(TEXT, texts, np.full(len(texts), -1), vectors, "captions")


def label_side(source: Source, prompt_set: str | None = None) -> Side:
    """The texts of the classes, of one prompt set or of all.

    Raises:
        EvaluateError: If the dataset has no such texts; lists those that it has.
    """
    sets = source.label_texts()
    if not sets or (prompt_set is not None and prompt_set not in sets):
        raise EvaluateError(
            f"{source.dataset}: no class texts{f' in prompt set {prompt_set!r}' if prompt_set else ''}; "
            f"there are the prompt sets: {', '.join(sets) or 'none (its adapter gives them)'}"
        )
    chosen = [prompt_set] if prompt_set is not None else list(sets)
    pairs = sorted({pair for name in chosen for pair in sets[name]})
    texts = [text for _, text in pairs]
    labels = np.array([label for label, _ in pairs], np.int64)
    return Side(TEXT, texts, labels, unit(source.texts(texts)), f"class texts {', '.join(chosen)}")


def answers(
    queries: Side,
    gallery: Side,
    by: By,
    captions: Mapping[str, Sequence[str]],
    other_clips_only: bool = False,
) -> tuple[Relevance, SameKey]:
    """Which items answer which queries, and which do not take part.

    By clip: a clip's other modality, or its captions. By label: everything of the same class. A clip never
    finds itself within one modality; with ``other_clips_only`` not in another modality either.
    """
    texts = [side.modality == TEXT for side in (queries, gallery)]
    nothing = SameKey(np.full(len(queries), -1), np.full(len(gallery), -1))
    same = nothing if any(texts) else SameKey(*numbered(queries.items, gallery.items))
    apart = same if other_clips_only or queries.modality == gallery.modality else nothing
    if by == "label":
        return SameKey(queries.labels, gallery.labels), apart
    if not any(texts):
        return same, nothing
    return _caption_pairs(queries, gallery, captions), nothing


def _caption_pairs(queries: Side, gallery: Side, captions: Mapping[str, Sequence[str]]) -> Pairs:
    """Clip <-> caption: equal texts are one text, which all of its clips answer."""
    asks_text = queries.modality == TEXT
    texts, clips = (queries, gallery) if asks_text else (gallery, queries)
    place = {text: row for row, text in enumerate(texts.items)}
    pairs = [(place[text], row) for row, clip in enumerate(clips.items) for text in captions.get(clip, ())]
    return Pairs(pairs if asks_text else [(row, text) for text, row in pairs], len(queries), len(gallery))
