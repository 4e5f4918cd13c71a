"""InfoNCE over modality pairs: ({modality: (B, E)}, present (B, M), labels (B,)) -> scalar.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748), symmetric as in CLIP (Radford et al. 2021), over any set
of pairs; several positives a row as in SupCon's L_out (Khosla et al. 2020, arXiv:2004.11362, eq. 2).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from align.pair_loss import TEXT, PairLoss, one_of
from align.pairs import Pair
from align.queue import Past, Queue, known

DIRECTIONS = ("both", "forward", "backward")
MAX_SCALE = 100.0  # CLIP's bound on 1 / temperature: beyond it a learnt temperature overflows half precision


def one_way(
    logits: Tensor, positive: Tensor | None = None, ignore: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each row against its positives: (B, C) -> scalar.

    ``mean_i  -1/|P(i)|  sum_{p in P(i)}  log( exp(l_ip) / sum_{j not ignored} exp(l_ij) )``

    Args:
        logits: (B, C), C >= B, already scaled; row i's own positive is column i.
        positive: (B, C) bool, diagonal included; None means the diagonal alone.
        ignore: (B, C) bool, diagonal excluded: neither positive nor negative.
        smoothing: Share of the target that all columns which are not ignored have in common.

    Returns:
        The mean over rows; log C when all logits are equal and nothing is ignored.
    """
    if ignore is not None:
        logits = logits.masked_fill(ignore, -math.inf)
    if positive is None and not smoothing:
        return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    log_share = functional.log_softmax(logits, 1)
    if positive is None:
        found = log_share.diagonal()
    else:
        found = _mean_of(log_share, positive)
    if smoothing:
        counted = torch.ones_like(log_share, dtype=torch.bool) if ignore is None else ~ignore
        found = (1 - smoothing) * found + smoothing * _mean_of(log_share, counted)
    return -found.mean()


def _mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row's cells under the mask; an ignored cell's -inf stays out."""
    return torch.where(mask, values, values.new_zeros(())).sum(1) / mask.sum(1)


def info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    positive: Tensor | None = None,
    ignore: Tensor | None = None,
    direction: str = "both",
    dual_softmax: bool = False,
    hard_negatives: int = 0,
    smoothing: float = 0.0,
    past: tuple[Past | None, Past | None] = (None, None),
) -> Tensor:
    """InfoNCE between two modalities of the same B clips; row i of one belongs to row i of the other.

    Args:
        first: (B, E) unit rows.
        second: (B, E) unit rows.
        scale: 1 / temperature.
        positive: As in :func:`one_way`; rows are ``first``.
        ignore: Likewise.
        direction: ``forward``: each row of ``first`` looks for its partner in ``second``; ``backward``: the
            other way; ``both``: the mean of the two.
        dual_softmax: See :class:`InfoNCE`.
        hard_negatives: Likewise.
        smoothing: Likewise.
        past: Earlier rows of ``second`` for ``forward``, and of ``first`` for ``backward``.

    Returns:
        Scalar; log B when the embeddings have collapsed into one point.
    """
    logits = scale * first @ second.T
    losses = []
    for way, turn, rows in (("forward", False, first), ("backward", True, second)):
        if direction not in ("both", way):
            continue
        scores, wanted, left_out = (
            value.T if turn and value is not None else value for value in (logits, positive, ignore)
        )
        assert scores is not None
        if (more := past[turn]) is not None:
            scores, wanted, left_out = _wider(
                scores, wanted, left_out, scale * rows @ more.embeddings.T, more
            )
        if dual_softmax:
            scores = scores * _softmax_of_columns(scores, left_out)
        if hard_negatives:
            left_out = _all_but_hardest(scores, hard_negatives, wanted, left_out)
        losses.append(one_way(scores, wanted, left_out, smoothing))
    return torch.stack(losses).mean()


def _wider(
    scores: Tensor, positive: Tensor | None, ignore: Tensor | None, extra: Tensor, past: Past
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A direction's scores and masks (B, B) with the past's columns: (B, B + K)."""
    if positive is not None or past.positive is not None:
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device) if positive is None else positive
        none = torch.zeros_like(past.ignore)
        positive = torch.cat([own, none if past.positive is None else past.positive], 1)
    left_out = torch.zeros_like(scores, dtype=torch.bool) if ignore is None else ignore
    return torch.cat([scores, extra], 1), positive, torch.cat([left_out, past.ignore], 1)


