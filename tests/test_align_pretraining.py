"""The loop of masked pre-training on a task small enough to check by hand: steps, resuming, accumulation."""

import numpy as np
import pytest
import torch
from torch import nn

from align.mae_config import MaeConfig
from align.pretraining import Pretrainer, recompute
from align.pretraining_run import hold_out
from align.train import TrainingError

PLAIN = MaeConfig(epochs=3, batch=2, learning_rate=0.05, weight_decay=0.0, warmup=0.0, clip_norm=0.0)


class Line:
    """Clip k is the point (k, 2 k + 1); the network is a line; half of the errors are hidden at random."""

    def __init__(self, unreadable=(), draws=False):
        torch.manual_seed(7)
        self.model = nn.Linear(1, 1)
        self.unreadable, self.draws, self.asked = unreadable, draws, []

    def batches(self, chunks, view):
        for chunk in chunks:
            self.asked.append((view, chunk.tolist()))
            yield torch.tensor([[float(clip)] for clip in chunk if clip not in self.unreadable])

    def errors(self, batch, generator):
        squares = (self.model(batch) - 2 * batch - 1).square()
        if self.draws:
            squares = squares * torch.rand(len(batch), 1, generator=generator)
        return {"loss": squares.mean(), "zero": (2 * batch + 1).square().mean()}


def trainer(clips=7, validation=(), **changed):
    task = Line(changed.pop("unreadable", ()), changed.pop("draws", False))
    config = MaeConfig(**(vars(PLAIN) | changed))
    return Pretrainer(task, np.arange(clips), np.array(validation, int), config)


def without_seconds(curve):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in curve]


def test_every_epoch_sees_every_training_clip_once_in_an_order_of_its_own():
    one = trainer(clips=7, epochs=2)
    curve = one.run()
    first = [clip for view, chunk in one.task.asked if view == 1 for clip in chunk]
    second = [clip for view, chunk in one.task.asked if view == 2 for clip in chunk]
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert [row["step"] for row in curve] == [4, 8] and [row["clips"] for row in curve] == [7, 7]
    assert curve[-1]["train_zero"] == pytest.approx(np.mean([(2 * k + 1) ** 2 for k in range(7)]))


def test_a_step_of_several_batches_is_a_step_of_one_large_batch():
    large, parts = trainer(clips=8, batch=4), trainer(clips=8, batch=1, accumulate=4)
    large.run(), parts.run()
    for one, other in zip(large.task.model.parameters(), parts.task.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert large.steps == parts.steps == 6


def test_an_unreadable_clip_only_leaves_its_batch_smaller():
    one = trainer(clips=5, unreadable={3}, epochs=1)
    assert one.run()[0]["clips"] == 4
    with pytest.raises(TrainingError, match="the loss is of no clip in epoch 1"):
        trainer(clips=2, unreadable={0, 1}).run()


@pytest.mark.parametrize("stop", [1, 3, 4, 9, 11])
def test_a_run_continues_with_the_very_next_step(tmp_path, stop):
    from align.checkpoint import read_state

    whole = trainer(draws=True, validation=(9, 10))
    whole.run()
    stopped = trainer(draws=True, validation=(9, 10), checkpoint_seconds=0)
    stopped.state_path = tmp_path / "state.pt"

    def interrupt(running):
        if running.step > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(interrupt)
    resumed = trainer(draws=True, validation=(9, 10))
    resumed.restore(read_state(tmp_path / "state.pt"))
    assert resumed.step == stop
    resumed.run()
    assert without_seconds(resumed.curve) == without_seconds(whole.curve)
    for one, other in zip(resumed.task.model.parameters(), whole.task.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_held_out_clips_are_measured_under_the_same_masks_and_never_learnt_from():
    one = trainer(draws=True, validation=(9, 10), learning_rate=0.0)
    curve = one.run()
    assert len({row["validation_loss"] for row in curve}) == 1
    assert {clip for view, chunk in one.task.asked if view == 0 for clip in chunk} == {9, 10}
    assert {clip for view, chunk in one.task.asked if view for clip in chunk} == set(range(7))


def test_seeds_decide_order_and_masks():
    curves = [trainer(draws=True, seed=seed).run() for seed in (0, 0, 1)]
    assert without_seconds(curves[0]) == without_seconds(curves[1]) != without_seconds(curves[2])


def test_biases_and_single_vectors_are_not_decayed():
    one = trainer()
    one.task.model.token = nn.Parameter(torch.ones(1, 4))
    decayed, plain = Pretrainer(one.task, one.training, one.validation, PLAIN).optimizer.param_groups
    assert [value.shape for value in decayed["params"]] == []  # a weight of 1 x 1 is a single number here
    assert sorted(tuple(value.shape) for value in plain["params"]) == [(1,), (1, 1), (1, 4)]
    assert plain["weight_decay"] == 0.0 and plain["betas"] == (0.9, 0.95)


def test_recomputed_layers_give_the_same_gradients():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))
    x = torch.randn(3, 4)

    def gradients():
        layers.zero_grad()
        layers[1](layers[0](x)).square().sum().backward()
        return [value.grad.clone() for value in layers.parameters()]

    before, keys = gradients(), list(layers.state_dict())
    recompute(layers)
    assert all(map(torch.equal, before, gradients())) and list(layers.state_dict()) == keys


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"clips": 1}, "1 training clips; at least 2"), ({"batch": 0}, "--batch 0; at least 1")],
)
def test_impossible_runs_are_refused(wrong, message):
    with pytest.raises(TrainingError, match=message):
        trainer(**wrong)


def test_whole_subjects_are_held_out_where_there_are_enough():
    subjects = [f"P{k % 6}" for k in range(60)]
    training, held = hold_out(subjects, MaeConfig(held_out=0.2))
    assert not {subjects[k] for k in training} & {subjects[k] for k in held}
    assert 0 < len(held) <= 20 and len(training) + len(held) == 60
    training, held = hold_out([None] * 10, MaeConfig(held_out=0.2))
    assert len(held) == 2 and not set(training) & set(held)
    assert [len(part) for part in hold_out(["a", "b"], MaeConfig())] == [2, 0]
    assert [len(part) for part in hold_out(subjects, MaeConfig(held_out=0.0))] == [60, 0]
