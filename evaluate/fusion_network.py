"""The training loop of fusions that are networks: everything in memory, everything random from one seed."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from evaluate.fusion import Joined, class_balance

CHUNK = 4096  # clips a forward pass when scoring


def train(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Iterator[list[Tensor]],
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    """Update the model batch by batch; the scheduler steps once an epoch.

    Args:
        model: Left in evaluation mode.
        optimizer: Over its parameters.
        scheduler: Of the optimiser.
        batches: The epochs, each a list of row numbers (B,).
        loss_of: Rows -> their loss.
    """
    model.train()
    for epoch in batches:
        for rows in epoch:
            optimizer.zero_grad(set_to_none=True)
            loss_of(rows).backward()
            optimizer.step()
        scheduler.step()
    model.eval()


def epochs(count: int, clips: int, batch: int, seed: int, reshuffle: bool) -> Iterator[list[Tensor]]:
    """Batches of row numbers of ``count`` epochs, in a drawn order; ``reshuffle``: another one each epoch."""
    rng = np.random.default_rng([seed, 0xF05E])
    order = rng.permutation(clips)
    for _ in range(count):
        yield list(torch.from_numpy(order).split(batch))
        order = rng.permutation(clips) if reshuffle else order


def targets(train: Joined, classes: int, balanced: bool) -> tuple[Tensor, Tensor | None]:
    """Labels (n,), and the class weights (C,) of the cross-entropy."""
    weights = torch.from_numpy(class_balance(train.labels, classes)).float() if balanced else None
    return torch.from_numpy(train.labels), weights


@torch.no_grad()
def score(model: Callable[[slice], Tensor], clips: int) -> np.ndarray:
    """Logits of all clips, chunk by chunk: (n, C) float32."""
    parts = [model(slice(start, start + CHUNK)) for start in range(0, clips, CHUNK)]
    return torch.cat(parts).float().numpy()
