"""Layers of a network computed faster on CPUs in bfloat16, for as long as an extraction runs.

Autocast leaves most of the arithmetic units idle. It casts a layer norm's float32 output once for every
projection that reads it, lets every product and convolution lay out its weights anew, and computes an
activation in passes of its own over memory. Here, under a context manager,

* the weights of linear layers and convolutions are cast and laid out once for the processor's matrix units
  (oneDNN),
* a layer norm returns bfloat16, which is what the next projection reads,
* QuickGELU, tanh-GELU and ReLU6 are computed by the product before them, while its result is in registers.

ViT-B/16 takes 0.7 of the processor time that it takes under autocast alone, EfficientNet-Lite0 0.6. Biases
and the sums inside a product, a norm or an activation stay float32; the cosine to float32 features is tested
for every encoder (tests/test_encoders_precision.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import nn

Forward = Callable[..., torch.Tensor]

# Activations that oneDNN computes within the product, by the class names of transformers and ours: what it
# calls them, the algorithm, and s where activation(x) = its activation(s x) / s.
_WITHIN_PRODUCT = {
    "QuickGELU": ("swish", None, 1.702),  # x sigmoid(1.702 x)
    "QuickGELUActivation": ("swish", None, 1.702),
    "GELUTanh": ("gelu", "tanh", 1.0),
}


def available() -> bool:
    """Whether this processor and this torch have bfloat16 products with weights laid out beforehand."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class ConvReLU6(nn.Conv2d):
    """A convolution with ReLU6 after it: one pass over memory within :func:`fast_layers`, two without."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, C', H', W')`` in 0..6."""
        return nn.functional.relu6(super().forward(input))


class Float32(nn.Module):
    """A layer that stays in float32 under autocast, since rounding its weights or input costs too much."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the layer, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


@contextmanager
def fast_layers(model: nn.Module) -> Iterator[None]:
    """Exchange the layers' ``forward`` for fast ones, for inference alone, and put them back at the end.

    A layer's weights are read at its first use (a text tower is left alone): whoever changes them later does
    not change the features.

    Args:
        model: On the CPU; run it under bfloat16 autocast and in inference mode.
    """
    changed: dict[nn.Module, Forward] = {}
    done: set[nn.Module] = set()  # layers that the one around them computes
    for module in model.modules():
        make = None if module in done else _fast(module)
        if make is not None:
            changed[module] = _at_first_use(make)
        if make is not None or isinstance(module, Float32):
            done.update(module.modules())
    for module, forward in changed.items():
        module.__dict__["forward"] = forward  # of this object alone; its class keeps its own
    try:
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _at_first_use(make: Callable[[], Forward]) -> Forward:
    made: list[Forward] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not made:
            made.append(make())
        return made[0](x)

    return forward


def _fast(module: nn.Module) -> Callable[[], Forward] | None:
    """What makes the fast ``forward`` of a module, or None if it has none."""
    if type(module) is nn.Linear:
        return partial(_linear, module)
    if type(module) is nn.LayerNorm:
        return partial(_layer_norm, module)
    if isinstance(module, Float32):
        return _fast_convolution(module.layer, torch.float32)
    return _fast_convolution(module, torch.bfloat16) or _fast_mlp(module)


def _fast_convolution(module: nn.Module, dtype: torch.dtype) -> Callable[[], Forward] | None:
    if type(module) not in (nn.Conv2d, ConvReLU6):
        return None
    layer = cast(nn.Conv2d, module)
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return partial(_convolution, layer, dtype) if padded else None


def _fast_mlp(module: nn.Module) -> Callable[[], Forward] | None:
    """Linear layers ``fc1`` and ``fc2`` with ``activation_fn`` between them, as in transformers' models."""
    kind = _WITHIN_PRODUCT.get(type(getattr(module, "activation_fn", None)).__name__)
    fc1, fc2 = getattr(module, "fc1", None), getattr(module, "fc2", None)
    if kind is None or type(fc1) is not nn.Linear or type(fc2) is not nn.Linear:
        return None
    return partial(_mlp, fc1, fc2, *kind)


def _mlp(fc1: nn.Linear, fc2: nn.Linear, activation: str, algorithm: str | None, scale: float) -> Forward:
    first, second = _linear(fc1, scale, scale, activation, algorithm), _linear(fc2, 1 / scale)
    return lambda x: second(first(x))


def _linear(
    layer: nn.Linear,
    weight_scale: float = 1.0,
    bias_scale: float = 1.0,
    activation: str = "none",
    algorithm: str | None = None,
) -> Forward:
    """``activation(bias_scale * bias + weight_scale * weight x)``: (..., in) -> (..., out) bfloat16."""
    with torch.inference_mode(False), torch.no_grad():
        scaled = (layer.weight.float() * weight_scale).bfloat16()
        weight = torch.ops.mkldnn._reorder_linear_weight(scaled)
        bias = None if layer.bias is None else layer.bias.float() * bias_scale

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), weight, bias, activation, [], algorithm)

    return forward


def _layer_norm(layer: nn.LayerNorm) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        normalised = nn.functional.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return normalised.bfloat16()

    return forward


def _convolution(layer: nn.Conv2d, dtype: torch.dtype) -> Forward:
    place = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    after = ("hardtanh", [0.0, 6.0], "") if isinstance(layer, ConvReLU6) else ("none", [], "")
    with torch.inference_mode(False), torch.no_grad():
        weight = layer.weight.to(dtype, memory_format=torch.channels_last)
        weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *place)
        bias = None if layer.bias is None else layer.bias.float()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x.to(dtype), weight, bias, *place, *after)

    return forward
