"""Fusions that are networks: CMVRA's gives its outputs and gradients; ours is blind to order and absence."""

import numpy as np
import pytest
import torch
from golden_fixtures import cases, manifest
from test_evaluate_fusion import accuracy, made
from torch.nn import functional

from evaluate.fusion import class_balance
from evaluate.fusion_attention import AttentionFusion, hide, standard
from evaluate.fusion_cmvra import CMVRA, FusionHeads
from evaluate.fusion_network import epochs
from evaluate.source import EvaluateError

GOLDEN = pytest.mark.parametrize("fixture", cases("cmvra_losses_heads"))


def heads_of(fixture) -> FusionHeads:
    built = fixture.meta["constructor"]
    model = FusionHeads(
        built["modalities"], built["num_classes"], built["in_features"], built["fusion_heads"]
    )
    model.load_state_dict(fixture.part("weight"), strict=True)
    return model.eval()


@GOLDEN
def test_golden_logits_of_every_prefix_and_of_zeroed_modalities(fixture) -> None:
    model, inputs = heads_of(fixture), fixture.part("input")
    tokens = torch.stack([inputs[f"feat_{name}"] for name in model.modalities], dim=1)
    checked = 0
    for name in fixture.part("output", "heads/"):
        if name.startswith("fusion_logits_first"):
            fixture.check(model(tokens[:, : int(name.removeprefix("fusion_logits_first"))]), f"heads/{name}")
        elif name.startswith("fusion_logits_modality"):
            zeroed = tokens.clone()
            zeroed[:, int(name.removeprefix("fusion_logits_modality").removesuffix("_zeroed"))] = 0
            fixture.check(model(zeroed), f"heads/{name}")
        elif name.endswith("_classifier_logits"):
            modality = name.removesuffix("_classifier_logits")
            fixture.check(model.probe(modality, inputs[f"feat_{modality}"]), f"heads/{name}")
        else:
            continue
        checked += 1
    assert checked >= 2 * len(model.modalities)


@GOLDEN
def test_golden_loss_gradients_and_class_weights(fixture) -> None:
    model, inputs = heads_of(fixture), fixture.part("input")
    tokens = torch.stack([inputs[f"feat_{name}"] for name in model.modalities], dim=1)
    loss = functional.cross_entropy(model(tokens), inputs["labels"])
    loss.backward()
    fixture.check(loss, "heads/fusion_ce_loss")
    parameters = dict(model.named_parameters())
    gradients = fixture.part("output", "heads/grad_fusion_ce/")
    assert gradients
    for name in gradients:
        fixture.check(parameters[name].grad, f"heads/grad_fusion_ce/{name}")
    labels = torch.cat([inputs["labels"], inputs["labels2"]]).numpy()
    weights = class_balance(labels, fixture.meta["constructor"]["num_classes"])
    fixture.check(torch.from_numpy(weights), "heads/class_weights")


def test_official_heads_load_strictly() -> None:
    """Names and shapes of a full-size checkpoint, less its encoders."""
    shapes = manifest("cmvra_multimodality_heads_ntu60_512")
    classes, width = shapes["final_classifier.weight"]
    names = [key.removesuffix("_classifier.weight") for key in shapes if key.endswith("_classifier.weight")]
    model = FusionHeads([name for name in names if name != "final"], classes, width)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes


def test_a_view_may_have_a_probe() -> None:
    model = FusionHeads(["ir.ceiling"], 3, 8)
    assert model.probe("ir.ceiling", torch.zeros(2, 8)).shape == (2, 3)


def test_cmvra_trains_with_what_is_absent_as_zeros() -> None:
    train, test = made(kind="embeddings"), made(160, kind="embeddings", seed=1)
    fusion = CMVRA(epochs=15, learning_rate=3e-3)
    fusion.fit(train, 4)
    assert accuracy(fusion, test) > 0.6
    with pytest.raises(EvaluateError, match="cmvra's 5 attention heads do not divide 16 dims"):
        CMVRA(heads=5).fit(train, 4)


