"""TAHAR's skeleton transformer: one token a frame, and the decoders that it was pretrained with.

Source: Lerch et al., TAHAR (WACV workshops 2024), as CMVRA (github.com/Cappl1/CMVRA) carries it. The modules
have the checkpoint's names. Post-norm layers, exact GELU, eps 1e-6, no norm after the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class TaharShape:
    """Sizes; those of the published checkpoint unless said otherwise.

    Attributes:
        joints: V; a frame is V * 3 coordinates.
        width: D.
        depth: Layers of the encoder, and of the decoder.
        heads: Attention heads.
        mlp_ratio: Width of the layers' perceptrons, in D.
        positions: Rows of the position tables; CLS takes one, so that clips have one frame less at most.
        dropout: In training.
        decoder: ``cross``: attends to the encoder's output; ``self``: to its own input only; None.
        mask_token: Whether there is a learnt stand-in for masked frames.
    """

    joints: int = 25
    width: int = 512
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 4
    positions: int = 512
    dropout: float = 0.1
    decoder: Literal["cross", "self"] | None = "cross"
    mask_token: bool = False


class Positions(nn.Module):
    """Adds learnt positions to tokens."""

    def __init__(self, shape: TaharShape):
        super().__init__()
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, S, D)``, at ``places`` ``(B, S)``; in order of the sequence if None."""
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        return self.dropout(x + self.position_embeddings(places))


class TaharModel(nn.Module):
    """Encoder over CLS and frames; decoder and output layer are for pretraining only."""

    def __init__(self, shape: TaharShape):
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, shape.width))
        if shape.mask_token:
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, shape.width))
        self.embd_layer = nn.Linear(shape.joints * 3, shape.width)
        self.enc_pe, self.dec_pe = Positions(shape), Positions(shape)
        self.encoder = _encoder(shape)
        if shape.decoder == "cross":
            self.decoder: nn.Module = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**_layer(shape)), shape.depth
            )
        elif shape.decoder == "self":
            self.decoder = _encoder(shape)
        self.output_layer = nn.Sequential(nn.Linear(shape.width, shape.joints * 3))

    def encode(
        self,
        frames: torch.Tensor,
        ignore: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Frames -> the last layer's tokens.

        Args:
            frames: (B, T, V * 3).
            ignore: (B, T) bool, True where a frame is padding.
            places: (B, 1 + T) positions of CLS (0) and the frames (from 1); in order if None.

        Returns:
            (B, 1 + T, D), CLS first.
        """
        tokens = torch.cat([self.cls_token.expand(len(frames), -1, -1), self.embd_layer(frames)], 1)
        if ignore is not None:
            ignore = nn.functional.pad(ignore, (1, 0), value=False)
        return self.encoder(self.enc_pe(tokens, places), src_key_padding_mask=ignore)


def _layer(shape: TaharShape) -> dict[str, Any]:
    return {
        "d_model": shape.width,
        "nhead": shape.heads,
        "dim_feedforward": shape.mlp_ratio * shape.width,
        "dropout": shape.dropout,
        "activation": "gelu",
        "layer_norm_eps": 1e-6,
        "batch_first": True,
    }


def _encoder(shape: TaharShape) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(**_layer(shape))
    return nn.TransformerEncoder(layer, shape.depth, enable_nested_tensor=False)
