"""Video Swin transformer: attention inside small space-time windows that shift from block to block.

Sources: Liu et al., Swin Transformer (ICCV 2021) and Video Swin Transformer (CVPR 2022); Girdhar et al.,
Omnivore (CVPR 2022), github.com/facebookresearch/omnivore, whose keys and behaviour are kept:

- What is shorter than a patch or window is padded with zeros at its end (a single image becomes itself and a
  frame of the mean colour, not two equal frames). Inside the blocks the padding comes after the norm, and is
  attended to.
- Where the map is no larger than the window, the window shrinks to it, and does not shift along that axis.
  The position bias of a shrunken window is then read from the first rows and columns of the full window's
  index. Those are the true offsets if only time shrinks, and others if height or width do; the weights were
  trained with that, so it stays.
- No stochastic depth: this is for inference, and fine-tuning without it.

Shapes: B batch, C channels, D H W time, height and width of the token map, N tokens of a window.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import nn
from torch.nn import functional

from encoders.errors import EncoderError

Size = tuple[int, int, int]  # time, height, width
EPS = 1e-5  # of every LayerNorm
OTHER_REGION = -100.0  # added to the scores between tokens that are neighbours by the cyclic shift only


@dataclass(frozen=True)
class Windows:
    """How the tokens of a batch of maps are sorted into windows.

    Attributes:
        tokens: N, of one window.
        order: ``(B * L,)``: the tokens' indices in the flattened batch, window by window.
        inverse: Likewise, what puts tokens in that order back into the maps'.
        rows: Number of tokens in windows that share a mask, for each mask; in sum B * L.
        masks: ``(N, N)``, added to the scores; None where all tokens see each other.
    """

    tokens: int
    order: torch.Tensor
    inverse: torch.Tensor
    rows: list[int]
    masks: list[torch.Tensor | None]


class PatchEmbed(nn.Module):
    """Pixels ``(B, C, T, H, W)`` -> tokens ``(B, D, H', W', dim)``: one projection and norm of each patch."""

    def __init__(self, channels: int, dim: int, patch: Size, norm: bool):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=EPS) if norm else nn.Identity()
        self.patch = patch

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        pixels = _pad(pixels, self.patch, first=2)
        batch, channels, *size = pixels.shape
        (depth, height, width), (pt, ph, pw) = size, self.patch
        pixels = pixels.view(batch, channels, depth // pt, pt, height // ph, ph, width // pw, pw)
        # A convolution whose kernels do not overlap is a matrix product, which is faster in every precision.
        patches = pixels.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return self.norm(functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias for each head and offset of two tokens."""

    def __init__(self, dim: int, heads: int, window: Size, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        offsets = prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.relative_position_index: torch.Tensor

    def bias(self, tokens: int) -> torch.Tensor:
        """``(heads, N, N)``, for windows of N tokens or, wrongly but as trained, shrunken ones."""
        index = self.relative_position_index[:tokens, :tokens].reshape(-1)
        by_head = self.relative_position_bias_table.t().contiguous()
        return by_head.index_select(1, index).view(-1, tokens, tokens)

    def forward(self, rows: torch.Tensor, windows: Windows) -> torch.Tensor:
        """Tokens ``(B * L, C)`` in the windows' order -> the same, mixed within each window."""
        shape = (-1, windows.tokens, 3, self.heads, rows.shape[1] // self.heads)
        projected, parts = self.qkv(rows), []
        bias = self.bias(windows.tokens).to(projected.dtype)  # autocast's, so that no call has to cast it
        for part, mask in zip(projected.split(windows.rows), windows.masks, strict=True):
            query, key, value = part.view(shape).permute(2, 0, 3, 1, 4).unbind()
            added = bias if mask is None else bias + mask.to(bias.dtype)
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=added[None])
            parts.append(mixed.transpose(1, 2).reshape(-1, rows.shape[1]))
        return self.proj(torch.cat(parts) if len(parts) > 1 else parts[0])


class Mlp(nn.Module):
    """Two layers with GELU (the exact one, by erf) between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(..., dim)`` -> ``(..., dim)``."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block on a token map ``(B, D, H, W, C)``; every second one shifts its windows."""

    def __init__(self, dim: int, heads: int, window: Size, shift: Size, mlp_ratio: float, qkv_bias: bool):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = WindowAttention(dim, heads, window, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See the class."""
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        depth, height, width = tokens.shape[1:4]
        window, shift = shrink(self.window, self.shift, (depth, height, width))
        tokens = _pad(tokens, window, first=1)
        windows = arrange(tuple(tokens.shape[:4]), window, shift, tokens.device)
        rows = self.attn(tokens.flatten(0, 3).index_select(0, windows.order), windows)
        return rows.index_select(0, windows.inverse).view_as(tokens)[:, :depth, :height, :width]


class PatchMerging(nn.Module):
    """Halves height and width, doubles the channels: four neighbours side by side, norm, projection."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, D, H, W, C)`` -> ``(B, D, ceil(H / 2), ceil(W / 2), 2 C)``."""
        tokens = _pad(tokens, (1, 2, 2), first=1)
        batch, depth, height, width, dim = tokens.shape
        corners = tokens.view(batch, depth, height // 2, 2, width // 2, 2, dim)
        # Order of the four: (0, 0), (1, 0), (0, 1), (1, 1) as (row, column).
        return self.reduction(self.norm(corners.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)))


class Stage(nn.Module):
    """Blocks at one resolution, then the step to the next one, if there is one."""

    def __init__(
        self, dim: int, depth: int, heads: int, window: Size, mlp_ratio: float, qkv_bias: bool, last: bool
    ):
        super().__init__()
        none, half = (0, 0, 0), (window[0] // 2, window[1] // 2, window[2] // 2)
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, half if index % 2 else none, mlp_ratio, qkv_bias)
            for index in range(depth)
        )
        self.downsample = nn.Identity() if last else PatchMerging(dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, D, H, W, C)`` -> the next stage's tokens."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.downsample(tokens)


class Swin3D(nn.Module):
    """Video Swin trunk, optionally with a second patch embedding for depth, whose tokens are added.

    Args:
        dim: Channels of the first stage; each further stage doubles them.
        depths: Blocks a stage.
        heads: Attention heads a stage.
        window: Tokens of a window along time, height and width.
        patch: Pixels of a patch along the same.
        patch_norm: Whether the patch embedding ends in a norm.
        depth_channel: Whether there is a patch embedding for a fourth input channel.
        mlp_ratio: Hidden units of a block's MLP, per channel.
        qkv_bias: Whether the projections to query, key and value have biases.
    """

    def __init__(
        self,
        dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: Size,
        patch: Size = (2, 4, 4),
        patch_norm: bool = True,
        depth_channel: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(3, dim, patch, patch_norm)
        if depth_channel:
            self.depth_patch_embed = PatchEmbed(1, dim, patch, patch_norm)
        self.channels = (3, 4) if depth_channel else (3,)
        last = len(depths) - 1
        self.layers = nn.ModuleList(
            Stage(dim << i, depths[i], heads[i], window, mlp_ratio, qkv_bias, i == last)
            for i in range(len(depths))
        )
        self.norm = nn.LayerNorm(dim << last, eps=EPS)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB or RGBD ``(B, 3 or 4, T, H, W)`` -> patch tokens ``(B, D, H', W', dim)``.

        Raises:
            EncoderError: For another number of channels.
        """
        if pixels.shape[1] not in self.channels:
            accepted = " or ".join(map(str, self.channels))
            raise EncoderError(f"swin3d: input {tuple(pixels.shape)} as (B, C, T, H, W); C is {accepted}")
        tokens = self.patch_embed(pixels[:, :3])
        return tokens + self.depth_patch_embed(pixels[:, 3:]) if pixels.shape[1] == 4 else tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Clips ``(B, 3 or 4, T, H, W)`` -> the last stage's normed tokens ``(B, D, H', W', C)``."""
        tokens = self.embed(pixels)
        for stage in self.layers:
            tokens = stage(tokens)
        return self.norm(tokens)


def relative_position_index(window: Size) -> torch.Tensor:
    """``(N, N)`` int64: for each pair of a window's tokens the row of the bias table, by their offset."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")
    places = torch.stack(axes).flatten(1)  # (3, N)
    offsets = places[:, :, None] - places[:, None] + torch.tensor(window).view(3, 1, 1) - 1
    _, rows, columns = (2 * side - 1 for side in window)
    return (offsets[0] * rows + offsets[1]) * columns + offsets[2]


def shrink(window: Size, shift: Size, size: Size) -> tuple[Size, Size]:
    """The window and shift on a map of that size: not larger than it, and unshifted where it spans it."""
    whole = [side <= full for side, full in zip(size, window, strict=True)]
    sides = [side if fits else full for side, full, fits in zip(size, window, whole, strict=True)]
    steps = [0 if fits else step for step, fits in zip(shift, whole, strict=True)]
    return (sides[0], sides[1], sides[2]), (steps[0], steps[1], steps[2])


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # ordinary tensors, whoever asks first: a later backward pass may need them
def arrange(shape: tuple[int, ...], window: Size, shift: Size, device: torch.device) -> Windows:
    """The windows of a batch of token maps ``(B, D, H, W)``, those with the same mask side by side.

    All windows attend to all their tokens, but for the last ones along each shifted axis, which the cyclic
    shift fills with both ends of the map. So there are at most eight masks, and one copy of each is enough.
    """
    index = torch.arange(prod(shape), device=device).view(shape).roll([-step for step in shift], (1, 2, 3))
    groups, masks = [], []
    for last in itertools.product(*((False, True) if step else (False,) for step in shift)):
        part = index
        for axis, (step, side, is_last) in enumerate(zip(shift, window, last, strict=True), start=1):
            cut = shape[axis] - side if step else shape[axis]
            part = part.narrow(axis, cut, side) if is_last else part.narrow(axis, 0, cut)
        groups.append(_by_window(part, window))
        masks.append(_mask(window, shift, last, device) if any(last) else None)
    order = torch.cat(groups)
    return Windows(prod(window), order, order.argsort(), [len(group) for group in groups], masks)


def _by_window(index: torch.Tensor, window: Size) -> torch.Tensor:
    """Maps' entries ``(B, D, H, W)``, window by window ``(B * D * H * W,)``."""
    depth, height, width = (side // one for side, one in zip(index.shape[1:], window, strict=True))
    split = index.reshape(-1, depth, window[0], height, window[1], width, window[2])
    return split.permute(0, 1, 3, 5, 2, 4, 6).flatten()


def _mask(window: Size, shift: Size, last: tuple[bool, ...], device: torch.device) -> torch.Tensor:
    """``(N, N)``: 0 within, `OTHER_REGION` between the two ends of the map that share a last window."""
    region = torch.zeros(window, dtype=torch.int64, device=device)
    for axis, (side, step, is_last) in enumerate(zip(window, shift, last, strict=True)):
        if is_last:
            region.narrow(axis, side - step, step).add_(1 << axis)
    region = region.flatten()
    return torch.where(region[:, None] == region, 0.0, OTHER_REGION)


def _pad(values: torch.Tensor, multiple: Size, first: int) -> torch.Tensor:
    """Zeros at the ends of the three axes from ``first``, up to multiples of those sizes."""
    missing = [-values.shape[first + axis] % multiple[axis] for axis in range(3)]
    if not any(missing):
        return values
    trailing = [0, 0] * (values.ndim - first - 3)
    return functional.pad(values, [*trailing, 0, missing[2], 0, missing[1], 0, missing[0]])
