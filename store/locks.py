"""Leases: file locks that tell a living writer or reader from a dead one, whatever way it died.

A lease is a ``flock`` on a file. The kernel drops it when its process ends, so a lock file without a lock is
what a dead process left. A writer holds one inside its segment's folder (the lock survives the rename of the
folder) until its rows are committed. To collect garbage safely, in this order: list the folders, keep those
whose ``writer_lives``, and only then read the committed rows; what is neither alive nor committed is garbage.
"""

import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from store.errors import FrameBankError

WRITER_LOCK = "writer.lock"
PARTIAL = ".partial-"  # <name>.partial-<pid>: a folder that is being written
NEWBORN_SECONDS = 60.0  # a .partial folder this young may not have its lock file yet


class LeaseHeldError(FrameBankError, BlockingIOError):
    """Somebody else holds the lease; the message names the pid."""


class Lease:
    """A lock on ``path``, held from construction until ``release`` (or the end of the process).

    Children made by a bare ``fork`` share it; spawned ones do not.

    Args:
        path: The lock file; made if absent. An exclusive one holds the owner's pid, for messages.
        shared: Whether other shared leases may coexist (readers); else only one lease may exist.
        wait_seconds: How long to wait for an incompatible lease to go (``is_held`` takes one for an instant).

    Raises:
        LeaseHeldError: If an incompatible lease still exists then.
    """

    def __init__(self, path: Path, shared: bool = False, wait_seconds: float = 1.0):
        self.path = path
        self._fd = _open(path, shared)
        if not _lock(self._fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_seconds):
            os.close(self._fd)
            raise LeaseHeldError(f"{path}: held by {holder(path)}; wait for it to end")
        if not shared:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self, unlink: bool = False) -> None:
        """Give the lease up, once; ``unlink`` removes the lock file too (``self.path`` must be current)."""
        if self._fd < 0:
            return
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _open(path: Path, shared: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        # flock needs no write permission: readers of a read-only bank can still share an existing file.
        if not shared or error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(fd: int, kind: int, wait_seconds: float) -> bool:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)


def writer_lease(directory: Path) -> Lease:
    """An exclusive lease on a new ``directory``; its lock file appears already locked."""
    newborn = directory / f".{WRITER_LOCK}"
    lease = Lease(newborn)
    newborn.rename(directory / WRITER_LOCK)
    lease.path = directory / WRITER_LOCK
    return lease


def is_held(path: Path) -> bool:
    """Whether any process (this one included) holds a lease on ``path``; False if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def holder(path: Path) -> str:
    """``pid 1234`` of the last exclusive holder of ``path``, for messages."""
    try:
        return f"pid {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def writer_lives(directory: Path) -> bool:
    """Whether the segment folder (partial or finished) still belongs to a running writer."""
    if (directory / WRITER_LOCK).exists():
        return is_held(directory / WRITER_LOCK)
    if PARTIAL not in directory.name:
        return False
    try:
        return time.time() - directory.stat().st_mtime < NEWBORN_SECONDS
    except FileNotFoundError:
        return False
