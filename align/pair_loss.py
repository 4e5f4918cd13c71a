"""What all losses over modality pairs share: which pairs, which clips have both, which rows mean the same."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.pairs import Pair, resolve_pairs

SAME = ("negative", "ignore", "positive")
TEXT = "text"
CELL_BYTES = 12  # of a (B, B) matrix that the backward pass of one pair finds kept: logits and both softmaxes
HELD_BYTES = 8 << 30  # above it the matrices of each pair are made again for its backward pass, one at a time


class PairLoss(nn.Module):
    """Weighted mean of :meth:`pair` over modality pairs; pairs that a clip lacks leave it out.

    Args:
        pairs: ``all``, ``anchor`` (the first modality with each other), ``anchor:<name>``, or listed pairs
            with weights (see :func:`align.pairs.resolve_pairs`).
        same_label: What another clip of the same class is: ``negative`` (labels unused), ``ignore``, or
            ``positive`` (supervised).
        same_text: The same for pairs with the text modality, when two clips drew the same text (or prompts of
            the same class). ``ignore`` by default: to push a text off a clip it describes teaches nothing.
    """

    def __init__(
        self,
        pairs: str | Sequence[Pair | str] = "all",
        same_label: str = "negative",
        same_text: str = "ignore",
    ):
        super().__init__()
        one_of("same_label", same_label, SAME)
        one_of("same_text", same_text, SAME)
        self.pairs, self.same_label, self.same_text = pairs, same_label, same_text

    @property
    def uses_labels(self) -> bool:
        """Whether class labels shape the loss (a report must say so)."""
        return self.same_label != "negative"

    def pair(self, first: Tensor, second: Tensor, positive: Tensor | None, ignore: Tensor | None) -> Tensor:
        """The loss of one pair: (B, E) unit rows twice, (B, B) bool masks or None -> scalar."""
        raise NotImplementedError

    def past(self, first: str, second: str, ids: Mapping[str, Tensor | None]) -> tuple[Any, ...]:
        """Further arguments of :meth:`pair`: what a loss remembers of earlier steps; usually nothing.

        Args:
            first: Modality of the pair.
            second: Likewise.
            ids: labels, texts and clips of the pair's rows, (B,) each or None.
        """
        return ()

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        present: Tensor | None = None,
        labels: Tensor | None = None,
        texts: Tensor | None = None,
        clips: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch.

        Args:
            embeddings: Modality -> (B, E) unit rows; all modalities in the same clip order.
            present: (B, M) bool in the order of ``embeddings``; None: nothing is missing.
            labels: (B,) int64, -1 = unknown; needed unless ``same_label`` is ``negative``.
            texts: (B,) int64, equal where two clips drew texts that mean the same, -1 = none.
            clips: (B,) int64, which clip each row is of; for losses that remember past ones.

        Returns:
            Scalar: sum of weight x loss over the pairs with at least two clips, divided by the sum of
            their weights; 0 (still differentiable) if no pair has.
        """
        names = list(embeddings)
        total, weights = sum(value.sum() for value in embeddings.values()) * 0.0, 0.0
        pairs = resolve_pairs(self.pairs, names)
        again = CELL_BYTES * len(next(iter(embeddings.values()))) ** 2 * len(pairs) > HELD_BYTES
        for first, second, weight in pairs:
            rows = shared_rows(present, names.index(first), names.index(second))
            a, b = (
                value if rows is None else value[rows] for value in (embeddings[first], embeddings[second])
            )
            if len(a) < 2:
                continue
            known = {"labels": labels, "texts": texts if TEXT in (first, second) else None, "clips": clips}
            ids = {
                key: value if value is None or rows is None else value[rows] for key, value in known.items()
            }
            given = (a, b, ids["labels"], ids["texts"], *self.past(first, second, ids))
            if again and torch.is_grad_enabled():
                value = checkpoint(self._masked, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                value = self._masked(*given)
            total, weights = total + weight * value, weights + weight
        return cast(Tensor, total / weights if weights else total)

    def _masked(
        self, first: Tensor, second: Tensor, labels: Tensor | None, texts: Tensor | None, *past: Any
    ) -> Tensor:
        """:meth:`pair` with its masks."""
        return self.pair(first, second, *self.masks(labels, texts, len(first)), *past)

    def masks(
        self, labels: Tensor | None, texts: Tensor | None, B: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """(positive, ignore) masks (B, B) of a pair's rows, None where they would change nothing."""
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


def shared_rows(present: Tensor | None, first: int, second: int) -> Tensor | None:
    """Indices of the clips that have both modalities; None if all have."""
    if present is None:
        return None
    both = present[:, first] & present[:, second]
    return None if bool(both.all()) else both.nonzero()[:, 0]


def one_of(option: str, value: str, accepted: Sequence[str]) -> None:
    """Refuse a value that is not accepted.

    Raises:
        ValueError: With what is.
    """
    if value not in accepted:
        raise ValueError(f"{option}: {value!r} is unknown; accepted: {', '.join(accepted)}")
