"""What `python -m align.end_to_end` can be told: an alignment's options and more (no torch)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from align.config import AlignConfig, TrainConfig
from store.errors import FrameBankError


class EndToEndError(FrameBankError, ValueError):
    """An encoder that cannot be trained, or not like this."""


@dataclass
class TuneConfig:
    """How one modality's encoder is trained; the modality's own settings say which field goes to which head.

    Args:
        encoder: Name in `python -m encoders list`.
        weights: Where to start: a file, folder or hub id, or `random`. None: the installed package's.
        options: Further options of that encoder, e.g. {"preset": "small"}.
        frames: Frames of a clip. None: as many as the encoder wants.
        mode: `full`; `last:K`: the last K blocks and what follows them; `lora`: low-rank adapters, merged
            into the weights at the end.
        rank: Of the adapters.
        alpha: Adapters are multiplied by alpha / rank.
        dropout: Of the adapters' input.
        targets: Patterns of the full or last names of the linear layers that get adapters.
        learning_rate: Peak for the last block and what follows it.
        layer_decay: Each block further from the output learns this much slower.
        weight_decay: None: that of `train`.
        crop: Smallest share of each side that a random window of the frames keeps, the same for all frames of
            a clip and beside the stored views; 1: none.
        flip: Mirror half of the clips (harmful where left and right matter).
    """

    encoder: str
    weights: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    frames: int | None = None
    mode: str = "full"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = dataclasses.field(default_factory=lambda: ["*"])
    learning_rate: float = 1e-5
    layer_decay: float = 1.0
    weight_decay: float | None = None
    crop: float = 1.0
    flip: bool = False


def _train() -> TrainConfig:
    return TrainConfig(epochs=20, batch=64, checkpoint_seconds=120.0)


@dataclass
class EndToEndConfig(AlignConfig):
    """Everything that decides what is trained on what; what is None is resolved from the bank.

    Args:
        tune: Modality -> how its encoder is trained (`text` included); all others are read from the bank.
        micro_batch: Clips that pass through an encoder at once; `train.batch` are each other's negatives.
        accumulate: Batches whose gradients make one step; this adds no negatives.
        loss_learning_rate: Of a learnt temperature. None: that of `train`, which is the heads'.
        keep_media: Keep decoded training clips in memory if they fit, so that only the first epoch decodes.
        checkpointing: Compute the activations of the encoders' blocks again in the backward pass.
        workers: Decode processes a modality; one per core if omitted.
        timeout_seconds: A clip whose decoding takes longer is left out, its process is killed.
    """

    train: TrainConfig = dataclasses.field(default_factory=_train)
    tune: dict[str, TuneConfig] = dataclasses.field(default_factory=dict)
    micro_batch: int = 8
    accumulate: int = 1
    loss_learning_rate: float | None = None
    keep_media: bool = True
    checkpointing: bool = False
    workers: int | None = None
    timeout_seconds: float = 60.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EndToEndConfig":
        """Read back what :meth:`as_json` gave."""
        own = {"tune": {name: TuneConfig(**config) for name, config in values["tune"].items()}}
        restored: EndToEndConfig = super().from_json(values | own)  # type: ignore[assignment]
        return restored
