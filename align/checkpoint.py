"""The files of a checkpoint: heads.safetensors, config.json, curve.json, training_rows.parquet, state.pt.

Each is written to a partial file, fsynced and renamed, so that a kill leaves the old one or the new one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from align.model import Heads, module_key
from align.standardise import Statistics
from store.errors import FrameBankError

FORMAT = 1
HEADS_FILE, CONFIG_FILE, CURVE_FILE = "heads.safetensors", "config.json", "curve.json"
COMMANDS = ("align", "align.end_to_end")  # whose runs are checkpoints
ROWS_FILE, STATE_FILE = "training_rows.parquet", "state.pt"


class CheckpointError(FrameBankError, ValueError):
    """No checkpoint where one was expected, or one that cannot be read."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write, fsync, rename: after a kill there is the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """A training state, atomically; tensors, numbers, strings, lists and dicts only."""
    import io

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What :func:`write_state` wrote; never executes pickled code.

    Raises:
        CheckpointError: If there is none, or it is unreadable.
    """
    import pickle

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: no saved training state ({path.name}); start anew without --resume"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: unreadable training state ({error}); start anew without --resume"
        ) from error
    return state


def write_heads(directory: Path, heads: Heads, standards: Mapping[str, Statistics]) -> None:
    """Weights and standardisation statistics of all modalities -> heads.safetensors."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}
    for modality, found in standards.items():
        tensors[f"standardise.{module_key(modality)}.mean"] = torch.from_numpy(found.mean)
        tensors[f"standardise.{module_key(modality)}.scale"] = torch.from_numpy(found.scale)
    write_atomically(directory / HEADS_FILE, save(tensors))


def write_rows(directory: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    """The clips that training saw (dataset, clip_id, role, ...), for leakage guards."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(rows)), sink)
    write_atomically(directory / ROWS_FILE, sink.getvalue().to_pybytes())


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
        CheckpointError: If there is none, or it is of a newer format.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(
            f"{directory}: not a checkpoint ({CONFIG_FILE} is missing); python -m align makes one"
        )
    config: dict[str, Any] = json.loads(path.read_text())
    if config["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: format {config['format']}, this version reads up to {FORMAT}; update FrameBank"
        )
    return config


def read_heads(directory: Path, heads: Heads) -> dict[str, Statistics]:
    """Load the weights into ``heads``, strictly, and return the standardisation statistics."""
    from safetensors.torch import load_file

    tensors = load_file(directory / HEADS_FILE)
    standards = {}
    for modality in heads.modalities:
        mean, scale = (
            tensors.pop(f"standardise.{module_key(modality)}.{part}") for part in ("mean", "scale")
        )
        standards[modality] = Statistics(mean.numpy(), scale.numpy())
    heads.load_state_dict(tensors)
    return standards


def locate(
    checkpoint: str | os.PathLike[str], bank: str | os.PathLike[str], holding: str = HEADS_FILE
) -> Path:
    """The directory that a path, ``run:<id>`` or ``latest`` stands for.

    Args:
        checkpoint: What was typed; an id may be cut short where it stays unique.
        bank: Whose runs.
        holding: ``latest`` is the last alignment begun whose directory holds this file.

    Raises:
        CheckpointError: If there is no such run.
    """
    from store.bank import Bank

    name = os.fspath(checkpoint)
    if name != "latest" and not name.startswith("run:"):
        return Path(name)
    query = "SELECT run_id FROM runs WHERE list_contains(?, command) ORDER BY started_at DESC"
    runs = Bank.open(bank).sql(query, [list(COMMANDS)]).to_pylist()
    places = {row["run_id"]: Path(bank) / "runs" / row["run_id"] for row in runs}
    if name == "latest":
        found = [path for path in places.values() if (path / holding).exists()][:1]
    else:
        found = [path for run_id, path in places.items() if run_id.startswith(name.removeprefix("run:"))]
    if len(found) != 1:
        what = "several runs match" if found else "no such alignment"
        raise CheckpointError(f"{os.fspath(bank)}: {what}: {name}; alignments: {', '.join(places) or 'none'}")
    return found[0]
