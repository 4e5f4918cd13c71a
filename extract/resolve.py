"""Command line and dataset YAML -> tasks: encoder, sampling, fields and precision, all of them resolved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from encoders import ENCODERS, load_encoder
from encoders.protocols import Encoder, TextEncoder
from extract.datasets import DatasetConfig, ModalityConfig
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
    """What the command line says about encoding; None leaves it to the dataset's YAML, or the encoder."""

    encoder: str | None = None
    weights: str | None = None
    frames: int | Literal["all"] | None = None
    fps: float | None = None
    max_frames: int | None = None
    fields: tuple[str, ...] | None = None
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
        names = [name.strip() for name in asked.split(",") if name.strip()]
        for name in names:
            if name not in present:
                raise UnknownNameError(f"dataset {config.name!r}", "modality", name, present)
        return names
    configured = [name for name in present if {name, name.split(".")[0]} & config.modalities.keys()]
    if choices.encoder is None:
        return configured
    taken = _encoder_class(choices.encoder).modalities
    return [name for name in present if name.split(".")[0] in taken]


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
        fields=_fields(encoder, choices.fields or given.fields or encoder.default_fields),
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
    if choices.encoder is None:
        return config.modality(modality)
    configured = config.modalities.get(modality) or config.modalities.get(modality.split(".")[0])
    if configured is not None and configured.encoder == choices.encoder:
        return configured
    return ModalityConfig(choices.encoder)


def _loaded(given: ModalityConfig, modality: str, choices: Choices) -> Any:
    options = dict(given.options)
    weights = choices.weights if choices.weights is not None else options.pop("weights", None)
    return load_encoder(given.encoder, weights, choices.device, modality, **options)


def _encoder_class(name: str) -> Any:
    from importlib import import_module

    if name not in ENCODERS:
        raise UnknownNameError("extract", "encoder", name, sorted(ENCODERS))
    module, _, attribute = ENCODERS[name].partition(":")
    return getattr(import_module(module), attribute)


def _sampling(choices: Choices, default: Sampling) -> Sampling:
    if choices.frames is None and choices.fps is None:
        if choices.max_frames is None:
            return default
        return Sampling(default.frames, default.fps, choices.max_frames)
    cap = choices.max_frames if choices.max_frames is not None else default.max_frames
    return Sampling(choices.frames, choices.fps, cap)


def _fields(encoder: Encoder, wanted: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted:
        if name not in encoder.fields:
            known = ", ".join(sorted(encoder.fields))
            raise UnknownFieldError(f"encoder {encoder.name}: no field named {name!r}; it writes: {known}")
    return tuple(dict.fromkeys(wanted))


def _reader_revisions(bank: Bank, dataset: str, modality: str) -> dict[str, int]:
    rows = bank.sql(
        "SELECT DISTINCT reader FROM media WHERE dataset = ? AND modality = ?", [dataset, modality]
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
