"""LaViLa's loss over annotated and generated texts: by hand, a naive float64 reference, golden parity."""

import math

import pytest
import torch
from golden_fixtures import cases
from torch.nn import functional

from align.losses import info_nce
from align.losses_lavila import PSEUDO_TEMPERATURE, pseudo_info_nce


def unit_rows(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def test_by_hand():
    # Logits [[4, 0], [0, 1]]: an annotated pair at scale 4, a generated one at scale 1.
    eye, annotated = torch.eye(2), torch.tensor([True, False])
    want = (math.log(1 + math.exp(-4)) + math.log(1 + math.exp(-1))) / 2
    assert pseudo_info_nce(eye, eye, 4.0, 1.0, annotated).item() == pytest.approx(want)
    # All rows alike: an annotated and a generated clip meet at sqrt(4 * 1) = 2.
    same = torch.ones(2, 1)
    rows = [math.log(math.exp(4) + math.exp(2)) - 4, math.log(math.exp(2) + math.exp(1)) - 1]
    assert pseudo_info_nce(same, same, 4.0, 1.0, annotated).item() == pytest.approx(sum(rows) / 2)


def test_value_and_gradients_are_those_of_a_loop():
    first, second = unit_rows(5, 4, 0).requires_grad_(), unit_rows(5, 4, 1).requires_grad_()
    scales = torch.tensor([14.0, 9.0], dtype=torch.float64, requires_grad=True)
    annotated = torch.tensor([True, False, False, True, True])
    own = [scales[0] if one else scales[1] for one in annotated]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        across = torch.stack([(own[i] * own[j]).sqrt() * (first[i] @ second[j]) for j in range(5)])
        down = torch.stack([(own[i] * own[j]).sqrt() * (first[j] @ second[i]) for j in range(5)])
        total = total + (across.logsumexp(0) - across[i] + down.logsumexp(0) - down[i]) / 10
    given = (first, second, scales)
    loss = pseudo_info_nce(first, second, scales[0], scales[1], annotated)
    assert loss.item() == pytest.approx(total.item())
    wanted = torch.autograd.grad(total, given)
    for got, want in zip(torch.autograd.grad(loss, given), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_equal_scales_make_it_info_nce_and_collapse_is_at_chance():
    first, second = unit_rows(6, 4, 0), unit_rows(6, 4, 1)
    mixed = torch.arange(6) % 2 == 0
    alike = pseudo_info_nce(first, second, 7.0, 7.0, mixed)
    assert alike.item() == pytest.approx(info_nce(first, second, 7.0).item())
    point = first[:1].expand(6, -1)
    assert pseudo_info_nce(point, point, 7.0, 7.0, mixed).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize("golden", cases("lavila_losses"))
def test_golden_losses_of_lavila(golden):
    given = golden.part("input")
    images, texts, scale = given["image_embed"], given["text_embed"], given["logit_scale"]
    annotated = given["gt_indicators"] == 1
    golden.check(info_nce(images, texts, scale), "clip_loss")
    golden.check(pseudo_info_nce(images, texts, scale, 1 / PSEUDO_TEMPERATURE, annotated), "sslclip_loss")
    cosines = functional.normalize(texts, dim=-1) @ functional.normalize(images, dim=-1).T
    golden.check(cosines, "sim_matrix")  # rows are texts
    right = cosines.argmax(0) == torch.arange(len(cosines))
    golden.check(100 * right.float().mean(), "clip_acc")
    share = torch.where(annotated, scale, torch.tensor(1 / PSEUDO_TEMPERATURE)).sqrt()
    mixed = share[:, None] * (images @ texts.T) * share  # the logits of the mixed loss, rows are images
    right = mixed.argmax(1) == torch.arange(len(mixed))
    golden.check(100 * right.float().mean(), "sslclip_acc")
