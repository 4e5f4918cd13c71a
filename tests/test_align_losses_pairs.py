"""The losses beside InfoNCE: numbers by hand, naive float64 references with gradients, golden parity."""

import math

import pytest
import torch
from golden_fixtures import cases
from torch.nn import functional

import align.pair_loss
from align import LOSSES
from align.joint_nce import JointNCE
from align.losses import InfoNCE, info_nce
from align.mil_nce import MILNCE, mil_nce
from align.model import OptionError, build_losses
from align.regression import KL, MSE
from align.sigmoid import Sigmoid
from align.triplet import Triplet


def unit_rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def pair(B=5, E=4):
    return {"rgb": unit_rows(B, E).requires_grad_(), "text": unit_rows(B, E, seed=1).requires_grad_()}


def assert_same_with_gradients(loss, reference, e, **options):
    """Value and gradient of a loss against a reference written with loops, in float64."""
    value = loss.double()(e, **options)
    gradients = torch.autograd.grad(value, list(e.values()), retain_graph=True)
    expected = reference(*e.values())
    wanted = torch.autograd.grad(expected, list(e.values()))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)


# Dual softmax and hard negatives ---------------------------------------------


def test_dual_softmax_by_hand():
    # Logits [[1, 0], [0, 1]]: each column's softmax is (s, 1 - s), s = 1 / (1 + 1/e); a row is then [s, 0].
    eye, s = torch.eye(2), 1 / (1 + math.exp(-1))
    assert info_nce(eye, eye, 1.0, dual_softmax=True).item() == pytest.approx(math.log(1 + math.exp(-s)))


def test_hard_negatives_are_the_highest_of_each_row():
    e, tau = pair(6), 0.3

    def reference(a, b):
        total = 0.0
        for x, y in ((a, b), (b, a)):
            for i in range(6):
                scores = [x[i] @ y[j] / tau for j in range(6)]
                hardest = sorted((scores[j].item(), j) for j in range(6) if j != i)[-2:]
                kept = [scores[i], *(scores[j] for _, j in hardest)]
                total = total + torch.logsumexp(torch.stack(kept), 0) - scores[i]
        return total / 12

    assert_same_with_gradients(InfoNCE(temperature=tau, hard_negatives=2), reference, e)
    whole = InfoNCE(temperature=tau)(e).item()
    assert InfoNCE(temperature=tau, hard_negatives=99)(e).item() == pytest.approx(whole)


def test_hard_negatives_leave_same_texts_out():
    point = functional.normalize(torch.ones(3, 4), dim=1)
    loss = InfoNCE(hard_negatives=1)
    texts = torch.tensor([7, 7, 8])
    assert loss({"rgb": point, "text": point}, texts=texts).item() == pytest.approx(math.log(2))
    all_same = loss({"rgb": point, "text": point}, texts=torch.zeros(3, dtype=torch.int64))
    assert all_same.item() == 0 and math.isfinite(all_same.item())


# Sigmoid ---------------------------------------------


def test_sigmoid_against_loops():
    labels = torch.tensor([0, 1, 0, -1, -1])

    def reference(rule):
        def loss(a, b):
            total = 0.0
            for i in range(5):
                for j in range(5):
                    same = i == j or (labels[i] >= 0 and bool(labels[i] == labels[j]))
                    if i != j and same and rule == "ignore":
                        continue
                    sign = 1 if i == j or (same and rule == "positive") else -1
                    total = total + torch.log1p(torch.exp(-sign * (a[i] @ b[j] / 0.2 - 3.0)))
            return total / 5

        return loss

    for rule in ("negative", "ignore", "positive"):
        loss = Sigmoid(temperature=0.2, bias=-3.0, same_label=rule)
        assert_same_with_gradients(loss, reference(rule), pair(), labels=labels)


def test_sigmoid_learns_scale_and_bias_or_neither():
    assert len(list(Sigmoid().parameters())) == 2 and not list(Sigmoid(learn=False).parameters())
    # Collapsed: B log(1 + e^(scale + bias)) for the negatives... with scale + bias = 0, each cell is log 2.
    point = functional.normalize(torch.ones(4, 3), dim=1)
    loss = Sigmoid(temperature=0.1, bias=-10.0)({"rgb": point, "text": point})
    assert loss.item() == pytest.approx(4 * math.log(2), rel=1e-5)


