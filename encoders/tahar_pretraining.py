"""The tasks that TAHAR's transformer was pretrained with: predicting the next poses, and masked frames.

Source: Lerch et al., TAHAR (WACV workshops 2024), as CMVRA (github.com/Cappl1/CMVRA) carries it. There the
decoders are never called; these are the compositions that its comments and method names imply.
"""

from __future__ import annotations

from typing import Literal

import torch

from encoders.tahar_model import TaharModel

Memory = Literal["frames", "cls", "cls and frames"]  # which of the encoder's tokens the decoder sees
KEPT_SHARE = 0.5  # of the frames, by :func:`shuffled_half`


def predict(
    model: TaharModel,
    memory: torch.Tensor,
    poses: torch.Tensor,
    causal: bool = True,
    memory_ignore: torch.Tensor | None = None,
    poses_ignore: torch.Tensor | None = None,
) -> torch.Tensor:
    """Action anticipation ("tafar"): decode poses while looking at the encoded past.

    Args:
        model: With a ``cross`` decoder.
        memory: (B, 1 + T, D) from ``encode``; the decoder does not see CLS.
        poses: (B, T2, V * 3) decoder inputs.
        causal: Whether a pose sees only itself and those before it.
        memory_ignore: (B, T) bool, True where a frame is padding.
        poses_ignore: (B, T2) bool, likewise.

    Returns:
        (B, T2, V * 3).
    """
    length = poses.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=poses.device).triu(1) if causal else None
    decoded = model.decoder(
        model.dec_pe(model.embd_layer(poses)),
        memory[:, 1:],
        tgt_mask=later,
        tgt_key_padding_mask=poses_ignore,
        memory_key_padding_mask=memory_ignore,
    )
    return model.output_layer(decoded)


def reconstruct(model: TaharModel, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Denoising ("bert"): ``(B, T, V * 3)`` -> memory ``(B, 1 + T, D)`` and the frames read off it."""
    memory = model.encode(frames)
    return memory, model.output_layer(memory[:, 1:])


def encode_visible(model: TaharModel, frames: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Encode some frames at their true positions.

    Args:
        model: Any.
        frames: (B, T, V * 3).
        places: (B, 1 + K) int64: 0 for CLS, then 1 + the index of each visible frame.

    Returns:
        (B, 1 + K, D).
    """
    chosen = (places[:, 1:] - 1)[..., None].expand(-1, -1, frames.shape[-1])
    return model.encode(frames.gather(1, chosen), places=places)


def scatter(model: TaharModel, memory: torch.Tensor, places: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, 1 + K, D) tokens back at their places among ``frames``, mask tokens elsewhere: (B, 1 + T, D)."""
    grid = model.mask_token.expand(len(memory), 1 + frames, -1)
    return grid.scatter(1, places[..., None].expand_as(memory), memory)


def reconstruct_masked(
    model: TaharModel, frames: torch.Tensor, places: torch.Tensor, seen: Memory = "frames"
) -> torch.Tensor:
    """Masked frames by cross-attention ("casmae"): all frames from the visible ones, ``(B, T, V * 3)``."""
    memory = scatter(model, encode_visible(model, frames, places), places, frames.shape[1])
    part = {"frames": memory[:, 1:], "cls": memory[:, :1], "cls and frames": memory}[seen]
    return model.output_layer(model.decoder(model.dec_pe(memory), part)[:, 1:])


def shuffled_half(
    model: TaharModel, frames: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masked autoencoding ("smae"): encode half of the frames, without CLS, in the noise's order.

    The positions are 0, 1, 2... in that shuffled order, as in the original: the frames' own are lost.

    Args:
        model: Any.
        frames: (B, T, V * 3).
        noise: (B, T); the frames of its smallest values are kept.

    Returns:
        Tokens (B, K, D); mask (B, T), 1.0 where a frame was dropped; the order (B, T) that undoes it.
    """
    kept = int(frames.shape[1] * KEPT_SHARE)
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    tokens = model.embd_layer(frames)
    chosen = shuffle[:, :kept, None].expand(-1, -1, tokens.shape[-1])
    memory = model.encoder(model.enc_pe(tokens.gather(1, chosen)))
    return memory, (restore >= kept).to(frames.dtype), restore
