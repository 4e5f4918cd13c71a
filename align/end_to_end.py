"""``python -m align.end_to_end``: encoders trained against stored features, and against each other.

Only the encoders under ``tune`` see media (or texts); every other modality, the anchor first, is read from
the bank. A clip that is decoded is prepared as extraction does, in the view that the stored features beside
it are of, encoded with gradients, and goes through the same heads and losses as in ``python -m align``.

CMVRA (github.com/Cappl1/CMVRA) decodes and encodes the frozen modalities again each epoch, and has as many
negatives as fit into memory; here the anchor is stored, and gradients are cached over micro-batches.
"""

from store.cli import run

# isort: split
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.end_to_end_config import EndToEndConfig, EndToEndError, TuneConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from align.config import ModalityConfig
    from align.decoding import ClipStream
    from align.materialise import Scope
    from align.towers import Values
    from align.trainee import Input, Trainee
    from align.tuning_run import Prepared
    from extract.sampling import Sampling
    from extract.worker import DecodeJob
    from store.bank import Bank

TEXT = "text"
MEDIA_SHARE = 0.4  # of the available memory that kept clips may take, of all encoders and ranks together


def end_to_end(
    bank: str = "bank", resume: str | None = None, checkpointing: bool = False, **asked: Any
) -> int:
    """Train encoders, and heads, against stored features of the other modalities.

    The dataset has to be registered, and what is not trained extracted. Writes an alignment's checkpoint and
    encoder_<modality>.safetensors (a folder encoder_<modality> for models of transformers) into the run's
    folder; extract with it, and evaluate with the checkpoint.

    Examples:
      python -m align.end_to_end --config configs/align/end_to_end/depth.yaml --bank bank
      python -m align.end_to_end --config RECIPE.yaml --tune.depth.mode last:4 --train.batch 128
      python -m align.end_to_end --resume latest
      python -m extract --dataset ntu --modality depth --encoder efficientnet-lite0 --weights FILE_OR_FOLDER
      python -m evaluate probe --dataset ntu --checkpoint latest

    Args:
        bank: The bank's directory.
        resume: An interrupted run to continue with its very next step: run:<id>, its directory, or `latest`.
        checkpointing: Compute the activations of the encoders' blocks again in the backward pass.
        asked: See EndToEndConfig.
    """
    from align import distributed
    from align.pretraining_run import interrupted
    from align.tuning_run import COMMAND, go_on, tune
    from align.warm_start import pinned
    from store.bank import Bank

    config, opened = EndToEndConfig(checkpointing=checkpointing, **asked), Bank.open(bank)
    with distributed.joined(config.train.device), ExitStack() as stack:
        directory = None
        if resume is not None:
            directory, config = interrupted(opened, resume, config, COMMAND)
        prepared = prepare(opened, pinned(opened, config), stack)
        done = tune(opened, prepared) if directory is None else go_on(opened, directory, prepared)
        if distributed.is_first():
            print(done)
    return 0


def prepare(bank: "Bank", config: EndToEndConfig, stack: ExitStack) -> "Prepared":
    """Resolve everything, load the encoders, find the clips.

    Args:
        bank: With the dataset registered.
        config: What was asked.
        stack: Ends the decode processes.

    Raises:
        EndToEndError, RecipeError, EncoderError, UnfreezeError, AdapterError: For what cannot be.
    """
    from align.materialise import Scope, materialise
    from align.prepare import plan
    from align.recipe import choose_dataset, choose_modalities, choose_protocol
    from align.towers import Towers
    from align.trainee import check_names, require
    from align.tuning import Tuner
    from align.tuning_run import Prepared
    from align.warm_start import earlier, inherit

    require(config.tune)
    dataset = choose_dataset(bank, config.dataset)
    protocol = choose_protocol(bank, dataset, config.protocol)
    scope = Scope(dataset, protocol, config.part if protocol else None, config.where, config.views)
    start = earlier(bank, config)
    modalities = inherit(choose_modalities(bank, dataset, config.modalities, config.tune), start)
    check_names(config.tune, modalities)
    trainees = {name: _trainee(bank, scope, name, modalities[name], config, stack) for name in config.tune}
    live = {name: one.source.part for name, one in trainees.items()}
    loaded = materialise(bank, scope, modalities, config.text, config.missing, live)
    made = plan(config, loaded, start)
    for name, one in trainees.items():
        if name in made.record["init"]["taken"]:
            one.tower.set_standard(made.standards[name])
    towers = Towers(made.heads, {name: one.tower for name, one in trainees.items()}, config.micro_batch)
    tuner = Tuner(
        towers,
        made.losses,
        loaded.data,
        made.training,
        made.validation,
        config.train,
        config.augment,
        config.seed,
        feeds={name: one.source.feed for name, one in trainees.items()},
        depths={name: one.depths for name, one in trainees.items()},
        options=config,
    )
    made.record["encoders"] = {name: one.record for name, one in trainees.items()}
    inherited = [told for one in trainees.values() for told in one.supervision]
    made.record["supervision"] = list(dict.fromkeys([*inherited, *made.record["supervision"]]))
    return Prepared(tuner, made.record, made.standards, made.rows, trainees)


