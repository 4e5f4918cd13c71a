"""Heads that see a clip as a bag of tokens: features (B, T, N, D), mask (B, T) -> unit rows (B, E).

Every head is built as ``Head(tokens=N, dim=D, embedding=E, **options)``, takes any T, and gives each clip an
embedding that depends on its own valid frames only. Heads that keep the order in time: ``align.temporal``.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

FLATTEN_UP_TO = 2048  # tokens x dim; above it (patch tokens) "auto" averages the tokens of a frame instead
UNIT_EPS = 1e-12


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over time of the valid frames: (B, T, C), (B, T) -> (B, C); zeros for a clip without any."""
    if mask is None:
        return values.mean(1)
    weight = mask.to(values.dtype)[..., None]
    # where, not a product: what padding holds (even inf) must not reach the sum.
    total = torch.where(mask[..., None], values, values.new_zeros(())).sum(1)
    return total / weight.sum(1).clamp(min=1)


def attended(mask: Tensor) -> Tensor:
    """The mask for attention: a clip without any frame sees its padding, as a softmax over nothing is NaN."""
    return mask | ~mask.any(1, keepdim=True)


def unit(values: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32."""
    return functional.normalize(values.float(), dim=-1, eps=UNIT_EPS)


class Frames(nn.Module):
    """The N tokens of each frame as one vector: (B, T, N, D) -> (B, T, width).

    ``flatten`` keeps which token is which (joints); ``mean`` does not care (patches); ``auto`` flattens while
    N x D is small.
    """

    def __init__(self, tokens: int, dim: int, join: str = "auto"):
        super().__init__()
        if join not in ("auto", "flatten", "mean"):
            raise ValueError(f"join: {join!r} is unknown; accepted: auto, flatten, mean")
        self.flatten = join == "flatten" or (join == "auto" and tokens * dim <= FLATTEN_UP_TO)
        self.width = tokens * dim if self.flatten else dim

    def forward(self, features: Tensor) -> Tensor:
        """Join the tokens."""
        return features.flatten(2) if self.flatten else features.mean(2)


class Identity(nn.Module):
    """No parameters: the mean over frames and tokens, scaled to length 1; for an anchor that stays as it is.

    A joint space that exists already (CLIP's, say) is kept, and the other modalities are trained towards it:
    what CMVRA calls binding to RGB.
    """

    def __init__(self, tokens: int, dim: int, embedding: int):
        super().__init__()
        if dim != embedding:
            raise ValueError(
                f"head identity: features have {dim} dims but embedding is {embedding}; set it to {dim}"
            )

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, D) unit rows."""
        return unit(masked_mean(features.mean(2), mask))


class Linear(nn.Module):
    """Mean over frames, then one linear map."""

    def __init__(self, tokens: int, dim: int, embedding: int, join: str = "auto", bias: bool = True):
        super().__init__()
        self.frames = Frames(tokens, dim, join)
        self.out = nn.Linear(self.frames.width, embedding, bias=bias)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        return unit(self.out(masked_mean(self.frames(features), mask)))


class MLP(nn.Module):
    """Mean over frames, then ``depth`` hidden layers (GELU, dropout) and a linear map."""

    def __init__(
        self,
        tokens: int,
        dim: int,
        embedding: int,
        join: str = "auto",
        hidden: int = 512,
        depth: int = 1,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.frames = Frames(tokens, dim, join)
        widths = [self.frames.width] + [hidden] * depth
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], embedding))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        return unit(self.layers(masked_mean(self.frames(features), mask)))


class AttentionPooling(nn.Module):
    """Learned queries attend over all T x N tokens; their outputs, side by side, are mapped to the embedding.

    Tokens carry a learned embedding of their place in the frame, so that joints differ; time has none, so the
    order of the frames does not matter (``transformer`` is the head for which it does).
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        embedding: int,
        width: int = 256,
        attention_heads: int = 4,
        queries: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.attention_heads, self.dropout = attention_heads, dropout
        self.into = nn.Linear(dim, width)
        self.place = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.out = nn.Sequential(nn.LayerNorm(queries * width), nn.Linear(queries * width, embedding))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        B, T, N, _ = features.shape
        H = self.attention_heads
        tokens = self.norm(self.into(features) + self.place).reshape(B, T * N, -1)
        key, value = (
            part.unflatten(-1, (H, -1)).transpose(1, 2) for part in self.key_value(tokens).chunk(2, -1)
        )
        query = self.queries.unflatten(-1, (H, -1)).transpose(0, 1).expand(B, -1, -1, -1)
        allowed = None if mask is None else attended(mask).repeat_interleave(N, 1)[:, None, None]
        dropout = self.dropout if self.training else 0.0
        pooled = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, dropout_p=dropout
        )
        return unit(self.out(pooled.transpose(1, 2).flatten(1)))
