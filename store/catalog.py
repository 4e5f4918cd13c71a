"""The DuckDB catalog: connect, do one thing, close, so that many processes share one file.

DuckDB lets one process write or many read. Nobody here keeps a connection: each operation waits with back-off
while another process has the file, and says who that is when it takes long.
"""

import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.errors import FrameBankError
from store.migrations import LATEST, MIGRATIONS

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CATALOG_FILE = "catalog.duckdb"
# The oldest storage format that has all we use: both duckdb 1.5 and 2 read and write it.
STORAGE_VERSION = "v1.0.0"
DEFAULT_TIMEOUT_SECONDS = 300.0
FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.5
SPEAK_AFTER_SECONDS = 5.0

Notify = Callable[[str], None]


class CatalogError(FrameBankError):
    """The catalog could not be read or written."""


class QueryError(CatalogError, ValueError):
    """SQL that DuckDB refuses; the message is DuckDB's first line."""


class CatalogBusyError(CatalogError, TimeoutError):
    """Another process kept the catalog open for longer than we were willing to wait; names its pid."""

    def __init__(self, path: Path, holder: str, seconds: float):
        self.holder = holder
        super().__init__(
            f"{path}: held open by {holder} for {seconds:.1f} s; close that connection"
            " (notebooks: `python -m store sql`, or snapshots by `python -m store export`)"
        )


class NewerCatalogError(CatalogError):
    """The catalog was written by a newer FrameBank, or by a DuckDB newer than the installed one."""


class ReadOnlyBankError(CatalogError, PermissionError):
    """A write was asked of a bank whose directory cannot be written."""


def say(message: str) -> None:
    """Print one line on stderr."""
    print(message, file=sys.stderr, flush=True)


# DuckDB refuses a reading and a writing connection side by side in one process: one operation at a time.
_process_locks: dict[Path, threading.RLock] = {}
_process_locks_guard = threading.Lock()


def _process_lock(path: Path) -> threading.RLock:
    with _process_locks_guard:
        return _process_locks.setdefault(path, threading.RLock())


class Catalog:
    """One catalog file.

    Args:
        path: The file.
        read_only: Refuse writes (a bank whose directory cannot be written).
        timeout_seconds: How long an operation waits for other processes.
        notify: Called with one line when a wait gets long.
    """

    def __init__(
        self,
        path: Path,
        read_only: bool = False,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        notify: Notify = say,
    ):
        self.path = Path(path).resolve()
        self.read_only = read_only
        self.timeout_seconds = timeout_seconds
        self.notify = notify
        self._lock = _process_lock(self.path)
        self._open: duckdb.DuckDBPyConnection | None = None
        self._readers = 0

    def read(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        tables: Mapping[str, "pa.Table"] | None = None,
        timeout_seconds: float | None = None,
    ) -> "pa.Table":
        """Run one query on a read-only connection.

        Args:
            sql: A query with ``?`` or ``$name`` placeholders.
            params: Their values.
            tables: Arrow tables that the query may name.
            timeout_seconds: How long to wait for a writer; the catalog's own if None.

        Raises:
            QueryError: If DuckDB refuses the query.
            CatalogBusyError: If another process holds the catalog for longer than the timeout.
        """
        with self.reading(timeout_seconds) as connection:
            return fetch(connection, sql, params, tables)

    @contextmanager
    def reading(self, timeout_seconds: float | None = None) -> Iterator["duckdb.DuckDBPyConnection"]:
        """A read-only connection for a few queries that belong together; inside a transaction, its own."""
        with self._lock:
            if self._open is not None:
                yield self._open
                return
            connection = self._connect(True, timeout_seconds)
            self._readers += 1
            try:
                # One transaction: the queries see one state of the catalog.
                connection.execute("BEGIN TRANSACTION READ ONLY")
                yield connection
            finally:
                self._readers -= 1
                connection.close()

    @contextmanager
    def transaction(self, timeout_seconds: float | None = None) -> Iterator["duckdb.DuckDBPyConnection"]:
        """A writing connection with BEGIN; COMMIT at the end, ROLLBACK on an error. Keep it short.

        Raises:
            ReadOnlyBankError: If the bank cannot be written.
            CatalogBusyError: As ``read``.
            CatalogError: If the commit fails, a full disk say; then nothing is changed.
        """
        if self.read_only:
            raise ReadOnlyBankError(f"{self.path.parent}: read-only; only reading commands work on this bank")
        with self._lock:
            if self._open is not None or self._readers:
                raise CatalogError(f"{self.path}: transaction inside another use of it; end that first")
            self._open = connection = self._connect(False, timeout_seconds)
            try:
                connection.execute("BEGIN TRANSACTION")
                yield connection
                _commit(connection, self.path)
            finally:
                # Closing without COMMIT rolls back.
                self._open = None
                connection.close()

    def create(self) -> None:
        """Make the file, unless there is one, in the storage format that duckdb 1.5 and 2 share; migrate it.

        The file appears whole or not at all, and only once if several processes make it at a time.
        """
        if not self.path.exists():
            newborn = self.path.with_name(f"{self.path.name}.new-{os.getpid()}")
            try:
                _make(newborn)
                os.link(newborn, self.path)
            except FileExistsError:
                pass  # another process was faster
            except OSError as error:
                raise CatalogError(
                    f"{self.path}: cannot make it ({error.strerror}); try another --bank"
                ) from error
            finally:
                newborn.unlink(missing_ok=True)
        self.migrate()

    def version(self) -> int:
        """The number of the last migration that the catalog has had; 0 for a file without tables."""
        with self.reading() as connection:
            return _version(connection)

    def migrate(self) -> None:
        """Apply the migrations that the catalog lacks, in one transaction.

        Raises:
            NewerCatalogError: If the catalog has had migrations that this code does not know.
        """
        if self._known_version() == LATEST:
            return
        if self.read_only:
            raise ReadOnlyBankError(
                f"{self.path}: written by an older FrameBank and read-only;"
                " open it once where it can be written: `python -m store info`"
            )
        with self.transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER, name VARCHAR)")
            done = _version(connection)
            for number, name, sql in MIGRATIONS:
                if number > done:
                    connection.execute(sql)
                    connection.execute("INSERT INTO schema_migrations VALUES (?, ?)", [number, name])

    def _known_version(self) -> int:
        version = self.version()
        if version > LATEST:
            raise NewerCatalogError(
                f"{self.path}: has schema {version}, this FrameBank knows up to {LATEST};"
                " update FrameBank (`git pull`), the bank itself is fine"
            )
        return version

    def _connect(self, read_only: bool, timeout_seconds: float | None) -> "duckdb.DuckDBPyConnection":
        import duckdb

        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        start, pause, spoken = time.monotonic(), FIRST_PAUSE_SECONDS, False
        while True:
            try:
                return _opened(self.path, read_only)
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                if not is_lock_error(error):
                    raise self._explained(error) from error
                waited = time.monotonic() - start
                if waited >= limit:
                    raise CatalogBusyError(self.path, lock_holder(error), waited) from None
                if waited > SPEAK_AFTER_SECONDS and not spoken:
                    spoken = True
                    self.notify(f"waiting for the catalog: {lock_holder(error)} has {self.path} open")
            # Random, so that several waiting processes do not collide in step.
            time.sleep(min(pause * random.uniform(0.5, 1.5), max(limit - waited, 0.0) + 0.001))
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)

    def _explained(self, error: Exception) -> CatalogError:
        text = first_line(error)
        if "can only read versions" in text or "newer version of DuckDB" in str(error):
            return NewerCatalogError(f"{self.path}: {text}; update duckdb: `pip install -U 'duckdb>=1.5,<3'`")
        return CatalogError(f"{self.path}: {text}")


