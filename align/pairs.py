"""Which modality pairs a loss covers: ``all``, ``anchor``, or a list with weights."""

import itertools
from collections.abc import Sequence

from store.errors import FrameBankError

Pair = tuple[str, str, float]


class PairError(FrameBankError, ValueError):
    """Pairs that cannot be read, or that name a modality which is not there."""


def resolve_pairs(pairs: str | Sequence[Pair | str], modalities: Sequence[str]) -> list[Pair]:
    """Write the pairs out.

    Args:
        pairs: ``all`` (every unordered pair, what CMVRA does), ``anchor`` (the first modality with each
            other one), ``anchor:rgb`` (a named anchor), ``"rgb-text, rgb-depth=0.5"``, or a list of such
            items or of (first, second, weight). Weights default to 1.
        modalities: In order; the order gives each pair its direction.

    Returns:
        (first, second, weight) each; the order of the list decides which one is ``forward``.

    Raises:
        PairError: If an item is malformed, names an unknown modality, twice the same one, or has no positive
            weight.
    """
    if pairs == "all":
        return [(a, b, 1.0) for a, b in itertools.combinations(modalities, 2)]
    if isinstance(pairs, str) and pairs.split(":")[0] == "anchor":
        anchor = pairs.partition(":")[2] or modalities[0]
        return [_checked(anchor, other, 1.0, modalities) for other in modalities if other != anchor]
    items = [item.strip() for item in pairs.split(",")] if isinstance(pairs, str) else pairs
    return [_checked(*(_parse(item) if isinstance(item, str) else item), modalities) for item in items]


def _parse(item: str) -> Pair:
    names, _, weight = item.partition("=")
    first, dash, second = names.strip().partition("-")
    try:
        value = float(weight) if weight else 1.0
    except ValueError:
        raise PairError(f"pairs: {weight!r} in {item!r} is not a number; write first-second=0.5") from None
    if not dash:
        raise PairError(
            f"pairs: {item!r} is unknown; accepted: all, anchor, anchor:NAME, or FIRST-SECOND[=WEIGHT],..."
        )
    return first.strip(), second.strip(), value


def _checked(first: str, second: str, weight: float, modalities: Sequence[str]) -> Pair:
    for name in (first, second):
        if name not in modalities:
            raise PairError(f"pairs: {name!r} is not aligned here; modalities: {', '.join(modalities)}")
    if first == second or not weight > 0:
        raise PairError(
            f"pairs: {first}-{second}={weight:g} needs two different modalities and a weight above 0"
        )
    return first, second, weight
