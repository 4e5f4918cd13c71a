"""The report's tables: results (newest of each kind), what the bank holds, which runs there were."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from evaluate.page import Cell, card, duration, table, tag
from evaluate.plots import interval_svg
from evaluate.provenance import IDENTITY, LABELS, kind, setting
from store.text_table import byte_text

if TYPE_CHECKING:
    from store.bank import Bank

MOST_RUNS = 200
NOVELTY = {"seen_accuracy": "seen", "unseen_accuracy": "unseen classes", "harmonic_mean": "harmonic mean"}
ELSEWHERE = ("evaluate geometry",)  # has a section of its own

Row = dict[str, Any]


def results(bank: "Bank", dataset: str | None) -> str:
    """All evaluation metrics, newest of each kind, grouped by command, dataset and protocol."""
    rows = [row for row in latest(metric_rows(bank, dataset)) if row["command"] not in ELSEWHERE]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["command"], row["dataset"] or "", row["protocol"] or ""), []).append(row)
    parts = []
    for (command, name, protocol), members in groups.items():
        place = " · ".join(part for part in (name, protocol) if part)
        compared = all({"task", "method"} <= row["detail"].keys() for row in members)
        known = _TABLES.get(command, _comparison_table if compared else _other_table)
        parts.append(card(known(members), f"{command.removeprefix('evaluate ')}: {place}"))
    return f'<div class="stack">{"".join(parts)}</div>' if parts else ""


def metric_rows(bank: "Bank", dataset: str | None) -> list[Row]:
    """Metrics of finished evaluation runs, oldest first, ``detail`` parsed, parts other than test named."""
    query = """
        SELECT m.name, m.value, m.low, m.high, m.n, m.detail::VARCHAR AS detail, r.command, r.run_id,
            r.config ->> 'dataset' AS dataset,
            concat_ws(' ', r.config ->> 'protocol', nullif(r.config ->> 'part', 'test')) AS protocol
        FROM metrics m JOIN runs r USING (run_id)
        WHERE r.status = 'done' AND r.command LIKE 'evaluate%'
            AND coalesce(r.config ->> 'dataset', '') = coalesce(?, r.config ->> 'dataset', '')
        ORDER BY r.started_at, r.run_id, m.rowid
    """
    rows = bank.sql(query, [dataset]).to_pylist()
    return [row | {"detail": json.loads(row["detail"] or "{}")} for row in rows]


def latest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each kind; raw, aligned and differently supervised ones are kinds of their own."""
    newest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        detail = row["detail"]
        key = (row["command"], row["dataset"], row["protocol"], row["name"], *kind(detail))
        if not detail.keys() & {"source", *IDENTITY}:
            key = (*key, *sorted(item for item in detail.items() if isinstance(item[1], str)))
        newest.pop(key, None)  # so that order is by time of the newest
        newest[key] = row
    return list(newest.values())


def source_tags(detail: Mapping[str, Any]) -> str:
    """Labels: raw or aligned, how many checkpoints, what supervised them, and what else must be known."""
    ways = [tag(f"transductive: {detail['transductive']}", warn=True)] if detail.get("transductive") else []
    ways += [tag(f"index: {detail['index']}", warn=True)] if detail.get("index") else []
    ways += [tag(f"ties as {detail['convention']}")] if detail.get("convention") else []
    return " ".join([part for part in (_made_by(detail), *ways) if part])


def _made_by(detail: Mapping[str, Any]) -> str:
    source = str(detail.get("source", ""))
    checkpoints = source.split(" ")[1::2]
    if checkpoints:
        several = f", {len(checkpoints)} checkpoints" if len(checkpoints) > 1 else f" …{checkpoints[0][-6:]}"
        source = f"aligned{several}" + (f" on {detail['aligned_on']}" if detail.get("aligned_on") else "")
    marks = [tag(f"trained with {one}", warn=one == LABELS) for one in detail.get("supervision") or []]
    return " ".join([tag(source), *marks] if source else marks)


def _classification_table(rows: Sequence[Row]) -> str:
    """Rows of probe, knn or zero-shot: accuracy with its interval, the other metrics beside it."""
    head = [
        Cell("modality"), Cell("features"), Cell("accuracy %", number=True), Cell("95 %", number=True),
        Cell(""), Cell("balanced %", number=True), Cell("chance %", number=True), Cell("n", number=True),
    ]  # fmt: skip
    return table(head, _grouped(rows, "accuracy", _classification_row))


