"""How gradients change the weights: Adam or AdamW, and the learning rate's way through the training."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from align.config import TrainConfig
from store.errors import FrameBankError


class ScheduleError(FrameBankError, ValueError):
    """A schedule that cannot be read."""


def optimizer(parameters: Iterable[tuple[str, Tensor]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over the named parameters that learn; biases, norms and the temperature do not decay."""
    learning = [value for _, value in parameters if value.requires_grad]
    groups = [
        {"params": [value for value in learning if value.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [value for value in learning if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return over([group for group in groups if group["params"]], config)


def over(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser over groups of parameters; those without a rate of their own have the configuration's."""
    first, second = config.betas
    made = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return made(groups, lr=config.learning_rate, betas=(first, second), fused=True)


def schedule(step: int, steps: int, warmup: float, name: str = "cosine", epoch_steps: int = 1) -> float:
    """Factor of the learning rate: a linear rise over the first ``warmup`` share of the steps, then ``name``.

    Args:
        step: Of all steps, from 0.
        steps: All of them.
        warmup: Share of the steps.
        name: ``cosine`` (half a period, to 0), ``constant``, or ``step:EPOCHS:FACTOR``: multiplied by FACTOR
            after each so many epochs (torch's StepLR; CMVRA: ``step:4:0.1``).
        epoch_steps: Steps an epoch.

    Raises:
        ScheduleError: If ``name`` is none of these.
    """
    rising = max(1, round(warmup * steps))
    rise = min(1.0, (step + 1) / rising)
    if name == "cosine":
        return (
            rise
            if rise < 1
            else 0.5 * (1 + math.cos(math.pi * max(0, step - rising) / max(1, steps - rising)))
        )
    epochs, factor = _decay(name)
    return rise * (factor ** (step // (epochs * epoch_steps)) if epochs else 1.0)


def _decay(name: str) -> tuple[int, float]:
    """Epochs and factor of a stepwise schedule; (0, 1.0) if it is constant."""
    kind, *numbers = name.split(":")
    try:
        if kind == "constant" and not numbers:
            return 0, 1.0
        epochs, factor = int(numbers[0]), float(numbers[1])
    except (ValueError, IndexError):
        epochs, factor = 0, 0.0
    if kind != "step" or len(numbers) != 2 or epochs < 1 or not factor > 0:
        raise ScheduleError(
            f"--train.schedule: {name!r} is unknown; accepted: cosine, constant, step:EPOCHS:FACTOR"
        )
    return epochs, factor
