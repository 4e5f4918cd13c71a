"""CMVRA's linear probe: one layer trained by Adam, at the speed of its matrix products.

Source: github.com/Cappl1/CMVRA (VIP/src/zeta/train_classefier.py): un-normalised features, ``nn.Linear``,
Adam at 1e-4, batches of 32 in the clips' own order in every epoch, the rate halved after each 0.4 of 500
epochs, and the weights of the epoch at which the loss on 2 % of the training clips was least. Ours differs in
that each modality selects its own epoch (there: the least mean over all of them).

630,000 steps of NTU 60 are products of 32 rows, so what costs is everything else: here a step is two BLAS
calls into held buffers, a softmax and torch's fused Adam kernel, the bias being the weight of a feature that
is 1. The arithmetic is that of ``torch.optim.Adam`` over ``nn.Linear``, up to float32 rounding. Steps this
small run on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from evaluate.logistic import Logistic, ProbeError, checked

if TYPE_CHECKING:
    pass

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; the defaults are CMVRA's.

    Attributes:
        epochs: Passes over the training clips.
        batch: Clips a step.
        learning_rate: Adam's, at the beginning.
        decay_after: Share of the epochs after which the rate is multiplied by ``decay``, each time.
        decay: See ``decay_after``.
        shuffle: Another order in every epoch (CMVRA: the same one).
        held_out: Share of the training clips, drawn, whose loss selects the epoch; 0: the last epoch.
    """

    epochs: int = 500
    batch: int = 32
    learning_rate: float = 1e-4
    decay_after: float = 0.4
    decay: float = 0.5
    shuffle: bool = False
    held_out: float = 0.02

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0 (torch's StepLR)."""
        period = max(1, floor(self.decay_after * self.epochs))
        return float(self.learning_rate * self.decay ** (epoch // period))


@dataclass(frozen=True)
class Trained:
    """A probe and how it was selected.

    Attributes:
        model: Of the selected epoch.
        epoch: Which, counted from 1.
        losses: (epochs,) mean cross-entropy on the held-out clips; empty without any.
        held_out: Accuracy there at the selected epoch; NaN without any.
    """

    model: Logistic
    epoch: int
    losses: np.ndarray
    held_out: float


def train_probe(
    features: np.ndarray,
    labels: np.ndarray,
    schedule: Schedule,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> Trained:
    """(n, D) features and (n,) labels >= 0 in their order -> a trained probe.

    Args:
        features: (n, D).
        labels: (n,).
        schedule: How.
        seed: Of the layer's initial values, the held-out clips and the shuffling.
        weights: (n,) of the clips in the cross-entropy (``balancedCE``); None: equal.

    Raises:
        ProbeError: On what cannot be learnt from, or a schedule out of range.
    """
    _require(schedule)
    classes, targets = checked(features, labels)
    held = held_out_rows(targets, schedule.held_out, seed)
    layer, check = (
        Layer(features[rows], targets[rows], len(classes), None if weights is None else weights[rows], seed)
        for rows in (~held, held)
    )
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    best, epoch = layer.parameters, schedule.epochs
    with one_thread():
        for number in range(schedule.epochs):
            order = rng.permutation(len(layer)) if schedule.shuffle else None
            layer.train_epoch(schedule.batch, schedule.rate(number), order)
            if len(check):
                losses.append(check.loss(layer.parameters))
                if losses[-1] == min(losses):
                    best, epoch = layer.parameters.copy(), number + 1
    width = features.shape[1]
    plain = np.zeros(width, np.float32), np.ones(width, np.float32)
    model = Logistic(*plain, best[:-1].copy(), best[-1].copy(), classes)
    return Trained(model, epoch, np.array(losses), check.accuracy(best))


def held_out_rows(targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(n,) bool: about ``share`` of the rows, drawn; of each class at least one row stays to learn from."""
    held, left = np.zeros(len(targets), bool), np.bincount(targets)
    wanted = round(share * len(targets)) or int(share > 0)
    for row in np.random.default_rng([seed, 0x7A1]).permutation(len(targets)):
        if held.sum() == wanted:
            break
        if left[targets[row]] > 1:
            held[row] = True
            left[targets[row]] -= 1
    return held


class Layer:
    """A linear layer, its clips and Adam's state, in memory that no step allocates anew.

    Args:
        features: (n, D).
        targets: (n,) 0 <= y < classes.
        classes: C.
        weights: (n,) of the clips; None: equal.
        seed: Of torch's initial values of ``nn.Linear``.
    """

    def __init__(
        self, features: np.ndarray, targets: np.ndarray, classes: int, weights: np.ndarray | None, seed: int
    ):
        import torch

        n, width = features.shape
        self.rows = np.ones((n, width + 1), np.float32)
        self.rows[:, :-1] = features
        self.hot = np.zeros((n, classes), np.float32)
        self.hot[np.arange(n), targets] = 1
        self.weights = None if weights is None else weights.astype(np.float32)[:, None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linear = torch.nn.Linear(width, classes)
        state = torch.cat([linear.weight.detach().T, linear.bias.detach()[None]])
        self.tensors = [state, *(torch.zeros_like(state) for _ in range(3))]
        self.parameters, self.gradient = self.tensors[0].numpy(), self.tensors[1].numpy()
        self.steps = torch.zeros(())

    def __len__(self) -> int:
        return len(self.rows)

    def train_epoch(self, batch: int, rate: float, order: np.ndarray | None = None) -> None:
        """One pass; a last batch may be smaller.

        Args:
            batch: Clips a step.
            rate: Learning rate.
            order: (n,) of the rows; None: their own.
        """
        import torch

        state, gradient, mean, square = self.tensors
        logits = now = torch.empty((batch, self.hot.shape[1]))
        values = now.numpy()
        with torch.inference_mode():
            for rows, hot, share in self._batches(batch, order):
                if len(rows) != len(values):  # the last one
                    now = logits[: len(rows)]
                    values = now.numpy()
                np.dot(rows, self.parameters, out=values)
                torch.softmax(now, 1, out=now)
                values -= hot
                values *= share
                np.dot(rows.T, values, out=self.gradient)
                self.steps += 1
                torch._fused_adam_(  # what torch.optim.Adam(fused=True) calls; torch's version is pinned
                    [state], [gradient], [mean], [square], [], [self.steps],
                    lr=rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, eps=EPSILON,
                    amsgrad=False, maximize=False,
                )  # fmt: skip

    def _batches(
        self, batch: int, order: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | float]]:
        """Rows, one-hot targets, and each row's share of the loss."""
        for start in range(0, len(self), batch):
            chosen = slice(start, start + batch) if order is None else order[start : start + batch]
            rows, hot = self.rows[chosen], self.hot[chosen]
            if self.weights is None:
                yield rows, hot, 1 / len(rows)
            else:
                weights = self.weights[chosen]
                yield rows, hot, weights / weights.sum()

    def loss(self, parameters: np.ndarray) -> float:
        """Mean cross-entropy (by weights) of the clips under (D + 1, C) parameters."""
        log = self._log_softmax(parameters)
        own = (log * self.hot).sum(axis=1)
        return -float(np.average(own, weights=None if self.weights is None else self.weights[:, 0]))

    def accuracy(self, parameters: np.ndarray) -> float:
        """Share of the clips whose class has the highest score; NaN without clips."""
        if not len(self):
            return float("nan")
        return float((self._log_softmax(parameters).argmax(axis=1) == self.hot.argmax(axis=1)).mean())

    def _log_softmax(self, parameters: np.ndarray) -> np.ndarray:
        import torch

        return torch.from_numpy(self.rows @ parameters).log_softmax(dim=1).numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Products of 32 rows are done before a second thread has woken up, and waiting for it is not."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def _require(schedule: Schedule) -> None:
    counts = min(schedule.epochs, schedule.batch) >= 1 and schedule.learning_rate > 0
    if not (counts and 0 <= schedule.held_out < 1 and schedule.decay_after > 0 and schedule.decay > 0):
        raise ProbeError(
            f"probe: {schedule}; accepted: epochs, batch >= 1; rates, decays > 0; 0 <= held_out < 1"
        )
