"""Runs and their metrics: what was done with the bank, with which configuration, and what came out.

A run's record is a file in its own folder, ``runs/<id>/run.json``, and rows in the catalog made from it. No
connection is held while it runs; a catalog that is busy at the end gets the rows with the next run.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from store.catalog import Catalog, CatalogBusyError, Notify, ReadOnlyBankError, say
from store.errors import FrameBankError
from store.locks import Lease, is_held
from store.places import RUNS, run_directory
from store.segment import new_segment_id

if TYPE_CHECKING:
    import duckdb

RECORD = "run.json"
UNCOMMITTED = "uncommitted"  # a file beside the record while the catalog lacks its latest state
LOCK = "run.lock"
RUNNING, DONE, FAILED = "running", "done", "failed"
PATIENCE_SECONDS = 5.0
LIBRARIES = ("torch", "transformers", "numpy", "duckdb", "zarr", "faiss-gpu", "faiss-cpu", "decord2")
METRIC_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("detail", pa.string()),
    ]
)
RUN_COLUMNS = (
    "run_id",
    "command",
    "config",
    "status",
    "started_at",
    "finished_at",
    "wall_seconds",
    "git_commit",
    "versions",
    "error",
    "directory",
)
SET_SCHEMA = pa.schema([(name, pa.string()) for name in ("run_id", "dataset", "modality", "feature_set")])


class RunError(FrameBankError, ValueError):
    """A run's record cannot hold what it was given."""


class Run:
    """A run in progress; a context manager that ends as ``done``, or as ``failed`` with the error.

    Attributes:
        id: Unique, sorts by time.
        directory: ``<bank>/runs/<id>/``, for checkpoints, curves, pages.
        config: The resolved configuration.
    """

    def __init__(
        self, bank: Path, catalog: Catalog, command: str, config: Mapping[str, Any], notify: Notify = say
    ):
        if catalog.read_only:
            raise ReadOnlyBankError(f"{bank}: read-only; runs cannot be recorded in this bank")
        self.id = new_segment_id()
        self.directory = run_directory(bank, self.id)
        self.config = dict(config)
        self._catalog, self._bank, self._notify = catalog, bank, notify
        self._metrics: list[dict[str, Any]] = []
        self._sets: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._record: dict[str, Any] = {
            "run_id": self.id,
            "command": command,
            "config": json_ready(config),
            "status": RUNNING,
            "started_at": _now(),
            "git_commit": git_commit(),
            "versions": versions(),
            "directory": str(self.directory.relative_to(bank)),
        }

    def metric(
        self,
        name: str,
        value: float,
        n: int | None = None,
        low: float | None = None,
        high: float | None = None,
        **detail: Any,
    ) -> None:
        """Record one number.

        Args:
            name: For example ``probe/accuracy``.
            value: The number.
            n: How many samples it rests on.
            low: Lower end of its 95 % interval.
            high: Upper end.
            **detail: JSON-able context: modality, part, seed, ...
        """
        if isinstance(value, str) or value is None:
            raise RunError(f"metric {name!r}: {value!r}; a number is needed")
        self._metrics.append(
            {
                "run_id": self.id,
                "name": name,
                "value": float(value),
                "n": None if n is None else int(n),
                "low": None if low is None else float(low),
                "high": None if high is None else float(high),
                "detail": json.dumps(json_ready(detail), sort_keys=True) if detail else None,
            }
        )

    def used(self, *feature_sets: Any) -> None:
        """Record which feature sets the run read.

        Args:
            *feature_sets: Selections, or names ``<encoder>@<fingerprint>``.
        """
        for one in feature_sets:
            named = isinstance(one, str)
            row = {
                "run_id": self.id,
                "dataset": None if named else one.dataset,
                "modality": None if named else one.modality,
                "feature_set": one if named else one.feature_set,
            }
            if row not in self._sets:
                self._sets.append(row)

    def __enter__(self) -> "Run":
        """Make the folder and the record; the catalog learns of it now, or later if it is busy."""
        self.directory.mkdir(parents=True)
        self._lease = Lease(self.directory / LOCK)
        self._save(PATIENCE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record["status"] = DONE if error is None or _is_success(error) else FAILED
        self._record["finished_at"] = _now()
        self._record["wall_seconds"] = round(time.monotonic() - self._start, 3)
        if self._record["status"] == FAILED and error is not None:
            self._record["error"] = "".join(traceback.format_exception_only(error)).strip()
        try:
            self._save(self._catalog.timeout_seconds)
        except (OSError, FrameBankError) as unsaved:
            if error is None:
                raise
            self._notify(f"run {self.id} is not recorded: {unsaved}")  # what went wrong first is the news
        finally:
            self._lease.release(unlink=True)

    def _save(self, timeout_seconds: float) -> None:
        (self.directory / UNCOMMITTED).touch()
        write_record(self.directory, {**self._record, "metrics": self._metrics, "sets": self._sets})
        try:
            commit_run(self._catalog, self.directory, timeout_seconds)
            commit_left(self._bank, self._catalog)
        except CatalogBusyError as error:
            if self._record["status"] != RUNNING:
                self._notify(
                    f"run {self.id} is kept in {self.directory / RECORD}, not yet in the catalog: {error}"
                )


def write_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Replace ``run.json`` in one step."""
    part = directory / f"{RECORD}.partial"
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False))
    part.replace(directory / RECORD)


def commit_run(catalog: Catalog, directory: Path, timeout_seconds: float | None = None) -> None:
    """Bring the catalog's rows of one run up to date with its record."""
    record = json.loads((directory / RECORD).read_text())
    with catalog.transaction(timeout_seconds) as connection:
        _insert(connection, record)
    (directory / UNCOMMITTED).unlink(missing_ok=True)


def _insert(connection: "duckdb.DuckDBPyConnection", record: Mapping[str, Any]) -> None:
    for table in ("runs", "metrics", "run_sets"):
        connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [record["run_id"]])
    row = dict.fromkeys(RUN_COLUMNS) | {name: record[name] for name in RUN_COLUMNS if name in record}
    row |= {
        name: json.dumps(row[name], sort_keys=True, ensure_ascii=False) for name in ("config", "versions")
    }
    connection.execute(
        f"INSERT INTO runs ({', '.join(RUN_COLUMNS)}) VALUES ({', '.join('?' * len(RUN_COLUMNS))})",
        [row[name] for name in RUN_COLUMNS],
    )
    for table, schema, key in (("metrics", METRIC_SCHEMA, "metrics"), ("run_sets", SET_SCHEMA, "sets")):
        if record.get(key):
            connection.register("incoming", pa.Table.from_pylist(record[key], schema=schema))
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
            connection.unregister("incoming")


