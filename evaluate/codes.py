"""Vectors as int8: centred, all with one scale, and how much each of them lost."""

from dataclasses import dataclass, field

import numpy as np

BLOCK = 4096  # vectors worked on at a time: their scores with 1,000 queries stay in the cache
LEVELS = 127
UNCLIPPED = 0.999  # share of vectors that the scale must hold; the others are not quantised


@dataclass
class Codes:
    """Quantised vectors.

    Attributes:
        centre: (E,) float32, what was subtracted.
        scale: What one step of a code stands for.
        codes: (m, E) int8.
        norms: (2, n) float32: length of what quantising lost (inf: not quantised), and of the centred vector.
        rows: (m,) which vectors are quantised.
        others: (n - m,) which are not.
    """

    centre: np.ndarray
    scale: float
    codes: np.ndarray
    norms: np.ndarray
    rows: np.ndarray = field(init=False)
    others: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        inside = np.isfinite(self.norms[0])
        self.rows, self.others = np.flatnonzero(inside), np.flatnonzero(~inside)

    @property
    def longest(self) -> float:
        """No vector is longer."""
        return float(self.norms[1].max(initial=0.0)) + float(np.linalg.norm(self.centre))


def quantised(vectors: np.ndarray) -> Codes:
    """Codes of (n, E) vectors, which are read in blocks, three times."""
    starts = range(0, len(vectors), BLOCK)
    total = sum((vectors[at : at + BLOCK].sum(0, dtype=np.float64) for at in starts), np.zeros(1))
    centre = (total / max(1, len(vectors))).astype(np.float32)
    largest = [np.abs(vectors[at : at + BLOCK] - centre).max(1) for at in starts]
    reach = np.quantile(np.concatenate(largest), UNCLIPPED, method="higher") if largest else 0.0
    scale = max(float(reach), 1e-30) / LEVELS
    nothing = np.empty((0, len(centre)), np.int8), np.empty((2, 0), np.float32)
    return appended(Codes(centre, scale, *nothing), vectors)


def appended(old: Codes, vectors: np.ndarray) -> Codes:
    """The codes of all of ``vectors``, whose first rows are those that ``old`` has."""
    codes, norms = [np.asarray(old.codes)], [old.norms]
    for at in range(old.norms.shape[1], len(vectors), BLOCK):
        centred = vectors[at : at + BLOCK] - old.centre
        levels = np.rint(centred / np.float32(old.scale))
        inside = np.abs(levels).max(1) <= LEVELS
        lost = np.linalg.norm(centred - levels * np.float32(old.scale), axis=1)
        norms.append(np.stack([np.where(inside, lost, np.inf), np.linalg.norm(centred, axis=1)]))
        codes.append(levels[inside].astype(np.int8))
    return Codes(old.centre, old.scale, np.concatenate(codes), np.concatenate(norms, 1).astype(np.float32))
