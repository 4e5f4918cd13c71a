"""The bytes of a segment: one regular block that is at the same time a legal sharded Zarr v3 array.

``c/0/0/0`` is one shard: chunk 0, its crc32c, chunk 1, its crc32c, ..., then the shard index (offset and
length of every chunk) and the index's crc32c. All chunks have equal length and lie in order without gaps, so
frame ``f`` starts at ``(f // inner_frames) * stride + (f % inner_frames) * frame_bytes``: a reader needs one
multiplication, no index and no decoder, while any Zarr v3 reader finds its way by ``zarr.json``.

Shapes: [frames, tokens, dim]. bfloat16 is stored as its bits in uint16 (Zarr names no bfloat16) with the
attribute ``logical_dtype``.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from store.errors import FrameBankError

FORMAT = 1  # version of what we put into zarr.json's attributes and the manifest
SHARD = Path("c/0/0/0")
METADATA = "zarr.json"
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # two uint64 per chunk: offset, length
TARGET_CHUNK_BYTES = 128 << 10  # inner chunks of 64-400 KB serve our reader and tensorstore alike


@dataclass(frozen=True)
class StoredType:
    """How a logical dtype lies on disk: Zarr's name, numpy's dtype, padding, exponent."""

    zarr: str
    numpy: str
    fill_value: Any
    fill_bits: int
    exponent_bits: int  # all set means NaN or infinity


DTYPES = {
    "float16": StoredType("float16", "<f2", "NaN", 0x7E00, 0x7C00),
    "bfloat16": StoredType("uint16", "<u2", 0x7FC0, 0x7FC0, 0x7F80),
}


class SegmentError(FrameBankError, OSError):
    """A segment that cannot be trusted; the message starts with its path."""


class CorruptError(SegmentError):
    """Bytes of a segment differ from their checksum; the data were not returned."""


def crc32c(buffer: Any) -> int:
    """Castagnoli CRC of a bytes-like object or a C-contiguous numpy array (RFC 3720)."""
    return google_crc32c.value(buffer)


def stored_type(dtype: str, where: str) -> StoredType:
    """The table's row of ``dtype``.

    Raises:
        SegmentError: For a dtype that segments do not hold.
    """
    if dtype not in DTYPES:
        raise SegmentError(f"{where}: features of dtype {dtype!r}; segments hold {' or '.join(DTYPES)}")
    return DTYPES[dtype]


def choose_inner_frames(frame_bytes: int) -> int:
    """Frames of an inner chunk: the power of two that brings it nearest to 128 KB (64 frames at 1 x 768)."""
    return 2 ** max(0, round(math.log2(TARGET_CHUNK_BYTES / frame_bytes)))


@dataclass(frozen=True)
class Layout:
    """Geometry of one segment; every other number follows from these five.

    Attributes:
        frames: Rows of the array, over all clips.
        tokens: N of each frame.
        dim: D of each token.
        dtype: ``float16`` or ``bfloat16``.
        inner_frames: Frames of one inner chunk; the last chunk is padded with NaN.
    """

    frames: int
    tokens: int
    dim: int
    dtype: str
    inner_frames: int

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype of stored values: float16, or uint16 that holds bfloat16 bits."""
        return np.dtype(DTYPES[self.dtype].numpy)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.tokens * self.dim * self.numpy_dtype.itemsize

    @property
    def inner_bytes(self) -> int:
        """Bytes of one inner chunk without its crc."""
        return self.inner_frames * self.frame_bytes

    @property
    def stride(self) -> int:
        """Bytes from one inner chunk to the next."""
        return self.inner_bytes + CRC_BYTES

    @property
    def chunks(self) -> int:
        """Number of inner chunks."""
        return -(-self.frames // self.inner_frames)

    @property
    def index_bytes(self) -> int:
        """Bytes of the shard index with its crc."""
        return self.chunks * INDEX_ENTRY_BYTES + CRC_BYTES

    @property
    def file_bytes(self) -> int:
        """Bytes that the shard must have, to the byte."""
        return self.chunks * self.stride + self.index_bytes

    def index(self) -> bytes:
        """The only shard index that this geometry allows: ascending, contiguous, every chunk present."""
        entries = np.empty((self.chunks, 2), "<u8")
        entries[:, 0] = np.arange(self.chunks, dtype=np.uint64) * np.uint64(self.stride)
        entries[:, 1] = self.stride
        body = entries.tobytes()
        return body + crc32c(body).to_bytes(CRC_BYTES, "little")

    def metadata(self, attributes: Mapping[str, Any], manifest_crc32c: int) -> dict[str, Any]:
        """The ``zarr.json`` of this segment, which vouches for itself and for the manifest.

        Args:
            attributes: What the features are; goes under the key ``framebank``.
            manifest_crc32c: Of the bytes of ``manifest.parquet``.
        """
        stored = DTYPES[self.dtype]
        crc = {"name": "crc32c"}
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.inner_frames, self.tokens, self.dim],
            "codecs": [little, crc],
            "index_codecs": [little, crc],
            "index_location": "end",
        }
        shard_shape = [self.chunks * self.inner_frames, self.tokens, self.dim]
        described = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.frames, self.tokens, self.dim],
            "data_type": stored.zarr,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": stored.fill_value,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": ["frame", "token", "dim"],
            "attributes": {
                "framebank": dict(attributes),
                "logical_dtype": self.dtype,
                "manifest_crc32c": manifest_crc32c,
            },
        }
        described["attributes"]["crc32c"] = crc32c(json.dumps(described, sort_keys=True).encode())
        return described