def test_cmvras_batches_keep_their_order_and_ours_are_drawn_anew() -> None:
    kept, drawn = (
        [torch.cat(epoch).tolist() for epoch in epochs(3, 10, 4, seed=0, reshuffle=anew)]
        for anew in (False, True)
    )
    assert kept[0] == kept[1] == kept[2]
    assert drawn[0] == kept[0]
    assert drawn[1] != drawn[0]
    assert all(sorted(epoch) == list(range(10)) for epoch in kept + drawn)
    assert [len(batch) for batch in next(epochs(1, 10, 4, 0, False))] == [4, 4, 2]


# Attention


def network(dims=(5, 7, 3), **options) -> AttentionFusion:
    torch.manual_seed(0)
    return AttentionFusion(dims, 4, width=16, **options).eval()


def vectors(n: int = 6, dims=(5, 7, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, dim, generator=generator) for dim in dims]


def test_absent_modalities_have_no_influence_not_even_nan() -> None:
    model, values = network(depth=2), vectors()
    present = torch.tensor([[True, False, True]] * 6)
    clean = model(values, present)
    for junk in (1e4, float("nan"), float("inf")):
        dirty = [values[0], torch.full_like(values[1], junk), values[2]]
        torch.testing.assert_close(model(dirty, present), clean)
    gone = [one.clone().requires_grad_() for one in values]
    model(gone, present).sum().backward()
    assert gone[1].grad.abs().max() == 0
    assert gone[0].grad.abs().max() > 0


def test_an_absent_modality_is_as_if_the_network_had_never_had_it() -> None:
    """Without the masked token the reader sees the same keys: a network of two gives the same logits."""
    model, values = network(), vectors()
    smaller = network(dims=(5, 3))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("into.1.")}
    state |= {f"into.1.{part}": model.state_dict()[f"into.2.{part}"] for part in ("weight", "bias")}
    state = {name: value for name, value in state.items() if not name.startswith("into.2.")}
    state["modality"] = model.modality[[0, 2]]
    smaller.load_state_dict(state)
    whole = model(values, torch.tensor([[True, False, True]] * 6))
    torch.testing.assert_close(whole, smaller([values[0], values[2]], torch.ones(6, 2, dtype=torch.bool)))


def test_the_order_in_which_modalities_are_listed_does_not_matter() -> None:
    model, values = network(dims=(5, 5, 5)), vectors(dims=(5, 5, 5))
    present = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    present[:, 0] = True
    order = [2, 0, 1]
    turned = network(dims=(5, 5, 5))
    state = dict(model.state_dict())
    for place, old in enumerate(order):
        for part in ("weight", "bias"):
            state[f"into.{place}.{part}"] = model.state_dict()[f"into.{old}.{part}"]
    state["modality"] = model.modality[order]
    turned.load_state_dict(state)
    torch.testing.assert_close(
        turned([values[old] for old in order], present[:, order]), model(values, present)
    )


def test_modalities_are_told_apart() -> None:
    """The same vectors under exchanged names: CMVRA's fusion cannot see it, ours does."""
    values, everything = vectors(dims=(8, 8)), torch.ones(6, 2, dtype=torch.bool)
    ours, theirs = network(dims=(8, 8)), FusionHeads((), 4, 8, heads=2)
    assert not torch.allclose(ours(values, everything), ours(values[::-1], everything))
    torch.testing.assert_close(theirs(torch.stack(values, 1)), theirs(torch.stack(values[::-1], 1)))


def test_hiding_never_hides_everything_and_nothing_appears() -> None:
    torch.manual_seed(0)
    present = torch.rand(2000, 4) < 0.5
    present[:, 1] |= ~present.any(1)
    for probability in (0.0, 0.3, 0.9, 1.0):
        seen = hide(present, probability)
        assert seen.any(1).all()
        assert not (seen & ~present).any()
        several = present.sum(1) == 4
        share = 1 - seen[several].float().mean()
        if probability < 1:
            # 4 independent draws, but where all 4 are hidden one comes back
            assert float(share) == pytest.approx(probability - probability**4 / 4, abs=0.05)
    assert torch.equal(hide(present, 0.0), present)
    assert (hide(present, 1.0).sum(1) == 1).all()


def test_standards_ignore_constant_dims() -> None:
    rows = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    mean, deviation = standard(rows)
    assert mean.tolist() == [2, 5]
    assert deviation.tolist() == [1, 1]
    assert [part.tolist() for part in standard(rows[:0])] == [[0, 0], [1, 1]]
