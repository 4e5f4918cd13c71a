"""Texts in batches of one padded length, so that a text's feature does not depend on its neighbours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

# Padded lengths; the same text always meets the same one.
BUCKETS = (16, 32, 64, 128, 256)
BATCH_TEXTS = 64


def encode_in_buckets(
    texts: list[str],
    tokenizer,
    encode: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    max_tokens: int,
    dim: int,
    buckets: tuple[int, ...] = BUCKETS,
) -> torch.Tensor:
    """Tokenise, group by padded length, encode and put back into the order given.

    Args:
        texts: L texts.
        tokenizer: A transformers tokenizer.
        encode: Token tensors ``(b, length)`` -> ``(b, D)``.
        max_tokens: Longer texts are cut here.
        dim: D, for the shape of an empty result.
        buckets: Ascending padded lengths; those above ``max_tokens`` are not used.

    Returns:
        ``(L, D)`` float32 on the CPU.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for row, size in enumerate(_sizes(texts, tokenizer, max_tokens, buckets)):
        groups[size].append(row)
    result = torch.empty(len(texts), dim, dtype=torch.float32)
    for size, rows in groups.items():
        for start in range(0, len(rows), BATCH_TEXTS):
            chosen = rows[start : start + BATCH_TEXTS]
            result[chosen] = encode(_tokens([texts[row] for row in chosen], tokenizer, size))
    return result


def tokenise(
    texts: Sequence[str], tokenizer, max_tokens: int, buckets: tuple[int, ...] = BUCKETS
) -> dict[str, torch.Tensor]:
    """L texts -> token tensors ``(L, length)``, padded to the bucket that fits the longest: for training."""
    wanted = list(texts)
    return _tokens(wanted, tokenizer, max(_sizes(wanted, tokenizer, max_tokens, buckets)))


def _tokens(texts: list[str], tokenizer, size: int) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, truncation=True, max_length=size, padding="max_length", return_tensors="pt"))


def _sizes(texts: list[str], tokenizer, max_tokens: int, buckets: tuple[int, ...]) -> list[int]:
    """The padded length of each text."""
    if not texts:
        return []
    fitting = sorted({min(size, max_tokens) for size in buckets} | {max_tokens})
    found = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"]
    return [next(size for size in fitting if size >= len(ids)) for ids in found]
