"""`python -m align` from what was typed to a finished checkpoint: resolve, load, train, record."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from align.config import AlignConfig
from store.errors import FrameBankError

if TYPE_CHECKING:
    from align.alignment import Alignment
    from align.materialise import Materialised
    from align.prepare import Prepared
    from store.bank import Bank


class ResumeError(FrameBankError, ValueError):
    """A run that cannot be continued, or not like this."""


def align(bank: str = "bank", resume: str | None = None, **asked: Any) -> int:
    """Train heads that map stored features of several modalities into one space of unit vectors.

    Without options: aligns the modalities that the bank covers, and prints the recipe it resolved.
    `torchrun --nproc_per_node N -m align ...` trains in N processes, on a GPU each if there are GPUs, with
    the loss and gradients of one process whose batch is N times as large.

    Args:
        bank: The bank's directory.
        resume: An interrupted run to continue under its own recipe: run:<id>, its directory, or `latest`.
        asked: See AlignConfig.
    """
    from align import distributed
    from store.bank import Bank

    config = AlignConfig(**asked)
    with distributed.joined(config.train.device):
        opened = Bank.open(bank)
        done = train(opened, config) if resume is None else continue_run(opened, resume, config)
        if distributed.is_first():
            print(done)
    return 0


def train(bank: "Bank", config: AlignConfig) -> Path:
    """Train anew.

    Returns:
        The checkpoint's directory, which is that of the run in the bank.

    Raises:
        RecipeError: If the bank lacks what the config asks for.
    """
    from align.prepare import describe
    from align.warm_start import pinned

    prepared = _prepared(bank, pinned(bank, config))
    _say(describe(prepared.record))
    return _recorded(bank, prepared)


def continue_run(bank: "Bank", resume: str, config: AlignConfig | None = None) -> Path:
    """Continue an interrupted run, from its last saved epoch and under its own recipe, as a new run.

    Args:
        bank: The bank.
        resume: ``run:<id>``, a directory, or ``latest``.
        config: What else was asked; refused where it is neither a default nor the run's own value.

    Raises:
        ResumeError: If the run still goes, options contradict, or the bank's clips or feature sets changed.
        CheckpointError: If there is no such run, or it has no saved state.
    """
    from align import distributed
    from align.checkpoint import STATE_FILE, read_config, read_state
    from store.runs import end_killed

    found = _interrupted(bank, resume) if distributed.is_first() else ""
    directory = Path(distributed.text_from_first(found))
    before, state = read_config(directory), read_state(directory / STATE_FILE)
    own = AlignConfig.from_json(before["asked"])
    _refuse_contradictions(own, config or AlignConfig())
    prepared = _prepared(bank, own)
    for key in ("modalities", "training"):
        refuse_change(directory, key, before[key], prepared.record[key])
    prepared.trainer.restore(state)
    prepared.record["resumed_from"] = str(directory)
    _say(f"continuing {directory} after epoch {prepared.trainer.epoch}")
    if distributed.is_first():
        end_killed(bank.path, bank.catalog)
    finished = _recorded(bank, prepared)
    if distributed.is_first():
        (directory / STATE_FILE).unlink(missing_ok=True)
    return finished


def _interrupted(bank: "Bank", resume: str) -> str:
    """The directory of a run that has stopped."""
    from align.checkpoint import STATE_FILE, locate
    from store.locks import is_held
    from store.runs import LOCK

    directory = locate(resume, bank.path, STATE_FILE)
    if is_held(directory / LOCK):
        raise ResumeError(f"{directory}: this run is still going; wait for it, or stop it first")
    return str(directory)


def _prepared(bank: "Bank", config: AlignConfig) -> "Prepared":
    from align.prepare import prepare
    from align.warm_start import earlier

    start = earlier(bank, config)
    return prepare(config, load_clips(bank, config, start), start)


def load_clips(bank: "Bank", config: AlignConfig, start: "Alignment | None" = None) -> "Materialised":
    """Resolve dataset, protocol and modalities, and bring their features into memory.

    Args:
        bank: The bank.
        config: What was asked.
        start: Whose heads to start from: what was left open is as it was there.
    """
    from align.materialise import Scope, materialise
    from align.recipe import choose_dataset, choose_modalities, choose_protocol
    from align.warm_start import inherit

    dataset = choose_dataset(bank, config.dataset)
    protocol = choose_protocol(bank, dataset, config.protocol)
    scope = Scope(dataset, protocol, config.part if protocol else None, config.where, config.views)
    modalities = inherit(choose_modalities(bank, dataset, config.modalities), start)
    return materialise(bank, scope, modalities, config.text, config.missing)


def _recorded(bank: "Bank", prepared: "Prepared") -> Path:
    """Train within a run of the bank: its files first, then the loop, then the heads and the metrics.

    All of it is rank 0's; the others only train along.
    """
    from align import distributed
    from align.checkpoint import (
        CONFIG_FILE,
        CURVE_FILE,
        STATE_FILE,
        write_heads,
        write_json,
        write_rows,
    )
    from align.train import progress

    record, trainer = prepared.record, prepared.trainer
    _refuse_disagreement(record)
    if not distributed.is_first():
        directory = Path(distributed.text_from_first(""))
        trainer.run()
        return directory
    with bank.record_run("align", record) as run:
        directory = Path(distributed.text_from_first(str(run.directory)))
        write_json(directory / CONFIG_FILE, record)
        write_rows(directory, prepared.rows)
        run.used(*(used(record["dataset"], own) for own in record["modalities"].values()))
        trainer.state_path = directory / STATE_FILE
        if trainer.epoch:
            trainer.save()
        curve = trainer.run(progress(trainer.config.epochs))
        write_json(directory / CURVE_FILE, curve)
        write_heads(directory, trainer.heads, prepared.standards)
        record_metrics(run, record, trainer, curve)
        trainer.state_path.unlink(missing_ok=True)
    return directory


def used(dataset: str, own: Mapping[str, Any]) -> SimpleNamespace:
    """The feature set that a modality of the record was read from."""
    from store.tables import TEXT, TEXTS

    owner = TEXTS if own["modality"] == TEXT else dataset
    return SimpleNamespace(dataset=owner, modality=own["modality"], feature_set=own["feature_set"])


def record_metrics(run: Any, record: Mapping[str, Any], trainer: Any, curve: list[dict[str, Any]]) -> None:
    """The last loss, and those of the weights that are kept on the clips held out."""
    run.metric("align/train_loss", curve[-1]["train_loss"], n=record["training"]["clips"])
    if "validation_loss" in curve[-1]:
        loss, recall = trainer.evaluate()
        run.metric("align/validation_loss", loss, n=record["training"]["held_out"])
        run.metric("align/validation_recall_at_1", recall, n=record["training"]["held_out"])


def _say(text: str) -> None:
    """On stderr, once."""
    from align import distributed

    if distributed.is_first():
        print(text, file=sys.stderr)


def _refuse_disagreement(record: Mapping[str, Any]) -> None:
    """All ranks must have read the same clips and feature sets: something may be extracting meanwhile."""
    from align import distributed

    own = json.dumps([record["training"], record["modalities"]])
    if distributed.text_from_first(own) != own:
        raise distributed.DistributedError(
            f"torchrun: process {distributed.rank()} read other clips or features of {record['dataset']} "
            "than process 0; try again when nothing is being extracted"
        )


def _refuse_contradictions(own: AlignConfig, asked: AlignConfig) -> None:
    mine, theirs, defaults = own.as_json(), asked.as_json(), AlignConfig().as_json()
    for key, value in theirs.items():
        if value not in (defaults[key], mine[key]):
            raise ResumeError(
                f"--resume: --{key} {value!r} is not what this run began with ({mine[key]!r}); leave it out, "
                "or train anew without --resume"
            )


def refuse_change(directory: Path, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ResumeError if what a run rests on is no longer what it was."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise ResumeError(
            f"{directory}: {key} {name} is {now.get(name)!r} now, was {before.get(name)!r} when this run "
            "began; train anew without --resume"
        )
