"""`python -m evaluate report`: everything that a bank's runs found, on one self-contained page."""

import sys
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import FrameBankError

if TYPE_CHECKING:
    from align.alignment import Alignment
    from evaluate.page import Section
    from store.bank import Bank

NO_CHECKPOINT = "none"


class ReportError(FrameBankError, OSError):
    """The page cannot be written."""


def report(
    bank: str = "bank",
    out: str = "report.html",
    dataset: str | None = None,
    checkpoint: str = "latest",
    title: str = "FrameBank report",
    seed: int = 0,
) -> int:
    """Write one HTML page: results, confusions, training curves, a map of the aligned space, searches.

    The page holds all its pictures and needs no network. It shows the newest run of each kind.

    Args:
        bank: The bank's directory.
        out: Where to write the page.
        dataset: Only this one; None: all.
        checkpoint: Whose space is mapped: run:<id>, a directory, `latest`, or `none`.
        title: Of the page.
        seed: Of the map (which clips are drawn, t-SNE).
    """
    from store.bank import Bank

    opened = Bank.open(bank)
    path = Path(out)
    text = build(opened, dataset, find_checkpoint(opened, checkpoint), title, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"--out {out}: {error.strerror}; give a path that can be written") from error
    seconds, readers = saved(opened)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"the bank's features took {seconds:.1f} s to encode, once; {readers} runs read them since")
    return 0


def find_checkpoint(bank: "Bank", checkpoint: str) -> "Alignment | None":
    """The checkpoint to map; None if none is wanted, or `latest` is and there is none."""
    if checkpoint == NO_CHECKPOINT:
        return None
    from align import load
    from align.checkpoint import CheckpointError, locate

    try:
        return load(locate(checkpoint, bank.path), bank.path)
    except CheckpointError as error:
        if checkpoint != "latest":
            raise
        print(f"no map: {error}", file=sys.stderr)
        return None


def build(bank: "Bank", dataset: str | None, alignment: "Alignment | None", title: str, seed: int = 0) -> str:
    """The page's HTML."""
    from evaluate.page import page
    from store.runs import git_commit

    made = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    only = f", dataset {escape(dataset)}" if dataset else ""
    lead = f"Bank <code>{escape(bank.path.name)}</code>{only}, {made}"
    foot = (
        f"Written by <code>python -m evaluate report</code>, commit {escape(git_commit() or 'unknown')}. "
        "Intervals are 95 % and cover the choice of test clips; ties count as their expectation, so a "
        "collapsed model scores at chance (dashed ticks)."
    )
    parts = [part for part in sections(bank, dataset, alignment, seed) if part.body]
    return page(title, lead, tiles(bank, dataset), parts, foot)


def sections(bank: "Bank", dataset: str | None, alignment: "Alignment | None", seed: int) -> "list[Section]":
    """The page's parts; those without anything to show are empty."""
    from evaluate import report_figures as figures
    from evaluate import report_geometry as shapes
    from evaluate import report_tables as tables
    from evaluate.page import Section

    mapped = ""
    if alignment is not None and dataset in (None, alignment.config["dataset"]):
        print("drawing the map", file=sys.stderr)
        try:
            mapped = figures.maps(bank, alignment, seed)
        except FrameBankError as error:
            print(f"no map: {error}", file=sys.stderr)
    return [
        Section("results", "Results", tables.results(bank, dataset)),
        Section("map", "Aligned space", mapped),
        Section("geometry", "Geometry", shapes.geometry(bank, dataset)),
        Section("searches", "Searches", figures.searches(bank, dataset)),
        Section("confusions", "Confusions", figures.confusions(bank, dataset)),
        Section("training", "Training", figures.curves(bank, dataset)),
        Section("bank", "Bank", tables.coverage(bank, dataset)),
        Section("runs", "Runs", tables.runs(bank)),
    ]


def tiles(bank: "Bank", dataset: str | None) -> list[tuple[str, str]]:
    """The figures under the heading."""
    from evaluate.page import duration
    from store.text_table import byte_text

    query = """
        SELECT (SELECT count(*) FROM clips WHERE dataset = coalesce($1, dataset)) AS clips,
            (SELECT count(*) FROM features) AS rows, (SELECT count(*) FROM feature_sets) AS sets,
            (SELECT coalesce(sum(bytes), 0) FROM segments WHERE state = 'live') AS bytes
    """
    row = bank.sql(query, [dataset]).to_pylist()[0]
    seconds, readers = saved(bank)
    return [
        (f"{row['clips']:,}", "clips"),
        (f"{row['rows']:,}", f"feature rows in {row['sets']} sets"),
        (byte_text(int(row["bytes"])), "of features"),
        (duration(seconds), "of encoding, done once"),
        (f"{readers:,}", "runs that read it since"),
    ]


def saved(bank: "Bank") -> tuple[float, int]:
    """Seconds that all encoding took, and how many runs have read features since."""
    query = """
        SELECT coalesce(sum(value), 0.0) AS seconds, (SELECT count(DISTINCT run_id) FROM run_sets) AS readers
        FROM metrics WHERE name = 'extract/encode_seconds'
    """
    row = bank.sql(query).to_pylist()[0]
    return float(row["seconds"]), int(row["readers"])
