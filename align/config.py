"""What `python -m align` can be told: typed dataclasses that are its CLI and its YAML schema (no torch)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class ModalityConfig:
    """How one modality enters; whatever is None is chosen from the feature set (the recipe shows the choice).

    Args:
        modality: Which modality's features these are, where the name is one of your own: two encoders of one
            modality can be aligned as two (`rgb.omnivore: {modality: rgb, encoder: omnivore-swin-b}`).
            None: the name is the modality.
        encoder: Feature set: an encoder's name, or name@fingerprint. None: the only one there is.
        field: Field of that encoder. None: the only one, else embedding, cls or tokens, in that order.
        reduce: What to load: `mean` or `cls` (one vector a clip), `resample:K` (K frames, order kept), `none`
            (all frames). None: `resample:32` if clips have several frames, else `mean`.
        head: Name in align.HEADS. None: `sequence` for several frames (`conv` if they are very wide),
            `attention` for single frames of several tokens, else `mlp`.
        head_options: Options of that head (see its class), e.g. {"width": 256}.
        standardise: Subtract the training mean and divide by the training deviation: per feature dim, shared
            by the tokens of a frame (`dim`), per token and dim (`token`: beware of joints that hardly move:
            it blows up their noise), or not at all (`none`). None: `dim`.
    """

    modality: str | None = None
    encoder: str | None = None
    field: str | None = None
    reduce: str | None = None
    head: str | None = None
    head_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    standardise: Literal["token", "dim", "none"] | None = None


@dataclass
class TextConfig:
    """Where a clip's texts come from when `text` is aligned.

    Args:
        source: `captions`, `labels` (texts of the clip's class: supervised), or None: captions if the dataset
            has any, else labels.
        prompt_set: Which label texts; None: all sets.
        caption_source: Which captions, by the name in the table `captions` (`llava-next@...` for those that
            `python -m extract.captions` wrote). None: the dataset's own; generated ones if it has none.
    """

    source: Literal["captions", "labels"] | None = None
    prompt_set: str | None = None
    caption_source: str | None = None


@dataclass
class LossConfig:
    """One term of the loss.

    Args:
        name: Name in align.LOSSES.
        weight: Factor of this term.
        pairs: Modality pairs of this term; None: those of --pairs.
        options: Options of that loss (see its class), e.g. {"temperature": 0.1, "learn_temperature": true};
            infonce also takes same_label, same_text, dual_softmax, hard_negatives, direction, smoothing (of
            labels) and queue (so many past embeddings as further negatives).
    """

    name: str = "infonce"
    weight: float = 1.0
    pairs: str | list[str] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass
class AugmentConfig:
    """Random changes of standardised features while training; 0 (or 1 for time_crop) switches one off.

    Texts are left as they are.

    Args:
        frame_drop: Share of frames hidden from the head.
        token_drop: Probability that a token (a joint, a patch) is set to its mean throughout a clip.
        time_crop: Smallest share of the clip that a random window keeps; the same window in all modalities.
        time_warp: Strength of a smooth random change of tempo, below 1; the same in all modalities.
        noise: Standard deviation of white noise, in units of the features' own deviation (absolute where
            `standardise` is `none`).
        scale: Each clip is multiplied by exp(scale x normal noise), per modality.
    """

    frame_drop: float = 0.0
    token_drop: float = 0.1
    time_crop: float = 0.8
    time_warp: float = 0.2
    noise: float = 0.0
    scale: float = 0.0


@dataclass
class ValidationConfig:
    """Which training clips are held out to watch the loss and to choose the epoch.

    Args:
        fraction: Share of the groups (or clips) held out; 0: none.
        by: Column of `clips` whose values stay together (subject, setup, ...), `clip` for single clips, or
            None: by subject if there are at least 5, else by clip.
        min_clips: Below so many training clips nothing is held out unless `by` is given.
    """

    fraction: float = 0.1
    by: str | None = None
    min_clips: int = 400


@dataclass
class TrainConfig:
    """The training loop.

    Args:
        epochs: Passes over the training clips.
        batch: Clips a step, which are each other's negatives; under torchrun, of each process.
        optimizer: `adamw` or `adam` (with weight_decay 0: CMVRA's).
        learning_rate: Peak of the schedule.
        betas: The optimiser's memory of gradients and of their squares.
        weight_decay: The optimiser's; biases, norms and the temperature have none.
        schedule: `cosine` to 0, `constant`, or `step:EPOCHS:FACTOR` (CMVRA: step:4:0.1, with warmup 0).
        warmup: Share of all steps with a linearly rising rate, before the schedule.
        clip_norm: Largest norm of the gradient; 0: unbounded.
        average: Decay per step of a moving average of the weights, which is then what is kept; 0: none.
        select: `best` validation loss or `last` epoch; without held-out clips it is `last`.
        patience: Stop after so many epochs without a better validation loss; 0: never.
        device: `auto`, `cpu`, `cuda`, ...
        precision: Of the heads' forward pass; `bf16` is autocast.
        checkpoint_seconds: At least so long between two saved states; 0: each epoch.
    """

    epochs: int = 100
    batch: int = 512
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.05
    clip_norm: float = 1.0
    average: float = 0.0
    select: Literal["best", "last"] = "best"
    patience: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_seconds: float = 5.0


@dataclass
class AlignConfig:
    """Everything that decides what is trained on what; what is None is resolved from the bank.

    Args:
        dataset: Which dataset; may be left out if the bank has one.
        modalities: Names with commas (skeleton,inertial,text), or in YAML name -> settings; the first is the
            anchor. None: all that have features.
        protocol: Split to train on; None: the only one, or cross-subject; `none`: all clips.
        part: Part of the protocol.
        where: SQL condition on the clips (columns of `clips`), e.g. "subject <> 'P001'".
        views: Stored views to draw from, 0 .. views - 1.
        missing: Clips that lack a modality: `mask` them out of its pairs, or `drop` them.
        embedding: Dimensions of the shared space.
        pairs: all, anchor, anchor:NAME, or FIRST-SECOND[=WEIGHT],...
        losses: Terms of the loss; none given: one infonce.
        text: Where texts come from.
        augment: Random changes of features while training.
        validation: What is held out of the training part.
        train: The loop.
        init: Heads to start from: run:<id>, a checkpoint's directory, or `latest`. Modalities that it lacks
            start at random; what is left open about the others is what it was there.
        freeze: Modalities, with commas or as a list, whose heads stay as `init` has them: a frozen anchor.
        seed: Of initialisation, order, draws, augmentation and dropout.
    """

    dataset: str | None = None
    modalities: str | dict[str, ModalityConfig | None] | None = None
    protocol: str | None = None
    part: str = "train"
    where: str | None = None
    views: int = 1
    missing: Literal["mask", "drop"] = "mask"
    embedding: int = 256
    pairs: str | list[str] = "all"
    losses: list[LossConfig] = dataclasses.field(default_factory=list)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    init: str | None = None
    freeze: str | list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.losses = self.losses or [LossConfig()]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: what checkpoints and `runs` keep."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AlignConfig":
        """Read back what :meth:`as_json` gave."""
        modalities = values["modalities"]
        if isinstance(modalities, dict):
            modalities = {name: ModalityConfig(**(config or {})) for name, config in modalities.items()}
        nested = {
            "modalities": modalities,
            "losses": [LossConfig(**loss) for loss in values["losses"]],
            "text": TextConfig(**values["text"]),
            "augment": AugmentConfig(**values["augment"]),
            "validation": ValidationConfig(**values["validation"]),
            "train": TrainConfig(**values["train"]),
        }
        return cls(**(values | nested))


def names_of(listed: str | list[str] | None) -> list[str]:
    """Names with commas, or a list of them, as a list."""
    names = listed.split(",") if isinstance(listed, str) else listed or []
    return [name.strip() for name in names if name.strip()]