def fetch(
    connection: "duckdb.DuckDBPyConnection",
    sql: str,
    params: Sequence[Any] | Mapping[str, Any] = (),
    tables: Mapping[str, "pa.Table"] | None = None,
) -> "pa.Table":
    """Run a query on ``connection`` with Arrow ``tables`` visible to it, and return Arrow.

    Raises:
        QueryError: If DuckDB refuses it.
    """
    import duckdb

    for name, table in (tables or {}).items():
        connection.register(name, table)
    try:
        relation = connection.sql(sql, params=params if isinstance(params, Mapping) else list(params))
        if relation is None:
            raise QueryError(
                f"catalog query: returns no rows to read; the query was: {' '.join(sql.split())}"
            )
        return relation.to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(
            f"catalog query: {first_line(error)}; the query was: {' '.join(sql.split())}"
        ) from error
    finally:
        for name in tables or {}:
            connection.unregister(name)


def is_lock_error(error: Exception) -> bool:
    """Whether DuckDB refused only because somebody else (or another thread of ours) has the file open."""
    text = str(error)
    return "Could not set lock on file" in text or "different configuration than existing" in text


def lock_holder(error: Exception) -> str:
    """``python3.12 (pid 4711)`` out of DuckDB's lock error; this process, if it is our own connection."""
    match = re.search(r"Conflicting lock is held in (.*?) \(PID (\d+)\)", str(error), re.DOTALL)
    if match:
        return f"{Path(match[1]).name} (pid {match[2]})"
    if "different configuration" in str(error):
        return f"another connection of this process (pid {os.getpid()})"
    return "another process"


def first_line(error: Exception) -> str:
    """DuckDB's message up to the first line break."""
    return str(error).strip().split("\n", 1)[0]


def _make(path: Path) -> None:
    """A new database file with an empty list of migrations."""
    import duckdb

    quoted = str(path).replace("'", "''")
    try:
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{quoted}' AS bank (STORAGE_VERSION '{STORAGE_VERSION}')")
            connection.execute("CREATE TABLE bank.schema_migrations (number INTEGER, name VARCHAR)")
            connection.execute("DETACH bank")
    except duckdb.Error as error:
        raise CatalogError(f"{path}: {first_line(error)}; free some space or try another --bank") from error


def _opened(path: Path, read_only: bool) -> "duckdb.DuckDBPyConnection":
    import duckdb

    if not path.exists():
        # DuckDB would make an empty database here.
        raise CatalogError(f"{path}: no such file; `python -m store reindex` rebuilds a lost catalog")
    connection = duckdb.connect(str(path), read_only=read_only)
    # A misspelt table must be an error, not a Python variable of the same name.
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_progress_bar = false")  # it would go to stdout, among the results
    return connection


def _commit(connection: "duckdb.DuckDBPyConnection", path: Path) -> None:
    import duckdb

    try:
        connection.execute("COMMIT")
    except duckdb.Error as error:
        raise CatalogError(f"{path}: commit failed, nothing was changed: {first_line(error)}") from error


def _version(connection: "duckdb.DuckDBPyConnection") -> int:
    found = connection.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_migrations' AND NOT internal"
    ).fetchall()
    if not found[0][0]:
        return 0
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM schema_migrations").fetchall()[0][0])
