"""Linear interpolation along time: what heads that keep order and time augmentations share."""

import torch
from torch import Tensor


def interpolate(values: Tensor, positions: Tensor, last: Tensor | None = None) -> Tensor:
    """Values at fractional frame positions.

    Args:
        values: (B, T, ...) float.
        positions: (B, K) in frames, within [0, last].
        last: (B, 1) index of each clip's last frame; T - 1 if None. Frames beyond it are never touched.

    Returns:
        (B, K, ...): ``values[b, p]`` for whole p, the line between its neighbours otherwise.
    """
    if last is None:
        last = torch.full((len(values), 1), values.shape[1] - 1, device=values.device)
    low = torch.minimum(positions.floor().long(), last)
    high = torch.minimum(low + 1, last)
    weight = (positions - low).to(values.dtype)
    weight = weight.reshape(weight.shape + (1,) * (values.ndim - 2))
    rows = torch.arange(len(values), device=values.device)[:, None]
    return torch.lerp(values[rows, low], values[rows, high], weight)


def blend(values: Tensor, positions: Tensor) -> Tensor:
    """As :func:`interpolate`, by one matrix product a clip: 8 times faster on a CPU at 12 x 512.

    Args:
        values: (B, T, ...) float, all of it finite; T small.
        positions: (B, K) in frames, within [0, T - 1].

    Returns:
        (B, K, ...).
    """
    frames = torch.arange(values.shape[1], device=values.device)
    shares = (1 - (positions[..., None] - frames).abs()).clamp(min=0).to(values.dtype)
    return torch.bmm(shares, values.flatten(2)).unflatten(2, values.shape[2:])


def resample(values: Tensor, mask: Tensor | None, frames: int) -> Tensor:
    """The valid frames of each clip, stretched to ``frames`` time steps.

    The first and the last valid frame are kept, as in ``Selection.materialise("resample:K")``; what the mask
    leaves out, be it padding or dropped frames in the middle, has no influence.

    Args:
        values: (B, T, ...) float.
        mask: (B, T) bool, True = valid, or None when all frames are.
        frames: K.

    Returns:
        (B, K, ...). A clip without a single valid frame gives its first frame, K times.
    """
    B, T = values.shape[:2]
    if mask is None and frames == T:
        return values
    last = torch.full((B, 1), T - 1, device=values.device)
    if mask is not None:
        valid_first = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        values = values[torch.arange(B, device=values.device)[:, None], valid_first]
        last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
    steps = torch.linspace(0, 1, frames, device=values.device)[None]
    return interpolate(values, steps * last, last)
