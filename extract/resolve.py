"""Command line and dataset YAML -> tasks: encoder, sampling, fields and precision, all of them resolved."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from encoders import ENCODERS, base_modality, encoders_for, load_encoder
from encoders.errors import EncoderError
from encoders.protocols import Encoder, TextEncoder
from encoders.tokens import with_tokens
from extract.datasets import DatasetConfig, ModalityConfig
from extract.datasets.clips import MODALITIES
from extract.datasets.config import joint_name
from extract.encode import default_precision
from extract.readers import load_reader
from extract.sampling import Sampling
from extract.task import Task
from extract.texts import TextTask
from store.bank import Bank
from store.errors import FrameBankError, UnknownNameError
from store.spec import AUTO, FeatureSpec
from store.tables import TEXT, TEXTS


class UnknownFieldError(FrameBankError, KeyError):
    """A field that the encoder does not write."""


@dataclass(frozen=True)
class Choices:
    """What the command line says about encoding; None leaves it to the dataset's YAML, or the encoder.

    ``modalities`` stands in for that of the dataset's YAML; ``weights`` holds those of all modalities, or of
    single ones (``rgb=FILE,ir=FILE``); ``tokens`` is a key of ``encoders.tokens.TOKEN_FIELDS``.
    """

    encoder: str | None = None
    modalities: Mapping[str, ModalityConfig] = field(default_factory=dict)
    weights: str | None = None
    preset: str | None = None
    allow_partial: tuple[str, ...] | None = None
    frames: int | Literal["all"] | None = None
    fps: float | None = None
    max_frames: int | None = None
    fields: tuple[str, ...] | None = None
    tokens: str | None = None
    precision: str = AUTO
    device: str = "cpu"
    views: int = 1
    where: str | None = None


def modalities(bank: Bank, config: DatasetConfig, asked: str | None, choices: Choices) -> list[str]:
    """The modalities to extract: those asked for, or all that the YAML configures and the clips have.

    Args:
        bank: With the dataset registered.
        config: The dataset's.
        asked: Comma-separated names; None for all.
        choices: An encoder chosen there leaves only the modalities that it takes.

    Raises:
        UnknownNameError: For a modality that no clip has.
    """
    present = bank.sql(
        "SELECT modality FROM media WHERE dataset = ? GROUP BY ALL ORDER BY ALL", [config.name]
    )["modality"].to_pylist()
    present.append(TEXT)
    if asked is not None:
        names = [joint_name(name) for name in asked.split(",") if name.strip()]
        for part in (part for name in names for part in name.split("+")):
            if part not in present:
                raise UnknownNameError(f"dataset {config.name!r}", "modality", part, present)
        return names
    if choices.encoder is not None:
        taken = _encoder_class(choices.encoder).modalities
        return [name for name in present if base_modality(name) in taken]
    joint = [name for name in config.modalities if "+" in name]
    configured = [name for name in present if config.find(name) is not None]
    return configured + [name for name in joint if set(name.split("+")) <= set(present)]


def clip_task(bank: Bank, config: DatasetConfig, modality: str, choices: Choices) -> Task:
    """Everything that decides the features of one of the dataset's modalities.

    The YAML's sampling, fields and options belong to the YAML's encoder; another encoder, chosen on the
    command line, comes with its own.

    Raises:
        UnknownNameError, EncoderError, UnknownFieldError, SamplingError: For what cannot be.
    """
    given = _configured(config, modality, choices)
    encoder = _loaded(given, modality, choices)
    sampling = _sampling(choices, given.sampling or Sampling.parse(encoder.sampling))
    reading = {
        "sampling": sampling.key(),
        "readers": _reader_revisions(bank, config.name, modality),
        "precision": choices.precision,
    }
    return Task(
        dataset=config.name,
        modality=modality,
        root=config.root or config.source.parent,
        encoder=encoder,
        spec=_spec(bank, config.name, modality, encoder, reading, choices.device),
        sampling=sampling,
        fields=_fields(encoder, modality, choices.fields or given.fields, choices.tokens),
        device=choices.device,
        views=choices.views,
        where=choices.where,
    )


def text_task(bank: Bank, config: DatasetConfig, choices: Choices) -> TextTask:
    """The encoder of the bank's texts; captions and class texts of all datasets share it.

    Raises:
        UnknownNameError, EncoderError: For what cannot be.
    """
    encoder: TextEncoder = _loaded(_configured(config, TEXT, choices), TEXT, choices)
    spec = _spec(bank, TEXTS, TEXT, encoder, {"precision": choices.precision}, choices.device)
    return TextTask(encoder, spec, choices.device)


def _configured(config: DatasetConfig, modality: str, choices: Choices) -> ModalityConfig:
    """How the YAML or the recipe has it; another encoder comes with its own ways.

    Raises:
        EncoderError: If neither they nor the command line name an encoder.
    """
    configured = config.find(modality)
    if choices.encoder is not None and (configured is None or configured.encoder != choices.encoder):
        return ModalityConfig(choices.encoder)
    if configured is None:
        able = ", ".join(encoders_for(modality)) or "none is known that takes it"
        raise EncoderError(f"extract: no encoder is configured for {modality}; name one by --encoder: {able}")
    return configured


def _loaded(given: ModalityConfig, modality: str, choices: Choices) -> Any:
    options = dict(given.options)
    told = options.pop("weights", None) if given.weights is None else given.weights
    weights = _weights(choices.weights, modality) or told
    extra = {"preset": choices.preset, "allow_partial": choices.allow_partial}
    asked = {name: value for name, value in extra.items() if value is not None}
    for name in asked:
        _require_option(given.encoder, modality, name)
    return load_encoder(given.encoder, weights, choices.device, modality, **{**options, **asked})


def _weights(given: str | None, modality: str) -> str | None:
    """Those of a modality: ``rgb=FILE,ir=FILE`` names some, anything else is for all."""
    pairs = [part.partition("=") for part in (given or "").split(",")]
    kinds = {*MODALITIES, TEXT}
    if not all(equals and set(base_modality(name.strip()).split("+")) <= kinds for name, equals, _ in pairs):
        return given
    named = {joint_name(name): value for name, _, value in pairs}
    return named.get(modality) or named.get(base_modality(modality))


def _require_option(encoder: str, modality: str, name: str) -> None:
    """Raises: EncoderError: If the encoder's class takes no such argument."""
    parameters = inspect.signature(_encoder_class(encoder)).parameters
    if name not in parameters and all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
        flag = name.replace("_", "-")
        raise EncoderError(
            f"extract: --{flag}: {encoder}, the encoder of {modality}, has no such choice; leave it out, "
            "name by --modality those whose encoders have, or write it to their `options` in a recipe"
        )


