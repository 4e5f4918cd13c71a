"""The report's section on geometry: gaps between modalities as bars, distances as histograms, the numbers."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from evaluate.geometry import GEOMETRY_FILE, RATIO_EDGES
from evaluate.page import Cell, card, table, tag
from evaluate.plots import bars_svg, histogram_svg
from evaluate.provenance import kind
from evaluate.records import read_file
from evaluate.report_figures import Run, finished
from evaluate.report_tables import source_tags
from evaluate.spread import EDGES

if TYPE_CHECKING:
    from store.bank import Bank

Entry = Mapping[str, Any]
MODALITY_COLUMNS = {
    "uniformity": "uniformity", "effective_rank": "effective rank", "same_class_distance": "same class",
    "other_class_distance": "other classes", "covariance_norm": "class covariance",
    "own_text_distance": "own text", "other_text_distance": "other texts", "text_ratio": "ratio",
}  # fmt: skip
PAIR_COLUMNS = {
    "gap": "gap", "gap_share": "its share", "alignment": "alignment", "centre_distance": "class centres",
    "centre_cosine_distance": "their cosine", "covariance_distance": "class covariances",
}  # fmt: skip
NOTE = (
    "Vectors of length 1; distances are 1 - cosine, but for gaps, alignment (squared) and centres, which are "
    "Euclidean. Uniformity: 0 if all vectors are one, about -4 if they fill the sphere. Gap: distance of two "
    "modalities' centroids; dashed: what so many clips would show if there were none. Ratio: distance to the "
    "own class's text over the mean of the others, 1 by chance. In brackets 95 % over clips (of classes' "
    "centres and covariances: over classes)."
)


def geometry(bank: "Bank", dataset: str | None) -> str:
    """The newest run of each kind: dataset, protocol, part, raw or aligned and how supervised."""
    cards: dict[tuple[Any, ...], str] = {}
    for run in finished(bank, dataset, "evaluate geometry"):
        entries = read_file(run["folder"], GEOMETRY_FILE)
        if not entries:
            continue
        config, shared = run["config"], {**entries[0], "modality": None, "features": None}
        key = (config.get("dataset"), config.get("protocol"), *kind(shared))
        if key not in cards:
            cards[key] = _card(run, entries)
    return f'<div class="stack">{"".join(cards.values())}</div>' if cards else ""


def _card(run: Run, entries: Sequence[Entry]) -> str:
    config, first = run["config"], entries[0]
    place = [config.get("dataset"), config.get("protocol"), first["part"] if config.get("protocol") else None]
    single = [entry for entry in entries if "modality" in entry]
    double = [entry for entry in entries if "pair" in entry]
    seen = tag("training saw some of these clips", warn=True) if first["seen_in_training"] else ""
    parts = [f"<p>{source_tags(first)} {seen}</p>", _table("modality", single, MODALITY_COLUMNS)]
    if double:
        parts.append(_table("pair", double, PAIR_COLUMNS))
    figures = [_gaps(double)] if double else []
    figures += [figure for entry in single for figure in _histograms(entry)]
    parts.append(f'<div class="small">{"".join(figures)}</div>')
    return card("".join(parts), " · ".join(str(one) for one in place if one), NOTE)


def _table(name: str, entries: Sequence[Entry], columns: Mapping[str, str]) -> str:
    there = [key for key in columns if any(key in entry["scores"] for entry in entries)]
    head = [Cell(name), *(Cell(columns[key], number=True) for key in there), Cell("n", number=True)]
    lines = []
    for entry in entries:
        scores = entry["scores"]
        counts = Cell(f"{next(iter(scores.values()))[3]:,}", number=True)
        lines.append([Cell(entry[name]), *(_cell(key, entry) for key in there), counts])
    return table(head, lines)


def _cell(name: str, entry: Entry) -> Cell:
    if name not in entry["scores"]:
        return Cell(number=True)
    value, low, high, *_ = entry["scores"][name]
    if name == "effective_rank":
        return Cell(f"{value:.1f} of {entry['dims']}", number=True)
    span = "" if low is None else f"<br><small>[{low:.3f}, {high:.3f}]</small>"
    return Cell(html=f"{value:.3f}{span}", number=True)


def _gaps(pairs: Sequence[Entry]) -> str:
    bars = []
    for entry in pairs:
        value, low, high, _, chance = entry["scores"]["gap"]
        bars.append((entry["pair"], value, low, high, chance))
    return bars_svg(bars, "Modality gap")


def _histograms(entry: Entry) -> list[str]:
    """Of one modality: clips to clips, clips to class texts, and the ratio, as far as there are any."""
    found, name = entry["histograms"], escape(entry["modality"])
    distance = [
        {key: found[key] for key in keys if key in found}
        for keys in (("same class", "other classes"), ("own text", "other texts"))
    ]
    titles = ("cosine distance of clips", "cosine distance to class texts")
    drawn = [histogram_svg(one, EDGES, f"{name}: {told}") for one, told in zip(distance, titles, strict=True)]
    if "ratio" in found:
        drawn.append(histogram_svg({"own / other texts": found["ratio"]}, RATIO_EDGES, f"{name}: ratio"))
    return [figure for figure in drawn if figure]
