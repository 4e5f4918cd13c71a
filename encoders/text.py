"""Texts in batches of one padded length, so that a text's feature does not depend on its neighbours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

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
    lengths = (
        [
            len(ids)
            for ids in tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"]
        ]
        if texts
        else []
    )
    fitting = sorted({min(size, max_tokens) for size in buckets} | {max_tokens})
    groups: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        groups[next(size for size in fitting if size >= length)].append(row)
    result = torch.empty(len(texts), dim, dtype=torch.float32)
    for size, rows in groups.items():
        for start in range(0, len(rows), BATCH_TEXTS):
            chosen = rows[start : start + BATCH_TEXTS]
            tokens = tokenizer(
                [texts[row] for row in chosen],
                truncation=True,
                max_length=size,
                padding="max_length",
                return_tensors="pt",
            )
            result[chosen] = encode(dict(tokens))
    return result
