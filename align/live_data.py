"""Batches of clips in which some modalities are what their encoders see, not what they gave."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from align import distributed
from align.augment import augment
from align.config import AugmentConfig
from align.data import Batch, ClipData, Draw, Loader, Source
from align.live import Feed
from align.towers import Seen


class LiveLoader(Loader):
    """Batches in which some modalities are what their encoders see (:class:`align.towers.Seen`).

    Pixels are of the view whose stored features are beside them; clips that lack some stored view are always
    shown as they are. Any batch of any epoch can be had without those before it.

    Args:
        data: See :class:`align.data.Loader`.
        sources: Likewise.
        clips: Likewise.
        batch: Likewise.
        seed: Likewise.
        config: Likewise, of stored features; None: nothing is augmented.
        feeds: Live modality -> its input.
    """

    def __init__(
        self,
        data: ClipData,
        sources: Mapping[str, Source],
        clips: np.ndarray,
        batch: int,
        seed: int,
        config: AugmentConfig | None,
        feeds: Mapping[str, Feed],
    ):
        stored = {name: one for name, one in sources.items() if name not in feeds}
        super().__init__(data, sources, clips, batch, seed, config)
        self.sources, self.feeds = stored, feeds
        self.waited_seconds = 0.0  # for decoding
        self.viewed = _all_views(data, feeds)

    def draws(self, number: int) -> tuple[int, list[Draw]]:
        """As :class:`align.data.Loader`."""
        seed, draws = super().draws(number)
        return seed, [(clips, np.where(self.viewed[clips], view, 0.0), text) for clips, view, text in draws]

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The shuffled, augmented batches of one epoch from one on."""
        seed, draws = self.draws(number)
        for place, batch in enumerate(self._stream(draws[skip:]), skip):
            generator = torch.Generator(self.device).manual_seed(_seed(seed, place))
            yield self._augmented(batch, generator)

    def in_order(self) -> Iterator[Batch]:
        """All clips in their order, not augmented; the last batch may be smaller."""
        parts = np.split(self.clips, range(self.batch, len(self.clips), self.batch))
        yield from self._stream([(part, np.zeros(len(part)), np.zeros(len(part))) for part in parts])

    def batch_of(self, draw: Draw, turn: int = 0) -> Batch:
        """As :class:`align.data.Loader`, of the stored modalities."""
        batch = super().batch_of(draw, turn)
        for name in self.feeds:
            track = self.data.tracks[name]
            if track.is_text:
                meaning = track.meaning(draw[0], track.rows(draw[0], draw[2]))
                batch.texts = torch.from_numpy(meaning).to(self.device)
        return batch

    def _stream(self, draws: list[Draw]) -> Iterator[Batch]:
        rows = {name: [self._rows(name, draw) for draw in draws] for name in self.feeds}
        streams = {name: feed.batches([own for _, own in rows[name]]) for name, feed in self.feeds.items()}
        names = list(self.data.tracks)
        for turn, draw in enumerate(draws):
            batch, present = self.batch_of(draw, turn), self.present[draw[0]].copy()
            for name, stream in streams.items():
                began = time.perf_counter()
                values, read = next(stream)
                self.waited_seconds += time.perf_counter() - began
                places, _ = rows[name][turn]
                present[places[~read], names.index(name)] = False
                batch.features[name] = Seen(  # type: ignore[assignment]
                    values, torch.from_numpy(places[read]).to(self.device), len(draw[0])
                )
            # Another rank may miss a clip where this one misses none: all of them then say who has what.
            complete = present.all() and distributed.size() == 1
            batch.present = None if complete else torch.from_numpy(present).to(self.device)
            yield batch
        for stream in streams.values():
            next(stream, None)  # lets it end by itself, which keeps its decode processes for the next epoch

    def _rows(self, name: str, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Places in the batch of the clips that have a modality, and their rows."""
        clips, view, text = draw
        track = self.data.tracks[name]
        places = np.flatnonzero(track.counts[clips] > 0)
        drawn = text if track.is_text else view
        return places, track.rows(clips[places], drawn[places])

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        seen: dict[str, Any] = {name: batch.features.pop(name) for name in self.feeds}
        if self.config is not None:
            if batch.features:
                batch.features, batch.masks = augment(batch.features, batch.masks, self.config, generator)
            for name, one in seen.items():
                if len(one):
                    one.values = self.feeds[name].augmented(one.values, generator)
        batch.features |= seen
        return batch


def _all_views(data: ClipData, feeds: Mapping[str, Feed]) -> np.ndarray:
    """Which clips have as many views of each stored modality (that they have) as there are of live ones."""
    media = {name: track for name, track in data.tracks.items() if not track.is_text}
    views = max((int(media[name].counts.max(initial=0)) for name in feeds if name in media), default=1)
    stored = [track.counts for name, track in media.items() if name not in feeds]
    if not stored:
        return np.ones(len(data), bool)
    return np.all([(counts == views) | (counts == 0) for counts in stored], 0)


def _seed(*parts: int) -> int:
    return int(np.random.default_rng(parts).integers(2**62))
