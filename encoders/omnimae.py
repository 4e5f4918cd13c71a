"""OmniMAE: one vision transformer for images and videos, pre-trained by masked reconstruction.

Source: Girdhar et al., OmniMAE: Single Model Masked Pretraining on Images and Videos (CVPR 2023),
github.com/facebookresearch/omnivore (omnimae); weights are CC-BY-NC 4.0. :mod:`encoders.omnimae_pretraining`
has the task that it was pre-trained with, which can be continued from the official pre-training checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from encoders.checkpoint import read_tensors
from encoders.omnimae_model import BlockShape, OmniMaeModel, OmniMaeShape
from encoders.preprocess import CLIP_MEAN, CLIP_STD, CmvraImages, ImagePreprocess
from encoders.pretrained import CMVRA, OFFICIAL, Card, Pretrained
from encoders.protocols import Field
from encoders.tokens import token_fields

HEAD = "head.weight"


def shape_of(tensors: Mapping[str, torch.Tensor], shape: OmniMaeShape) -> OmniMaeShape:
    """The network of a checkpoint: fine-tuned ones have classes instead of a decoder.

    Args:
        tensors: Under the official keys.
        shape: All that does not tell the two forms apart.
    """
    if HEAD in tensors and not any(key.startswith("trunk.decoder.") for key in tensors):
        return replace(shape, decoder=None, classes=len(tensors[HEAD]))
    return shape


class OmniMae(Pretrained):
    """Clips of 16 frames, or single images -> ``embedding`` (768) and ``tokens`` (14 x 14 every two frames).

    ``embedding`` is what fine-tuned classifiers read: the mean over all tokens, normed after that. ``tokens``
    are normed. Infrared and depth go in as grey pictures of three channels.

    The authors' transform scales the shorter side to 224 and crops the middle. Preset ``cmvra`` is another
    project's way (github.com/Cappl1/CMVRA): frames squashed to the square, CLIP's mean and deviation, depth
    cut off at 255 millimetres, and no final norm, neither of the mean nor of the tokens.
    """

    architectures = {"omnimae-vit-b": OmniMaeShape()}
    tiny = OmniMaeShape((4, 32, 32), (2, 8, 8), BlockShape(24, 2, 3), BlockShape(12, 1, 2, bias=False))
    cards = {
        "omnimae-vit-b": Card(
            "vitb_pretrain.torch (or vitb_in1k_ft.torch, vitb_ssv2_ft.torch)",
            "github.com/facebookresearch/omnivore (omnimae)",
            "CC-BY-NC 4.0 (no commercial use)",
        )
    }
    presets = (OFFICIAL, CMVRA)
    modalities = ("rgb", "ir", "depth")

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: OmniMaeShape = self.architecture
        frames, *sides = shape.input
        self.sampling = {"frames": frames}
        self.frames_per_step = shape.patch[0]
        _, rows, columns = shape.grid
        width = shape.encoder.width
        self.fields = {"embedding": Field("embedding", 1, width, per_clip=True)}
        self.fields |= token_fields(rows * columns, width, (rows, columns))
        self.default_fields = ("embedding", "tokens.pooled")
        size = (sides[0], sides[1])
        self.preprocess = (
            CmvraImages(size, "squash", 1.0, "bicubic", CLIP_MEAN, CLIP_STD)
            if self.preset == CMVRA
            else ImagePreprocess(size, "centre")
        )

    def build(self) -> OmniMaeModel:
        """The pre-training network, or a fine-tuned one if the checkpoint is of that form."""
        shape = self.architecture
        if self.path is not None:
            shape = shape_of(read_tensors(self.path, self.entry), shape)
        return OmniMaeModel(shape)

    @property
    def form(self) -> str:
        """Which of the official forms the checkpoint has."""
        shape = self.model.trunk.shape
        return "pre-trained" if shape.decoder is not None else f"fine-tuned for {shape.classes} classes"

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity; the final norm is part of it."""
        return {**super().space, "final_norm": self.preset != CMVRA}

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, H, W)`` uint8, T = 16 or 1 -> embedding ``(B, 1, 1, D)``, tokens ``(B, T', N, D)``."""
        pixels = self.preprocess.normalise(batch.to(self.device)).transpose(1, 2)
        tokens = self.model.trunk(pixels)
        if self.preset == CMVRA:
            embedding = tokens.mean(1)
        else:
            embedding, tokens = self.model.pooled(tokens), self.model.trunk.norm(tokens)
        steps = tokens.unflatten(1, (-1, self.fields["tokens"].tokens))
        return {"embedding": embedding.float()[:, None, None], "tokens": steps.float()}