def _classification_row(main: Row, others: Mapping[str, Row]) -> list[Cell]:
    detail = main["detail"]
    apart = {name: others[name] for name in NOVELTY if name in others}
    notes = [setting(detail), *(f"{NOVELTY[name]} {_percent(row)} %" for name, row in apart.items())]
    how = ", ".join(note for note in notes if note)
    note = f" <small>{escape(how)}</small>" if how else ""
    features = _short(detail.get("features", "")).removesuffix(" aligned")
    return [
        Cell(html=escape(detail["modality"]) + note),
        Cell(html=f'<span class="mono">{escape(features)}</span>'),
        *share_cells(main),
        Cell(_percent(others.get("balanced_accuracy")), number=True),
        Cell(f"{detail['chance'] * 100:.1f}", number=True),
        Cell(f"{main['n']:,}", number=True),
    ]


def _retrieval_table(rows: Sequence[Row]) -> str:
    """Rows of retrieve: R@1 with its interval, the other metrics beside it."""
    head = [
        Cell("asks → is searched"), Cell("R@1 %", number=True), Cell("95 %", number=True), Cell(""),
        Cell("R@5 %", number=True), Cell("R@10 %", number=True), Cell("MedR", number=True),
        Cell("MeanR", number=True), Cell("chance R@1 %", number=True), Cell("n of gallery", number=True),
    ]  # fmt: skip
    ordered = sorted(rows, key=lambda row: (row["detail"]["query"], row["detail"]["gallery"]))
    return table(head, _grouped(ordered, "R@1", _retrieval_row))


def _retrieval_row(main: Row, others: Mapping[str, Row]) -> list[Cell]:
    detail = main["detail"]
    ranks = [f"{others[name]['value']:.1f}" if name in others else "" for name in ("MedR", "MeanR")]
    return [
        Cell(f"{detail['query']} → {detail['gallery']}"),
        *share_cells(main),
        *(Cell(_percent(others.get(name)), number=True) for name in ("R@5", "R@10")),
        *(Cell(rank, number=True) for rank in ranks),
        Cell(f"{detail['chance'] * 100:.1f}", number=True),
        Cell(f"{main['n']:,} of {detail['gallery_size']:,}", number=True),
    ]


def _grouped(
    rows: Sequence[Row], main: str, make: Callable[[Row, Mapping[str, Row]], list[Cell]]
) -> list[list[Cell] | str]:
    """A line for each kind that has the metric ``main``, under a heading for each source (and rule)."""
    groups: dict[str, list[list[Cell] | str]] = {}
    for metrics in by_kind(rows):
        if main in metrics:
            detail = metrics[main]["detail"]
            rule = f"right = same {escape(detail['by'])}" if "by" in detail else ""
            heading = " ".join(part for part in (source_tags(detail), rule) if part)
            groups.setdefault(heading, [heading]).append(make(metrics[main], metrics))
    return [line for lines in groups.values() for line in lines]


def _percent(row: Row | None) -> str:
    return f"{row['value'] * 100:.1f}" if row else ""


def _other_table(rows: Sequence[Row]) -> str:
    """Metrics of evaluations that this file does not know: name, detail, value, interval."""
    head = [
        Cell("metric"),
        Cell("of"),
        Cell("value", number=True),
        Cell("95 %", number=True),
        Cell(""),
        Cell("n", number=True),
    ]
    lines = []
    for row in rows:
        is_share = 0 <= row["value"] <= 1
        interval = "" if row["low"] is None else f"{row['low']:.4g} – {row['high']:.4g}"
        chance = row["detail"].get("chance")
        bar = interval_svg(row["value"], row["low"], row["high"], chance) if is_share else ""
        told = ", ".join(
            f"{key} {value}" for key, value in row["detail"].items() if isinstance(value, str | int | float)
        )
        lines.append(
            [
                Cell(row["name"].rpartition("/")[2]),
                Cell(html=f"<small>{escape(told)}</small>"),
                Cell(f"{row['value']:.4g}", number=True, strong=True),
                Cell(interval, number=True),
                Cell(html=bar),
                Cell("" if row["n"] is None else f"{row['n']:,}", number=True),
            ]
        )
    return table(head, lines)


