"""Losses without negatives: one modality's embedding is to equal the other's. CMVRA offers both.

On their own they are content with one point for all clips; give them a fixed anchor (an ``identity`` head).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from align.pair_loss import PairLoss
from align.pairs import Pair


class MSE(PairLoss):
    """Weighted mean over pairs of the mean squared difference over the B x E numbers; 0 when equal.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
    """

    def __init__(self, pairs: str | Sequence[Pair | str] = "all"):
        super().__init__(pairs)

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """(B, E) twice -> scalar."""
        return functional.mse_loss(second, first)


class KL(PairLoss):
    """Weighted mean over pairs of KL( softmax(first / T) || softmax(second / T) ), the embeddings as logits.

    The first of a pair is the teacher (``anchor:NAME`` puts it there); gradients reach both.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
        temperature: T.
    """

    def __init__(self, pairs: str | Sequence[Pair | str] = "all", temperature: float = 0.1):
        super().__init__(pairs)
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} is not above 0; unit vectors need about 0.1")
        self.temperature = temperature

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """(B, E) twice -> scalar, the mean over clips."""
        wanted = functional.softmax(first / self.temperature, 1)
        found = functional.log_softmax(second / self.temperature, 1)
        return functional.kl_div(found, wanted, reduction="batchmean")
