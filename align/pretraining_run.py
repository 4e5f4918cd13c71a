"""A masked pre-training as a run of the bank: its record, its files, its continuation after an interruption.

The run's folder gets what an alignment's does (config.json, training_rows.parquet, curve.json, state.pt while
it goes) and ``encoder_<modality>.safetensors``, whose header and whose neighbour ``encoder_<modality>.json``
say what the encoder was trained on. End-to-end training leaves the same; a model of transformers is a folder.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np
import torch

from align.mae_config import MaeConfig
from align.pretraining import MaskedTask, Pretrainer, progress
from align.run import ResumeError

if TYPE_CHECKING:
    from store.bank import Bank

COMMAND = "align.mae"
Config = TypeVar("Config", bound="Resumable")
Save = Callable[[Path, Mapping[str, torch.Tensor]], str]  # folder, tensors -> the folder's digest
FORMAT = 1
TRAIN, VALIDATION = "train", "validation"
# What the weights themselves say, in the header of a file or in a file of a folder.
TOLD = ("dataset", "protocol", "modality", "encoder", "training", "supervision")
TOLD_KEY, TOLD_FILE = "framebank", "framebank.json"
DIGEST_CHARACTERS = 16  # of the SHA-256 by which encoders.weights names a file
WHOLE_SUBJECTS = 5  # with at least so many, whole subjects are held out
FEWEST_TO_SPLIT = 4  # clips


class Resumable(Protocol):
    """A configuration that a run keeps."""

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read back."""
        ...


@dataclass
class Prepared:
    """Everything that a pre-training needs and leaves behind.

    Args:
        trainer: Ready to run.
        record: What config.json says; ``encoder`` in it is what the weights are for.
        rows: Columns of training_rows.parquet.
        weights: The network's tensors as the encoder's checkpoints have them.
        used: The feature sets read.
    """

    trainer: Pretrainer
    record: dict[str, Any]
    rows: dict[str, list[Any]]
    weights: Callable[[], dict[str, torch.Tensor]]
    used: Sequence[Any] = ()


class Plan:
    """Which clips are learnt from and which only watched, and what the run records of it.

    Args:
        config: What was asked.
        dataset: Whose clips.
        protocol: The part of which they are; None: all clips.
        clips: Columns clip_id, label, subject.
        encoder: What is trained: name, architecture, preset, initial, parameters, device, precision.
    """

    def __init__(
        self,
        config: MaeConfig,
        dataset: str,
        protocol: str | None,
        clips: Mapping[str, list[Any]],
        encoder: dict[str, Any],
    ):
        self.config, self.dataset, self.protocol, self.encoder = config, dataset, protocol, encoder
        self.training, self.held_out = hold_out(clips["subject"], config)
        held = np.isin(np.arange(len(clips["subject"])), self.held_out)
        roles = np.where(held, VALIDATION, TRAIN).tolist()
        self.rows = {"dataset": [dataset] * len(roles), "role": roles, **clips}

    def prepared(
        self,
        task: MaskedTask,
        weights: Callable[[], dict[str, torch.Tensor]],
        used: Sequence[Any] = (),
    ) -> Prepared:
        """A trainer of the task on the plan's clips."""
        device = torch.device(self.encoder["device"])
        trainer = Pretrainer(
            task, self.training, self.held_out, self.config, device, self.encoder["precision"]
        )
        return Prepared(trainer, self._record(), self.rows, weights, used)

    def _record(self) -> dict[str, Any]:
        from align.prepare import rows_digest

        config = self.config
        return {
            "format": FORMAT,
            "asked": config.as_json(),
            "dataset": self.dataset,
            "protocol": self.protocol,
            "modality": config.modality,
            "encoder": self.encoder,
            "mask": config.mask,
            "supervision": [],
            "training": {
                "part": config.part if self.protocol else None,
                "where": config.where,
                "clips": len(self.training),
                "held_out": len(self.held_out),
                "subjects": sorted({str(one) for one in self.rows["subject"] if one is not None}),
                "rows_sha256": rows_digest(self.rows),
            },
            "seed": config.seed,
        }


