"""Exact search at the speed of int8: a shortlist with a proven bound, scored again in float32 and float64.

Vectors are centred (that changes no ranking) and quantised to int8 with one scale, a query with its own. For
a query q = a + r and a centred vector x = b + s, a and b quantised, |q·x - a·b| <= |a| |s| + |r| |x|. The
product a·b is one of integers, without rounding. So whatever cannot reach the k-th best lower bound is out,
and what is left is scored again: nothing that belongs to the best k can be lost. Queries with too many such
candidates (nearly equal vectors) fall back to float32; small collections are searched so at once. Equal
float64 scores are ordered by row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluate.codes import BLOCK, LEVELS, Codes, appended, quantised
from evaluate.shortlist import contiguous, scores_of, search_all, search_allowed

if TYPE_CHECKING:
    import torch

FEW = 8192  # vectors among which a shortlist saves less than it costs
GROUP = 32  # scores of which only the largest is looked at, unless it is large enough
QUERIES = 1024  # at a time
MOST_CANDIDATES = 2048  # a query; above it, it falls back
SPARE = 32  # more neighbours than asked for, in float32, so that ties at the end are seen
MOST_PRODUCTS = 8_000_000  # that are in memory at a time
ROUNDING = 2.0**-24  # of float32, relative
CODES_FILE, NORMS_FILE, SCALE_FILE = "codes.npy", "norms.npy", "scale.npy"


class ExactIndex:
    """The k largest inner products as float64 gives them.

    Args:
        vectors: (n, E) float32, in memory or memory-mapped.
        folder: Where ``save`` left the codes; None: they are made.

    Attributes:
        fallbacks: Of the queries of the last search, how many needed more than the shortlist.
    """

    exact = True

    def __init__(self, vectors: np.ndarray, folder: Path | None = None):
        self.vectors = vectors
        self.fallbacks = 0
        if folder is None:
            self._codes = quantised(vectors)
        else:
            *centre, scale = np.load(folder / SCALE_FILE)
            codes = np.load(folder / CODES_FILE, mmap_mode="c")  # torch wants it writable
            norms = np.load(folder / NORMS_FILE)
            self._codes = Codes(np.array(centre, np.float32), float(scale), codes, norms)

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, folder: Path) -> None:
        """Write the codes into ``folder``."""
        codes = self._codes
        np.save(folder / CODES_FILE, codes.codes)
        np.save(folder / NORMS_FILE, codes.norms)
        np.save(folder / SCALE_FILE, np.array([*codes.centre.tolist(), codes.scale]))

    def extend(self, vectors: np.ndarray) -> None:
        """Take in the rows of ``vectors`` beyond those that are there."""
        self._codes, self.vectors = appended(self._codes, vectors), vectors

    @staticmethod
    def predicted_bytes(dim: int, count: int) -> float:
        """Bytes a vector beside the vectors themselves."""
        return dim + 8

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) in descending order, and rows (Q, k); k is at most n (or the rows allowed)."""
        queries = contiguous(queries)
        self.fallbacks = 0
        if allowed is not None:
            return self._among(queries, min(k, len(allowed)), allowed)
        k = min(k, len(self))
        parts = [self._some(queries[at : at + QUERIES], k) for at in range(0, len(queries), QUERIES)]
        if not parts:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _among(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth = min(k + SPARE, len(allowed))
        scores, rows = search_allowed(self.vectors, queries, depth, allowed)
        return _ordered(self.vectors, queries, rows, k, self._codes.longest) if k else (scores, rows)

    def _some(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k * GROUP > len(self._codes.codes):  # a shortlist would be no shorter
            return search_double(self.vectors, queries, k)
        if len(self) < FEW or not native_int8():
            return search_float(self.vectors, queries, k, self._codes.longest)
        candidates, failed = _candidates(self._codes, self.vectors, queries, k)
        scores, rows = _ordered(self.vectors, queries, candidates, k, self._codes.longest)
        self.fallbacks += len(failed)
        if len(failed):
            again = search_float(self.vectors, queries[failed], k, self._codes.longest)
            scores[failed], rows[failed] = again
        return scores, rows


def native_int8() -> bool:
    """Whether this processor multiplies int8 natively, and sums without saturation (VNNI, AMX)."""
    import torch

    return bool(torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())


@dataclass
class _Query:
    """A batch of queries, quantised; a unit is what one step of a product of codes stands for."""

    codes: "torch.Tensor"  # (Q, E) int8
    unit: "torch.Tensor"  # (Q,)
    length: "torch.Tensor"  # (Q,) of the quantised query
    lost: "torch.Tensor"  # (Q,) length of what quantising lost
    slack: "torch.Tensor"  # (Q,) what float32 may add to any score

    def error(self, lost: float, length: float) -> "torch.Tensor":
        """The bound, in units, for vectors that lost at most so much and are at most so long: (Q,)."""
        bound = self.length * lost + self.lost * length
        as_float = 2 + self.codes.shape[1] * LEVELS**2 * 2 * ROUNDING  # integers kept as float32
        return (bound * (1 + 1e-5) + self.slack) / self.unit + as_float


def _query(codes: Codes, queries: np.ndarray) -> _Query:
    import torch

    given = torch.from_numpy(queries)
    steps = given.abs().amax(1).clamp(min=1e-30) / LEVELS
    levels = (given / steps[:, None]).round()
    near = levels * steps[:, None]
    slack = torch.from_numpy(_slack(queries, codes.longest))
    lost = (given - near).norm(dim=1)
    return _Query(levels.to(torch.int8), steps * codes.scale, near.norm(dim=1), lost, slack)


def _slack(queries: np.ndarray, longest: float) -> np.ndarray:
    """How far a float32 inner product may be off, whatever the order of its sum: (Q,)."""
    lengths = np.linalg.norm(queries, axis=1)
    return (lengths * (longest * (queries.shape[1] + 8) * ROUNDING) + 1e-30).astype(np.float32)


def _candidates(
    codes: Codes, vectors: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, C), padded with -1, among which the best k are; and the queries (f,) that have too many."""
    import torch

    query = _query(codes, queries)
    asking, rows, upper, failed = _scan(codes, query, k)
    order = torch.argsort(upper, descending=True)
    order = order[torch.argsort(asking[order], stable=True)]
    asking, rows, upper = asking[order], rows[order], upper[order]
    counts = torch.bincount(asking, minlength=len(queries))
    place = torch.arange(len(asking)) - (counts.cumsum(0) - counts)[asking]
    table = torch.full((len(queries), max(k, int(counts.max()))), -1, dtype=torch.int64)
    table[asking, place] = torch.from_numpy(codes.rows)[rows]
    bounds = torch.full(table.shape, -torch.inf)
    bounds[asking, place] = upper
    # True scores of the k most promising: what stays below their least cannot be among the best.
    least = scores_of(vectors, queries, table[:, :k].numpy()).min(1) - queries @ codes.centre
    bar = (torch.from_numpy(least) - 2 * query.slack) / query.unit
    bar[failed] = torch.inf
    likely = bounds >= bar[:, None]
    width = max(k, int(likely.sum(1).max()))  # bounds descend, so these come first
    found = torch.where(likely, table, -1)[:, :width].numpy()
    others = np.broadcast_to(codes.others, (len(queries), len(codes.others)))
    return np.concatenate([found, others], 1), torch.nonzero(failed)[:, 0].numpy()


def _scan(codes: Codes, query: _Query, k: int) -> tuple["torch.Tensor", ...]:
    """All (query, code row) pairs that may be among the best k, their upper bounds, and who has too many."""
    import torch

    stored, norms = torch.from_numpy(np.asarray(codes.codes)), codes.norms[:, codes.rows]
    floor = _sampled_floor(stored, norms, query, k)
    best = torch.full((len(query.unit), k), -torch.inf)
    counts = torch.zeros(len(query.unit), dtype=torch.int64)
    pieces: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    block = max(BLOCK, MOST_PRODUCTS // 2 // len(query.unit) // GROUP * GROUP)
    for at in range(0, len(stored), block):
        part = stored[at : at + block]
        error = query.error(*(float(each) for each in norms[:, at : at + block].max(1)))
        products = torch._int_mm(query.codes, part.T)
        groups = len(part) // GROUP
        grouped = products[:, : groups * GROUP].view(len(products), GROUP, groups)
        largest = grouped.amax(1).float() if groups else torch.empty(len(products), 0)
        # The largest of a group each: k different vectors are at least as good as the k-th of these.
        best = torch.cat([best, largest - error[:, None]], 1).topk(k, 1).values
        floor = torch.maximum(floor, best[:, -1])
        needed = torch.where(counts > MOST_CANDIDATES, torch.inf, floor - error)
        hot = torch.nonzero(largest >= needed[:, None])
        values = grouped[hot[:, 0], :, hot[:, 1]]
        one, inner = torch.nonzero(values >= needed[hot[:, 0], None]).T
        rest = products[:, groups * GROUP :]
        loose, place = torch.nonzero(rest >= needed[:, None]).T
        asking = torch.cat([hot[one, 0], loose])
        row = torch.cat([inner * groups + hot[one, 1], groups * GROUP + place]) + at
        upper = torch.cat([values[one, inner], rest[loose, place]]) + error[asking]
        pieces.append((asking, row, upper))
        counts += torch.bincount(asking, minlength=len(counts))
    asking, row, upper = (torch.cat(each) for each in zip(*pieces, strict=True))
    failed = counts > MOST_CANDIDATES
    keep = (upper >= floor[asking]) & ~failed[asking]
    return asking[keep], row[keep], upper[keep], failed


def _sampled_floor(stored: "torch.Tensor", norms: np.ndarray, query: _Query, k: int) -> "torch.Tensor":
    """The k-th best lower bound of every so-manyth vector, in units: it thins out the first blocks."""
    import torch

    step = len(stored) // BLOCK
    if step < 3:
        return torch.full(query.unit.shape, -torch.inf)
    products = torch._int_mm(query.codes, stored[::step].contiguous().T)
    error = query.error(*(float(each) for each in norms[:, ::step].max(1)))
    return products.float().topk(k, 1).values[:, -1] - error


def _ordered(
    vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int, longest: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each query's candidates in float64's order: scores and rows (Q, k).

    Only scores that float32 cannot tell apart are computed again.
    """
    scores = scores_of(vectors, queries, candidates)
    order = np.argsort(-scores, axis=1)
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(candidates, order, 1)
    apart = 2 * _slack(queries, longest)[:, None]
    width = int(((rows >= 0) & (scores >= scores[:, k - 1 : k] - apart)).sum(1).max(initial=k))
    scores, rows = scores[:, :width].astype(np.float64), rows[:, :width]
    with np.errstate(invalid="ignore"):  # -inf - -inf where there is no candidate
        close = -np.diff(scores, axis=1) <= apart
    near = np.zeros(rows.shape, bool)
    near[:, 1:] |= close
    near[:, :-1] |= close
    near &= rows >= 0
    asking, place = np.nonzero(near)
    for at in range(0, len(asking), BLOCK):
        some, where = asking[at : at + BLOCK], place[at : at + BLOCK]
        pairs = (queries[some].astype(np.float64), vectors[rows[some, where]].astype(np.float64))
        scores[some, where] = np.einsum("pe,pe->p", *pairs)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(rows, order, 1)


def search_float(
    vectors: np.ndarray, queries: np.ndarray, k: int, longest: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same by float32 products with everything; float64 where ties go on beyond the spare places."""
    depth = min(k + SPARE, len(vectors))
    found, candidates = search_all(vectors, queries, depth)
    scores, rows = _ordered(vectors, queries, candidates, k, longest)
    if depth < len(vectors):
        unclear = np.flatnonzero(found[:, -1] >= found[:, k - 1] - 2 * _slack(queries, longest))
        if len(unclear):
            scores[unclear], rows[unclear] = search_double(vectors, queries[unclear], k)
    return scores, rows


def search_double(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition: all products in float64, equal ones in the order of their rows."""
    wide = queries.astype(np.float64)
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    step = max(1, MOST_PRODUCTS // max(1, len(vectors)))
    for first in range(0, len(queries), step):
        some = wide[first : first + step]
        blocks = range(0, len(vectors), BLOCK)
        products = np.concatenate([some @ vectors[at : at + BLOCK].astype(np.float64).T for at in blocks], 1)
        for place, row in enumerate(products, first):
            least = np.partition(row, len(row) - k)[len(row) - k]
            among = np.flatnonzero(row >= least)
            rows[place] = among[np.argsort(-row[among], kind="stable")[:k]]
            scores[place] = row[rows[place]]
    return scores, rows
