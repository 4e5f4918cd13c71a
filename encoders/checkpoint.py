"""Reading checkpoint files without running anything in them, and loading them strictly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from encoders.errors import WeightsError


def read_checkpoint(path: Path, modality: str | None = None) -> dict[str, torch.Tensor]:
    """A checkpoint file's tensors, flat, without wrappers (``state_dict``) and prefixes (``module.``)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(
    model: nn.Module, tensors: dict[str, torch.Tensor], where: str, allow_partial: Sequence[str] = ()
) -> None:
    """Load tensors into a module; every missing, unexpected or misshapen key is an error.

    Raises:
        WeightsError: With all of those keys.
    """
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{where}: {error}") from error
