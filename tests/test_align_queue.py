"""The queue: loops in float64, whose past counts as what, who gets gradients, resuming; label smoothing."""

import math

import pytest
import torch
from test_align_train import LOSS, shared_latent, strip
from torch.nn import functional

from align.checkpoint import read_state
from align.config import AugmentConfig, TrainConfig
from align.losses import InfoNCE, one_way
from align.model import Heads, HeadSpec, build_losses
from align.queue import Queue
from align.train import Trainer

B = 6
LABELS = torch.tensor([[0, 1, 0, -1, -1, 1], [1, 0, 2, -1, 1, 2]])  # of the past batch, of this one
CLIPS = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 0, 7, 8, 9, 3]])  # clips 0 and 3 come again
PRESENT = torch.tensor([[True, True], [True, True], [True, False], [True, True], [False, True], [True, True]])


def unit_rows(seed):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(B, 4, generator=generator, dtype=torch.float64), dim=-1)


def naive(a, b, past_b, has_b, rule, scale):
    """One direction by loops: row i of ``a`` among the rows of ``b`` and the past ones that exist."""
    total = 0.0
    for i in range(B):
        scores = [scale * a[i] @ b[j] for j in range(B)] + [scale * a[i] @ row for row in past_b]
        labels = [*LABELS[1].tolist(), *LABELS[0].tolist()]
        clips = [*CLIPS[1].tolist(), *CLIPS[0].tolist()]
        counted, positive = [], []
        for j in range(2 * B):
            same = labels[i] >= 0 and labels[j] == labels[i]
            if j >= B and not has_b[j - B]:
                continue
            if j == i or (rule == "positive" and same):
                positive.append(j)
            elif (j >= B and clips[j] == clips[i]) or (rule == "ignore" and same):
                continue
            counted.append(j)
        below = sum(math.exp(scores[j]) for j in counted)
        total -= sum(math.log(math.exp(scores[j]) / below) for j in positive) / len(positive)
    return total / B


@pytest.mark.parametrize("rule", ["negative", "ignore", "positive"])
def test_value_matches_loops_with_missing_modalities_in_the_past(rule):
    loss = InfoNCE(temperature=0.5, same_label=rule, queue=100).double()
    past = {"x": unit_rows(0), "y": unit_rows(1)}
    loss(past, PRESENT, LABELS[0], None, CLIPS[0])
    now = {"x": unit_rows(2), "y": unit_rows(3)}
    value = loss(now, None, LABELS[1], None, CLIPS[1])
    ways = (
        naive(now["x"], now["y"], past["y"], PRESENT[:, 1].tolist(), rule, 2.0),
        naive(now["y"], now["x"], past["x"], PRESENT[:, 0].tolist(), rule, 2.0),
    )
    assert value.item() == pytest.approx(sum(ways) / 2, rel=1e-6)


def test_gradients_reach_the_current_rows_only_and_match_differences():
    loss = InfoNCE(temperature=0.5, queue=100).double()
    past = {name: unit_rows(seed).requires_grad_() for seed, name in enumerate("xy")}
    loss(past, None, None, None, CLIPS[0])
    state = loss.state_dict()
    now = {name: unit_rows(seed + 2).requires_grad_() for seed, name in enumerate("xy")}
    loss(now, None, None, None, CLIPS[1]).backward()
    assert past["x"].grad is None and past["y"].grad is None

    def at(moved):
        loss.load_state_dict(state)
        return loss(moved, None, None, None, CLIPS[1]).item()

    step = 1e-6
    for name, place in (("x", (0, 1)), ("y", (4, 2))):
        ends = []
        for sign in (1, -1):
            moved = {key: value.detach().clone() for key, value in now.items()}
            moved[name][place] += sign * step
            ends.append(at(moved))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(now[name].grad[place].item(), rel=1e-4)


def test_a_clips_own_past_is_no_negative():
    now = {"x": unit_rows(2), "y": unit_rows(3)}
    loss = InfoNCE(queue=100).double()
    alone = loss(now, None, None, None, CLIPS[0])
    loss.load_state_dict(InfoNCE(queue=100).state_dict())
    one = torch.full((B,), 7)
    loss({"x": unit_rows(0), "y": unit_rows(1)}, None, None, None, one)
    assert loss(now, None, None, None, one) == pytest.approx(alone.item())


