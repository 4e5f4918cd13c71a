"""Fast layers compute what the plain ones do, up to bfloat16's rounding, and leave no trace behind."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from encoders.fast_layers import ConvReLU6, Float32, available, fast_layers

pytestmark = pytest.mark.skipif(not available(), reason="no bfloat16 products of oneDNN on this processor")


class Mlp(nn.Module):
    """As transformers' models write it."""

    def __init__(self, activation):
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = nn.Linear(48, 96), ACT2FN[activation], nn.Linear(96, 48)

    def forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)))


def _uneven(stride, padding):
    return ConvReLU6(3, 8, (3, 4), stride, padding)


CASES = {
    "linear": (nn.Linear(48, 20), (5, 7, 48)),
    "linear without bias": (nn.Linear(48, 20, bias=False), (3, 48)),
    "layer norm": (nn.LayerNorm(48, eps=0.5), (2, 7, 48)),
    "layer norm over two axes, no parameters": (nn.LayerNorm((7, 48), elementwise_affine=False), (2, 7, 48)),
    "convolution": (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (2, 6, 15, 17)),
    "convolution and ReLU6": (_uneven((2, 1), (1, 2)), (2, 3, 15, 17)),
    "convolution, padded by name": (nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 9, 9)),
    "convolution, padded by reflection": (
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        (2, 3, 9, 9),
    ),
    "QuickGELU": (Mlp("quick_gelu"), (4, 9, 48)),
    "tanh-GELU": (Mlp("gelu_pytorch_tanh"), (4, 9, 48)),
    "GELU": (Mlp("gelu"), (4, 9, 48)),
    "post-norm": (nn.Sequential(nn.Linear(48, 48), nn.LayerNorm(48), Mlp("quick_gelu")), (4, 48)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fast_layer_computes_what_the_layer_does(name):
    """Errors are relative to the output's largest value: bfloat16 keeps 8 bits, 2**-9 of rounding a step."""
    torch.manual_seed(0)
    layer, shape = CASES[name]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7 if parameter.ndim == 1 else 0.2)
    x = 3 * torch.randn(shape)
    with torch.inference_mode():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            plain = layer(x)
            with fast_layers(layer):
                fast = layer(x)
    assert fast.dtype == torch.bfloat16 and fast.shape == exact.shape
    scale = exact.abs().max()
    error, plain_error = ((one.float() - exact).abs().max() / scale for one in (fast, plain))
    assert error < max(0.01, 1.5 * plain_error)


def test_sums_inside_a_product_are_float32():
    """bfloat16 cannot count beyond 256 in steps of one: 4,096 ones add up to 4,096 only in float32."""
    layer = nn.Linear(4096, 16, bias=False)
    nn.init.ones_(layer.weight)
    with torch.inference_mode(), fast_layers(layer):
        assert (layer(torch.ones(3, 4096)) == 4096).all()


def test_afterwards_the_model_is_as_before_also_after_an_error():
    model = nn.Sequential(nn.Linear(48, 48), nn.LayerNorm(48), Mlp("quick_gelu"))
    before, x = model(torch.ones(2, 48)), torch.ones(2, 48)
    with pytest.raises(RuntimeError, match="in between"), fast_layers(model):
        assert model(x).dtype == torch.bfloat16
        raise RuntimeError("in between")
    assert torch.equal(model(x), before) and before.requires_grad
    with torch.no_grad():
        model[2].fc2.weight.mul_(-1)
    with fast_layers(model), torch.inference_mode():  # reads the weights as they are now
        changed = model(x).float()
    assert torch.nn.functional.cosine_similarity(changed, model(x)).min() > 0.999
    assert not torch.allclose(changed, before, atol=0.05)


def test_a_float32_layer_rounds_nothing():
    torch.manual_seed(0)
    layer = Float32(ConvReLU6(3, 8, 3, padding=1))
    linear = Float32(nn.Linear(9, 9))
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        exact = layer(x), linear(x)
        with torch.autocast("cpu", torch.bfloat16):
            plain = layer(x), linear(x)
            with fast_layers(nn.ModuleList([layer, linear])):
                fast = layer(x), linear(x)
    for one, other, third in zip(exact, plain, fast, strict=True):
        assert torch.equal(one, other)
        assert torch.allclose(one, third, atol=1e-6)
