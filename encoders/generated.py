"""Media made up by a fixed seed, as the readers hand them out: to try an encoder without any files."""

from __future__ import annotations

from typing import Any

import numpy as np

FRAMES = 16  # of a clip where the encoder takes clips as long as they are
SIDES = (96, 128)  # height and width in pixels
AUDIO_SECONDS = 4
AUDIO_HZ = 16000


def generated(modality: str, frames: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    """One clip of noise as the readers hand it out, and its times in seconds.

    ``rgb+depth`` gives ``{"rgb": ..., "depth": ...}``; audio is 4 s of samples, whatever ``frames`` says.
    """
    if "+" in modality:
        parts = {part: generated(part, frames, seed) for part in modality.split("+")}
        return {part: values for part, (values, _) in parts.items()}, next(iter(parts.values()))[1]
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / 30.0
    if modality == "audio":
        return rng.normal(0, 0.1, AUDIO_SECONDS * AUDIO_HZ).astype(np.float32), np.zeros(1)
    if modality == "depth":
        return rng.integers(500, 4500, (frames, *SIDES), dtype=np.uint16), times  # mm
    if modality == "skeleton":
        body = rng.normal(0, 0.3, (1, 1, 25, 3)) + rng.normal(0, 0.05, (frames, 1, 25, 3)) + [0, 0, 3]
        return body.astype(np.float32), times
    if modality == "inertial":
        return rng.normal(size=(frames, 6)).astype(np.float32), times
    return rng.integers(0, 256, (frames, *SIDES, 3), dtype=np.uint8), times


def prepared(encoder: Any, modality: str, seed: int = 0) -> np.ndarray:
    """A generated clip of the encoder's own length, prepared: ``(T, ...)``."""
    frames = encoder.sampling.get("frames", FRAMES)
    values, times = generated(modality, frames if isinstance(frames, int) else FRAMES, seed)
    return encoder.prepare()(values, modality, None, times)