def _encoder_class(name: str) -> Any:
    from importlib import import_module

    if name not in ENCODERS:
        raise UnknownNameError("extract", "encoder", name, sorted(ENCODERS))
    module, _, attribute = ENCODERS[name].partition(":")
    return getattr(import_module(module), attribute)


def _sampling(choices: Choices, default: Sampling) -> Sampling:
    if choices.frames is None and choices.fps is None:
        return default if choices.max_frames is None else replace(default, max_frames=choices.max_frames)
    cap = choices.max_frames if choices.max_frames is not None else default.max_frames
    rule = default.rule if isinstance(choices.frames, int) else None
    return Sampling(choices.frames, choices.fps, cap, rule)


def _fields(
    encoder: Encoder, modality: str, named: tuple[str, ...] | None, tokens: str | None
) -> tuple[str, ...]:
    wanted = named or encoder.default_fields
    known = ", ".join(sorted(encoder.fields))
    for name in wanted:
        if name not in encoder.fields:
            raise UnknownFieldError(f"encoder {encoder.name}: no field named {name!r}; it writes: {known}")
    if tokens is not None:
        try:
            wanted = with_tokens(wanted, encoder.fields, tokens)
        except EncoderError as error:
            raise UnknownFieldError(f"{modality}, encoder {encoder.name}: --{error}") from error
    if not wanted:
        raise UnknownFieldError(
            f"{modality}, encoder {encoder.name}: --tokens none leaves nothing to write; it writes: {known}"
        )
    return tuple(dict.fromkeys(wanted))


def _reader_revisions(bank: Bank, dataset: str, modality: str) -> dict[str, int]:
    rows = bank.sql(
        "SELECT DISTINCT reader FROM media WHERE dataset = ? AND list_contains(?, modality)",
        [dataset, modality.split("+")],
    )
    return {name: load_reader(name).revision for name in sorted(rows["reader"].to_pylist())}


def _spec(
    bank: Bank,
    dataset: str,
    modality: str,
    encoder: Encoder | TextEncoder,
    reading: Mapping[str, Any],
    device: str,
) -> FeatureSpec:
    spec = FeatureSpec(encoder.name, encoder.space, reading)
    default = default_precision(device, encoder.tolerates_bf16)
    return bank.resolve_precision(dataset, modality, spec, default)
