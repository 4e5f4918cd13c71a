"""The UTD-MHAD table: hits per task and method, their intervals, and how they are printed and recorded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.index import unit
from evaluate.metrics import chance_ranks, first_relevant, top_k_hits
from evaluate.readout import read_out
from evaluate.records import print_table
from evaluate.statistics import Interval, bootstrap, paired_bootstrap, seed_interval

if TYPE_CHECKING:
    from evaluate.utd_mhad import Split
    from store.runs import Run

CLASSES = 27
BASELINE = "baseline"
FUSED = "skeleton + inertial"  # sum of the two classifiers' scores
RECALL_AT = (1, 5, 10)
HIDDEN = ("R@5", "R@10")  # recorded, but not printed
TIE = 1e-6
Answers = dict[str, np.ndarray]
Inputs = Mapping[str, tuple[np.ndarray, np.ndarray, str]]


@dataclass
class Scores:
    """Hits of one half.

    Attributes:
        name: Of the half.
        hits: task -> method -> a list over seeds of (n,) hits; a method without a seed has one.
        chance: task -> what a guess gets.
    """

    name: str
    hits: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    def add(self, task: str, method: str, hits: np.ndarray, chance: float) -> None:
        """One seed's hits (n,)."""
        self.hits.setdefault(task, {}).setdefault(method, []).append(hits)
        self.chance[task] = chance

    def readouts(
        self, method: str, data: "Mapping[str, Split]", inputs: Inputs, classifier: str = "ridge"
    ) -> Answers:
        """Linear classifiers, one a modality, and skeleton and inertial fused; modality -> scores (m, C)."""
        answers: Answers = {}
        for name, (train, test, per) in inputs.items():
            split = data[name]
            found = read_out(train, split.train_labels, split.groups, test, CLASSES, per, classifier)
            answers[name] = found.scores
            self.add(f"{name} action", method, top_k_hits(found.scores, split.test_labels), 1 / CLASSES)
        if all(name in answers for name in ("skeleton", "inertial")):
            both = [data[name].selections[1] for name in ("skeleton", "inertial")]
            if np.array_equal(both[0].items, both[1].items):
                fused = answers["skeleton"] + answers["inertial"]
                self.add(f"{FUSED} action", method, top_k_hits(fused, both[0].labels), 1 / CLASSES)
        return answers

    def search(
        self, method: str, query: str, gallery: str, data: "Mapping[str, Split]", rows: Answers
    ) -> None:
        """Same-action retrieval between the scored clips of two modalities by cosine."""
        labels = data[query].test_labels, data[gallery].test_labels
        self._ranked(f"{query} to {gallery}", method, rows[query], rows[gallery], *labels)

    def search_text(
        self, method: str, gallery: str, texts: np.ndarray, rows: np.ndarray, labels: np.ndarray
    ) -> None:
        """Retrieval of the scored clips by the 27 names."""
        self._ranked(f"text to {gallery}", method, texts, rows, np.arange(len(texts)), labels)

    def _ranked(
        self, task: str, method: str, asks: np.ndarray, found: np.ndarray, wanted: np.ndarray, has: np.ndarray
    ) -> None:
        relevant = wanted[:, None] == has
        ranks = first_relevant(unit(asks) @ unit(found).T, relevant, TIE)
        chance = chance_ranks(np.full(len(asks), len(found)), relevant.sum(axis=1))
        for k in RECALL_AT:
            self.add(f"{task} R@{k}", method, ranks.within(k), float(chance.within(k).mean()))


