"""Triplet loss over modality pairs: a partner must score higher than every other clip, by a margin.

Faghri et al. 2018, VSE++, arXiv:1707.05612, eq. 5 and 6; the order measure is Vendrov et al. 2016,
arXiv:1511.06361. CLIP-ViP's code sums over rows and directions; ours is its mean (a 2B-th of that).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from align.pair_loss import PairLoss, one_of
from align.pairs import Pair

MEASURES = ("cosine", "order")


class Triplet(PairLoss):
    """Weighted mean over pairs of the mean, over rows and both directions, of the violations of the margin.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
        margin: By how much a partner must lead.
        hardest: Count each row's largest violation only (VSE++); otherwise all of them.
        measure: ``cosine``, or ``order``: minus the length of what the second exceeds the first by.
        same_label: See :class:`align.pair_loss.PairLoss`; ``positive`` counts as ``ignore`` here, since a
            triplet has one positive.
        same_text: Likewise.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        margin: float = 0.2,
        hardest: bool = True,
        measure: str = "cosine",
        same_label: str = "negative",
        same_text: str = "ignore",
    ):
        super().__init__(pairs, same_label, same_text)
        one_of("measure", measure, MEASURES)
        self.margin, self.hardest, self.measure = margin, hardest, measure

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """(B, E) twice -> scalar; the margin when all embeddings are one point (``hardest``)."""
        scores = first @ second.T if self.measure == "cosine" else _order(first, second)
        out = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        for mask in (positive, ignore):
            out = out if mask is None else out | mask
        partner = scores.diagonal()
        rows, columns = (
            (self.margin + scores - own).clamp(min=0).masked_fill(out, 0.0)
            for own in (partner[:, None], partner[None])
        )
        if self.hardest:
            return (rows.amax(1).mean() + columns.amax(0).mean()) / 2
        return (rows.sum(1).mean() + columns.sum(0).mean()) / 2


def _order(first: Tensor, second: Tensor) -> Tensor:
    """(B, E), (C, E) -> (B, C): 0 where the first dominates the second in every dim, else below."""
    return -(second[None] - first[:, None]).clamp(min=0).pow(2).sum(2).sqrt()
