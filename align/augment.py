"""Random changes of standardised features: (B, T, N, D) -> (B, T, N, D); they know nothing of the modality.

Time crop and time warp are one smooth, increasing map of time, drawn once a clip and used in all its
modalities, so that what happened together stays together.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from align.config import AugmentConfig
from align.resample import blend, interpolate

BLEND_UP_TO = 64  # frames; the product's cost grows with their square
WARP_WAVES = 3  # a warp is the sum of so many sine waves: half a period, one, one and a half over the clip


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def time_map(B: int, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one map of time a clip.

    Returns:
        start (B, 1) and length (B, 1) of the window, as shares of the clip, and the waves' amplitudes
        (B, WARP_WAVES), whose slopes sum to at most ``time_warp`` so that time never runs backwards.
    """
    length = config.time_crop + (1 - config.time_crop) * _uniform(generator, B, 1)
    start = _uniform(generator, B, 1) * (1 - length)
    slopes = (2 * _uniform(generator, B, WARP_WAVES) - 1) * config.time_warp / WARP_WAVES
    return start, length, slopes / (torch.pi * torch.arange(1, WARP_WAVES + 1, device=generator.device))


def warp(features: Tensor, mask: Tensor | None, map_: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Read each clip along its map of time; as many frames as before, padding stays padding."""
    B, T = features.shape[:2]
    start, length, waves = map_
    if mask is None:
        last = torch.full((B, 1), T - 1, device=features.device)
    else:
        last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
    share = (torch.arange(T, device=features.device) / last.clamp(min=1)).clamp(max=1)
    orders = torch.arange(1, WARP_WAVES + 1, device=features.device)
    warped = share + (waves[:, None] * torch.sin(torch.pi * orders * share[..., None])).sum(-1)
    positions = (start + length * warped.clamp(0, 1)) * last
    if mask is None and T <= BLEND_UP_TO:
        return blend(features, positions)
    return interpolate(features, positions, last)


def drop_frames(
    mask: Tensor | None, shape: tuple[int, int], share: float, generator: torch.Generator
) -> Tensor:
    """Hide each frame with probability ``share``; a clip's first frame is kept: it always has one."""
    kept = _uniform(generator, *shape) >= share
    kept[:, 0] = True
    return kept if mask is None else kept & mask


def augment(
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor | None],
    config: AugmentConfig,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """One random variant of a batch.

    Args:
        features: Modality -> (B, T, N, D), standardised. Clips of one frame have no time to warp.
        masks: Modality -> (B, T) or None.
        config: Strengths.
        generator: Of the features' device.

    Returns:
        New features and masks; the inputs are left as they are.
    """
    B = len(next(iter(features.values())))
    map_ = time_map(B, config, generator)
    moves = config.time_crop < 1 or config.time_warp > 0
    changed: dict[str, Tensor] = {}
    seen: dict[str, Tensor | None] = {}
    for name, values in features.items():
        mask = masks[name]
        if values.shape[1] > 1 and moves:
            values = warp(values, mask, map_)
        if values.shape[1] > 1 and config.frame_drop > 0:
            mask = drop_frames(mask, (B, values.shape[1]), config.frame_drop, generator)
        changed[name], seen[name] = jitter(values, config, generator), mask
    return changed, seen


def jitter(values: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Token drop, scale and noise, in this order."""
    B, _, N, _ = values.shape
    if config.token_drop > 0 and N > 1:
        kept = _uniform(generator, B, 1, N, 1) >= config.token_drop
        values = values * kept
    if config.scale > 0:
        values = values * torch.exp(config.scale * _normal(generator, B, 1, 1, 1))
    if config.noise > 0:
        values = torch.add(values, _normal(generator, *values.shape), alpha=config.noise)
    return values
