"""The training loop: standardised tracks -> trained heads, with a state on disk that a kill cannot spoil.

Everything random in epoch k is a function of (seed, k), so a resumed run repeats the uninterrupted one bit
for bit from the last saved epoch on: weights, optimiser, averages, best epoch and curve are all in the state.
Under torchrun every rank runs this loop on its share of each batch; rank 0 alone validates and keeps a state.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align import distributed
from align.config import AugmentConfig, TrainConfig
from align.data import Batch, ClipData, Loader, sources
from align.model import Heads, WeightedLosses
from align.optimizer import optimizer, schedule
from align.scores import pair_recall
from store.errors import FrameBankError

Curve = list[dict[str, Any]]


class TrainingError(FrameBankError):
    """Training cannot start or go on."""


@dataclass
class Trainer:
    """Heads and losses being trained on one set of clips.

    Args:
        heads: Modified in place.
        losses: Likewise.
        data: Standardised.
        training: Indices of the clips to learn from.
        validation: Indices of the clips to watch; may be empty.
        config: The loop.
        augment: What training batches go through.
        seed: Of everything random.
        state_path: Where the state is kept; None: nowhere.
    """

    heads: Heads
    losses: WeightedLosses
    data: ClipData
    training: np.ndarray
    validation: np.ndarray
    config: TrainConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    state_path: Path | None = None

    def __post_init__(self) -> None:
        ranks = distributed.size()
        if len(self.training) < max(2, ranks):
            raise TrainingError(
                f"align: {len(self.training)} training clips; contrasting needs at least 2"
                + (f", and one for each of {ranks} processes" if ranks > 1 else "")
            )
        self.device = resolve_device(self.config.device)
        self.heads.to(self.device)
        self.losses.to(self.device)
        batch = ranks * self.config.batch
        feed = sources(self.data, batch, self.device)
        self.loader = Loader(self.data, feed, self.training, batch, self.seed, self.augment)
        self.watched = Loader(self.data, feed, self.validation, batch)
        if not any(value.requires_grad for value in self._parameters()):
            raise TrainingError(
                "align: no head has parameters to train (all are identity or frozen); choose another --head"
            )
        self.optimizer = self._optimizer()
        self.steps = self.config.epochs * len(self.loader)
        self._set_rate(0)  # a schedule that cannot be read is refused before anything is recorded
        self.averaged = _copy(self.heads) if self.config.average else {}
        self.best: dict[str, Tensor] = {}
        self.curve: Curve = []

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.curve)

    @property
    def finished(self) -> bool:
        """All epochs are done, or patience has run out."""
        return self.epoch >= self.config.epochs or self._impatient()

    def run(self, report: Callable[[dict[str, Any]], None] | None = None) -> Curve:
        """Train from where the state stands to the end; the heads then hold the chosen weights.

        Args:
            report: Called with each epoch's row of the curve.

        Returns:
            The curve, a row an epoch: epoch, train_loss, learning_rate, temperature, seconds and, with
            held-out clips, validation_loss and validation_recall (mean R@1 over the pairs).
        """
        saved = time.monotonic()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            while not self.finished:
                self.curve.append(self._epoch(self.epoch))
                if report is not None:
                    report(self.curve[-1])
                if time.monotonic() - saved >= self.config.checkpoint_seconds and not self.finished:
                    self.save()
                    saved = time.monotonic()
        self.heads.load_state_dict(self.chosen())
        return self.curve

    def chosen(self) -> dict[str, Tensor]:
        """The weights to keep: those of the best epoch, or the last (averaged) ones."""
        return self.best or self._current()

    def save(self) -> None:
        """Write the state in one atomic step."""
        if self.state_path is None:
            return
        from align.checkpoint import write_state

        write_state(self.state_path, self._state())

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same recipe."""
        self.heads.load_state_dict(state["heads"])
        self.losses.load_state_dict(state["losses"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged = {name: value.to(self.device) for name, value in state["averaged"].items()}
        self.best, self.curve = state["best"], state["curve"]

    def _state(self) -> dict[str, Any]:
        return {
            "heads": self.heads.state_dict(),
            "losses": self.losses.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "best": self.best,
            "curve": self.curve,
        }

    def _epoch(self, number: int) -> dict[str, Any]:
        began = time.perf_counter()
        stream = [self.seed, number, 1 + distributed.rank()]  # of dropout: each rank has its own
        torch.manual_seed(int(np.random.default_rng(stream).integers(2**62)))
        self.heads.train()
        self.losses.train()
        total = torch.zeros((), device=self.device)
        rate = 0.0
        for step, batch in enumerate(self.loader.epoch(number), start=number * len(self.loader)):
            rate = self._set_rate(step)
            total += self.step(batch)
        mean = total.item() / len(self.loader)
        if not math.isfinite(mean):
            raise TrainingError(f"align: the loss is {mean} in epoch {number}; lower --train.learning_rate")
        row = {
            "epoch": number + 1,
            "train_loss": mean,
            "learning_rate": rate,
            "temperature": self.losses.temperature,
        }
        row |= self._watch()
        return row | {"seconds": round(time.perf_counter() - began, 4)}

    def step(self, batch: Batch) -> Tensor:
        """One update of the weights by one batch; its loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            embeddings = self.heads(batch.features, batch.masks)
        loss = self.losses(*distributed.gather_batch(embeddings, *batch.facts))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self._parameters())
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.heads.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.losses.after_step()
        if self.config.average:
            self._average()
        return loss.detach()

    def _optimizer(self) -> torch.optim.Optimizer:
        return optimizer([*self.heads.named_parameters(), *self.losses.named_parameters()], self.config)

    def _parameters(self) -> list[Tensor]:
        return [*self.heads.parameters(), *self.losses.parameters()]

    def _set_rate(self, step: int) -> float:
        config, epoch_steps = self.config, len(self.loader)
        factor = schedule(step, self.steps, config.warmup, config.schedule, epoch_steps)
        rate = config.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _average(self) -> None:
        state = self.heads.state_dict().items()
        names, values = zip(*((name, one) for name, one in state if one.is_floating_point()), strict=True)
        torch._foreach_lerp_([self.averaged[name] for name in names], list(values), 1 - self.config.average)

    def _current(self) -> dict[str, Tensor]:
        return self.averaged or self.heads.state_dict()

    def _watch(self) -> dict[str, Any]:
        """Validation columns of the curve; keeps a copy of the best weights."""
        if len(self.validation) < 2:
            return {}
        trained = _copy(self.heads)
        self.heads.load_state_dict(self._current())
        loss, recall = distributed.from_first(*(self.evaluate() if distributed.is_first() else (0.0, 0.0)))
        before = [row["validation_loss"] for row in self.curve]
        if self.config.select == "best" and loss < min(before, default=math.inf):
            self.best = _copy(self.heads)
        self.heads.load_state_dict(trained)
        return {"validation_loss": loss, "validation_recall": recall}

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss over the held-out clips (in batches of the training size) and mean R@1 over the pairs."""
        self.heads.eval()
        self.losses.eval()
        losses: list[tuple[float, int]] = []
        parts: list[dict[str, Tensor]] = []
        for batch in self.watched.in_order():
            embeddings = self.heads(batch.features, batch.masks)
            if len(batch) > 1:
                loss = self.losses(embeddings, *batch.facts)
                losses.append((loss.item(), len(batch)))
            parts.append({name: value.cpu() for name, value in embeddings.items()})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        present = torch.from_numpy(self.watched.present[self.validation])
        recalls = pair_recall(joined, present, _text_ids(self.data, self.validation))
        mean = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
        return mean, float(np.mean(list(recalls.values()))) if recalls else math.nan

    def _impatient(self) -> bool:
        losses = [row["validation_loss"] for row in self.curve if "validation_loss" in row]
        if not self.config.patience or not losses:
            return False
        return len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; each of torchrun's processes has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.size() > 1:
        return distributed.own_gpu()
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"--train.device: {name!r} is not usable ({str(error).splitlines()[0]}); try auto"
        ) from error


def progress(epochs: int, every_seconds: float = 2.0) -> Callable[[dict[str, Any]], None]:
    """A reporter that prints a row of the curve on stderr now and then, and the last one."""
    last = [0.0]

    def show(row: dict[str, Any]) -> None:
        if time.monotonic() - last[0] < every_seconds and row["epoch"] < epochs:
            return
        last[0] = time.monotonic()
        text = f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.3f}"
        if "validation_loss" in row:
            text += f"  held out: loss {row['validation_loss']:.3f}, R@1 {row['validation_recall']:.1%}"
        left = (epochs - row["epoch"]) * row["seconds"]
        print(f"{text}  {left:.0f} s left", file=sys.stderr)

    return show


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _text_ids(data: ClipData, clips: np.ndarray) -> dict[str, np.ndarray]:
    """What the first text of each clip means, for text modalities."""
    texts = {name: part for name, part in data.tracks.items() if part.is_text}
    zeros = np.zeros(len(clips))
    return {name: part.meaning(clips, part.rows(clips, zeros)) for name, part in texts.items()}
