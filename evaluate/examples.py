"""Searches to look at: queries from the best-ranked to the worst, each with its first results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from store.tables import TEXT

if TYPE_CHECKING:
    from evaluate.index import Index
    from evaluate.ranking import Search
    from evaluate.sides import Side


def examples(
    search: "Search", ranks: np.ndarray, index: "Index", count: int, results: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A few searches of one direction.

    Args:
        search: The direction.
        ranks: (Q,) expected rank of each query's first right answer.
        index: Over the gallery.
        count: How many queries.
        results: How many results each.
        names: Of the classes.

    Returns:
        JSON-able: ``query``, its ``rank``, and ``results`` in order with ``score`` and ``right``.
    """
    rows = spread(ranks, count)
    excluded = int(search.excluded.counts()[rows].max(initial=0))
    scores, items = index.search(search.queries.vectors[rows], results + excluded)
    right, out = search.relevant(rows, items), search.excluded(rows, items)
    found = []
    for place, row in enumerate(rows.tolist()):
        kept = np.flatnonzero(~out[place] & (items[place] >= 0))[:results].tolist()
        shown = [
            {
                **described(search.gallery, int(items[place, k]), names),
                "score": round(float(scores[place, k]), 4),
                "right": bool(right[place, k]),
            }
            for k in kept
        ]
        query = described(search.queries, row, names)
        found.append({"query_item": query, "rank": float(ranks[row]), "results": shown})
    return found


def spread(ranks: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows spread evenly from the best rank to the worst, equal ranks in random order: no cherry-picking."""
    shuffled = np.random.default_rng(seed).permutation(len(ranks))
    order = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    return order[np.unique(places)]


def described(side: "Side", row: int, names: Sequence[str]) -> dict[str, Any]:
    """An item for people and for the report: its modality, id or text, and class."""
    key, label = "text" if side.modality == TEXT else "item", int(side.labels[row])
    return {
        "modality": side.modality,
        key: side.items[row],
        "label": label,
        "class": names[label] if label >= 0 else "",
    }
