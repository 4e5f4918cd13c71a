"""The report's figures: confusions, training curves, maps of the aligned space, searches with thumbnails."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.page import card, picture
from evaluate.plots import confusion_svg, curves_svg, mark_svg, scatter_svg
from evaluate.provenance import kind
from evaluate.records import CONFUSION_FILE, EXAMPLES_FILE, read_file
from evaluate.report_tables import source_tags
from store.tables import TEXT

if TYPE_CHECKING:
    from align.alignment import Alignment
    from store.bank import Bank

MOST_CONFUSIONS = 8
MOST_CURVES = 6
OPEN_DIRECTIONS = 4  # further ones are folded
EXAMPLES_SHOWN = 3  # of the searches that a run kept per direction: best, middling, worst
SEARCHES_SHOWN = 8

Run = Mapping[str, Any]


def finished(bank: "Bank", dataset: str | None, command: str) -> list[Run]:
    """Finished runs of a command, newest first: run_id, directory, config."""
    query = """
        SELECT run_id, command, directory, config::VARCHAR AS config FROM runs
        WHERE status = 'done' AND command LIKE ?
            AND coalesce(config ->> 'dataset', '') = coalesce(?, config ->> 'dataset', '')
        ORDER BY started_at DESC, run_id DESC
    """
    rows = bank.sql(query, [command, dataset]).to_pylist()
    return [
        row | {"folder": Path(bank.path) / row["directory"], "config": json.loads(row["config"])}
        for row in rows
    ]


def confusions(bank: "Bank", dataset: str | None) -> str:
    """The newest confusion matrix of each kind, most classes' worth first come first served."""
    cards: dict[tuple[Any, ...], str] = {}
    for run in finished(bank, dataset, "evaluate %"):
        for entry in read_file(run["folder"], CONFUSION_FILE):
            key = (run["command"], run["config"].get("dataset"), run["config"].get("protocol"), *kind(entry))
            if key not in cards and len(cards) < MOST_CONFUSIONS:
                cards[key] = _confusion_card(run, entry)
    return f'<div class="grid">{"".join(cards.values())}</div>' if cards else ""


def _confusion_card(run: Run, entry: Mapping[str, Any]) -> str:
    matrix, names = np.array(entry["matrix"]), entry["names"]
    present = np.flatnonzero(matrix.sum(0) + matrix.sum(1))  # classes of neither side would be empty lines
    matrix, names = matrix[np.ix_(present, present)], [names[place] for place in present]
    what = f"{entry['modality']} by {entry['fusion']}" if "fusion" in entry else entry["modality"]
    heading = f"{run['command'].removeprefix('evaluate ')}: {what}, {entry['accuracy']:.1%}"
    figure = confusion_svg(matrix, names, heading)
    return card(f"<p>{source_tags(entry)}</p>{figure}", heading, _most_confused(matrix, names))


