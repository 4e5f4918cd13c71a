"""3D residual networks of Hara et al.: ResNeXt-101 as the 3D features of HowTo100M were made with.

Sources: Hara, Kataoka & Satoh, Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?
(CVPR 2018), github.com/kenshohara/3D-ResNets-PyTorch, its code of 2017, where ResNeXt's stem has 64 channels;
github.com/antoine77340/video_feature_extractor for HowTo100M's windows, geometry and mean (Miech et al., ICCV
2019). There each vector was also divided by its length; here it is stored as the network gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import pad

from encoders.preprocess import ImagePreprocess
from encoders.pretrained import Card, Pretrained
from encoders.tokens import TOKENS, token_fields

# Kinetics' mean on the 0..255 scale; nothing is divided by a deviation.
MEAN = (110.6, 103.2, 96.3)
BATCH_WINDOWS = 16  # through the network at once: a long clip needs no more memory than a short one
COUNTER = ".num_batches_tracked"  # not in checkpoints from before PyTorch 0.4.1


@dataclass(frozen=True)
class Shape3d:
    """A 3D residual network, and the windows it is fed.

    Attributes:
        layers: Blocks of each of the four stages.
        planes: The stages' nominal channels; they give ``planes * expansion``.
        stem: Channels of the first convolution.
        expansion: 1: blocks of two 3x3x3 convolutions; else a 3x3x3 one between two of 1x1x1.
        groups: ResNeXt's cardinality: the middle convolution has ``groups * (planes // 32)`` channels. 1 is
            the plain ResNet, with ``planes`` channels there.
        shortcut: Where the shape changes: ``A`` drops positions and adds zero channels, ``B`` convolves.
        classes: Of the head, which is loaded and not used.
        stem_frames: Frames that the first convolution covers.
        stem_stride: Frames from one of its outputs to the next.
        pools: Whether a max-pooling follows it.
        window: Frames of a window.
        side: Of its frames in pixels.
    """

    layers: tuple[int, ...] = (3, 4, 23, 3)
    planes: tuple[int, ...] = (128, 256, 512, 1024)
    stem: int = 64
    expansion: int = 2
    groups: int = 32
    shortcut: Literal["A", "B"] = "B"
    classes: int = 400
    stem_frames: int = 7
    stem_stride: int = 1
    pools: bool = True
    window: int = 16
    side: int = 112


class ZeroChannels(nn.Module):
    """Shortcut A: every ``stride``-th position, and zeros for the channels that are missing."""

    def __init__(self, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, T, H, W)`` -> ``(B, outputs, T / stride, H / stride, W / stride)``."""
        every = slice(None, None, self.stride)
        return pad(x[:, :, every, every, every], (0, 0) * 3 + (0, self.outputs - x.shape[1]))


