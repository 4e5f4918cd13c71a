"""Bank selections -> clips with everything that training needs in memory; the catalog is left alone after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


def materialise(
    bank: "Bank",
    scope: Scope,
    modalities: Mapping[str, ModalityConfig],
    text: TextConfig | None = None,
    missing: str = "mask",
) -> Materialised:
    """Load all modalities of the clips in scope.

    Args:
        bank: The bank.
        scope: Which clips.
        modalities: Name -> how; ``text`` among them or not.
        text: Where texts come from.
        missing: ``mask``: keep clips with at least two modalities; ``drop``: only those with all.

    Raises:
        RecipeError: If fewer than two clips are left, texts are not encoded, or memory will not hold it.
    """
    media = [name for name in modalities if name != TEXT]
    selected = {
        name: [scope.select(bank, name, modalities[name], view) for view in range(scope.views)]
        for name in media
    }
    recipes = {name: resolve_modality(name, modalities[name], selected[name][0]) for name in media}
    texts = (
        _Texts(bank, scope.dataset, modalities[TEXT], text or TextConfig()) if TEXT in modalities else None
    )
    clips, labels, columns = _clips(bank, scope.dataset, selected)
    present = {name: np.isin(clips.astype(str), selected[name][0].items.astype(str)) for name in media}
    if texts is not None:
        recipes[TEXT] = texts.recipe
        present[TEXT] = np.array([len(row) > 0 for row in texts.choices(clips, labels)])
    keep = _kept(f"{bank.path}: {scope.dataset}", present, len(modalities) if missing == "drop" else 2)
    clips, labels = clips[keep], labels[keep]
    tracks = {name: _media_track(name, selected[name], recipes[name], clips) for name in media}
    if texts is not None:
        tracks[TEXT] = texts.track(clips, labels)
    data = ClipData(
        clips,
        labels,
        {name: tracks[name] for name in modalities},
        {name: values[keep] for name, values in columns.items()},
    )
    source = texts.source if texts is not None else None
    return Materialised(scope, data, {name: recipes[name] for name in modalities}, source)


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


class _Texts:
    """The encoded texts of a dataset: which ones each clip may draw, and their features."""

    def __init__(self, bank: "Bank", dataset: str, config: ModalityConfig, text: TextConfig):
        from store.tables import TEXTS

        self.source, self.ids = resolve_text(bank, dataset, text)
        wanted = sorted({text_id for ids in self.ids.values() for text_id in ids})
        selection = bank.select(TEXTS, TEXT, encoder=config.encoder, field=config.field, items=wanted)
        if len(selection) < len(wanted):
            raise RecipeError(
                f"{bank.path}: {len(wanted) - len(selection)} of {len(wanted)} texts of {dataset} are not "
                f"encoded; {extract_command(bank, dataset, TEXT)}"
            )
        self.recipe = resolve_modality(TEXT, config, selection)
        self.selection = selection
        self.place = {item: row for row, item in enumerate(selection.items)}

    def choices(self, clips: np.ndarray, labels: np.ndarray) -> list[list[int]]:
        """Rows of the texts of each clip."""
        keys = clips if self.source == "captions" else labels.tolist()
        return [[self.place[text_id] for text_id in self.ids.get(key, [])] for key in keys]

    def track(self, clips: np.ndarray, labels: np.ndarray) -> Track:
        """The texts as a track over these clips."""
        features = self.selection.materialise(self.recipe.reduce)
        features = features.reshape(len(features), -1)
        return text_track(features, self.choices(clips, labels), self._meanings())

    def _meanings(self) -> np.ndarray | None:
        """For label texts the label of each row: all prompts of a class say the same."""
        if self.source == "captions":
            return None
        meanings = np.full(len(self.place), -1, np.int64)
        for label, ids in self.ids.items():
            meanings[[self.place[text_id] for text_id in ids]] = label
        return meanings


def _clips(
    bank: "Bank", dataset: str, selected: Mapping[str, Sequence["Selection"]]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All clips that some modality has, in the order of the first; their labels and columns."""
    clips = list(dict.fromkeys(item for views in selected.values() for item in views[0].items))
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
