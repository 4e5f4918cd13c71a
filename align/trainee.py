"""An encoder that is trained: what it sees, what of it learns, what the run says of it, what it leaves."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from align.adapters import merged_state
from align.end_to_end_config import EndToEndError, TuneConfig
from align.live import Feed
from align.materialise import Part
from align.towers import Tower
from align.unfreeze import Depth

RANDOM = "random"


@dataclass
class Input:
    """What an encoder is fed with.

    Args:
        part: Which clips have it.
        feed: Rows of that -> prepared media or tokens.
        encode: These -> the field (b, T, N, D), differentiable.
        per_clip: Whether the field is one row a clip.
        frames: Of a clip; None for texts.
    """

    part: Part
    feed: Feed
    encode: Callable[[Any], Tensor]
    per_clip: bool = True
    frames: int | None = None


@dataclass
class Trainee:
    """One encoder in training.

    Args:
        encoder: Of the package ``encoders``.
        modality: Of its media; its name in the recipe may be another.
        tune: How it is trained.
        source: What it sees.
        tower: Its network among the heads.
        depths: The parameters that are trained.
        precision: Of its forward pass.
        load: Its weights, a file or a folder -> the encoder, as extraction has it.
    """

    encoder: Any
    modality: str
    tune: TuneConfig
    source: Input
    tower: Tower
    depths: list[Depth]
    precision: str
    load: Callable[[Path], Any]

    @cached_property
    def record(self) -> dict[str, Any]:
        """For config.json and the file's note."""
        fresh = self.tune.weights == RANDOM
        return {
            "name": self.tune.encoder,
            "preset": getattr(self.encoder, "preset", "official"),
            "options": self.tune.options,
            "initial": RANDOM if fresh else self.encoder.space["weights"],
            "frames": self.source.frames,
            "mode": self.tune.mode,
            "learning_rate": self.tune.learning_rate,
            "parameters": sum(one.numel() for one in self.tower.model.parameters()),
            "trained": sum(one.parameter.numel() for one in self.depths),
            "precision": self.precision,
        }

    @cached_property
    def supervision(self) -> list[str]:
        """What had supervised its initial weights, where one of our commands wrote them."""
        from align.pretraining_run import told_by

        path = origin(self.encoder)
        return [] if path is None else list(told_by(path).get("supervision", ()))

    def weights(self) -> dict[str, Tensor]:
        """Its tensors, adapters merged, under the names that its checkpoints have."""
        return merged_state(self.tower.model)

    def space(self, path: Path) -> dict[str, str]:
        """What extraction with its weights will call its features; they are loaded strictly."""
        from store.spec import FeatureSpec

        again = self.load(path)
        assert again.model is not None  # the property loads
        digest = FeatureSpec(again.name, again.space).space_digest
        return {"encoder": again.name, "feature_set": f"{again.name} of {path.name}", "space_digest": digest}


def require(tune: Collection[str]) -> None:
    """Raise an EndToEndError for a recipe without encoders to train."""
    if not tune:
        raise EndToEndError(
            "align.end_to_end: no encoder to train; name some under tune: {depth: {encoder: NAME, ...}}, or "
            "align stored features with python -m align"
        )


def check_names(tune: Collection[str], modalities: Collection[str]) -> None:
    """Raise an EndToEndError for encoders of modalities that are not aligned."""
    for name in tune:
        if name not in modalities:
            raise EndToEndError(
                f"align.end_to_end: tune.{name} is none of the modalities ({', '.join(modalities)}); add it"
            )


def origin(encoder: Any) -> Path | None:
    """The file or folder that an encoder's weights come from; None if they are random."""
    if getattr(encoder, "weights", None) == RANDOM:
        return None
    path = encoder.weights_file() if hasattr(encoder, "weights_file") else getattr(encoder, "path", None)
    return path or getattr(encoder, "folder", None)
