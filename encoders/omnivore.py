"""Omnivore: one Video Swin trunk for images, videos, and either of them with depth.

Source: Girdhar et al., Omnivore: A Single Model for Many Visual Modalities (CVPR 2022),
github.com/facebookresearch/omnivore; weights are CC-BY-NC 4.0. Keys and shapes of T and B are checked against
lists of what the original code requires of its files. Those of S and L are the published configurations (S as
T with 18 blocks in its third stage, L twice as wide as S): their parameter counts are checked, their files
have not been seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from encoders.depth import DepthCamera, Disparity, PicturedDepth, depth_camera
from encoders.errors import EncoderError
from encoders.preprocess import CLIP_MEAN, CLIP_STD, CmvraImages, ImagePreprocess
from encoders.pretrained import CMVRA, OFFICIAL, Card, Pretrained
from encoders.protocols import CropBox, Field
from encoders.swin3d import Size, Swin3D
from encoders.tokens import token_fields

RGBD = "rgb+depth"


@dataclass(frozen=True)
class OmnivoreShape:
    """Sizes of a trunk and its heads; the trunk's are those of :class:`encoders.swin3d.Swin3D`.

    Attributes:
        classes: Of the classification heads, by the input that each is for; a single number for a model with
            one head (EPIC-KITCHENS).
        projection: Instead of those, CMVRA's linear map to so many dimensions.
        size: Side of the input in pixels.
    """

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: Size = (8, 7, 7)
    patch: Size = (2, 4, 4)
    patch_norm: bool = True
    depth_channel: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    classes: tuple[tuple[str, int], ...] | int = (("image", 1000), ("rgbd", 19), ("video", 400))
    projection: int | None = None
    size: int = 224

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.dim << (len(self.depths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last stage's token map."""
        rows, columns = ceil(self.size / self.patch[1]), ceil(self.size / self.patch[2])
        for _ in self.depths[1:]:
            rows, columns = ceil(rows / 2), ceil(columns / 2)
        return rows, columns


class OmnivoreModel(nn.Module):
    """The trunk and its heads, under the official file's keys: ``trunk.*`` and ``heads.*``."""

    def __init__(self, shape: OmnivoreShape):
        super().__init__()
        self.trunk = Swin3D(
            shape.dim,
            shape.depths,
            shape.heads,
            shape.window,
            shape.patch,
            shape.patch_norm,
            shape.depth_channel,
            shape.mlp_ratio,
            shape.qkv_bias,
        )
        self.heads = _heads(shape)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised clips ``(B, 3 or 4, T, H, W)`` -> token maps ``(B, T', H', W', D)``."""
        return self.trunk(pixels)

    def logits(self, pooled: torch.Tensor, kind: str | None = None) -> torch.Tensor:
        """Pooled features ``(B, D)`` -> a head's output ``(B, classes)``.

        Args:
            pooled: The mean over a map's tokens.
            kind: ``image``, ``video`` or ``rgbd``; None where there is one head only.
        """
        return (self.heads if kind is None else self.heads[kind])(pooled)


def _heads(shape: OmnivoreShape) -> Any:
    if shape.projection is not None:
        return nn.Linear(shape.width, shape.projection, bias=False)
    if isinstance(shape.classes, int):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(shape.width, shape.classes))
    heads: dict[str, nn.Module] = {kind: nn.Linear(shape.width, count) for kind, count in shape.classes}
    if "video" in heads:
        heads["video"] = nn.Sequential(nn.Dropout(0.5), heads["video"])
    return nn.ModuleDict(heads)


