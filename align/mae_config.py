"""What `python -m align.mae` can be told: a dataclass that is its CLI and its YAML schema (no torch)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

SKELETON = "skeleton"
VIDEO = ("rgb", "ir", "depth")


@dataclass
class MaeConfig:
    """Everything that decides what is pre-trained on what; what is None is resolved.

    Args:
        dataset: Which dataset; may be left out if the bank has one.
        modality: rgb, ir, depth or a camera view of them (ir.ceiling): OmniMAE on the media. skeleton: TAHAR
            on the stored sequences of encoder `poses`.
        weights: Checkpoint to start from (vitb_pretrain.torch, checkpoint_best_transformer.pth, or what this
            command wrote), or `random`: from scratch.
        architecture: `tiny` is for tests; None: the published one.
        preset: The encoder's preprocessing, `official` or `cmvra` (video only); extract with the same.
        protocol: Split whose training part is used; None: the only one, or cross-subject; `none`: all clips.
        part: Part of the protocol.
        where: SQL condition on the clips (columns of `clips`), e.g. "camera = '1'".
        mask: Share of a video's patches (CMVRA took 0.8), or of a skeleton's frames, that is hidden.
        held_out: Share of the training clips on which the loss is only watched: whole subjects if there are
            at least 5. 0: none.
        epochs: Passes over the training clips.
        batch: Clips in one forward pass.
        accumulate: Forward passes whose gradients make one step.
        repeat: Masks drawn for each decoded clip of a batch (where decoding is the slow part).
        learning_rate: Peak of the schedule (AdamW); the paper's 1.6e-3 is for far larger batches.
        betas: Of AdamW.
        weight_decay: Of AdamW; biases, norms and single vectors have none.
        warmup: Share of all steps with a linearly rising rate; then it falls along a cosine.
        clip_norm: Largest norm of the gradient; 0: unbounded.
        augment: Random crops, flips and time windows of video, mirrored skeletons; off: clips as they are.
        checkpointing: Compute the transformer layers' activations again in the backward pass: less memory.
        precision: Of the forward pass; `auto` takes bf16 where it is native.
        device: `auto`, `cpu`, `cuda`, ...
        workers: Decode processes; one per core if omitted.
        timeout_seconds: A clip whose decoding takes longer is left out, its process is killed.
        checkpoint_seconds: At least so long between two saved states; 0: each step.
        seed: Of fresh weights, order, views, masks and dropout.
    """

    dataset: str | None = None
    modality: str = "rgb"
    weights: str | None = None
    architecture: Literal["tiny"] | None = None
    preset: str = "official"
    protocol: str | None = None
    part: str = "train"
    where: str | None = None
    mask: float = 0.9
    held_out: float = 0.1
    epochs: int = 100
    batch: int = 8
    accumulate: int = 1
    repeat: int = 1
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    augment: bool = True
    checkpointing: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    workers: int | None = None
    timeout_seconds: float = 60.0
    checkpoint_seconds: float = 120.0
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: what runs keep."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MaeConfig":
        """Read back what :meth:`as_json` gave."""
        return cls(**(values | {"betas": tuple(values["betas"])}))
