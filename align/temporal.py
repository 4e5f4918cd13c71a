"""Heads that keep the order in time: features (B, T, N, D), mask (B, T) -> unit rows (B, E).

``sequence`` and ``conv`` first stretch the valid frames to a fixed number of steps (``steps``), so that any
length and any padding is welcome and a clip's embedding does not depend on its neighbours.
"""

import math

import torch
from torch import Tensor, nn

from align.heads import Frames, attended, masked_mean, unit
from align.resample import resample


class Sequence(nn.Module):
    """The whole sequence, stretched to ``steps`` frames and flattened, through a linear map or an MLP.

    With ``hidden=0`` it is the learned counterpart of a ridge classifier on resampled sequences. ``centre``
    takes each clip's own mean over time away: what is left is what changes, not how person and place look.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        embedding: int,
        join: str = "auto",
        steps: int = 32,
        hidden: int = 256,
        dropout: float = 0.3,
        centre: bool = False,
    ):
        super().__init__()
        self.steps, self.centre = steps, centre
        self.frames = Frames(tokens, dim, join)
        width = steps * self.frames.width
        body = [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)] if hidden else []
        self.layers = nn.Sequential(nn.Dropout(dropout), *body, nn.Linear(hidden or width, embedding))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        steps = resample(self.frames(features), mask, self.steps)
        if self.centre:
            steps = steps - steps.mean(1, keepdim=True)
        return unit(self.layers(steps.flatten(1)))


class ConvBlock(nn.Module):
    """Residual block along time: LayerNorm over channels, convolution, GELU, dropout; (B, C, K) -> same."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding="same", dilation=dilation)
        self.after = nn.Sequential(nn.GELU(), nn.Dropout(dropout))

    def forward(self, values: Tensor) -> Tensor:
        """Add what the convolution sees."""
        return values + self.after(self.conv(self.norm(values.transpose(1, 2)).transpose(1, 2)))


class TemporalConv(nn.Module):
    """1-D convolutions along time with growing dilation, then the means of ``segments`` consecutive parts.

    The segments' means stay in order, side by side, so the head knows what came first (raising the arm from
    lowering it), which one mean over time would forget.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        embedding: int,
        join: str = "auto",
        steps: int = 32,
        width: int = 128,
        depth: int = 3,
        kernel: int = 5,
        segments: int = 4,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.steps = steps
        self.frames = Frames(tokens, dim, join)
        self.into = nn.Conv1d(self.frames.width, width, 1)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(ConvBlock(width, kernel, 2**level, dropout) for level in range(depth)))
        self.pool = nn.AdaptiveAvgPool1d(segments)
        self.out = nn.Sequential(nn.LayerNorm(width * segments), nn.Linear(width * segments, embedding))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        steps = resample(self.frames(features), mask, self.steps).transpose(1, 2)
        return unit(self.out(self.pool(self.blocks(self.drop(self.into(steps)))).flatten(1)))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine and cosine features of positions in [0, 1]: (B, T) -> (B, T, width), width even.

    Wavelengths run from 2 down to 2/32 of the clip: relative time, as clips of one action differ in length.
    """
    rates = torch.logspace(0, 5, width // 2, base=2, device=positions.device) * math.pi
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class TemporalTransformer(nn.Module):
    """A small pre-norm transformer over frames with relative time positions; mean over the valid frames."""

    def __init__(
        self,
        tokens: int,
        dim: int,
        embedding: int,
        join: str = "auto",
        width: int = 128,
        depth: int = 2,
        attention_heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.frames = Frames(tokens, dim, join)
        self.into = nn.Linear(self.frames.width, width)
        layer = nn.TransformerEncoderLayer(
            width, attention_heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, embedding)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, N, D), (B, T) -> (B, E) unit rows."""
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        place = (mask.cumsum(1) - 1).clamp(min=0) / (mask.sum(1, keepdim=True) - 1).clamp(min=1)
        tokens = self.into(self.frames(features))
        tokens = tokens + sinusoids(place, tokens.shape[-1]).to(tokens.dtype)
        seen = self.layers(tokens, src_key_padding_mask=~attended(mask))
        return unit(self.out(masked_mean(seen, mask)))
