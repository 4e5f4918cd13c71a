"""What all commands that classify clips share: their outcome, how it is recorded, and what is printed."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.predictions import Predictions, write_predictions
from evaluate.provenance import told
from evaluate.source import Source

if TYPE_CHECKING:
    from evaluate.records import Score


@dataclass(frozen=True)
class Classified:
    """What one model said about the labelled clips.

    Attributes:
        items: (n,) clip ids.
        labels: (n,) true classes.
        guesses: (n,) the class that scores best, -1 where several do.
        top_1: (n,) probability that it is right, ties fairly.
        top_5: (n,) likewise, of the best five.
        confusion: (C, C) counts, row = true class.
    """

    items: np.ndarray
    labels: np.ndarray
    guesses: np.ndarray
    top_1: np.ndarray
    top_5: np.ndarray
    confusion: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """A modality over all checkpoints: scores, a row to print, a matrix to draw, what was said of clips."""

    scores: "list[Score]"
    row: dict[str, Any]
    matrix: dict[str, Any]
    predictions: Predictions


def outcome(
    found: Sequence[Classified], names: Sequence[str], detail: Mapping[str, Any], shown: Mapping[str, Any]
) -> Outcome:
    """Average over checkpoints, clip by clip.

    Args:
        found: Of each checkpoint, on the same clips.
        names: Of the classes.
        detail: What was scored, for the catalog; ``chance`` in it is that of the accuracy.
        shown: First columns of the printed row.
    """
    from evaluate.records import confusion_entry, percent, share

    labels, chance = found[0].labels, detail["chance"]
    top_1, top_5 = (np.stack([getattr(one, name) for one in found]) for name in ("top_1", "top_5"))
    scores = [
        share("accuracy", top_1, detail),
        share("balanced_accuracy", top_1, detail, labels),
        share("top_5_accuracy", top_5, {**detail, "chance": min(1.0, 5 * chance)}),
    ]
    columns = ("accuracy", "balanced", "top 5")
    row = {**shown, **{name: percent(score) for name, score in zip(columns, scores, strict=True)}}
    row |= {"chance": f"{chance * 100:.1f}", "n": len(labels)}
    matrix = np.mean([one.confusion for one in found], axis=0)
    said = Predictions(detail, found[0].items, labels, np.stack([one.guesses for one in found]), top_1)
    return Outcome(scores, row, confusion_entry(matrix, names, accuracy=scores[0].value, **detail), said)


def record_and_print(
    command: str,
    sources: Sequence[Source],
    asked: Mapping[str, Any],
    modalities: Callable[[], Sequence[str]],
    doing: str,
    outcomes: Callable[[str], Sequence[Outcome]],
    heading: str,
) -> None:
    """Classify modality by modality within one run, record the scores, then print the table.

    Args:
        command: ``probe``, ``knn``, ``zero-shot``.
        sources: One a checkpoint.
        asked: The command's arguments.
        modalities: Which; asked within the run, so that a wrong one is in its record.
        doing: For the progress on stderr: ``probing``.
        outcomes: Modality -> its outcomes; the last one's matrix is kept for the report.
        heading: Over the table, where what the features rest on is added.
    """
    from evaluate.records import CONFUSION_FILE, print_saved, print_table, write_file

    first = sources[0]
    config = {**asked, "dataset": first.dataset, "protocol": first.protocol}
    rows, matrices, said = [], [], []
    with first.bank.record_run(f"evaluate {command}", config) as run:
        for modality in modalities():
            print(f"{doing} {modality}", file=sys.stderr)
            found = outcomes(modality)
            for score in (score for one in found for score in one.scores):
                score.record(run, command)
            rows += [one.row for one in found]
            said += [one.predictions for one in found]
            matrices.append(found[-1].matrix)
        write_file(run, CONFUSION_FILE, matrices)
        write_predictions(Path(run.directory), said)
        run.used(*(selection for source in sources for selection in source.used))
    print(f"{heading}; {told(sources)}; percent [95 %]\n")
    print_table(rows)
    print_saved(sources)
