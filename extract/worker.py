"""The child side of decoding: reads and prepares one clip after another, and may be killed at any moment.

Runs in its own process with nothing but a socket, a few shared buffers and its stderr. It holds no weights,
no catalog and no open output file, so killing it loses exactly the clip that it was working on.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.memory import keep_freed_memory
from extract.shared_buffer import SharedBuffer
from extract.steps import prepared_times

if TYPE_CHECKING:
    from encoders.protocols import CropBox, Prepare
    from extract.readers import Frames
    from extract.sampling import Sampling

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that the kernel sends us when our parent dies


@dataclass(frozen=True)
class Medium:
    """One file of a clip: its modality, how it is read, and the clip's span in it."""

    modality: str
    path: str
    reader: str
    options: dict[str, Any] = field(default_factory=dict)
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class DecodeJob:
    """Everything a worker must know to turn one clip's media into prepared frames.

    ``window`` is a view's relative time window (0..1 of the clip's span). ``prepare`` None stands for the one
    sent with an earlier job (the pool sends it once per worker). ``thumbnail`` is the base path of the clip's
    thumbnail files, or None for none. ``beside`` are the further files of a modality like ``rgb+depth``.
    """

    index: int
    path: str
    reader: str
    modality: str
    sampling: "Sampling"
    prepare: "Prepare | None"
    options: dict[str, Any] = field(default_factory=dict)
    start_seconds: float | None = None
    end_seconds: float | None = None
    crop: "CropBox | None" = None
    window: tuple[float, float] | None = None
    thumbnail: Path | None = None
    beside: tuple[Medium, ...] = ()

    def media(self) -> tuple[Medium, ...]:
        """The files to read, in the order of the modality's parts."""
        first = self.modality.split("+")[0]
        span = self.start_seconds, self.end_seconds
        return (Medium(first, self.path, self.reader, self.options, *span), *self.beside)


PICTURES = ("rgb", "ir", "depth")  # modalities whose frames have a height and a width


@dataclass(frozen=True)
class Report:
    """What the worker answers besides the frames themselves, which lie in the slot's shared buffer."""

    shape: tuple[int, ...]
    dtype: str
    times_seconds: np.ndarray
    read_seconds: float
    prepare_seconds: float
    cpu_seconds: float
    declared_frames: int
    decoded_frames: int
    fps: float | None
    size: tuple[int, int] | None  # height, width in pixels
    note: str | None = None


def serve(socket_fd: int, slot_fds: list[int], parent: int) -> None:
    """Answer jobs until the socket closes. Messages: ``stage``, ``done``, ``failed`` with the index."""
    _die_with(parent)
    connection = Connection(socket_fd)
    slots = [SharedBuffer(fd) for fd in slot_fds]
    prepare: Prepare | None = None
    while True:
        try:
            job, slot = connection.recv()
        except EOFError:
            return
        _forget_messages()
        prepare = job.prepare or prepare
        stages = _Stages(connection, job.index)
        try:
            report = _answer(job, prepare, slots[slot], stages)
        except Exception as error:  # noqa: BLE001 - it goes to the failures ledger, with its type
            connection.send(("failed", job.index, stages.current, f"{type(error).__name__}: {error}"))
        else:
            connection.send(("done", job.index, report))


class _Stages:
    """Tells the parent which stage begins, so that a crash or hang is recorded under the right one."""

    def __init__(self, connection: Connection, index: int):
        self._connection, self._index, self.current = connection, index, "start"

    def enter(self, stage: str) -> float:
        """Announce the stage; returns the clock at its start."""
        self.current = stage
        self._connection.send(("stage", self._index, stage))
        return time.perf_counter()


