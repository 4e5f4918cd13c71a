"""Random changes of decoded frames, the same for all frames of a clip: windows and mirror images."""

import torch
from torch import Tensor
from torch.nn import functional

from store.errors import FrameBankError


class PixelError(FrameBankError, ValueError):
    """Frames that cannot be changed like this."""


def shifted(frames: Tensor, crop: float, flip: bool, generator: torch.Generator) -> Tensor:
    """Show each clip through a random window of its own, scaled back to the frame's size.

    Args:
        frames: (B, T, C, H, W) uint8.
        crop: Smallest share of each side that the window keeps, drawn once for both sides; 1: all of it.
        flip: Mirror half of the clips.
        generator: On the CPU.

    Returns:
        As ``frames``; the same tensor if nothing changes.

    Raises:
        PixelError: For frames that are no 8-bit pictures (values between them have no meaning), or a share
            outside 0..1.
    """
    if crop == 1 and not flip:
        return frames
    if frames.dtype != torch.uint8 or frames.ndim != 5 or not 0 < crop <= 1:
        raise PixelError(
            f"align.end_to_end: crop {crop}, flip {flip} on {frames.dtype} frames {tuple(frames.shape)}; "
            "a share above 0 up to 1 and 8-bit pictures are accepted"
        )
    B = len(frames)
    share = crop + (1 - crop) * torch.rand(B, generator=generator)
    x, y = (torch.rand(2, B, generator=generator) * 2 - 1) * (1 - share)
    mirror = torch.where(torch.rand(B, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(B)
    nothing = torch.zeros(B)
    rows = torch.stack([share * mirror, nothing, x, nothing, share, y], 1)
    grid = functional.affine_grid(rows.view(B, 2, 3), [B, 1, *frames.shape[-2:]], align_corners=False)
    seen = functional.grid_sample(
        frames.flatten(1, 2).float(), grid, padding_mode="border", align_corners=False
    )
    return seen.round().to(torch.uint8).view(frames.shape)
