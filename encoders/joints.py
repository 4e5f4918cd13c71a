"""Skeletons without weights: joint positions of a body that faces us, in torso lengths, and velocities.

What a pose means does not depend on where the body stands, how tall it is or which way the camera looks, so
these are taken out: the hips' centre is the origin, the torso's length the unit, and the clip's mean facing
turns to the camera (a rotation about the vertical axis only: lying down stays lying down). What is left, the
pose, is stored on its own; what tells actions apart across people is how it changes: each joint's distance
from its own mean over the clip (its movement, without the person's habitual posture) and its velocity. The
hips' own row would be zero; it holds where the body is relative to its mean place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from encoders.errors import EncoderError
from encoders.protocols import CropBox, Field

JOINTS = 20  # Kinect's: head, shoulder centre, spine, hip centre, then arms and legs, left before right
SHOULDER_CENTRE, SPINE, HIP_CENTRE = 1, 2, 3
LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP = 4, 8, 12, 16
MIRRORED = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15)  # left and right swapped
# Joints in the file -> which of them are ours, in our order.
LAYOUTS = {
    20: tuple(range(20)),  # Kinect 1, as UTD-MHAD stores it
    25: (3, 20, 1, 0, *range(4, 20)),  # Kinect 2 (NTU RGB+D); neck, finger tips and thumbs are left out
}
TOKEN_DIM = 6
POSE_DIM = 3
SMOOTHING_SECONDS = 0.1  # of positions before they are differentiated: Kinect's joints tremble
MIN_TORSO_METRES = 0.05  # below it the torso is a tracking failure, not a unit


@dataclass(frozen=True)
class PrepareJoints:
    """Positions in metres -> features, before the batch axis.

    Attributes:
        persons: How many bodies are kept; missing ones are zero.
        face_camera: Whether the clip's mean facing is turned to the camera.
    """

    persons: int
    face_camera: bool

    def __call__(
        self, values: np.ndarray, modality: str, crop: CropBox | None, times_seconds: np.ndarray
    ) -> np.ndarray:
        """One clip.

        Args:
            values: (T, P, J, 3) metres, x right, y up, z away; zero or NaN where a joint is not seen.
            modality: ``skeleton``.
            crop: Of a view: its ``flip`` mirrors the body; a box has no meaning for joints.
            times_seconds: (T,) ascending.

        Returns:
            (T, persons * 20, 12) float32: movement, velocity, pose, and the coordinates as they were read.

        Raises:
            EncoderError: If the joints are of no known layout, or no body is seen in any frame.
        """
        bodies, seen = _bodies(values, self.persons)
        if crop is not None and crop.flip:
            bodies = bodies[:, :, MIRRORED] * np.array([-1.0, 1.0, 1.0])
        positions = [_filled(bodies[:, p], seen[:, p]) for p in range(self.persons)]
        origin, unit, turn = _frame_of(positions[0], self.face_camera)
        parts = []
        for p, body in enumerate(positions):
            present = seen[:, p].any()
            features = _described(body, origin, unit, turn, times_seconds)
            parts.append(np.concatenate([features * present, bodies[:, p]], -1))
        return np.concatenate(parts, 1).astype(np.float32)


class Joints:
    """Skeletons of 20 (Kinect 1) or 25 (Kinect 2, NTU) joints -> one token a joint and frame, 20 a person.

    ``tokens`` (D = 6): movement in torso lengths, velocity in torso lengths a second. ``pose`` (D = 3): the
    normalised positions, where a still posture matters (sitting, standing). ``raw`` (D = 3): the coordinates
    in metres as read, for heads with a normalisation of their own, and for baselines. Both layouts become the
    same 20 joints, so that heads trained on one data set fit the other.
    """

    name = "joints"
    modalities = ("skeleton",)
    revision = 1
    unit: Literal["clip"] = "clip"
    sampling = {"frames": "all", "max_frames": 300}
    default_fields = ("tokens", "pose", "raw")
    tolerates_bf16 = False

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        persons: int = 1,
        face_camera: bool = True,
    ):
        if weights is not None:
            raise EncoderError(f"joints: it has no weights, so not {weights!r} either; omit --weights")
        if persons < 1:
            raise EncoderError(f"joints: persons is {persons}; 1 or more is accepted (NTU's pairs need 2)")
        self.device = torch.device(device)
        self.persons, self.face_camera = persons, face_camera
        tokens = persons * JOINTS
        widths = {"tokens": TOKEN_DIM, "pose": POSE_DIM, "raw": POSE_DIM}
        self.fields = {name: Field(name, tokens, width) for name, width in widths.items()}

    @property
    def space(self) -> dict[str, Any]:
        """Identity of the features: every constant that shapes them."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "persons": self.persons,
            "face_camera": self.face_camera,
            "smoothing_seconds": SMOOTHING_SECONDS,
        }

    def prepare(self) -> PrepareJoints:
        """The whole formula, for the decode workers."""
        return PrepareJoints(self.persons, self.face_camera)

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, T, N, 12) -> tokens (B, T, N, 6), pose and raw (B, T, N, 3); N = 20 x persons."""
        values = batch.to(self.device, torch.float32)
        widths = [TOKEN_DIM, POSE_DIM, POSE_DIM]
        return dict(zip(("tokens", "pose", "raw"), values.split(widths, -1), strict=True))


def _bodies(values: np.ndarray, persons: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, P, J, 3) as read -> (T, persons, 20, 3) float64, zeros if unseen, and (T, persons) seen."""
    if values.ndim != 4 or values.shape[2] not in LAYOUTS or values.shape[3] != 3 or not len(values):
        known = " or ".join(str(joints) for joints in LAYOUTS)
        raise EncoderError(f"joints: a clip of shape {values.shape}; needed: (T, P, {known}, 3), T >= 1")
    found = values[:, :persons][:, :, list(LAYOUTS[values.shape[2]])].astype(np.float64)
    found = np.where(np.isfinite(found).all(-1, keepdims=True), found, 0.0)
    missing = persons - found.shape[1]
    bodies = np.pad(found, ((0, 0), (0, missing), (0, 0), (0, 0)))
    seen = (bodies[:, :, [SHOULDER_CENTRE, HIP_CENTRE]] != 0).any(-1).all(-1)
    if not seen[:, 0].any():
        raise EncoderError(f"joints: no body is seen in any of the {len(values)} frames")
    return bodies, seen


