"""Materialised features -> batches: which rows stand for which clip, drawn and gathered by a thread.

One gather a modality and batch (``index_select(out=)``) into reused buffers, no worker processes: the
features are in memory, so gather and augmentation of the next batch hide behind the head's own arithmetic.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from align import distributed
from align.augment import augment
from align.config import AugmentConfig

Draw = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Track:
    """The features of one modality and the rows that each clip may draw from.

    Args:
        features: (R, T, N, D), or (sum of T, N, D) with ``offsets``; float16 or float32.
        starts: (n,) int64: a clip's rows are ``index[start : start + count]``.
        counts: (n,) int64; 0: the clip lacks this modality.
        index: int64 rows of ``features``, view 0 or the first text first.
        offsets: (R + 1,) int64 for ragged features: row r has frames ``offsets[r] : offsets[r + 1]``.
        is_text: Rows are texts (drawn on their own); otherwise views (the same one in all modalities).
        meanings: (R,) int64 for texts: rows with the same number say the same of a clip (the prompts of one
            class); None: each text means something else.
        live: The features are only as many as rows: an encoder in training makes them.
    """

    features: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    index: np.ndarray
    offsets: np.ndarray | None = None
    is_text: bool = False
    meanings: np.ndarray | None = None
    live: bool = False

    @property
    def tokens_dim(self) -> tuple[int, int]:
        """(N, D)."""
        return self.features.shape[-2], self.features.shape[-1]

    def rows(self, clips: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """A row for each clip: the ``floor(draw * count)``-th of its own; row 0 where it has none."""
        counts = self.counts[clips]
        if not len(self.index):
            return np.zeros(len(clips), np.int64)
        place = self.starts[clips] + np.minimum((draw * counts).astype(np.int64), np.maximum(counts - 1, 0))
        return np.where(counts > 0, self.index[np.minimum(place, len(self.index) - 1)], 0)

    def meaning(self, clips: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What the text rows drawn for these clips mean: (B,) int64, -1 where a clip has none."""
        found = rows if self.meanings is None or not len(self.index) else self.meanings[rows]
        return np.where(self.counts[clips] > 0, found, -1)


def track(
    features: np.ndarray,
    row_items: Iterable[str],
    clips: Iterable[str],
    offsets: np.ndarray | None = None,
) -> Track:
    """A track from features and the clip that each of their rows belongs to.

    Args:
        features: (R, D), (R, T, N, D), or (sum of T, N, D) with ``offsets``.
        row_items: Clip id of each row; a clip's rows keep their order (view 0 first).
        clips: The n clip ids that batches will be drawn from; rows of others are never read.
        offsets: (R + 1,) for ragged features.
    """
    place = {clip: number for number, clip in enumerate(clips)}
    owner = np.array([place.get(item, -1) for item in row_items], np.int64)
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    counts = np.bincount(owner[order], minlength=len(place)).astype(np.int64)
    if features.ndim == 2:
        features = features[:, None, None]
    return Track(features, np.cumsum(counts) - counts, counts, order, offsets)


def text_track(
    features: np.ndarray, choices: Iterable[Iterable[int]], meanings: np.ndarray | None = None
) -> Track:
    """A track of texts: features (R, D) of the unique texts, and per clip the rows of the texts it has."""
    rows = [np.fromiter(row, np.int64) for row in choices]
    counts = np.array([len(row) for row in rows], np.int64)
    index = np.concatenate([*rows, np.empty(0, np.int64)])
    return Track(
        features[:, None, None], np.cumsum(counts) - counts, counts, index, is_text=True, meanings=meanings
    )


@dataclass
class ClipData:
    """All modalities of n clips.

    Args:
        clips: (n,) clip ids.
        labels: (n,) int64, -1 = none.
        tracks: Modality -> Track over these n clips; the order is the order of the modalities.
        columns: Further columns of ``clips`` (subject, ...), (n,) each: for groups and for the record.
    """

    clips: np.ndarray
    labels: np.ndarray
    tracks: dict[str, Track]
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def present(self) -> np.ndarray:
        """(n, M) bool: which clip has which modality."""
        return np.stack([track.counts > 0 for track in self.tracks.values()], 1)


