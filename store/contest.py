"""Ratios instead of seconds: rivals run alternately in one process, medians are compared with a limit."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Entry = Callable[[int], object]  # gets the number of its input, 0 <= number < rounds
Before = Callable[[str, int], object]  # gets the entry's name and that number


@dataclass(frozen=True)
class Goal:
    """What one entry must reach.

    Attributes:
        entry: Its name in the contest.
        limit: The entry that it is measured against; of several, the fastest.
        factor: The ratio of speeds (limit's time / entry's time) must be at least this; None: any will do.
    """

    entry: str
    limit: tuple[str, ...]
    factor: float | None


def alternate(
    entries: Mapping[str, Entry], rounds: int, before: Before | None = None
) -> dict[str, list[float]]:
    """Seconds of every entry in every round.

    All entries run once a round, each time beginning with another one; a first round warms up uncounted.
    Within a round each works on another input, so that none finds in the processor's cache what a rival has
    just read; over all rounds all of them see the same inputs. ``before`` runs before each, untimed.
    """
    names = list(entries)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            chosen = (number + names.index(name) * max(1, rounds // len(names))) % rounds
            if before is not None:
                before(name, chosen)
            started = time.perf_counter()
            entries[name](chosen)
            took = time.perf_counter() - started
            if number >= 0:
                seconds[name].append(took)
    return seconds


def contest(
    title: str,
    entries: Mapping[str, Entry],
    nbytes: int,
    rounds: int,
    goal: Goal,
    before: Before | None = None,
) -> bool:
    """Run, print a table, and say whether the goal, if there is one, is reached.

    Args:
        title: What is measured.
        entries: Name -> callable.
        nbytes: Useful bytes that each of them moves per round.
        rounds: Counted rounds.
        goal: Its limit is the unit of the column of ratios.
        before: Runs before each entry, untimed.
    """
    print(f"... {title}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(taken) for name, taken in alternate(entries, rounds, before).items()}
    unit = min(medians[name] for name in goal.limit)
    print(f"\n{title}\n{'':44}{'median ms':>10}{'GB/s':>8}{'time / limit':>14}")
    for name, seconds in medians.items():
        rate = nbytes / seconds / 1e9
        print(f"  {name:<42}{seconds * 1e3:>10.3f}{rate:>8.2f}{seconds / unit:>14.2f}")
    return _judge(goal, medians)


def _judge(goal: Goal, medians: Mapping[str, float]) -> bool:
    limit = min(goal.limit, key=lambda name: medians[name])
    speed = medians[limit] / medians[goal.entry]
    print(f"  {goal.entry}: {speed:.2f}x the speed of {limit}", end="")
    if goal.factor is None:
        print()
        return True
    print(f" (goal {goal.factor:.2f}x): {'reached' if speed >= goal.factor else 'MISSED'}")
    return speed >= goal.factor
