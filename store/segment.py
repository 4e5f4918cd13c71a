"""Writing a segment: frames stream in, a legal sharded Zarr v3 array with checksums stands there at the end.

Nothing under the final name exists before everything is on disk: data, index, ``zarr.json`` and manifest are
written and fsynced in ``<final>.partial-<pid>/``, which is then renamed. A kill leaves only that folder.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from store.durable import make_directories, sync_directory, sync_tree, write_all
from store.errors import FrameBankError
from store.layout import (
    CRC_BYTES,
    FORMAT,
    METADATA,
    SHARD,
    Layout,
    SegmentError,
    choose_inner_frames,
    crc32c,
    stored_type,
)
from store.locks import PARTIAL, Lease, writer_lease
from store.manifest import conform, manifest_problems, write_manifest
from store.spec import FieldSpec

WRITE_BYTES = (
    1 << 20
)  # large writes make large folios, which are read back up to 40 % faster than 100 KB ones
ULID_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class NonFiniteError(FrameBankError, ValueError):
    """NaN, infinity, or a value beyond the field's dtype: the clip must not enter a segment."""


class FieldShapeError(FrameBankError, ValueError):
    """Values of another shape or kind than the field declares."""


def new_segment_id() -> str:
    """A ULID: 26 characters, unique, and later ones sort later (to the millisecond)."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(ULID_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def encode(values: np.ndarray, field: FieldSpec, where: str) -> np.ndarray:
    """(T, N, D) floats -> (T, N, D) C-contiguous values as they are stored, rounded to nearest even.

    uint16 values are taken as the bits of a bfloat16 field.

    Raises:
        FieldShapeError: If the shape is not (T >= 1, field.tokens, field.dim) or the dtype is no float.
        NonFiniteError: If anything is NaN or infinite, before or after the cast.
    """
    stored = stored_type(field.dtype, where)
    values = np.asarray(values)
    if values.ndim != 3 or values.shape[1:] != (field.tokens, field.dim) or not len(values):
        expected = f"(T >= 1, {field.tokens}, {field.dim})"
        raise FieldShapeError(f"{where}: field {field.name!r} got shape {values.shape}; expected {expected}")
    bits = values if field.dtype == "bfloat16" and values.dtype == np.uint16 else None
    if bits is None and values.dtype.kind != "f":
        raise FieldShapeError(
            f"{where}: field {field.name!r} got dtype {values.dtype}; expected a float dtype"
        )
    if bits is None:
        bits = _to_bfloat16(values) if field.dtype == "bfloat16" else _to_float16(values)
    bits = np.ascontiguousarray(bits)
    exponent = np.bitwise_and(bits.view(np.uint16), np.uint16(stored.exponent_bits))
    if exponent.max() == stored.exponent_bits:
        raise NonFiniteError(_non_finite_message(values, exponent == stored.exponent_bits, field, where))
    return bits.view(stored.numpy)


def _to_float16(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):  # overflow becomes infinity, which the caller finds
        return values.astype(np.float16)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Round to nearest even. uint32 cannot wrap for finite input; NaN payloads might, so they are kept aside.
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    special = (bits & np.uint32(0x7F800000)) == 0x7F800000
    return np.where(special, np.uint32(0x7FC0), rounded).astype(np.uint16)


def _non_finite_message(values: np.ndarray, bad: np.ndarray, field: FieldSpec, where: str) -> str:
    worst = values.reshape(-1)[np.flatnonzero(bad)[0]]
    return (
        f"{where}: field {field.name!r} has {int(bad.sum())} values outside {field.dtype}, "
        f"the first {worst}; only finite values can be stored"
    )


@dataclass(frozen=True)
class ClosedSegment:
    """A finished segment that no catalog row names yet; its lease keeps garbage collection off.

    Attributes:
        path: Its folder; the folder's name is the segment id.
        frames: Rows of the array.
        nbytes: Size of the shard file.
    """

    path: Path
    frames: int
    nbytes: int
    lease: Lease

    @property
    def segment_id(self) -> str:
        """The folder's name."""
        return self.path.name

    def release(self) -> None:
        """Call once the catalog's transaction has committed."""
        self.lease.release(unlink=True)