def read_metadata(path: Path) -> tuple[Layout, dict[str, Any], int]:
    """``zarr.json`` of the segment at ``path`` -> geometry, ``framebank`` attributes, the manifest's crc32c.

    Raises:
        SegmentError: If there is none, it is not JSON, was altered, or describes another layout than ours.
    """
    where = path / METADATA
    try:
        metadata = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise SegmentError(f"{path}: segment missing (no {METADATA}); {_REEXTRACT}") from None
    except ValueError as error:
        raise SegmentError(f"{where}: not JSON ({error}); {_REEXTRACT}") from error
    except OSError as error:
        raise SegmentError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    layout, attributes, manifest_crc32c = _parse(metadata, where)
    if layout.metadata(attributes, manifest_crc32c) != metadata:
        raise SegmentError(f"{where}: altered, or not of the layout that FrameBank writes; {_REEXTRACT}")
    return layout, attributes, manifest_crc32c


def _parse(metadata: Any, where: Path) -> tuple[Layout, dict[str, Any], int]:
    try:
        frames, tokens, dim = (int(size) for size in metadata["shape"])
        inner = int(metadata["codecs"][0]["configuration"]["chunk_shape"][0])
        attributes = dict(metadata["attributes"]["framebank"])
        dtype = metadata["attributes"]["logical_dtype"]
        manifest_crc32c = int(metadata["attributes"]["manifest_crc32c"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SegmentError(f"{where}: lacks {error} of a FrameBank segment; {_REEXTRACT}") from error
    stored_type(dtype, str(where))
    if min(frames, tokens, dim, inner) < 1:
        raise SegmentError(
            f"{where}: shape {[frames, tokens, dim]} in chunks of {inner}; all must be positive"
        )
    return Layout(frames, tokens, dim, dtype, inner), attributes, manifest_crc32c


_REEXTRACT = "`python -m store check` names its clips, extracting again replaces them"


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values (float16, or uint16 bits of bfloat16) -> float32, exactly.

    Args:
        values: Any shape, as the readers return it.
        dtype: The field's logical dtype.
    """
    if stored_type(dtype, "to_float32").zarr == "float16":
        return values.astype(np.float32)
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
