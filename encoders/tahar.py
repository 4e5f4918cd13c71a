"""TAHAR: a skeleton clip -> 512 dimensions, pretrained on NTU RGB+D without labels.

Source: Lerch et al., TAHAR (WACV workshops 2024); preparation and padding as in CMVRA
(github.com/Cappl1/CMVRA). The decoder is loaded, as the checkpoint has it, and not run.
"""

from __future__ import annotations

from typing import Any

import torch

from encoders.prenormalize import PrepareBody
from encoders.pretrained import CMVRA, OFFICIAL, Card, Pretrained
from encoders.protocols import Field
from encoders.tahar_model import TaharModel, TaharShape
from encoders.tokens import token_fields

CMVRA_FRAMES = 90  # shorter clips are padded to it there by their last frame
# int64 tables of 0, 1, 2... that the official file carries and nothing reads.
POSITION_IDS = ("enc_pe.position_ids", "dec_pe.position_ids")


class Tahar(Pretrained):
    """Skeletons of 25 joints -> ``embedding`` (CLS) and ``tokens``, one a frame.

    One body a clip; both presets prepare it by PreNormalize3D. ``official`` takes the body that is seen in
    most frames, and clips as long as they are; ``cmvra`` the first body, and pads to 90 frames.
    """

    architectures = {"tahar": TaharShape()}
    tiny = TaharShape(width=32, heads=2, mlp_ratio=2, positions=100)
    cards = {
        "tahar": Card(
            "checkpoint_best_transformer.pth",
            "the share link of its authors in github.com/Cappl1/CMVRA (Lerch et al., WACVW 2024)",
            "none stated: ask the authors",
        )
    }
    presets = (OFFICIAL, CMVRA)
    modalities = ("skeleton",)
    tolerates_bf16 = False  # two layers: there is nothing to gain

    def __init__(
        self, weights: str | None = None, device: str = "cpu", modality: str | None = None, **options: Any
    ):
        super().__init__(weights, device, modality, **options)
        shape: TaharShape = self.architecture
        longest = shape.positions - 1
        self.sampling = {"frames": "all", "max_frames": longest}
        self.fields = {"embedding": Field("embedding", 1, shape.width, per_clip=True)}
        self.fields |= token_fields(1, shape.width)
        self.default_fields = ("embedding", "tokens.pooled")
        as_cmvra = self.preset == CMVRA
        self.preprocess = PrepareBody("mark", "first" if as_cmvra else "longest", longest)
        self.padded_frames = min(CMVRA_FRAMES, longest) if as_cmvra else 0

    @property
    def space(self) -> dict[str, Any]:
        """As in the base, and the padding."""
        return {**super().space, "padded_frames": self.padded_frames}

    def build(self) -> TaharModel:
        """Encoder and decoder."""
        return TaharModel(self.architecture)

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The official file's keys, without its tables of 0, 1, 2..."""
        return {key: value for key, value in tensors.items() if key not in POSITION_IDS}

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, 25, 3)``, NaN in frames without a body, -> embedding and tokens.

        Frames without a body are left out of the sequence; their token is that of the last frame with one.
        """
        batch = batch.to(self.device, torch.float32).flatten(2)
        frames, empty, steps = arrange(batch.isfinite().all(2), self.padded_frames)
        ignore = empty if empty.any() else None
        memory = self.model.encode(_pick(batch, frames), ignore)
        return {"embedding": memory[:, None, :1], "tokens": _pick(memory[:, 1:], steps)[:, :, None]}


def arrange(seen: torch.Tensor, padded_frames: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sequence of those frames that show a body.

    Args:
        seen: (B, T) bool, at least one of each clip.
        padded_frames: Shorter sequences repeat their last frame up to this length.

    Returns:
        With S = max(T, padded_frames): the frame at each place (B, S), the places that are none (B, S) bool,
        and the place of each frame (B, T), for one that is not seen that of the last before it.
    """
    counts = seen.sum(1, keepdim=True)
    length = max(seen.shape[1], padded_frames)
    places = torch.arange(length, device=seen.device).expand(len(seen), -1)
    seen_first = seen.int().argsort(dim=1, descending=True, stable=True)
    frames = seen_first.gather(1, places.minimum(counts - 1))
    return frames, places >= counts.clamp(min=padded_frames), (seen.cumsum(1) - 1).clamp(min=0)


def _pick(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, S, D) and (B, K) -> (B, K, D)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