def _filled(body: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(T, J, 3): joints that are not seen move on a line between the frames that show them.

    A joint that no frame shows stays at the hips' centre, where it says nothing.
    """
    if not seen.any():
        return body
    steps = np.arange(len(body))
    shown = (body != 0).any(-1) & seen[:, None]
    filled = np.empty_like(body)
    for joint in (HIP_CENTRE, *range(JOINTS)):
        good = shown[:, joint]
        for axis in range(3):
            source = body[good, joint, axis]
            filled[:, joint, axis] = (
                np.interp(steps, steps[good], source) if good.any() else filled[:, HIP_CENTRE, axis]
            )
    return filled


def _frame_of(body: np.ndarray, face_camera: bool) -> tuple[np.ndarray, float, np.ndarray]:
    """The main person's hips (T, 1, 3), torso length in metres, and turn about the vertical (3, 3)."""
    lengths = [
        np.linalg.norm(body[:, a] - body[:, b], axis=-1)
        for a, b in ((SHOULDER_CENTRE, SPINE), (SPINE, HIP_CENTRE))
    ]
    torso = max(float(np.median(lengths[0] + lengths[1])), MIN_TORSO_METRES)
    across = body[:, RIGHT_SHOULDER] - body[:, LEFT_SHOULDER] + body[:, RIGHT_HIP] - body[:, LEFT_HIP]
    x, _, z = across.mean(0)
    angle = np.arctan2(z, x) if face_camera else 0.0
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    return body[:, HIP_CENTRE : HIP_CENTRE + 1], torso, turn


def _described(
    body: np.ndarray, origin: np.ndarray, unit: float, turn: np.ndarray, times_seconds: np.ndarray
) -> np.ndarray:
    """(T, 20, 3) metres -> (T, 20, 9): movement, velocity, pose."""
    pose = (body - origin) @ turn.T / unit
    pose[:, HIP_CENTRE] = ((body[:, HIP_CENTRE] - origin.mean(0)) @ turn.T) / unit
    return np.concatenate([pose - pose.mean(0), velocity(pose, times_seconds), pose], -1)


def velocity(values: np.ndarray, times_seconds: np.ndarray) -> np.ndarray:
    """(T, ...) -> its change a second, smoothed first; zeros for a single frame."""
    if len(values) < 2:
        return np.zeros_like(values)
    steps = np.diff(times_seconds)
    step = max(float(np.median(steps)), 1e-6)
    smooth = gaussian_filter1d(values, SMOOTHING_SECONDS / step, axis=0, mode="nearest")
    # Repeated frames (a fixed count asked of a short clip) share a time; half a step keeps the slope finite.
    places = times_seconds[0] + np.concatenate([[0.0], np.cumsum(np.maximum(steps, step / 2))])
    change: np.ndarray = np.gradient(smooth, places, axis=0)
    return change
