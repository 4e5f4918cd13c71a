"""Skeletons in a frame of their own: the first frame's body is the origin, its spine and shoulders the axes.

Sources: PreNormalize3D of pyskl (Duan et al., 2022) and 2s-AGCN (Shi et al., CVPR 2019), as CMVRA
(github.com/Cappl1/CMVRA) uses it for NTU RGB+D; Normalize3D of TAHAR (Lerch et al., WACVW 2024). In float64.
Joints are Kinect 2's 25. A joint at exactly zero was not seen, and stays zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from encoders.errors import EncoderError
from encoders.protocols import CropBox

JOINTS = 25
SPINE_BASE, SPINE_MIDDLE, SPINE_SHOULDER = 0, 1, 20
LEFT_SHOULDER, RIGHT_SHOULDER = 4, 8
# Left and right swapped: arms, legs, finger tips and thumbs.
MIRRORED = (0, 1, 2, 3, *range(8, 12), *range(4, 8), *range(16, 20), *range(12, 16), 20, 23, 24, 21, 22)
UPWARDS, RIGHTWARDS = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
NO_LENGTH = 1e-6  # metres (squared): shorter vectors have no direction


def prenormalise(bodies: np.ndarray) -> np.ndarray:
    """PreNormalize3D: the frames of the main body, upright and facing along the axes of its first frame.

    The first frame's middle of the spine becomes the origin, the lower spine points along +z, and the
    shoulders, right minus left, along +x.

    Args:
        bodies: (M, T, 25, 3) metres, all-zero where a body is not seen.

    Returns:
        (M, T', 25, 3) float64: the body that is seen in most frames first, only frames in which it is seen.
        A clip that shows nobody stays as it is.
    """
    order, seen = main_body(bodies)
    if not seen.any():
        return bodies.astype(np.float64)
    bodies = bodies[order][:, seen].astype(np.float64)
    bodies = _centred(bodies, bodies[0, 0, SPINE_MIDDLE])
    bodies = bodies @ _turn(bodies[0, 0, SPINE_MIDDLE] - bodies[0, 0, SPINE_BASE], UPWARDS).T
    return bodies @ _turn(bodies[0, 0, RIGHT_SHOULDER] - bodies[0, 0, LEFT_SHOULDER], RIGHTWARDS).T


def main_body(bodies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bodies' order (M,), that of most frames first (the first of equals), and its frames (T,) bool."""
    seen = ~np.isclose(bodies, 0).all((2, 3))
    main = int(seen.sum(1).argmax())
    others = [body for body in range(len(bodies)) if body != main]
    return np.array([main, *others]), seen[main]


def normalise_3d(
    body: np.ndarray, layout: Literal["NTU", "DAA"] = "NTU", scale: float | None = None
) -> np.ndarray:
    """Normalize3D: as :func:`prenormalise` for one body, along the whole spine, optionally scaled.

    Args:
        body: (T, 25, 3) metres, or zeros.
        layout: ``NTU`` takes origin and axes from the first frame; ``DAA`` (Drive&Act, whose driver sits
            still) takes the mean of all joints and frames, and the axes' ends averaged over time.
        scale: The largest coordinate afterwards; None leaves metres.

    Returns:
        (T, 25, 3) float64.
    """
    body = body.astype(np.float64)
    reference = slice(0, 1) if layout == "NTU" else slice(None)
    body = _centred(body, body[0, SPINE_MIDDLE] if layout == "NTU" else body.mean((0, 1)))
    for end, start, axis in (
        (SPINE_SHOULDER, SPINE_BASE, UPWARDS),
        (RIGHT_SHOULDER, LEFT_SHOULDER, RIGHTWARDS),
    ):
        ends = body[reference].mean(0)
        body = body @ _turn(ends[end] - ends[start], axis).T
    middles = np.median(body, 0)
    if scale is not None and np.linalg.norm(middles[SPINE_SHOULDER] - middles[SPINE_BASE]) > 0:
        body = body * (scale / np.abs(body).max())
    return body


def _centred(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Joints (..., 3) relative to the origin; those not seen stay zero."""
    return (values - origin) * (values != 0).any(-1, keepdims=True)


def _turn(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) that turns a vector onto a unit axis by the shortest way; none if it has no length.

    A vector that points exactly the other way is not turned either (there is no one shortest way).
    """
    normal = np.cross(vector, axis)
    if np.abs(normal).sum() < NO_LENGTH:
        return np.eye(3)
    angle = np.arccos(np.clip(vector @ axis / np.linalg.norm(vector), -1.0, 1.0))
    return Rotation.from_rotvec(normal / np.linalg.norm(normal) * angle).as_matrix()


@dataclass(frozen=True)
class PrepareBody:
    """One body of a clip, prenormalised, for the decode workers.

    Attributes:
        gaps: Frames in which the body is not seen keep their place, so that times stay true: ``mark`` fills
            them with NaN, ``hold`` with the last frame that shows it (the first, before that).
        follow: ``longest``: the body seen in most frames; ``first``: the reader's first.
        max_frames: What the encoder takes at most.
    """

    gaps: Literal["mark", "hold"]
    follow: Literal["longest", "first"] = "longest"
    max_frames: int | None = None

    def space(self) -> dict[str, Any]:
        """The values that decide the features."""
        return {"normalise": "PreNormalize3D", **asdict(self)}

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """(T, P, 25, 3) metres, zero or NaN where not seen, -> (T, 25, 3) float32.

        Raises:
            EncoderError: For other joints, too many frames, or if no body is seen in any.
        """
        if values.ndim != 4 or values.shape[2:] != (JOINTS, 3) or not values.shape[1]:
            raise EncoderError(
                f"skeleton: a clip of shape {values.shape}; needed: (T, P, {JOINTS}, 3), Kinect 2's joints"
            )
        if self.max_frames is not None and len(values) > self.max_frames:
            raise EncoderError(
                f"skeleton: {len(values)} frames; the encoder takes at most {self.max_frames}: "
                f"set max_frames: {self.max_frames} in its sampling"
            )
        bodies = np.where(np.isfinite(values).all(-1, keepdims=True), values, 0.0).swapaxes(0, 1)
        bodies = bodies[:1] if self.follow == "first" else bodies
        if crop is not None and crop.flip:
            bodies = bodies[:, :, MIRRORED] * np.array([-1.0, 1.0, 1.0])
        seen = main_body(bodies)[1]
        if not seen.any():
            raise EncoderError(f"skeleton: no body is seen in any of the {len(values)} frames; leave it out")
        placed = np.full((len(values), JOINTS, 3), np.nan, np.float32)
        placed[seen] = prenormalise(bodies)[0]
        return placed[_shown(seen)] if self.gaps == "hold" else placed


def _shown(seen: np.ndarray) -> np.ndarray:
    """(T,) bool -> for each frame the last one up to it that is seen, else the first that is."""
    last = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), -1))
    return np.where(last < 0, seen.argmax(), last)
