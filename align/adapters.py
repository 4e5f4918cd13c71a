"""Low-rank adapters: linear layers as W + (alpha / rank) B A, of which A and B are trained, then merged.

Source: Hu et al. 2021, LoRA (arXiv:2106.09685): A starts as a linear layer does, B at 0, so that training
starts from the pretrained network; dropout is on the adapter's input. Our own code; the layer stays an
``nn.Linear`` under its own name, so that the merged network is the original one with other numbers.
"""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional

from store.errors import FrameBankError

DOWN, UP = "adapter_down", "adapter_up"


class AdapterError(FrameBankError, ValueError):
    """A network, or a choice of its layers, that adapters do not fit."""


class LowRank(nn.Linear):
    """A linear layer whose own weights rest, with a trained product of two thin matrices beside them.

    Args:
        layer: Its weights are shared, and frozen.
        rank: r.
        alpha: The product is multiplied by alpha / r.
        dropout: Of the adapter's input.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.dropout = alpha / rank, dropout
        down = layer.weight.new_empty(rank, self.in_features)
        up = layer.weight.new_zeros(self.out_features, rank)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        self.adapter_down, self.adapter_up = nn.Parameter(down), nn.Parameter(up)
        self.training = layer.training

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        own = functional.linear(input, self.weight, self.bias)
        thin = functional.linear(functional.dropout(input, self.dropout, self.training), self.adapter_down)
        return own + self.scale * functional.linear(thin, self.adapter_up)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """W + scale B A, summed in float64 and rounded once."""
        product = self.adapter_up.double() @ self.adapter_down.double()
        return (self.weight.double() + self.scale * product).to(self.weight.dtype)


def adapt(
    model: nn.Module,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    counts: Callable[[str], bool] = lambda _: True,
) -> list[str]:
    """Exchange linear layers for :class:`LowRank` ones; everything else of the model is frozen.

    Layers that torch's own attention reads the weights of (``nn.MultiheadAttention``) cannot be exchanged.

    Args:
        model: Changed in place.
        targets: Patterns (``q_proj``, ``*.mlp.*``) of the layers' full or last names.
        rank: r, at least 1.
        alpha: See :class:`LowRank`.
        dropout: Likewise.
        counts: Which names count at all (one tower of several).

    Returns:
        The names of the exchanged layers.

    Raises:
        AdapterError: If no layer fits; names some that there are.
    """
    if rank < 1:
        raise AdapterError(f"adapters: rank {rank}; at least 1 is accepted")
    there = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and counts(name) and not _read_from_outside(model, name)
    }
    chosen = {name: layer for name, layer in there.items() if _matches(name, targets)}
    if not there:
        raise AdapterError(
            "adapters: the network has no linear layers that they fit (convolutions alone, or torch's own "
            "transformer layers); accepted is mode full or last:K"
        )
    if not chosen:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in there}))
        raise AdapterError(f"adapters: no linear layer is named {', '.join(targets)}; there are: {names}")
    model.requires_grad_(False)
    for name, layer in chosen.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, LowRank(layer, rank, alpha, dropout))
    return list(chosen)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under the names that it had without adapters."""
    state = {
        name: value for name, value in model.state_dict().items() if name.rpartition(".")[2] not in (DOWN, UP)
    }
    for name, layer in model.named_modules():
        if isinstance(layer, LowRank):
            state[f"{name}.weight"] = layer.merged()
    return state


def _matches(name: str, targets: Sequence[str]) -> bool:
    return any(fnmatchcase(name, one) or fnmatchcase(name.rpartition(".")[2], one) for one in targets)


def _read_from_outside(model: nn.Module, name: str) -> bool:
    """Whether a layer's weights are read by the one around it, past its ``forward``."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, nn.MultiheadAttention | nn.TransformerEncoderLayer)
