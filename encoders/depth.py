"""Depth maps as input of the encoders that were trained on disparity (Omnivore, ImageBind).

Sources: Girdhar et al., Omnivore (CVPR 2022), and github.com/facebookresearch/omnivore: its transforms
(divide by 75, clamp, mean 0.0418, standard deviation 0.0295) and its issue 12 (depth to disparity). A pixel
at depth z is shifted by ``baseline * focal / z`` pixels between a stereo camera's two eyes: near is large.

What a unit is worth: the authors read SUN RGB-D's files as millimetres, but those hold eighths of one (the
data set's toolbox shifts them right by three bits first). So the disparities that the network has seen are an
eighth of the true ones, and their published mean says so: it is 0.0418 * 75 = 3.1 pixels, but at a Kinect's
baseline * focal of 39 pixel metres nothing within its 8 metres has less than 4.9. We therefore take an eighth
too; at 1 metre, a true disparity lies more than 10 standard deviations away from the mean that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from encoders.errors import EncoderError
from encoders.preprocess import ImagePreprocess
from encoders.protocols import CropBox

# Of the share of MAX_PIXELS, over SUN RGB-D.
MEAN, STD = 0.0418, 0.0295
MIN_PIXELS, MAX_PIXELS = 0.01, 75.0
NEAR_METRES, FAR_METRES = 0.01, 50.0  # the authors' limits, on the metres that they read
TRAINED_UNITS = 8.0  # metres that the authors read, per true metre
MEASURED_SHARE = 0.5  # of a resized pixel's area; with less, it counts as unmeasured


@dataclass(frozen=True)
class DepthCamera:
    """What turns depth into disparity.

    Attributes:
        focal_pixels: Focal length, in pixels of frames ``width_pixels`` wide.
        width_pixels: See there; frames of another width are taken as the same view, scaled.
        baseline_metres: Distance of the two eyes.
    """

    focal_pixels: float
    width_pixels: int
    baseline_metres: float = 0.075  # what the authors took for both Kinects

    def pixel_metres(self, width: int) -> float:
        """Disparity in pixels of a frame of that width, times depth in metres."""
        return self.baseline_metres * self.focal_pixels * width / self.width_pixels


CAMERAS = {
    # The depth camera itself (UTD-MHAD, at half the width); factory calibrations differ by about 1 %.
    "kinect-v1": DepthCamera(focal_pixels=580.0, width_pixels=640),
    # Its depth registered to colour, as SUN RGB-D and NYU give it.
    "kinect-v1-registered": DepthCamera(focal_pixels=518.86, width_pixels=640),
    # The depth camera itself, 512 x 424 (NTU RGB+D, Drive&Act).
    "kinect-v2": DepthCamera(focal_pixels=365.0, width_pixels=512),
}


def depth_camera(given: str | Mapping[str, float] | DepthCamera) -> DepthCamera:
    """A camera by its name or its numbers.

    Raises:
        EncoderError: For an unknown name or other numbers.
    """
    if isinstance(given, DepthCamera):
        return given
    try:
        return CAMERAS[given] if isinstance(given, str) else DepthCamera(**given)  # type: ignore[arg-type]
    except (KeyError, TypeError):
        raise EncoderError(
            f"depth: camera is {given!r}; accepted are {', '.join(CAMERAS)}, or its focal_pixels, "
            "width_pixels and baseline_metres"
        ) from None


def disparity_share(depth_mm: torch.Tensor, pixel_metres: float, units: float) -> torch.Tensor:
    """Depth in millimetres -> disparity as a share of 75 pixels, 0..1; unmeasured depth (0) -> 0.

    The authors' files have no unmeasured pixels: they are filled in. Clipped like theirs, 0 would become
    the nearest there is; as 0 it is the farthest, which suits masked depth (NTU's): the background is gone.
    """
    metres = (depth_mm.to(torch.float32) * (units / 1000.0)).clamp(NEAR_METRES, FAR_METRES)
    share = (pixel_metres / metres).clamp(max=MAX_PIXELS) / MAX_PIXELS
    return share.masked_fill(depth_mm == 0, 0.0)


@dataclass(frozen=True)
class Disparity:
    """Depth maps -> normalised disparity, placed like pictures.

    Attributes:
        images: Its geometry is used, its statistics are not.
        camera: What took the depth.
        disparity: ``as-trained``: an eighth of the true one (see the module). ``true``: that itself.
            ``given``: values are no millimetres but disparities in pixels, of any type; 0 = unmeasured.
    """

    images: ImagePreprocess
    camera: DepthCamera = CAMERAS["kinect-v2"]
    disparity: Literal["as-trained", "true", "given"] = "as-trained"

    def __post_init__(self) -> None:
        if self.disparity not in ("as-trained", "true", "given"):
            raise EncoderError(f"depth: disparity is {self.disparity!r}; accepted: as-trained, true, given")

    def space(self) -> dict[str, Any]:
        """The values that decide the features, for the space digest."""
        images = self.images.space()
        geometry = {key: images[key] for key in ("size", "resize", "centre_fraction", "interpolation")}
        camera = None if self.disparity == "given" else asdict(self.camera)
        values = {"disparity": self.disparity, "camera": camera, "mean": MEAN, "std": STD, "revision": 1}
        return {**geometry, **values}

    def __call__(self, values: np.ndarray, modality: str, crop: CropBox | None = None) -> np.ndarray:
        """Depth ``(T, H, W)`` uint16 mm -> share of 75 pixels of disparity ``(T, 1, *sides)`` float16, 0..1.

        Resizing averages the measured pixels only, so that holes do not bleed into their surroundings as
        things far away; a pixel with less than half of its area measured stays a hole (0). A float16 keeps
        eleven binary digits of a disparity, which is finer than a Kinect measures.

        Raises:
            EncoderError: For values that are no depth in millimetres (8 bits cannot hold them).
        """
        share = self._share(values, modality)[:, None]
        measured = self.images.place((share > 0).to(torch.float32), crop)
        share = self.images.place(share, crop) / measured.clamp(min=MEASURED_SHARE)
        return share.masked_fill(measured < MEASURED_SHARE, 0.0).to(torch.float16).contiguous().numpy()

    def _share(self, values: np.ndarray, modality: str) -> torch.Tensor:
        if self.disparity == "given":
            pixels = torch.from_numpy(values).to(torch.float32)
            pixels = pixels.mean(-1) if values.ndim == 4 else pixels  # grey, as a video's three channels
            return pixels.clamp(0.0, MAX_PIXELS) / MAX_PIXELS
        if values.dtype != np.uint16 or values.ndim != 3:
            raise EncoderError(
                f"depth: {modality} frames are {values.dtype} {values.shape}; expected (T, H, W) uint16 in "
                "millimetres, or disparity='given' for disparities in pixels; preset='cmvra' takes 8 bits as "
                "pictures"
            )
        units = TRAINED_UNITS if self.disparity == "as-trained" else 1.0
        return disparity_share(torch.from_numpy(values), self.camera.pixel_metres(values.shape[2]), units)

    def channel(self, batch: torch.Tensor) -> torch.Tensor:
        """Shares ``(..., 1, H, W)`` -> the network's depth channel, float32, on the batch's device."""
        return (batch.to(torch.float32).clamp(min=MIN_PIXELS / MAX_PIXELS) - MEAN) / STD

    def alone(self, batch: torch.Tensor) -> torch.Tensor:
        """Shares ``(..., 1, H, W)`` -> RGBD ``(..., 4, H, W)`` without colour.

        Colour is 0 after normalisation, ImageNet's mean: half of the RGBD images that Omnivore was trained on
        had their colour dropped in just this way.
        """
        depth = self.channel(batch)
        return torch.cat([torch.zeros_like(depth).expand(*depth.shape[:-3], 3, *depth.shape[-2:]), depth], -3)


@dataclass(frozen=True)
class PicturedDepth:
    """Depth as CMVRA gave it to Omnivore: a grey picture, and its first channel again as the depth channel.

    Attributes:
        images: What makes a picture of it, and normalises that.
    """

    images: ImagePreprocess

    def space(self) -> dict[str, Any]:
        """The values that decide the features, for the space digest."""
        return {"pictured": self.images.space(), "revision": 1}

    def __call__(self, values: np.ndarray, modality: str, crop: CropBox | None = None) -> np.ndarray:
        """Depth ``(T, H, W)`` of 16 bits -> ``(T, 1, *sides)`` uint8.

        Depth that was stored as a video, ``(T, H, W, 3)`` uint8, keeps its channels, and gets the fourth.
        """
        pictures = self.images(values, modality, crop)
        return pictures if pictures.shape[1] == 1 else np.concatenate([pictures, pictures[:, :1]], 1)

    def channel(self, batch: torch.Tensor) -> torch.Tensor:
        """``(..., 1, H, W)`` uint8 -> the network's depth channel, normalised as if it were red."""
        return self.images.normalise(batch)[..., :1, :, :]

    def alone(self, batch: torch.Tensor) -> torch.Tensor:
        """``(..., 1, H, W)`` uint8 -> ``(..., 4, H, W)``: the picture and its first channel, float32."""
        picture = self.images.normalise(batch)
        return torch.cat([picture, picture[..., :1, :, :]], -3)