def _answer(job: DecodeJob, prepare: Any, slot: SharedBuffer, stages: _Stages) -> Report:
    """Read, prepare and hand over one clip."""
    stages.enter("start")
    cpu_start = time.process_time()
    for medium in job.media():
        _reader(medium.reader)  # imports here, so that a missing decoder is this clip's failure
    read_start = stages.enter("read")
    streams = _read(job)
    frames = next(iter(streams.values()))
    prepare_start = stages.enter("prepare")
    given = {name: one.values for name, one in streams.items()} if job.beside else frames.values
    values = prepare(given, job.modality, job.crop, frames.times_seconds)
    values = np.ascontiguousarray(values)
    slot.write(values)
    prepare_end = time.perf_counter()
    note = _thumbnails(job, frames)
    return Report(
        values.shape,
        values.dtype.str,
        prepared_times(frames.times_seconds, len(values), len(frames.values) / (frames.fps or 1.0)),
        prepare_start - read_start,
        prepare_end - prepare_start,
        time.process_time() - cpu_start,
        sum(one.declared_frames for one in streams.values()),
        sum(one.decoded_frames for one in streams.values()),
        frames.fps,
        tuple(frames.values.shape[1:3]) if job.modality.split(".")[0] in PICTURES else None,
        note,
    )


def _read(job: DecodeJob) -> dict[str, "Frames"]:
    """Modality (without a view's suffix) -> frames; of several files, at the same times of the clip."""
    streams = {}
    for medium, (start, end) in zip(job.media(), _spans(job), strict=True):
        reader = _reader(medium.reader)
        frames = reader.read(medium.path, job.sampling, start, end, **medium.options)
        streams[medium.modality.split(".")[0]] = frames
    counts = [len(one.values) for one in streams.values()]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{job.modality}: {' and '.join(map(str, counts))} frames; every stream must give equally many: "
            "sample a count (--frames 12) or a rate (--fps 4)"
        )
    return streams


@lru_cache(maxsize=32)
def _reader(name: str) -> Any:
    """A reader of the table, or any other by ``module:Class``."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        return getattr(importlib.import_module(module), attribute)()
    from extract.readers import load_reader

    return load_reader(name)


def _forget_messages() -> None:
    """Empty stderr (a file that the parent reads when we die): native messages are kept per clip."""
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)


def _spans(job: DecodeJob) -> list[tuple[float | None, float | None]]:
    """The clip's span in each of its files, narrowed to the view's relative window.

    An end that nobody told is asked of the file. Several files are read over the time that all of them have,
    so that frame k of one shows the same moment as frame k of the other, whatever their rates.
    """
    media = job.media()
    window = job.window or (0.0, 1.0)
    if len(media) == 1 and window == (0.0, 1.0):
        return [(job.start_seconds, job.end_seconds)]
    starts = [one.start_seconds or 0.0 for one in media]
    ends = [_end(one, check=len(media) > 1) for one in media]
    length = min(end - start for start, end in zip(starts, ends, strict=True))
    return [(start + window[0] * length, start + window[1] * length) for start in starts]


def _end(medium: Medium, check: bool) -> float:
    """Where the clip ends in its file: as told, or (if told nothing, or to check it) where the file does."""
    told = medium.end_seconds
    if told is not None and not check:
        return told
    duration: float = _reader(medium.reader).probe(medium.path, **medium.options).duration_seconds
    return duration if told is None else min(told, duration)


def _thumbnails(job: DecodeJob, frames: Any) -> str | None:
    """Write the clip's thumbnail and strip from the frames at hand; a failure is a note, never fatal."""
    if job.thumbnail is None:
        return None
    from extract.thumbnails import write_thumbnails

    try:
        write_thumbnails(job.thumbnail, job.modality, frames.values, job.path)
    except Exception as error:  # noqa: BLE001 - a picture for reports must not cost a feature
        return f"no thumbnail: {type(error).__name__}: {error}"
    return None


def _die_with(parent: int) -> None:
    """Make the kernel kill this process when its parent goes, even inside a native call that hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the request above took effect
        os._exit(1)


def main() -> None:
    """Entry point of the child: argv[1] is JSON {socket, slots, parent}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping is the parent's decision
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash costs a clip, not gigabytes of core dump
    faulthandler.enable()
    keep_freed_memory()
    given = json.loads(sys.argv[1])
    serve(given["socket"], given["slots"], given["parent"])
