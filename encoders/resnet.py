"""ResNet-152 on single frames: the 2D features of HowTo100M, one a second.

Sources: He et al., Deep Residual Learning for Image Recognition (CVPR 2016), in torchvision's variant, which
strides in the 3x3 convolutions; github.com/antoine77340/video_feature_extractor for HowTo100M's frames
(Miech et al., ICCV 2019): the shorter side is scaled to 224 pixels and nothing is cropped. There each vector
was also divided by its length; here it is stored as the network gives it. The network is transformers' class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from encoders import hub
from encoders.preprocess import ImagePreprocess
from encoders.pretrained import Card, Pretrained
from encoders.protocols import Field
from encoders.resnext3d import with_counters
from encoders.tokens import token_fields
from encoders.weights import folder_digest

CLASSES = ("ResNetModel", "ResNetForImageClassification")
HEAD = ("fc.weight", "fc.bias")  # torchvision's ImageNet classes
# torchvision's keys -> transformers'.
STEM = {
    "conv1.": "embedder.embedder.convolution.",
    "bn1.": "embedder.embedder.normalization.",
}
BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d+)\.(\w+)")
PARTS = {"conv": "convolution", "bn": "normalization"}
SHORTCUT = {"0": "convolution", "1": "normalization"}


@dataclass(frozen=True)
class ResNetShape:
    """Sizes of a ResNet of bottleneck blocks.

    Attributes:
        depths: Blocks of each stage.
        widths: Channels that each stage gives.
        stem: Channels of the first convolution.
        side: Shorter side of the frames in pixels.
    """

    depths: tuple[int, ...] = (3, 8, 36, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem: int = 64
    side: int = 224

    @property
    def grid(self) -> int:
        """Rows of the last feature map; as many columns where frames are square."""
        return self.side // 2 ** (len(self.depths) + 1)


@dataclass(frozen=True)
class WholeFrame(ImagePreprocess):
    """Frames scaled to a shorter side of ``size`` and not cropped: longer sides stay longer."""

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        target = self._scaled(images.shape[-2], images.shape[-1])
        return interpolate(images, size=target, mode=self.interpolation, antialias=True, align_corners=False)

    def space(self) -> dict[str, Any]:
        """As :class:`ImagePreprocess`."""
        return {**super().space(), "resize": "shorter side"}


class ResNet(Pretrained):
    """Frames -> ``cls`` (2048), the mean over the last feature map, and ``tokens``, the map itself.

    The map of a frame that is not square is averaged to 7 x 7 cells for ``tokens``; ``cls`` is the mean over
    the map as it is.

    Args:
        weights: A folder that ``save_pretrained`` wrote, a hub id (the official one if None), or
            torchvision's state dictionary, ``resnet152-*.pth``.
        device: See :class:`Pretrained`.
        modality: See :class:`Pretrained`.
        **options: See :class:`Pretrained`.
    """

    architectures = {"resnet-152": ResNetShape()}
    tiny = ResNetShape((1, 2), (8, 16), 4, 32)
    cards = {
        "resnet-152": Card(
            "microsoft/resnet-152",
            "the hub (HowTo100M's was resnet152-b121ed2d.pth of github.com/pytorch/vision)",
            "Apache-2.0",
        )
    }
    modalities = ("rgb", "ir", "depth")
    unit: Literal["frame", "clip"] = "frame"
    sampling = {"fps": 1.0, "max_frames": 600}
    default_fields = ("cls",)

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: ResNetShape = self.architecture
        self.folder = self.path if self.path is not None and self.path.is_dir() else None
        self.config = self._config()
        if self.folder is not None and not hub.agrees(self.config, _values(shape)):
            self.name += "-custom"
        width = self.config.hidden_sizes[-1]
        grid = (shape.grid, shape.grid)
        self.fields = {"cls": Field("cls", 1, width), **token_fields(grid[0] * grid[1], width, grid)}
        self.preprocess = WholeFrame(shape.side, "centre", 1.0, "bicubic")

    def _config(self) -> Any:
        """Transformers' configuration: the folder's, or the architecture's."""
        hub.quiet()
        if self.folder is not None:
            return hub.read_config(self.folder, ("resnet",), self.name)
        from transformers import ResNetConfig

        return ResNetConfig(**_values(self.architecture))

    def locate(self, name: str, weights: str | None) -> Path:
        """Folder, file, or the hub's snapshot."""
        return hub.locate(name, weights, self.card)

    def weights_digest(self) -> str:
        """By content; a folder's configuration included."""
        return super().weights_digest() if self.folder is None else folder_digest(self.folder)

    def build(self) -> nn.Module:
        """The network without its head, with fresh weights."""
        from transformers import ResNetModel

        return ResNetModel(self.config)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        """This network with other tensors, as a folder that ``weights`` takes; a head stays as it was."""
        return hub.save(folder, self._loaded() if self.folder else self.build(), tensors, self.folder)

    def _loaded(self) -> Any:
        """The folder's, with its head."""
        assert self.folder is not None
        model, self.load_report = hub.load(self.folder, CLASSES, self.name, self.allow_partial)
        return model

    @cached_property
    @torch.inference_mode(False)  # as in Pretrained
    def model(self) -> Any:
        """The network in evaluation mode, loaded strictly; a folder's head is checked and left."""
        if self.folder is None:
            return super().model
        return self._loaded().base_model.to(self.device)

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keys of torchvision -> transformers'; the head is dropped."""
        renamed = {to_transformers(key): value for key, value in tensors.items() if key not in HEAD}
        with torch.device("meta"):
            return with_counters(renamed, self.build())

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, H, W)`` uint8 -> cls ``(B, T, 1, D)``, tokens ``(B, T, 49, D)``."""
        images = self.preprocess.normalise(batch.to(self.device).flatten(0, 1))
        maps = self.model(images).last_hidden_state.float()
        cells = adaptive_avg_pool2d(maps, self.architecture.grid).flatten(2).transpose(1, 2)
        return {
            "cls": maps.mean((2, 3)).view(*batch.shape[:2], 1, -1),
            "tokens": cells.unflatten(0, batch.shape[:2]),
        }


def _values(shape: ResNetShape) -> dict[str, Any]:
    """A shape as values of transformers' configuration."""
    return {
        "embedding_size": shape.stem,
        "hidden_sizes": list(shape.widths),
        "depths": list(shape.depths),
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
    }


def to_transformers(key: str) -> str:
    """A key of torchvision's ResNet (or one of transformers', unchanged) -> transformers' key."""
    for old, new in STEM.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    found = BLOCK.fullmatch(key)
    if found is None:
        return key
    stage, block, kind, number, name = found.groups()
    layer = f"encoder.stages.{int(stage) - 1}.layers.{block}"
    if kind == "downsample.":
        return f"{layer}.shortcut.{SHORTCUT.get(number, number)}.{name}"
    return f"{layer}.layer.{int(number) - 1}.{PARTS[kind]}.{name}"
