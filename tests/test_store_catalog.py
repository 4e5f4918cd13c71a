import hashlib
import os
import signal
import threading
import time

import duckdb
import pyarrow as pa
import pytest
import store_toy as toy

from store.bank import Bank, NotABankError
from store.catalog import Catalog, CatalogBusyError, CatalogError, NewerCatalogError, QueryError
from store.migrations import LATEST, MIGRATIONS

# A released migration is never edited: banks in the field have had it as it was.
RELEASED = {1: "ece536030f3a4255", 2: "4b45bcfa48dc4d6f", 3: "5e75dd7bd4f27a4e", 4: "cd59d10600f9fbaf"}


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog(tmp_path / "catalog.duckdb", timeout_seconds=5)
    catalog.create()
    return catalog


def count(catalog: Catalog, table: str = "texts") -> int:
    return catalog.read(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py()


def test_migrations_are_numbered_and_append_only():
    assert [number for number, _, _ in MIGRATIONS] == list(range(1, LATEST + 1))
    for number, _, sql in MIGRATIONS:
        if number in RELEASED:
            assert hashlib.sha256(sql.encode()).hexdigest()[:16] == RELEASED[number], f"migration {number}"


def test_a_new_catalog_has_the_oldest_storage_format_that_works(catalog):
    """DuckDB 1.5 refuses files of DuckDB 2's own format."""
    assert catalog.version() == LATEST
    with duckdb.connect(str(catalog.path)) as connection:
        tags = connection.sql("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
    assert tags["storage_version"].startswith("v1.0")
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES ('a', 'b')")
    with duckdb.connect(str(catalog.path)) as connection:
        again = connection.sql("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
    assert again == tags


def test_an_older_catalog_is_brought_up_to_date_and_keeps_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "bank"
    monkeypatch.setattr("store.catalog.MIGRATIONS", MIGRATIONS[:1])
    monkeypatch.setattr("store.catalog.LATEST", 1)
    old = Bank.open(path, create=True)
    with old.catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES ('a', 'b')")
    assert old.catalog.version() == 1
    monkeypatch.undo()
    new = Bank.open(path)
    assert new.catalog.version() == LATEST
    assert new.sql("SELECT text FROM texts")["text"].to_pylist() == ["b"]
    assert new.sql("SELECT * FROM coverage").num_rows == 1


def test_a_catalog_from_a_newer_version_is_refused(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    with bank.catalog.transaction() as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (?, 'from the future')", [LATEST + 1])
    for create in (False, True):
        with pytest.raises(NewerCatalogError, match=f"has schema {LATEST + 1}.*update FrameBank"):
            Bank.open(tmp_path, create=create)


CREATE = """
import sys
from store.bank import Bank
sys.stdin.readline()
print(Bank.open(sys.argv[1], create=True).sql("SELECT count(*) AS n FROM clips")["n"][0])
"""


def test_several_processes_may_make_the_same_bank(tmp_path):
    processes = [toy.script(CREATE, tmp_path / "bank") for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "0\n"), errors
    assert [path.name for path in (tmp_path / "bank").iterdir()] == ["catalog.duckdb"]


def test_where_no_bank_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(NotABankError, match="cannot make a bank here"):
            Bank.open(place, create=True)


def test_an_empty_file_is_not_made_a_catalog(tmp_path):
    (tmp_path / "catalog.duckdb").touch()
    with pytest.raises(CatalogError, match=r"catalog\.duckdb"):
        Bank.open(tmp_path)
    assert (tmp_path / "catalog.duckdb").stat().st_size == 0


def test_a_file_that_is_no_database_is_an_error_not_a_new_bank(tmp_path):
    (tmp_path / "catalog.duckdb").write_text("hello" * 1000)
    with pytest.raises(CatalogError, match=r"catalog\.duckdb"):
        Bank.open(tmp_path)


def test_opening_what_is_no_bank_says_what_makes_one(tmp_path):
    with pytest.raises(NotABankError, match="python -m extract"):
        Bank.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "features").mkdir()
    with pytest.raises(NotABankError, match="python -m store reindex"):
        Bank.open(tmp_path)


def test_queries_cannot_write(catalog):
    for sql in ("INSERT INTO texts VALUES ('a', 'b')", "DROP TABLE texts", "CREATE TABLE x (a INT)"):
        with pytest.raises(QueryError, match="read-only"):
            catalog.read(sql)
    assert count(catalog) == 0


def test_a_misspelt_table_is_an_error_not_a_variable_of_ours(catalog):
    tables = pa.table({"a": [1]})
    assert tables.num_rows == 1
    with pytest.raises(QueryError, match="tables"):
        catalog.read("SELECT * FROM tables")
    assert catalog.read("SELECT a FROM given", tables={"given": tables})["a"].to_pylist() == [1]


def test_an_error_rolls_everything_back(catalog):
    with pytest.raises(ZeroDivisionError), catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES ('a', 'b')")
        raise ZeroDivisionError
    assert count(catalog) == 0
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES ('a', 'b')")
    assert count(catalog) == 1


def test_reading_inside_a_transaction_sees_it_and_transactions_do_not_nest(catalog):
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES ('a', 'b')")
        assert count(catalog) == 1
        with pytest.raises(CatalogError, match="inside another use of it"), catalog.transaction():
            pass
    with (
        catalog.reading(),
        pytest.raises(CatalogError, match="inside another use of it"),
        catalog.transaction(),
    ):
        pass


def test_a_busy_catalog_names_the_holder(tmp_path):
    bank = toy.registered(tmp_path)
    with toy.Holder(bank) as holder:
        for use in (
            lambda: bank.catalog.read("SELECT 1", timeout_seconds=0.2),
            lambda: _write(bank.catalog, 0.2),
        ):
            with pytest.raises(CatalogBusyError, match=rf"pid {holder.pid}\)"):
                use()
    assert count(bank.catalog) == 3


def test_a_reader_elsewhere_blocks_writers_but_not_readers(tmp_path):
    bank = toy.registered(tmp_path)
    with toy.Holder(bank, read_only=True) as holder:
        assert count(bank.catalog) == 3
        with pytest.raises(CatalogBusyError, match=f"pid {holder.pid}"):
            _write(bank.catalog, 0.2)


def _write(catalog: Catalog, timeout: float) -> None:
    with catalog.transaction(timeout) as connection:
        connection.execute("INSERT INTO texts VALUES ('x', 'y')")


def test_waiting_ends_when_the_holder_does_and_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr("store.catalog.SPEAK_AFTER_SECONDS", 0.1)
    said: list[str] = []
    bank = toy.registered(tmp_path, notify=said.append)
    with toy.Holder(bank) as holder:
        threading.Timer(0.8, holder.release).start()
        start = time.monotonic()
        assert count(bank.catalog) == 3
        assert 0.5 < time.monotonic() - start < 20
    assert len(said) == 1 and f"pid {holder.pid}" in said[0]


def test_a_connection_of_our_own_process_is_named_too(catalog):
    with (
        duckdb.connect(str(catalog.path)),
        pytest.raises(CatalogBusyError, match=f"this process.*pid {os.getpid()}"),
    ):
        catalog.read("SELECT 1", timeout_seconds=0.1)


def test_threads_of_one_process_take_turns(catalog):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(3):
                with catalog.transaction() as connection:
                    connection.execute("INSERT INTO texts VALUES (?, 'x')", [f"{number}/{step}"])
                assert count(catalog) >= 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert count(catalog) == 12


WRITE = """
import sys
from pathlib import Path
from store.catalog import Catalog
catalog = Catalog(Path(sys.argv[1]), timeout_seconds=60)
for step in range(6):
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO texts VALUES (?, 'x')", [f"{sys.argv[2]}/{step}"])
    catalog.read("SELECT count(*) FROM texts")
"""


def test_processes_take_turns(catalog):
    processes = [toy.script(WRITE, catalog.path, number) for number in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert count(catalog) == 18
    assert catalog.read("SELECT count(DISTINCT text_id) AS n FROM texts")["n"][0].as_py() == 18


KILLED = """
import os, signal, sys
from pathlib import Path
from store.catalog import Catalog
with Catalog(Path(sys.argv[1])).transaction() as connection:
    connection.execute("INSERT INTO texts SELECT range::VARCHAR, 'x' FROM range(100000)")
    print("inserted", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_inside_a_transaction_leaves_nothing_of_it(catalog):
    process = toy.script(KILLED, catalog.path)
    assert process.communicate(timeout=60)[0] == "inserted\n"
    assert process.returncode == -signal.SIGKILL
    assert count(catalog) == 0
    _write(catalog, 5)
    assert count(catalog) == 1