class SegmentWriter:
    """One segment being written; ``close`` publishes it, ``abort`` (or an error) leaves nothing.

    Args:
        final: The folder that ``close`` creates; its name is the segment id.
        field: Name, tokens, dim and dtype of the rows.
        attributes: JSON-able description (dataset, modality, spec, ...) for ``zarr.json`` and the manifest.
        inner_frames: Frames of an inner chunk; chosen by ``choose_inner_frames`` if None.

    Raises:
        SegmentError: If the disk is full or not writable.
    """

    def __init__(
        self,
        final: Path,
        field: FieldSpec,
        attributes: Mapping[str, Any],
        inner_frames: int | None = None,
    ):
        frame_bytes = field.tokens * field.dim * np.dtype(stored_type(field.dtype, str(final)).numpy).itemsize
        self.final = Path(final)
        self.field = field
        described = {"name": field.name, "tokens": field.tokens, "dim": field.dim, "dtype": field.dtype}
        self.attributes = {**attributes, "field": described, "format": FORMAT}
        self.partial = self.final.with_name(f"{self.final.name}{PARTIAL}{os.getpid()}")
        self.frames = 0
        self._frame_bytes = frame_bytes
        self._inner_bytes = (inner_frames or choose_inner_frames(frame_bytes)) * frame_bytes
        stride = self._inner_bytes + CRC_BYTES
        self._staged = np.empty(WRITE_BYTES + stride, np.uint8)
        self._ready = self._used = 0  # bytes of finished chunks staged, and of the one that follows
        self._open()

    def _open(self) -> None:
        try:
            make_directories(self.final.parent)
            (self.partial / SHARD).parent.mkdir(parents=True)
            self.lease = writer_lease(self.partial)
            self._fd = os.open(
                self.partial / SHARD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
            )
        except OSError as error:
            self._fd = -1
            shutil.rmtree(self.partial, ignore_errors=True)
            raise self._failure(error) from error

    @property
    def nbytes(self) -> int:
        """Bytes of the values appended so far."""
        return self.frames * self._frame_bytes

    def append(self, values: np.ndarray) -> int:
        """Add one clip's frames.

        Args:
            values: (T, tokens, dim), any float dtype.

        Returns:
            The index of its first frame.

        Raises:
            NonFiniteError, FieldShapeError: Before anything is written; the writer stays usable.
            SegmentError: Disk full or broken; the segment is gone.
        """
        self._require_open()
        stored = encode(values, self.field, str(self.final))
        first = self.frames
        self._stage(stored.reshape(-1).view(np.uint8))
        self.frames += len(stored)
        return first

    def _stage(self, content: np.ndarray) -> None:
        """Distribute bytes over inner chunks; every full one gets its checksum."""
        start = 0
        while start < len(content):
            taken = min(len(content) - start, self._inner_bytes - self._used)
            at = self._ready + self._used
            self._staged[at : at + taken] = content[start : start + taken]
            start, self._used = start + taken, self._used + taken
            if self._used == self._inner_bytes:
                self._seal(self._inner_bytes)

    def _seal(self, inner_bytes: int) -> None:
        """Put the checksum behind a chunk while it is in the processor's cache; write whole blocks."""
        end = self._ready + inner_bytes
        crc = crc32c(self._staged[self._ready : end]).to_bytes(CRC_BYTES, "little")
        self._staged[end : end + CRC_BYTES] = np.frombuffer(crc, np.uint8)
        self._ready, self._used = end + CRC_BYTES, 0
        if whole := self._ready // WRITE_BYTES * WRITE_BYTES:
            self._write(self._staged[:whole].data)
            self._ready -= whole
            self._staged[: self._ready] = self._staged[whole : whole + self._ready]

    def _write(self, content: memoryview) -> None:
        try:
            write_all(self._fd, content)
        except OSError as error:
            self.abort()
            raise self._failure(error) from error

    def _require_open(self) -> None:
        if self._fd < 0:
            raise SegmentError(f"{self.final}: this segment is closed; open another writer")

    def close(self, manifest: pa.Table) -> ClosedSegment:
        """Finish, fsync and publish the segment.

        Args:
            manifest: Columns of ``store.manifest.SCHEMA``, one row per ``append``, in their order.

        Raises:
            SegmentError: If the manifest contradicts the frames, or the disk is full. Nothing is left then.
        """
        self._require_open()
        try:
            manifest = conform(manifest)
            if problems := manifest_problems(manifest, self.frames) if self.frames else ["no frames"]:
                raise SegmentError(f"{self.final}: cannot close: {'; '.join(problems)}")
            layout = self._finish_shard()
            self._publish(layout, manifest)
        except OSError as error:
            self.abort()
            raise (error if isinstance(error, SegmentError) else self._failure(error)) from error
        except BaseException:
            self.abort()
            raise
        return ClosedSegment(self.final, self.frames, layout.file_bytes, self.lease)

    def _finish_shard(self) -> Layout:
        if self.nbytes < self._inner_bytes:  # one chunk only: it need not be longer than its content
            self._inner_bytes = self.nbytes
            self._seal(self.nbytes)
        elif self._used:
            at = self._ready
            padding = self._staged[at + self._used : at + self._inner_bytes]
            padding.view(np.uint16)[:] = stored_type(self.field.dtype, "").fill_bits
            self._seal(self._inner_bytes)
        self._write(self._staged[: self._ready].data)
        inner_frames = self._inner_bytes // self._frame_bytes
        layout = Layout(self.frames, self.field.tokens, self.field.dim, self.field.dtype, inner_frames)
        self._write(memoryview(layout.index()))
        os.close(self._fd)
        self._fd = -1
        return layout

    def _publish(self, layout: Layout, manifest: pa.Table) -> None:
        manifest_crc32c = write_manifest(self.partial, manifest, self.attributes)
        metadata = json.dumps(layout.metadata(self.attributes, manifest_crc32c), indent=1)
        (self.partial / METADATA).write_text(metadata)
        sync_tree(self.partial)
        if self.final.exists():  # rename would replace an empty folder silently
            raise SegmentError(f"{self.final}: exists already; segment ids must be new")
        self.partial.rename(self.final)
        self.lease.path = self.final / self.lease.path.name
        sync_directory(self.final.parent)

    def abort(self) -> None:
        """Drop everything; safe to call at any time before ``close`` has returned."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.lease.release()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _failure(self, error: OSError) -> SegmentError:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the bank's folder"
        failure = SegmentError(f"{self.final}: cannot write segment ({error.strerror or error}); {hint}")
        failure.errno = error.errno
        return failure
