"""Self-supervised and supervised vision transformers through transformers, without texts.

Sources: Oquab et al., DINOv2 (TMLR 2024), with registers: Darcet et al. (ICLR 2024); Tong et al., VideoMAE
(NeurIPS 2022); Bertasius et al., TimeSformer (ICML 2021); Assran et al., V-JEPA 2 (2025).

Results are those of transformers' classes. At 224 pixels DINOv2's position table (37 x 37) is interpolated to
16 x 16 as transformers does it; the authors' code adds 0.1 to the length there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from encoders import hub
from encoders.errors import EncoderError, WeightsError
from encoders.preprocess import ImagePreprocess
from encoders.pretrained import TINY, Pretrained
from encoders.protocols import Field
from encoders.tokens import token_fields
from encoders.vision_checkpoints import (
    ARCHITECTURES,
    FRAMES_KEYS,
    SIZE_KEYS,
    TINY_SIZES,
    card,
    configuration,
    tiny,
)
from encoders.weights import RANDOM, folder_digest

Features = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """What is common to the checkpoints of a family.

    Attributes:
        classes: transformers' classes that save it; the first one is the encoder's own.
        pixels: Published preprocessing, at ``size`` 224.
        features: The encoder's module and normalised frames ``(B, T, 3, H, W)`` -> fields.
        any_frames: Whether clips of another number of frames are taken, too.
        any_size: Whether frames of another size are, by interpolating the position table.
    """

    classes: tuple[str, ...]
    pixels: ImagePreprocess
    features: Callable[[Any, torch.Tensor], Features]
    any_frames: bool = True
    any_size: bool = False


def _dinov2(model: Any, clips: torch.Tensor) -> Features:
    """The class token and the patches after the final norm; registers are dropped."""
    hidden = model(pixel_values=clips.flatten(0, 1)).last_hidden_state.float()
    hidden = hidden.unflatten(0, clips.shape[:2])
    first = 1 + getattr(model.config, "num_register_tokens", 0)
    return {"cls": hidden[:, :, :1], "tokens": hidden[:, :, first:]}


def _videomae(model: Any, clips: torch.Tensor) -> Features:
    """The mean of all tokens: of normed ones if pre-trained; if fine-tuned, normed after (``fc_norm``)."""
    hidden = model(pixel_values=clips).last_hidden_state.float()
    mean = hidden.mean(1)
    if model.fc_norm is not None:
        mean = model.fc_norm(mean)
    steps = clips.shape[1] // model.config.tubelet_size
    return {"embedding": mean[:, None, None], "tokens": hidden.unflatten(1, (steps, -1))}


def _timesformer(model: Any, clips: torch.Tensor) -> Features:
    """The clip's class token and the patches after the final norm; the network orders them place by place."""
    hidden = model(pixel_values=clips).last_hidden_state.float()
    patches = hidden[:, 1:].unflatten(1, (-1, clips.shape[1])).transpose(1, 2)
    return {"embedding": hidden[:, None, :1], "tokens": patches}


def _vjepa2(model: Any, clips: torch.Tensor) -> Features:
    """The encoder's tokens after its final norm, and their mean: it has no class token."""
    outputs = model(pixel_values_videos=clips, skip_predictor=True)
    hidden = outputs.last_hidden_state.float()
    steps = clips.shape[1] // model.config.tubelet_size
    return {"embedding": hidden.mean(1)[:, None, None], "tokens": hidden.unflatten(1, (steps, -1))}


_VIDEO = ImagePreprocess(resize="centre")
_DINOV2 = Family(
    ("Dinov2Model", "Dinov2ForImageClassification"),
    ImagePreprocess(resize="centre", centre_fraction=224 / 256, interpolation="bicubic"),
    _dinov2,
    any_size=True,
)
FAMILIES = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(
        _DINOV2, classes=("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")
    ),
    "videomae": Family(
        ("VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"),
        _VIDEO,
        _videomae,
        any_frames=False,
    ),
    "timesformer": Family(
        ("TimesformerModel", "TimesformerForVideoClassification"),
        replace(_VIDEO, mean=(0.45,) * 3, std=(0.225,) * 3),
        _timesformer,
        any_size=True,
    ),
    "vjepa2": Family(
        ("VJEPA2Model", "VJEPA2ForVideoClassification"),
        replace(_VIDEO, centre_fraction=256 / 292),  # 292 pixels: 256 * 256 / 224, truncated
        _vjepa2,
    ),
}


def _without_heads(model: Any) -> nn.Module:
    """The encoder alone; of VideoMAE's fine-tuned checkpoints with the norm that makes its embedding."""
    encoder = model.base_model
    if model.config.model_type == "videomae":
        encoder.fc_norm = getattr(model, "fc_norm", None)
    if model.config.model_type == "vjepa2":
        encoder.predictor = None
    return encoder


