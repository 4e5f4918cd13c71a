"""CLIP-ViP: videos, images, skeletons and texts in one space of 512 dimensions.

Source: Xue et al., CLIP-ViP (ICLR 2023), github.com/microsoft/XPretrain (MIT). The variant for skeletons, and
the files with one of the towers only, are those of CMVRA (github.com/Cappl1/CMVRA), which reads a skeleton as
a one-channel image of 25 joints x 3 coordinates with one patch a joint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from encoders.clip_tokenizer import clip_tokens, encode_clip_texts
from encoders.clip_vip_model import VideoShape, VideoTower
from encoders.errors import EncoderError
from encoders.prenormalize import JOINTS, PrepareBody
from encoders.preprocess import CLIP_MEAN, CLIP_STD, CmvraImages, ImagePreprocess
from encoders.pretrained import CMVRA, OFFICIAL, Card, Pretrained
from encoders.protocols import Field
from encoders.tokens import token_fields

TEXT, SKELETON = "text", "skeleton"
OFFICIAL_PREFIX = "clipmodel."
# int64 tables of 0, 1, 2... that the official files carry and nothing reads.
POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


@dataclass(frozen=True)
class TextShape:
    """Sizes of the text tower; those of CLIP's base models unless said otherwise."""

    vocabulary: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    length: int = 77


@dataclass(frozen=True)
class ClipVipShape:
    """Both towers, and the dimensions E of the space that they share."""

    video: VideoShape = field(default_factory=VideoShape)
    text: TextShape = field(default_factory=TextShape)
    joint: int = 512


class ClipVipModel(nn.Module):
    """The towers that are asked for, with their projections; the temperature where both are there."""

    def __init__(self, shape: ClipVipShape, video: bool = True, text: bool = True):
        super().__init__()
        if video:
            self.vision_model = VideoTower(shape.video)
            self.visual_projection = nn.Linear(shape.video.width, shape.joint, bias=False)
        if text:
            # Fresh weights are the same with and without the other tower: equal spaces, equal features.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed() + 1)
                self.text_model = _text_tower(shape.text)
                self.text_projection = nn.Linear(shape.text.width, shape.joint, bias=False)
        if video and text:
            self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def video(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, T, C, H, W)`` normalised -> ``(B, E)`` un-normalised, patch tokens ``(B, T, L, D)``."""
        pooled, patches = self.vision_model(pixels)
        return self.visual_projection(pooled), patches

    def text(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids ``(B, L)`` -> ``(B, E)`` un-normalised, read off the first largest id (the text's end).

        Attention is causal, so that a mask of the padding behind the end changes nothing there.
        """
        hidden = self.text_model(input_ids=ids, attention_mask=mask)
        return self.text_projection(hidden.pooler_output)

    def logits(self, texts: torch.Tensor, videos: torch.Tensor) -> torch.Tensor:
        """``(L, E)`` and ``(V, E)`` -> cosines ``(L, V)`` times the learnt inverse temperature."""
        unit = nn.functional.normalize
        return self.logit_scale.exp() * unit(texts, dim=-1) @ unit(videos, dim=-1).T


def _text_tower(shape: TextShape) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=shape.length,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            bos_token_id=None,
            eos_token_id=2,  # transformers' sign for CLIP's own rule: the first largest id is the end
        )
    )


class ClipVip(Pretrained):
    """Clips of any number of frames (a single one is an image), or texts -> ``embedding`` (512).

    ``embedding`` is the projected CLS vector, un-normalised. ``tokens`` are each frame's patches (or joints)
    after the last layer; CLIP norms CLS only. Pass ``modality``, so that only its tower is built and needed.

    The authors' evaluation and CMVRA's squash frames to the square alike; the presets differ in depth: on a
    fixed range of millimetres, or cut off at 255 as CMVRA did.
    """

    architectures = {
        "clip-vip-b32": ClipVipShape(VideoShape(patch=(32, 32))),
        "clip-vip-b16": ClipVipShape(),
    }
    tiny = ClipVipShape(
        VideoShape(32, 2, 4, 64, (32, 32), (16, 16), frames=3), TextShape(49408, 16, 2, 2, 32), 20
    )
    cards = {
        f"clip-vip-b{patch}": Card(
            f"pretrain_clipvip_base_{patch}.pt", "github.com/microsoft/XPretrain (CLIP-ViP)", "MIT"
        )
        for patch in (32, 16)
    }
    presets = (OFFICIAL, CMVRA)
    modalities = ("rgb", "ir", "depth", SKELETON, TEXT)

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: ClipVipShape = self.architecture
        if modality == SKELETON:
            joints = replace(shape.video, image=(JOINTS, 3), patch=(1, 3), channels=1)
            shape = self.architecture = replace(shape, video=joints)
        self.fields = {"embedding": Field("embedding", 1, shape.joint, per_clip=True)}
        self.default_fields = ("embedding",)
        if modality != TEXT:
            rows, columns = shape.video.grid
            grid = None if modality == SKELETON else (rows, columns)
            self.fields |= token_fields(rows * columns, shape.video.width, grid)
            self.default_fields = ("embedding", "tokens.pooled")
        images = CmvraImages if self.preset == CMVRA else ImagePreprocess
        self.preprocess = (
            PrepareBody(gaps="hold", follow="first" if self.preset == CMVRA else "longest")
            if modality == SKELETON
            else images(shape.video.image[0], "squash", 1.0, "bicubic", CLIP_MEAN, CLIP_STD)
        )

    def build(self) -> ClipVipModel:
        """The tower of the modality; both if that is not known."""
        return ClipVipModel(self.architecture, self.modality != TEXT, self.modality in (TEXT, None))

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Official, CMVRA's or our own keys -> the module's; drops what only the other tower needs."""
        tensors = {key.removeprefix(OFFICIAL_PREFIX): value for key, value in tensors.items()}
        with torch.device("meta"):
            known = set(ClipVipModel(self.architecture).state_dict())
            needed = set(self.build().state_dict())
        dropped = {*POSITION_IDS, *(known - needed)}
        return {key: value for key, value in tensors.items() if key not in dropped}

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, H, W)`` uint8, or skeletons ``(B, T, 25, 3)``, -> embedding and tokens."""
        if self.modality == TEXT:
            raise EncoderError(f"{self.name}: it was made for texts; make one for rgb, ir, depth or skeleton")
        batch = batch.to(self.device)
        if self.modality == SKELETON:
            pixels = batch.float()[:, :, None]
        else:
            pixels = self.preprocess.normalise(batch)
        embedding, patches = self.model.video(pixels)
        return {"embedding": embedding.float()[:, None, None], "tokens": patches.float()}

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, E)`` float32, un-normalised, on the CPU."""
        if self.modality not in (TEXT, None):
            raise EncoderError(f"{self.name}: it was made for {self.modality}; make one for modality 'text'")
        own = self.architecture
        return encode_clip_texts(texts, self._encode_tokens, own.text.length, own.joint)

    def tokenise(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.TextEncoder`."""
        return clip_tokens(texts, self.architecture.text.length)

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See :class:`encoders.protocols.TextEncoder`."""
        mask = tokens["attention_mask"].to(self.device)
        return self.model.text(tokens["input_ids"].to(self.device), mask).float()

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.text_features(tokens).cpu()