def hold_out(subjects: Sequence[Any], config: MaeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the clips to learn from and of those held out: whole subjects where there are enough."""
    from align.data import split_groups

    everything = np.arange(len(subjects))
    if not config.held_out or len(subjects) < FEWEST_TO_SPLIT:
        return everything, everything[:0]
    known = {one for one in subjects if one is not None}
    groups = np.array(subjects, object) if len(known) >= WHOLE_SUBJECTS else everything
    return split_groups(groups, config.held_out, config.seed)


def pretrain(bank: "Bank", prepared: Prepared) -> Path:
    """Train within a run of the bank.

    Returns:
        The encoder's weights, ``<bank>/runs/<id>/encoder_<modality>.safetensors``.
    """
    from align.checkpoint import CONFIG_FILE, CURVE_FILE, STATE_FILE, write_json, write_rows

    record, trainer = prepared.record, prepared.trainer
    print(describe(record), file=sys.stderr)
    with bank.record_run(COMMAND, record) as run:
        directory = Path(run.directory)
        write_json(directory / CONFIG_FILE, record)
        write_rows(directory, prepared.rows)
        run.used(*prepared.used)
        trainer.state_path = directory / STATE_FILE
        if trainer.step:
            trainer.save()
        curve = trainer.run(progress())
        write_json(directory / CURVE_FILE, curve)
        weights, _ = write_encoder(directory, record["modality"], record, prepared.weights(), curve[-1])
        for name, value in curve[-1].items():
            part, _, error = name.partition("_")
            if part in (TRAIN, VALIDATION) and error:
                clips = len(trainer.validation) if part == VALIDATION else curve[-1]["clips"]
                run.metric(f"mae/{name}", value, n=clips, modality=record["modality"])
        trainer.state_path.unlink(missing_ok=True)
    return weights


def write_encoder(
    directory: Path,
    name: str,
    record: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    last: Mapping[str, Any],
    save: Save | None = None,
) -> tuple[Path, str]:
    """The weights and, beside them, what they were trained on and how to extract with them.

    Args:
        directory: The run's, in its bank.
        name: Of the modality in the recipe: two encoders of one modality are two files.
        record: dataset, protocol, modality, encoder (name, preset, frames...), training, supervision.
        weights: Under the names that the encoder's checkpoints have.
        last: The last row of the curve.
        save: Of encoders whose weights are a folder; returns its digest.

    Returns:
        The file or folder, and the command that extracts with it.
    """
    from align.checkpoint import write_json

    path = directory / f"encoder_{name}"
    told = {key: record[key] for key in TOLD}
    tensors = {name: one.detach().cpu().contiguous() for name, one in weights.items()}
    if save is None:
        path = path.with_name(f"{path.name}.safetensors")
        digest = _write_file(path, tensors, told)
    else:
        digest = _write_folder(path, tensors, told, save)
    options = record["encoder"]
    command = f"python -m extract --dataset {record['dataset']} --modality {record['modality']}"
    command += f" --encoder {options['name']} --weights {path} --bank {directory.parent.parent}"
    if options["preset"] != "official":
        command += f" --preset {options['preset']}"
    if options.get("frames") is not None:
        command += f" --frames {options['frames']}"
    if others := {key: one for key, one in options.get("options", {}).items() if key != "preset"}:
        command += f"  # with options {json.dumps(others)}, which a --config recipe takes"
    note = dict(record) | {"weights": digest, "final": dict(last), "extract": command}
    write_json(directory / f"encoder_{name}.json", note)
    return path, command


def _write_file(path: Path, tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any]) -> str:
    from safetensors.torch import save

    from align.checkpoint import write_atomically

    data = save(dict(tensors), {TOLD_KEY: json.dumps(told, sort_keys=True)})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]


def _write_folder(
    path: Path, tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any], save: Save
) -> str:
    from align.checkpoint import write_json
    from store.durable import replacing

    with replacing(path) as newborn:
        digest = save(newborn, tensors)
        write_json(newborn / TOLD_FILE, told)
    return digest


def told_by(path: Path) -> dict[str, Any]:
    """What a file or folder of weights says of its training; empty if none of our commands wrote it."""
    from safetensors import safe_open

    if path.is_dir():
        note = path / TOLD_FILE
        return dict(json.loads(note.read_text(encoding="utf-8"))) if note.is_file() else {}
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get(TOLD_KEY, "{}")))


def describe(record: Mapping[str, Any]) -> str:
    """The recipe for people."""
    training, encoder = record["training"], record["encoder"]
    split = f"{record['protocol']}/{training['part']}" if record["protocol"] else "all clips"
    held = f", {training['held_out']} more held out" if training["held_out"] else ""
    return (
        f"mae {record['dataset']}/{record['modality']} ({split}): {training['clips']} clips{held}\n"
        f"  {encoder['name']}, {encoder['parameters']:,} parameters, from {encoder['initial']}; "
        f"{record['mask']:.0%} hidden; {encoder['precision']}; supervised by nothing"
    )


def interrupted(bank: "Bank", resume: str, asked: Config, command: str = COMMAND) -> tuple[Path, Config]:
    """The folder of an interrupted run and its own configuration.

    Args:
        bank: The bank.
        resume: ``run:<id>``, a directory, or ``latest``.
        asked: What else was typed; refused where it is neither a default nor the run's own value.
        command: Whose runs.

    Raises:
        ResumeError: If there is no such run, it still goes, has nothing saved, or options contradict.
    """
    from align.checkpoint import STATE_FILE, read_config
    from store.locks import is_held
    from store.runs import LOCK

    directory = _locate(bank, resume, command)
    if is_held(directory / LOCK):
        raise ResumeError(f"{directory}: this run is still going; wait for it, or stop it first")
    if not (directory / STATE_FILE).exists():
        raise ResumeError(f"{directory}: no saved state ({STATE_FILE}); start anew without --resume")
    own, defaults = type(asked).from_json(read_config(directory)["asked"]), type(asked)().as_json()
    mine = own.as_json()
    for key, value in asked.as_json().items():
        if value not in (defaults[key], mine[key]):
            raise ResumeError(
                f"--resume: --{key.replace('_', '-')} {value!r} is not what this run began with "
                f"({mine[key]!r}); leave it out, or train anew without --resume"
            )
    return directory, own


def go_on(bank: "Bank", directory: Path, prepared: Prepared) -> Path:
    """Continue an interrupted run, from its last saved step, as a new run.

    Raises:
        ResumeError: If the clips or the initial weights have changed since.
    """
    from align.checkpoint import STATE_FILE, read_config, read_state
    from store.runs import end_killed

    before, state = read_config(directory), read_state(directory / STATE_FILE)
    for key in ("encoder", "training"):
        now = prepared.record[key]
        changed = [name for name in now if before[key].get(name) != now[name]]
        if changed:
            name = changed[0]
            raise ResumeError(
                f"{directory}: {key} {name} is {now[name]!r} now, was {before[key].get(name)!r} when this "
                "run began; train anew without --resume"
            )
    prepared.trainer.restore(state)
    prepared.record["resumed_from"] = str(directory)
    print(f"continuing {directory} after step {prepared.trainer.step}", file=sys.stderr)
    end_killed(bank.path, bank.catalog)
    finished = pretrain(bank, prepared)
    (directory / STATE_FILE).unlink(missing_ok=True)
    return finished


def _locate(bank: "Bank", name: str, command: str) -> Path:
    from align.checkpoint import STATE_FILE

    if name != "latest" and not name.startswith("run:"):
        return Path(name)
    query = "SELECT run_id FROM runs WHERE command = ? ORDER BY started_at DESC"
    ids = bank.sql(query, [command]).column("run_id").to_pylist()
    places = [bank.path / "runs" / run_id for run_id in ids]
    if name == "latest":
        found = [place for place in places if (place / STATE_FILE).exists()][:1]
    else:
        found = [place for place in places if place.name.startswith(name.removeprefix("run:"))]
    if len(found) != 1:
        what = "several runs match" if found else "no such interrupted training"
        raise ResumeError(f"{bank.path}: {what}: {name}; runs of {command}: {', '.join(ids) or 'none'}")
    return found[0]
