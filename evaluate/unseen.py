"""Zero-shot scores apart for classes that training saw and classes that it did not, and what balances them.

Generalised zero-shot classification (Xian et al., Zero-shot learning: a comprehensive evaluation of the good,
the bad and the ugly, TPAMI 2019): all classes may be answered, and a model that never names an unseen class
must not look good.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from evaluate.records import Score
    from evaluate.source import Source


COLUMNS = ("seen", "unseen", "harmonic")


def seen_of_both(sources: "Sequence[Source]", classes: Iterable[int]) -> frozenset[int]:
    """The classes that the checkpoints' training saw (labels of its clips), if others are scored, too.

    Args:
        sources: One a checkpoint; a class that any of them saw is seen. Other datasets' classes don't count.
        classes: Labels of the clips to score.
    """
    seen: set[int] = set()
    for source in sources:
        if source.alignment is not None:
            rows = source.alignment.training_rows()
            pairs = zip(rows["dataset"].to_pylist(), rows["label"].to_pylist(), strict=True)
            seen |= {int(label) for name, label in pairs if name == source.dataset}
    scored = set(classes)
    return frozenset(seen & scored) if seen & scored and scored - seen else frozenset()


def apart(
    hits: np.ndarray, labels: np.ndarray, seen: Iterable[int], detail: Mapping[str, Any]
) -> "list[Score]":
    """Mean accuracy per seen class, per unseen class, and their harmonic mean.

    Args:
        hits: (S, n) in [0, 1], a row a checkpoint.
        labels: (n,) true classes.
        seen: Labels.
        detail: For the catalog.

    Returns:
        ``seen_accuracy``, ``unseen_accuracy`` and ``harmonic_mean``; nothing if only one kind is there.
    """
    from evaluate.records import Score, share

    known = np.isin(labels, list(seen))
    if known.all() or not known.any():
        return []
    old = share("seen_accuracy", hits[:, known], detail, labels[known])
    new = share("unseen_accuracy", hits[:, ~known], detail, labels[~known])
    low, high = harmonic_interval(old, new)
    both = Score("harmonic_mean", harmonic(old.value, new.value), len(labels), low, high, detail)
    return [old, new, both]


def harmonic(a: float, b: float) -> float:
    """2ab / (a + b); 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def harmonic_interval(a: "Score", b: "Score") -> tuple[float, float]:
    """Of the harmonic mean of two independent shares, out of their intervals, each side to first order.

    d/da 2ab / (a + b) = 2 b^2 / (a + b)^2. Where both shares are 0 it has no slope; then the ends of the two
    intervals are taken.
    """
    ends = [(a.low or 0.0, b.low or 0.0), (a.high or 0.0, b.high or 0.0)]
    total = a.value + b.value
    if total == 0:
        return harmonic(*ends[0]), harmonic(*ends[1])
    slopes = 2 * np.array([b.value, a.value]) ** 2 / total**2
    reach = [float(np.linalg.norm(slopes * (np.array(end) - (a.value, b.value)))) for end in ends]
    middle = harmonic(a.value, b.value)
    return max(middle - reach[0], 0.0), min(middle + reach[1], 1.0)
