"""The parent's end of one decode process: start it, talk to it, time it, kill it, read its last words."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from extract.shared_buffer import SharedBuffer, anonymous_file
from extract.worker import DecodeJob

_START_SECONDS = 120.0  # for a fresh interpreter to import what the first clip needs, on a loaded machine
_STARTING = (None, "start")  # stages before the media file is touched
_LAST_WORDS_BYTES = 64 << 10  # of stderr that are read when a worker dies
# The child gets our import path whole (tests and notebooks extend it), and never our __main__.
_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from extract.worker import main; main()"
# One thread each: the pool has a process per core already.
_THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class WorkerProcess:
    """One worker and the jobs it holds, oldest first; the oldest is the one in work."""

    def __init__(self, slots: int):
        self.buffers = [SharedBuffer() for _ in range(slots)]
        self.free = list(range(slots))
        self.queue: deque[tuple[DecodeJob, int]] = deque()
        self.given = 0
        self.retiring = False
        self.stage: str | None = None  # of the oldest job; None: not begun
        self._clock = time.monotonic()
        self._prepare: Any = None
        self._stderr = anonymous_file("framebank-stderr")
        self.connection, self._process = self._start()

    def _start(self) -> tuple[Connection, subprocess.Popen]:
        ours, theirs = socket.socketpair()
        slot_fds = [buffer.fd for buffer in self.buffers]
        given = {"socket": theirs.fileno(), "slots": slot_fds, "parent": os.getpid()}
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(given), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,  # a library's chatter must not mix with our results
            stderr=self._stderr,
            pass_fds=[theirs.fileno(), *slot_fds],
            env={**os.environ, **_THREADS},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent to judge
        )
        theirs.close()
        return Connection(ours.detach()), process

    def give(self, job: DecodeJob) -> None:
        """Queue a job at the worker, with a free slot for its frames."""
        slot = self.free.pop()
        same = job.prepare is self._prepare
        self._prepare = job.prepare
        if not self.queue:
            self._clock = time.monotonic()
        self.queue.append((job, slot))
        self.given += 1
        # If it died, that is found, and charged rightly, when its socket is next read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((replace(job, prepare=None) if same else job, slot))

    def enter(self, stage: str) -> None:
        """The worker says that its oldest job entered this stage; its clock starts once imports are done."""
        if self.stage in _STARTING:
            self._clock = time.monotonic()
        self.stage = stage

    def finish(self) -> tuple[DecodeJob, int]:
        """Take the oldest job off the queue; returns it with its slot."""
        self.stage, self._clock = None, time.monotonic()
        return self.queue.popleft()

    @property
    def proven(self) -> bool:
        """Whether it has answered a job."""
        return self.given > len(self.queue)

    def has_room(self, depth: int) -> bool:
        """Whether it can take another job with no more than ``depth`` waiting."""
        return bool(self.free) and len(self.queue) < depth

    def waited(self) -> float:
        """Seconds since the oldest job began (since it was given, if it hasn't begun)."""
        return time.monotonic() - self._clock

    def overrun(self, timeout_seconds: float) -> bool:
        """Whether the oldest job has been in work for too long."""
        limit = max(timeout_seconds, _START_SECONDS) if self.stage in _STARTING else timeout_seconds
        return bool(self.queue) and self.waited() > limit

    def exit_code(self) -> int | None:
        """The exit status (negative: the signal), or None if it doesn't end within two seconds."""
        try:
            return self._process.wait(2)
        except subprocess.TimeoutExpired:
            return None

    def epitaph(self) -> str:
        """How it ended and the last line that says why (a native traceback or error message)."""
        code = self.exit_code()
        how = (
            f"killed by {signal.Signals(-code).name}"
            if code is not None and code < 0
            else f"exit code {code}"
        )
        size = os.fstat(self._stderr).st_size
        start = max(0, size - _LAST_WORDS_BYTES)
        lines = os.pread(self._stderr, _LAST_WORDS_BYTES, start).decode(errors="replace").splitlines()
        # faulthandler's first frame is the call that crashed; a Python traceback's last line is the error.
        fatal = any(line.startswith("Fatal Python error") for line in lines)
        frames = [line.strip() for line in lines if fatal and line.startswith("  File ")]
        words = frames[0] if frames else next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}{': ' if words else ''}{words[:300]}"

    def kill(self) -> None:
        """End it now; a process that even SIGKILL cannot end (a dead network file system) is left behind."""
        self._process.kill()
        self.exit_code()
        self.connection.close()
        os.close(self._stderr)
        for buffer in self.buffers:
            buffer.close()