class Block3d(nn.Module):
    """Convolutions with batch norms around a shortcut; the 3x3x3 one strides (of two, the first)."""

    def __init__(self, inputs: int, planes: int, stride: int, shape: Shape3d):
        super().__init__()
        outputs, groups = planes * shape.expansion, shape.groups
        middle = planes if groups == 1 else groups * (planes // 32)
        convolutions = [(inputs, planes, 3, stride, 1), (planes, outputs, 3, 1, 1)]
        if shape.expansion > 1:
            convolutions = [(inputs, middle, 1, 1, 1), (middle, middle, 3, stride, groups)]
            convolutions += [(middle, outputs, 1, 1, 1)]
        self.count = len(convolutions)
        for number, (given, made, size, step, split) in enumerate(convolutions, 1):
            convolution = nn.Conv3d(given, made, size, step, size // 2, groups=split, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm3d(made))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            convolved = (nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))
            self.downsample = (
                nn.Sequential(*convolved) if shape.shortcut == "B" else ZeroChannels(outputs, stride)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, T, H, W)`` -> ``(B, planes * expansion, T', H', W')``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.count + 1):
            x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
            x = x.relu() if number < self.count else x
        return (x + shortcut).relu()


class Network3d(nn.Module):
    """The network under the official keys."""

    def __init__(self, shape: Shape3d):
        super().__init__()
        frames = shape.stem_frames
        self.conv1 = nn.Conv3d(
            3, shape.stem, (frames, 7, 7), (shape.stem_stride, 2, 2), (frames // 2, 3, 3), bias=False
        )
        self.bn1 = nn.BatchNorm3d(shape.stem)
        self.maxpool = nn.MaxPool3d(3, 2, 1) if shape.pools else nn.Identity()
        inputs = shape.stem
        for number, (blocks, planes) in enumerate(zip(shape.layers, shape.planes, strict=True), 1):
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(Block3d(inputs, planes, 2 if number > 1 and index == 0 else 1, shape))
                inputs = planes * shape.expansion
            self.add_module(f"layer{number}", stage)
        self.stages = len(shape.layers)
        self.fc = nn.Linear(inputs, shape.classes)

    def stem(self, video: torch.Tensor) -> torch.Tensor:
        """``(B, 3, T, H, W)`` -> ``(B, stem, T', H / 4, W / 4)``."""
        return self.maxpool(self.bn1(self.conv1(video)).relu())

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """``(B, 3, T, H, W)`` -> ``(B, D)``, the mean over time and space; ``fc`` makes logits of it."""
        x = self.stem(video)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3, 4))


class ResNeXt3d(Pretrained):
    """Clips -> ``tokens``, one vector (2048) for every window of 16 frames, at 24 frames a second.

    The last window is filled up with black frames. Clips of more than a minute are thinned out to 1,440
    frames, since all of them are in memory at once: cut longer recordings into clips to keep the rate.
    """

    architectures = {"resnext-101-3d": Shape3d()}
    tiny = Shape3d((1, 1, 1, 1), (32, 32, 32, 64), stem=8, groups=4, classes=5, window=4, side=32)
    cards = {
        "resnext-101-3d": Card(
            "resnext101.pth",
            "github.com/antoine77340/video_feature_extractor (or resnext-101-kinetics.pth, "
            "github.com/kenshohara/3D-ResNets-PyTorch)",
            "MIT (code); none stated for weights",
        )
    }
    modalities = ("rgb", "ir", "depth")
    sampling = {"fps": 24.0, "max_frames": 1440}
    default_fields = (TOKENS,)

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: Shape3d = self.architecture
        self.frames_per_step = shape.window
        self.fields = token_fields(1, shape.planes[-1] * shape.expansion)
        mean = (MEAN[0] / 255, MEAN[1] / 255, MEAN[2] / 255)
        self.preprocess = ImagePreprocess(shape.side, "centre", 1.0, "bicubic", mean, (1 / 255,) * 3)

    def build(self) -> Network3d:
        """The network."""
        return Network3d(self.architecture)

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same; batch counters, which only training reads, may be missing."""
        with torch.device("meta"):
            return with_counters(tensors, self.build())

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, S, S)`` uint8 -> tokens ``(B, ceil(T / 16), 1, D)``."""
        length = self.frames_per_step
        clips = pad(
            batch, (0, 0) * 3 + (0, -batch.shape[1] % length)
        )  # black, as before subtracting the mean
        windows = clips.unflatten(1, (-1, length)).flatten(0, 1).split(BATCH_WINDOWS)
        pixels = (self.preprocess.normalise(one.to(self.device)).transpose(1, 2) for one in windows)
        vectors = torch.cat([self.model(one).float() for one in pixels])
        return {TOKENS: vectors.view(len(batch), -1, 1, vectors.shape[1])}


def with_counters(tensors: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors, with a zero for each of the model's batch counters that they lack."""
    counters = [key for key in model.state_dict() if key.endswith(COUNTER)]
    return {**{key: torch.zeros((), dtype=torch.int64, device="cpu") for key in counters}, **tensors}
