"""The published checkpoints of CLIP, SigLIP, SigLIP 2 and X-CLIP by name: architecture, hub id, pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from encoders.preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess
from encoders.pretrained import Card

HEAD_DIM = 64  # of X-CLIP's layers on top of its towers


@dataclass(frozen=True)
class Tower:
    """A transformer."""

    width: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class TwoTowers:
    """What tells the checkpoints of these families apart.

    Attributes:
        family: A key of ``FAMILIES``.
        patch: Side of a patch in pixels.
        size: Side of the input in pixels.
        vision: The vision tower.
        text: The text tower.
        joint: Dims of the joint space.
        vocabulary: Tokens that the tokenizer knows.
        text_length: Positions of the text tower.
        frames: Frames of a clip (X-CLIP).
    """

    family: Literal["clip", "siglip", "siglip2", "xclip"]
    patch: int
    size: int
    vision: Tower
    text: Tower
    joint: int
    vocabulary: int = 49408
    text_length: int = 77
    frames: int = 1


@dataclass(frozen=True)
class Family:
    """A family's classes in transformers (``<classes>Model``, ``<classes>Config``) and published pixels."""

    model_type: str
    classes: str
    pixels: ImagePreprocess
    published: str
    licence: str


_CLIP = ImagePreprocess(resize="centre", interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
_SIGLIP = ImagePreprocess(interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
_BIG_VISION = "github.com/google-research/big_vision"
FAMILIES = {
    "clip": Family("clip", "CLIP", _CLIP, "github.com/openai/CLIP", "MIT"),
    "siglip": Family("siglip", "Siglip", _SIGLIP, _BIG_VISION, "Apache-2.0"),
    "siglip2": Family(
        "siglip", "Siglip", replace(_SIGLIP, interpolation="bilinear"), _BIG_VISION, "Apache-2.0"
    ),
    "xclip": Family("xclip", "XCLIP", ImagePreprocess(resize="centre"), "github.com/microsoft/VideoX", "MIT"),
}

_TEXT = Tower(512, 12, 8, 2048)
_BASE, _LARGE = Tower(768, 12, 12, 3072), Tower(1024, 24, 16, 4096)
_SO400M = Tower(1152, 27, 16, 4304)  # shape-optimised, 400 M parameters a tower


def _siglip(size: int, tower: Tower, patch: int = 16) -> TwoTowers:
    return TwoTowers("siglip", patch, size, tower, tower, tower.width, 32000, 64)


def _siglip2(size: int, tower: Tower, patch: int = 16) -> TwoTowers:
    return replace(_siglip(size, tower, patch), family="siglip2", vocabulary=256000)


ARCHITECTURES = {
    "clip-vit-b32": TwoTowers("clip", 32, 224, _BASE, _TEXT, 512),
    "clip-vit-b16": TwoTowers("clip", 16, 224, _BASE, _TEXT, 512),
    "clip-vit-l14": TwoTowers("clip", 14, 224, _LARGE, _BASE, 768),
    "clip-vit-l14-336": TwoTowers("clip", 14, 336, _LARGE, _BASE, 768),
    "siglip-b16-224": _siglip(224, _BASE),
    "siglip-b16-384": _siglip(384, _BASE),
    "siglip-l16-384": _siglip(384, _LARGE),
    "siglip-so400m-384": _siglip(384, _SO400M, patch=14),
    "siglip2-b16-224": _siglip2(224, _BASE),
    "siglip2-b16-384": _siglip2(384, _BASE),
    "siglip2-l16-384": _siglip2(384, _LARGE),
    "siglip2-so400m-224": _siglip2(224, _SO400M, patch=14),
    "siglip2-so400m-384": _siglip2(384, _SO400M, patch=14),
    "xclip-b32": TwoTowers("xclip", 32, 224, _BASE, _TEXT, 512, frames=8),
    "xclip-b16": TwoTowers("xclip", 16, 224, _BASE, _TEXT, 512, frames=8),
}
HUB_IDS = {
    "clip-vit-b32": "openai/clip-vit-base-patch32",
    "clip-vit-b16": "openai/clip-vit-base-patch16",
    "clip-vit-l14": "openai/clip-vit-large-patch14",
    "clip-vit-l14-336": "openai/clip-vit-large-patch14-336",
    "siglip-b16-224": "google/siglip-base-patch16-224",
    "siglip-b16-384": "google/siglip-base-patch16-384",
    "siglip-l16-384": "google/siglip-large-patch16-384",
    "siglip-so400m-384": "google/siglip-so400m-patch14-384",
    "siglip2-b16-224": "google/siglip2-base-patch16-224",
    "siglip2-b16-384": "google/siglip2-base-patch16-384",
    "siglip2-l16-384": "google/siglip2-large-patch16-384",
    "siglip2-so400m-224": "google/siglip2-so400m-patch14-224",
    "siglip2-so400m-384": "google/siglip2-so400m-patch14-384",
    "xclip-b32": "microsoft/xclip-base-patch32",
    "xclip-b16": "microsoft/xclip-base-patch16",
}


def card(name: str) -> Card:
    """Where a name's official weights come from."""
    family = FAMILIES[ARCHITECTURES[name].family]
    return Card(HUB_IDS[name], family.published, family.licence)


def configuration(one: TwoTowers) -> dict[str, Any]:
    """An architecture in the words of transformers' configurations."""
    vision: dict[str, Any] = {**_tower(one.vision), "image_size": one.size, "patch_size": one.patch}
    text: dict[str, Any] = {
        **_tower(one.text),
        "vocab_size": one.vocabulary,
        "max_position_embeddings": one.text_length,
    }
    values: dict[str, Any] = {"vision_config": vision, "text_config": text}
    if one.family.startswith("siglip"):
        text["projection_size"] = one.joint
        return values
    values["projection_dim"] = one.joint
    if one.family == "xclip":
        vision |= {"num_frames": one.frames, "mit_hidden_size": one.joint}
        vision |= {"mit_intermediate_size": 4 * one.joint, "mit_num_attention_heads": one.joint // HEAD_DIM}
        values["prompt_num_attention_heads"] = one.joint // HEAD_DIM
    return values


def _tower(one: Tower) -> dict[str, int]:
    return {
        "hidden_size": one.width,
        "num_hidden_layers": one.layers,
        "num_attention_heads": one.heads,
        "intermediate_size": one.mlp,
    }


SMALL = Tower(32, 2, 4, 64)
TINY_SIZES = TwoTowers("clip", 8, 32, SMALL, SMALL, HEAD_DIM, text_length=16)


def tiny(official: TwoTowers) -> TwoTowers:
    """An architecture of the same family, small enough for a test; the tokenizer still fits."""
    joint = SMALL.width if official.family.startswith("siglip") else HEAD_DIM
    return replace(
        TINY_SIZES,
        family=official.family,
        joint=joint,
        vocabulary=official.vocabulary,
        frames=min(official.frames, 4),
    )
