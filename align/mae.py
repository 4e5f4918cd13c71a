"""``python -m align.mae``: masked pre-training of OmniMAE on clips, of TAHAR on stored skeletons; no labels.

OmniMAE is trained as its authors did (Girdhar et al., CVPR 2023; the loss is parity-tested in
:mod:`encoders.omnimae_pretraining`): squared error on hidden patches only, each patch's pixels normalised per
channel, decoded from tokens that went through the encoder's final norm, in the order in which pixels make up
a patch. The other project that continues this task (github.com/Cappl1/CMVRA) compares the prediction with
pixels in another order, counts visible pixels, skips the norm and starts from a fresh pixel head; here the
head and decoder of the checkpoint go on.
"""

from store.cli import run

# isort: split
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.mae_config import SKELETON, VIDEO, MaeConfig
from store.errors import FrameBankError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from align.pretraining_run import Prepared
    from extract.worker import DecodeJob
    from extract.workers import DecodePool
    from store.bank import Bank

OMNIMAE, TAHAR = "omnimae-vit-b", "tahar"
RANDOM = "random"


class MaeError(FrameBankError, ValueError):
    """Masked pre-training of something, or on something, that cannot be."""


def mae(bank: str = "bank", resume: str | None = None, checkpointing: bool = False, **asked: Any) -> int:
    """Pre-train an encoder on a bank's own clips by hiding most of them and predicting what is hidden.

    The dataset has to be registered; only the training part of its protocol is seen. Writes
    encoder_<modality>.safetensors into the run's folder, and beside it what it was trained on; extract with
    it, and probe the features, as with any other checkpoint.

    Examples:
      python -m align.mae --dataset ntu --modality depth --weights vitb_pretrain.torch
      python -m align.mae --modality ir.ceiling --weights vitb_pretrain.torch --mask 0.8 --preset cmvra
      python -m align.mae --modality depth --weights random --epochs 800 --batch 64 --repeat 4
      python -m align.mae --resume latest
      python -m extract --dataset ntu --modality skeleton --encoder poses
      python -m align.mae --dataset ntu --modality skeleton --weights random --batch 64
      python -m extract --dataset ntu --modality depth --encoder omnimae-vit-b --weights FILE
      python -m evaluate probe --dataset ntu --modality depth

    Args:
        bank: The bank's directory.
        resume: An interrupted run to continue with its very next step: run:<id>, its directory, or `latest`.
        checkpointing: Compute the activations of OmniMAE's layers again in the backward pass: less memory.
        asked: See MaeConfig.
    """
    from align.pretraining_run import go_on, interrupted, pretrain
    from store.bank import Bank

    config, opened = MaeConfig(checkpointing=checkpointing, **asked), Bank.open(bank)
    directory = None
    if resume is not None:
        directory, config = interrupted(opened, resume, config)
    with ExitStack() as stack:
        prepared = prepare(opened, config, stack)
        print(pretrain(opened, prepared) if directory is None else go_on(opened, directory, prepared))
    return 0


def prepare(bank: "Bank", config: MaeConfig, stack: ExitStack) -> "Prepared":
    """Resolve everything, load the network, find the clips.

    Args:
        bank: With the dataset registered.
        config: What was asked.
        stack: Ends the decode processes.

    Raises:
        MaeError, RecipeError, EncoderError: For what cannot be.
    """
    from align.recipe import choose_dataset, choose_protocol

    dataset = choose_dataset(bank, config.dataset)
    protocol = choose_protocol(bank, dataset, config.protocol)
    if config.modality == SKELETON:
        return _skeleton(bank, config, dataset, protocol)
    if config.modality.partition(".")[0] not in VIDEO or "+" in config.modality:
        raise MaeError(
            f"align.mae: --modality {config.modality}; accepted are {', '.join(VIDEO)} and camera views of "
            f"them like ir.ceiling (OmniMAE), and {SKELETON} (TAHAR)"
        )
    return _video(bank, config, dataset, protocol, stack)