@dataclass(frozen=True)
class OmnivorePreprocess:
    """Pictures, depth, or both -> prepared frames of three, one or four channels.

    Attributes:
        images: For rgb and ir.
        depth: For depth; its geometry is the pictures', so that the two stay aligned if they were.
    """

    images: ImagePreprocess
    depth: Disparity | PicturedDepth

    def space(self) -> dict[str, Any]:
        """The values that decide the features, for the space digest."""
        return {"images": self.images.space(), "depth": self.depth.space(), "revision": 1}

    def __call__(
        self,
        values: np.ndarray | Mapping[str, np.ndarray],
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """Media of a clip -> ``(T, C, S, S)``.

        C is 3 (uint8) for rgb and ir; 1 for depth (float16, or uint8 of CMVRA's); 4 (float16, which holds 8
        bits exactly) for both at once, given as ``{"rgb": (T, H, W, 3), "depth": (T, h, w)}``.

        Raises:
            EncoderError: If the two differ in the number of frames, or for what either of them refuses.
        """
        if isinstance(values, Mapping):
            pictures = self.images(values["rgb"], "rgb", crop)
            depth = self.depth(values["depth"], "depth", crop)
            if len(pictures) != len(depth):
                raise EncoderError(
                    f"omnivore: {modality} has {len(pictures)} and {len(depth)} frames; give equally many"
                )
            return np.concatenate([pictures.astype(np.float16), depth.astype(np.float16)], 1)
        if modality.split(".")[0] == "depth":
            return self.depth(values, modality, crop)
        pictures = self.images(values, modality, crop)
        # One channel would mean depth from here on.
        return pictures if pictures.shape[1] == 3 else np.repeat(pictures, 3, axis=1)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Prepared frames ``(..., C, H, W)`` -> ``(..., 3 or 4, H, W)`` float32; see ``__call__``."""
        channels = batch.shape[-3]
        if channels == 1:
            return self.depth.alone(batch)
        pictures = self.images.normalise(batch[..., :3, :, :])
        if channels == 3:
            return pictures
        return torch.cat([pictures, self.depth.channel(batch[..., 3:, :, :])], -3)


def _cmvra_preprocess(size: int) -> OmnivorePreprocess:
    images = CmvraImages(size, "squash", 1.0, "bicubic", CLIP_MEAN, CLIP_STD)
    return OmnivorePreprocess(images, PicturedDepth(images))


class Omnivore(Pretrained):
    """Clips of any number of frames (a single one is an image) -> ``embedding`` and ``tokens``.

    ``embedding`` is the mean of the normed last map (1024 dimensions for B), ``tokens`` that map, 7 x 7 for
    each step of two frames; an odd last frame is paired with one of the mean colour, as in training.

    The authors scale the shorter side to 224, crop the middle, and give 32 frames of two seconds. Most clips
    are longer than that, and 32 frames take B four times as long as 12: 16 is the default here, ``--frames``
    changes it. Scaling is bilinear and antialiased, for pictures too (theirs: bicubic for pictures; for
    videos not antialiased).

    ``rgb+depth`` expects the two to be registered to each other. ``depth`` alone goes in without colour.
    Preset ``cmvra`` is another project's way (github.com/Cappl1/CMVRA): frames squashed to the square, CLIP's
    mean and deviation for all, depth as a picture with its first channel as the depth channel, 12 frames.

    Args:
        weights: As all.
        device: As all.
        modality: As all.
        camera: What took the depth: a name of :data:`encoders.depth.CAMERAS`, or its numbers.
        disparity: How disparity is had from depth, see :class:`encoders.depth.Disparity`.
        projection: Dimensions of the linear head of a checkpoint of CMVRA's alignment; ``embedding`` is then
            what that head makes of the mean.
        **options: See :class:`encoders.pretrained.Pretrained`.
    """

    architectures = {
        "omnivore-swin-t": OmnivoreShape(96, (2, 2, 6, 2), (3, 6, 12, 24)),
        "omnivore-swin-s": OmnivoreShape(96, (2, 2, 18, 2), (3, 6, 12, 24)),
        "omnivore-swin-b": OmnivoreShape(128, (2, 2, 18, 2), (4, 8, 16, 32), window=(16, 7, 7)),
        "omnivore-swin-l": OmnivoreShape(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    }
    tiny = OmnivoreShape(
        16, (2, 2), (2, 4), (4, 3, 3), classes=(("image", 5), ("rgbd", 4), ("video", 3)), size=32
    )
    cards = {
        name: Card(file, "github.com/facebookresearch/omnivore", "CC-BY-NC 4.0 (no commercial use)")
        for name, file in {
            "omnivore-swin-t": "swinT_checkpoint.torch",
            "omnivore-swin-s": "swinS_checkpoint.torch",
            "omnivore-swin-b": "swinB_In21k_checkpoint.torch or swinB_checkpoint.torch",
            "omnivore-swin-l": "swinL_In21k_checkpoint.torch",
        }.items()
    }
    presets = (OFFICIAL, CMVRA)
    modalities = ("rgb", "ir", "depth", RGBD)
    sampling: Mapping[str, Any] = {"frames": 16}
    frames_per_step = 2

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        *,
        camera: str | Mapping[str, float] | DepthCamera = "kinect-v2",
        disparity: Literal["as-trained", "true", "given"] = "as-trained",
        projection: int | None = None,
        **options: Any,
    ):
        super().__init__(weights, device, modality, **options)
        if self.preset == CMVRA and modality == RGBD:
            raise EncoderError(f"{self.name}: CMVRA has no {RGBD}; use preset='official', or depth alone")
        if projection is not None:
            self.architecture = replace(self.architecture, projection=projection)
        shape: OmnivoreShape = self.architecture
        dim = shape.projection or shape.width
        rows, columns = shape.grid
        self.fields = {"embedding": Field("embedding", 1, dim, per_clip=True)}
        self.fields |= token_fields(rows * columns, shape.width, shape.grid)
        self.default_fields = ("embedding", "tokens.pooled")
        if self.preset == CMVRA:
            self.sampling = {"frames": 12}
            self.preprocess = _cmvra_preprocess(shape.size)
        else:
            images = ImagePreprocess(shape.size, "centre")
            depth = Disparity(images, depth_camera(camera), disparity)
            self.preprocess = OmnivorePreprocess(images, depth)
        self.frames_per_step = shape.patch[0]

    def build(self) -> OmnivoreModel:
        """See :class:`encoders.pretrained.Pretrained`."""
        return OmnivoreModel(self.architecture)

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, S, S)`` -> embedding ``(B, 1, 1, E)``, tokens ``(B, ceil(T / 2), N, D)``."""
        pixels = self.preprocess.normalise(batch.to(self.device)).transpose(1, 2)
        tokens = self.model(pixels).flatten(2, 3).float()
        pooled = tokens.mean((1, 2))
        if self.architecture.projection is not None:
            pooled = self.model.logits(pooled).float()
        return {"embedding": pooled[:, None, None], "tokens": tokens}
