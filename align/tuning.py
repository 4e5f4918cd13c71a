"""The loop of end-to-end training: that of the heads, with encoders under some of them.

A step embeds a batch of clips, which are each other's negatives, in micro-batches (``align.gradient_cache``).
Everything random in a step is a function of (seed, epoch, place in the epoch), so a run that was killed goes
on with the step after the last saved one, on the same curve to the bit.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from align import distributed
from align.data import Batch
from align.end_to_end_config import EndToEndConfig
from align.gradient_cache import backward
from align.live import Feed
from align.live_data import LiveLoader
from align.optimizer import over, schedule
from align.standardise import Moments, Statistics
from align.towers import Seen, Towers, Values
from align.train import Trainer, TrainingError
from align.unfreeze import Depth

SHOWN_SECONDS = 2.0  # between two lines of progress


@dataclass
class Tuner(Trainer):
    """Heads and encoders being trained on one set of clips; ``heads`` are :class:`align.towers.Towers`.

    Args:
        feeds: Live modality -> its encoder's input.
        depths: Live modality -> the parameters of its encoder to train.
        options: Everything that was asked.
    """

    feeds: Mapping[str, Feed] = field(default_factory=dict)
    depths: Mapping[str, list[Depth]] = field(default_factory=dict)
    options: EndToEndConfig = field(default_factory=EndToEndConfig)

    def __post_init__(self) -> None:
        for name in ("micro_batch", "accumulate"):
            if getattr(self.options, name) < 1:
                raise TrainingError(
                    f"align.end_to_end: --{name} {getattr(self.options, name)}; at least 1 is accepted"
                )
        self.done = 0  # steps
        super().__post_init__()
        assert isinstance(self.heads, Towers)
        self.towers = self.heads
        whole, feed = self.loader.batch, self.loader.sources
        self.live = LiveLoader(self.data, feed, self.training, whole, self.seed, self.augment, self.feeds)
        self.watched = LiveLoader(self.data, feed, self.validation, whole, self.seed, None, self.feeds)
        self.steps = self.config.epochs * self.epoch_steps
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)  # of the epoch's losses so far
        self.report: Callable[[Tuner], None] = lambda _: None
        self.saved = time.monotonic()

    @property
    def epoch_steps(self) -> int:
        """Updates an epoch."""
        return math.ceil(len(self.loader) / self.options.accumulate)

    def measure(self, per: Mapping[str, str]) -> None:
        """Standardise what the encoders give by what they give of the training clips before training.

        Args:
            per: Live modality -> ``dim``, ``token`` or ``none``.
        """
        wanted = {name: rule for name, rule in per.items() if rule != "none"}
        if not wanted:
            return
        self.heads.eval()
        found = {name: Moments() for name in wanted}
        calm = LiveLoader(
            self.data, self.loader.sources, self.training, self.loader.batch, self.seed, None, self.feeds
        )
        for batch in calm.in_order():
            for name, moments in found.items():
                seen: Any = batch.features[name]
                for values in seen.split(self.options.micro_batch):
                    with torch.no_grad(), self._autocast():
                        moments.add(self.towers.tower(name).features(values).float().cpu().numpy())
        for name, moments in found.items():
            self.towers.tower(name).set_standard(moments.statistics(wanted[name]))
        if self.averaged:  # the average began with statistics of nothing
            self.averaged = {name: one.detach().clone() for name, one in self.heads.state_dict().items()}

    def standards(self, stored: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """The statistics of all modalities, for the checkpoint."""
        return {**stored, **{name: self.towers.tower(name).standard() for name in self.feeds}}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same recipe."""
        super().restore(state)
        self.done, self.total = state["done"], state["total"].to(self.device)

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"done": self.done, "total": self.total}

    def _epoch(self, number: int) -> dict[str, Any]:
        began = time.perf_counter()
        self.heads.train()
        self.losses.train()
        first = self.done - number * self.epoch_steps
        batches = self.live.epoch(number, first * self.options.accumulate)
        for place in range(first, self.epoch_steps):
            count = min(self.options.accumulate, len(self.loader) - place * self.options.accumulate)
            self._set_rate(self.done)
            self.total += self._update(batches, count, (number, place))
            self.done += 1
            self.report(self)
            if time.monotonic() - self.saved >= self.config.checkpoint_seconds and self.done < self.steps:
                self.save()
                self.saved = time.monotonic()
        next(batches, None)  # lets it end by itself
        mean = self.total.item() / self.epoch_steps
        if not math.isfinite(mean):
            raise TrainingError(
                f"align.end_to_end: the loss is {mean} in epoch {number + 1}; lower the learning rates"
            )
        self.total = torch.zeros_like(self.total)
        rate = self._set_rate(self.done - 1)
        row = {"epoch": number + 1, "step": self.done, "train_loss": mean, "learning_rate": rate}
        row |= {"temperature": self.losses.temperature} | self._watch()
        return row | {"seconds": round(time.perf_counter() - began, 4)}

    def _update(self, batches: Iterator[Batch], count: int, place: tuple[int, int]) -> Tensor:
        """One step by so many batches; their mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = [
            self.gradients(next(batches), (*place, number), 1 / count).double() for number in range(count)
        ]
        parameters = [value for value in self._parameters() if value.requires_grad]
        _complete_gradients(parameters)
        distributed.average_gradients(parameters)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.heads.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.losses.after_step()
        if self.config.average:
            self._average()
        return torch.stack(losses).mean()

    def gradients(self, batch: Batch, place: tuple[int, ...] = (0, 0, 0), scale: float = 1.0) -> Tensor:
        """Add the gradient of a batch's loss, embedded in micro-batches.

        Args:
            batch: With what the encoders see.
            place: Epoch, step and batch: what dropout is drawn by.
            scale: Of the gradient.

        Returns:
            The loss.
        """
        seen: dict[str, Seen] = {name: batch.features[name] for name in self.feeds}  # type: ignore[misc]
        parts = {
            name: [
                partial(self._part, name, values, (*place, 1 + turn, number))
                for number, values in enumerate(one.split(self.options.micro_batch))
            ]
            for turn, (name, one) in enumerate(seen.items())
        }

        def loss(found: dict[str, Tensor]) -> Tensor:
            self._randomise(*place, 0, 0)
            embeddings = {}
            for name in self.towers.modalities:
                if name in seen:
                    embeddings[name] = seen[name].placed(found.get(name), self.towers.embedding)
                else:
                    with self._autocast():
                        embeddings[name] = self.towers.embed(name, batch.features[name], batch.masks[name])
            return self.losses(*distributed.gather_batch(embeddings, *batch.facts))

        return backward({name: own for name, own in parts.items() if own}, loss, scale)

    def _part(self, name: str, values: Values, place: tuple[int, ...]) -> Tensor:
        """The embeddings of one micro-batch, the same whenever it is asked for."""
        self._randomise(*place)
        with self._autocast():
            return self.towers.encode(name, values)

    def _randomise(self, *place: int) -> None:
        """Dropout from here on is that of this place, on this rank."""
        torch.manual_seed(int(np.random.default_rng([self.seed, *place, distributed.rank()]).integers(2**62)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _optimizer(self) -> torch.optim.Optimizer:
        """Over heads, losses and each depth of each encoder; ``peak`` is a group's highest rate."""
        config, options = self.config, self.options
        own = {id(one.parameter) for depths in self.depths.values() for one in depths}
        heads = [one for one in self.heads.parameters() if id(one) not in own and one.requires_grad]
        rate = config.learning_rate if options.loss_learning_rate is None else options.loss_learning_rate
        groups = _groups(heads, config.learning_rate, config.weight_decay)
        groups += _groups([one for one in self.losses.parameters() if one.requires_grad], rate, 0.0)
        for name, depths in self.depths.items():
            tune = options.tune[name]
            decay = config.weight_decay if tune.weight_decay is None else tune.weight_decay
            for above in sorted({one.above for one in depths}):
                peak = tune.learning_rate * tune.layer_decay ** max(0, above - 1)
                groups += _groups([one.parameter for one in depths if one.above == above], peak, decay)
        return over(groups, config)

    def _set_rate(self, step: int) -> float:
        config = self.config
        factor = schedule(
            step, config.epochs * self.epoch_steps, config.warmup, config.schedule, self.epoch_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return config.learning_rate * factor


def progress() -> Callable[[Tuner], None]:
    """A reporter that says on stderr now and then where a run is."""
    began, first, shown = time.monotonic(), None, 0.0

    def show(tuner: Tuner) -> None:
        nonlocal first, shown
        now = time.monotonic()
        first = tuner.done - 1 if first is None else first
        if now - shown < SHOWN_SECONDS and tuner.done < tuner.steps:
            return
        shown, seconds = now, (now - began) / (tuner.done - first)
        in_epoch = tuner.done - tuner.epoch * tuner.epoch_steps
        clips = tuner.live.share * distributed.size() * tuner.options.accumulate
        waited = tuner.live.waited_seconds / max(now - began, 1e-9)
        print(
            f"epoch {tuner.epoch + 1}/{tuner.config.epochs}  step {tuner.done}/{tuner.steps}  "
            f"loss {tuner.total.item() / max(1, in_epoch):.3f}  {clips / seconds:.1f} clips/s, "
            f"waited for clips {waited:.0%}, {seconds * (tuner.steps - tuner.done):.0f} s left",
            file=sys.stderr,
        )

    return show


def _groups(parameters: list[nn.Parameter], peak: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    matrices = [one for one in parameters if one.squeeze().ndim > 1]
    vectors = [one for one in parameters if one.squeeze().ndim <= 1]
    rate = {"lr": peak, "peak": peak}
    groups = [
        {"params": matrices, "weight_decay": weight_decay, **rate},
        {"params": vectors, "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]


def _complete_gradients(parameters: list[Tensor]) -> None:
    """A zero gradient where another rank has one: this one's clips may lack a modality."""
    if distributed.size() == 1:
        return
    device = parameters[0].device
    there = torch.tensor([value.grad is not None for value in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(there)
    for value, ranks in zip(parameters, there.tolist(), strict=True):
        if ranks and value.grad is None:
            value.grad = torch.zeros_like(value)
