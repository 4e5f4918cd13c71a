"""Pretrained encoders: media tensors -> features. Imports nothing else of FrameBank.

Adding one: a class with the attributes of :class:`encoders.protocols.Encoder` in a file of its own, and a
line in ``ENCODERS``; the contract test over the table covers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoders.errors import EncoderError

if TYPE_CHECKING:
    from encoders.protocols import Encoder, TextEncoder

# name -> "module:Class", imported only when asked for, so that --help loads no torch.
ENCODERS = {
    "efficientnet-lite0": "encoders.efficientnet:EfficientNetLite0",
    "minilm": "encoders.minilm:MiniLM",
    "clip": "encoders.clip:Clip",
    "clip-vit-b32": "encoders.clip:Clip",
    "clip-vit-b16": "encoders.clip:Clip",
    "clip-vit-l14": "encoders.clip:Clip",
    "clip-vit-l14-336": "encoders.clip:Clip",
    "siglip-b16-224": "encoders.clip:Clip",
    "siglip-b16-384": "encoders.clip:Clip",
    "siglip-l16-384": "encoders.clip:Clip",
    "siglip-so400m-384": "encoders.clip:Clip",
    "siglip2-b16-224": "encoders.clip:Clip",
    "siglip2-b16-384": "encoders.clip:Clip",
    "siglip2-l16-384": "encoders.clip:Clip",
    "siglip2-so400m-224": "encoders.clip:Clip",
    "siglip2-so400m-384": "encoders.clip:Clip",
    "xclip-b32": "encoders.clip:Clip",
    "xclip-b16": "encoders.clip:Clip",
    "dinov2-s14": "encoders.vision_transformers:VisionTransformer",
    "dinov2-b14": "encoders.vision_transformers:VisionTransformer",
    "dinov2-l14": "encoders.vision_transformers:VisionTransformer",
    "dinov2-s14-reg": "encoders.vision_transformers:VisionTransformer",
    "dinov2-b14-reg": "encoders.vision_transformers:VisionTransformer",
    "dinov2-l14-reg": "encoders.vision_transformers:VisionTransformer",
    "videomae-b": "encoders.vision_transformers:VisionTransformer",
    "videomae-l": "encoders.vision_transformers:VisionTransformer",
    "videomae-b-k400": "encoders.vision_transformers:VisionTransformer",
    "videomae-l-k400": "encoders.vision_transformers:VisionTransformer",
    "timesformer-b": "encoders.vision_transformers:VisionTransformer",
    "vjepa2-l": "encoders.vision_transformers:VisionTransformer",
    "vjepa2-h": "encoders.vision_transformers:VisionTransformer",
    "vjepa2-g": "encoders.vision_transformers:VisionTransformer",
    "joints": "encoders.joints:Joints",
    "poses": "encoders.poses:Poses",
    "imu": "encoders.imu:IMU",
    "resnet-152": "encoders.resnet:ResNet",
    "resnext-101-3d": "encoders.resnext3d:ResNeXt3d",
    "davenet": "encoders.davenet:Davenet",
    "davenet-v2": "encoders.davenet:Davenet",
    "clap-htsat": "encoders.clap:Clap",
    "clip-vip-b16": "encoders.clip_vip:ClipVip",
    "clip-vip-b32": "encoders.clip_vip:ClipVip",
    "tahar": "encoders.tahar:Tahar",
    "omnimae-vit-b": "encoders.omnimae:OmniMae",
    "lavila-tsf-b": "encoders.lavila:Lavila",
    "lavila-tsf-l": "encoders.lavila:Lavila",
    "omnivore-swin-t": "encoders.omnivore:Omnivore",
    "omnivore-swin-s": "encoders.omnivore:Omnivore",
    "omnivore-swin-b": "encoders.omnivore:Omnivore",
    "omnivore-swin-l": "encoders.omnivore:Omnivore",
}


def load_encoder(
    name: str, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
) -> Encoder | TextEncoder:
    """Make an encoder; its weights are read at the first ``encode``, so that describing it stays cheap.

    Args:
        name: A key of ``ENCODERS``.
        weights: A local file or folder, a hub id, or ``random`` (tests only: the encoder's name then says
            so); None takes the installed package's weights.
        device: ``cpu``, ``cuda``, ``cuda:1``...
        modality: What it will be fed; a camera view's suffix (``ir.ceiling``) counts only where a checkpoint
            holds an encoder of that view. ``rgb+depth``: both at once.
        **options: Further arguments of the encoder's class (``preset``, ``allow_partial``, ``persons``...).

    Raises:
        EncoderError: Unknown name, modality or option, or weights that are not there.
    """
    if name not in ENCODERS:
        import difflib

        close = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise EncoderError(
            f"encoders: no encoder named {name!r}{hint}; there are: {', '.join(sorted(ENCODERS))}"
        )
    module, attribute = ENCODERS[name].split(":")
    factory = getattr(import_module(module), attribute)
    base = base_modality(modality) if modality else None
    if base is not None and base not in factory.modalities:
        raise EncoderError(
            f"encoders: {name} does not encode {modality!r}; it takes: {', '.join(factory.modalities)}"
        )
    if hasattr(factory, "architectures"):  # a family of several names
        options["name"] = name
        options.setdefault("entry", modality)
    try:
        return factory(weights=weights, device=device, modality=base, **options)
    except TypeError as error:
        raise EncoderError(f"encoders: {name}: {error}; see the arguments of {ENCODERS[name]}") from error


def load_stored(
    name: str, weights: str | None = None, device: str = "cpu", modality: str | None = None
) -> Iterator[Encoder | TextEncoder]:
    """The encoders that may have written a feature set, by the name that stands there; usually one.

    ``-random``, ``-tiny`` and ``-custom`` say how it was made; which preset it was only the space tells, so
    each is tried.

    Raises:
        EncoderError: As :func:`load_encoder`.
    """
    plain, options = name.removesuffix("-random"), dict[str, Any]()
    if plain != name:
        weights = "random"
    if plain.endswith("-tiny"):
        plain, options = plain.removesuffix("-tiny"), {"architecture": "tiny"}
    plain = plain.removesuffix("-custom")
    first = load_encoder(plain, weights, device, modality, **options)
    yield first
    for preset in getattr(first, "presets", ())[1:]:
        yield load_encoder(plain, weights, device, modality, preset=preset, **options)


def base_modality(modality: str) -> str:
    """``ir.ceiling`` -> ``ir``, ``rgb.left+depth.left`` -> ``rgb+depth``: what encoders are chosen by."""
    return "+".join(part.split(".")[0] for part in modality.split("+"))


def encoders_for(modality: str) -> list[str]:
    """The names of the encoders that take a modality (``ir.ceiling`` counts as ``ir``)."""
    base = base_modality(modality)
    found = []
    for name, target in ENCODERS.items():
        module, attribute = target.split(":")
        if base in getattr(import_module(module), attribute).modalities:
            found.append(name)
    return found
