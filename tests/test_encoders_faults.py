"""How much the parity fixtures see: every norm, every pair of keys, every square projection, one at a time.

The families' own tests spoil a whole network (GELU for QuickGELU, repeated frames for black ones, another eps
everywhere). Here each module and each key is spoilt alone, in place, and at least one fixture of its family
must exceed its tolerance. Layers of one stack count as one: a fixture may leave some of them out.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import test_encoders_clip_vip as clip_vip
import test_encoders_davenet as davenet
import test_encoders_lavila as lavila
import test_encoders_omnimae as omnimae
import test_encoders_omnivore as omnivore
import test_encoders_resnext3d as resnext3d
import test_encoders_tahar as tahar
import torch
from golden_fixtures import Golden, cases
from torch import nn

Worst = Callable[[], float]


@dataclass(frozen=True)
class Family:
    """How a family's fixtures are compared.

    Attributes:
        fixtures: Beginnings of their names.
        load: A fixture -> the modules with its weights, and the largest error over its outputs, as a share of
            the tolerance.
        unseen: Beginnings of keys that no output depends on.
    """

    fixtures: tuple[str, ...]
    load: Callable[[Golden, Path], tuple[list[nn.Module], Worst]]
    unseen: tuple[str, ...] = ()


def _clip_vip(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    model = clip_vip.loaded(golden, folder)
    return [model], lambda: clip_vip.worst(model, golden)


def _tahar(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    models = tahar.models_of(golden, folder)

    def worst() -> float:
        with torch.no_grad():
            found = tahar.outputs(golden, models)
        wanted = golden.part("output")
        return max(float(golden.errors(found[name], value).max()) for name, value in wanted.items())

    return [models["tafar"]], worst


def _omnivore(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    model = omnivore._model(golden)
    return [model], lambda: omnivore._worst(golden, model)


def _omnimae(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    both = omnimae.models(golden, folder)
    return list(both), lambda: omnimae.worst(*both, golden)


def _lavila(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    model = lavila.loaded(golden, folder)
    return [model], lambda: lavila.worst(model, golden)


def _davenet(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    model, frames = davenet._original(golden)
    return [model], lambda: float(davenet._errors(golden, model, frames))


def _resnext3d(golden: Golden, folder: Path) -> tuple[list[nn.Module], Worst]:
    model = resnext3d._plain(golden)
    return [model], lambda: resnext3d._logit_errors(golden, model)


FAMILIES = {
    "clip-vip": Family(("clipvip_",), _clip_vip),
    "tahar": Family(("tahar_",), _tahar),
    "omnivore": Family(("omnivore_",), _omnivore),
    "omnimae": Family(("omnimae_",), _omnimae),
    "lavila": Family(("lavila_dual_encoder", "lavila_eps_probe"), _lavila),
    "davenet": Family(("davenet_v",), _davenet, unseen=("batchnorm1.",)),  # loaded, and never applied
    "resnet-3d": Family(("resnet3d_new",), _resnext3d),
}
# Those with layer norms and attention.
TRANSFORMERS = [name for name in FAMILIES if name not in ("davenet", "resnet-3d")]


def _unseen(
    family: str, folder: Path, faults: Callable[[nn.Module], Iterator[Any]], named: str = ""
) -> list[str]:
    """The kinds of faults that no fixture's outputs show; of the fixtures with a word in their name."""
    found = [case.values[0] for case in cases(*FAMILIES[family].fixtures)]
    found = [golden for golden in found if golden and named in golden.path.stem]
    if not found:
        pytest.skip(f"no parity fixtures {', '.join(FAMILIES[family].fixtures)} {named}")
    seen: dict[str, bool] = {}
    for golden in found:
        modules, worst = FAMILIES[family].load(golden, folder)
        for module in modules:
            for name, fault in faults(module):
                kind = re.sub(r"\.\d+(?=\.)", ".N", name)
                with fault:
                    seen[kind] = not worst() <= 1 or seen.get(kind, False)  # NaN is seen too
        assert worst() <= 1, "the faults were not undone"
    assert seen
    return [kind for kind in seen if not seen[kind] and not kind.startswith(FAMILIES[family].unseen)]


@contextmanager
def _other_eps(norm: Any) -> Iterator[None]:
    right = norm.eps
    norm.eps = 1e-6 if right > 2e-6 else 1e-5
    yield
    norm.eps = right


def _norms(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, norm in module.named_modules():
        if isinstance(norm, nn.LayerNorm):
            yield name, _other_eps(norm)


@contextmanager
def _swap(left: torch.Tensor, right: torch.Tensor) -> Iterator[None]:
    def exchange() -> None:
        kept = left.detach().clone()
        left.data.copy_(right.data)
        right.data.copy_(kept)

    exchange()
    yield
    exchange()


def _pairs(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Neighbouring keys of one shape, as a wrong line in a table of keys would mix them up."""
    by_shape: dict[tuple[int, ...], list[tuple[str, torch.Tensor]]] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            by_shape.setdefault(tuple(value.shape), []).append((key, value))
    for found in by_shape.values():
        for (key, value), (other, second) in pairwise(found):
            if not torch.equal(value, second):
                yield f"{key} <-> {other}", _swap(value, second)


@contextmanager
def _turned(weight: torch.Tensor) -> Iterator[None]:
    weight.data = weight.data.T.contiguous()
    yield
    weight.data = weight.data.T.contiguous()


def _square(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in module.named_parameters():
        if value.dim() == 2 and value.shape[0] == value.shape[1]:
            yield key, _turned(value)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_eps_of_every_layer_norm_counts(family, tmp_path):
    assert _unseen(family, tmp_path, _norms, named="eps") == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_swapped_pair_of_keys_is_noticed(family, tmp_path):
    assert _unseen(family, tmp_path, _pairs) == []


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_transposed_square_projection_is_noticed(family, tmp_path):
    assert _unseen(family, tmp_path, _square) == []