class VisionTransformer(Pretrained):
    """Frames (DINOv2) or clips (the others) -> ``cls`` or ``embedding``, and patch ``tokens``.

    Both are what the family's own evaluation reads: see the functions above the table. ``tokens`` are
    transformers' ``last_hidden_state``: after the final norm, except for fine-tuned VideoMAE, which has none
    before the mean. A folder's configuration decides; where it is not that of the name, the name ends in
    ``-custom``.

    Args:
        weights: Folder or hub id; the official id if None. Heads that the folder holds are checked and left.
        device: See :class:`Pretrained`.
        modality: See :class:`Pretrained`.
        name: A key of ``ARCHITECTURES``.
        **options: See :class:`Pretrained`.
    """

    architectures = ARCHITECTURES
    tiny = TINY_SIZES
    cards = {name: card(name) for name in ARCHITECTURES}
    modalities = ("rgb", "ir", "depth")

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        *,
        name: str,
        architecture: Any = None,
        **options: Any,
    ):
        super().__init__(weights, device, modality, name=name, architecture=architecture, **options)
        if architecture == TINY:
            self.architecture = tiny(self.architectures[name])
        self.family = FAMILIES[self.architecture.family]
        self.clips = self.architecture.family in FRAMES_KEYS
        self.config = self._read_configuration()
        if not hub.agrees(self.config, configuration(self.architecture)):
            self.name += "-custom"
        self._declare()

    def _read_configuration(self) -> Any:
        """Transformers' configuration: the folder's, or the architecture's."""
        hub.quiet()
        import transformers

        if self.path is not None:
            return hub.read_config(self.path, (self.architecture.family,), self.name)
        values = configuration(self.architecture)
        if self.architecture.family == "vjepa2":  # its predictor is made with it, and left
            values |= {"pred_num_hidden_layers": 1, "pred_hidden_size": 12}
        kind = self.family.classes[0].removesuffix("Model") + "Config"
        return getattr(transformers, kind)(**values)

    def _declare(self) -> None:
        """Unit, sampling, fields and preprocessing, from the configuration."""
        side = getattr(self.config, SIZE_KEYS[self.architecture.family])
        if self.architecture.grid_size:
            side = min(side, self.architecture.size)
        published = replace(self.family.pixels, size=side)
        self.preprocess = published
        if self.path is not None:
            any_size = self.family.any_size
            self.preprocess = hub.preprocessing(self.path, published, self.name, any_size)
        rows, columns = (length // self.config.patch_size for length in self.preprocess.sides)
        tokens = token_fields(rows * columns, self.config.hidden_size, (rows, columns))
        whole = "embedding" if self.clips else "cls"
        self.fields = {whole: Field(whole, 1, self.config.hidden_size, per_clip=self.clips), **tokens}
        self.default_fields = (whole, "tokens.pooled")
        self.unit: Literal["frame", "clip"] = "frame"
        if self.clips:
            self.unit = "clip"
            self.sampling = {"frames": getattr(self.config, FRAMES_KEYS[self.architecture.family])}
        self.frames_per_step = getattr(self.config, "tubelet_size", 1)

    def locate(self, name: str, weights: str | None) -> Path:
        """Folder, or the hub's snapshot."""
        path = hub.locate(name, weights, self.card)
        if not path.is_dir():
            raise WeightsError(f"{name}: {path} is a file; give a folder or a hub id")
        return path

    def weights_digest(self) -> str:
        """By content, its configuration included."""
        assert self.path is not None
        return folder_digest(self.path)

    def build(self) -> nn.Module:
        """The encoder with fresh weights."""
        return _without_heads(self._fresh())

    def _fresh(self) -> Any:
        """With the heads that its class has."""
        import transformers

        kind = self.family.classes[-1 if self.architecture.finetuned else 0]
        return getattr(transformers, kind)(self.config)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        """This network with other tensors, as a folder that ``weights`` takes; heads stay as they were."""
        whole = self._fresh() if self.path is None else self._loaded()
        return hub.save(folder, whole, tensors, self.path)

    def _loaded(self) -> Any:
        """The folder's, with its heads."""
        assert self.path is not None
        model, self.load_report = hub.load(self.path, self.family.classes, self.name, self.allow_partial)
        return model

    def parameters(self) -> int:
        """As :class:`Pretrained`'s; for two frames, since VideoMAE computes its position table, slowly."""
        if self.architecture.family == "videomae" and self.path is None and self.architecture.frames > 2:
            short = replace(self.architecture, frames=2)
            return type(self)(RANDOM, name=next(iter(self.architectures)), architecture=short).parameters()
        return super().parameters()

    @cached_property
    @torch.inference_mode(False)  # as in Pretrained
    def model(self) -> Any:
        """The encoder in evaluation mode, loaded strictly."""
        if self.path is None:
            return super().model
        return _without_heads(self._loaded()).to(self.device)

    @cached_property
    def space(self) -> dict[str, Any]:
        """As :class:`Pretrained`'s; a folder's digest covers its architecture."""
        return super().space | ({} if self.path is None else {"architecture": self.config.model_type})

    def features(self, batch: torch.Tensor) -> Features:
        """``(B, T, C, H, W)`` uint8 -> ``cls`` ``(B, T, 1, D)`` or ``embedding`` ``(B, 1, 1, D)``, tokens."""
        self._check_frames(batch.shape[1])
        return self.family.features(self.model, self.preprocess.normalise(batch.to(self.device)))

    def _check_frames(self, steps: int) -> None:
        if steps % self.frames_per_step or not (self.family.any_frames or steps == self.sampling["frames"]):
            wanted = f"a multiple of {self.frames_per_step}" if self.family.any_frames else "that number only"
            raise EncoderError(
                f"{self.name}: {steps} frames a clip; made for {self.sampling['frames']}, it takes {wanted}: "
                f"pass --frames {self.sampling['frames']}"
            )
