"""The published checkpoints of DINOv2, VideoMAE, TimeSformer and V-JEPA 2 by name: architecture, hub id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from encoders.pretrained import Card

_DINOV2 = ("github.com/facebookresearch/dinov2", "Apache-2.0")
_NO_COMMERCE = "CC-BY-NC-4.0: no commercial use"
# The authors' page, and the licence of their weights.
PUBLISHED = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "videomae": ("github.com/MCG-NJU/VideoMAE", _NO_COMMERCE),
    "timesformer": ("github.com/facebookresearch/TimeSformer", _NO_COMMERCE),
    "vjepa2": ("github.com/facebookresearch/vjepa2", "MIT"),
}
# What transformers calls the side of the input, and the number of frames of those that see clips.
SIZE_KEYS = {family: "crop_size" if family == "vjepa2" else "image_size" for family in PUBLISHED}
FRAMES_KEYS = {"videomae": "num_frames", "timesformer": "num_frames", "vjepa2": "frames_per_clip"}


@dataclass(frozen=True)
class Architecture:
    """What tells the checkpoints of these families apart.

    Attributes:
        family: transformers' ``model_type``.
        width: D.
        layers: Number of blocks.
        heads: Attention heads of a block.
        patch: Side of a patch in pixels.
        size: Side of the input in pixels.
        frames: Frames of a clip; 1 where frames are seen singly.
        mlp: Dims of a block's hidden layer.
        grid_size: Side in pixels that the position table was made for (DINOv2).
        finetuned: On labels (VideoMAE): the final norm then comes after the mean over the tokens.
    """

    family: str
    width: int
    layers: int
    heads: int
    patch: int
    size: int
    mlp: int
    frames: int = 1
    grid_size: int = 0
    finetuned: bool = False


def _dino(width: int, layers: int, heads: int, family: str = "dinov2") -> Architecture:
    return Architecture(family, width, layers, heads, 14, 224, 4 * width, grid_size=518)


def _masked(width: int, layers: int, heads: int, finetuned: bool = False) -> Architecture:
    return Architecture("videomae", width, layers, heads, 16, 224, 4 * width, 16, finetuned=finetuned)


ARCHITECTURES = {
    "dinov2-s14": _dino(384, 12, 6),
    "dinov2-b14": _dino(768, 12, 12),
    "dinov2-l14": _dino(1024, 24, 16),
    "dinov2-s14-reg": _dino(384, 12, 6, "dinov2_with_registers"),
    "dinov2-b14-reg": _dino(768, 12, 12, "dinov2_with_registers"),
    "dinov2-l14-reg": _dino(1024, 24, 16, "dinov2_with_registers"),
    "videomae-b": _masked(768, 12, 12),
    "videomae-l": _masked(1024, 24, 16),
    "videomae-b-k400": _masked(768, 12, 12, finetuned=True),
    "videomae-l-k400": _masked(1024, 24, 16, finetuned=True),
    "timesformer-b": Architecture("timesformer", 768, 12, 12, 16, 224, 3072, 8),
    "vjepa2-l": Architecture("vjepa2", 1024, 24, 16, 16, 256, 4096, 64),
    "vjepa2-h": Architecture("vjepa2", 1280, 32, 16, 16, 256, 5120, 64),
    "vjepa2-g": Architecture("vjepa2", 1408, 40, 22, 16, 256, 6144, 64),
}
HUB_IDS = {
    "dinov2-s14": "facebook/dinov2-small",
    "dinov2-b14": "facebook/dinov2-base",
    "dinov2-l14": "facebook/dinov2-large",
    "dinov2-s14-reg": "facebook/dinov2-with-registers-small",
    "dinov2-b14-reg": "facebook/dinov2-with-registers-base",
    "dinov2-l14-reg": "facebook/dinov2-with-registers-large",
    "videomae-b": "MCG-NJU/videomae-base",
    "videomae-l": "MCG-NJU/videomae-large",
    "videomae-b-k400": "MCG-NJU/videomae-base-finetuned-kinetics",
    "videomae-l-k400": "MCG-NJU/videomae-large-finetuned-kinetics",
    "timesformer-b": "facebook/timesformer-base-finetuned-k400",
    "vjepa2-l": "facebook/vjepa2-vitl-fpc64-256",
    "vjepa2-h": "facebook/vjepa2-vith-fpc64-256",
    "vjepa2-g": "facebook/vjepa2-vitg-fpc64-256",
}


def card(name: str) -> Card:
    """Where a name's official weights come from."""
    return Card(HUB_IDS[name], *PUBLISHED[ARCHITECTURES[name].family])


def configuration(one: Architecture) -> dict[str, Any]:
    """An architecture in the words of transformers' configurations."""
    values: dict[str, Any] = {
        "hidden_size": one.width,
        "num_hidden_layers": one.layers,
        "num_attention_heads": one.heads,
        "patch_size": one.patch,
        SIZE_KEYS[one.family]: one.grid_size or one.size,
    }
    if one.family in FRAMES_KEYS:
        values[FRAMES_KEYS[one.family]] = one.frames
    if one.family == "videomae":
        values["use_mean_pooling"] = one.finetuned
    if one.family in ("videomae", "timesformer"):
        return {**values, "intermediate_size": one.mlp}
    return {**values, "mlp_ratio": one.mlp // one.width if one.family != "vjepa2" else one.mlp / one.width}


TINY_SIZES = Architecture("dinov2", 32, 2, 4, 8, 32, 128)


def tiny(official: Architecture) -> Architecture:
    """An architecture of the same family, small enough for a test."""
    return replace(
        TINY_SIZES,
        family=official.family,
        frames=min(official.frames, 4),
        grid_size=48 if official.grid_size else 0,
        finetuned=official.finetuned,
    )
