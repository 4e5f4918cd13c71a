"""Several extractions of one feature set at once: they start at different ends, and skip what others did.

Nothing depends on this for correctness (the catalog keeps one row of whatever is written twice); it only
saves doing the same clip twice.
"""

import time
from collections.abc import Sequence

from store.bank import Bank
from store.catalog import CatalogBusyError
from store.commit import FeatureSet
from store.locks import is_held
from store.places import run_directory
from store.plan import missing
from store.runs import LOCK, RUNNING

_LOOK_SECONDS = 10.0  # between looks at what the others have done
_BUSY_SECONDS = 0.2  # a catalog in use is looked at next time

_OTHERS = """
SELECT run_id FROM runs WHERE status = $running AND run_id <> $run AND command = 'extract'
AND config->>'feature_set' = $name AND config->>'dataset' = $dataset AND config->>'modality' = $modality
ORDER BY run_id
"""


class Rivals:
    """The other live runs that write the same feature set, found by their rows in ``runs``.

    Args:
        bank: The bank.
        owner: The feature set.
        fields: The fields that this run writes.
        views: How many views.
        run_id: This run's id.
        look_seconds: How often the others' work is looked at.
    """

    def __init__(
        self,
        bank: Bank,
        owner: FeatureSet,
        fields: Sequence[str],
        views: int,
        run_id: str,
        look_seconds: float = _LOOK_SECONDS,
    ):
        self._bank, self._owner, self._fields, self._views, self._run = bank, owner, fields, views, run_id
        self._look_seconds = look_seconds
        self._looked = time.monotonic()
        self._missing: set[tuple[str, int]] | None = None  # None: nobody else is at it
        self.count = len(self._others())

    def order(self, count: int) -> list[int]:
        """The order in which to go through ``count`` rows: forwards, backwards, or from somewhere between."""
        rows = list(range(count))
        if self.count == 0:
            return rows
        if self.count == 1:
            return rows[::-1]
        # The third starts at the middle, then at quarters, ...: the van der Corput sequence.
        start = int(count * _bit_reversed(self.count - 1))
        return rows[start:] + rows[:start]

    def has_done(self, item_id: str, view: int) -> bool:
        """Whether another run has stored this row by now (as of the last look)."""
        if time.monotonic() - self._looked > self._look_seconds:
            self._look()
        return self._missing is not None and (item_id, view) not in self._missing

    def _look(self) -> None:
        try:
            if self._others():
                rows = missing(self._bank.catalog, self._owner, self._fields, self._views)
                self._missing = set(zip(rows["item_id"].to_pylist(), rows["view"].to_pylist(), strict=True))
        except CatalogBusyError:
            pass  # a row done twice costs time only
        self._looked = time.monotonic()

    def _others(self) -> list[str]:
        """Ids of the live runs of this feature set, ours left out."""
        params = {
            "running": RUNNING,
            "run": self._run,
            "name": self._owner.name,
            "dataset": self._owner.dataset,
            "modality": self._owner.modality,
        }
        try:
            rows = self._bank.catalog.read(_OTHERS, params, timeout_seconds=_BUSY_SECONDS)
        except CatalogBusyError:
            return []
        ids = rows["run_id"].to_pylist()
        return [run for run in ids if is_held(run_directory(self._bank.path, run) / LOCK)]


def _bit_reversed(number: int) -> float:
    """1, 2, 3, 4 -> 1/2, 1/4, 3/4, 1/8: points that divide an interval ever more finely."""
    fraction, weight = 0.0, 0.5
    while number:
        fraction += weight * (number & 1)
        number, weight = number >> 1, weight / 2
    return fraction
