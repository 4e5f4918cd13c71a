"""What was asked + what the bank has -> a recipe in which nothing is left open, which a checkpoint records.

Nothing here reads features: only the catalog is asked, so a wrong name costs a second.
"""

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import AlignConfig, ModalityConfig, TextConfig
from align.pairs import resolve_pairs
from store.errors import FrameBankError, UnknownNameError

if TYPE_CHECKING:
    from store.bank import Bank
    from store.selection import Selection

TEXT = "text"
ORDER = ("rgb", "ir", "depth", "skeleton", "inertial", "audio", TEXT)  # the first one present is the anchor
MOST_STEPS = 32  # frames that `resample` keeps of a clip when nothing else was asked
WIDEST_SEQUENCE = 65536  # numbers a clip up to which the head that flattens them (17 M weights) is chosen
ALL_CLIPS = "none"
USUAL_PROTOCOL = "cross-subject"


class RecipeError(FrameBankError, ValueError):
    """The bank does not have what was asked; the message holds the command that adds it."""


@dataclass
class ModalityRecipe:
    """One modality, everything resolved.

    Args:
        modality: Whose features these are.
        encoder: Its encoder.
        feature_set: ``<encoder>@<fingerprint>``.
        space_digest: Of the features' space.
        field: Field read.
        stored_shape: (tokens, dim) of that field.
        reduce: What is materialised of it.
        tokens: N that the head sees.
        dim: D that the head sees.
        head: Name in ``align.HEADS``.
        head_options: Its options.
        standardise: ``dim``, ``token`` or ``none``.
        items: Clips (or texts) that have it.
    """

    modality: str
    encoder: str
    feature_set: str
    space_digest: str
    field: str
    stored_shape: tuple[int, int]
    reduce: str
    tokens: int
    dim: int
    head: str
    head_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    standardise: str = "dim"
    items: int = 0

    def as_json(self) -> dict[str, Any]:
        """As config.json keeps it."""
        return asdict(self) | {"stored_shape": list(self.stored_shape)}


def choose_dataset(bank: "Bank", asked: str | None) -> str:
    """The dataset that was asked for, or the only one.

    Raises:
        UnknownNameError: If the bank lacks it.
        RecipeError: If the bank has none, or several and none was asked for.
    """
    names = bank.datasets().column("name").to_pylist()
    if not names:
        raise RecipeError(
            f"{bank.path}: no dataset in it; python -m extract --dataset NAME --bank {bank.path}"
        )
    if asked is None and len(names) > 1:
        raise RecipeError(
            f"{bank.path}: several datasets ({', '.join(sorted(names))}); say which: --dataset NAME"
        )
    if asked is not None and asked not in names:
        raise UnknownNameError(str(bank.path), "dataset", asked, sorted(names))
    return asked or names[0]


def choose_protocol(bank: "Bank", dataset: str, asked: str | None) -> str | None:
    """The protocol that was asked for, the only one, or ``cross-subject``; None means all clips.

    Raises:
        UnknownNameError: If the dataset lacks it.
        RecipeError: If there are several and none is the usual one.
    """
    query = "SELECT DISTINCT protocol FROM splits WHERE dataset = ? ORDER BY 1"
    names = bank.sql(query, [dataset]).column("protocol").to_pylist()
    if asked == ALL_CLIPS or (asked is None and not names):
        return None
    if asked is not None and asked not in names:
        raise UnknownNameError(dataset, "protocol", asked, [*names, ALL_CLIPS])
    if asked is None and len(names) > 1 and USUAL_PROTOCOL not in names:
        raise RecipeError(f"{dataset}: several protocols ({', '.join(names)}); say which: --protocol NAME")
    return asked or (names[0] if len(names) == 1 else USUAL_PROTOCOL)


def covered(bank: "Bank", dataset: str) -> list[str]:
    """Modalities of a dataset with features in the bank, text included if any of its texts is encoded."""
    sets = "SELECT DISTINCT modality FROM feature_sets JOIN features USING (set_id) WHERE dataset = ?"
    found = bank.sql(sets, [dataset]).column("modality").to_pylist()
    return sorted([*found, *([TEXT] if _has_texts(bank, dataset) else [])], key=_rank)


