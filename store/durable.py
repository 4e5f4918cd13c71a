"""Files and folders that survive a power cut, and writes that notice a full disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.locks import PARTIAL


def write_all(fd: int, content: memoryview) -> None:
    """Write every byte of ``content``; the kernel may take any number at a time, as before a full disk."""
    while len(content):
        content = content[os.write(fd, content) :]


def sync_tree(root: Path) -> None:
    """Flush all files below ``root`` to disk, then all folders that hold them, ``root`` included.

    To be called once after everything is written: a journal commit (several ms) then serves them all.
    """
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(Path(folder, name), 0)
    for folder, _, _ in os.walk(root, topdown=False):
        sync_directory(Path(folder))


def sync_directory(path: Path) -> None:
    """Flush a folder to disk, so that names created or renamed in it survive a power cut."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: Path) -> None:
    """``mkdir -p`` whose new folders survive a power cut."""
    missing = [path, *path.parents]
    missing = missing[: next((i for i, parent in enumerate(missing) if parent.is_dir()), len(missing))]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the old one's place; it goes away if that fails."""
    make_directories(folder.parent)
    for left in folder.parent.glob(f"{folder.name}{PARTIAL}*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():  # of a process that was killed
            shutil.rmtree(left)
    partial = folder.with_name(f"{folder.name}{PARTIAL}{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        if folder.exists():
            old = folder.with_name(f"{partial.name}-old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
        sync_directory(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
