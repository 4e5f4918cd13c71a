"""DAVEnet: a residual network along the time of a log-mel spectrogram, as AVLnet and its successors use it.

Sources: Hsu, Harwath & Glass, Transfer Learning from Audio-Visual Grounding to Speech Recognition
(Interspeech 2019), for the architecture; Rouditchenko et al., AVLnet (Interspeech 2021),
github.com/roudimit/AVLnet, for four stages (16 frames a step); Shvetsova et al., Everything at Once
(CVPR 2022), github.com/ninatu/everything_at_once, for six (64 frames a step), kept by Multi-SK (ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from encoders.logmel import AvlnetLogMel
from encoders.pretrained import Card, Pretrained
from encoders.protocols import Field
from encoders.tokens import TOKENS, token_fields

# Where the network lies in checkpoints of whole models: AVLnet; EAO and Multi-SK.
PREFIXES = ("DAVEnet.", "davenet.")


@dataclass(frozen=True)
class DavenetShape:
    """Sizes of a DAVEnet.

    Attributes:
        layers: Blocks of each stage; each stage halves the frame rate.
        widths: Channels of the first convolution, then of each stage.
        kernel: Frames that a convolution of a block covers.
        bins: Mel bins.
    """

    layers: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (128, 128, 256, 512, 1024)
    kernel: int = 9
    bins: int = 40


class TimeBlock(nn.Module):
    """Two convolutions along time around a shortcut; the first one may skip every other frame."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        along, middle = (1, kernel), (0, kernel // 2)
        self.conv1 = nn.Conv2d(inputs, outputs, along, (1, stride), middle, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, along, 1, middle, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, (1, stride), bias=False),
                nn.BatchNorm2d(outputs),
            )
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, 1, T)`` -> ``(B, outputs, 1, ceil(T / stride))``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + shortcut).relu()


class DavenetModel(nn.Module):
    """The network under the official keys; ``batchnorm1`` is in every checkpoint, and never applied."""

    def __init__(self, shape: DavenetShape):
        super().__init__()
        self.batchnorm1 = nn.BatchNorm2d(1)
        self.conv1 = nn.Conv2d(1, shape.widths[0], (shape.bins, 1), bias=False)
        self.bn1 = nn.BatchNorm2d(shape.widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(shape.layers) + 1)]
        for name, blocks, inputs, outputs in zip(
            self.stages, shape.layers, shape.widths[:-1], shape.widths[1:], strict=True
        ):
            rest = [TimeBlock(outputs, outputs, shape.kernel, 1) for _ in range(blocks - 1)]
            setattr(self, name, nn.Sequential(TimeBlock(inputs, outputs, shape.kernel, 2), *rest))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """``(B, T, bins)`` -> ``(B, ceil(T / 2 ** stages), C)``."""
        x = self.bn1(self.conv1(frames.transpose(1, 2)[:, None])).relu()
        for name in self.stages:
            x = getattr(self, name)(x)
        return x[:, :, 0].transpose(1, 2)


class Davenet(Pretrained):
    """Sound -> ``tokens``, one vector for every 16 (``davenet``) or 64 (``davenet-v2``) frames of 10 ms.

    ``embedding`` is their mean, which AVLnet projects into its joint space. Each clip is encoded at its own
    length, where the authors fill batches up with zeros and then leave the steps of the filling out.

    A checkpoint may be the network's own or that of a whole model (AVLnet, EAO, Multi-SK), of which the rest
    is not used. The reader must give 16 kHz, as it does unless it is told otherwise.
    """

    architectures = {
        "davenet": DavenetShape(),
        "davenet-v2": DavenetShape((2, 2, 1, 1, 1, 1), (128, 128, 256, 512, 1024, 2048, 4096)),
    }
    tiny = DavenetShape((2, 1), (8, 8, 12))
    cards = {
        "davenet": Card(
            "AVLnet_release.pth",
            "github.com/roudimit/AVLnet",
            "BSD-3-Clause (code); none stated for weights",
        ),
        "davenet-v2": Card(
            "latest_model.pth",
            "github.com/ninatu/everything_at_once (everything_at_once_tva)",
            "BSD-3-Clause (code); none stated for weights",
        ),
    }
    modalities = ("audio",)
    sampling = {"frames": "all"}
    prepared_hz = 100.0  # log-mel frames
    default_fields = ("embedding", TOKENS)
    preprocess = AvlnetLogMel()
    reader_options = {"audio": {"sample_rate": AvlnetLogMel.rate_hz}}

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: DavenetShape = self.architecture
        self.frames_per_step = 2 ** len(shape.layers)
        self.fields = {
            "embedding": Field("embedding", 1, shape.widths[-1], per_clip=True),
            **token_fields(1, shape.widths[-1]),
        }

    def build(self) -> DavenetModel:
        """The network."""
        return DavenetModel(self.architecture)

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A whole model's tensors -> those of its DAVEnet; others as they are."""
        for prefix in PREFIXES:
            own = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
            if own:
                return own
        return tensors

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Log-mel frames ``(B, T, 40)`` -> tokens ``(B, T', 1, C)``, embedding ``(B, 1, 1, C)``."""
        steps = self.model(batch.to(self.device)).float()
        return {"embedding": steps.mean(1)[:, None, None], TOKENS: steps[:, :, None]}
