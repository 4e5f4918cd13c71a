"""Readers hold a share of a lock on each field's folder, so that nothing they may read is removed."""

import time
from pathlib import Path

from store.locks import Lease, LeaseHeldError
from store.places import READERS_LOCK

TRIES = 500
PAUSE_SECONDS = 0.01  # removal holds the lock for moments only


class ReadersShare:
    """A reader's share of the lock; given up by ``release`` or when nobody refers to it any more."""

    def __init__(self, lease: Lease):
        self._lease = lease

    def release(self) -> None:
        """Give it up; further calls do nothing."""
        self._lease.release()

    def __del__(self) -> None:
        self.release()


def share(folder: Path) -> ReadersShare | None:
    """Take a share of the lock on a field's folder.

    Returns:
        The share; None where there is no folder, or a read-only bank has no lock file (then nothing is
        removed from it either).

    Raises:
        LeaseHeldError: If garbage collection holds the lock for seconds.
    """
    for _ in range(TRIES):
        try:
            return ReadersShare(Lease(folder / READERS_LOCK, shared=True))
        except LeaseHeldError:
            time.sleep(PAUSE_SECONDS)
        except FileNotFoundError:
            return None
    raise LeaseHeldError(f"{folder / READERS_LOCK}: garbage collection holds it for long; try again")


def alone(folder: Path) -> Lease | None:
    """The whole lock on a field's folder: nobody reads it, and who begins to sees the present catalog.

    Returns:
        The lease, or None if somebody reads the field, or the folder is gone.
    """
    try:
        return Lease(folder / READERS_LOCK)
    except (LeaseHeldError, FileNotFoundError):
        return None
