"""Bank selections -> clips with everything that training needs in memory; the catalog is left alone after."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from align.config import ModalityConfig, TextConfig
from align.data import ClipData, Track, text_track, track
from align.recipe import TEXT, ModalityRecipe, RecipeError, extract_command, resolve_modality, resolve_text

if TYPE_CHECKING:
    from store.bank import Bank
    from store.selection import Selection

COLUMNS = ("subject", "camera", "setup", "replication")
MEMORY_SHARE = 0.8  # of the available memory that features may fill


@dataclass
class Scope:
    """Which clips: the arguments that every selection shares."""

    dataset: str
    protocol: str | None = None
    part: str | None = None
    where: str | None = None
    views: int = 1

    def select(self, bank: "Bank", modality: str, config: ModalityConfig, view: int = 0) -> "Selection":
        """The features of one modality and view; ``modality`` is its name in the recipe."""
        return bank.select(
            self.dataset,
            config.modality or modality,
            encoder=config.encoder,
            field=config.field,
            where=self.where,
            view=view,
            protocol=self.protocol,
            part=self.part if self.protocol else None,
        )


@dataclass
class Materialised:
    """Clips in memory and what was decided on the way.

    Args:
        scope: Which clips were asked for.
        data: They.
        modalities: Name -> recipe, in order.
        text_source: ``captions``, ``labels``, or None without text.
    """

    scope: Scope
    data: ClipData
    modalities: dict[str, ModalityRecipe]
    text_source: str | None


class Part(Protocol):
    """Where one modality of the clips comes from.

    Attributes:
        recipe: Everything about it, resolved.
        items: The clips that it adds; empty for texts, which go with clips that others add.
        source: ``captions`` or ``labels`` for texts, else None.
    """

    recipe: ModalityRecipe

    @property
    def items(self) -> Sequence[str]:
        """See the class."""
        ...

    @property
    def source(self) -> str | None:
        """See the class."""
        ...

    def has(self, clips: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which of these clips have the modality: (n,) bool."""
        ...

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """Its rows over these clips."""
        ...


def materialise(
    bank: "Bank",
    scope: Scope,
    modalities: Mapping[str, ModalityConfig],
    text: TextConfig | None = None,
    missing: str = "mask",
    live: Mapping[str, Part] | None = None,
) -> Materialised:
    """Load all modalities of the clips in scope.

    Args:
        bank: The bank.
        scope: Which clips.
        modalities: Name -> how; ``text`` among them or not.
        text: Where texts come from.
        missing: ``mask``: keep clips with at least two modalities; ``drop``: only those with all.
        live: Modalities that do not come from the bank's features.

    Raises:
        RecipeError: If fewer than two clips are left, texts are not encoded, or memory will not hold it.
    """
    parts: dict[str, Part] = {}
    for name, config in modalities.items():
        if live is not None and name in live:
            parts[name] = live[name]
        elif name == TEXT:
            parts[name] = _Texts(bank, scope.dataset, config, text or TextConfig())
        else:
            parts[name] = _Stored(bank, scope, name, config)
    clips, labels, columns = _clips(bank, scope.dataset, parts.values())
    present = {name: part.has(clips, labels) for name, part in parts.items()}
    keep = _kept(f"{bank.path}: {scope.dataset}", present, len(modalities) if missing == "drop" else 2)
    clips, labels = clips[keep], labels[keep]
    tracks = {name: part.track(clips, labels) for name, part in parts.items()}
    data = ClipData(clips, labels, tracks, {name: values[keep] for name, values in columns.items()})
    source = next((part.source for part in parts.values() if part.source is not None), None)
    return Materialised(scope, data, {name: part.recipe for name, part in parts.items()}, source)


def _kept(where: str, present: Mapping[str, np.ndarray], at_least: int) -> np.ndarray:
    """Which clips have so many modalities: (n,) bool."""
    keep = np.sum(list(present.values()), 0) >= at_least
    if keep.sum() < 2:
        counts = ", ".join(f"{name} {int(has.sum())}" for name, has in present.items())
        raise RecipeError(
            f"{where}: {int(keep.sum())} clips have {at_least} modalities together ({counts}); check "
            "--protocol, --part and --where, or extract more"
        )
    return keep


