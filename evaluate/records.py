"""What an evaluation leaves behind: metrics in the catalog, a table on stdout, and files for the report.

A run's folder may hold ``confusion.json`` (a list of matrices) and ``examples.json`` (a list of searches with
their best results); the report draws those without touching features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.intervals import share_interval
from evaluate.metrics import class_weights
from evaluate.source import Source, encode_seconds_saved, in_seconds
from evaluate.statistics import bootstrap

if TYPE_CHECKING:
    from store.runs import Run

CONFUSION_FILE = "confusion.json"
EXAMPLES_FILE = "examples.json"


@dataclass(frozen=True)
class Score:
    """One number with what it rests on.

    Attributes:
        name: Metric, ``accuracy`` say; the catalog's name is ``<command>/<name>``.
        value: A fraction for rates, a rank for MedR and MeanR.
        n: Clips or queries.
        low: Lower end of the 95 % interval.
        high: Upper end.
        detail: What was scored: modality, source, features, chance, ...
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def record(self, run: "Run", command: str) -> None:
        """Write it to the catalog."""
        run.metric(f"{command}/{self.name}", self.value, self.n, self.low, self.high, **self.detail)


def share(
    name: str,
    hits: np.ndarray,
    detail: Mapping[str, Any],
    classes: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Score:
    """The mean of hits in [0, 1] (of the classes' means, with ``classes``) with its 95 % interval.

    Args:
        name: Of the metric.
        hits: (S, n), a row a checkpoint. One row: Wilson's interval over the draw of clips; several: the
            bootstrap over clips and checkpoints.
        detail: Goes to the catalog.
        classes: (n,) true classes.
        weights: (n,) of mean 1, instead of classes.
    """
    one = hits.mean(axis=0)
    if weights is None:
        weights = np.ones(len(one)) if classes is None else class_weights(classes)
    mean = float(np.mean(one * weights))
    if len(hits) == 1:
        low, high = share_interval(one, weights=weights)
    else:
        drawn = bootstrap(hits * weights)
        low, high = drawn.low, drawn.high
    return Score(name, mean, len(one), low, high, {**detail, "each": hits.mean(axis=1).tolist()})


def percent(score: Score) -> str:
    """``81.2 [77.0, 85.1]``."""
    if score.low is None or score.high is None:
        return f"{score.value * 100:.1f}"
    return f"{score.value * 100:.1f} [{score.low * 100:.1f}, {score.high * 100:.1f}]"


def print_table(rows: Sequence[Mapping[str, Any]], whole: str | None = None) -> None:
    """Rows with equal keys -> aligned text on stdout; the column ``whole`` (a path) comes last and uncut."""
    import pyarrow as pa

    from store.text_table import formatted

    lines = formatted(
        pa.Table.from_pylist([{key: row[key] for key in row if key != whole} for row in rows])
    ).splitlines()
    if whole is not None:
        width = max(len(line) for line in lines)
        ends = [whole, "-" * len(whole), *(str(row[whole]) for row in rows)]
        lines = [f"{line:<{width}}  {end}" for line, end in zip(lines, ends, strict=True)]
    print("\n".join(lines))


def print_saved(sources: Sequence[Source]) -> None:
    """One line: what the bank spared this command."""
    used = [selection for source in sources for selection in source.used]
    sets = {(one.dataset, one.modality, one.feature_set) for one in used}
    seconds = encode_seconds_saved(sources[0].bank, used)
    what = "1 feature set" if len(sets) == 1 else f"{len(sets)} feature sets"
    print(f"\nread {what} from the bank; encoding took {in_seconds(seconds)}, once")


def write_file(run: "Run", name: str, content: Any) -> None:
    """JSON into the run's folder."""
    path = Path(run.directory) / name
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def read_file(folder: Path, name: str) -> list[dict[str, Any]]:
    """What ``write_file`` left in a run's folder; empty where it left nothing."""
    path = folder / name
    if not path.exists():
        return []
    content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return content


def confusion_entry(matrix: np.ndarray, names: Sequence[str], **detail: Any) -> dict[str, Any]:
    """An entry of ``confusion.json``: (C, C) counts (row = true class), class names, and what was scored."""
    return {**detail, "names": list(names), "matrix": np.round(matrix, 6).tolist()}