@dataclass
class Batch:
    """What one step sees; tensors on the compute device, valid until the next batch is taken.

    Args:
        features: Modality -> (B, T, N, D) float32.
        masks: Modality -> (B, T) bool, or None when every frame is valid.
        present: (B, M) bool, or None when nothing is missing.
        labels: (B,) int64.
        texts: (B,) int64 meaning of the drawn text, -1 = none; None without a text modality.
        clips: (B,) int64 indices of the clips.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    present: Tensor | None
    labels: Tensor
    texts: Tensor | None
    clips: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def facts(self) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        """What a loss asks beside the embeddings: present, labels, texts, clips."""
        return self.present, self.labels, self.texts, self.clips


class Source:
    """One track as tensors, gathered into two buffers in turn (one is filled while the other is in use)."""

    def __init__(self, track: Track, batch: int, device: torch.device):
        self.track, self.device = track, device
        self.features = _tensor(track.features, device)
        self.frames = None if track.offsets is None else np.diff(track.offsets)
        T = track.features.shape[1] if self.frames is None else int(self.frames.max(initial=1))
        rows = batch if self.frames is None else batch * T
        shape = (rows, *self.features.shape[1:])
        self.buffers = [
            torch.empty(shape, dtype=self.features.dtype, device=self.features.device) for _ in "ab"
        ]

    def gather(self, rows: np.ndarray, turn: int) -> tuple[Tensor, Tensor | None]:
        """The features (B, T, N, D) float32 of these rows, and their mask."""
        if self.frames is None:
            return self._take(rows, turn), None
        assert self.track.offsets is not None
        lengths = self.frames[rows]
        steps = np.arange(max(int(lengths.max()), 1))
        valid = steps < lengths[:, None]
        flat = np.where(valid, self.track.offsets[rows][:, None] + steps, 0)
        values = self._take(flat.ravel(), turn).unflatten(0, flat.shape)
        mask = torch.from_numpy(valid).to(self.device)
        return values * mask[..., None, None], mask

    def _take(self, rows: np.ndarray, turn: int) -> Tensor:
        places = torch.from_numpy(rows).to(self.features.device)
        out = self.buffers[turn % 2][: len(rows)]
        return torch.index_select(self.features, 0, places, out=out).to(self.device).float()


def _tensor(features: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor: in GPU memory if half of what is free holds it, else where it is."""
    values = torch.from_numpy(features)
    if device.type == "cuda" and features.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return values.to(device)
    return values


def sources(data: ClipData, batch: int, device: torch.device | str = "cpu") -> dict[str, Source]:
    """A source a modality, for batches of at most ``batch`` clips on ``device``."""
    return {name: Source(part, batch, torch.device(device)) for name, part in data.tracks.items()}


