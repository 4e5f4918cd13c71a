"""CMVRA's probe: step for step what torch's Adam does to nn.Linear, and what selects its epoch."""

from math import floor

import numpy as np
import pytest
import torch

from evaluate.adam import Schedule, held_out_rows, train_probe
from evaluate.logistic import ProbeError


def problem(n: int = 203, width: int = 24, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """203 = 6 batches of 32 and a smaller one."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    rows = rng.normal(size=(classes, width))[labels] + 2 * rng.normal(size=(n, width)) + 1
    return rows.astype(np.float32), labels


def plain(rows, labels, schedule: Schedule, seed: int, class_weights=None) -> list[np.ndarray]:
    """The loop that one would write: (epochs + 1) x (D + 1, C)."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(rows.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=schedule.learning_rate)
    period = max(1, floor(0.4 * schedule.epochs))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, period, gamma=0.5)
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
    loss_of = torch.nn.CrossEntropyLoss(weights)
    x, y, seen = torch.from_numpy(rows), torch.from_numpy(labels), []
    for _ in range(schedule.epochs):
        for features, targets in zip(x.split(schedule.batch), y.split(schedule.batch), strict=True):
            optimizer.zero_grad()
            loss_of(layer(features), targets).backward()
            optimizer.step()
        scheduler.step()
        seen.append(np.concatenate([layer.weight.detach().numpy().T, layer.bias.detach().numpy()[None]]))
    return seen


@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_adam_over_nn_linear(balanced) -> None:
    rows, labels = problem()
    class_weights = np.array([0.4, 0.1, 0.1, 0.3, 0.1]) if balanced else None
    weights = None if class_weights is None else class_weights[labels]
    schedule = Schedule(epochs=12, learning_rate=3e-3, held_out=0)
    ours = train_probe(rows, labels, schedule, seed=4, weights=weights).model
    theirs = plain(rows, labels, schedule, 4, class_weights)[-1]
    start = plain(rows, labels, Schedule(epochs=1, learning_rate=1e-30), 4)[0]
    assert np.abs(theirs - start).max() > 0.1
    np.testing.assert_allclose(np.concatenate([ours.weights, ours.bias[None]]), theirs, atol=2e-6)


def test_the_epoch_of_the_least_loss_on_held_out_clips_is_kept() -> None:
    rows, labels = problem()
    schedule = Schedule(epochs=40, learning_rate=0.05, held_out=0.1)
    found = train_probe(rows, labels, schedule, seed=1)
    held = held_out_rows(labels, 0.1, seed=1)
    assert held.sum() == 20
    epochs = plain(rows[~held], labels[~held], schedule, 1)
    losses = []
    for parameters in epochs:
        logits = torch.from_numpy(rows[held] @ parameters[:-1] + parameters[-1])
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[held]))))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    assert (
        found.epoch == int(np.argmin(losses)) + 1 < 40
    )  # at this rate it overfits, so that there is a choice
    np.testing.assert_allclose(found.model.weights, epochs[found.epoch - 1][:-1], atol=1e-4)
    scores = found.model.scores(rows[held], 5)
    assert found.held_out == pytest.approx((scores.argmax(1) == labels[held]).mean())


def test_the_rate_is_halved_after_each_0_4_of_the_epochs() -> None:
    rates = [Schedule(epochs=5, learning_rate=8.0).rate(epoch) for epoch in range(5)]
    assert rates == [8, 8, 4, 4, 2]
    assert Schedule(epochs=1).rate(0) == 1e-4


def test_shuffling_changes_the_order_only() -> None:
    rows, labels = problem()
    whole = Schedule(epochs=3, batch=len(rows), held_out=0)  # one batch: its order does not matter
    fixed, mixed = (
        train_probe(rows, labels, Schedule(**{**vars(whole), "shuffle": on})) for on in (False, True)
    )
    np.testing.assert_allclose(mixed.model.weights, fixed.model.weights, atol=1e-5)
    few = [train_probe(rows, labels, Schedule(epochs=3, held_out=0, shuffle=on)) for on in (False, True)]
    assert np.abs(few[0].model.weights - few[1].model.weights).max() > 1e-5


def test_a_class_never_loses_its_only_clip_to_the_held_out_ones() -> None:
    labels = np.array([0, 1, 1, 2, 2, 2])
    for seed in range(20):
        held = held_out_rows(labels, 0.9, seed)
        assert held.sum() == 3
        assert set(labels[~held]) == {0, 1, 2}
    assert not held_out_rows(np.arange(4), 0.5, 0).any()
    assert held_out_rows(labels, 0.02, 0).sum() == 1


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"held_out": 1.0}])
def test_a_schedule_out_of_range_is_named(wrong) -> None:
    rows, labels = problem()
    (name,) = wrong
    with pytest.raises(ProbeError, match=f"{name}={wrong[name]}.*accepted: epochs, batch >= 1"):
        train_probe(rows, labels, Schedule(**wrong))
