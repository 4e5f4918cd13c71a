"""Adapters, what is unfrozen of a network, and gradients over micro-batches, on small networks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from align.adapters import AdapterError, LowRank, adapt, merged_state
from align.end_to_end_config import TuneConfig
from align.gradient_cache import backward
from align.losses import InfoNCE
from align.unfreeze import UnfreezeError, blocks, serves, unfreeze
from encoders import load_encoder


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.fc = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.fc(torch.tanh(self.q_proj(x)))


class Network(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.patch = nn.Linear(5, 6)
        self.layers = nn.ModuleList([Block() for _ in range(depth)])
        self.norm, self.projection = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patch(x)
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.norm(x))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


# Adapters


def test_adapters_start_as_the_network_and_merge_into_it(network):
    x, names = torch.randn(7, 5), list(network.state_dict())
    before = network(x)
    adapt(network, ["*"], rank=2, alpha=8.0)
    assert torch.equal(network(x), before)
    for layer in network.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.adapter_up)
    trained, plain = network(x), Network()
    assert (trained - before).abs().max() > 0.1
    plain.load_state_dict(merged_state(network), strict=True)
    assert list(merged_state(network)) == names
    assert torch.allclose(plain(x), trained, rtol=1e-5, atol=1e-5)


def test_an_adapted_layer_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    low = LowRank(layer, rank=1, alpha=3.0)
    low.adapter_down.data, low.adapter_up.data = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0]])
    assert low(torch.tensor([[5.0, 1.0]])).item() == 7 + 3 * 2 * (5 - 1)
    assert low.merged().tolist() == [[1 + 6, 2 - 6]]


def test_only_adapters_are_trained_and_dropout_is_on_their_input(network):
    chosen = adapt(network, ["q_proj", "*.3.fc"], rank=2, alpha=2.0, dropout=0.5)
    assert chosen == [*(f"layers.{n}.q_proj" for n in range(4)), "layers.3.fc"]
    learning = {name for name, value in network.named_parameters() if value.requires_grad}
    assert learning == {f"{name}.adapter_{part}" for name in chosen for part in ("down", "up")}
    low, x = network.layers[0].q_proj, torch.ones(1, 6)
    nn.init.normal_(low.adapter_up)
    own = functional.linear(x, low.weight, low.bias)
    torch.manual_seed(3)
    kept = functional.dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.allclose(low.train()(x), own + low.scale * kept @ low.adapter_down.T @ low.adapter_up.T)
    assert torch.allclose(low.eval()(x), x @ low.merged().T + low.bias, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "targets", "rank", "message"),
    [
        (Network(), ["k_proj"], 2, "no linear layer is named k_proj; there are: fc, patch, proj.*, q_proj"),
        (Network(), ["*"], 0, "rank 0; at least 1"),
        (nn.Conv2d(3, 3, 1), ["*"], 2, "has no linear layers that they fit .* accepted is mode full or last"),
        (nn.TransformerEncoderLayer(4, 2, 8), ["*"], 2, "has no linear layers that they fit"),
    ],
)
def test_networks_that_adapters_do_not_fit(model, targets, rank, message):
    with pytest.raises(AdapterError, match=message):
        adapt(model, targets, rank, 1.0)


# What is unfrozen


def learning(model) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def test_last_blocks_and_what_follows_them(network):
    assert [name for name, _ in blocks(network, "rgb")] == [f"layers.{n}" for n in range(4)]
    depths = unfreeze(network, "rgb", TuneConfig("x", mode="last:2"))
    kept = {"patch", "layers.0", "layers.1"}
    assert learning(network) == {
        name for name in dict(network.named_parameters()) if not any(name.startswith(f"{k}.") for k in kept)
    }
    places = {".".join(one.name.split(".")[:-1]): one.above for one in depths}
    inner = {f"layers.{n}.{part}": 4 - n for n in (2, 3) for part in ("q_proj", "fc")}
    assert places == inner | {"norm": 0, "projection": 0}
    whole = unfreeze(network, "rgb", TuneConfig("x"))
    assert len(whole) == len(learning(network)) == len(list(network.parameters()))
    assert whole[0].name == "patch.weight" and whole[0].above == 4


@pytest.mark.parametrize("mode", ["last:0", "last:5", "last", "first:2", "lora:2", "half"])
def test_other_modes_are_refused(network, mode):
    message = f"tune.rgb.mode: '{mode}'; accepted are: full, lora, last:1 to last:4"
    with pytest.raises(UnfreezeError, match=message):
        unfreeze(network, "rgb", TuneConfig("x", mode=mode))


@pytest.mark.parametrize(
    ("name", "modality", "count"),
    [("clip-vip-b16", "rgb", 2), ("clip-vip-b16", "text", 2), ("omnivore-swin-t", "depth", 4)],
)
def test_the_blocks_of_real_encoders(name, modality, count):
    model = load_encoder(name, "random", modality=modality, architecture="tiny").model
    assert len(blocks(model, modality)) == count
    last = unfreeze(model, modality, TuneConfig("x", mode="last:1"))
    assert 0 < len(last) < len(list(model.parameters())) and {one.above for one in last} == {0, 1}


def test_two_towers_in_one_network_are_told_apart():
    model = load_encoder("lavila-tsf-b", "random", modality="rgb", architecture="tiny").model
    for modality, own in (("rgb", "visual."), ("text", "transformer.")):
        depths = unfreeze(model, modality, TuneConfig("x", mode="last:1"))
        assert all(name.startswith(own) for name, _ in blocks(model, modality))
        assert ("image" if modality == "rgb" else "text") + "_projection" in learning(model)
        assert all(serves(one.name, modality) for one in depths)


# Gradients over micro-batches


def embedded(network, x):
    return functional.normalize(functional.dropout(network(x), 0.3, True), dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cached_gradients_are_those_of_the_whole_batch(network, dtype, tolerance):
    """Against one graph over all micro-batches, dropout and a learnt temperature included."""
    first, second = network.to(dtype), copy.deepcopy(network).to(dtype)
    nn.init.normal_(second.patch.weight)
    loss = InfoNCE(learn_temperature=True).to(dtype)
    inputs = {name: torch.randn(10, 5, dtype=dtype) for name in "ab"}
    modules = {"a": first, "b": second}

    def part(name, number, chunk):
        torch.manual_seed(100 * number + ord(name))
        return embedded(modules[name], chunk)

    parts = {
        name: [partial(part, name, number, chunk) for number, chunk in enumerate(values.split(size))]
        for (name, values), size in zip(inputs.items(), (3, 4), strict=True)
    }
    parameters = [*first.parameters(), *second.parameters(), *loss.parameters()]
    value = backward(parts, loss, scale=0.5)
    cached = [one.grad.clone() for one in parameters]
    for one in parameters:
        one.grad = None
    naive = loss({name: torch.cat([one() for one in own]) for name, own in parts.items()})
    (0.5 * naive).backward()
    assert torch.allclose(value, naive, rtol=0, atol=tolerance)
    assert max((a - b.grad).abs().max() for a, b in zip(cached, parameters, strict=True)) < tolerance
    assert min(one.abs().max() for one in cached) > 1e-4


def test_one_part_is_embedded_once_and_unpaired_ones_have_no_gradient(network):
    calls = []

    def part(x):
        calls.append(torch.is_grad_enabled())
        return network(x)

    x = torch.randn(4, 5)
    backward({"a": [partial(part, x)]}, lambda found: found["a"].square().sum())
    assert calls == [True]
    network.zero_grad()
    halves = [partial(part, half) for half in x.split(2)]
    backward({"a": halves, "b": [partial(part, x)]}, lambda found: found["b"].square().sum())
    assert calls[1:] == [False] * 3 + [True]  # b again, with a graph; a has nothing to learn
