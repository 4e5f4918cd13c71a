"""CLIP-ViP's video tower: CLIP's vision transformer with proxy tokens that tie the frames together.

Source: Xue et al., CLIP-ViP (ICLR 2023), github.com/microsoft/XPretrain (MIT). The modules have the official
checkpoint's names, `pre_layrnorm` (sic) included. All layer norms have an eps of 1e-5, whatever configs say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

FEWEST_VALUES = 32  # of a patch, for a convolution


@dataclass(frozen=True)
class VideoShape:
    """Sizes of the video tower; those of ViT-B/16 unless said otherwise.

    Attributes:
        width: D.
        layers: Transformer layers.
        heads: Attention heads.
        hidden: Width of the layers' perceptrons.
        image: Height and width of a frame.
        patch: Height and width of a patch.
        channels: Of a frame.
        frames: Rows of the temporal embedding (interpolated for other frame counts); 0: it has none.
        proxies: Learnt tokens beside CLS that see all frames.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    image: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    frames: int = 12
    proxies: int = 3

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class QuickGELU(nn.Module):
    """As a layer, which :mod:`encoders.fast_layers` finds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`quick_gelu`."""
        return quick_gelu(x)


class VideoEmbeddings(nn.Module):
    """Frames -> CLS, proxies and patches, each with its place in space and time."""

    def __init__(self, shape: VideoShape):
        super().__init__()
        rows, columns = shape.grid
        self.class_embedding = _learnt(shape.width)
        self.added_cls = _learnt(shape.proxies, shape.width)
        self.temporal_embedding = _learnt(1, shape.frames, shape.width) if shape.frames else None
        self.patch_embedding = nn.Conv2d(shape.channels, shape.width, shape.patch, shape.patch, bias=False)
        self.position_embedding = nn.Embedding(1 + rows * columns, shape.width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(B, T, C, H, W)`` -> ``(B, M + T * L, D)``: CLS and proxies (M), then T frames of L patches.

        CLS and the proxies share the first position and have no time; patches have both.
        """
        clips, frames = pixels.shape[:2]
        positions = self.position_embedding.weight
        patches = self._patches(pixels.flatten(0, 1))
        patches = patches.unflatten(0, (clips, frames)) + positions[1:]
        if self.temporal_embedding is not None:
            patches = patches + self._times(frames)[:, :, None]
        proxies = torch.cat([self.class_embedding[None], self.added_cls]) + positions[0]
        return torch.cat([proxies.expand(clips, -1, -1), patches.flatten(1, 2)], 1)

    def _patches(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` -> ``(N, L, D)``.

        A joint's three coordinates go through a product in float32 instead of the convolution: oneDNN's
        bfloat16 convolutions read beyond so few values, and give numbers of any size on processors with AMX.
        """
        kernel = self.patch_embedding.weight
        if kernel[0].numel() >= FEWEST_VALUES:
            return self.patch_embedding(images).flatten(2).transpose(1, 2)
        size = kernel.shape[2:]
        with torch.autocast(images.device.type, enabled=False):
            values = functional.unfold(images.float(), size, stride=size).transpose(1, 2)
            return functional.linear(values, kernel.flatten(1))

    def _times(self, frames: int) -> torch.Tensor:
        """(1, T, D): the learnt times, linearly interpolated if the number of frames is another."""
        times = self.temporal_embedding
        assert times is not None
        if frames == times.shape[1]:
            return times
        return functional.interpolate(times.mT, size=frames, mode="linear", align_corners=False).mT


class ProxyAttention(nn.Module):
    """Proxies attend to everything, a patch to the proxies and its own frame.

    Two dense attentions with the same projections, so that no mask over all T * L tokens is needed.
    """

    def __init__(self, shape: VideoShape):
        super().__init__()
        self.heads = shape.heads
        self.k_proj = nn.Linear(shape.width, shape.width)
        self.v_proj = nn.Linear(shape.width, shape.width)
        self.q_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: torch.Tensor, proxies: int, frames: int) -> torch.Tensor:
        """``(B, M + T * L, D)`` -> the same shape; ``proxies`` is M, CLS included, ``frames`` is T."""
        clips = len(x)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, S, heads, d)

        def by_frame(y: torch.Tensor) -> torch.Tensor:
            return y[:, proxies:].unflatten(1, (frames, -1))  # (B, T, L, heads, d)

        def with_proxies(y: torch.Tensor) -> torch.Tensor:
            shared = y[:, None, :proxies].expand(-1, frames, -1, -1, -1)
            return torch.cat([shared, by_frame(y)], 2).flatten(0, 1)  # (B * T, M + L, heads, d)

        seen_by_all = _attend(q[:, :proxies], k, v)
        seen_by_patches = _attend(by_frame(q).flatten(0, 1), with_proxies(k), with_proxies(v))
        patches = seen_by_patches.unflatten(0, (clips, frames)).flatten(1, 2)
        return self.out_proj(torch.cat([seen_by_all, patches], 1).flatten(2))


class Perceptron(nn.Module):
    """The layers' MLP."""

    def __init__(self, shape: VideoShape):
        super().__init__()
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.activation_fn = QuickGELU()
        self.fc2 = nn.Linear(shape.hidden, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return self.fc2(self.activation_fn(self.fc1(x)))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, shape: VideoShape):
        super().__init__()
        self.self_attn = ProxyAttention(shape)
        self.layer_norm1 = nn.LayerNorm(shape.width)
        self.mlp = Perceptron(shape)
        self.layer_norm2 = nn.LayerNorm(shape.width)

    def forward(self, x: torch.Tensor, proxies: int, frames: int) -> torch.Tensor:
        """As :class:`ProxyAttention`."""
        x = x + self.self_attn(self.layer_norm1(x), proxies, frames)
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    """All layers, one after the other."""

    def __init__(self, shape: VideoShape):
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, x: torch.Tensor, proxies: int, frames: int) -> torch.Tensor:
        """As :class:`ProxyAttention`."""
        for layer in self.layers:
            x = layer(x, proxies, frames)
        return x


class VideoTower(nn.Module):
    """Frames -> tokens of the last layer."""

    def __init__(self, shape: VideoShape):
        super().__init__()
        self.proxies = 1 + shape.proxies
        self.embeddings = VideoEmbeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(shape.width)
        self.encoder = Layers(shape)
        self.post_layernorm = nn.LayerNorm(shape.width)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, T, C, H, W)`` -> the clip's vector ``(B, D)`` and its patch tokens ``(B, T, L, D)``.

        As in CLIP, only CLS goes through the last norm.
        """
        frames = pixels.shape[1]
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), self.proxies, frames)
        return self.post_layernorm(x[:, 0]), x[:, self.proxies :].unflatten(1, (frames, -1))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention over (batch, sequence, heads, d)."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _learnt(*size: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(size))
