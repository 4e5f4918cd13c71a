"""The store under fire: kills, rivals, holders, damage. Nothing lost, nothing twice, nothing false."""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import store_toy as toy
from store_toy import CLS, DATASET, MODALITY, TOKENS

from store.bank import Bank
from store.catalog import CatalogBusyError, CatalogError, ReadOnlyBankError
from store.compact import compact
from store.garbage import collect
from store.inspection import inspect_bank
from store.layout import SegmentError
from store.locks import PARTIAL
from store.reindex import reindex

COUNT = 12
HELD_SECONDS = 60  # a notebook left open

WRITE = """
import sys
import store_toy as toy
from store.bank import Bank

def write(path, first, last, version=1, **options):
    bank = Bank.open(path, notify=lambda line: print(line, file=sys.stderr))
    plan = bank.plan(toy.DATASET, toy.MODALITY, toy.spec(), ["cls", "tokens"])
    wanted = [clip for clip in toy.clip_ids(last)[first:] if clip in set(plan["item_id"].to_pylist())]
    with bank.writer(toy.DATASET, toy.MODALITY, toy.spec(), [toy.CLS, toy.TOKENS], **options) as writer:
        print("writing", flush=True)
        for clip in wanted:
            toy.add(writer, clip, version)
"""


def finished(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out + err


def segment_folders(bank: Bank) -> list[Path]:
    return sorted(path.parent for path in (bank.path / "features").rglob("zarr.json"))


def names(bank: Bank, state: str) -> list[str]:
    sql = "SELECT segment_id FROM segments WHERE state = ? ORDER BY 1"
    return bank.sql(sql, [state])["segment_id"].to_pylist()


# --- kills

KILL = """
import os, signal
def die(*_, **__):
    print("dying", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
INSTANTS = {
    "segments renamed, not committed": "import store.writer as w; w.FeatureWriter._commit_pending = die",
    "committed, lease not released": "import store.segment as s; s.ClosedSegment.release = die",
    "before merging": "import store.compact; store.compact.merge_small = die",
    "merged segment renamed, not committed": "import store.compact; store.compact._finished = die",
    "merge committed, nothing removed": "import store.compact; store.compact.remove_replaced = die",
    "replaced folders half removed": "import shutil; shutil.rmtree = die",
    "replaced folders removed, rows left": "import store.compact; store.compact._forget = die",
}  # fmt: skip


QUICK = ("segments renamed, not committed", "merged segment renamed, not committed")


@pytest.mark.parametrize(
    "instant", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in INSTANTS]
)
def test_a_kill_at_this_instant_loses_and_doubles_nothing(tmp_path, instant):
    bank = toy.registered(tmp_path, COUNT)
    code = f"{WRITE}\n{KILL}\n{INSTANTS[instant]}\nwrite(sys.argv[1], 0, {COUNT}, max_bytes=700)"
    assert finished(toy.script(code, tmp_path), -signal.SIGKILL) == "writing\ndying\n"
    finished(toy.script(f"{WRITE}\nwrite(sys.argv[1], 0, {COUNT})", tmp_path))
    toy.assert_complete(bank, COUNT)
    collect(bank)
    assert {path.name for path in segment_folders(bank)} == set(names(bank, "live"))
    assert not names(bank, "replaced") and not list(tmp_path.rglob(f"*{PARTIAL}*"))
    assert not inspect_bank(bank).messages
    toy.assert_complete(bank, COUNT)


def test_what_a_killed_run_finished_is_adopted_by_the_next_plan(tmp_path):
    bank = toy.registered(tmp_path, COUNT)
    code = f"{WRITE}\n{KILL}\n{INSTANTS['segments renamed, not committed']}\nwrite(sys.argv[1], 0, {COUNT})"
    finished(toy.script(code, tmp_path), -signal.SIGKILL)
    assert bank.sql("SELECT count(*) AS n FROM features")["n"][0].as_py() == 0
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"]).num_rows == 0
    toy.assert_complete(bank, COUNT)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """At least 20 kills; then the bank equals an undisturbed one, and so does one rebuilt from segments."""
    count, chance = 40, random.Random(0)
    bank = toy.registered(tmp_path / "bank", count)
    slowly = """
import time
quick = toy.add
def add(*arguments):
    time.sleep(0.02)
    return quick(*arguments)
toy.add = add
"""
    kills, version = 0, 1
    while kills < 20:
        code = f"{WRITE}\n{slowly}\nwrite(sys.argv[1], 0, {count}, {version}, max_seconds=0.05)"
        process = toy.script(code, bank.path)
        assert process.stdout is not None
        process.stdout.readline()  # while Python starts, nothing of ours runs
        try:
            process.wait(chance.uniform(0.0, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if process.returncode == 0:  # all done before its kill: every file is replaced, so all is missing
            version += 1
            bank.register(DATASET, clips=toy.clips(count), media=toy.media(count, version))
    finished(toy.script(f"{WRITE}\nwrite(sys.argv[1], 0, {count}, {version})", bank.path))
    toy.assert_complete(bank, count, version)
    collect(bank)
    assert not inspect_bank(bank).messages
    bank.catalog.path.unlink()
    reindex(bank.path)
    again = toy.registered(bank.path, count)
    again.register(DATASET, clips=toy.clips(count), media=toy.media(count, version))
    toy.assert_complete(again, count, version)


# --- rivals


def test_two_writers_at_once_finish_with_all_rows(tmp_path):
    bank = toy.registered(tmp_path, COUNT)
    halves = ((0, COUNT // 2 + 3), (COUNT // 2 - 3, COUNT))  # six clips are written by both
    processes = [
        toy.script(f"{WRITE}\nwrite(sys.argv[1], {first}, {last}, max_seconds=0)", tmp_path)
        for first, last in halves
    ]
    for process in processes:
        finished(process)
    toy.assert_complete(bank, COUNT)
    collect(bank)
    assert {path.name for path in segment_folders(bank)} == set(names(bank, "live"))


TRAIN = """
import sys
import numpy as np
import store_toy as toy
from store.bank import Bank
bank = Bank.open(sys.argv[1], notify=lambda line: None)
with bank.record_run("train", {}) as run:
    selection = bank.select(toy.DATASET, "ir")
    print("training", flush=True)
    for step in range(200):
        values, offsets = selection.read(np.random.default_rng(step).permutation(len(selection)))
        expected = toy.values(selection.items[0], 7)[:, :1]
        assert (selection.read([0])[0] == expected).all()
    run.metric("loss", 0.0)
"""


@pytest.mark.slow
def test_two_extractions_and_a_training_beside_a_notebook(tmp_path):
    bank = toy.registered(tmp_path, COUNT)
    with bank.writer(DATASET, "ir", toy.spec(), [CLS]) as writer:
        for clip in toy.clip_ids(COUNT):
            toy.add(writer, clip, version=7)
    half = COUNT // 2
    with toy.Holder(bank) as holder:
        processes = [
            toy.script(f"{WRITE}\nwrite(sys.argv[1], 0, {half}, max_seconds=0)", tmp_path),
            toy.script(f"{WRITE}\nwrite(sys.argv[1], {half}, {COUNT}, max_seconds=0)", tmp_path),
            toy.script(TRAIN, tmp_path),
        ]
        time.sleep(HELD_SECONDS)
        assert all(process.poll() is None for process in processes)
        holder.release()
        said = [finished(process) for process in processes]
    assert any(f"pid {holder.pid}" in text for text in said)
    ir = bank.select(DATASET, "ir")
    assert len(ir) == COUNT
    del ir
    rows = bank.sql("SELECT count(*) AS n FROM features WHERE field = 'tokens'")["n"][0].as_py()
    assert rows == COUNT
    assert bank.sql("SELECT status FROM runs")["status"].to_pylist() == ["done"]


def test_a_busy_catalog_does_not_stop_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("store.writer.PATIENCE_SECONDS", 0.05)
    bank = toy.registered(tmp_path, COUNT)
    said: list[str] = []
    writer = bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS], max_bytes=1, notify=said.append)
    with writer:
        toy.add(writer, "clip 000")
        with toy.Holder(bank) as holder:
            for clip in toy.clip_ids(COUNT)[1:8]:
                toy.add(writer, clip)
                monkeypatch.setattr(writer, "commit", lambda *_: type(writer).commit(writer, 0.05))
            assert writer.pending == 14 and len(said) == 1 and f"pid {holder.pid}" in said[0]
        for clip in toy.clip_ids(COUNT)[8:]:
            toy.add(writer, clip)
        assert writer.pending == 0
        monkeypatch.undo()
    toy.assert_complete(bank, COUNT)


def test_a_catalog_busy_to_the_end_is_made_good_by_the_next_run(tmp_path):
    bank = toy.registered(tmp_path, 3)
    said: list[str] = []
    writer = bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS], commit_timeout=0.1, notify=said.append)
    with toy.Holder(bank), writer:
        for clip in toy.clip_ids(3):
            toy.add(writer, clip)
    assert "on disk, not in the catalog" in said[-1]
    assert bank.sql("SELECT count(*) AS n FROM features")["n"][0].as_py() == 0
    assert collect(bank).adopted and not collect(bank).adopted
    toy.assert_complete(bank, 3)


def test_a_reading_notebook_delays_commits_only(tmp_path):
    bank = toy.registered(tmp_path, 3)
    with toy.Holder(bank, read_only=True) as holder:
        threading.Timer(1.0, holder.release).start()
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
            for clip in toy.clip_ids(3):
                toy.add(writer, clip)
    toy.assert_complete(bank, 3)


# --- garbage


def test_garbage_collection_never_touches_a_living_writer(tmp_path):
    bank = toy.registered(tmp_path, 6)
    code = f"""{WRITE}
from store.writer import FeatureWriter
bank = Bank.open(sys.argv[1])
with bank.writer(toy.DATASET, toy.MODALITY, toy.spec(), [toy.CLS, toy.TOKENS]) as writer:
    for clip in toy.clip_ids(3):
        toy.add(writer, clip)
    writer._close_open()                       # finished and renamed, not committed
    for clip in toy.clip_ids(6)[3:]:
        toy.add(writer, clip)                  # being written
    print("waiting", flush=True)
    sys.stdin.readline()
"""
    process = toy.script(code, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    dead = tmp_path / "features" / DATASET / "ir" / "x@1" / "cls" / f"{'0' * 26}{PARTIAL}1"
    dead.mkdir(parents=True)
    os.utime(dead, (0, 0))
    before = sorted(str(path) for path in tmp_path.rglob("*.lock"))
    done = collect(bank)
    assert done.unfinished == [dead.name] and not dead.exists()
    assert not done.adopted and not done.unwanted
    assert sorted(str(path) for path in tmp_path.rglob("*.lock")) == before
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
    toy.assert_complete(bank, 6)


def test_replaced_segments_stay_until_no_reader_can_hold_them(tmp_path):
    bank = toy.registered(tmp_path, 6)
    for clip in toy.clip_ids(6):
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
            toy.add(writer, clip)
    before = bank.select(DATASET, MODALITY)  # opened, but no segment mapped yet
    assert compact(bank, 1 << 20) == 6
    assert not collect(bank).replaced and len(names(bank, "replaced")) == 6
    values, offsets = before.read()
    np.testing.assert_array_equal(values[: offsets[1]], toy.values("clip 000")[:, :1])
    during = bank.select(DATASET, MODALITY)
    assert len(during.segments) == 1
    before.close()
    assert not collect(bank).replaced  # `during` came later, but that is not known of a lock
    during.close()
    assert len(collect(bank).replaced) == 6 and not names(bank, "replaced")
    assert len(segment_folders(bank)) == 1
    np.testing.assert_array_equal(toy.stored(bank, "cls")["clip 003"], toy.values("clip 003")[:, :1])


def test_a_selection_that_is_dropped_lets_go(tmp_path):
    bank = toy.filled(tmp_path, 3, max_bytes=1)
    selection = bank.select(DATASET, MODALITY, field="cls")
    compact(bank, 1 << 20)
    assert len(collect(bank).replaced) == 3  # of the field that nobody reads
    assert len(names(bank, "replaced")) == 3
    del selection
    assert len(collect(bank).replaced) == 3


def test_a_run_whose_process_was_killed_is_ended(tmp_path):
    bank = toy.registered(tmp_path, 1)
    code = f"{WRITE}\n{KILL}\nwith Bank.open(sys.argv[1]).record_run('align', {{}}): die()"
    finished(toy.script(code, tmp_path), -signal.SIGKILL)
    with bank.record_run("probe", {}):
        assert len(collect(bank).ended) == 1
    assert bank.sql("SELECT status, count(*)::INT AS n FROM runs GROUP BY ALL ORDER BY ALL").to_pylist() == [
        {"status": "done", "n": 1}, {"status": "failed", "n": 1},
    ]  # fmt: skip


# --- newest wins, whatever survives on disk


def test_rebuilding_takes_the_newest_rows_even_beside_replaced_segments(tmp_path):
    bank = toy.filled(tmp_path, 6)
    reader = bank.select(DATASET, MODALITY)  # keeps every replaced segment on disk
    bank.register(DATASET, clips=toy.clips(6), media=toy.media(6, version=2))
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        for clip in toy.clip_ids(6)[:3]:
            toy.add(writer, clip, version=2)
    old = [shutil.copytree(path, tmp_path / "kept" / path.name) for path in segment_folders(bank)]
    compact(bank, 1 << 20)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        for clip in toy.clip_ids(6)[3:]:
            toy.add(writer, clip, version=2)
    compact(bank, 1 << 20)
    toy.assert_complete(bank, 6, version=2)
    collect(bank)
    for path in old:  # as if nothing had ever been removed
        home = next(f for f in segment_folders(bank) if f.parent.name == _field(path)).parent
        if not (home / path.name).exists():
            shutil.copytree(path, home / path.name)
    bank.catalog.path.unlink()
    reindex(tmp_path)
    again = toy.registered(tmp_path, 6)
    again.register(DATASET, clips=toy.clips(6), media=toy.media(6, version=2))
    toy.assert_complete(again, 6, version=2)
    reader.close()
    collect(again)
    toy.assert_complete(again, 6, version=2)
    assert {path.name for path in segment_folders(again)} == set(names(again, "live"))


def _field(segment: Path) -> str:
    from store.manifest import read_manifest

    return read_manifest(segment)[1]["field"]["name"]


def test_rebuilding_beside_a_living_writer_loses_none_of_its_rows(tmp_path):
    bank = toy.registered(tmp_path, 6)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        for clip in toy.clip_ids(3):
            toy.add(writer, clip)
        writer.commit()
        for clip in toy.clip_ids(6)[3:]:
            toy.add(writer, clip)
        writer._close_open()
        reindex(tmp_path)
        assert list(toy.stored(bank)) == toy.clip_ids(3)
    toy.assert_complete(bank, 6)


# --- damage


def flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[3] ^= 4
    shard.write_bytes(content)


DAMAGE = {
    "flipped byte": flip,
    "truncated": lambda shard: os.truncate(shard, shard.stat().st_size - 7),
    "emptied": lambda shard: os.truncate(shard, 0),
    "shard deleted": lambda shard: shard.unlink(),
    "segment deleted": lambda shard: shutil.rmtree(shard.parents[3]),
    "metadata deleted": lambda shard: (shard.parents[3] / "zarr.json").unlink(),
    "manifest deleted": lambda shard: (shard.parents[3] / "manifest.parquet").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_by_clip_and_never_read(tmp_path, damage):
    bank = toy.registered(tmp_path, 4)
    for clips in (toy.clip_ids(4)[:2], toy.clip_ids(4)[2:]):
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
            for clip in clips:
                toy.add(writer, clip)
    DAMAGE[damage](sorted(tmp_path.rglob("c/0/0/0"))[0])
    report = inspect_bank(bank)
    assert report.messages and [one.item_id for one in report.damage] == toy.clip_ids(2)
    selection = bank.select(DATASET, MODALITY)
    if damage != "manifest deleted":  # the values themselves are sound then
        for rows in (None, [0], [1, 3]):
            with pytest.raises(SegmentError):
                selection.read(rows)
        with pytest.raises(SegmentError):
            selection.materialise("mean")
    np.testing.assert_array_equal(selection.read([2])[0], toy.values("clip 002")[:, :1])
    reindexed = reindex(tmp_path)[1]
    assert bool(reindexed.unreadable) == (damage in ("shard deleted", "manifest deleted"))


def test_a_catalog_that_points_elsewhere_is_found(tmp_path):
    bank = toy.filled(tmp_path, 3)
    with bank.catalog.transaction() as connection:
        connection.execute(
            "UPDATE features SET frames = frames + 1 WHERE item_id = 'clip 001' AND field = 'cls'"
        )
    report = inspect_bank(bank)
    assert [(one.item_id, one.field) for one in report.damage] == [("clip 001", "cls")]
    assert "python -m store reindex" in report.messages[0]
    reindex(tmp_path)
    toy.assert_complete(bank, 3)


# --- a bank that cannot be written

READ = """
import sys
import store_toy as toy
from store.bank import Bank
from store.catalog import ReadOnlyBankError
bank = Bank.open(sys.argv[1])
assert bank.catalog.read_only
found = toy.stored(bank)
assert list(found) == toy.clip_ids(4)
assert all((found[clip] == toy.values(clip)).all() for clip in found)
assert bank.plan(toy.DATASET, toy.MODALITY, toy.spec(), ["cls"]).num_rows == 0
for write in (
    lambda: bank.writer(toy.DATASET, toy.MODALITY, toy.spec(), [toy.CLS]),
    lambda: bank.record_run("align", {}),
    lambda: bank.add_texts(["new"]),
    lambda: bank.register("more", clips=toy.clips(1)),
):
    try:
        write()
    except ReadOnlyBankError as error:
        print(error)
"""


def drop_root_override() -> None:
    """Let root obey file modes, in a child about to exec: drop CAP_DAC_OVERRIDE and its like."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2, 3):
        libc.prctl(24, capability, 0, 0, 0)


def test_a_read_only_bank_can_be_read(tmp_path):
    bank = toy.filled(tmp_path / "bank", 4)
    folders = [bank.path, *(path for path in bank.path.rglob("*") if path.is_dir())]
    for path in [*folders, *(path for path in bank.path.rglob("*") if path.is_file())]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        process = toy.script(READ, bank.path, preexec_fn=drop_root_override)
        assert finished(process).count("read-only") == 4
    finally:
        for path in folders:
            path.chmod(0o755)
    toy.assert_complete(bank, 4)


def test_read_only_is_known_before_anything_is_tried(tmp_path, monkeypatch):
    bank = toy.filled(tmp_path, 2)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    frozen = Bank.open(tmp_path)
    assert frozen.catalog.read_only and "read-only" in repr(frozen)
    with pytest.raises(ReadOnlyBankError, match="read-only"), frozen.catalog.transaction():
        pass
    with pytest.raises(ReadOnlyBankError):
        frozen.writer(DATASET, MODALITY, toy.spec(), [CLS])
    assert list(toy.stored(frozen)) == list(toy.stored(bank))


# --- full disk

FULL = """
import resource, signal, sys
import numpy as np
import store_toy as toy
from store.bank import Bank
from store.layout import SegmentError
from store.spec import FieldSpec
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error, as on a full disk
bank = Bank.open(sys.argv[1])
wide = FieldSpec("cls", 1, 8)
large = FieldSpec("tokens", 2048, 1024)
try:
    with bank.writer(toy.DATASET, toy.MODALITY, toy.spec(), [large]) as writer:
        for number, clip in enumerate(toy.clip_ids(4)):
            writer.add(clip, 0, {"tokens": np.ones((2, 2048, 1024), np.float16)}, [0.0, 1.0])
            writer.commit()
            if number == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, 6 << 20))
except SegmentError as error:
    print(error)
"""


def test_a_full_disk_ends_the_run_and_keeps_what_was_committed(tmp_path):
    bank = toy.registered(tmp_path, 4)
    assert "cannot write segment" in finished(toy.script(FULL, tmp_path))
    missing = bank.plan(DATASET, MODALITY, toy.spec(), ["tokens"])["item_id"].to_pylist()
    assert missing == toy.clip_ids(4)[2:]
    assert not inspect_bank(bank).messages
    assert len(bank.select(DATASET, MODALITY)) == 2
    assert not list(tmp_path.rglob(f"*{PARTIAL}*"))


FULL_CATALOG = """
import resource, signal, sys
from pathlib import Path
from store.catalog import Catalog, CatalogError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
catalog = Catalog(Path(sys.argv[1]))
size = catalog.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO texts SELECT range::VARCHAR, md5(range::VARCHAR) FROM range(500000)")
except CatalogError as error:
    print(error)
"""


def test_a_disk_too_full_for_the_catalog_changes_nothing(tmp_path):
    bank = toy.filled(tmp_path, 4)
    assert "nothing was changed" in finished(toy.script(FULL_CATALOG, bank.catalog.path))
    assert bank.sql("SELECT count(*) AS n FROM texts")["n"][0].as_py() == 3
    toy.assert_complete(bank, 4)


def test_errors_of_waiting_are_what_callers_would_catch():
    assert issubclass(CatalogBusyError, TimeoutError) and issubclass(CatalogBusyError, CatalogError)
    assert issubclass(ReadOnlyBankError, PermissionError)
