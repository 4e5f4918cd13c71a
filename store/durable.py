"""Files and folders that survive a power cut, and writes that notice a full disk."""

import os
from pathlib import Path

MAX_BUFFERS = 1024  # IOV_MAX of Linux and macOS


def write_all(fd: int, buffers: list[memoryview]) -> None:
    """Write every byte of ``buffers``, gathering up to ``MAX_BUFFERS`` of them per system call."""
    at = 0
    while at < len(buffers):
        written = os.writev(fd, buffers[at : at + MAX_BUFFERS])
        while at < len(buffers) and written >= len(buffers[at]):
            written -= len(buffers[at])
            at += 1
        if written:  # a short write, as before a full disk: go on inside the buffer
            buffers[at] = buffers[at][written:]


def write_durably(path: Path, content: bytes) -> None:
    """Create ``path`` with ``content`` and flush it to disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a folder to disk, so that names created or renamed in it survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
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
