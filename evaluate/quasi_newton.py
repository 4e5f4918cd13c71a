"""What quasi-Newton steps are made of: a guess of the inverse Hessian, pairs of steps, a line's bracket."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MEMORY = 10  # pairs of L-BFGS
WHOLE_SPECTRUM = 2048  # largest D whose covariance is decomposed whole
LEADING = 256  # directions that are kept of a larger one


@dataclass(frozen=True)
class Guess:
    """Inverse of (axes diag(spectrum) axes^T) (x) (turn diag(curvature) turn^T) + strength I; bias: of S."""

    axes: "Tensor"
    spectrum: "Tensor"
    rest: float
    turn: "Tensor"
    curvature: "Tensor"
    strength: float

    def __call__(self, gradient: "Tensor") -> "Tensor":
        """(D + 1, C) -> (D + 1, C)."""
        turned = gradient @ self.turn
        inside = self.axes.T @ turned[:-1]
        scaled = inside / (self.spectrum[:, None] * self.curvature + self.strength)
        if self.axes.shape[0] == self.axes.shape[1]:
            turned[:-1] = self.axes @ scaled
        else:  # beyond the leading directions all are taken for equal
            outside = (turned[:-1] - self.axes @ inside) / (self.rest * self.curvature + self.strength)
            turned[:-1] = self.axes @ scaled + outside
        turned[-1] /= self.curvature
        return turned @ self.turn.T


class Memory:
    """L-BFGS: steps and the changes of the gradient that they made (Nocedal & Wright 2006, algorithm 7.4)."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, float]] = []
        self.last: tuple[Tensor, Tensor] | None = None

    def learn(self, parameters: "Tensor", gradient: "Tensor") -> None:
        """The next point on the way; a change without curvature (rounding) is left out."""
        if self.last is not None:
            step, change = parameters - self.last[0], gradient - self.last[1]
            product = float((step * change).sum())
            if product > 1e-8 * float(step.norm()) * float(change.norm()):
                self.pairs = [*self.pairs[-MEMORY + 1 :], (step, change, 1 / product)]
        self.last = parameters, gradient

    def inverse(self, gradient: "Tensor", guess: Guess) -> "Tensor":
        """Inverse Hessian times gradient."""
        vector, shares = gradient.clone(), []
        for step, change, scale in reversed(self.pairs):
            shares.append(scale * float((step * vector).sum()))
            vector.sub_(change, alpha=shares[-1])
        vector = guess(vector)
        for (step, change, scale), share in zip(self.pairs, reversed(shares), strict=True):
            vector.add_(step, alpha=share - scale * float((change * vector).sum()))
        return vector


class Bracket:
    """Where an increasing function, the slope along a line, is 0: false position, Illinois variant."""

    def __init__(self, first: float):
        self.low, self.low_slope = 0.0, first
        self.high: float | None = None
        self.high_slope, self.side = 0.0, 0

    def next(self, step: float, slope: float) -> float:
        """The slope at a step -> the next step; before there is a bracket, up to four times as far."""
        before, before_slope = self.low, self.low_slope
        side = -1 if slope < 0 else 1
        if side < 0:
            self.low, self.low_slope = step, slope
            self.high_slope *= 0.5 if self.side == side else 1.0
        else:
            self.high, self.high_slope = step, slope
            self.low_slope *= 0.5 if self.side == side else 1.0
        self.side = side
        if self.high is None:
            flatter = slope - before_slope
            return min(4 * step, step - slope * (step - before) / flatter) if flatter > 0 else 4 * step
        share = self.low_slope / (self.low_slope - self.high_slope)
        return self.low + min(max(share, 0.05), 0.95) * (self.high - self.low)


def spectrum(rows: "Tensor") -> "tuple[Tensor, Tensor, float]":
    """Eigenvalues (k,) and eigenvectors (D, k) of the rows' covariance, and the mean of what is left out."""
    import torch

    count, width = rows.shape
    if width <= WHOLE_SPECTRUM:
        values, axes = torch.linalg.eigh(rows.T @ rows / count)
        return values.clamp_min(0), axes, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, lengths, axes = torch.svd_lowrank(rows, q=min(LEADING, count))
    values = lengths.square() / count
    rest = float(rows.square().sum()) / count - float(values.sum())
    return values, axes, max(0.0, rest) / max(1, width - len(values))
