"""The optimum of multinomial logistic regression, with a proof of how near it is.

Minimises F(W, b) = mean cross-entropy(X W + b) + s / 2 ||W||^2 over n rows of D features and C classes. A
pass is two products of n * D * C; what counts is how few passes there are, and how fast each is:

* L-BFGS whose first guess of the inverse Hessian is that of a Kronecker product: (X^T X / n) (x) S + s I with
  S = mean(diag(p) - p p^T), as if probabilities and features were independent. (Boehning, Ann. Inst. Stat.
  Math. 44 (1992), bounds the Hessian with the constant S = (I - 1 1^T / C) / 2; the S of the present p is
  nearer and costs a C x C eigendecomposition.) Five to twenty passes instead of a hundred.
* Along a direction logits are linear, so that a line search needs no product.
* Where a processor has bfloat16 the products are in it. A direction is rounded *before* it is walked, so its
  rounding is no error; that of X is, so the end is checked, and if need be reached, in float32.

The stopping test is a duality gap. The dual of F is D(a) = mean entropy(a_i) - ||X^T (a - Y) / n||^2 / (2 s),
for class distributions a_i of the rows whose mean is the class shares; D(a) <= min F for all of them. With
a = p and the bias at its optimum, F - D is ||dF/dW||^2 / (2 s). Where the mean of p is still off, a mixes p
with the distribution that makes up for it; :func:`_duality_gap` has the formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluate.quasi_newton import Bracket, Guess, Memory, spectrum

if TYPE_CHECKING:
    from torch import Tensor

FLOAT64_BELOW_VALUES = 2_000_000  # 16 MB: where a pass takes milliseconds, precision costs nothing
ITERATIONS = 300
SAMPLE_ROWS = 8192  # for the guess of the Hessian
FLATTEST = 1e-3  # class curvature, relative to the largest, below which the guess does not trust it
QUICK = 0.7  # of the goal at which bfloat16 hands over: what float32 then finds is a little more
SETTLING = 10  # Newton steps of the bias
SETTLED = {True: 1e-10, False: 1e-6}  # float64, float32: share of a class by which p's mean may be off
SEARCH, SLOPE_LEFT = 12, 0.1  # evaluations of a line search; share of the slope that may be left


@dataclass(frozen=True)
class Solution:
    """Where the solver stopped.

    Attributes:
        weights: (D, C) float32; a constant added to all classes changes nothing, so their mean is 0.
        bias: (C,) float32, likewise.
        gap: (F - min F) / min F is at most this.
        passes: Passes over the rows that it took, two products each.
    """

    weights: np.ndarray
    bias: np.ndarray
    gap: float
    passes: float


@dataclass
class _Point:
    """Parameters (D + 1, C), the bias last, and what follows from them.

    Attributes:
        parameters: See above.
        logits: (n, C).
        error: (n, C) p - y, times the row's weight.
        cross_entropy: Mean.
    """

    parameters: "Tensor"
    logits: "Tensor"
    error: "Tensor"
    cross_entropy: float


def solve_path(
    rows: np.ndarray,
    targets: np.ndarray,
    classes: int,
    strengths: Sequence[float],
    gap: float,
    device: str = "cpu",
    weights: np.ndarray | None = None,
    double: bool | None = None,
) -> list[Solution]:
    """The optima at several strengths s > 0, each found from the one before.

    Args:
        rows: (n, D) float32; their mean (by weights) is 0.
        targets: (n,) 0 <= y < classes, each class at least once.
        classes: C.
        strengths: From strong to weak is fastest.
        gap: Stop when (F - min F) / min F is certainly below. In float32 1e-6 may be out of reach; after
            ITERATIONS the solution says what it has.
        device: Where to solve.
        weights: (n,) > 0 of the rows in the mean cross-entropy; None: equal.
        double: In float64; None: if the rows are few.
    """
    double = rows.size <= FLOAT64_BELOW_VALUES if double is None else double
    problem = _Problem(rows, targets, classes, device, weights, double)
    point, found = problem.start(), []
    for strength in strengths:
        point, reached, passes = problem.solve(point, strength, gap)
        result = (point.parameters - point.parameters.mean(dim=1, keepdim=True)).float().cpu().numpy()
        found.append(Solution(result[:-1], result[-1], reached, passes))
    return found


def native_bfloat16(device: str) -> bool:
    """Whether the processor or GPU multiplies bfloat16 itself."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _Problem:
    def __init__(
        self,
        rows: np.ndarray,
        targets: np.ndarray,
        classes: int,
        device: str,
        weights: np.ndarray | None,
        double: bool,
    ):
        import torch

        self.x = torch.as_tensor(rows, device=device).to(torch.float64 if double else torch.float32)
        self.settled_at = SETTLED[double]
        self.quick = self.x.bfloat16() if not double and native_bfloat16(device) else None
        self.y = torch.as_tensor(targets, device=device)[:, None]
        self.n, self.width = self.x.shape
        lengths = torch.linalg.vector_norm(self.x, dim=1).square()
        self.weights = None
        if weights is not None:  # of mean 1
            self.weights = torch.as_tensor(weights / weights.mean(), device=device).to(self.x.dtype)[:, None]
            lengths *= self.weights[:, 0]
        self.reach = float(lengths.mean()) ** 0.5
        known = None if self.weights is None else self.weights[:, 0]
        self.shares = torch.bincount(self.y[:, 0], known, classes).to(self.x.dtype) / self.n
        self.sampled = self.sample(max(SAMPLE_ROWS, 4 * self.width))
        self.spectrum, self.axes, self.rest = spectrum(self.x[self.sampled])

    def sample(self, count: int) -> "slice | Tensor":
        """So many rows at random, ascending: every n-th could miss classes that take turns."""
        import torch

        if self.n <= count:
            return slice(None)
        chosen = np.random.default_rng(0).choice(self.n, count, replace=False, shuffle=False)
        return torch.as_tensor(np.sort(chosen), device=self.x.device)

    def start(self) -> _Point:
        """No weights, and the bias that is then the best."""
        parameters = self.x.new_zeros((self.width + 1, len(self.shares)))
        parameters[-1] = self.shares.log()
        return self.at(parameters, parameters[-1].repeat(self.n, 1))

    def solve(self, point: _Point, strength: float, goal: float) -> tuple[_Point, float, float]:
        """From a point to the optimum -> that, gap, passes."""
        quick, passes, gap = self.quick is not None, 0.5, float("inf")
        gradient = self.gradient(point, strength, quick)
        memory = Memory()
        for _ in range(ITERATIONS):
            near = QUICK * goal if quick else goal
            if self.gap(point, gradient, strength, certain=False) <= near:
                if quick:  # so it seems in bfloat16
                    passes += 0.5
                    point = self.at(point.parameters, self.logits(point.parameters, False))
                point, quick, passes = self.settled(point), False, passes + 0.5
                gradient = self.gradient(point, strength, False)
                gap = self.gap(point, gradient, strength)
                if gap <= goal:
                    break
            memory.learn(point.parameters, gradient)
            direction = -memory.inverse(gradient, self.guess(point, strength))
            if quick:
                direction = direction.bfloat16().to(direction.dtype)
            ahead = self.search(point, direction, self.logits(direction, quick), gradient, strength)
            if ahead is None and not quick:
                break  # rounding hides whatever could still be gained
            point, quick, passes = ahead or point, quick and ahead is not None, passes + 1
            gradient = self.gradient(point, strength, quick)
        return point, gap, passes

    def logits(self, parameters: "Tensor", quick: bool) -> "Tensor":
        """(D + 1, C) -> (n, C)."""
        if self.quick is not None and quick:
            return (self.quick @ parameters[:-1].bfloat16()).float().add_(parameters[-1])
        return (self.x @ parameters[:-1]).add_(parameters[-1])

    def at(self, parameters: "Tensor", logits: "Tensor") -> _Point:
        """Everything elementwise."""
        log = logits.log_softmax(dim=1)
        cross_entropy = -self.mean(log)
        error = log.exp_()
        error.scatter_add_(1, self.y, error.new_full((1, 1), -1.0).expand_as(self.y))
        if self.weights is not None:
            error *= self.weights
        return _Point(parameters, logits, error, cross_entropy)

    def mean(self, values: "Tensor") -> float:
        """Mean over the rows of what (n, C) values say of each one's class."""
        own = values.gather(1, self.y)
        return float(own.mean() if self.weights is None else (own * self.weights).mean())

    def gradient(self, point: _Point, strength: float, quick: bool) -> "Tensor":
        """(D + 1, C)."""
        import torch

        if self.quick is not None and quick:
            weights = (self.quick.T @ point.error.bfloat16()).float()
        else:
            weights = self.x.T @ point.error
        weights = weights.div_(self.n).add_(point.parameters[:-1], alpha=strength)
        return torch.cat([weights, point.error.mean(dim=0, keepdim=True)])

    def gap(self, point: _Point, gradient: "Tensor", strength: float, certain: bool = True) -> float:
        """Upper bound of (F - min F) / min F; not ``certain``: what it would be if the bias were settled."""
        weights, bias = point.parameters[:-1].double(), point.parameters[-1].double()
        value = point.cross_entropy + 0.5 * strength * float(weights.square().sum())
        log_sum = point.cross_entropy + self.mean(point.logits)
        slope = float(gradient[:-1].double().square().sum()) ** 0.5
        off = gradient[-1].double() if certain else gradient[-1].double() * 0
        gap = _duality_gap(slope, off, bias, self.shares.double(), log_sum, strength, self.reach)
        return gap / (value - gap) if gap < value else float("inf")

    def settled(self, point: _Point) -> _Point:
        """The same weights with the bias that is best for them, by Newton's method."""
        import torch

        for _ in range(SETTLING):
            off = point.error.mean(dim=0)
            if float((off / self.shares).abs().max()) <= self.settled_at:
                break
            shift = torch.linalg.pinv(self.curvature(point.error, slice(None)), hermitian=True) @ off
            parameters = point.parameters.clone()
            parameters[-1] -= (shift - shift.mean()).clamp(-1, 1)
            point = self.at(parameters, point.logits + (parameters[-1] - point.parameters[-1]))
        return point

    def curvature(self, error: "Tensor", rows: "slice | Tensor") -> "Tensor":
        """(C, C) mean of diag(p) - p p^T over rows, from (n, C) p - y."""
        import torch

        y = self.y[rows]
        p = error[rows].clone()
        if self.weights is not None:
            p /= self.weights[rows]
        p.scatter_add_(1, y, p.new_ones((1, 1)).expand_as(y))
        weighted = p if self.weights is None else p * self.weights[rows]
        return torch.diag(weighted.mean(dim=0)) - weighted.T @ p / len(p)

    def guess(self, point: _Point, strength: float) -> "Guess":
        """The Kronecker product at this point."""
        import torch

        sample = self.curvature(point.error, self.sampled)
        curvature, turn = torch.linalg.eigh(sample)
        curvature = curvature.clamp_min(FLATTEST * float(curvature[-1]))
        return Guess(self.axes, self.spectrum, self.rest, turn, curvature, strength)

    def search(
        self, point: _Point, direction: "Tensor", along: "Tensor", gradient: "Tensor", strength: float
    ) -> _Point | None:
        """Walk until most of the slope is gone and F has not risen; None: rounding lets no step succeed.

        F is convex along the line, so the first step whose slope is small ends it; see :class:`Bracket`.
        """
        import torch

        weights = direction[:-1]
        lean = strength * float((point.parameters[:-1] * weights).sum())
        bend = strength * float(weights.square().sum())
        first = float((gradient * direction).sum())
        bracket, step, best = Bracket(first), 1.0, None
        for _ in range(SEARCH):
            ahead = self.at(point.parameters, torch.add(point.logits, along, alpha=step))
            slope = float(ahead.error.flatten() @ along.flatten()) / self.n + lean + step * bend
            rise = ahead.cross_entropy - point.cross_entropy + step * lean + 0.5 * step * step * bend
            if rise <= 0 or slope <= 0:  # either proves it, and rounding hides the other near the optimum
                ahead.parameters = point.parameters + step * direction
                best = ahead
                if abs(slope) <= SLOPE_LEFT * abs(first):
                    break
            step = bracket.next(step, slope)
        return best


def _duality_gap(
    slope: float,
    off: "Tensor",
    bias: "Tensor",
    shares: "Tensor",
    log_sum: float,
    strength: float,
    reach: float,
) -> float:
    """Upper bound of F - min F.

    a = (1 - t) p + t q for the smallest t at which a distribution q of classes sets a's mean to the shares.
    Entropy is concave, X centred, ||X^T p / n|| at most the root mean square R of the rows' lengths, so that

        F - D(a) <= (||dF/dW|| + t R)^2 / (2 s) + b . off + t (mean logsumexp(z) - b . mean(p) - entropy(q)).

    Args:
        slope: ||dF/dW||.
        off: (C,) mean(p) - shares, which is dF/db.
        bias: (C,) b.
        shares: (C,) of the classes.
        log_sum: Mean of logsumexp of the logits.
        strength: s.
        reach: R.
    """
    mean = shares + off
    t = max(0.0, float((off / mean).max()))
    value = (slope + t * reach) ** 2 / (2 * strength) + float(bias @ off)
    if t == 0:
        return value
    q = ((shares - (1 - t) * mean) / t).clamp_min(0)
    entropy = -float((q * q.clamp_min(1e-300).log()).sum())
    return value + t * (log_sum - float(bias @ mean) - entropy)
