"""A selection: features of some clips, in a fixed order, read without touching the catalog."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from store.errors import FrameBankError
from store.reader import SegmentPool
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXTS

if TYPE_CHECKING:
    from pathlib import Path

    from store.bank import Bank
    from store.readers import ReadersShare


class RowError(FrameBankError, IndexError):
    """Rows were asked for that the selection does not have."""


class Selection:
    """Features of one feature set, field and view. Made by ``Bank.select``.

    Attributes:
        dataset: Name; ``_texts`` for texts.
        modality: Name.
        feature_set: ``<encoder>@<fingerprint>``.
        spec: Its configuration.
        field: Name, tokens, dim and dtype.
        view: Number of the view.
        items: object (n,): clip ids or text ids.
        labels: int64 (n,): -1 where there is none.
        label_names: label -> name, for all classes of the dataset.
        lengths: int64 (n,): frames of each row.
        segments: Ids of the segments that the rows lie in.
    """

    def __init__(
        self,
        bank: "Bank",
        dataset: str,
        modality: str,
        spec: FeatureSpec,
        field: FieldSpec,
        view: int,
        protocol: str | None,
        rows: pa.Table,
        segments: dict[str, "Path"],
        label_names: dict[int, str],
        reading: "ReadersShare | None",
    ):
        self.dataset, self.modality, self.spec, self.field = dataset, modality, spec, field
        self.view, self.protocol = view, protocol
        self.label_names = label_names
        self.items: np.ndarray = rows["item_id"].to_numpy()
        self.labels: np.ndarray = rows["label"].to_numpy()
        self.lengths: np.ndarray = rows["frames"].to_numpy().astype(np.int64)
        self.segments = list(segments)
        self._segment: np.ndarray = rows["segment"].to_numpy().astype(np.int64)
        self._first: np.ndarray = rows["first_frame"].to_numpy()
        self._bank = bank
        self._reading = reading  # keeps garbage collection off the segments as long as this object lives
        self._pool = SegmentPool(list(segments.values()), field)
        self._times: dict[int, dict[int, np.ndarray]] = {}

    @property
    def feature_set(self) -> str:
        """``<encoder>@<fingerprint>``."""
        return self.spec.name

    @property
    def space_digest(self) -> str:
        """Which vector space the features live in."""
        return self.spec.space_digest

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(self.lengths.sum()) * self.field.tokens * self.field.dim * 2

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        name = f"{self.dataset}/{self.modality}/{self.feature_set}/{self.field.name}"
        return f"<Selection {name}: {len(self)} items, {self.nbytes / 1e6:.1f} MB>"

    def read(self, rows: Any = None, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Copy some rows' features side by side: the fast path, one gather from the memory maps.

        Args:
            rows: Indices (B,), in any order, repeats allowed; a mask (n,), a slice, or None for all.
            out: Reused buffer (>= sum of lengths, tokens, dim) of the stored dtype.

        Returns:
            values (sum T, N, D) float16 (bfloat16: its bits in uint16) and offsets int64 (B + 1).

        Raises:
            SegmentError, CorruptError: For a damaged or missing segment; damaged values are never returned.
            RowError: For rows that are not there.
        """
        index = self.indices(rows)
        return self._pool.gather(self._segment[index], self._first[index], self.lengths[index], out)

    def prefetch(self, rows: Any) -> None:
        """Have the kernel read the next batch while this one is used; worth it for banks larger than RAM."""
        index = self.indices(rows)
        self._pool.prefetch(self._segment[index], self._first[index], self.lengths[index])

    def indices(self, rows: Any) -> np.ndarray:
        """Indices, mask, slice or None -> int64 indices, checked."""
        if rows is None:
            return np.arange(len(self))
        if isinstance(rows, slice):
            return np.arange(len(self))[rows]
        index = np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise RowError(f"{self!r}: mask of shape {index.shape}; ({len(self)},) is needed")
            return np.flatnonzero(index)
        index = np.atleast_1d(index.astype(np.int64, copy=False))
        if index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise RowError(f"{self!r}: rows {index.min()} to {index.max()}; there are {len(self)}")
        return np.where(index < 0, index + len(self), index)

    def times(self, rows: Any = None) -> list[np.ndarray]:
        """Seconds of each frame of each row: float32 (T,) arrays, from the segments' manifests."""
        index = self.indices(rows)
        for segment in np.unique(self._segment[index]).tolist():
            if segment not in self._times:
                manifest = self._pool.segment(segment).manifest()
                starts = manifest["first_frame"].to_pylist()
                chunks = manifest["times_seconds"].combine_chunks()
                flat, offsets = chunks.values.to_numpy(), chunks.offsets.to_numpy()
                pieces = (flat[a:b] for a, b in pairwise(offsets.tolist()))
                self._times[segment] = dict(zip(starts, pieces, strict=True))
        pairs = zip(self._segment[index].tolist(), self._first[index].tolist(), strict=True)
        return [self._times[segment][first] for segment, first in pairs]

    def materialise(self, reduce: str = "mean", path: "Path | None" = None) -> Any:
        """All rows as one array in memory (or in a new ``.npy`` file that is memory-mapped).

        Args:
            reduce: ``mean``: over frames and tokens; ``cls``: over frames, of token 0; ``resample:K``: K
                frames by linear interpolation in time; ``none``: the frames themselves.
            path: A file to write the array to instead of memory (not for ``none``).

        Returns:
            mean, cls: (n, D) float32. resample:K: (n, K, N, D) float16. none: (values, offsets) as ``read``.

        Raises:
            MaterialiseError: For another ``reduce``.
        """
        from store.materialise import materialise

        return materialise(self, reduce, path)

    def in_storage_order(self, block_bytes: int) -> Iterator[np.ndarray]:
        """Blocks of row indices, together all rows once, in the order in which they lie on disk."""
        order = np.lexsort((self._first, self._segment))
        sizes = np.cumsum(self.lengths[order]) * (self.field.tokens * self.field.dim * 2)
        cuts = np.flatnonzero(np.diff(sizes // max(1, block_bytes))) + 1
        yield from np.split(order, cuts)

    def take(self, rows: Any) -> "Selection":
        """A selection of some rows (indices, mask or slice), in that order; shares the open maps."""
        index = self.indices(rows)
        taken = object.__new__(Selection)
        taken.__dict__.update(self.__dict__)
        for name in ("items", "labels", "lengths", "_segment", "_first"):
            setattr(taken, name, getattr(self, name)[index])
        return taken

    def align_with(self, *others: "Selection") -> "list[Selection]":
        """This and others, reduced to the items that all have, in this one's order."""
        return intersect([self, *others])

    def column(self, name: str) -> np.ndarray:
        """Any column of ``clips`` (``subject``, ``camera``, ...) for the rows: object (n,), None where null.

        With a protocol, ``part`` is a column too; for texts there is ``text``.

        Raises:
            UnknownNameError: If there is no such column.
        """
        from store.columns import item_column

        return item_column(self._bank, self.dataset, self.protocol, self.items, name)

    def close(self) -> None:
        """Drop the maps and let garbage collection at replaced segments; the selection is of no use then."""
        self._pool.close()
        if self._reading is not None:
            self._reading.release()


def intersect(selections: Sequence[Selection]) -> list[Selection]:
    """Reduce selections to the items that all of them have, in the order of the first one.

    Row ``i`` of each result is then the same clip.
    """
    if not selections:
        return []
    shared = set(selections[0].items.tolist()).intersection(*(one.items.tolist() for one in selections[1:]))
    order = [item for item in selections[0].items.tolist() if item in shared]
    result = []
    for one in selections:
        place = {item: row for row, item in enumerate(one.items.tolist())}
        result.append(one.take(np.array([place[item] for item in order], np.int64)))
    return result


__all__ = ["TEXTS", "RowError", "Selection", "intersect"]