def choose_modalities(
    bank: "Bank",
    dataset: str,
    asked: str | Mapping[str, ModalityConfig | None] | None,
    live: Collection[str] = (),
) -> dict[str, ModalityConfig]:
    """The modalities that were asked for, or all that the bank covers.

    Args:
        bank: The bank.
        dataset: Its dataset.
        asked: ``"skeleton,inertial,text"`` or name -> configuration; the first one is the anchor.
        live: Names that need no features.

    Raises:
        RecipeError: If fewer than two are left; the message holds the extract command to run.
        UnknownNameError: If one has no features.
    """
    there = sorted({*covered(bank, dataset), *live}, key=_rank)
    if asked is None:
        wanted: dict[str, ModalityConfig] = {name: ModalityConfig() for name in there}
    elif isinstance(asked, str):
        wanted = {name.strip(): ModalityConfig() for name in asked.split(",") if name.strip()}
    else:
        wanted = {name: config or ModalityConfig() for name, config in asked.items()}
    for name in (config.modality or name for name, config in wanted.items() if name not in live):
        if name not in there:
            known = ", ".join(there) or "none"
            raise RecipeError(
                f"{bank.path}: no {name} features of {dataset} (modalities with features: {known}); "
                + extract_command(bank, dataset, name)
            )
    if len(wanted) < 2:
        raise RecipeError(
            f"{bank.path}: aligning needs two modalities, {dataset} gives {', '.join(wanted) or 'none'}; "
            + extract_command(bank, dataset, _next(bank, dataset, set(wanted)))
        )
    return wanted


def extract_command(bank: "Bank", dataset: str, modality: str) -> str:
    """What to run for features of a modality."""
    return f"python -m extract --dataset {dataset} --modality {modality} --bank {bank.path}"


def resolve_modality(name: str, config: ModalityConfig, selection: "Selection") -> ModalityRecipe:
    """Decide what is still open about a modality, by the shape of its features."""
    tokens, dim = selection.field.tokens, selection.field.dim
    reduce = config.reduce or _reduce(selection.lengths.tolist(), tokens)
    pooled = reduce in ("mean", "cls")
    seen = 1 if pooled else tokens
    steps = 1 if pooled else _steps(reduce)
    head = config.head or choose_head(steps, seen, dim)
    options = dict(config.head_options)
    if head in ("conv", "sequence") and steps > 1:
        options.setdefault("steps", steps)
    return ModalityRecipe(
        modality=config.modality or name,
        encoder=selection.feature_set.partition("@")[0],
        feature_set=selection.feature_set,
        space_digest=selection.space_digest,
        field=selection.field.name,
        stored_shape=(tokens, dim),
        reduce=reduce,
        tokens=seen,
        dim=dim,
        head=head,
        head_options=options,
        standardise=config.standardise or ("none" if head == "identity" else "dim"),
        items=len(set(selection.items)),
    )


def resolve_text(
    bank: "Bank", dataset: str, config: TextConfig
) -> tuple[str, dict[str, list[str]] | dict[int, list[str]]]:
    """Where texts come from, and the text ids of each clip id (captions) or label (label texts).

    Raises:
        RecipeError: If the dataset has no such texts.
    """
    own, every = (_captions(bank, dataset, config.caption_source, generated) for generated in (False, True))
    source = config.source or ("captions" if own or config.caption_source else "labels")
    captions = own or every
    if source == "captions" and captions:
        return source, captions
    query = (
        "SELECT label, text_id FROM label_texts WHERE dataset = ? AND prompt_set = coalesce(?, prompt_set)"
    )
    labels = _grouped(bank.sql(f"{query} ORDER BY ALL", [dataset, config.prompt_set]).to_pydict())
    if source == "labels" and labels:
        return source, labels
    sets = bank.sql("SELECT DISTINCT prompt_set FROM label_texts WHERE dataset = ?", [dataset])
    names = ", ".join(sets.column("prompt_set").to_pylist()) or "none"
    raise RecipeError(
        f"{dataset}: no texts for --text.source {source}, --text.caption_source {config.caption_source}, "
        f"--text.prompt_set {config.prompt_set}; it has {len(captions)} captioned clips and the prompt sets: "
        f"{names}"
    )