# Triplet ---------------------------------------------


@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_triplet_against_loops(hardest, measure):
    def score(x, y):
        return x @ y if measure == "cosine" else -(y - x).clamp(min=0).pow(2).sum().sqrt()

    def reference(a, b):
        total = 0.0
        for i in range(5):
            rows, columns = (
                torch.stack([(0.3 + s - score(a[i], b[i])).clamp(min=0) for s in scores if s is not None])
                for scores in (
                    [score(a[i], b[j]) if j != i else None for j in range(5)],
                    [score(a[j], b[i]) if j != i else None for j in range(5)],
                )
            )
            total = total + (rows.max() + columns.max() if hardest else rows.sum() + columns.sum())
        return total / 10

    assert_same_with_gradients(Triplet(margin=0.3, hardest=hardest, measure=measure), reference, pair())


def test_triplet_of_collapsed_embeddings_is_the_margin_and_of_distant_ones_zero():
    point = functional.normalize(torch.ones(4, 3), dim=1)
    assert Triplet(margin=0.2)({"a": point, "b": point}).item() == pytest.approx(0.2)
    eye = torch.eye(4)
    assert Triplet(margin=0.2)({"a": eye, "b": eye}).item() == 0


# MIL-NCE ---------------------------------------------


def test_mil_nce_counts_the_best_of_a_bag():
    texts = torch.tensor([7, 7, 8, 9, 9])

    def reference(a, b):
        total = 0.0
        for i in range(5):
            bag, rest = [], []
            cells = [(i, j) for j in range(5)] + [(j, i) for j in range(5) if j != i]
            for x, y in cells:
                (bag if texts[x] == texts[y] else rest).append(a[x] @ b[y] / 0.5)
            total = total + torch.logsumexp(torch.stack(bag + rest), 0) - torch.logsumexp(torch.stack(bag), 0)
        return total / 5

    assert_same_with_gradients(MILNCE(temperature=0.5), reference, pair(), texts=texts)


def test_mil_nce_of_collapsed_embeddings():
    # One positive among the 2B - 1 cells of row and column.
    assert mil_nce(torch.zeros(6, 6)).item() == pytest.approx(math.log(11))
    # With K texts a clip, K among K (2B - 1).
    assert mil_nce(torch.zeros(6, 6, 3)).item() == pytest.approx(math.log(11))
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[0, 1] = True
    assert mil_nce(torch.zeros(6, 6), ignore=ignore).item() == pytest.approx(
        (2 * math.log(10) + 4 * math.log(11)) / 6
    )


# Without negatives ---------------------------------------------


def test_regression_losses_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert MSE()({"a": a, "b": b}).item() == pytest.approx(0.5)
    assert MSE()({"a": a, "b": a}).item() == 0
    assert KL()({"a": a, "b": a}).item() == pytest.approx(0, abs=1e-7)
    # Row 1: softmax (p, 1 - p) against (1 - p, p): (2p - 1) log(p / (1 - p)), p = e / (1 + e); row 2: 0.
    p = math.e / (1 + math.e)
    assert KL(temperature=1.0)({"a": a, "b": b}).item() == pytest.approx((2 * p - 1) / 2)


def test_kl_has_its_teacher_first():
    e = {"a": unit_rows(4, 3), "b": unit_rows(4, 3, seed=1)}
    turned = KL("b-a", temperature=0.2)(e).item()
    assert KL("a-b", temperature=0.2)(e).item() != pytest.approx(turned)


# Shared negatives ---------------------------------------------


def test_joint_negatives_against_loops():
    e = {name: unit_rows(4, 3, seed=seed).requires_grad_() for seed, name in enumerate(("v", "s", "c"))}

    def reference(v, s, c):
        total = 0.0
        for own, other in ((s, c), (c, s)):
            for i in range(4):
                wide = [v[i] @ own[j] for j in range(4)] + [v[i] @ other[j] for j in range(4) if j != i]
                total = total + torch.logsumexp(torch.stack(wide), 0) - v[i] @ own[i]
                plain = torch.stack([own[i] @ v[j] for j in range(4)])
                total = total + torch.logsumexp(plain, 0) - plain[i]
        return total / 16

    assert_same_with_gradients(JointNCE("anchor:v", temperature=1.0), reference, e)


