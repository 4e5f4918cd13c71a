"""An end-to-end training as a run of the bank: an alignment's checkpoint, and the encoders that belong to it.

The checkpoint names the spaces of the trained encoders: heads are of use on what ``python -m extract`` makes
with ``encoder_<modality>`` (a file; a folder for models of transformers), and refuse those from before.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.standardise import Statistics
from align.trainee import Trainee
from align.tuning import Tuner

if TYPE_CHECKING:
    from store.bank import Bank

COMMAND = "align.end_to_end"


@dataclass
class Prepared:
    """Everything that a training needs and leaves behind.

    Args:
        tuner: Ready to run.
        record: What config.json says.
        standards: Modality -> statistics of the stored features.
        rows: Columns of training_rows.parquet.
        encoders: Name in the recipe -> encoder.
    """

    tuner: Tuner
    record: dict[str, Any]
    standards: dict[str, Statistics]
    rows: dict[str, list[Any]]
    encoders: Mapping[str, Trainee]


def tune(bank: "Bank", prepared: Prepared) -> Path:
    """Train within a run of the bank; all of its files are rank 0's.

    Returns:
        The checkpoint's directory, which is that of the run.
    """
    from align import distributed
    from align.checkpoint import CONFIG_FILE, CURVE_FILE, STATE_FILE, write_heads, write_json, write_rows
    from align.run import record_metrics, used
    from align.tuning import progress

    record, tuner = prepared.record, prepared.tuner
    if not distributed.is_first():
        directory = Path(distributed.text_from_first(""))
        _train(prepared)
        return directory
    print(describe(record), file=sys.stderr)
    with bank.record_run(COMMAND, record) as run:
        directory = Path(distributed.text_from_first(str(run.directory)))
        write_json(directory / CONFIG_FILE, record)
        write_rows(directory, prepared.rows)
        stored = (own for name, own in record["modalities"].items() if name not in prepared.encoders)
        run.used(*(used(record["dataset"], own) for own in stored))
        tuner.state_path, tuner.report = directory / STATE_FILE, progress()
        if tuner.done:
            tuner.save()
        curve = _train(prepared)
        write_json(directory / CURVE_FILE, curve)
        for name, encoder in prepared.encoders.items():
            record["modalities"][name] |= _written(directory, name, record, encoder, curve[-1])
        write_json(directory / CONFIG_FILE, record)
        write_heads(directory, tuner.towers.without_towers(), tuner.standards(prepared.standards))
        record_metrics(run, record, tuner, curve)
        tuner.state_path.unlink(missing_ok=True)
    return directory


def _train(prepared: Prepared) -> list[dict[str, Any]]:
    tuner, modalities = prepared.tuner, prepared.record["modalities"]
    fresh = [name for name in prepared.encoders if name not in prepared.record["init"]["taken"]]
    if not tuner.done:
        tuner.measure({name: modalities[name]["standardise"] for name in fresh})
    return tuner.run(_say)


def _say(row: Mapping[str, Any]) -> None:
    if "validation_loss" in row:
        told = f"loss {row['validation_loss']:.3f}, R@1 {row['validation_recall']:.1%}"
        print(f"epoch {row['epoch']}: held out: {told}", file=sys.stderr)


def _written(
    directory: Path, name: str, record: Mapping[str, Any], encoder: Trainee, last: Mapping[str, Any]
) -> dict[str, str]:
    """Write an encoder's weights; what the checkpoint says of the features that it makes."""
    from align.pretraining_run import write_encoder

    told = {key: record[key] for key in ("format", "dataset", "protocol", "training", "losses", "seed")}
    told |= {"modality": encoder.modality, "encoder": encoder.record}
    told["supervision"] = list(dict.fromkeys([*encoder.supervision, *record["supervision"]]))
    save = getattr(encoder.encoder, "save", None)
    path, command = write_encoder(directory, name, told, encoder.weights(), last, save)
    return encoder.space(path) | {"extract": command}


def go_on(bank: "Bank", directory: Path, prepared: Prepared) -> Path:
    """Continue an interrupted run, from its last saved step, as a new run.

    Raises:
        ResumeError: If the clips, the stored features or the initial weights have changed since.
    """
    from align import distributed
    from align.checkpoint import STATE_FILE, read_config, read_state
    from align.run import refuse_change
    from store.runs import end_killed

    before, state = read_config(directory), read_state(directory / STATE_FILE)
    for key in ("modalities", "encoders", "training"):
        refuse_change(directory, key, before[key], prepared.record[key])
    prepared.tuner.restore(state)
    prepared.record["resumed_from"] = str(directory)
    if distributed.is_first():
        print(f"continuing {directory} after step {prepared.tuner.done}", file=sys.stderr)
        end_killed(bank.path, bank.catalog)
    finished = tune(bank, prepared)
    if distributed.is_first():
        (directory / STATE_FILE).unlink(missing_ok=True)
    return finished


def describe(record: Mapping[str, Any]) -> str:
    """The recipe for people: an alignment's, and a line for each encoder."""
    from align.prepare import describe as alignment

    lines = [alignment(record)]
    for name, own in record["encoders"].items():
        frames = "" if own["frames"] is None else f", {own['frames']} frames"
        lines.append(
            f"  trained      {name}: {own['name']} from {own['initial']}{frames}, {own['mode']}: "
            f"{own['trained']:,} of {own['parameters']:,} parameters, rate {own['learning_rate']:g}, "
            f"{record['asked']['micro_batch']} clips at once, {own['precision']}"
        )
    return "\n".join(lines)
