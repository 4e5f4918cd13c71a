"""Sigmoid loss over modality pairs: each cell of the similarity matrix is a yes-or-no question of its own.

Zhai et al. 2023, SigLIP, arXiv:2303.15343, eq. 1. CMVRA's variant averages over all B x B cells (ours, as the
paper's, is B times that) and starts at a scale of e^10, where it saturates; ours starts as the paper's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from align.losses import log_scale
from align.pair_loss import PairLoss
from align.pairs import Pair


class Sigmoid(PairLoss):
    """Weighted mean over pairs of ``-1/B sum_ij log sigmoid( z_ij (scale <a_i, b_j> + bias) )``, z = 1 or -1.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
        temperature: Where 1 / scale starts; SigLIP: 0.1.
        bias: Where the bias starts; -10 makes the many negatives of the first steps cost little.
        learn: Whether scale and bias are learnt.
        same_label: See :class:`align.pair_loss.PairLoss`.
        same_text: Likewise.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        temperature: float = 0.1,
        bias: float = -10.0,
        learn: bool = True,
        same_label: str = "negative",
        same_text: str = "ignore",
    ):
        super().__init__(pairs, same_label, same_text)
        self.log_scale = log_scale(self, temperature, learn)
        self.bias: Tensor
        if learn:
            self.bias = nn.Parameter(torch.tensor(float(bias)))
        else:
            self.register_buffer("bias", torch.tensor(float(bias)), persistent=False)

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """(B, E) twice -> scalar."""
        B = len(first)
        logits = self.log_scale.exp() * first @ second.T + self.bias
        wanted = torch.eye(B, dtype=torch.bool, device=logits.device) if positive is None else positive
        costs = -functional.logsigmoid(torch.where(wanted, logits, -logits))
        return (costs if ignore is None else costs.masked_fill(ignore, 0.0)).sum() / B
