"""Contrastive losses over modality pairs: ({modality: (B, E)}, present (B, M), labels (B,)) -> scalar.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748), symmetric as in CLIP (Radford et al. 2021), over any set
of pairs; several positives a row as in SupCon's L_out (Khosla et al. 2020, arXiv:2004.11362, eq. 2).
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from align.pairs import Pair, resolve_pairs

SAME = ("negative", "ignore", "positive")
DIRECTIONS = ("both", "forward", "backward")
MAX_SCALE = 100.0  # CLIP's bound on 1 / temperature: beyond it a learnt temperature overflows half precision
TEXT = "text"


def one_way(logits: Tensor, positive: Tensor | None = None, ignore: Tensor | None = None) -> Tensor:
    """Cross-entropy of each row against its positives: (B, B) -> scalar.

    ``mean_i  -1/|P(i)|  sum_{p in P(i)}  log( exp(l_ip) / sum_{j not ignored} exp(l_ij) )``

    Args:
        logits: (B, B), already scaled; row i's own positive is column i.
        positive: (B, B) bool, diagonal included; None means the diagonal alone.
        ignore: (B, B) bool, diagonal excluded: neither positive nor negative.

    Returns:
        The mean over rows; log B when all logits are equal and nothing is ignored.
    """
    if ignore is not None:
        logits = logits.masked_fill(ignore, -math.inf)
    if positive is None:
        return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    log_share = functional.log_softmax(logits, 1)
    chosen = torch.where(positive, log_share, log_share.new_zeros(()))  # an ignored cell's -inf stays out
    return -(chosen.sum(1) / positive.sum(1)).mean()


def info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    positive: Tensor | None = None,
    ignore: Tensor | None = None,
    direction: str = "both",
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

    Returns:
        Scalar; log B when the embeddings have collapsed into one point.
    """
    logits = scale * first @ second.T
    forward, backward = logits, logits.T

    def turned(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.T

    losses = []
    if direction != "backward":
        losses.append(one_way(forward, positive, ignore))
    if direction != "forward":
        losses.append(one_way(backward, turned(positive), turned(ignore)))
    return torch.stack(losses).mean()


class InfoNCE(nn.Module):
    """Weighted mean of :func:`info_nce` over modality pairs; pairs that a clip lacks leave it out.

    Args:
        pairs: ``all``, ``anchor`` (the first modality with each other), ``anchor:<name>``, or listed pairs
            with weights (see :func:`align.pairs.resolve_pairs`).
        temperature: Fixed, or where learning starts. CMVRA: 0.1, fixed.
        learn_temperature: One scale for all pairs, learnt as log(1 / temperature), at most ``MAX_SCALE``.
        direction: ``both``, ``forward`` or ``backward`` (:func:`info_nce`).
        same_label: What another clip of the same class is: ``negative`` (labels unused), ``ignore``, or
            ``positive`` (supervised).
        same_text: The same for pairs with the text modality, when two clips drew the same text (or prompts of
            the same class). ``ignore`` by default: to push a text off a clip it describes teaches nothing.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        temperature: float = 0.07,
        learn_temperature: bool = False,
        direction: str = "both",
        same_label: str = "negative",
        same_text: str = "ignore",
    ):
        super().__init__()
        _check("same_label", same_label, SAME)
        _check("same_text", same_text, SAME)
        _check("direction", direction, DIRECTIONS)
        if not temperature > 0:
            raise ValueError(
                f"temperature: {temperature} is not above 0; CMVRA uses 0.1, CLIP starts at 0.07"
            )
        self.pairs, self.direction = pairs, direction
        self.same_label, self.same_text = same_label, same_text
        log_scale = torch.tensor(math.log(1 / temperature))
        self.log_scale: Tensor
        if learn_temperature:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)

    @property
    def temperature(self) -> float:
        """The temperature now."""
        return math.exp(-float(self.log_scale.detach()))

    @property
    def uses_labels(self) -> bool:
        """Whether class labels shape the loss (a report must say so)."""
        return self.same_label != "negative"

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
    ) -> Tensor:
        """The loss of one batch.

        Args:
            embeddings: Modality -> (B, E) unit rows; all modalities in the same clip order.
            present: (B, M) bool in the order of ``embeddings``; None: nothing is missing.
            labels: (B,) int64, -1 = unknown; needed unless ``same_label`` is ``negative``.
            texts: (B,) int64, equal where two clips drew texts that mean the same, -1 = none.

        Returns:
            Scalar: sum of weight x loss over the pairs with at least two clips, divided by the sum of
            their weights; 0 (still differentiable) if no pair has.
        """
        names = list(embeddings)
        total, weights = sum(value.sum() for value in embeddings.values()) * 0.0, 0.0
        for first, second, weight in resolve_pairs(self.pairs, names):
            rows = _rows(present, names.index(first), names.index(second))
            value = self._pair(embeddings, first, second, rows, labels, texts)
            if value is not None:
                total, weights = total + weight * value, weights + weight
        return cast(Tensor, total / weights if weights else total)

    def _pair(
        self,
        embeddings: Mapping[str, Tensor],
        first: str,
        second: str,
        rows: Tensor | None,
        labels: Tensor | None,
        texts: Tensor | None,
    ) -> Tensor | None:
        a, b = embeddings[first], embeddings[second]
        text_ids = texts if TEXT in (first, second) else None
        if rows is not None:
            a, b = a[rows], b[rows]
            labels = labels[rows] if labels is not None else None
            text_ids = text_ids[rows] if text_ids is not None else None
        if len(a) < 2:
            return None
        positive, ignore = self._same(labels, text_ids, len(a))
        return info_nce(a, b, self.log_scale.exp(), positive, ignore, self.direction)

    def _same(
        self, labels: Tensor | None, texts: Tensor | None, B: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """(positive, ignore) masks of a pair, None where they would change nothing."""
        if labels is None and self.uses_labels:
            raise ValueError(f"same_label={self.same_label!r} needs labels, but the batch has none")
        rules = ((labels, self.same_label), (texts, self.same_text))
        known = [(ids, rule) for ids, rule in rules if ids is not None and rule != "negative"]
        if not known:
            return None, None
        positive = torch.eye(B, dtype=torch.bool, device=known[0][0].device)
        ignore = torch.zeros_like(positive)
        for ids, rule in known:
            same = (ids[:, None] == ids[None]) & (ids >= 0)[:, None]
            if rule == "positive":
                positive = positive | same
            else:
                ignore = ignore | same
        only_own = all(rule == "ignore" for _, rule in known)
        return None if only_own else positive, ignore & ~positive


def _rows(present: Tensor | None, first: int, second: int) -> Tensor | None:
    """Indices of the clips that have both modalities; None if all have."""
    if present is None:
        return None
    both = present[:, first] & present[:, second]
    return None if bool(both.all()) else both.nonzero()[:, 0]


def _check(option: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{option}: {value!r} is unknown; accepted: {', '.join(accepted)}")
