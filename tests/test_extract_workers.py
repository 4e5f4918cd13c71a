"""Decode processes under fire: real hangs, real segfaults, real kills; each costs exactly its own clip."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from extract.worker import DecodeJob
from extract.workers import Decoded, DecodeFailure, DecodePool, WorkerStartError


@dataclass
class Clip:
    """What a reader returns (the fields of extract.readers.Frames that workers use)."""

    values: np.ndarray
    times_seconds: np.ndarray
    declared_frames: int
    decoded_frames: int
    fps: float = 30.0


class Misbehaving:
    """A reader whose file *name* says what goes wrong, in native code where it matters."""

    revision = 1

    def probe(self, path):
        return type("MediaInfo", (), {"duration_seconds": 8.0})

    def read(self, path, sampling, start_seconds=None, end_seconds=None, **options):
        act = Path(path).name.split("-")[0]
        if act == "hang":  # in C, holding the GIL: no Python thread or signal handler could end it
            ctypes.PyDLL(None).sleep(3600)
        if act == "segfault":
            ctypes.string_at(0)
        if act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "exit":
            os._exit(3)
        if act == "chatter":
            os.write(1, b"noise on stdout\n")
            os.write(2, b"native noise\n")
        if act == "raise":
            raise ValueError(f"{path}: no frames; the file is empty")
        if act == "slow":
            time.sleep(0.2)
        value = int(Path(path).name.split("-")[1])
        values = np.full((options.get("frames", 3), 4, 5), value, np.float32)
        if start_seconds is not None:
            values[:] = start_seconds, *([end_seconds] * 4)
        return Clip(values, np.arange(len(values)) / 2, len(values) + 1, len(values))


@dataclass(frozen=True)
class AddPid:
    """A prepare without weights: shifts the values and appends the process id as a column."""

    shift: float = 0.5
    fail: bool = False

    def __call__(self, values, modality, crop, times_seconds):
        if self.fail:
            raise RuntimeError("prepare refuses")
        pid = np.full((*values.shape[:-1], 1), os.getpid(), values.dtype)
        return np.concatenate([values + self.shift, pid], -1)


READER = f"{__name__}:Misbehaving"


def jobs(names, prepare=None, **fields):
    prepare = prepare or AddPid()
    return [DecodeJob(i, name, READER, "rgb", None, prepare, **fields) for i, name in enumerate(names)]


def decode(pool, todo):
    """Run jobs; returns ({index: values}, {index: failure}) with every job answered exactly once."""
    values, failures = {}, {}
    for event in pool.decode(todo):
        if isinstance(event, Decoded):
            assert event.job.index not in values
            values[event.job.index] = event.values.copy()
            event.release()
        elif isinstance(event, DecodeFailure):
            assert event.job.index not in failures
            failures[event.job.index] = event
    assert sorted([*values, *failures]) == [job.index for job in todo]
    return values, failures


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def test_every_clip_comes_back_with_its_own_frames():
    with DecodePool(2) as pool:
        values, failures = decode(pool, jobs([f"ok-{i}" for i in range(40)]))
        assert not failures
        for index, array in values.items():
            assert array.shape == (3, 4, 6) and (array[..., :-1] == index + 0.5).all()
        assert len({array[0, 0, -1] for array in values.values()}) == 2  # both workers took part


def test_report_carries_times_and_frame_counts():
    with DecodePool(1) as pool:
        (event,) = [event for event in pool.decode(jobs(["slow-1"])) if event]
    assert event.report.times_seconds.tolist() == [0.0, 0.5, 1.0]
    assert (event.report.declared_frames, event.report.decoded_frames) == (4, 3)
    assert event.report.read_seconds >= 0.2


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ("segfault", r"WorkerDied: killed by SIGSEGV: File .*ctypes"),
        ("killed", r"WorkerDied: killed by SIGKILL"),
        ("exit", r"WorkerDied: exit code 3"),
        ("raise", r"ValueError: raise-5: no frames; the file is empty"),
    ],
)
def test_a_crash_costs_exactly_one_clip(act, error):
    names = [f"ok-{i}" for i in range(20)]
    names[5] = f"{act}-5"
    with DecodePool(2) as pool:
        values, failures = decode(pool, jobs(names))
    assert list(failures) == [5]
    assert failures[5].stage == "read"
    assert re.match(error, failures[5].error), failures[5].error
    assert all((values[i][..., 0] == i + 0.5).all() for i in values)


def test_a_native_hang_is_killed_after_the_timeout_and_its_worker_replaced():
    names = [f"ok-{i}" for i in range(20)]
    names[3] = "hang-3"
    start = time.monotonic()
    with DecodePool(2, timeout_seconds=1.0) as pool:
        _, failures = decode(pool, jobs(names))
    assert list(failures) == [3]
    assert failures[3].stage == "read" and failures[3].error.startswith("TimeoutError: killed after 1 s")
    assert time.monotonic() - start < 15


def test_many_crashes_among_good_clips():
    acts = ["ok", "segfault", "ok", "raise", "killed", "ok", "exit"]
    names = [f"{acts[i % 7]}-{i}" for i in range(35)]
    with DecodePool(2) as pool:
        values, failures = decode(pool, jobs(names))
    assert sorted(failures) == [i for i in range(35) if acts[i % 7] != "ok"]
    assert all((values[i][..., 0] == i + 0.5).all() for i in values)


def test_prepare_failures_are_recorded_under_their_stage():
    with DecodePool(1) as pool:
        _, failures = decode(pool, jobs(["ok-0"], AddPid(fail=True)))
    assert (failures[0].stage, failures[0].error) == ("prepare", "RuntimeError: prepare refuses")


def test_workers_are_recycled():
    with DecodePool(1, recycle_after=5) as pool:
        values, failures = decode(pool, jobs([f"ok-{i}" for i in range(20)]))
    assert not failures
    by_process = {}
    for array in values.values():
        by_process[array[0, 0, -1]] = by_process.get(array[0, 0, -1], 0) + 1
    assert list(by_process.values()) == [5, 5, 5, 5]


def test_more_workers_start_only_if_the_caller_has_to_wait():
    def processes(name, pause_seconds):
        found = set()
        with DecodePool(7) as pool:
            for event in pool.decode(jobs([f"{name}-{i}" for i in range(60)])):
                if isinstance(event, Decoded):
                    found.add(event.values[0, 0, -1])
                    event.release()
                    time.sleep(pause_seconds)
        return len(found)

    assert processes("ok", 0.03) <= 4
    assert processes("slow", 0.0) > 4


def test_prepare_may_change_between_runs_of_one_pool():
    with DecodePool(1) as pool:
        first, _ = decode(pool, jobs(["ok-1"], AddPid(0.25)))
        second, _ = decode(pool, jobs(["ok-1"], AddPid(0.75)))
    assert first[0][0, 0, 0] == 1.25 and second[0][0, 0, 0] == 1.75
    assert first[0][0, 0, -1] == second[0][0, 0, -1]  # the same process served both


def test_frames_of_any_size_pass_and_empty_ones_too():
    with DecodePool(1) as pool:
        for frames in (1, 60_000, 2, 0):
            values, _ = decode(pool, jobs(["ok-7"], options={"frames": frames}))
            assert values[0].shape == (frames, 4, 6) and (values[0][..., 0] == 7.5).all()


def test_held_frames_press_back_on_decoding():
    pulled = []

    def source():
        for job in jobs([f"ok-{i}" for i in range(100)]):
            pulled.append(job.index)
            yield job

    with DecodePool(1, slots=3) as pool:
        events = pool.decode(source())
        held = [event for event in (next(events) for _ in range(12)) if event]
        assert len(held) == 3 and len(pulled) == 3  # none released: no fourth job was even asked for
        held[0].release()
        while len(pulled) < 4:
            next(events)


def test_a_views_window_is_relative_to_the_clips_span():
    with DecodePool(1) as pool:
        spans = [
            decode(pool, jobs(["ok-0"], AddPid(0), window=(0.25, 0.75), **span))[0][0][0, 0, :2].tolist()
            for span in ({}, {"start_seconds": 4.0, "end_seconds": 6.0}, {"start_seconds": 4.0})
        ]
    assert spans == [[2.0, 6.0], [4.5, 5.5], [5.0, 7.0]]


def test_workers_that_cannot_start_are_one_clear_error(monkeypatch):
    """A prepare whose module only the parent has: the child dies before it could read anything."""
    module = types.ModuleType("only_in_the_parent")
    module.Prepare = type("Prepare", (), {"__module__": "only_in_the_parent"})
    monkeypatch.setitem(sys.modules, "only_in_the_parent", module)
    with DecodePool(1) as pool:
        with pytest.raises(WorkerStartError, match=r"ModuleNotFoundError.*only_in_the_parent"):
            decode(pool, jobs(["ok-0"], module.Prepare()))
        assert not decode(pool, jobs(["ok-0"]))[1]


def test_stopping_early_ends_the_workers():
    pool = DecodePool(2, timeout_seconds=60)
    events = pool.decode(jobs(["ok-0", *[f"hang-{i}" for i in range(1, 8)]]))
    first = next(event for event in events if event)
    pid = int(first.values[0, 0, -1])
    events.close()
    assert not alive(pid)
    with pool:
        assert not decode(pool, jobs(["ok-0"]))[1]  # and the pool can be used again


def test_workers_die_with_their_parent_even_inside_a_native_call(tmp_path):
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from test_extract_workers import AddPid, jobs
from extract.workers import DecodePool
pool = DecodePool(1)
events = pool.decode(jobs(["ok-0", "hang-1"]))
print(int(next(e for e in events if e).values[0, 0, -1]), flush=True)
for event in events: pass
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.3)  # let it enter the hang
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
