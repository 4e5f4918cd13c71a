"""Which of a network's parameters are trained, and how fast: whole, its last blocks, or adapters.

A network's blocks are the entries of its innermost module lists (transformer layers, inverted bottlenecks),
in order of registration; what is registered before them feeds them, what comes after reads them. That holds
for the networks of ``encoders``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from align.adapters import adapt
from align.end_to_end_config import TuneConfig
from store.errors import FrameBankError

TEXT = "text"
# First parts of the names of what serves texts, or media, in networks of two towers.
OF_TEXTS = (
    "text_model",
    "text_projection",
    "token_embedding",
    "positional_embedding",
    "transformer",
    "ln_final",
)
OF_MEDIA = (
    "vision_model",
    "visual_projection",
    "visual",
    "image_projection",
    "mit",
    "audio_model",
    "audio_projection",
)
DECODER = "decoder"  # of pixels or poses: no part of an encoder
PROJECTION = "projection"


class UnfreezeError(FrameBankError, ValueError):
    """A way to train an encoder that it does not have."""


@dataclass(frozen=True)
class Depth:
    """A parameter that is trained and its distance from the output.

    Attributes:
        name: In the network.
        parameter: Itself.
        above: Blocks from it to the output, its own included; 0 behind the last block.
    """

    name: str
    parameter: nn.Parameter
    above: int


def blocks(model: nn.Module, modality: str) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks that serve a modality, in order."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and serves(name, modality):
            inner = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
            if len(inner) == 1:
                found += [(f"{name}.{number}", block) for number, block in enumerate(module)]
    return [(name, block) for name, block in found if next(block.parameters(), None) is not None]


def serves(name: str, modality: str) -> bool:
    """Whether a network's part is for this modality, where text and images have towers of their own."""
    others = OF_MEDIA if modality == TEXT else OF_TEXTS
    parts = name.split(".")
    return parts[0] not in others and DECODER not in parts


def unfreeze(model: nn.Module, modality: str, config: TuneConfig) -> list[Depth]:
    """Let train what the configuration asks for, and freeze everything else.

    Args:
        model: Changed in place (adapters).
        modality: Whose tower.
        config: ``mode``, and the adapters' sizes.

    Returns:
        The parameters to train, in order of registration.

    Raises:
        UnfreezeError: For an unknown mode, or more blocks than there are.
        AdapterError: If adapters do not fit.
    """
    kind, _, count = config.mode.partition(":")
    there = blocks(model, modality)
    if kind == "lora" and not count:

        def tower(name: str) -> bool:
            return serves(name, modality)

        adapt(model, config.targets, config.rank, config.alpha, config.dropout, tower)
        return [one for one in _depths(model, modality, there) if one.parameter.requires_grad]
    last = kind == "last" and count.isdecimal() and 1 <= int(count) <= len(there)
    if not last and config.mode != "full":
        raise UnfreezeError(
            f"tune.{modality}.mode: {config.mode!r}; accepted are: full, lora, last:1 to last:{len(there)}"
        )
    model.requires_grad_(False)
    most = int(count) if last else len(there)
    chosen = [one for one in _depths(model, modality, there) if one.above <= most]
    for one in chosen:
        one.parameter.requires_grad_(True)
    return chosen


def _depths(model: nn.Module, modality: str, there: list[tuple[str, nn.Module]]) -> Iterator[Depth]:
    """All parameters of the modality's tower, with the number of blocks from each to the output."""
    reached = 0
    for name, parameter in model.named_parameters():
        if not serves(name, modality) or not parameter.is_floating_point():
            continue
        inside = [number for number, (block, _) in enumerate(there) if name.startswith(f"{block}.")]
        place = inside[0] if inside else reached
        if "." not in name and PROJECTION in name:  # a module's own parameters are listed before its blocks
            place = len(there)
        yield Depth(name, parameter, len(there) - place)
        reached = max(reached, inside[0] + 1) if inside else reached
