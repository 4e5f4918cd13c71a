"""Token fields and their pooled variants: how much of a frame is kept, from one vector to every patch.

A ViT-B/16 frame is 196 tokens x 768 = 301 kB in float16; 16 pooled tokens are 25 kB, one is 1.5 kB. Pooling
averages over equal cells of the token grid (adaptive average pooling), in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from encoders.errors import EncoderError
from encoders.protocols import Field

if TYPE_CHECKING:
    import torch

TOKENS = "tokens"
# --tokens -> the field that it stands for; none: no token field at all.
TOKEN_FIELDS = {
    "none": None,
    "pooled": "tokens.pooled",
    "grid2": "tokens.grid2",
    "grid4": "tokens.grid4",
    "all": TOKENS,
}
_SIDES = {"tokens.pooled": 1, "tokens.grid2": 2, "tokens.grid4": 4}


def token_fields(tokens: int, dim: int, grid: tuple[int, int] | None = None) -> dict[str, Field]:
    """The field ``tokens`` of an encoder and what can be pooled from it.

    Args:
        tokens: N of a time step.
        dim: D.
        grid: Rows and columns that the tokens are laid out in, row by row; None where there is no such
            order (joints): only the mean over all is offered then.
    """
    if grid is not None and grid[0] * grid[1] != tokens:
        raise EncoderError(f"tokens: a grid of {grid[0]} x {grid[1]} does not hold {tokens} tokens")
    fields = {TOKENS: Field(TOKENS, tokens, dim)}
    for name, side in _SIDES.items():
        if side == 1 or (grid is not None and side < min(grid)):
            fields[name] = Field(name, side * side, dim, source=TOKENS, grid=grid)
    return fields


def field_values(field: Field, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A field ``(B, T, N, D)`` float32 from what ``encode`` returned: as it is, or pooled from its source."""
    if field.source is None:
        return outputs[field.name].float()
    values = outputs[field.source].float()
    if field.tokens == 1:
        return values.mean(2, keepdim=True)
    from torch.nn.functional import adaptive_avg_pool2d

    assert field.grid is not None  # token_fields offers no grid pooling without one
    batch, steps, _, dim = values.shape
    side = round(field.tokens**0.5)
    maps = values.flatten(0, 1).transpose(1, 2).unflatten(2, field.grid)
    return adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2).reshape(batch, steps, side * side, dim)


def with_tokens(fields: Collection[str], known: Mapping[str, Field], choice: str) -> tuple[str, ...]:
    """Fields with their token field exchanged for the one that ``--tokens`` asks for.

    Raises:
        EncoderError: If the encoder has no such field.
    """
    if choice not in TOKEN_FIELDS:
        raise EncoderError(f"tokens: {choice!r}; accepted are: {', '.join(TOKEN_FIELDS)}")
    kept = tuple(name for name in fields if name.split(".")[0] != TOKENS)
    wanted = TOKEN_FIELDS[choice]
    if wanted is None:
        return kept
    if wanted not in known:
        offered = [word for word, name in TOKEN_FIELDS.items() if name is None or name in known]
        raise EncoderError(
            f"tokens: this encoder has no {wanted!r}; of --tokens it takes: {', '.join(offered)}"
        )
    return (*kept, wanted)