def _captions(bank: "Bank", dataset: str, source: str | None, generated: bool) -> dict[str, list[str]]:
    """Text ids of each captioned clip: of one source, or of all; ``generated`` ones only if told."""
    query = """
        SELECT DISTINCT clip_id, text_id FROM captions WHERE dataset = $1 AND ($2 IS NULL OR source = $2)
        AND ($3 OR coalesce(source, '') NOT IN (SELECT source FROM captioned WHERE dataset = $1))
        ORDER BY ALL
    """
    chosen = bank.sql(query, [dataset, source, generated or source is not None])
    return _grouped(chosen.to_pydict())


def supervision(
    text_source: str | None, terms: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    """What tells training more than which features belong together: captions, labels; for reports.

    A text that no pair of a loss contains teaches nothing: it only keeps its place in the space.
    """
    pairs = [pair for term in terms for pair in resolve_pairs(term["pairs"], names)]
    source = text_source if any(TEXT in pair for pair in pairs) else None
    told = any(term["options"].get("same_label", "negative") != "negative" for term in terms)
    return [
        *(["captions"] if source == "captions" else []),
        *(["labels"] if told or source == "labels" else []),
    ]


def _has_texts(bank: "Bank", dataset: str) -> bool:
    query = """
        SELECT count(*) AS n FROM features JOIN feature_sets USING (set_id)
        WHERE modality = 'text' AND item_id IN (
            SELECT text_id FROM captions WHERE dataset = $1 UNION ALL
            SELECT text_id FROM label_texts WHERE dataset = $1)
    """
    return bool(bank.sql(query, [dataset]).column("n")[0].as_py())


def _next(bank: "Bank", dataset: str, have: set[str]) -> str:
    """The modality to suggest: one with media but no features, else text."""
    media = bank.sql("SELECT DISTINCT modality FROM media WHERE dataset = ?", [dataset])
    missing = sorted(set(media.column("modality").to_pylist()) - have, key=_rank)
    return missing[0] if missing else TEXT


def _rank(modality: str) -> tuple[int, str]:
    base = modality.partition(".")[0]
    return (ORDER.index(base) if base in ORDER else len(ORDER) - 1, modality)


def _reduce(lengths: list[int], tokens: int) -> str:
    if max(lengths, default=1) > 1:
        return f"resample:{min(MOST_STEPS, max(2, round(statistics.median(lengths))))}"
    return "mean" if tokens == 1 else "resample:1"


def _steps(reduce: str) -> int:
    """Frames after reducing; 2 stands for "several" where clips keep their own lengths."""
    return int(reduce.partition(":")[2]) if reduce.startswith("resample:") else 2


def choose_head(steps: int, tokens: int, dim: int) -> str:
    """The head for features of this shape when none is asked for: it keeps the order in time, if any."""
    if steps > 1:
        return "sequence" if steps * tokens * dim <= WIDEST_SEQUENCE else "conv"
    return "attention" if tokens > 1 else "mlp"


def _grouped(columns: Mapping[str, list[Any]]) -> dict[Any, list[str]]:
    keys, values = columns.values()
    grouped: dict[Any, list[str]] = {}
    for key, value in zip(keys, values, strict=True):
        grouped.setdefault(key, []).append(value)
    return grouped


def read_recipe(path: str) -> AlignConfig:
    """The YAML of `python -m align` as its configuration; wrong keys end with the message that names them.

    Raises:
        RecipeError: If there is no such file.
    """
    from jsonargparse import auto_cli

    if not Path(path).is_file():
        raise RecipeError(f"--recipe: no file {path}; those that come along are in configs/align")
    config: AlignConfig = auto_cli(_recipe, args=["--config", path], prog="--recipe")
    return config


def _recipe(**asked: Any) -> AlignConfig:
    return AlignConfig(**asked)
