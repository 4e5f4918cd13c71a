"""The loop of masked pre-training: clips with most of them hidden -> a network that fills them in.

What is random in a step (order, views, masks, dropout) is a function of (seed, epoch, step), and a saved
state holds the weights, the optimiser, the step and the sums of the epoch so far: a run that was killed goes
on with the very next step, on the same curve.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.mae_config import MaeConfig
from align.optimizer import schedule
from align.train import Curve, TrainingError

LOSS = "loss"  # of a task's errors, the one that is made small
EVALUATION = 0  # the view of clips as they are; training takes view 1 in its first epoch, and so on
SHOWN_SECONDS = 2.0  # between two lines of progress


class MaskedTask(Protocol):
    """What is hidden of which clips, and how wrong the network's guess of it is.

    Attributes:
        model: The network.
    """

    model: nn.Module

    def batches(self, chunks: Sequence[np.ndarray], view: int) -> Iterator[Any]:
        """For each chunk of clip numbers a batch; its ``len`` counts the clips that could be read."""
        ...

    def errors(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """``loss``, and the same error of naive guesses for comparison: means over the batch."""
        ...


@dataclass
class Pretrainer:
    """A network that is being trained on one set of clips.

    Args:
        task: Its model is modified in place.
        training: Numbers of the clips to learn from.
        validation: Numbers of the clips on which the error is only watched; may be empty.
        config: The loop.
        device: Where the model is.
        precision: ``fp32`` or ``bf16``.
        state_path: Where the state is kept; None: nowhere.
    """

    task: MaskedTask
    training: np.ndarray
    validation: np.ndarray
    config: MaeConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    state_path: Path | None = None

    def __post_init__(self) -> None:
        if len(self.training) < 2:
            raise TrainingError(
                f"align.mae: {len(self.training)} training clips; at least 2 are needed: check --protocol, "
                "--part, --where and --held-out"
            )
        _check(self.config)
        self.optimizer = _optimizer(self.task.model, self.config)
        self.clips_a_step = self.config.batch * self.config.accumulate
        self.steps_an_epoch = math.ceil(len(self.training) / self.clips_a_step)
        self.steps = self.config.epochs * self.steps_an_epoch
        self.step = 0
        self.curve: Curve = []
        self.sums = _Sums()
        self.waited_seconds = 0.0  # for batches, in this process

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.curve)

    def run(self, report: Callable[["Pretrainer"], None] | None = None) -> Curve:
        """Train from where the state stands to the end.

        Args:
            report: Called after each step.

        Returns:
            The curve, a row an epoch: epoch, step, learning_rate, the errors of training (``train_loss``
            and its rivals) and of the held-out clips (``validation_loss``...), clips, seconds.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        self._saved = time.monotonic()
        with torch.random.fork_rng(devices=devices):
            while self.epoch < self.config.epochs:
                self._epoch(self.epoch, report or (lambda _: None))
        return self.curve

    def save(self) -> None:
        """Write the state in one atomic step."""
        if self.state_path is None:
            return
        from align.checkpoint import write_state

        write_state(
            self.state_path,
            {
                "model": self.task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "sums": self.sums.total,
                "clips": self.sums.clips,
                "curve": self.curve,
            },
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same recipe."""
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], state["curve"]
        self.sums = _Sums({name: one.to(self.device) for name, one in state["sums"].items()}, state["clips"])

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The clips of each step of an epoch, a permutation of the training clips."""
        order = np.random.default_rng([self.config.seed, 1, epoch]).permutation(self.training)
        return _chunks(order, self.clips_a_step)

    def _epoch(self, number: int, report: Callable[["Pretrainer"], None]) -> None:
        began = time.perf_counter()
        self.task.model.train()
        left = self.plan(number)[self.step - number * self.steps_an_epoch :]
        chunks = [chunk for clips in left for chunk in _chunks(clips, self.config.batch)]
        stream = self.task.batches(chunks, 1 + number if self.config.augment else EVALUATION)
        for clips in left:
            self._step(len(clips), stream)
            report(self)
            if time.monotonic() - self._saved >= self.config.checkpoint_seconds and self.step < self.steps:
                self.save()
                self._saved = time.monotonic()
        next(stream, None)  # lets it end by itself, which keeps its decode processes for the next epoch
        self.curve.append(self._row(number, began))
        self.sums = _Sums()

    def _row(self, number: int, began: float) -> dict[str, Any]:
        errors = self.sums.means()
        if not math.isfinite(errors.get(LOSS, math.nan)):
            raise TrainingError(
                f"align.mae: the loss is {errors.get(LOSS, 'of no clip')} in epoch {number + 1}; lower "
                "--learning-rate"
            )
        row: dict[str, Any] = {"epoch": number + 1, "step": self.step, "clips": self.sums.clips}
        row |= {"learning_rate": self._rate(self.step - 1)}
        row |= {f"train_{name}": value for name, value in errors.items()}
        if len(self.validation):
            row |= {f"validation_{name}": value for name, value in self.evaluate().items()}
        return row | {"seconds": round(time.perf_counter() - began, 4)}

    def _step(self, clips: int, stream: Iterator[Any]) -> None:
        """One update by so many clips, in batches of what one forward pass takes."""
        torch.manual_seed(_seed(self.config.seed, 2, self.step))  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(math.ceil(clips / self.config.batch)):
            waiting = time.perf_counter()
            batch = next(stream)
            self.waited_seconds += time.perf_counter() - waiting
            if len(batch):
                errors = self._errors(batch, 3, self.step, number)
                (errors[LOSS] * (len(batch) / clips)).backward()
                self.sums.add(errors, len(batch))
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.task.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.step += 1

    def _errors(self, batch: Any, *seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(_seed(self.config.seed, *seed))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.task.errors(batch, generator)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean errors over the held-out clips, as they are, under masks that are always the same."""
        self.task.model.eval()
        sums = _Sums()
        chunks = _chunks(self.validation, self.config.batch)
        for number, batch in enumerate(self.task.batches(chunks, EVALUATION)):
            if len(batch):
                sums.add(self._errors(batch, 4, number), len(batch))
        return sums.means()

    def _rate(self, step: int) -> float:
        return self.config.learning_rate * schedule(step, self.steps, self.config.warmup)


@dataclass
class _Sums:
    """Errors summed over clips, in float64 and on their device."""

    total: dict[str, Tensor] = field(default_factory=dict)
    clips: int = 0

    def add(self, errors: dict[str, Tensor], clips: int) -> None:
        """Add means over so many clips."""
        for name, value in errors.items():
            self.total[name] = self.total.get(name, 0.0) + value.detach().double() * clips
        self.clips += clips

    def means(self) -> dict[str, float]:
        """The mean of each error."""
        return {name: value.item() / self.clips for name, value in self.total.items()}


def progress() -> Callable[[Pretrainer], None]:
    """A reporter that says on stderr now and then where a run is, and at the end of each epoch."""
    began, first, shown = time.monotonic(), None, 0.0

    def show(trainer: Pretrainer) -> None:
        nonlocal first, shown
        now = time.monotonic()
        first = trainer.step - 1 if first is None else first
        last = trainer.step == trainer.steps
        if now - shown < SHOWN_SECONDS and not last:
            return
        shown, done = now, trainer.step - first
        seconds = (now - began) / done
        errors = ", ".join(f"{name} {value:.3f}" for name, value in trainer.sums.means().items())
        waited = trainer.waited_seconds / max(now - began, 1e-9)
        print(
            f"epoch {trainer.epoch + 1}/{trainer.config.epochs}  step {trainer.step}/{trainer.steps}  "
            f"{errors}  {trainer.clips_a_step / seconds:.1f} clips/s, waited for clips {waited:.0%}, "
            f"{seconds * (trainer.steps - trainer.step):.0f} s left",
            file=sys.stderr,
        )

    return show


def recompute(layers: Sequence[nn.Module]) -> None:
    """Activation checkpointing: these layers compute their activations again in the backward pass."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _check(config: MaeConfig) -> None:
    """Raises: TrainingError: For numbers that make no sense."""
    for name in ("epochs", "batch", "accumulate", "repeat"):
        if getattr(config, name) < 1:
            raise TrainingError(f"align.mae: --{name} {getattr(config, name)}; at least 1 is accepted")


def _optimizer(model: nn.Module, config: MaeConfig) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    vectors = [one for one in parameters if one.squeeze().ndim <= 1]
    groups = [
        {
            "params": [one for one in parameters if one.squeeze().ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _chunks(clips: np.ndarray, size: int) -> list[np.ndarray]:
    return [clips[first : first + size] for first in range(0, len(clips), size)]


def _seed(*parts: int) -> int:
    return int(np.random.default_rng(parts).integers(2**62))
