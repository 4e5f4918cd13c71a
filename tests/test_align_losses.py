"""InfoNCE: numbers by hand, a naive float64 reference (with gradients), chance, masks, golden parity."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from align import LOSSES
from align.losses import MAX_SCALE, InfoNCE, info_nce
from align.model import OptionError, build_losses
from align.pairs import PairError, resolve_pairs


def unit_rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def naive_one_way(a, b, scale, positives, ignored):
    """-log of the share of each positive, by loops."""
    total = 0.0
    for i in range(len(a)):
        scores = [math.exp(scale * float(a[i] @ b[j])) for j in range(len(b))]
        below = sum(score for j, score in enumerate(scores) if j not in ignored[i])
        total -= sum(math.log(scores[j] / below) for j in positives[i]) / len(positives[i])
    return total / len(a)


# By hand ---------------------------------------------


def test_two_clips_by_hand():
    # Orthogonal pairs at temperature 1: logits [[1, 0], [0, 1]], loss = log(1 + e^-1).
    eye = torch.eye(2)
    assert info_nce(eye, eye, 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    # Swapped partners: log(1 + e).
    assert info_nce(eye, eye.flip(0), 1.0).item() == pytest.approx(math.log(1 + math.e))


def test_one_way_losses_differ_and_both_is_their_mean():
    a, b = unit_rows(6, 4), unit_rows(6, 4, seed=1)
    forward, backward, both = (
        info_nce(a, b, 5.0, direction=way).item() for way in ("forward", "backward", "both")
    )
    assert forward != pytest.approx(backward)
    assert both == pytest.approx((forward + backward) / 2)
    assert info_nce(b, a, 5.0, direction="forward").item() == pytest.approx(backward)


@pytest.mark.parametrize("B", [2, 7, 64])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_collapsed_embeddings_score_log_b(B, temperature):
    point = functional.normalize(torch.ones(B, 5), dim=1)
    loss = InfoNCE(temperature=temperature)({"rgb": point, "text": point, "depth": point})
    assert loss.item() == pytest.approx(math.log(B), rel=1e-5)


# Against the naive reference ---------------------------------------------

LABELS = torch.tensor([0, 1, 0, -1, -1, 1, 0])


@pytest.mark.parametrize("rule", ["negative", "ignore", "positive"])
def test_value_and_gradient_match_loops_in_float64(rule):
    B, tau = len(LABELS), 0.2
    a, b = unit_rows(B, 4).requires_grad_(), unit_rows(B, 4, seed=1).requires_grad_()
    loss = InfoNCE(temperature=tau, same_label=rule).double()
    same = [[j for j in range(B) if j == i or (LABELS[i] >= 0 and LABELS[i] == LABELS[j])] for i in range(B)]
    positives = same if rule == "positive" else [[i] for i in range(B)]
    ignored = [set(row) - {i} for i, row in enumerate(same)] if rule == "ignore" else [set()] * B

    def reference(a, b):
        ways = (
            naive_one_way(a, b, 1 / tau, positives, ignored),
            naive_one_way(b, a, 1 / tau, positives, ignored),
        )
        return sum(ways) / 2

    value = loss({"x": a, "y": b}, labels=LABELS)
    assert value.item() == pytest.approx(reference(a.detach(), b.detach()), rel=1e-6)
    value.backward()
    step = 1e-6
    for tensor, place in ((a, (0, 1)), (a, (3, 2)), (b, (5, 0)), (b, (6, 3))):
        ends = []
        for sign in (1, -1):
            moved = tensor.detach().clone()
            moved[place] += sign * step
            ends.append(reference(moved, b.detach()) if tensor is a else reference(a.detach(), moved))
        assert tensor.grad[place].item() == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8
        )


def test_several_pairs_are_their_weighted_mean():
    e = {name: unit_rows(6, 4, seed=seed) for seed, name in enumerate(("rgb", "ir", "text"))}
    pair = {(a, b): info_nce(e[a], e[b], 10.0).item() for a in e for b in e if a != b}
    assert InfoNCE(temperature=0.1)(e).item() == pytest.approx(
        (pair["rgb", "ir"] + pair["rgb", "text"] + pair["ir", "text"]) / 3
    )
    anchored = InfoNCE("anchor", temperature=0.1)(e).item()
    assert anchored == pytest.approx((pair["rgb", "ir"] + pair["rgb", "text"]) / 2)
    listed = InfoNCE("rgb-ir=3, text-ir", temperature=0.1)(e).item()
    assert listed == pytest.approx((3 * pair["rgb", "ir"] + pair["text", "ir"]) / 4)


def test_permuting_the_clips_changes_nothing():
    e = {name: unit_rows(6, 4, seed=seed) for seed, name in enumerate(("rgb", "ir"))}
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = InfoNCE(same_label="positive")
    shuffled = loss({name: value[order] for name, value in e.items()}, labels=labels[order])
    assert shuffled.item() == pytest.approx(loss(e, labels=labels).item())


# Missing modalities ---------------------------------------------


def test_a_missing_modality_equals_dropping_its_pairs():
    e = {name: unit_rows(5, 4, seed=seed).requires_grad_() for seed, name in enumerate(("rgb", "ir", "text"))}
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    loss = InfoNCE(temperature=0.3)
    whole = loss(e, present)
    expected = torch.stack(
        [
            info_nce(e["rgb"][[0, 2, 3]], e["ir"][[0, 2, 3]], 1 / 0.3),
            info_nce(e["rgb"][[0, 1, 3]], e["text"][[0, 1, 3]], 1 / 0.3),
            info_nce(e["ir"][[0, 3, 4]], e["text"][[0, 3, 4]], 1 / 0.3),
        ]
    ).mean()
    assert whole.item() == pytest.approx(expected.item())
    whole.backward()
    assert (e["ir"].grad[1] == 0).all() and (e["text"].grad[2] == 0).all() and (e["rgb"].grad[4] == 0).all()
    assert (e["ir"].grad[0] != 0).any()


def test_pairs_without_clips_have_no_weight_and_a_batch_without_pairs_no_gradient():
    e = {name: unit_rows(3, 4, seed=seed).requires_grad_() for seed, name in enumerate(("rgb", "ir", "text"))}
    present = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    assert InfoNCE()(e, present).item() == pytest.approx(info_nce(e["rgb"], e["ir"], 1 / 0.07).item())
    nothing = InfoNCE("rgb-text")(e, present)
    nothing.backward()
    assert nothing.item() == 0 and (e["rgb"].grad == 0).all()


def test_missing_rows_may_hold_anything():
    e = {name: unit_rows(4, 4, seed=seed) for seed, name in enumerate(("rgb", "ir"))}
    present = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    before = InfoNCE()(e, present).item()
    e["ir"][2] = -e["ir"][2]
    assert InfoNCE()(e, present).item() == before


# Same text, same label ---------------------------------------------


def test_the_same_text_twice_is_not_its_own_negative():
    """Three clips, two of which drew one text: ``ignore`` leaves that pair out: 2 candidates remain."""
    point = functional.normalize(torch.ones(3, 4), dim=1)
    e = {"rgb": point, "text": point}
    texts = torch.tensor([7, 7, 8])
    assert InfoNCE()(e, texts=texts).item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)
    assert InfoNCE(same_text="negative")(e, texts=texts).item() == pytest.approx(math.log(3))
    assert InfoNCE(same_text="positive")(e, texts=texts).item() == pytest.approx(math.log(3))


def test_texts_do_not_concern_pairs_without_text():
    e = {"rgb": unit_rows(3, 4), "ir": unit_rows(3, 4, seed=1)}
    same = torch.zeros(3, dtype=torch.int64)
    assert InfoNCE()(e, texts=same).item() == InfoNCE()(e).item()


def test_labels_are_demanded_where_they_are_used_and_owned_up_to():
    e = {"rgb": unit_rows(3, 4), "ir": unit_rows(3, 4, seed=1)}
    with pytest.raises(ValueError, match="same_label='positive' needs labels"):
        InfoNCE(same_label="positive")(e)
    assert InfoNCE(same_label="ignore").uses_labels and not InfoNCE().uses_labels


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("pairs", ["all", "anchor", "rgb-text=2"])
def test_every_loss_in_the_table_is_a_finite_scalar_with_gradients(name, pairs):
    e = {key: unit_rows(6, 4, seed=seed).requires_grad_() for seed, key in enumerate(("rgb", "text"))}
    present = torch.tensor([[1, 1], [1, 1], [0, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    losses = build_losses([{"name": name, "weight": 0.5, "pairs": pairs, "options": {}}], list(e))
    value = losses(e, present, torch.arange(6) % 3, torch.arange(6))
    value.backward()
    assert value.shape == () and value.isfinite()
    assert all(tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0 for tensor in e.values())


# Temperature ---------------------------------------------


def test_a_fixed_temperature_has_no_parameter_and_a_learnt_one_a_bound():
    assert not list(InfoNCE().parameters())
    loss = InfoNCE(temperature=0.05, learn_temperature=True)
    assert loss.temperature == pytest.approx(0.05)
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    loss.after_step()
    assert loss.temperature == pytest.approx(1 / MAX_SCALE)


def test_bad_options_are_named():
    for options, message in (
        ({"temperature": 0.0}, "loss infonce: temperature: 0.0 is not above 0"),
        ({"direction": "up"}, "loss infonce: direction: 'up' is unknown; accepted: both, forward, backward"),
        ({"tau": 1}, "loss infonce: no option 'tau'; accepted: temperature, learn_temperature"),
    ):
        with pytest.raises(OptionError, match=message):
            build_losses([{"name": "infonce", "weight": 1.0, "pairs": "all", "options": options}], ["a", "b"])


# Pairs ---------------------------------------------


def test_pairs_written_out():
    names = ["rgb", "ir", "text"]
    assert resolve_pairs("all", names) == [("rgb", "ir", 1), ("rgb", "text", 1), ("ir", "text", 1)]
    assert resolve_pairs("anchor", names) == [("rgb", "ir", 1), ("rgb", "text", 1)]
    assert resolve_pairs("anchor:text", names) == [("text", "rgb", 1), ("text", "ir", 1)]
    assert resolve_pairs("ir-text=0.5, rgb-ir", names) == [("ir", "text", 0.5), ("rgb", "ir", 1)]
    assert resolve_pairs([("ir", "rgb", 2.0)], names) == [("ir", "rgb", 2.0)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("rgb-depth", "'depth' is not aligned here; modalities: rgb, text"),
        ("anchor:depth", "'depth' is not aligned here"),
        ("rgb", "'rgb' is unknown; accepted: all, anchor"),
        ("rgb-text=much", "'much' in 'rgb-text=much' is not a number"),
        ("rgb-rgb", "needs two different modalities"),
        ("rgb-text=0", "a weight above 0"),
    ],
)
def test_wrong_pairs_are_refused(pairs, message):
    with pytest.raises(PairError, match=message):
        resolve_pairs(pairs, ["rgb", "text"])


# Golden parity with CMVRA's and CLIP-ViP's InfoNCE ---------------------------------------------


class Fixture:
    """Inputs, outputs and constructor arguments of one golden file."""

    def __init__(self, path):
        self.meta = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))
        self.losses = self.meta["constructor"]["losses"]
        self.zeta = self.meta["constructor"]["zeta"]

    def input(self, name):
        return torch.from_numpy(self.tensors[f"input/{name}"]).requires_grad_()

    def check(self, prefix, value, inputs):
        value.backward()
        found = {"loss": value.detach(), **{f"grad_{name}": tensor.grad for name, tensor in inputs.items()}}
        for name, got in found.items():
            reference = self.tensors[f"output/{prefix}/{name}"]
            error = np.abs(got.numpy() - reference).max()
            assert error <= 2e-5 * np.abs(reference).max() + 1e-6, (prefix, name, error)


@pytest.fixture
def fixtures(golden):
    paths = sorted(golden.glob("cmvra_losses_heads*.json"))
    assert paths, f"no cmvra_losses_heads*.json in {golden}"
    return [Fixture(path) for path in paths]


def test_golden_fixed_temperature(fixtures):
    """CLIP-ViP's NCEContrastiveLoss is the sum of both directions: twice our mean."""
    for fixture in fixtures:
        for suffix, options in fixture.losses["NCEContrastiveLoss"]:
            inputs = {name: fixture.input(name) for name in ("vis", "text")}
            value = 2 * InfoNCE(temperature=options["temp"], same_text="negative")(inputs)
            prefix = "optimization/NCEContrastiveLoss" + (f"_{suffix}" if suffix else "")
            fixture.check(prefix, value, inputs)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("NCELearnableTempLoss", "vis-text"), ("NCELearnableTempLoss_vs_vc", "vis-text,vis-cap")],
)
def test_golden_learnt_temperature(fixtures, name, pairs):
    """Logits x exp(temp): values, gradients, also that of the temperature; vs_vc sums two pairs."""
    for fixture in fixtures:
        names = sorted({part for pair in pairs.split(",") for part in pair.split("-")})
        inputs = {part: fixture.input(part) for part in names}
        loss = InfoNCE(pairs, learn_temperature=True, same_text="negative")
        with torch.no_grad():
            loss.log_scale.copy_(fixture.input("temp"))
        value = 2 * len(pairs.split(",")) * loss(inputs)
        fixture.check(f"optimization/{name}", value, inputs)
        reference = fixture.tensors[f"output/optimization/{name}/grad_temp"]
        assert loss.log_scale.grad.item() == pytest.approx(float(reference), rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_golden_all_pairs(fixtures, count):
    """CMVRA's InfoNCELoss1: normalised inside, mean of both directions, mean over all unordered pairs."""
    for fixture in fixtures:
        inputs = {f"raw{number}": fixture.input(f"raw{number}") for number in range(count)}
        unit = {name: functional.normalize(value, dim=-1) for name, value in inputs.items()}
        value = InfoNCE("all", temperature=fixture.zeta["InfoNCE_temp"])(unit)
        fixture.check(f"zeta/InfoNCELoss1_{count}mod", value, inputs)


def test_golden_single_pairs(fixtures):
    for fixture in fixtures:
        inputs = {name: fixture.input(name) for name in ("raw0", "raw1")}
        unit = {name: functional.normalize(value, dim=-1) for name, value in inputs.items()}
        fixture.check("zeta/NCEContrastiveLoss", InfoNCE(temperature=fixture.zeta["NCE_temp"])(unit), inputs)
        raw = {f"r{k}": functional.normalize(fixture.input(f"raw{k}"), dim=-1) for k in range(4)}
        scale = 1 / fixture.zeta["InfoNCE_temp"]
        pairwise = [info_nce(raw[a], raw[b], scale).item() for a, b, _ in resolve_pairs("all", list(raw))]
        np.testing.assert_allclose(
            pairwise, fixture.tensors["output/zeta/InfoNCELoss1_4mod/pairwise"], rtol=2e-5
        )
