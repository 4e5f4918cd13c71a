"""Ratios instead of seconds: rivals run alternately in one process, medians are compared with a limit."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Entry = Callable[[int], object]  # gets the number of its input, 0 <= number < rounds


@dataclass(frozen=True)
class Goal:
    """What one entry must reach.

    Attributes:
        entry: Its name in the contest.
        limit: The entry that it is measured against; of several, the fastest.
        factor: The ratio of speeds (limit's time / entry's time) must be at least this.
    """

    entry: str
    limit: tuple[str, ...]
    factor: float


def alternate(entries: Mapping[str, Entry], rounds: int) -> dict[str, list[float]]:
    """Seconds of every entry in every round.

    All entries run once a round, each time beginning with another one; a first round warms up uncounted.
    Within a round each works on another input, so that none finds in the processor's cache what a rival has
    just read; over all rounds all of them see the same inputs.
    """
    names = list(entries)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            chosen = (number + names.index(name) * (rounds // len(names) + 1)) % rounds
            started = time.perf_counter()
            entries[name](chosen)
            took = time.perf_counter() - started
            if number >= 0:
                seconds[name].append(took)
    return seconds


def contest(title: str, entries: Mapping[str, Entry], nbytes: int, rounds: int, goals: list[Goal]) -> bool:
    """Run, print a table, and say whether the goals are reached.

    Args:
        title: What is measured.
        entries: Name -> callable.
        nbytes: Useful bytes that each of them moves per round.
        rounds: Counted rounds.
        goals: The first one's limit is the unit of the column of ratios.
    """
    print(f"... {title}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(taken) for name, taken in alternate(entries, rounds).items()}
    unit = min(medians[name] for name in goals[0].limit)
    print(f"\n{title}\n{'':44}{'median ms':>10}{'GB/s':>8}{'time / limit':>14}")
    for name, seconds in medians.items():
        rate = nbytes / seconds / 1e9
        print(f"  {name:<42}{seconds * 1e3:>10.3f}{rate:>8.2f}{seconds / unit:>14.2f}")
    return all([_judge(goal, medians) for goal in goals])


def _judge(goal: Goal, medians: Mapping[str, float]) -> bool:
    limit = min(goal.limit, key=lambda name: medians[name])
    speed = medians[limit] / medians[goal.entry]
    reached = speed >= goal.factor
    verdict = "reached" if reached else "MISSED"
    print(f"  {goal.entry}: {speed:.2f}x the speed of {limit} (goal {goal.factor:.2f}x): {verdict}")
    return reached
