"""A piece of anonymous memory that two processes map: prepared frames move without a copy through a pipe."""

import mmap
import os
import tempfile

import numpy as np

_GRAIN_BYTES = 1 << 20  # buffers grow in whole MiB, so that clips of similar size need no new mapping


class SharedBuffer:
    """One anonymous file of memory, grown on demand and reused clip after clip.

    The writer and the reader each hold one object over the same file descriptor; who may touch it when is
    settled between them by messages (a slot is written only by the job that was given it).
    """

    def __init__(self, fd: int | None = None):
        self.fd = anonymous_file("framebank-frames") if fd is None else fd
        self._map: mmap.mmap | None = None
        self._mapped_bytes = 0

    def write(self, values: np.ndarray) -> None:
        """Copy an array to the buffer's start, growing it when it is too small."""
        if values.nbytes > self._mapped_bytes:
            capacity_bytes = -(-values.nbytes // _GRAIN_BYTES) * _GRAIN_BYTES
            os.ftruncate(self.fd, capacity_bytes)
            self._remap(capacity_bytes)
        np.copyto(self.view(values.shape, values.dtype), values)

    def view(self, shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
        """The array of this shape and dtype at the buffer's start, without a copy.

        Raises:
            ValueError: If the buffer is smaller than that.
        """
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if count * dtype.itemsize > self._mapped_bytes:
            self._remap(os.fstat(self.fd).st_size)
        if count == 0:
            return np.empty(shape, dtype)
        if self._map is None or count * dtype.itemsize > self._mapped_bytes:
            raise ValueError(f"shared buffer: {shape} {dtype} does not fit {self._mapped_bytes} bytes")
        return np.frombuffer(self._map, dtype, count).reshape(shape)

    def _remap(self, capacity_bytes: int) -> None:
        # The old mapping is dropped, never closed: arrays may still look into it.
        self._map = mmap.mmap(self.fd, capacity_bytes) if capacity_bytes else None
        self._mapped_bytes = capacity_bytes

    def close(self) -> None:
        """Give up the file; memory goes when the last mapping and descriptor of either process are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def anonymous_file(name: str) -> int:
    """A file descriptor of a file without a name on disk: memory where the system offers it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())