def test_the_same_text_is_left_out_for_pairs_with_text_only():
    texts, values = torch.arange(B), {}
    before, now = ({"rgb": unit_rows(s), "ir": unit_rows(s + 1), "text": unit_rows(s + 1)} for s in (0, 2))
    for pair in ("rgb-text", "rgb-ir"):
        for drawn in (texts, texts + 50):
            loss = InfoNCE(pairs=pair, queue=100).double()
            loss(before, None, None, texts, CLIPS[0])
            values[pair, int(drawn[0])] = loss(now, None, None, drawn, CLIPS[0] + 10).item()
    assert values["rgb-text", 0] < values["rgb-text", 50]
    assert values["rgb-ir", 0] == values["rgb-ir", 50]


def test_columns_beyond_the_length_are_forgotten_and_validation_sees_none():
    queue = Queue(8)
    for step in range(4):
        rows = torch.full((5, 2), float(step))
        queue.append({"x": rows}, None, None, None, torch.arange(5) + 10 * step)
    assert queue.kept["x"][:, 0].tolist() == [3.0] * 5 + [2.0] * 3
    assert queue.facts["clips"].tolist() == [30, 31, 32, 33, 34, 20, 21, 22]
    now = {"x": unit_rows(2), "y": unit_rows(3)}
    loss = InfoNCE(queue=100).double()
    first = loss(now, None, None, None, CLIPS[0])
    assert loss(now, None, None, None, CLIPS[0] + 10) > first
    assert loss.eval()(now, None, None, None, CLIPS[0] + 10) == first
    assert len(loss.queue.kept["x"]) == 2 * B


def test_wide_rows_go_through_dual_softmax_and_hard_negatives():
    """Only the hardest column of all counts; without a past column that is harder the value stays."""
    eye = torch.eye(B, dtype=torch.float64)
    now = {"x": eye, "y": eye}
    loss = InfoNCE(temperature=1.0, hard_negatives=1, queue=100).double()
    assert loss(now, None, None, None, CLIPS[0]).item() == pytest.approx(math.log(1 + math.exp(-1)))
    value = loss(now, None, None, None, CLIPS[0] + 10)  # now every row's own past is as close as its partner
    assert value.item() == pytest.approx(math.log(2))
    dual = InfoNCE(temperature=1.0, dual_softmax=True, queue=100).double()
    dual(now, None, None, None, CLIPS[0])
    assert dual(now, None, None, None, CLIPS[0] + 10) > dual.eval()(now)


def test_a_batch_that_does_not_name_its_clips_is_refused():
    with pytest.raises(ValueError, match="queue: the batch does not say which clip each row is of"):
        InfoNCE(queue=4)({"x": unit_rows(0), "y": unit_rows(1)})


def trainer(config, state=None):
    data, training, validation = shared_latent(n=90, held_out=20)
    torch.manual_seed(0)
    heads = Heads({name: HeadSpec("linear", *part.tokens_dim) for name, part in data.tracks.items()}, 8)
    losses = build_losses([LOSS[0] | {"options": {"queue": 50}}], heads.modalities)
    return Trainer(heads, losses, data, training, validation, config, AugmentConfig(), 0, state)


def test_resuming_has_the_same_columns(tmp_path):
    config = TrainConfig(epochs=4, batch=30, checkpoint_seconds=0, device="cpu")
    whole = trainer(config)
    whole.run()

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(config, tmp_path / "state.pt").run(stop)
    resumed = trainer(config)
    resumed.restore(read_state(tmp_path / "state.pt"))
    assert len(resumed.losses.terms[0].queue.kept["text"]) == 50
    resumed.run()
    assert strip(resumed.curve) == strip(whole.curve)


# Label smoothing ------------------------------------------------


def test_smoothing_is_torchs_and_leaves_ignored_columns_out():
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.arange(5)
    expected = functional.cross_entropy(logits, own, label_smoothing=0.1)
    assert one_way(logits, smoothing=0.1).item() == pytest.approx(expected.item())
    ignore = torch.zeros(5, 8, dtype=torch.bool)
    ignore[:, 6:] = True
    expected = functional.cross_entropy(logits[:, :6], own, label_smoothing=0.1)
    assert one_way(logits, None, ignore, 0.1).item() == pytest.approx(expected.item())
    diagonal = torch.eye(5, 8, dtype=torch.bool)
    assert one_way(logits, diagonal, ignore, 0.1).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match=r"smoothing: 1.0 is not in \[0, 1\)"):
        InfoNCE(smoothing=1.0)