def test_joint_negatives_with_missing_modalities():
    e = {name: unit_rows(4, 3, seed=seed).requires_grad_() for seed, name in enumerate(("v", "s", "c"))}
    present = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    value = JointNCE("anchor:v", temperature=1.0)(e, present)  # v-c has one clip only: negatives for v-s
    value.backward()
    assert (e["c"].grad[[0, 2, 3]] == 0).all() and (e["c"].grad[1] != 0).any()
    nothing = JointNCE("v-c")(e, present)
    assert nothing.item() == 0


def test_stacked_pairs_are_one_batch():
    e = {name: unit_rows(4, 3, seed=seed) for seed, name in enumerate(("v", "s", "i", "c"))}
    value = JointNCE("v-s, i-c", temperature=0.5, share="batch")(e)
    stacked = info_nce(torch.cat([e["v"], e["i"]]), torch.cat([e["s"], e["c"]]), 2.0)
    assert value.item() == pytest.approx(stacked.item())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("infonce", {"hard_negatives": -1}, "loss infonce: hard_negatives: -1 is negative; 0 keeps all"),
        ("triplet", {"measure": "l1"}, "loss triplet: measure: 'l1' is unknown; accepted: cosine, order"),
        ("joint-nce", {"share": "all"}, "loss joint-nce: share: 'all' is unknown; accepted: anchor, batch"),
        ("kl", {"temperature": 0.0}, "loss kl: temperature: 0.0 is not above 0"),
        ("sigmoid", {"temperature": -1.0}, "loss sigmoid: temperature: -1.0 is not above 0"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        build_losses([{"name": name, "weight": 1.0, "pairs": "all", "options": options}], ["a", "b"])


# Golden parity ---------------------------------------------


def check(fixture, prefix, value, inputs, **others):
    """A loss and its gradients; ``others`` are further leaves by the reference's names."""
    leaves = inputs | others
    gradients = torch.autograd.grad(value, list(leaves.values()))
    fixture.check(value, f"{prefix}/loss")
    for name, gradient in zip(leaves, gradients, strict=True):
        fixture.check(
            gradient.reshape(fixture.part("output")[f"{prefix}/grad_{name}"].shape), f"{prefix}/grad_{name}"
        )


def inputs_of(fixture, *names):
    return {name: fixture.part("input")[name].requires_grad_() for name in names}


def learnt(loss, log_scale):
    with torch.no_grad():
        loss.log_scale.copy_(log_scale)
    return loss


GOLDEN = pytest.mark.parametrize("fixture", cases("cmvra_losses_heads"))
BOTH_DIRECTIONS = 2  # the original adds what ours averages


@GOLDEN
def test_golden_dual_softmax_and_hard_negatives(fixture):
    e = inputs_of(fixture, "vis", "text")
    loss = learnt(
        InfoNCE(learn_temperature=True, dual_softmax=True, same_text="negative"),
        fixture.part("input")["temp"],
    )
    check(fixture, "optimization/NCELearnableTempDSLLoss", BOTH_DIRECTIONS * loss(e), e, temp=loss.log_scale)
    for suffix, options in fixture.meta["constructor"]["losses"]["HardNegLoss"]:
        loss = InfoNCE(temperature=1.0, hard_negatives=options["hard_negative_num"], same_text="negative")
        check(fixture, f"optimization/HardNegLoss{suffix}", BOTH_DIRECTIONS * loss(e), e)


@GOLDEN
def test_golden_triplet(fixture):
    for suffix, options in fixture.meta["constructor"]["losses"]["TripletContrastiveLoss"]:
        e = inputs_of(fixture, "vis", "text")
        loss = Triplet("vis-text", options["margin"], options["max_violation"], options["measure"])
        value = BOTH_DIRECTIONS * len(e["vis"]) * loss(e)
        check(fixture, f"optimization/TripletContrastiveLoss_{suffix}", value, e)


@GOLDEN
def test_golden_mil_nce(fixture):
    for suffix, options in fixture.meta["constructor"]["losses"]["MILNCEContrastiveLoss"]:
        e = inputs_of(fixture, "vis", "text_multi")
        B = len(e["vis"])
        logits = (e["vis"] @ e["text_multi"].T / options["temp"]).view(B, B, -1)
        check(fixture, f"optimization/MILNCEContrastiveLoss{suffix}", mil_nce(logits), e)


@GOLDEN
@pytest.mark.parametrize(
    ("name", "joint", "plain"),
    [
        ("NCELearnableTempLoss_vs_vc_fc", "", "vis-text,vis-cap,img-cap"),
        ("NCELearnableTempLoss_vsc", "vis-text,vis-cap", ""),
        ("NCELearnableTempLoss_vsc_fc", "vis-text,vis-cap", "img-cap"),
        ("VidImgDivideNCELearnableTempLoss", "", "vis-text,img-cap"),
        ("VidImgNCELearnableTempLoss", "batch", ""),
    ],
)
def test_golden_video_subtitle_frame_caption(fixture, name, joint, plain):
    """CLIP-ViP's pre-training losses, each a sum of ours."""
    used = {"vis", "text", "cap"} | ({"img"} if "img" in plain or joint == "batch" else set())
    e, temp = inputs_of(fixture, *sorted(used)), fixture.part("input")["temp"].requires_grad_()
    value = 0.0
    if joint == "batch":
        value = BOTH_DIRECTIONS * sharing_scale(JointNCE("vis-text,img-cap", share="batch"), temp)(e)
    elif joint:
        value = BOTH_DIRECTIONS * 2 * sharing_scale(JointNCE(joint), temp)(e)
    if plain:
        count = len(plain.split(","))
        value = value + BOTH_DIRECTIONS * count * sharing_scale(InfoNCE(plain, same_text="negative"), temp)(e)
    check(fixture, f"optimization/{name}", value, e, temp=temp)


def sharing_scale(loss, temp):
    """The loss with a given tensor as its log scale, which several losses then share."""
    del loss.log_scale
    loss.log_scale = temp
    return loss


@GOLDEN
def test_golden_zeta_losses(fixture):
    zeta = fixture.meta["constructor"]["zeta"]
    for name in ("MSELoss", "mse_loss"):
        e = inputs_of(fixture, "raw0", "raw1")
        check(fixture, f"zeta/{name}", MSE()(e), e)
    e = inputs_of(fixture, "raw0", "raw1")
    T = zeta["KL_T"]
    check(fixture, f"zeta/DiagonalKLDivLoss_T{T:g}", KL("raw1-raw0", temperature=T)(e), e)
    e = inputs_of(fixture, "vis", "text", "img")
    B = len(e["vis"])
    loss = Sigmoid(bias=zeta["sigmoid"]["bias_initial"], same_text="negative")
    learnt(loss, torch.tensor(float(zeta["sigmoid"]["temperature_initial"])))
    check(
        fixture,
        "zeta/SigmoidContrastiveMultiModalLoss",
        loss(e) / B,
        e,
        temperature=loss.log_scale,
        bias=loss.bias,
    )


# Large batches ---------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_making_matrices_again_for_the_backward_pass_changes_nothing(name, monkeypatch):
    """What batches of many thousands do, so that one pair's matrices are held at a time, not all."""
    options = {"infonce": {"queue": 9, "same_label": "ignore", "learn_temperature": True}}.get(name, {})
    e = {which: unit_rows(6, 4, seed=k).requires_grad_() for k, which in enumerate(("rgb", "ir", "text"))}
    facts = (torch.rand(6, 3) > 0.2, torch.arange(6) % 3, torch.arange(6) % 4, torch.arange(6))
    found = []
    for held in (align.pair_loss.HELD_BYTES, 0):
        monkeypatch.setattr(align.pair_loss, "HELD_BYTES", held)
        term = {"name": name, "weight": 1.0, "pairs": "all", "options": options}
        loss = build_losses([term], list(e)).double()
        loss(e, *facts)  # with a queue, the next batch meets this one
        value = loss(e, *facts[:3], facts[3] + 10)
        found.append([value, *torch.autograd.grad(value, [*e.values(), *loss.parameters()])])
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
