"""Modalities that are encoded while training: their place among the clips, and what their encoders see."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from align.config import ModalityConfig, TextConfig
from align.data import Track, text_track
from align.materialise import TextChoices
from align.recipe import ModalityRecipe, RecipeError, resolve_modality
from align.towers import Values
from store.spec import FeatureSpec

if TYPE_CHECKING:
    from store.bank import Bank

FIRST_FIELDS = ("embedding", "cls")  # the one that a head gets when none is named


class Feed(Protocol):
    """Where an encoder's input comes from."""

    def batches(self, chunks: Sequence[np.ndarray]) -> Iterator[tuple[Values, np.ndarray]]:
        """For each chunk of row numbers their input, and which of them could be read (bool)."""
        ...

    def augmented(self, values: Values, generator: torch.Generator) -> Values:
        """A random variant, for training."""
        ...


class LiveMedia:
    """The clips that have media of one modality; row ``clip * views + view`` of its track stands for a view.

    Args:
        recipe: What the encoder gives and its head takes.
        clips: Ids, in the order of the rows.
        views: Of each clip.
    """

    source: str | None = None

    def __init__(self, recipe: ModalityRecipe, clips: Sequence[str], views: int):
        self.recipe, self.items, self.views = recipe, clips, views

    def has(self, clips: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which of these clips have media."""
        return np.isin(clips.astype(str), np.array(self.items, str))

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """Rows without features."""
        place = {clip: number for number, clip in enumerate(self.items)}
        owner = np.array([place.get(clip, -1) for clip in clips], np.int64)
        counts = np.where(owner >= 0, self.views, 0)
        index = (owner[owner >= 0, None] * self.views + np.arange(self.views)).ravel()
        rows = _nothing(len(self.items) * self.views)
        return Track(rows, np.cumsum(counts) - counts, counts, index, live=True)


class LiveTexts(TextChoices):
    """The texts of a dataset as they are written; a row of the track stands for a text.

    Args:
        bank: The bank.
        dataset: Whose texts.
        text: Which of them.
    """

    recipe: ModalityRecipe

    def __init__(self, bank: "Bank", dataset: str, text: TextConfig):
        super().__init__(bank, dataset, text)
        known = bank.sql("SELECT text_id, text FROM texts").to_pydict()
        written = dict(zip(known["text_id"], known["text"], strict=True))
        self.texts = [written[text_id] for text_id in self.place]

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """Rows without features."""
        features = _nothing(len(self.texts))[:, 0, 0]
        return replace(text_track(features, self.choices(clips, labels), self.meanings()), live=True)


@dataclass
class TextFeed:
    """Texts as tokens; a :class:`Feed`.

    Args:
        encoder: Its tokenizer.
        texts: By row.
    """

    encoder: Any
    texts: Sequence[str]

    def batches(self, chunks: Sequence[np.ndarray]) -> Iterator[tuple[Values, np.ndarray]]:
        """(b, L) token tensors of each chunk."""
        for chunk in chunks:
            tokens = self.encoder.tokenise([self.texts[int(row)] for row in chunk]) if len(chunk) else {}
            yield tokens, np.ones(len(chunk), bool)

    def augmented(self, values: Values, generator: torch.Generator) -> Values:
        """As they are."""
        return values


def field_of(encoder: Any, asked: str | None, name: str) -> Any:
    """The field that a head gets: the one asked for, else ``embedding`` or ``cls`` where there is one.

    Raises:
        RecipeError: If the encoder has no such field.
    """
    if asked is not None and asked not in encoder.fields:
        raise RecipeError(
            f"modalities.{name}.field: {encoder.name} has no {asked!r}; it has: {', '.join(encoder.fields)}"
        )
    known = [one for one in FIRST_FIELDS if one in encoder.default_fields]
    return encoder.fields[asked or (known[0] if known else encoder.default_fields[0])]


def live_recipe(
    name: str,
    config: ModalityConfig,
    encoder: Any,
    field: Any,
    steps: int,
    items: Sequence[str],
) -> ModalityRecipe:
    """What a selection of the encoder's stored features would be resolved to.

    Args:
        name: In the recipe.
        config: What was asked.
        encoder: Its name.
        field: Of its fields.
        steps: T' of a clip.
        items: What it will encode.

    Raises:
        RecipeError: For a reduction that it does not have.
    """
    described: Any = SimpleNamespace(
        field=field,
        lengths=np.full(len(items), steps),
        feature_set=f"{encoder.name} (trained here)",
        space_digest=FeatureSpec(encoder.name, encoder.space).space_digest,
        items=list(items),
    )
    found = resolve_modality(name, config, described)
    if found.reduce == "none":
        raise RecipeError(
            f"modalities.{name}.reduce: none; accepted for a trained encoder: mean, cls, resample:K"
        )
    return found


def _nothing(rows: int) -> np.ndarray:
    """Features (R, 1, 1, 1) of which only the number of rows matters."""
    return np.zeros((rows, 1, 1, 1), np.float32)
