"""Leases, by which garbage collection tells a living writer or reader from a dead one."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from store.locks import Lease, LeaseHeldError, holder, is_held, writer_lives


def test_an_exclusive_lease_excludes_and_names_its_holder(tmp_path):
    lease = Lease(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    assert holder(tmp_path / "lock") == f"pid {os.getpid()}"
    with pytest.raises(LeaseHeldError, match=f"held by pid {os.getpid()}"):
        Lease(tmp_path / "lock", wait_seconds=0)
    lease.release()
    assert not is_held(tmp_path / "lock")
    with Lease(tmp_path / "lock"):
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "missing")


def test_shared_leases_coexist_and_exclude_an_exclusive_one(tmp_path):
    with Lease(tmp_path / "lock", shared=True), Lease(tmp_path / "lock", shared=True):
        assert is_held(tmp_path / "lock")
        with pytest.raises(LeaseHeldError):
            Lease(tmp_path / "lock", wait_seconds=0)


def test_a_killed_process_drops_its_lease(tmp_path):
    code = "import sys, time; from pathlib import Path; from store.locks import writer_lease\n"
    code += "lease = writer_lease(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    directory = tmp_path / "segment.partial-1"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert writer_lives(directory)
    process.kill()
    process.wait()
    assert not writer_lives(directory)


def test_a_newborn_partial_without_a_lock_is_left_alone(tmp_path):
    directory = tmp_path / "segment.partial-1"
    directory.mkdir()
    assert writer_lives(directory)
    os.utime(directory, (0, 0))
    assert not writer_lives(directory)
    (tmp_path / "segment").mkdir()
    assert not writer_lives(tmp_path / "segment")
