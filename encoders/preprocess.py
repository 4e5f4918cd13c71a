"""Pixels -> network input, in torch and defined here, never by an image-processor class.

What an image-processor class computes depends on which imaging libraries happen to be installed; a feature
store needs the same bits from the same file on every machine. The geometry runs in the decode workers on
uint8 (so that little travels between processes), the normalisation in the encoder's process on float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from encoders.errors import EncoderError
from encoders.protocols import CropBox

# On the 0..1 scale, per channel.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Kinect v1/v2 depth is useful between these; 0 means "no measurement" and stays 0 (black).
DEPTH_NEAR_MM = 500.0
DEPTH_FAR_MM = 4500.0


def depth_to_gray(depth_mm: np.ndarray) -> np.ndarray:
    """16-bit depth in millimetres -> 8-bit grey, near is bright, 0 (unmeasured) stays 0.

    A fixed range keeps the metric meaning: the same distance has the same grey in every clip.
    """
    clipped = np.clip(depth_mm.astype(np.float32), DEPTH_NEAR_MM, DEPTH_FAR_MM)
    gray = 255.0 - (clipped - DEPTH_NEAR_MM) * (254.0 / (DEPTH_FAR_MM - DEPTH_NEAR_MM))
    return np.where(depth_mm == 0, 0, np.rint(gray)).astype(np.uint8)


@dataclass(frozen=True)
class ImagePreprocess:
    """How one image encoder wants its frames.

    Attributes:
        size: Side of the square input in pixels, or its height and width.
        resize: ``squash`` scales the whole frame to ``size`` (nothing of the scene is lost, the aspect is),
            or beyond it by ``centre_fraction``; ``centre`` scales the shorter side of the frame to the
            shorter one of ``size`` divided by ``centre_fraction``. What is beyond ``size`` is cropped away.
        centre_fraction: The share of a side that the crop of its middle keeps, 0..1.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.
        mean: Per channel, on the 0..1 scale.
        std: Likewise.
    """

    size: int | tuple[int, int] = 224
    resize: Literal["squash", "centre"] = "squash"
    centre_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def space(self) -> dict[str, Any]:
        """The values that decide the features, for the space digest."""
        values = {key: list(one) if isinstance(one, tuple) else one for key, one in asdict(self).items()}
        return {**values, "depth_range_mm": [DEPTH_NEAR_MM, DEPTH_FAR_MM], "revision": 1}

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """Frames ``(T, H, W, 3)`` uint8, or depth ``(T, H, W)`` uint16 mm, -> ``(T, C, *sides)`` uint8.

        C is 3, or 1 for depth (spread over three channels by :meth:`normalise`).
        """
        if values.dtype == np.uint16:
            values = depth_to_gray(values)
        if values.dtype != np.uint8 or values.ndim not in (3, 4):
            raise EncoderError(
                f"preprocess: {modality} frames are {values.dtype} {values.shape}; "
                "expected (T, H, W, 3) uint8 or (T, H, W) uint16 depth"
            )
        images = torch.from_numpy(values)
        images = images[:, None] if values.ndim == 3 else images.permute(0, 3, 1, 2)
        return self.place(images, crop).contiguous().numpy()

    def place(self, images: torch.Tensor, crop: CropBox | None) -> torch.Tensor:
        """The geometry alone: ``(T, C, H, W)`` of any number type -> ``(T, C, *sides)``."""
        return self._resize(_cut(images, crop))

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        target = self._scaled(images.shape[-2], images.shape[-1])
        if images.shape[-2:] != target:
            images = functional.interpolate(
                images, size=target, mode=self.interpolation, antialias=True, align_corners=False
            )
        (rows, columns), (top, left) = self.sides, self._corner(target)
        return images[..., top : top + rows, left : left + columns]

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """The frame's height and width after scaling, before the crop."""
        rows, columns = (round(side / self.centre_fraction) for side in self.sides)
        if self.resize == "squash":
            return rows, columns
        # As transformers' and torchvision's "shortest edge": the longer side is truncated to an integer.
        short = min(rows, columns)
        long = int(short * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)

    def _corner(self, scaled: tuple[int, int]) -> tuple[int, int]:
        """Top and left of the middle crop; an odd rest leaves the larger half below and to the right."""
        top, left = ((length - side) // 2 for length, side in zip(scaled, self.sides, strict=True))
        if min(top, left) < 0:
            raise EncoderError(f"preprocess: a crop of {self.sides} does not fit into a frame of {scaled}")
        return top, left

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """``(..., C, H, W)`` uint8 -> ``(..., 3, H, W)`` float32, on the batch's device."""
        shape = (3, 1, 1)
        scale = 1.0 / (255.0 * torch.tensor(self.std, device=batch.device).view(shape))
        shift = torch.tensor(self.mean, device=batch.device).view(shape) * 255.0
        if batch.shape[-3] == 1:
            batch = batch.expand(*batch.shape[:-3], 3, *batch.shape[-2:])
        return (batch.to(torch.float32) - shift) * scale


def _cut(images: torch.Tensor, crop: CropBox | None) -> torch.Tensor:
    """Cut the relative box out of ``(T, C, H, W)`` and mirror it if asked."""
    if crop is None:
        return images
    height, width = images.shape[-2:]
    top, left = round(crop.top * height), round(crop.left * width)
    rows, columns = max(1, round(crop.height * height)), max(1, round(crop.width * width))
    images = images[..., top : top + rows, left : left + columns]
    return images.flip(-1) if crop.flip else images


@dataclass(frozen=True)
class CmvraImages(ImagePreprocess):
    """CMVRA's images: 16-bit depth is cut off at 255, as its image library did; the rest is as usual."""

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """As :class:`ImagePreprocess`."""
        if values.dtype == np.uint16:
            values = np.minimum(values, 255).astype(np.uint8)
        return super().__call__(values, modality, crop, times_seconds)

    def space(self) -> dict[str, Any]:
        """As :class:`ImagePreprocess`."""
        return {**super().space(), "depth_range_mm": None, "depth_saturates_at": 255}