def _most_confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    wrong = matrix * (1 - np.eye(len(matrix)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    told = [
        f"{names[a]} as {names[b]} ({wrong[a, b]:g} of {matrix[a].sum():g})"
        for a, b in pairs
        if wrong[a, b] > 0
    ]
    return "Most confused: " + "; ".join(told) if told else "No confusion."


def curves(bank: "Bank", dataset: str | None) -> str:
    """Loss and held-out recall of the newest alignments."""
    cards = []
    for run in finished(bank, dataset, "align")[:MOST_CURVES]:
        path = run["folder"] / "curve.json"
        if path.exists():
            cards.append(_curve_card(run, json.loads(path.read_text(encoding="utf-8"))))
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _curve_card(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    def line(name: str) -> tuple[list[float], list[float]]:
        found = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        return [x for x, _ in found], [y for _, y in found]

    figures = [
        curves_svg({"training": line("train_loss"), "held out": line("validation_loss")}, "epoch", "Loss")
    ]
    recall = line("validation_recall")
    if recall[0]:
        figures.append(curves_svg({"held out": recall}, "epoch", "R@1 among held-out clips"))
    config = run["config"]
    told = " and ".join(config.get("supervision") or []) or "nothing but which features belong to one clip"
    training = config.get("training", {})
    clips, held_out = training.get("clips", "?"), training.get("held_out", 0)
    note = f"{clips} training clips, {held_out} held out; supervised by {told}; run {run['run_id']}"
    return card(
        f'<div class="grid">{"".join(figures)}</div>',
        f"{config.get('dataset')}: {', '.join(config.get('modalities', {}))}",
        note,
    )


def maps(bank: "Bank", alignment: "Alignment", seed: int = 0) -> str:
    """The aligned space in two dimensions, twice: t-SNE and PCA, with the classes' texts among the clips.

    Raises:
        FrameBankError: If the bank lacks features that the checkpoint needs.
    """
    from evaluate.source import Source
    from evaluate.space_map import positions, sample_rows

    config = alignment.config
    source = Source(bank, config["dataset"], config["protocol"], alignment)
    names = source.label_names
    clips = {name: source.clips(name, "test") for name in source.modalities()}
    rows = sample_rows({name: len(one) for name, one in clips.items()}, seed=seed)
    vectors, classes, groups, titles = [], [], [], []
    for name, one in clips.items():
        vectors.append(one.vectors[rows[name]])
        classes.append(one.labels[rows[name]])
        groups += [name] * len(rows[name])
        for item, label in zip(one.items[rows[name]], one.labels[rows[name]], strict=True):
            titles.append(f"{name}: {item}" + (f" ({names[label]})" if label >= 0 else ""))
    if TEXT in alignment.modalities:
        pairs = sorted({pair for several in source.label_texts().values() for pair in several})
        if pairs:
            vectors.append(source.texts([text for _, text in pairs]))
            classes.append(np.array([label for label, _ in pairs]))
            groups += [TEXT] * len(pairs)
            titles += [f"text: {text}" for _, text in pairs]
    joined, labels = np.concatenate(vectors), np.concatenate(classes)
    drawn = {method: positions(joined, method, seed) for method in ("t-sne", "pca")}
    pictures = [
        card(scatter_svg(place, labels, groups, titles, names), heading, note)
        for (heading, note), place in zip(_MAP_NOTES, drawn.values(), strict=True)
    ]
    return (
        f'<div class="maps">{_legend(groups, labels, names)}<div class="grid">{"".join(pictures)}</div></div>'
    )


_MAP_NOTES = (
    ("t-SNE", "Who is whose neighbour; distances between groups mean nothing."),
    ("PCA", "The two directions of most variance; distances are honest but partial."),
)


def _legend(groups: Sequence[str], labels: np.ndarray, names: Sequence[str]) -> str:
    marks = "".join(
        f"<span>{mark_svg(place)}{escape(name)}</span>" for place, name in enumerate(dict.fromkeys(groups))
    )
    options = "".join(
        f'<option value="{label}">{escape(names[label])}</option>'
        for label in sorted({int(label) for label in labels if label >= 0})
    )
    choice = f'<label>show class <select><option value="">all</option>{options}</select></label>'
    return f'<div class="legend-row">{marks}{choice}</div>'


def searches(bank: "Bank", dataset: str | None) -> str:
    """Typed searches and examples of retrieval, newest of each direction, with pictures."""
    typed: dict[tuple[Any, ...], str] = {}
    for run in finished(bank, dataset, "evaluate search"):
        for entry in read_file(run["folder"], EXAMPLES_FILE):
            key = (entry["dataset"], "TEXT TO TEXT" in entry["how"], *sorted(entry["query_item"].items()))
            if key not in typed and len(typed) < SEARCHES_SHOWN:
                typed[key] = _example(bank, entry)
    directions: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in finished(bank, dataset, "evaluate retrieve"):
        found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for entry in read_file(run["folder"], EXAMPLES_FILE):
            found.setdefault((entry["dataset"], *kind(entry)), []).append(entry)
        directions = {**found, **directions}  # newer runs were first
    cards = [_direction_card(bank, entries) for entries in directions.values()]
    shown, folded = cards[:OPEN_DIRECTIONS], cards[OPEN_DIRECTIONS:]
    summary = f"<summary>{len(folded)} more directions</summary>"
    more = f"<details>{summary}{_stack(''.join(folded))}</details>" if folded else ""
    searched = [card("".join(typed.values()), "Typed searches, and clips like a clip")] if typed else []
    return _stack("".join([*searched, *shown])) + more


def _stack(cards: str) -> str:
    return f'<div class="stack">{cards}</div>' if cards else ""


def _direction_card(bank: "Bank", entries: Sequence[Mapping[str, Any]]) -> str:
    first = entries[0]
    places = np.unique(
        np.linspace(0, len(entries) - 1, min(EXAMPLES_SHOWN, len(entries))).round().astype(int)
    )
    heading = f"{first['query']} → {first['gallery']} (right = same {first['by']})"
    body = "".join(_example(bank, entries[place]) for place in places)
    note = "Queries spread evenly from the best-ranked to the worst; green: right."
    return card(f"<p>{source_tags(first)}</p>{body}", heading, note)


def _example(bank: "Bank", entry: Mapping[str, Any]) -> str:
    """One query with its first results."""
    asked = entry["query_item"]
    rank = f"first right answer at rank {entry['rank']:g}" if "rank" in entry else escape(entry["how"])
    if "text" in asked:
        shown = f'<blockquote>“{escape(asked["text"])}”</blockquote><p class="note">{rank}</p>'
    else:
        image = picture(picture_path(bank, entry["dataset"], asked, strip=True), asked["item"])
        told = "<br>".join(
            part
            for part in (escape(asked.get("class", "")), f"<code>{escape(asked['item'])}</code>", rank)
            if part
        )
        shown = f'{image}<p class="note">{told}</p>'
    found = "".join(_result(bank, entry["dataset"], result) for result in entry["results"])
    return f'<div class="example"><div class="query">{shown}</div><div class="results">{found}</div></div>'


def _result(bank: "Bank", dataset: str, result: Mapping[str, Any]) -> str:
    """One found clip or text; right ones are marked."""
    hit = "hit" if result["right"] else ""
    mark = " <b>✓</b>" if result["right"] else ""
    score = f"{result['score']:.3f}{mark}"
    if "text" in result:
        inside = f'<div class="frame"><div class="said">{escape(result["text"])}</div></div>'
        return f'<figure class="{hit}">{inside}<figcaption>{score}</figcaption></figure>'
    image = picture(picture_path(bank, dataset, result), result["item"])
    name = f" · {escape(result['class'])}" if result.get("class") else ""
    caption = f"{score}{name}<br><code>{escape(result['item'])}</code>"
    return f'<figure class="{hit}">{image}<figcaption>{caption}</figcaption></figure>'


def picture_path(bank: "Bank", dataset: str, item: Mapping[str, Any], strip: bool = False) -> Path | None:
    """The clip's picture in its own modality, else in any other that has one; None if there is none."""
    from evaluate.search import pictured_modalities
    from store.places import thumbnail_path

    for modality in (item["modality"], *pictured_modalities(bank, dataset)):
        path = thumbnail_path(bank, dataset, modality, item["item"], strip)
        if path.exists():
            return path
    return None