def _comparison_table(rows: Sequence[Row]) -> str:
    from evaluate.report_comparison import comparison_table

    return comparison_table(rows)


def _fusion_table(rows: Sequence[Row]) -> str:
    from evaluate.report_fusion import fusion_table

    return fusion_table(rows)


def _published_table(rows: Sequence[Row]) -> str:
    from evaluate.report_published import published_table

    return published_table(rows)


_TABLES = {
    "evaluate probe": _classification_table,
    "evaluate fuse": _fusion_table,
    "evaluate knn": _classification_table,
    "evaluate zero-shot": _classification_table,
    "evaluate pooled": _classification_table,
    "evaluate classify": _classification_table,
    "evaluate reproduce": _published_table,
    "evaluate retrieve": _retrieval_table,
}


def share_cells(row: Row) -> list[Cell]:
    """Value, interval and picture of a fraction."""
    interval = f"{row['low'] * 100:.1f} – {row['high'] * 100:.1f}" if row["low"] is not None else ""
    bar = interval_svg(row["value"], row["low"], row["high"], row["detail"].get("chance"))
    return [
        Cell(f"{row['value'] * 100:.1f}", number=True, strong=True),
        Cell(interval, number=True),
        Cell(html=bar),
    ]


def by_kind(rows: Iterable[Row]) -> list[dict[str, Row]]:
    """Rows of one kind together: metric name (without the command) -> row."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(kind(row["detail"]), {})[row["name"].rpartition("/")[2]] = row
    return list(groups.values())


def _short(features: str) -> str:
    """``joints@0123456789ab tokens resample:8`` -> with the fingerprint's first six digits."""
    name, at, rest = features.partition("@")
    return f"{name}{at}{rest[:6]}{rest[12:]}" if at else features


def coverage(bank: "Bank", dataset: str | None) -> str:
    """What is encoded, by dataset, modality and feature set."""
    query = "SELECT * FROM coverage WHERE dataset IN ('_texts', coalesce(?, dataset))"
    head = [
        Cell("dataset"), Cell("modality"), Cell("feature set"), Cell("field"), Cell("clips", number=True),
        Cell("encoded", number=True), Cell("failed", number=True), Cell("frames", number=True),
        Cell("tokens × dim", number=True), Cell("size", number=True),
    ]  # fmt: skip
    lines = [
        [
            Cell(row["dataset"]),
            Cell(row["modality"]),
            Cell(html=f'<span class="mono">{escape(row["feature_set"] or "—")}</span>'),
            Cell(row["field"] or ""),
            *(Cell(f"{row[name]:,}", number=True) for name in ("clips", "encoded", "failed", "frames")),
            Cell(f"{row['tokens']} × {row['dim']}" if row["tokens"] else "", number=True),
            Cell(byte_text(row["bytes"]), number=True),
        ]
        for row in bank.sql(query, [dataset]).to_pylist()
    ]
    return card(table(head, lines))


def runs(bank: "Bank") -> str:
    """The runs, newest first, folded."""
    query = f"""
        SELECT run_id, command, status, started_at, wall_seconds, config ->> 'dataset' AS dataset
        FROM runs ORDER BY started_at DESC, run_id LIMIT {MOST_RUNS}
    """
    head = [
        Cell("started"),
        Cell("command"),
        Cell("dataset"),
        Cell("status"),
        Cell("took", number=True),
        Cell("run"),
    ]
    rows = bank.sql(query).to_pylist()
    lines = [
        [
            Cell(row["started_at"].strftime("%Y-%m-%d %H:%M") if row["started_at"] else ""),
            Cell(row["command"]),
            Cell(row["dataset"] or ""),
            Cell(html=tag(row["status"], warn=row["status"] == "failed")),
            Cell(duration(row["wall_seconds"]) if row["wall_seconds"] is not None else "", number=True),
            Cell(html=f'<span class="mono">{escape(row["run_id"])}</span>'),
        ]
        for row in rows
    ]
    return card(f"<details><summary>{len(rows)} runs</summary>{table(head, lines)}</details>")
