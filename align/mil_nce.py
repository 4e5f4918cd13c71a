"""MIL-NCE: of several texts that may describe a clip, it is enough that one does.

Miech et al. 2020, arXiv:1912.06430, eq. 1: the positives are summed inside the logarithm, where InfoNCE with
several positives (SupCon) averages outside of it, and asks for all of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from align.losses import log_scale
from align.pair_loss import PairLoss
from align.pairs import Pair


def mil_nce(logits: Tensor, positive: Tensor | None = None, ignore: Tensor | None = None) -> Tensor:
    """(B, B) or, with K texts a clip, (B, B, K) -> scalar.

    Args:
        logits: Cell (i, j): clip i with the texts of clip j, scaled.
        positive: (B, B) bool, diagonal included; None means the diagonal alone.
        ignore: (B, B) bool: neither positive nor negative.

    Returns:
        The mean over i of -log of the positives' share in row i and column i together; log(2B - 1) if all
        logits are equal and only the diagonal is positive.
    """
    cells = logits if logits.dim() == 3 else logits[..., None]
    eye = torch.eye(len(cells), dtype=torch.bool, device=cells.device)
    positive = eye if positive is None else positive
    out = torch.zeros_like(eye) if ignore is None else ignore
    # Row i, then column i without the diagonal, which the row has.
    both = torch.cat([cells, cells.transpose(0, 1)], 1)
    wanted = torch.cat([positive, positive.T & ~eye], 1)
    left_out = torch.cat([out, out.T | eye], 1)

    def total(mask: Tensor) -> Tensor:
        return both.masked_fill(~mask[..., None], -math.inf).flatten(1).logsumexp(1)

    return (total(~left_out) - total(wanted & ~left_out)).mean()


class MILNCE(PairLoss):
    """Weighted mean of :func:`mil_nce` over pairs; what shares a text or label is a bag of positives.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
        temperature: Fixed, or where learning starts.
        learn_temperature: One scale for all pairs.
        same_label: See :class:`align.pair_loss.PairLoss`.
        same_text: Likewise.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        temperature: float = 0.07,
        learn_temperature: bool = False,
        same_label: str = "negative",
        same_text: str = "positive",
    ):
        super().__init__(pairs, same_label, same_text)
        self.log_scale = log_scale(self, temperature, learn_temperature)

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """(B, E) twice -> scalar."""
        return mil_nce(self.log_scale.exp() * first @ second.T, positive, ignore)
