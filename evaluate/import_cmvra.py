"""`python -m evaluate import-cmvra`: CMVRA's own classifiers and fusion, out of its checkpoints.

Source: github.com/Cappl1/CMVRA (VIP/src/zeta/model_init.py). Its checkpoints hold whole models: the encoders,
which ``python -m extract --weights FILE`` takes out by itself, and what was trained on their embeddings.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate.source import EvaluateError
from store.cli import resolved

if TYPE_CHECKING:
    from torch import Tensor

    from store.bank import Bank

COMMAND = "evaluate import-cmvra"
TENSORS_FILE, FACTS_FILE = "classifiers.safetensors", "classifiers.json"
STATE = "model_state_dict"
PARALLEL = "module."  # CMVRA wraps the encoders and the whole in DataParallel
ENCODERS = "modalities_encoders."
HEADS = 8  # of the attention
SHOWN = 8  # keys in an error


@dataclass(frozen=True)
class Facts:
    """What is known about imported classifiers.

    Attributes:
        file: Where they came from.
        digest: sha256 over its bytes (16 hex digits), as feature sets keep it of their weights.
        epoch: Number of the epoch that was kept.
        validation_loss: Its loss on held-out clips.
        encoders: Modality (or view, as CMVRA calls it) -> tensors of its encoder in the file.
        classifiers: Modalities with a classifier.
        classes: C.
        width: Dims of the embeddings that they take.
        fusion: Whether the attention over modalities is there.
    """

    file: str
    digest: str
    epoch: int | None
    validation_loss: float | None
    encoders: dict[str, int]
    classifiers: list[str]
    classes: int
    width: int
    fusion: bool


def import_cmvra(file: str, bank: str = "bank") -> int:
    """Take the linear classifiers and the attention fusion out of one of CMVRA's checkpoints.

    `python -m evaluate classify` then applies them to features of the same encoders, with nothing trained.
    CMVRA writes classifiers into every checkpoint; only those of its task "2" (probe, fusion) are trained.

    Args:
        file: The checkpoint (checkpoint_..._.pth). Nothing in it is executed.
        bank: The bank's directory.
    """
    from safetensors.torch import save_file

    from evaluate.records import write_file
    from store.bank import Bank

    asked = resolved(**locals())
    opened = Bank.open(bank)
    facts, tensors = read_checkpoint(Path(file).expanduser())
    with opened.record_run(COMMAND, {**asked, "digest": facts.digest}) as run:
        save_file(tensors, Path(run.directory) / TENSORS_FILE)
        write_file(run, FACTS_FILE, asdict(facts))
    print(described(facts))
    print(f"next: python -m evaluate classify --classifiers run:{run.id} --bank {bank}", file=sys.stderr)
    return 0


def read_checkpoint(path: Path) -> tuple[Facts, "dict[str, Tensor]"]:
    """The classifiers of a checkpoint under the names of ``evaluate.fusion_cmvra.FusionHeads``, strictly.

    Raises:
        EvaluateError: If the file is none of CMVRA's, or what it holds beside encoders is not exactly
            classifiers of one size and, if any of it is there, the whole fusion.
    """
    content = _opened(path)
    state = content.get(STATE)
    if not isinstance(state, Mapping):
        entries = ", ".join(map(str, list(content)[:SHOWN])) or "nothing"
        raise EvaluateError(f"{path}: no checkpoint of CMVRA: it has no {STATE!r}, but {entries}")
    tensors = _unwrapped({str(key): value for key, value in state.items()})
    encoders: dict[str, int] = {}
    for key in [key for key in tensors if key.startswith(ENCODERS)]:
        name = key.split(".")[1]
        encoders[name] = encoders.get(name, 0) + 1
        del tensors[key]
    names = [match[1] for key in tensors if (match := re.fullmatch(r"(\w+)_classifier\.weight", key))]
    names = [name for name in names if name != "final"]
    if not names:
        held = ", ".join(sorted(encoders)) or "none"
        raise EvaluateError(
            f"{path}: no classifiers in it; its encoders ({held}) are for python -m extract --weights {path}"
        )
    classes, width = tensors[f"{names[0]}_classifier.weight"].shape
    fusion = any(key.startswith(("attention.", "final_classifier.")) for key in tensors)
    _require_exactly(path, tensors, _wanted(names, classes, width, fusion))
    epoch, loss = content.get("epoch"), content.get("best_val_loss")
    facts = Facts(
        file=str(path),
        digest=_digest(path),
        epoch=None if epoch is None else int(epoch),
        validation_loss=None if loss is None else float(loss),
        encoders=encoders,
        classifiers=names,
        classes=classes,
        width=width,
        fusion=fusion,
    )
    return facts, {key: value.float().contiguous() for key, value in tensors.items()}


def load_classifiers(bank: "Bank", classifiers: str) -> tuple[Facts, "dict[str, Tensor]"]:
    """What was imported, by ``run:<id>``, directory or ``latest``.

    Raises:
        EvaluateError: If there is no such import.
    """
    from safetensors.torch import load_file

    query = (
        "SELECT run_id FROM runs WHERE command = ? AND status = 'done' ORDER BY started_at DESC, run_id DESC"
    )
    runs = bank.sql(query, [COMMAND])["run_id"].to_pylist()
    folder = Path(classifiers)
    if classifiers == "latest" or classifiers.startswith("run:"):
        wanted = "" if classifiers == "latest" else classifiers.removeprefix("run:")
        found = [name for name in runs if name.startswith(wanted)]
        if not found or (wanted and len(found) > 1):
            what = "several imports match" if found else "no imported classifiers"
            known = ", ".join(runs) or "none; python -m evaluate import-cmvra FILE"
            raise EvaluateError(f"{bank.path}: {what}: {classifiers}; there are: {known}")
        folder = bank.path / "runs" / found[0]
    if not (folder / TENSORS_FILE).exists():
        raise EvaluateError(
            f"{folder}: no imported classifiers ({TENSORS_FILE} is missing); "
            "python -m evaluate import-cmvra FILE"
        )
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    return Facts(**facts), load_file(folder / TENSORS_FILE)


def described(facts: Facts) -> str:
    """A few lines for people."""
    loss = "" if facts.validation_loss is None else f", held-out loss {facts.validation_loss:.4g}"
    epoch = "" if facts.epoch is None else f" (epoch {facts.epoch}{loss})"
    fusion = "attention over modalities and its classifier" if facts.fusion else "none"
    encoders = ", ".join(f"{name} ({count} tensors)" for name, count in facts.encoders.items()) or "none"
    return "\n".join(
        [
            f"{facts.file}{epoch}, sha256 {facts.digest}",
            f"classifiers  {', '.join(facts.classifiers)}: {facts.width} dims -> {facts.classes} classes",
            f"fusion       {fusion}",
            f"encoders     {encoders}: python -m extract --weights {facts.file}",
        ]
    )


def _opened(path: Path) -> Mapping[Any, Any]:
    """The file's content; tensors are mapped, so that optimizer states are never read.

    Raises:
        EvaluateError: If it cannot be read without executing something.
    """
    import pickle
    import zipfile

    import numpy as np
    import torch

    scalar = np.float64(0).__reduce__()[0]  # a loss that numpy averaged
    harmless: list[Any] = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("f8"))]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EvaluateError(
            f"{path}: no checkpoint that loads safely: {reason}; give CMVRA's .pth"
        ) from error
    if not isinstance(content, Mapping):
        raise EvaluateError(f"{path}: holds a {type(content).__name__}, no dictionary; give CMVRA's .pth")
    return content


def _unwrapped(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    while tensors and all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    return tensors


def _wanted(names: list[str], classes: int, width: int, fusion: bool) -> dict[str, tuple[int, ...]]:
    """Key -> shape."""
    linear = [f"{name}_classifier" for name in names] + (["final_classifier"] if fusion else [])
    wanted: dict[str, tuple[int, ...]] = {}
    for name in linear:
        wanted |= {f"{name}.weight": (classes, width), f"{name}.bias": (classes,)}
    if fusion:
        wanted |= {"attention.in_proj_weight": (3 * width, width), "attention.in_proj_bias": (3 * width,)}
        wanted |= {"attention.out_proj.weight": (width, width), "attention.out_proj.bias": (width,)}
    return wanted


def _require_exactly(
    path: Path, tensors: "Mapping[str, Tensor]", wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises: EvaluateError: With every key that is missing, unexpected, misshapen or not finite."""
    wrong = {
        "missing": [key for key in wanted if key not in tensors],
        "unexpected": [key for key in tensors if key not in wanted],
        "misshapen": [
            f"{key} {tuple(value.shape)} instead of {wanted[key]}"
            for key, value in tensors.items()
            if key in wanted and tuple(value.shape) != wanted[key]
        ],
        "not finite": [key for key, value in tensors.items() if not bool(value.isfinite().all())],
    }
    lines = [f"{kind} ({len(keys)}): {', '.join(keys)}" for kind, keys in wrong.items() if keys]
    if lines:
        raise EvaluateError(f"{path}: not the classifiers of CMVRA's model; {'; '.join(lines)}")


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