def commit_left(bank: Path, catalog: Catalog) -> None:
    """Commit the records that found the catalog busy, and end those whose process is gone."""
    for marker in (bank / RUNS).glob(f"*/{UNCOMMITTED}"):
        if not is_held(marker.parent / LOCK):
            _end_if_killed(marker.parent)
            commit_run(catalog, marker.parent, PATIENCE_SECONDS)


def end_killed(bank: Path, catalog: Catalog) -> list[str]:
    """Mark the runs whose process is gone without saying so as failed; their ids."""
    rows = catalog.read("SELECT run_id FROM runs WHERE status = ?", [RUNNING])
    ended = []
    for run_id in rows["run_id"].to_pylist():
        directory = run_directory(bank, run_id)
        if (directory / RECORD).exists() and not is_held(directory / LOCK):
            _end_if_killed(directory)
            commit_run(catalog, directory)
            ended.append(run_id)
    return ended


def _end_if_killed(directory: Path) -> None:
    record = json.loads((directory / RECORD).read_text())
    if record["status"] == RUNNING:
        write_record(
            directory, record | {"status": FAILED, "error": "killed: its process ended without a word"}
        )


def git_commit() -> str | None:
    """The checkout's commit, with ``+`` if files were changed; None outside a git checkout."""
    try:
        folder = Path(__file__).resolve().parent
        command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose arithmetic or formats matter, as far as installed."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (0, None)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def json_ready(value: Any) -> Any:
    """As records keep it: paths to strings, tuples to lists, numpy scalars to numbers, objects to text."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(entry) for entry in value]
    if hasattr(value, "tolist"):
        return json_ready(value.tolist())
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