def _trainee(
    bank: "Bank",
    scope: "Scope",
    name: str,
    modality: "ModalityConfig",
    config: EndToEndConfig,
    stack: ExitStack,
) -> "Trainee":
    import torch

    from align.pretraining import recompute
    from align.towers import Tower
    from align.train import resolve_device
    from align.trainee import Trainee
    from align.unfreeze import blocks, unfreeze
    from encoders import load_encoder

    tune, media = config.tune[name], modality.modality or name
    device = str(resolve_device(config.train.device))
    encoder = _encoder(name, media, tune, device)
    model = encoder.model
    there = [block for _, block in blocks(model, media)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of fresh adapters
        depths = unfreeze(model, media, tune)
    model.to(device)
    if config.checkpointing:
        recompute(there)
    if media == TEXT:
        source = _texts(bank, scope, modality, config, encoder)
    else:
        source = _media(bank, scope, name, media, modality, config, encoder, stack)
    recipe = source.part.recipe
    shape = (recipe.tokens if recipe.standardise == "token" else 1, recipe.dim)
    tower = Tower(model, source.encode, recipe.reduce, source.per_clip, shape)

    def load(path: Path) -> Any:
        return load_encoder(tune.encoder, str(path), "cpu", media, **tune.options)

    return Trainee(encoder, media, tune, source, tower, depths, config.train.precision, load)


def _encoder(name: str, media: str, tune: TuneConfig, device: str) -> Any:
    """The encoder, its network in the form that is trained."""
    from encoders import load_encoder

    where = f"align.end_to_end: tune.{name}"
    if "+" in media:
        raise EndToEndError(f"{where}: several media at once; train an encoder of one modality")
    encoder: Any = load_encoder(tune.encoder, tune.weights, device, media, **tune.options)
    if not hasattr(encoder, "text_features" if media == TEXT else "features"):
        raise EndToEndError(f"{where}.encoder: {tune.encoder} has no network that can be trained on {media}")
    if hasattr(encoder, "network"):
        encoder.model = encoder.network()
    return encoder


def _media(
    bank: "Bank",
    scope: "Scope",
    name: str,
    media: str,
    modality: "ModalityConfig",
    config: EndToEndConfig,
    encoder: Any,
    stack: ExitStack,
) -> "Input":
    import math

    from align import distributed
    from align.live import LiveMedia, field_of, live_recipe
    from align.materialise import available_bytes
    from align.media import media as media_of
    from align.trainee import Input
    from encoders.tokens import field_values
    from extract.memory import keep_freed_memory
    from extract.steps import frames_per_step
    from extract.views import views_of
    from extract.workers import DecodePool, default_workers

    rows = media_of(bank, scope.dataset, media, scope.protocol, scope.part, scope.where)
    clips = [row["clip_id"] for row in rows]
    sampling, kind = _sampling(encoder, config.tune[name], name), field_of(encoder, modality.field, name)
    assert isinstance(sampling.frames, int)
    steps = 1 if kind.per_clip else math.ceil(sampling.frames / frames_per_step(encoder))
    recipe = live_recipe(name, modality, encoder, kind, steps, clips)
    keep_freed_memory()
    pool = stack.enter_context(DecodePool(config.workers or default_workers(), config.timeout_seconds))
    pairs = [(clip, view) for clip in clips for view in range(scope.views)]
    views = views_of(bank.catalog, scope.dataset, pairs if scope.views > 1 else ())
    feed = PixelFeed(encoder, media, rows, views, scope.views, sampling, pool, config.tune[name])
    if config.keep_media:
        sharers = len(config.tune) * distributed.size()
        feed.stream.keep_bytes = MEDIA_SHARE * available_bytes() / sharers

    def encode(values: "Tensor") -> "Tensor":
        return field_values(kind, encoder.features(values))

    return Input(LiveMedia(recipe, clips, scope.views), feed, encode, kind.per_clip, sampling.frames)


@dataclass
class PixelFeed:
    """Decoded clips, prepared for an encoder; a :class:`align.live.Feed`. Row ``clip * views + view``.

    Args:
        encoder: Its preparation.
        modality: Of the media.
        rows: As :func:`align.media.media` returns them.
        views: (clip id, view) -> how it is seen; view 0 is not in it.
        count: Views of a clip.
        sampling: Which frames.
        pool: Decode processes.
        tune: How frames are augmented.
    """

    encoder: Any
    modality: str
    rows: Sequence[Mapping[str, Any]]
    views: Mapping[tuple[str, int], Any]
    count: int
    sampling: "Sampling"
    pool: Any
    tune: TuneConfig
    stream: "ClipStream" = field(init=False)

    def __post_init__(self) -> None:
        from align.decoding import ClipStream

        rows = len(self.rows) * self.count
        where = f"align.end_to_end: {self.modality}"
        self.stream = ClipStream(self.pool, self.job, self.name, rows, EndToEndError, where)

    def name(self, row: int) -> str:
        """The clip of a row."""
        return str(self.rows[row // self.count]["clip_id"])

    def job(self, row: int) -> "DecodeJob":
        """How a row is decoded: as extraction does it."""
        import json

        from extract.views import View
        from extract.worker import DecodeJob

        media = self.rows[row // self.count]
        seen = self.views.get((media["clip_id"], row % self.count), View())
        needed = getattr(self.encoder, "reader_options", {}).get(media["reader"], {})
        return DecodeJob(
            row,
            str(Path(media["root"]) / media["path"]),
            media["reader"],
            self.modality,
            self.sampling,
            self.encoder.prepare(),
            {**json.loads(media["options"] or "{}"), **needed},
            media["start_seconds"],
            media["end_seconds"],
            seen.crop,
            seen.window,
        )

    def batches(self, chunks: "Sequence[np.ndarray]") -> "Iterator[tuple[Values, np.ndarray]]":
        """(b, T, ...) of each chunk, without those that cannot be read."""
        return self.stream.batches(chunks)

    def augmented(self, values: Any, generator: "torch.Generator") -> "Values":
        """Random windows and mirrored clips, as the configuration has them."""
        from align.pixels import shifted

        return shifted(values, self.tune.crop, self.tune.flip, generator)


def _sampling(encoder: Any, tune: TuneConfig, name: str) -> "Sampling":
    from dataclasses import replace

    from extract.sampling import Sampling

    default = Sampling.parse(encoder.sampling)
    sampling = default if tune.frames is None else replace(default, frames=tune.frames, fps=None)
    if not isinstance(sampling.frames, int):
        raise EndToEndError(
            f"align.end_to_end: tune.{name}: {tune.encoder} takes clips of any length, which make no batch; "
            f"set tune.{name}.frames to a count"
        )
    return sampling


def _texts(
    bank: "Bank", scope: "Scope", modality: "ModalityConfig", config: EndToEndConfig, encoder: Any
) -> "Input":
    from align.live import LiveTexts, TextFeed, field_of, live_recipe
    from align.trainee import Input

    part = LiveTexts(bank, scope.dataset, config.text)
    kind = field_of(encoder, modality.field, TEXT)
    part.recipe = live_recipe(TEXT, modality, encoder, kind, 1, part.texts)

    def encode(tokens: "dict[str, Tensor]") -> "Tensor":
        found: Tensor = encoder.text_features(tokens)
        return found[:, None, None]

    return Input(part, TextFeed(encoder, part.texts), encode)


if __name__ == "__main__":
    from encoders.errors import EncoderError

    run(end_to_end, expected=(EncoderError, OSError), prog="python -m align.end_to_end")