class TextChoices:
    """Which texts each clip of a dataset may draw.

    Args:
        bank: The bank.
        dataset: Whose texts.
        text: Which of them.

    Attributes:
        source: ``captions`` or ``labels``.
        place: Text id -> its row.
    """

    items: Sequence[str] = ()

    def __init__(self, bank: "Bank", dataset: str, text: TextConfig):
        self.source, self._ids = resolve_text(bank, dataset, text)
        wanted = sorted({text_id for ids in self._ids.values() for text_id in ids})
        self.place = {text_id: row for row, text_id in enumerate(wanted)}

    def has(self, clips: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which clips have a text: (n,) bool."""
        return np.array([len(row) > 0 for row in self.choices(clips, labels)])

    def choices(self, clips: np.ndarray, labels: np.ndarray) -> list[list[int]]:
        """Rows of the texts of each clip."""
        keys = clips if self.source == "captions" else labels.tolist()
        return [[self.place[text_id] for text_id in self._ids.get(key, [])] for key in keys]

    def meanings(self) -> np.ndarray | None:
        """For label texts the label of each row: all prompts of a class say the same."""
        if self.source == "captions":
            return None
        meanings = np.full(len(self.place), -1, np.int64)
        for label, ids in self._ids.items():
            meanings[[self.place[text_id] for text_id in ids]] = label
        return meanings


class _Texts(TextChoices):
    """The encoded texts of a dataset."""

    def __init__(self, bank: "Bank", dataset: str, config: ModalityConfig, text: TextConfig):
        from store.tables import TEXTS

        super().__init__(bank, dataset, text)
        wanted = list(self.place)
        selection = bank.select(TEXTS, TEXT, encoder=config.encoder, field=config.field, items=wanted)
        if len(selection) < len(wanted):
            raise RecipeError(
                f"{bank.path}: {len(wanted) - len(selection)} of {len(wanted)} texts of {dataset} are not "
                f"encoded; {extract_command(bank, dataset, TEXT)}"
            )
        self.recipe = resolve_modality(TEXT, config, selection)
        self.selection = selection
        self.place = {item: row for row, item in enumerate(selection.items)}

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """The texts as a track over these clips."""
        features = self.selection.materialise(self.recipe.reduce)
        features = features.reshape(len(features), -1)
        return text_track(features, self.choices(clips, labels), self.meanings())


class _Stored:
    """The stored features of one modality, all views."""

    source: str | None = None

    def __init__(self, bank: "Bank", scope: Scope, name: str, config: ModalityConfig):
        self.name = name
        self.views = [scope.select(bank, name, config, view) for view in range(scope.views)]
        self.recipe = resolve_modality(name, config, self.views[0])
        self.items: list[str] = self.views[0].items.tolist()

    def has(self, clips: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which clips have view 0."""
        return np.isin(clips.astype(str), np.array(self.items, str))

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """Their rows, view 0 first."""
        return _media_track(self.name, self.views, self.recipe, clips)


def _clips(
    bank: "Bank", dataset: str, parts: Iterable[Part]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All clips that some modality has, in the order of the first; their labels and columns."""
    clips = list(dict.fromkeys(item for part in parts for item in part.items))
    query = f"SELECT clip_id, label, {', '.join(COLUMNS)} FROM clips WHERE dataset = ?"
    table = bank.sql(query, [dataset]).to_pydict()
    place = {clip: row for row, clip in enumerate(table["clip_id"])}
    rows = [place[clip] for clip in clips]
    labels = np.array([-1 if table["label"][row] is None else table["label"][row] for row in rows], np.int64)
    columns = {name: np.array([table[name][row] for row in rows], object) for name in COLUMNS}
    return np.array(clips, object), labels, columns


def _media_track(name: str, views: Sequence["Selection"], recipe: ModalityRecipe, clips: np.ndarray) -> Track:
    _check_memory(name, views, recipe)
    parts: list[Any] = [view.materialise(recipe.reduce) for view in views]
    items = [item for view in views for item in view.items]
    if recipe.reduce != "none":
        return track(parts[0] if len(parts) == 1 else np.concatenate(parts), items, clips)
    lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
    values = np.concatenate([plain(values, views[0].field.dtype) for values, _ in parts])
    return track(values, items, clips, np.concatenate([[0], np.cumsum(lengths)]))


def plain(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as numbers to compute with: float16 as it is, bfloat16 (kept as its bits) as float32."""
    from store.layout import to_float32

    return to_float32(values, dtype) if dtype == "bfloat16" else values


def _check_memory(name: str, views: Sequence["Selection"], recipe: ModalityRecipe) -> None:
    frames = sum(
        len(view) * int(recipe.reduce.partition(":")[2] or 1)
        if recipe.reduce != "none"
        else int(view.lengths.sum())
        for view in views
    )
    need = frames * recipe.tokens * recipe.dim * (4 if recipe.reduce in ("mean", "cls") else 2)
    if need > MEMORY_SHARE * available_bytes():
        raise RecipeError(
            f"{name}: {recipe.reduce} of {len(views[0])} clips takes {need / 1e9:.1f} GB, free are "
            f"{available_bytes() / 1e9:.1f} GB; set its reduce to mean, cls or resample:K with a smaller K"
        )


def available_bytes() -> int:
    """Memory that can be had without swapping (Linux: MemAvailable), else all that is installed."""
    import os
    from pathlib import Path

    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
