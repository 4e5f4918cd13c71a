"""Optimiser and schedule: by hand, and against torch's own StepLR over a real training run."""

import pytest
import torch
from test_align_train import trainer

from align.config import TrainConfig
from align.optimizer import ScheduleError, optimizer, schedule


def test_the_cosine_rises_then_falls_to_zero():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1 and max(rates) == 1
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-3
    assert rates[55] == pytest.approx(0.5)


def test_steps_are_those_of_steplr():
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    steps = torch.optim.lr_scheduler.StepLR(theirs, 4, 0.1)
    for epoch in range(10):
        for step in range(7):
            assert schedule(7 * epoch + step, 70, 0.0, "step:4:0.1", 7) == pytest.approx(
                steps.get_last_lr()[0]
            )
        theirs.step()
        steps.step()
    assert [schedule(step, 10, 0.2, "constant", 5) for step in range(4)] == [0.5, 1, 1, 1]


@pytest.mark.parametrize(
    "name", ["stairs", "step", "step:0:0.1", "step:4", "step:4:x", "step:4:-1", "constant:1", ""]
)
def test_a_schedule_that_cannot_be_read_is_named(name):
    with pytest.raises(
        ScheduleError, match=f"'{name}' is unknown; accepted: cosine, constant, step:EPOCHS:FACTOR"
    ):
        schedule(0, 10, 0.0, name)


def test_only_what_learns_is_optimised_and_only_matrices_decay():
    layer, frozen = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).requires_grad_(False)
    named = [*layer.named_parameters(), *frozen.named_parameters()]
    made = optimizer(named, TrainConfig(optimizer="adam", weight_decay=0.1, betas=[0.8, 0.9]))
    assert type(made) is torch.optim.Adam
    groups = [(group["weight_decay"], group["betas"], group["params"]) for group in made.param_groups]
    assert groups == [(0.1, (0.8, 0.9), [layer.weight]), (0.0, (0.8, 0.9), [layer.bias])]


def test_cmvras_way_of_training_runs():
    """Adam without decay, StepLR."""
    config = TrainConfig(
        epochs=3,
        batch=100,
        optimizer="adam",
        weight_decay=0,
        schedule="step:1:0.1",
        warmup=0,
        learning_rate=1e-3,
    )
    assert [row["learning_rate"] for row in trainer(config).run()] == pytest.approx([1e-3, 1e-4, 1e-5])