# Video: OmniMAE on media ------------------------------------------------------------------------------


def _video(
    bank: "Bank", config: MaeConfig, dataset: str, protocol: str | None, stack: ExitStack
) -> "Prepared":
    from align.media import media
    from align.pretraining import recompute
    from align.pretraining_run import Plan
    from extract.memory import keep_freed_memory
    from extract.workers import DecodePool, default_workers

    rows = media(bank, dataset, config.modality, protocol, config.part, config.where)
    encoder = _encoder(OMNIMAE, config, architecture=config.architecture, preset=config.preset)
    model = _network(encoder, config)
    shape = model.trunk.shape
    if shape.decoder is None:
        raise MaeError(
            f"align.mae: --weights {config.weights}: fine-tuned, without the decoder that predicts pixels; "
            "accepted are checkpoints of the pre-training form (vitb_pretrain.torch), and random"
        )
    keep_freed_memory()
    pool = stack.enter_context(DecodePool(config.workers or default_workers(), config.timeout_seconds))
    task = ClipTask(encoder, model, rows, pool, config, dataset)
    if config.checkpointing:
        recompute([*model.trunk.blocks, *model.trunk.decoder.decoder_blocks])
    clips = {name: [row[name] for row in rows] for name in ("clip_id", "label", "subject")}
    plan = Plan(config, dataset, protocol, clips, _described(encoder, OMNIMAE, config))
    return plan.prepared(task, model.state_dict)


@dataclass
class ClipTask:
    """Hidden patches of clips; a :class:`align.pretraining.MaskedTask`.

    ``mean`` is the error of guessing each hidden patch's mean: 1 - 1/P for patches of P varied pixels a
    channel, 0 for those of one value, so that it is lower where backgrounds are blank.

    Args:
        encoder: Its preparation and normalisation.
        model: Its network, on its device.
        rows: As :func:`align.media.media` returns them.
        pool: Decode processes.
        config: The share, the repeats, the seed.
        dataset: Their dataset.
    """

    encoder: Any
    model: Any
    rows: Sequence[Mapping[str, Any]]
    pool: "DecodePool"
    config: MaeConfig
    dataset: str
    failures: dict[int, str] = field(default_factory=dict)

    def batches(self, chunks: Sequence["np.ndarray"], view: int) -> "Iterator[Tensor]":
        """Decoded clips (B, T, C, H, W) uint8, in the order asked for, without those that cannot be read."""
        from align.decoding import ClipStream

        def name(clip: int) -> str:
            return str(self.rows[clip]["clip_id"])

        stream = ClipStream(
            self.pool,
            lambda clip: self._job(clip, view),
            name,
            len(self.rows),
            MaeError,
            "align.mae",
            failures=self.failures,
        )
        return (frames for frames, _ in stream.batches(chunks))

    def _job(self, clip: int, view: int) -> "DecodeJob":
        import json
        from pathlib import Path

        from extract.sampling import Sampling
        from extract.views import draw
        from extract.worker import DecodeJob

        row = self.rows[clip]
        seen = draw(f"{self.dataset}/mae/{self.config.seed}", row["clip_id"], view)
        return DecodeJob(
            clip,
            str(Path(row["root"]) / row["path"]),
            row["reader"],
            self.config.modality,
            Sampling.parse(self.encoder.sampling),
            self.encoder.prepare(),
            json.loads(row["options"] or "{}"),
            row["start_seconds"],
            row["end_seconds"],
            seen.crop,
            seen.window,
        )

    def errors(self, batch: "Tensor", generator: "torch.Generator") -> "dict[str, Tensor]":
        """``loss``, and ``mean``: that of guessing each patch's mean; over hidden patches."""
        import torch

        from encoders.omnimae_pretraining import (
            normalised_patches,
            patchify,
            random_mask,
            reconstruction_loss,
        )

        batch = batch.to(self.encoder.device)
        if self.model.training:
            batch = batch.repeat_interleave(self.config.repeat, 0)
        shape = self.model.trunk.shape
        mask = random_mask(len(batch), shape.grid, self.config.mask, generator).to(batch.device)
        pixels = self.encoder.preprocess.normalise(batch).transpose(1, 2)
        colours = (batch.float() / 255).expand(-1, -1, 3, -1, -1).transpose(1, 2)
        target = normalised_patches(patchify(colours, shape.patch))
        guessed = self.model.reconstruct(pixels, mask).float()
        mean = torch.zeros_like(target)
        return {
            "loss": reconstruction_loss(guessed, target, mask),
            "mean": reconstruction_loss(mean, target, mask),
        }


