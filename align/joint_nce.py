"""InfoNCE whose pairs share negatives: a video against its subtitle and its caption in one softmax.

The losses of CLIP-ViP's pre-training (Xue et al. 2023, arXiv:2209.06430, section 3.3), over any modalities.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from align.losses import info_nce, log_scale, one_way
from align.pair_loss import TEXT, PairLoss, one_of, shared_rows
from align.pairs import Pair, resolve_pairs

SHARED = ("anchor", "batch")


class JointNCE(PairLoss):
    """InfoNCE with negatives from other pairs.

    ``anchor``: pairs with the same first modality share negatives. Row i of the video looks for its
    subtitle among all subtitles and the captions of the other clips, and for its caption likewise; the other
    direction is plain (their ``vsc``). ``batch``: the pairs' rows are stacked into one batch of twice, three
    times... the size (their joint video and image batch).

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`; the weights count for ``anchor`` only.
        temperature: Fixed, or where learning starts.
        learn_temperature: One scale for all pairs.
        share: ``anchor`` or ``batch``.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "anchor",
        temperature: float = 0.07,
        learn_temperature: bool = False,
        share: str = "anchor",
    ):
        super().__init__(pairs)
        one_of("share", share, SHARED)
        self.share = share
        self.log_scale = log_scale(self, temperature, learn_temperature)

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        present: Tensor | None = None,
        labels: Tensor | None = None,
        texts: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`align.pair_loss.PairLoss.forward`."""
        names = list(embeddings)
        pairs = resolve_pairs(self.pairs, names)
        rows = [_rows(present, names.index(a), names.index(b), embeddings[a]) for a, b, _ in pairs]
        if self.share == "batch":
            return self._stacked(embeddings, pairs, rows)
        total, weights = sum(value.sum() for value in embeddings.values()) * 0.0, 0.0
        for number, (a, _, weight) in enumerate(pairs):
            if len(rows[number]) < 2:
                continue
            others = [k for k, pair in enumerate(pairs) if k != number and pair[0] == a]
            value = self._anchored(embeddings, pairs, rows, number, others, texts)
            total, weights = total + weight * value, weights + weight
        return cast(Tensor, total / weights if weights else total)

    def _anchored(
        self,
        embeddings: Mapping[str, Tensor],
        pairs: list[Pair],
        rows: list[Tensor],
        number: int,
        others: list[int],
        texts: Tensor | None,
    ) -> Tensor:
        """One pair, both directions; the first modality's has the negatives of the other pairs as well."""
        scale, own = self.log_scale.exp(), rows[number]
        first, second, _ = pairs[number]
        a = embeddings[first][own]
        logits, ignored = scale * a @ embeddings[second][own].T, []
        known = texts[own] if texts is not None and TEXT in (first, second) else None
        ignore = self.masks(None, known, len(own))[1]
        ignored.append(torch.zeros_like(logits, dtype=torch.bool) if ignore is None else ignore)
        wide = [logits]
        for k in others:
            wide.append(scale * a @ embeddings[pairs[k][1]][rows[k]].T)
            ignored.append(own[:, None] == rows[k][None])  # the same clip's caption is no negative
        forward = one_way(torch.cat(wide, 1), None, torch.cat(ignored, 1))
        return (forward + one_way(logits.T, None, None if ignore is None else ignore.T)) / 2

    def _stacked(self, embeddings: Mapping[str, Tensor], pairs: list[Pair], rows: list[Tensor]) -> Tensor:
        used = list(zip(pairs, rows, strict=True))
        a = torch.cat([embeddings[first][own] for (first, _, _), own in used])
        b = torch.cat([embeddings[second][own] for (_, second, _), own in used])
        if len(a) < 2:
            return cast(Tensor, sum(value.sum() for value in embeddings.values()) * 0.0)
        return info_nce(a, b, self.log_scale.exp())


def _rows(present: Tensor | None, first: int, second: int, like: Tensor) -> Tensor:
    """Indices of the clips that have both modalities."""
    rows = shared_rows(present, first, second)
    return torch.arange(len(like), device=like.device) if rows is None else rows
