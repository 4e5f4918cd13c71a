"""The alignments of the UTD-MHAD table: a recipe, its variants, and the embeddings that they give.

They are small and many, so each runs on one core in a process of its own; what comes back does not depend on
how many run at a time.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.utd_mhad_data import DATASET, READ, Half, class_names

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from align.alignment import Alignment
    from align.config import AlignConfig, ModalityConfig
    from store.bank import Bank

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "align" / "utd-mhad.yaml"
TEXT = "text"
NAMED, PAIRS = "aligned, named", "aligned, pairs"
# The recipe with other heads for all three modalities, small ones: 216 clips teach. The first three do not
# see the order of the frames; the recipe's own is an MLP that does.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "mlp": ("mlp", {"hidden": 256, "dropout": 0.3}),
    "attention": ("attention", {"width": 32, "dropout": 0.3}),
    "linear, in order": ("sequence", {"hidden": 0, "dropout": 0.3}),
    "conv": ("conv", {"width": 32, "dropout": 0.3}),
    "transformer": ("transformer", {"width": 32, "depth": 1, "dropout": 0.3}),
}
FIXED_STEPS = ("sequence", "conv")  # heads that stretch clips to a number of steps: as many as are loaded


@dataclass(frozen=True)
class Training:
    """One alignment to be trained.

    Attributes:
        bank: The bank's directory.
        half: Who teaches, who is scored.
        config: Complete: modalities, seed and all.
    """

    bank: str
    half: Half
    config: "AlignConfig"


@dataclass(frozen=True)
class Embedded:
    """What an alignment makes of a half.

    Attributes:
        rows: Modality -> unit rows of those who teach (n, E), and of those who are scored (m, E).
        texts: (27, E) unit rows of the action names; None if they were not aligned.
        temperature: Of the loss: cosines over it are logits.
    """

    rows: dict[str, tuple[np.ndarray, np.ndarray]]
    texts: np.ndarray | None
    temperature: float

    def class_scores(self, modality: str) -> np.ndarray:
        """(m, 27) logits of the clips that are scored, by the names alone: no classifier is fitted."""
        assert self.texts is not None
        return self.rows[modality][1] @ self.texts.T / self.temperature


def variant(recipe: "AlignConfig", modalities: Sequence[str], method: str, seed: int) -> "AlignConfig":
    """The recipe as one method of the table has it.

    Args:
        recipe: The supervised one.
        modalities: Of the recipe, those to align.
        method: ``NAMED``: with the action names as one more modality; ``PAIRS``: on unlabelled pairs alone;
            or a key of ``HEADS``: as ``NAMED``, with these heads.
        seed: Of the training.
    """
    kept: dict[str, ModalityConfig | None] = {name: settings(recipe, name) for name in modalities}
    if method in HEADS:
        kept = {name: _with_head(own, *HEADS[method]) for name, own in kept.items() if own is not None}
    losses = recipe.losses
    if method == PAIRS:
        losses = [replace(loss, options=_unlabelled(loss.options)) for loss in losses]
    else:
        kept[TEXT] = settings(recipe, TEXT)
    return replace(recipe, dataset=DATASET, modalities=kept, losses=losses, seed=seed)


def _with_head(own: "ModalityConfig", head: str, options: dict[str, Any]) -> "ModalityConfig":
    kind, _, frames = (own.reduce or "").partition(":")
    steps = {"steps": int(frames)} if head in FIXED_STEPS and kind == "resample" else {}
    centre = {"centre": True} if head == "sequence" and own.head_options.get("centre") else {}
    return replace(own, head=head, head_options=options | steps | centre)


def _unlabelled(options: dict[str, Any]) -> dict[str, Any]:
    """A loss's options without what labels would tell it."""
    return {key: value for key, value in options.items() if key not in ("same_label", "same_text")}


def settings(config: "AlignConfig", modality: str) -> "ModalityConfig":
    """A modality's part of the recipe.

    Raises:
        UnknownNameError: If the recipe, or ``READ``, does not have it.
    """
    from align.config import ModalityConfig
    from store.errors import UnknownNameError

    listed = config.modalities if isinstance(config.modalities, dict) else {}
    if modality not in listed or modality not in (*READ, TEXT):
        raise UnknownNameError("--modalities", "modality", modality, sorted({*READ} & {*listed}))
    return listed[modality] or ModalityConfig()


def embeddings(trainings: Sequence[Training], processes: int) -> Iterator[Embedded]:
    """What each alignment gives, in the order asked for, with progress on stderr."""
    began = time.monotonic()
    for done, found in enumerate(_results(trainings, processes), start=1):
        left = (time.monotonic() - began) / done * (len(trainings) - done)
        print(f"aligned {done} of {len(trainings)}, about {left:.0f} s left", file=sys.stderr)
        yield found


def _results(trainings: Sequence[Training], processes: int) -> Iterator[Embedded]:
    if processes == 1 or len(trainings) < 2:
        yield from map(embedded, trainings)
        return
    with _pool(processes) as pool:
        yield from pool.map(embedded, trainings)


def _pool(processes: int) -> "Executor":
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(processes, get_context("spawn"))


def embedded(training: Training) -> Embedded:
    """Train and embed, on one core."""
    import torch

    from store.bank import Bank

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _embedded(Bank.open(training.bank), training)
    finally:
        torch.set_num_threads(threads)


def _embedded(bank: "Bank", training: Training) -> Embedded:
    alignment, temperature = train_heads(bank, training.half, training.config)
    rows = {}
    for name in alignment.modalities:
        if name != TEXT:
            own = alignment.settings(name)
            sides = training.half.select(bank, name, own["field"], own["feature_set"])
            rows[name] = (alignment.embed(name, sides[0]), alignment.embed(name, sides[1]))
    named = TEXT in alignment.modalities
    texts = alignment.embed_texts(bank.texts(class_names(bank))) if named else None
    return Embedded(rows, texts, temperature)


def train_heads(bank: "Bank", half: Half, config: "AlignConfig") -> "tuple[Alignment, float]":
    """Heads trained on the half's teaching clips, kept in memory, and the temperature they ended with.

    `python -m align` would keep a checkpoint.
    """
    from align.alignment import Alignment
    from align.prepare import prepare
    from align.run import load_clips

    asked = replace(config, protocol=half.protocol, where=half.train_where)
    prepared = prepare(asked, load_clips(bank, asked))
    trainer = prepared.trainer
    trainer.run()
    alignment = Alignment(bank.path, prepared.record, trainer.heads, prepared.standards, trainer.device)
    return alignment, trainer.losses.temperature or 1.0