class Loader:
    """Batches of clips; everything random is a function of (seed, epoch), so any epoch can be replayed.

    With several ranks (``align.distributed``) all draw the same order, views and texts, those of one process
    with the batch of all, and each gathers its slice; augmentation has a stream of its own on each rank.

    Args:
        data: The clips.
        sources: Its tracks as tensors; loaders that take turns can share them.
        clips: (n,) indices into ``data`` of those to use.
        batch: Clips a batch, of all ranks together; at most n.
        seed: Of order, text and view draws and augmentation.
        config: Augmentation; None: none, and each clip's first row is used (for validation).
    """

    def __init__(
        self,
        data: ClipData,
        sources: Mapping[str, Source],
        clips: np.ndarray,
        batch: int,
        seed: int = 0,
        config: AugmentConfig | None = None,
    ):
        self.data, self.sources, self.clips, self.seed, self.config = data, sources, clips, seed, config
        self.batch = max(1, min(batch, len(clips)))
        self.share = max(1, self.batch // distributed.size())  # this rank's clips of a shuffled batch
        self.device = next(iter(sources.values())).device
        self.present = data.present
        self.complete = bool(self.present[self.clips].all())

    def __len__(self) -> int:
        """Steps an epoch; what is left over of a shuffled epoch waits for the next one (equal negatives)."""
        return len(self.clips) // (self.share * distributed.size())

    def epoch(self, number: int) -> Iterator[Batch]:
        """The shuffled, augmented batches of one epoch: this rank's share of each."""
        seed, jobs = self.draws(number)
        generator = torch.Generator(self.device).manual_seed(seed)
        return _ahead(jobs, lambda draw, turn: self._augmented(self.batch_of(draw, turn), generator))

    def draws(self, number: int) -> tuple[int, list[Draw]]:
        """A seed for an epoch's augmentation, and what :meth:`batch_of` gathers in it: this rank's share."""
        draws, rank = np.random.default_rng([self.seed, number]), distributed.rank()
        seed, order = int(draws.integers(2**62)) + rank, draws.permutation(self.clips)
        whole = self.share * distributed.size()
        mine = slice(rank * self.share, (rank + 1) * self.share)
        jobs = []
        for step in range(len(self)):
            clips = order[step * whole : (step + 1) * whole]
            jobs.append((clips[mine], draws.random(whole)[mine], draws.random(whole)[mine]))
        return seed, jobs

    def in_order(self) -> Iterator[Batch]:
        """All clips in their order, first row each, not augmented; the last batch may be smaller."""
        starts = range(0, len(self.clips), self.batch)
        parts = [self.clips[start : start + self.batch] for start in starts]
        return _ahead([(part, np.zeros(len(part)), np.zeros(len(part))) for part in parts], self.batch_of)

    def batch_of(self, draw: Draw, turn: int = 0) -> Batch:
        """Gather one batch.

        Args:
            draw: Clip indices (B,), and two numbers in [0, 1) a clip that choose its view and its text.
            turn: Which of the two buffers to fill.
        """
        clips, view, text = draw
        features, masks, texts = {}, {}, None
        for name, source in self.sources.items():
            rows = source.track.rows(clips, text if source.track.is_text else view)
            features[name], masks[name] = source.gather(rows, turn)
            if source.track.is_text:
                texts = torch.from_numpy(source.track.meaning(clips, rows)).to(self.device)
        present = None if self.complete else torch.from_numpy(self.present[clips]).to(self.device)
        labels = torch.from_numpy(self.data.labels[clips]).to(self.device)
        return Batch(features, masks, present, labels, texts, torch.from_numpy(clips).to(self.device))

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Clips change, texts never: noise of a standardised feature's size drowns a unit vector."""
        clips = {name: batch.features[name] for name, own in self.sources.items() if not own.track.is_text}
        if self.config is not None and clips:
            masks = {name: batch.masks[name] for name in clips}
            features, masks = augment(clips, masks, self.config, generator)
            batch.features |= features
            batch.masks |= masks
        return batch


def _ahead(jobs: list[Draw], work: Callable[[Draw, int], Batch]) -> Iterator[Batch]:
    """Results of ``work(job, turn)`` in order, the next one being made by a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="align-loader") as pool:
        pending = None
        for turn, job in enumerate(jobs):
            following = pool.submit(work, job, turn)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def split_groups(groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out whole groups: (n,) group of each clip -> indices (kept, held out), in order.

    Groups are taken in a seeded order until about ``fraction`` of the clips is reached, at least one
    group and never all of them.
    """
    names, place, sizes = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 0x5EED]).permutation(len(names))
    reached = np.cumsum(sizes[order]) - sizes[order] / 2 <= fraction * len(groups)
    taken = order[: min(max(int(reached.sum()), 1), len(names) - 1)]
    held = np.isin(place, taken)
    return np.flatnonzero(~held), np.flatnonzero(held)
