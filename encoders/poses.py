"""Skeletons without weights, as TAHAR takes them: Kinect 2's 25 joints in the frame of their own first pose.

The coordinates of PreNormalize3D (:mod:`encoders.prenormalize`), stored once: what masked pre-training of
TAHAR (``python -m align.mae --modality skeleton``) reads instead of parsing skeleton files in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from encoders.errors import EncoderError
from encoders.prenormalize import JOINTS, PrepareBody
from encoders.protocols import CropBox, Field


@dataclass(frozen=True)
class PreparePoses:
    """PreNormalize3D of the body seen in most frames; frames that do not show it are zero."""

    body: PrepareBody = field(default_factory=lambda: PrepareBody("mark", "longest"))

    def __call__(
        self, values: np.ndarray, modality: str, crop: CropBox | None, times_seconds: np.ndarray
    ) -> np.ndarray:
        """(T, P, 25, 3) metres -> (T, 25, 3) float32; see :class:`encoders.prenormalize.PrepareBody`."""
        return np.nan_to_num(self.body(values, modality, crop, times_seconds), nan=0.0)


class Poses:
    """Skeletons of 25 joints -> ``tokens`` (D = 3), a joint each: metres, upright, facing along the axes.

    A frame of zeros shows nobody. ``joints`` takes Kinect 1's 20 joints too, and describes movement.
    """

    name = "poses"
    modalities = ("skeleton",)
    revision = 1
    unit: Literal["clip"] = "clip"
    sampling = {"frames": "all", "max_frames": 511}  # what TAHAR has positions for
    fields = {"tokens": Field("tokens", JOINTS, 3)}
    default_fields = ("tokens",)
    tolerates_bf16 = False

    def __init__(self, weights: str | None = None, device: str = "cpu", modality: str | None = None):
        if weights is not None:
            raise EncoderError(f"poses: it has no weights, so not {weights!r} either; omit --weights")
        self.device = torch.device(device)

    @property
    def space(self) -> dict[str, Any]:
        """Identity of the features."""
        return {"encoder": self.name, "revision": self.revision, "preprocess": PreparePoses().body.space()}

    def prepare(self) -> PreparePoses:
        """The whole formula, for the decode workers."""
        return PreparePoses()

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, T, 25, 3) -> tokens (B, T, 25, 3)."""
        return {"tokens": batch.to(self.device, torch.float32)}
