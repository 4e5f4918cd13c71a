"""OmniMAE's pre-training task: which patches are hidden, what is to be predicted of them, and the loss.

Source: Girdhar et al., OmniMAE (CVPR 2023), github.com/facebookresearch/omnivore; the prediction itself is
:meth:`encoders.omnimae_model.OmniMaeModel.reconstruct`. Patches are vectors in the order (frame, row, column,
channel), channels fastest.
"""

from __future__ import annotations

import torch

from encoders.errors import EncoderError

CHANNELS = 3
VARIANCE_EPS = 1e-6


def random_mask(
    clips: int, grid: tuple[int, int, int], share: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """``(B, T', h, w)`` bool with an equal count of True (hidden) patches in each clip, drawn evenly.

    Args:
        clips: B.
        grid: T', h, w.
        share: Of the patches, hidden; the paper takes 0.9 to 0.95 of videos, 0.75 to 0.9 of images.
        generator: On the CPU.
    """
    tokens = grid[0] * grid[1] * grid[2]
    hidden = round(share * tokens)
    if not 0 < hidden < tokens:
        raise EncoderError(
            f"omnimae: share={share} hides {hidden} of {tokens} patches; accepted is a share between 0 and 1 "
            "that hides some and leaves some"
        )
    ranks = torch.rand(clips, tokens, generator=generator).argsort(1).argsort(1)
    return (ranks < hidden).unflatten(1, grid)


def patchify(pixels: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """Clips ``(B, 3, T, H, W)``, T = 1 for images (repeated), -> patches ``(B, N, pt * ph * pw * 3)``."""
    frames, rows, columns = patch
    if pixels.shape[2] == 1:
        pixels = pixels.expand(-1, -1, frames, -1, -1)
    split = pixels.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(1, 3).flatten(2)


def normalised_patches(patches: torch.Tensor, per_channel: bool = True) -> torch.Tensor:
    """Each patch (per channel, if so) at mean 0 and variance 1, the variance being the unbiased one."""
    parts = patches.unflatten(-1, (-1, CHANNELS if per_channel else 1))
    mean, variance = parts.mean(-2, keepdim=True), parts.var(-2, keepdim=True)
    return ((parts - mean) / (variance + VARIANCE_EPS).sqrt()).flatten(-2)


def reconstruction_loss(predicted: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the hidden patches of the batch.

    Args:
        predicted: (B, N, P).
        target: (B, N, P); officially ``normalised_patches(patchify(pixels))`` of pixels in 0..1, before the
            subtraction of ImageNet's mean.
        mask: (B, T', h, w), True = hidden.
    """
    hidden = mask.flatten(1)
    return (predicted[hidden] - target[hidden]).square().mean()