class InfoNCE(PairLoss):
    """Weighted mean of :func:`info_nce` over modality pairs; pairs that a clip lacks leave it out.

    Args:
        pairs: See :class:`align.pair_loss.PairLoss`.
        temperature: Fixed, or where learning starts. CMVRA: 0.1, fixed.
        learn_temperature: One scale for all pairs, learnt as log(1 / temperature), at most ``MAX_SCALE``.
        direction: ``both``, ``forward`` or ``backward`` (:func:`info_nce`).
        same_label: See :class:`align.pair_loss.PairLoss`.
        same_text: Likewise.
        dual_softmax: Multiply each logit by its share among the rows that compete for the same column (DSL,
            Cheng et al. 2021, arXiv:2109.04290): a pair counts fully only where both directions agree. The
            loss with which CLIP-ViP is fine-tuned.
        hard_negatives: Keep only so many highest-scoring negatives of each row; 0: all.
        smoothing: Label smoothing: share of each row's target that is spread evenly over its columns.
        queue: So many clips of earlier steps are columns, too (:mod:`align.queue`), while training. The rules
            for the same label and text hold; a clip's own past is no negative. 0: none.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        temperature: float = 0.07,
        learn_temperature: bool = False,
        direction: str = "both",
        same_label: str = "negative",
        same_text: str = "ignore",
        dual_softmax: bool = False,
        hard_negatives: int = 0,
        smoothing: float = 0.0,
        queue: int = 0,
    ):
        super().__init__(pairs, same_label, same_text)
        one_of("direction", direction, DIRECTIONS)
        if hard_negatives < 0:
            raise ValueError(f"hard_negatives: {hard_negatives} is negative; 0 keeps all of them")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing: {smoothing} is not in [0, 1); 0.1 is usual")
        if queue < 0:
            raise ValueError(f"queue: {queue} is negative; 0 keeps no past embeddings")
        self.direction, self.dual_softmax, self.hard_negatives = direction, dual_softmax, hard_negatives
        self.smoothing, self.queue = smoothing, Queue(queue) if queue else None
        self.log_scale = log_scale(self, temperature, learn_temperature)

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    def after_step(self) -> None:
        """Keep a learnt scale within its bound; call it after each optimiser step, as CLIP does."""
        if not self.log_scale.requires_grad:
            return
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        present: Tensor | None = None,
        labels: Tensor | None = None,
        texts: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`align.pair_loss.PairLoss.forward`; with a queue, training needs ``clips``."""
        loss = super().forward(embeddings, present, labels, texts, clips)
        if self.queue is not None and self.training:
            self.queue.append(embeddings, present, labels, texts, known(clips))
        return loss

    def pair(
        self,
        first: Tensor,
        second: Tensor,
        positive: Tensor | None,
        ignore: Tensor | None,
        forward: Past | None = None,
        backward: Past | None = None,
    ) -> Tensor:
        """See :func:`info_nce`."""
        return info_nce(
            first,
            second,
            self.log_scale.exp(),
            positive,
            ignore,
            self.direction,
            self.dual_softmax,
            self.hard_negatives,
            self.smoothing,
            (forward, backward),
        )

    def past(self, first: str, second: str, ids: Mapping[str, Tensor | None]) -> tuple[Past | None, ...]:
        """The queue's columns for both directions of a pair."""
        if self.queue is None or not self.training:
            return ()
        rules = {
            "labels": self.same_label,
            "texts": self.same_text if TEXT in (first, second) else "negative",
        }
        return tuple(self.queue.past(name, ids, rules) for name in (second, first))


def log_scale(owner: nn.Module, temperature: float, learn: bool) -> Tensor:
    """log(1 / temperature) as the owner's parameter or constant ``log_scale``.

    Raises:
        ValueError: For a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not above 0; CMVRA uses 0.1, CLIP starts at 0.07")
    value = torch.tensor(math.log(1 / temperature))
    if learn:
        return nn.Parameter(value)
    owner.register_buffer("log_scale", value, persistent=False)
    return value


def _softmax_of_columns(logits: Tensor, ignore: Tensor | None) -> Tensor:
    """Each logit's share of its column."""
    return functional.softmax(logits if ignore is None else logits.masked_fill(ignore, -math.inf), 0)


def _all_but_hardest(logits: Tensor, count: int, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
    """(B, B) bool: what is neither positive nor among a row's ``count`` highest negatives."""
    if positive is None:
        positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    out = positive if ignore is None else positive | ignore
    scores = logits.detach().masked_fill(out, -math.inf)
    hardest = scores.topk(min(count, logits.shape[1]), 1).indices
    kept = torch.zeros_like(positive).scatter_(1, hardest, True) & ~out
    return ~(kept | positive)
