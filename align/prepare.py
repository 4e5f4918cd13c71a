"""Clips in memory + configuration -> a trainer ready to run, and the record that config.json keeps of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from align import distributed
from align.alignment import Alignment
from align.checkpoint import FORMAT
from align.config import AlignConfig, names_of
from align.data import ClipData, split_groups
from align.materialise import Materialised
from align.model import Heads, HeadSpec, WeightedLosses, build_losses
from align.recipe import RecipeError, supervision
from align.standardise import Statistics, standardise
from align.train import Trainer
from align.warm_start import freeze, take

AUTO_GROUPS = 5  # with at least so many subjects, whole subjects are held out
SINGLE_CLIPS = "clip"


@dataclass
class Prepared:
    """Everything that training needs and leaves behind.

    Args:
        record: What config.json says.
        trainer: Ready to run.
        standards: Modality -> statistics by which its features were standardised.
        rows: Columns of training_rows.parquet.
    """

    record: dict[str, Any]
    trainer: Trainer
    standards: dict[str, Statistics]
    rows: dict[str, list[Any]]


@dataclass
class Plan:
    """What is to be trained, before a loop is chosen.

    Args:
        heads: Fresh.
        losses: Likewise.
        training: Indices of the clips to learn from.
        validation: Indices of the clips to watch.
        standards: Modality -> statistics by which its features were standardised.
        record: What config.json says.
        rows: Columns of training_rows.parquet.
    """

    heads: Heads
    losses: WeightedLosses
    training: np.ndarray
    validation: np.ndarray
    standards: dict[str, Statistics]
    record: dict[str, Any]
    rows: dict[str, list[Any]]


def prepare(config: AlignConfig, loaded: Materialised, start: Alignment | None = None) -> Prepared:
    """A trainer of heads on stored features; see :func:`plan`."""
    made = plan(config, loaded, start)
    trainer = Trainer(
        made.heads,
        made.losses,
        loaded.data,
        made.training,
        made.validation,
        config.train,
        config.augment,
        config.seed,
    )
    return Prepared(made.record, trainer, made.standards, made.rows)


def plan(config: AlignConfig, loaded: Materialised, start: Alignment | None = None) -> Plan:
    """Split off the held-out clips, build heads and losses, standardise the features in place.

    Args:
        config: What was asked.
        loaded: The clips.
        start: Whose heads to start from (`--init`).

    Raises:
        StartError: If they do not fit, or a head cannot be frozen.
        SpaceError: If they are of another space.
        RecipeError: If the clips cannot be grouped as asked.
        OptionError: If a head or loss refuses its options.
        PairError: If the pairs do not fit the modalities.
    """
    terms = [asdict(loss) | {"pairs": loss.pairs or config.pairs} for loss in config.losses]
    torch.manual_seed(config.seed)
    specs = {
        name: HeadSpec(own.head, own.tokens, own.dim, own.head_options)
        for name, own in loaded.modalities.items()
    }
    losses, heads = build_losses(terms, list(specs)), Heads(specs, config.embedding)
    by, training, validation = hold_out(loaded.data, config)
    taken, given = take(start, heads, loaded.modalities)
    frozen = freeze(heads, names_of(config.freeze), taken)
    per = {name: own.standardise for name, own in loaded.modalities.items()}
    standards = standardise(loaded.data, training, per, given=given)
    rows = training_rows(loaded, validation, start)
    record = _record(config, loaded, terms, heads)
    record |= {"init": {"taken": taken, "frozen": frozen}, "supervision": _with(record["supervision"], start)}
    record["training"] = {
        "part": loaded.scope.part,
        "where": loaded.scope.where,
        "views": loaded.scope.views,
        "clips": len(training),
        "processes": distributed.size(),
        "held_out": len(validation),
        "held_out_by": by,
        "rows_sha256": rows_digest(rows),
    }
    return Plan(heads, losses, training, validation, standards, record, rows)


def _record(
    config: AlignConfig, loaded: Materialised, terms: list[dict[str, Any]], heads: Heads
) -> dict[str, Any]:
    """config.json without the training rows: what was asked, and what it was resolved to."""
    return {
        "format": FORMAT,
        "asked": config.as_json(),
        "dataset": loaded.scope.dataset,
        "protocol": loaded.scope.protocol,
        "embedding": config.embedding,
        "modalities": {name: own.as_json() for name, own in loaded.modalities.items()},
        "parameters": {name: heads.parameter_count(name) for name in heads.modalities},
        "losses": terms,
        "text_source": loaded.text_source,
        "supervision": supervision(loaded.text_source, terms, list(loaded.modalities)),
        "seed": config.seed,
    }


def hold_out(data: ClipData, config: AlignConfig) -> tuple[str | None, np.ndarray, np.ndarray]:
    """What clips are grouped by, and the indices of those to learn from and of those held out.

    Raises:
        RecipeError: If the column is unknown or has one value only.
    """
    rule, everything = config.validation, np.arange(len(data))
    if not rule.fraction or (rule.by is None and len(data) < rule.min_clips):
        return None, everything, everything[:0]
    subjects = {value for value in data.columns.get("subject", ()) if value is not None}
    by = rule.by or ("subject" if len(subjects) >= AUTO_GROUPS else SINGLE_CLIPS)
    if by != SINGLE_CLIPS and by not in data.columns:
        accepted = ", ".join([*data.columns, SINGLE_CLIPS])
        raise RecipeError(f"--validation.by: {by!r} is no column of clips; accepted: {accepted}")
    groups = data.clips if by == SINGLE_CLIPS else data.columns[by]
    if len(set(groups)) < 2:
        raise RecipeError(
            f"--validation.by: all training clips have the same {by}; use {SINGLE_CLIPS}, "
            "or --validation.fraction 0"
        )
    return by, *split_groups(groups, rule.fraction, config.seed)


def _with(own: list[str], start: Alignment | None) -> list[str]:
    """What supervised the heads, those started from included."""
    return list(dict.fromkeys([*own, *(start.supervision if start is not None else [])]))


def training_rows(
    loaded: Materialised, validation: np.ndarray, start: Alignment | None = None
) -> dict[str, list[Any]]:
    """Every clip that training sees, with its role: columns dataset, clip_id, role, label, subject.

    Those that the heads saw which training starts from are among them, in their role of then.
    """
    data = loaded.data
    held = np.isin(np.arange(len(data)), validation)
    rows: dict[str, list[Any]] = {
        "dataset": [loaded.scope.dataset] * len(data),
        "clip_id": data.clips.tolist(),
        "role": np.where(held, "validation", "train").tolist(),
        "label": data.labels.tolist(),
        "subject": data.columns["subject"].tolist(),
    }
    here = set(data.clips)
    before = [] if start is None else start.training_rows().to_pylist()
    for row in before:
        if row["dataset"] != loaded.scope.dataset or row["clip_id"] not in here:
            for name, values in rows.items():
                values.append(row[name])
    return rows


def rows_digest(rows: Mapping[str, list[Any]]) -> str:
    """SHA-256 over the sorted (dataset, clip id, role)."""
    lines = sorted("\t".join(row) for row in zip(rows["dataset"], rows["clip_id"], rows["role"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe(record: Mapping[str, Any]) -> str:
    """The recipe for people: a line for the clips, one a modality, one a loss, one for what supervised it."""
    training = record["training"]
    split = f"{record['protocol']}/{training['part']}" if record["protocol"] else "all clips"
    held = (
        f", {training['held_out']} more held out by {training['held_out_by']}" if training["held_out"] else ""
    )
    lines = [f"align {record['dataset']} ({split}): {training['clips']} clips{held}"]
    for name, own in record["modalities"].items():
        what = record["text_source"] if name == "text" else own["reduce"]
        options = "".join(f" {key}={value}" for key, value in own["head_options"].items())
        size = record["parameters"][name]
        lines.append(
            f"  {name:<12} {own['feature_set']} {own['field']} ({own['items']}, {what}) "
            f"-> {own['head']}{options}, {size:,} parameters -> {record['embedding']}"
        )
    if taken := record["init"]["taken"]:
        fresh = [name for name in record["modalities"] if name not in taken]
        rest = f"; fresh: {', '.join(fresh)}" if fresh else ""
        lines.append(f"  init         {record['asked']['init']}: {', '.join(taken)}{rest}")
    if record["init"]["frozen"]:
        lines.append(f"  frozen       {', '.join(record['init']['frozen'])}")
    for loss in record["losses"]:
        options = "".join(f" {key}={value}" for key, value in loss["options"].items())
        lines.append(f"  loss         {loss['weight']:g} x {loss['name']} over {loss['pairs']}{options}")
    supervised = " and ".join(record["supervision"]) or "nothing but which features belong to one clip"
    lines.append(f"  supervision  {supervised}")
    return "\n".join(lines)
