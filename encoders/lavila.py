"""LaViLa: videos and texts in one space of 256 dimensions, trained on narrated egocentric video.

Source: Zhao et al., Learning Video Representations from Large Language Models (CVPR 2023),
github.com/facebookresearch/LaViLa (MIT). The text tower is CLIP's (Radford et al., ICML 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import nn

from encoders.checkpoint import read_tensors
from encoders.clip_tokenizer import clip_tokens, encode_clip_texts
from encoders.clip_vip import TextShape
from encoders.clip_vip_model import quick_gelu
from encoders.errors import EncoderError
from encoders.preprocess import ImagePreprocess
from encoders.pretrained import Card, Pretrained
from encoders.protocols import Field
from encoders.space_time import Inflation, SpaceTimeShape, SpaceTimeTransformer
from encoders.tokens import token_fields

TEXT = "text"
TEMPORAL = "visual.temporal_embed"
# CLIP's, except that the first mean is 225 and not 255 times CLIP's 0.48145466: the checkpoints were trained
# with this slip, so that it has to stay.
MEAN = (108.3272985 / 255, 116.7460125 / 255, 104.09373615 / 255)
STD = (68.5005327 / 255, 66.6321579 / 255, 70.32316305 / 255)
TEMPERATURE = 0.07


@dataclass(frozen=True)
class LavilaShape:
    """Both towers, and the dimensions E of the space that they share."""

    video: SpaceTimeShape = field(default_factory=SpaceTimeShape)
    text: TextShape = field(default_factory=TextShape)
    joint: int = 256


class TextBlock(nn.Module):
    """CLIP's transformer layer, under OpenAI's names."""

    def __init__(self, shape: TextShape):
        super().__init__()
        width, hidden = shape.width, shape.hidden
        self.attn = nn.MultiheadAttention(width, shape.heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """``(B, L, D)``, and which keys are later than a query ``(L, L)``, -> ``(B, L, D)``."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=later)[0]
        return x + self.mlp["c_proj"](quick_gelu(self.mlp["c_fc"](self.ln_2(x))))


class LavilaModel(nn.Module):
    """The two towers and their projections, under the official names."""

    def __init__(self, shape: LavilaShape, inflation: Inflation = "bilinear"):
        super().__init__()
        text = shape.text
        blocks = (TextBlock(text) for _ in range(text.layers))
        self.visual = SpaceTimeTransformer(shape.video, inflation)
        self.token_embedding = nn.Embedding(text.vocabulary, text.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(text.length, text.width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(text.width)
        self.image_projection = nn.Parameter(
            torch.randn(shape.video.width, shape.joint) / shape.video.width**0.5
        )
        self.text_projection = nn.Parameter(torch.randn(text.width, shape.joint) / text.width**0.5)
        self.logit_scale = nn.Parameter(-torch.tensor(TEMPERATURE).log())

    def video(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, T, 3, H, W)`` -> ``(B, E)`` un-normalised, patch tokens ``(B, T, N, D)``."""
        tokens = self.visual(pixels)
        return tokens[:, 0] @ self.image_projection, tokens[:, 1:].unflatten(1, (pixels.shape[1], -1))

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``(B, L)`` -> ``(B, E)`` un-normalised, read off the first largest id (the text's end).

        Attention is causal: the padding behind the end changes nothing there.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        later = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        for block in self.transformer["resblocks"].children():
            x = block(x, later)
        ends = ids.argmax(1)
        return self.ln_final(x)[torch.arange(len(ids), device=ids.device), ends] @ self.text_projection


def shape_of(tensors: Mapping[str, torch.Tensor], shape: LavilaShape) -> LavilaShape:
    """What a checkpoint's keys tell of its network: the frames that it was trained with, and gates."""
    frames = tensors[TEMPORAL].shape[1] if TEMPORAL in tensors else shape.video.frames
    gated = any(key.endswith(".alpha_timeattn") for key in tensors)
    return replace(shape, video=replace(shape.video, frames=frames, gated=gated))


class Lavila(Pretrained):
    """Clips of any number of frames, or texts -> ``embedding`` (256).

    ``embedding`` is un-normalised; ``tokens`` are each frame's patches after the last norm. The authors take
    4 frames, and report better retrieval with 16 (``--frames 16``) of the same weights: see ``inflation``.
    Their transform scales the shorter side to 224, bilinearly, and crops the middle; here it is antialiased.

    Args:
        weights: As all.
        device: As all.
        modality: As all; ``text`` leaves the fields of videos out.
        inflation: Times of more frames than the checkpoint has: ``bilinear`` (the authors' choice),
            ``interp`` or ``zeros``; see :func:`encoders.space_time.inflated`.
        **options: See :class:`encoders.pretrained.Pretrained`.
    """

    architectures = {
        "lavila-tsf-b": LavilaShape(),
        "lavila-tsf-l": LavilaShape(
            SpaceTimeShape(patch=14, width=1024, layers=24, heads=16),
            TextShape(width=768, heads=12, hidden=3072),
        ),
    }
    tiny = LavilaShape(
        SpaceTimeShape(32, 16, 32, 2, 4), TextShape(width=16, layers=2, heads=2, hidden=32), 20
    )
    cards = {
        name: Card(file, "github.com/facebookresearch/LaViLa (docs/MODEL_ZOO.md)", "MIT")
        for name, file in {
            "lavila-tsf-b": "clip_openai_timesformer_base.narrator_rephraser.ep_0005.md5sum_d73a9c.pth",
            "lavila-tsf-l": "clip_openai_timesformer_large.narrator_rephraser.ep_0003.md5sum_c89337.pth",
        }.items()
    }
    modalities = ("rgb", TEXT)
    sampling = {"frames": 4}

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        *,
        inflation: Inflation = "bilinear",
        **options: Any,
    ):
        super().__init__(weights, device, modality, **options)
        if inflation not in get_args(Inflation):
            accepted = ", ".join(get_args(Inflation))
            raise EncoderError(f"{self.name}: inflation is {inflation!r}; accepted are: {accepted}")
        self.inflation: Inflation = inflation
        shape: LavilaShape = self.architecture
        self.fields = {"embedding": Field("embedding", 1, shape.joint, per_clip=True)}
        self.default_fields = ("embedding",)
        if modality != TEXT:
            side = shape.video.side
            self.fields |= token_fields(side * side, shape.video.width, (side, side))
            self.default_fields = ("embedding", "tokens.pooled")
        self.preprocess = ImagePreprocess(shape.video.image, "centre", mean=MEAN, std=STD)

    def build(self) -> LavilaModel:
        """Both towers; checkpoints hold both."""
        shape = self.architecture
        if self.path is not None:
            shape = shape_of(read_tensors(self.path, self.entry), shape)
        return LavilaModel(shape, self.inflation)

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity; the same for videos and texts."""
        return {**super().space, "inflation": self.inflation}

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, 3, H, W)`` uint8 -> embedding ``(B, 1, 1, E)``, tokens ``(B, T, N, D)``."""
        embedding, patches = self.model.video(self.preprocess.normalise(batch.to(self.device)))
        return {"embedding": embedding.float()[:, None, None], "tokens": patches.float()}

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, E)`` float32, un-normalised, on the CPU."""
        own = self.architecture
        return encode_clip_texts(texts, self._encode_tokens, own.text.length, own.joint)

    def tokenise(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.TextEncoder`."""
        return clip_tokens(texts, self.architecture.text.length)

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See :class:`encoders.protocols.TextEncoder`."""
        return self.model.text(tokens["input_ids"].to(self.device)).float()

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.text_features(tokens).cpu()
