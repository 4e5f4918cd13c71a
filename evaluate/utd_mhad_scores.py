"""The UTD-MHAD table's numbers: hits per task and method, their intervals, and how they are printed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.index import unit
from evaluate.metrics import chance_ranks, first_relevant, top_k_hits
from evaluate.records import print_table
from evaluate.statistics import Interval, bootstrap, paired_bootstrap, seed_interval
from evaluate.utd_mhad_data import CLASSES, Split

if TYPE_CHECKING:
    from store.runs import Run

BASELINE = "baseline"
RECALL_AT = (1, 5, 10)
HIDDEN = ("R@5", "R@10")  # recorded, but not printed
TIE = 1e-6
Answers = Mapping[str, np.ndarray]


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

    def classified(
        self, method: str, data: Mapping[str, Split], answers: Answers, fused: Sequence[str] = ()
    ) -> None:
        """Class scores (m, C), modality by modality, and the sum of those of ``fused``."""
        for name, found in answers.items():
            self.add(f"{name} action", method, top_k_hits(found, data[name].test_labels), 1 / CLASSES)
        if fused and all(name in answers for name in fused):
            first, *others = (data[name] for name in fused)
            for other in others:
                first.same_clips(other.selections)
            both = sum(answers[name] for name in fused)
            self.add(
                f"{' + '.join(fused)} action",
                method,
                top_k_hits(np.asarray(both), first.test_labels),
                1 / CLASSES,
            )

    def search(self, method: str, query: str, gallery: str, data: Mapping[str, Split], rows: Answers) -> None:
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
        over: Rival method -> difference to it on this task, paired by clip; without those it cannot have.
        chance: What a guess gets.
        clips: n.
    """

    task: str
    method: str
    value: Interval
    seeds: tuple[float, float]
    each: list[float]
    over: dict[str, Interval]
    chance: float
    clips: int

    def score(self) -> str:
        """``91.2 +-0.8 [87.0, 94.4]``: percent, 95 % over seeds, 95 % over clips and seeds."""
        reach = f" +-{50 * (self.seeds[1] - self.seeds[0]):.1f}" if len(self.each) > 1 else ""
        return f"{100 * self.value.value:.1f}{reach} {_span(self.value)}"

    def gain(self, rival: str) -> str:
        """``+16.2 [10.2, 22.7]`` in points over a rival; empty where there is none."""
        found = self.over.get(rival)
        return "" if found is None else f"{100 * found.value:+.1f} {_span(found)}"


def lines(scores: Scores, rivals: Sequence[str] = (BASELINE,)) -> list[Line]:
    """Every task and method of a half (or of both together).

    A rival's own line is compared with the rivals before it.
    """
    found = []
    for task, methods in scores.hits.items():
        for method, each in methods.items():
            hits = np.stack(each)
            before = rivals[: rivals.index(method)] if method in rivals else rivals
            met = [rival for rival in before if rival in methods]
            over = {rival: paired_bootstrap(hits, np.stack(methods[rival])) for rival in met}
            means = hits.mean(axis=1)
            found.append(
                Line(
                    task,
                    method,
                    bootstrap(hits),
                    seed_interval(means),
                    means.tolist(),
                    over,
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


def report(name: str, title: str, rivals: Sequence[str], parts: Sequence[Scores], run: "Run") -> None:
    """Print one table for the halves and both together; record every number.

    Args:
        name: Of the table, for the catalog.
        title: Of the table, for people.
        rivals: Methods to which differences are printed.
        parts: A half each.
        run: Where to record.
    """
    print(f"\n# {title}")
    for scores in (*parts, together(parts)):
        table = lines(scores, rivals)
        for line in table:
            _record(run, name, scores.name, line)
        shown = [line for line in table if not line.task.endswith(HIDDEN)]
        print(f"\n{scores.name}: percent +-95 % over seeds [95 % over clips and seeds]\n")
        print_table(_rows(shown, Line.score))
        for rival in rivals:
            compared = [line for line in shown if rival in line.over]
            if compared:
                print(f"\n{scores.name}: points over the {rival} [95 %, paired by clip]\n")
                print_table(_rows(compared, _gain_over(rival)))


def _gain_over(rival: str) -> Callable[[Line], str]:
    return lambda line: line.gain(rival)


def _rows(table: Sequence[Line], cell: Callable[[Line], str]) -> list[dict[str, Any]]:
    """A row a task and a column a method; the other way round where there are more methods than tasks."""
    cells = {(line.task, line.method): cell(line) for line in table}
    methods = dict.fromkeys(line.method for line in table)
    tasks = {
        line.task: {"n": line.clips, "chance": f"{100 * line.chance:.1f}"}
        for line in sorted(table, key=lambda line: " R@" in line.task)
    }
    if len(methods) > len(tasks):
        return [{"method": name, **{task: cells.get((task, name), "") for task in tasks}} for name in methods]
    return [
        {"task": task, **known, **{method: cells.get((task, method), "") for method in methods}}
        for task, known in tasks.items()
    ]


def _record(run: "Run", table: str, half: str, line: Line) -> None:
    detail: dict[str, Any] = {
        "table": table,
        "half": half,
        "task": line.task,
        "method": line.method,
        "chance": line.chance,
    }
    one, spread = line.value, {"seeds_low": line.seeds[0], "seeds_high": line.seeds[1]}
    run.metric("utd-mhad/score", one.value, line.clips, one.low, one.high, each=line.each, **spread, **detail)
    for rival, gain in line.over.items():
        run.metric("utd-mhad/gain", gain.value, line.clips, gain.low, gain.high, rival=rival, **detail)


def _span(interval: Interval) -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
