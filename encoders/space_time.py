"""LaViLa's video tower: a vision transformer whose layers attend over time and then over space.

Sources: Bain et al., Frozen in Time (ICCV 2021), whose layer this is; Zhao et al., LaViLa (CVPR 2023),
github.com/facebookresearch/LaViLa (MIT), which starts from CLIP's image tower. The modules have LaViLa's
names. TimeSformer in transformers is another network: its attention over time leaves the class token out.

Tokens are ordered CLS, then frame by frame, each frame's patches row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from encoders.clip_vip_model import QuickGELU

NORM_EPS = 1e-6
PRE_NORM_EPS = 1e-5  # CLIP's; the layers are initialised from CLIP, too, but use the other one
Axis = Literal["time", "space"]
# How times are found for more frames than the checkpoint has: see inflated().
Inflation = Literal["bilinear", "interp", "zeros"]


@dataclass(frozen=True)
class SpaceTimeShape:
    """Sizes of the tower; those of ViT-B/16 unless said otherwise.

    Attributes:
        image: Side of a frame in pixels.
        patch: Side of a patch.
        width: D.
        layers: Transformer layers.
        heads: Attention heads.
        frames: Rows of the temporal embedding; other clips truncate or inflate it.
        pre_norm: CLIP's norm of the embeddings, and no bias of the patches; else a bias and no norm.
        quick_gelu: CLIP's approximation of GELU; False: GELU itself.
        gated: Whether a learnt tanh gate weighs each layer's attention over time.
    """

    image: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    frames: int = 4
    pre_norm: bool = True
    quick_gelu: bool = True
    gated: bool = False

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        return self.image // self.patch


def inflated(times: torch.Tensor, frames: int, how: Inflation = "bilinear") -> torch.Tensor:
    """A temporal embedding ``(1, T, D)`` for another number of frames.

    Fewer frames take the first ones. More: ``bilinear`` resizes the T x D table as if it were an image (which
    is linear in time), ``interp`` repeats the nearest row, ``zeros`` appends zeros.
    """
    trained = times.shape[1]
    if frames <= trained:
        return times[:, :frames]
    if how == "zeros":
        return functional.pad(times, (0, 0, 0, frames - trained))
    if how == "interp":
        return functional.interpolate(times.mT, size=frames, mode="nearest").mT
    return functional.interpolate(times.mT, size=frames, mode="linear", align_corners=False).mT


class DividedAttention(nn.Module):
    """CLS attends to everything; a patch to CLS and its place in all frames, or to CLS and its own frame."""

    def __init__(self, shape: SpaceTimeShape):
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: torch.Tensor, frames: int, over: Axis) -> torch.Tensor:
        """``(B, 1 + T * N, D)`` -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, S, heads, d)

        def groups(y: torch.Tensor) -> torch.Tensor:
            patches = y[:, 1:].unflatten(1, (frames, -1))
            return patches.transpose(1, 2) if over == "time" else patches  # (B, groups, length, heads, d)

        def with_cls(y: torch.Tensor) -> torch.Tensor:
            patches = groups(y)
            cls = y[:, None, :1].expand(-1, patches.shape[1], -1, -1, -1)
            return torch.cat([cls, patches], 2).flatten(0, 1)

        cls = _attend(q[:, :1], k, v)
        patches = _attend(groups(q).flatten(0, 1), with_cls(k), with_cls(v)).unflatten(0, (len(x), -1))
        patches = patches.transpose(1, 2) if over == "time" else patches
        return self.proj(torch.cat([cls, patches.flatten(1, 2)], 1).flatten(2))


class Perceptron(nn.Module):
    """The layers' MLP, four times as wide inside."""

    def __init__(self, shape: SpaceTimeShape):
        super().__init__()
        self.fc1 = nn.Linear(shape.width, 4 * shape.width)
        self.activation_fn = QuickGELU() if shape.quick_gelu else nn.GELU()
        self.fc2 = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return self.fc2(self.activation_fn(self.fc1(x)))


class Block(nn.Module):
    """Attention over time, then over space, then the perceptron."""

    def __init__(self, shape: SpaceTimeShape):
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, NORM_EPS)
        self.attn = DividedAttention(shape)
        self.timeattn = DividedAttention(shape)
        self.norm2 = nn.LayerNorm(shape.width, NORM_EPS)
        self.mlp = Perceptron(shape)
        self.norm3 = nn.LayerNorm(shape.width, NORM_EPS)
        self.alpha_timeattn = nn.Parameter(torch.zeros([])) if shape.gated else None

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """As :class:`DividedAttention`. Space is added to the layer's input, not to what time made of it."""
        gate = 1.0 if self.alpha_timeattn is None else self.alpha_timeattn.tanh()
        in_time = x + gate * self.timeattn(self.norm3(x), frames, "time")
        in_space = x + self.attn(self.norm1(in_time), frames, "space")
        return in_space + self.mlp(self.norm2(in_space))


class PatchEmbedding(nn.Module):
    """Pixels -> patches of single frames."""

    def __init__(self, shape: SpaceTimeShape):
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=not shape.pre_norm)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(F, 3, H, W)`` -> ``(F, N, D)``."""
        return self.proj(pixels).flatten(2).mT


class SpaceTimeTransformer(nn.Module):
    """Clips -> tokens after the last norm.

    Args:
        shape: Sizes.
        inflation: See :func:`inflated`.
    """

    def __init__(self, shape: SpaceTimeShape, inflation: Inflation = "bilinear"):
        super().__init__()
        self.inflation = inflation
        self.cls_token = _learnt(1, 1, shape.width)
        self.pos_embed = _learnt(1, 1 + shape.side**2, shape.width)
        self.temporal_embed = _learnt(1, shape.frames, shape.width)
        self.patch_embed = PatchEmbedding(shape)
        self.ln_pre = nn.LayerNorm(shape.width, PRE_NORM_EPS) if shape.pre_norm else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, NORM_EPS)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, T, 3, H, W)`` normalised, any T, -> ``(B, 1 + T * N, D)``, CLS first."""
        frames = pixels.shape[1]
        x = self._embedded(pixels)
        if self.ln_pre is not None:
            x = self.ln_pre(x)
        for block in self.blocks:
            x = block(x, frames)
        return self.norm(x)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """CLS has a place and no time, patches have both."""
        clips, frames = pixels.shape[:2]
        patches = self.patch_embed(pixels.flatten(0, 1)).unflatten(0, (clips, frames))
        times = inflated(self.temporal_embed, frames, self.inflation)
        patches = patches + self.pos_embed[:, None, 1:] + times[:, :, None]
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(clips, -1, -1), patches.flatten(1, 2)], 1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention over (batch, sequence, heads, d)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _learnt(*size: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(size))