# Skeletons: TAHAR on stored poses --------------------------------------------------------------------------


def _skeleton(bank: "Bank", config: MaeConfig, dataset: str, protocol: str | None) -> "Prepared":
    from functools import partial

    from align.masked_tokens import PoseTask, load_sequences
    from align.pretraining_run import Plan
    from encoders.prenormalize import MIRRORED
    from encoders.tahar import Tahar
    from encoders.tahar_pretraining import reconstruct_masked

    shape = Tahar.tiny if config.architecture else Tahar.architectures[TAHAR]
    learnt = ("mask_token",)  # not in the official file, nor in what extraction takes
    shape = replace(shape, mask_token=True)
    encoder = _encoder(TAHAR, config, architecture=shape, preset=config.preset, allow_partial=learnt)
    sequences = load_sequences(bank, dataset, protocol, config.part, config.where, shape.positions - 1)
    model = _network(encoder, config)
    selection = sequences.selection
    clips = {
        "clip_id": selection.items.tolist(),
        "label": selection.labels.tolist(),
        "subject": selection.column("subject").tolist(),
    }
    plan = Plan(config, dataset, protocol, clips, _described(encoder, TAHAR, config))
    guess = partial(reconstruct_masked, model, seen="cls and frames")
    task = PoseTask(model, sequences, plan.training, config.mask, guess, MIRRORED, config.seed)
    if config.weights == RANDOM:  # the first guess is the mean pose
        model.output_layer[0].weight.data.zero_()
        model.output_layer[0].bias.data.copy_(task.mean)

    def weights() -> "dict[str, Tensor]":
        return {name: value for name, value in model.state_dict().items() if name not in learnt}

    return plan.prepared(task, weights, [selection])


# Both -------------------------------------------------------------------------------------------------------


def _encoder(name: str, config: MaeConfig, **options: Any) -> Any:
    from encoders import load_encoder
    from extract.encode import resolve_device

    if config.weights is None:
        raise MaeError(
            f"align.mae: --weights is missing; name the checkpoint of {name} to go on from (python -m "
            f"encoders show {name} tells where it is published), or {RANDOM} to train from scratch"
        )
    return load_encoder(name, config.weights, resolve_device(config.device), config.modality, **options)


def _network(encoder: Any, config: MaeConfig) -> Any:
    """The encoder's network; from scratch, as masked autoencoders start: Xavier's uniform, no biases."""
    if config.weights != RANDOM:
        return encoder.model
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = encoder.build()
        for name, value in model.named_parameters():
            if name.endswith("mask_token"):
                nn.init.normal_(value, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(value)
            elif value.ndim > 1 and "position" not in name and "token" not in name:
                nn.init.xavier_uniform_(value.view(len(value), -1))
    return model.to(encoder.device)


def _described(encoder: Any, name: str, config: MaeConfig) -> dict[str, Any]:
    """What is trained, for config.json."""
    from extract.encode import default_precision

    native = default_precision(str(encoder.device), encoder.tolerates_bf16)
    return {
        "name": name,
        "architecture": config.architecture or name,
        "preset": config.preset,
        "initial": RANDOM if encoder.path is None else encoder.weights_digest(),
        "parameters": encoder.parameters(),
        "device": str(encoder.device),
        "precision": native if config.precision == "auto" else config.precision,
    }


if __name__ == "__main__":
    from encoders.errors import EncoderError

    run(mae, expected=(EncoderError, OSError), prog="python -m align.mae")
