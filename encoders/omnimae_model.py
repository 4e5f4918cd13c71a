"""OmniMAE's vision transformer: clips and images, masked or whole, and the decoder of its pre-training.

Source: Girdhar et al., OmniMAE (CVPR 2023), github.com/facebookresearch/omnivore (omnimae). The modules have
the official checkpoints' names. No class token; GELU; every layer norm has an eps of 1e-6.

Masks are ``(B, T', h, w)`` bool over the patches, True = dropped, equally many in each clip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn
from torch.nn import functional

from encoders.errors import EncoderError

NORM_EPS = 1e-6
WAVELENGTH = 10_000  # the longest of the position table, over 2 pi


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a stack of transformer layers.

    Attributes:
        width: D.
        layers: How many.
        heads: Attention heads.
        bias: Whether queries, keys and values have one.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    bias: bool = True


@dataclass(frozen=True)
class OmniMaeShape:
    """Sizes of the network; ViT-B's unless said otherwise.

    Attributes:
        input: Frames, height and width of a clip.
        patch: Frames, height and width of a patch.
        encoder: The trunk's layers.
        decoder: The decoder's layers (it has no query, key and value biases); None: fine-tuned, without one.
        classes: Of a fine-tuned checkpoint's head.
    """

    input: tuple[int, int, int] = (16, 224, 224)
    patch: tuple[int, int, int] = (2, 16, 16)
    encoder: BlockShape = field(default_factory=BlockShape)
    decoder: BlockShape | None = BlockShape(384, 4, 16, bias=False)
    classes: int | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along time, height and width."""
        times, rows, columns = (side // part for side, part in zip(self.input, self.patch, strict=True))
        return times, rows, columns


def position_table(tokens: int, width: int) -> torch.Tensor:
    """``(1, N, D)``: sines (even dimensions) and cosines (odd ones) of a token's index, T, H and W flattened.

    Computed in float64 as the authors do, so that it is bit for bit theirs. Official files hold it, too: what
    they hold is used.
    """
    pair = torch.arange(width, dtype=torch.float64) // 2 * 2 / width
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] / WAVELENGTH**pair
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()[None]


