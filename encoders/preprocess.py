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
        size: Side of the square input in pixels.
        resize: ``squash`` scales the whole frame to the square (nothing of the scene is lost, the aspect is);
            ``centre`` scales the shorter side to ``size / centre_fraction`` and crops the middle.
        centre_fraction: See ``resize``.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.
        mean: Per channel, on the 0..1 scale.
        std: Likewise.
    """

    size: int = 224
    resize: Literal["squash", "centre"] = "squash"
    centre_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def space(self) -> dict[str, Any]:
        """The values that decide the features, for the space digest."""
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {**values, "depth_range_mm": [DEPTH_NEAR_MM, DEPTH_FAR_MM], "revision": 1}

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """Frames ``(T, H, W, 3)`` uint8, or depth ``(T, H, W)`` uint16 mm, -> ``(T, C, size, size)`` uint8.

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
        return self._resize(_crop(images, crop)).contiguous().numpy()

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if self.resize == "squash":
            target = (self.size, self.size)
        else:
            # As transformers' and torchvision's "shortest edge": the longer side is truncated to an integer.
            short = round(self.size / self.centre_fraction)
            long = int(short * max(height, width) / min(height, width))
            target = (short, long) if height <= width else (long, short)
        if (height, width) != target:
            images = functional.interpolate(
                images, size=target, mode=self.interpolation, antialias=True, align_corners=False
            )
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        return images[..., top : top + self.size, left : left + self.size]

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """``(..., C, H, W)`` uint8 -> ``(..., 3, H, W)`` float32, on the batch's device."""
        shape = (3, 1, 1)
        scale = 1.0 / (255.0 * torch.tensor(self.std, device=batch.device).view(shape))
        shift = torch.tensor(self.mean, device=batch.device).view(shape) * 255.0
        if batch.shape[-3] == 1:
            batch = batch.expand(*batch.shape[:-3], 3, *batch.shape[-2:])
        return (batch.to(torch.float32) - shift) * scale


def _crop(images: torch.Tensor, crop: CropBox | None) -> torch.Tensor:
    """Cut the relative box out of ``(T, C, H, W)`` and mirror it if asked."""
    if crop is None:
        return images
    height, width = images.shape[-2:]
    top, left = round(crop.top * height), round(crop.left * width)
    rows, columns = max(1, round(crop.height * height)), max(1, round(crop.width * width))
    images = images[..., top : top + rows, left : left + columns]
    return images.flip(-1) if crop.flip else images