@dataclass(frozen=True)
class Line:
    """One task and method in numbers (fractions).

    Attributes:
        task: What was asked.
        method: How.
        value: Mean over clips and seeds, and its interval by bootstrap over both.
        seeds: Interval of the mean over seeds alone, by Student's t.
        each: A value a seed.
        difference: To the baseline, paired by clip; None where there is no baseline.
        chance: What a guess gets.
        clips: n.
    """

    task: str
    method: str
    value: Interval
    seeds: tuple[float, float]
    each: list[float]
    difference: Interval | None
    chance: float
    clips: int

    def score(self) -> str:
        """``91.2 +-0.8 [87.0, 94.4]``: percent, 95 % over seeds, 95 % over clips and seeds."""
        reach = f" +-{50 * (self.seeds[1] - self.seeds[0]):.1f}" if len(self.each) > 1 else ""
        return f"{100 * self.value.value:.1f}{reach} {_span(self.value)}"

    def gain(self) -> str:
        """``+16.2 [10.2, 22.7]`` in points over the baseline; empty where there is none."""
        if self.difference is None:
            return ""
        return f"{100 * self.difference.value:+.1f} {_span(self.difference)}"


def lines(scores: Scores) -> list[Line]:
    """Every task and method of a half (or of both together)."""
    found = []
    for task, methods in scores.hits.items():
        rival = np.stack(methods[BASELINE]) if BASELINE in methods else None
        for method, each in methods.items():
            hits = np.stack(each)
            better = None if rival is None or method == BASELINE else paired_bootstrap(hits, rival)
            means = hits.mean(axis=1)
            found.append(
                Line(
                    task,
                    method,
                    bootstrap(hits),
                    seed_interval(means),
                    means.tolist(),
                    better,
                    scores.chance[task],
                    hits.shape[1],
                )
            )
    return found


def together(parts: Sequence[Scores]) -> Scores:
    """Halves side by side: each clip was scored once, by a model that never saw its subject."""
    joined = Scores("both halves together")
    for task, methods in parts[0].hits.items():
        for method, each in methods.items():
            others = [part.hits[task][method] for part in parts]
            joined.hits.setdefault(task, {})[method] = [
                np.concatenate([hits[seed] for hits in others]) for seed in range(len(each))
            ]
        sizes = [len(part.hits[task][next(iter(methods))][0]) for part in parts]
        chances = [part.chance[task] for part in parts]
        joined.chance[task] = float(np.average(chances, weights=sizes))
    return joined


def report(parts: Sequence[Scores], run: "Run") -> None:
    """Print the halves and both together; record every number."""
    for scores in (*parts, together(parts)):
        table = lines(scores)
        for line in table:
            _record(run, scores.name, line)
        shown = [line for line in table if not line.task.endswith(HIDDEN)]
        print(f"\n{scores.name}: percent +-95 % over seeds [95 % over clips and seeds]\n")
        print_table(_rows(shown, Line.score))
        print(f"\n{scores.name}: points over the baseline [95 %, paired by clip]\n")
        print_table(_rows([line for line in shown if line.difference is not None], Line.gain))


def _rows(table: Sequence[Line], cell: Callable[[Line], str]) -> list[dict[str, Any]]:
    """A row a task, a column a method."""
    rows: dict[str, dict[str, Any]] = {}
    methods = dict.fromkeys(line.method for line in table)
    for line in table:
        first = {"task": line.task, "n": line.clips, "chance": f"{100 * line.chance:.1f}"}
        row = rows.setdefault(line.task, first | dict.fromkeys(methods, ""))
        row[line.method] = cell(line)
    return sorted(rows.values(), key=lambda row: " R@" in row["task"])


def _record(run: "Run", half: str, line: Line) -> None:
    detail = {"half": half, "task": line.task, "method": line.method, "chance": line.chance}
    value = line.value
    run.metric(
        "utd-mhad/score",
        value.value,
        line.clips,
        value.low,
        value.high,
        each=line.each,
        seeds_low=line.seeds[0],
        seeds_high=line.seeds[1],
        **detail,
    )
    if line.difference is not None:
        gain = line.difference
        run.metric("utd-mhad/over_baseline", gain.value, line.clips, gain.low, gain.high, **detail)


def _span(interval: Interval) -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