class RepeatFrame(nn.Module):
    """Makes a patch's worth of frames of a single one."""

    def __init__(self, frames: int):
        super().__init__()
        self.frames = frames

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, C, 1, H, W)`` -> ``(B, C, frames, H, W)``; longer clips stay as they are."""
        return pixels.expand(-1, -1, self.frames, -1, -1) if pixels.shape[2] == 1 else pixels


class PatchEmbedding(nn.Module):
    """Pixels -> patches."""

    def __init__(self, shape: OmniMaeShape):
        super().__init__()
        convolution = nn.Conv3d(3, shape.encoder.width, shape.patch, shape.patch)
        self.proj = nn.Sequential(RepeatFrame(shape.patch[0]), convolution)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, 3, T, H, W)`` -> ``(B, T', h, w, D)``."""
        return self.proj(pixels).permute(0, 2, 3, 4, 1)


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.bias)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(seen.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """The layers' MLP, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, NORM_EPS)
        self.attn = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width, NORM_EPS)
        self.mlp = Perceptron(shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def positions(table: torch.Tensor, shape: OmniMaeShape, grid: tuple[int, int, int]) -> torch.Tensor:
    """The rows of a position table for a grid of patches ``(T', h, w)``: ``(1, T' h w, D)``.

    All of them for clips; for single images those of the first step, resized if the image's size is another.
    """
    if grid == shape.grid:
        return table
    _, rows, columns = shape.grid
    first = table[:, : rows * columns]
    if grid[1:] == (rows, columns):
        return first
    image = first.mT.unflatten(2, (rows, columns))
    return functional.interpolate(image, size=grid[1:], mode="bicubic").flatten(2).mT


class Decoder(nn.Module):
    """Tokens, masked ones included -> features that a linear head turns into pixels."""

    pos_embed: torch.Tensor

    def __init__(self, shape: OmniMaeShape, layers: BlockShape):
        super().__init__()
        self.shape = shape
        self.register_buffer("pos_embed", position_table(prod(shape.grid), shape.encoder.width))
        self.decoder_embed = nn.Linear(shape.encoder.width, layers.width)
        self.decoder_blocks = nn.ModuleList(Block(layers) for _ in range(layers.layers))
        self.norm = nn.LayerNorm(layers.width, NORM_EPS)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """``(B, N, D)`` of a grid of patches -> ``(B, N, decoder width)``."""
        x = self.decoder_embed(tokens + positions(self.pos_embed, self.shape, grid))
        for block in self.decoder_blocks:
            x = block(x)
        return self.norm(x)


class Trunk(nn.Module):
    """The encoder, and the decoder where there is one."""

    pos_embed: torch.Tensor

    def __init__(self, shape: OmniMaeShape):
        super().__init__()
        self.shape = shape
        self.register_buffer("pos_embed", position_table(prod(shape.grid), shape.encoder.width))
        self.patch_embed = PatchEmbedding(shape)
        self.blocks = nn.ModuleList(Block(shape.encoder) for _ in range(shape.encoder.layers))
        self.norm = nn.LayerNorm(shape.encoder.width, NORM_EPS)
        if shape.decoder is not None:
            self.mask_token = nn.Parameter(torch.zeros(1, shape.encoder.width))
            self.decoder = Decoder(shape, shape.decoder)

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Clips ``(B, 3, T, H, W)``, T = 1 for images, -> the last layer's tokens ``(B, N, D)``, un-normed.

        With a mask only the visible patches are encoded, row by row.

        Raises:
            EncoderError: A clip of another length or size than the network was trained with, or a mask that
                is not of its patches or hides more of one clip than of another.
        """
        patches = self.patch_embed(pixels)
        grid = (patches.shape[1], patches.shape[2], patches.shape[3])
        if pixels.shape[2] > 1 and grid != self.shape.grid:
            raise EncoderError(
                f"omnimae: a clip of {_by(pixels.shape[2:])} (frames, height, width); accepted are clips of "
                f"{_by(self.shape.input)} (--frames {self.shape.input[0]}), and single images"
            )
        x = patches.flatten(1, 3) + positions(self.pos_embed, self.shape, grid)
        if mask is not None:
            _check_mask(mask, grid)
            x = x[~mask.flatten(1)].unflatten(0, (len(x), -1))
        for block in self.blocks:
            x = block(x)
        return x

    def restored(self, visible: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Visible tokens at their places and the mask token at the others: ``(B, N, D)``."""
        hidden = mask.flatten(1)
        x = self.mask_token.to(visible.dtype).expand(*hidden.shape, -1).clone()
        x[~hidden] = visible.flatten(0, 1)
        return x


class OmniMaeModel(nn.Module):
    """The trunk and its head: pixels of every patch if it has a decoder, classes if it was fine-tuned."""

    def __init__(self, shape: OmniMaeShape):
        super().__init__()
        self.trunk = Trunk(shape)
        if shape.decoder is not None:
            self.head = nn.Linear(shape.decoder.width, 3 * prod(shape.patch))
        elif shape.classes is not None:
            self.head = nn.Linear(shape.encoder.width, shape.classes)

    def pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        """What fine-tuned heads read: the mean of un-normed tokens ``(B, N, D)``, normed after that."""
        return self.trunk.norm(tokens.mean(1))

    def reconstruct(self, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Masked clips ``(B, 3, T, H, W)`` -> every patch's pixels ``(B, N, pt * ph * pw * 3)``.

        The authors' own forward pass of the pre-training model fails on the trunk's pair of outputs; this is
        what it means: encode the visible, norm, fill in mask tokens, decode, project.
        """
        visible = self.trunk.norm(self.trunk(pixels, mask))
        grid = (mask.shape[1], mask.shape[2], mask.shape[3])
        return self.head(self.trunk.decoder(self.trunk.restored(visible, mask), grid))


def _check_mask(mask: torch.Tensor, grid: tuple[int, int, int]) -> None:
    hidden = mask.flatten(1).sum(1)
    if mask.shape[1:] != grid or (hidden != hidden[0]).any():
        counts = sorted(set(hidden.tolist()))
        raise EncoderError(
            f"omnimae: a mask of {_by(mask.shape[1:])} that hides {counts} patches a clip; "
            f"expected {_by(grid)}, and equally many in each clip"
        )


def _by(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))
