"""A dataset's YAML: which adapter lists it, where its media are, and how each modality is encoded."""

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from encoders import base_modality
from extract.datasets.clips import MODALITIES, Dataset, DatasetError
from extract.sampling import Sampling
from store.errors import UnknownNameError
from store.tables import TEXT

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "datasets"
KEYS = ("name", "adapter", "root", "options", "modalities")
MODALITY_KEYS = ("encoder", "weights", "sampling", "fields", "options")


@dataclass(frozen=True)
class ModalityConfig:
    """How a modality of the dataset is encoded by default.

    Attributes:
        encoder: Name in ``encoders.ENCODERS``.
        sampling: Which frames; None = as the encoder wants.
        fields: Which of the encoder's outputs; None = its default ones.
        options: Keyword arguments of the encoder.
        weights: Its checkpoint; None = those of the installed package.
    """

    encoder: str
    sampling: Sampling | None = None
    fields: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the YAML, without what is default."""
        values = {
            "encoder": self.encoder,
            "weights": self.weights,
            "sampling": self.sampling.key() if self.sampling else None,
            "fields": list(self.fields) if self.fields else None,
            "options": dict(self.options) or None,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset's resolved configuration.

    Attributes:
        name: The dataset's name in the bank: ``name`` of the YAML, else the file's stem.
        adapter: Name in ``DATASETS``.
        root: Folder of the media; None where nobody has said.
        options: Keyword arguments of the adapter.
        modalities: Modality (with its suffix, or the part before the dot) -> defaults.
        source: The YAML.
    """

    name: str
    adapter: str
    root: Path | None
    options: Mapping[str, Any]
    modalities: Mapping[str, ModalityConfig]
    source: Path

    def modality(self, name: str) -> ModalityConfig:
        """The defaults of a modality; ``ir.ceiling`` has those of ``ir`` unless it is listed itself.

        Raises:
            UnknownNameError: With the modalities that there are.
        """
        found = self.find(name)
        if found is None:
            raise UnknownNameError(str(self.source), "modality", name, sorted(self.modalities))
        return found

    def find(self, name: str) -> ModalityConfig | None:
        """As :meth:`modality`; None where it is not listed."""
        return self.modalities.get(name) or self.modalities.get(base_modality(name))

    def to_json(self) -> dict[str, Any]:
        """What the catalog keeps."""
        return {
            "name": self.name,
            "adapter": self.adapter,
            "root": os.fspath(self.root) if self.root else None,
            "options": dict(self.options),
            "modalities": {name: modality.to_json() for name, modality in self.modalities.items()},
        }


def dataset_names() -> list[str]:
    """The datasets that have a YAML under ``configs/datasets``."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_config(
    name_or_yaml: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> DatasetConfig:
    """The configuration of ``configs/datasets/<name>.yaml``, or of a YAML given by its path.

    Args:
        name_or_yaml: A name, or a path that ends in ``.yaml`` or ``.yml``.
        root: Folder of the media, instead of the YAML's (which may be relative to the YAML's folder).

    Raises:
        UnknownNameError: For a name without YAML; lists those with one.
        DatasetError: For a YAML that is not there, is none, or has unknown keys.
    """
    path = _yaml_path(os.fspath(name_or_yaml))
    content = _content(path)
    folder = root if root is not None else content.get("root")
    resolved = None
    if folder is not None:
        base = Path.cwd() if root is not None else path.parent
        resolved = Path(os.path.normpath(base / Path(folder).expanduser()))
    modalities = parse_modalities(f"{path}: modalities", content.get("modalities") or {})
    return DatasetConfig(
        name=str(content.get("name") or path.stem),
        adapter=str(content["adapter"]),
        root=resolved,
        options=dict(content.get("options") or {}),
        modalities=modalities,
        source=path,
    )


def load_dataset(
    name_or_yaml: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> tuple[Dataset, DatasetConfig]:
    """The adapter over its folder, and its configuration.

    Raises:
        UnknownNameError: For an unknown dataset or adapter.
        DatasetError: If no root is known or it is no folder; for options that the adapter does not take.
    """
    from extract.datasets import DATASETS

    config = load_config(name_or_yaml, root)
    if config.adapter not in DATASETS:
        raise UnknownNameError(str(config.source), "dataset adapter", config.adapter, sorted(DATASETS))
    module, _, attribute = DATASETS[config.adapter].partition(":")
    adapter = getattr(importlib.import_module(module), attribute)
    _check_root(config, getattr(adapter, "how_to_get", None))
    _check_options(config, adapter)
    return adapter(config.root, **config.options), replace(config, root=config.root)


def _check_root(config: DatasetConfig, how_to_get: str | None) -> None:
    """``how_to_get``: an adapter's command with ``{root}`` that makes the dataset, where one can."""
    command = f", or make it: {how_to_get.format(root=config.root or 'DIR')}" if how_to_get else ""
    if config.root is None:
        raise DatasetError(
            f"dataset {config.name!r}: nobody has said where its media are; give --root DIR once, "
            f"or `root:` in {config.source}{command}"
        )
    if not config.root.is_dir():
        raise DatasetError(
            f"dataset {config.name!r}: root {config.root} is no folder; give another --root DIR{command}"
        )


def _yaml_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    if name not in dataset_names():
        raise UnknownNameError("extract", "dataset", name, dataset_names())
    return CONFIGS / f"{name}.yaml"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise DatasetError(f"{path}: cannot be read ({cause}); give a dataset's YAML file") from None
    if not isinstance(content, dict) or "adapter" not in content:
        raise DatasetError(f"{path}: names no adapter; a dataset's YAML has the keys {', '.join(KEYS)}")
    _check_keys(f"{path}", content, KEYS)
    return content


def parse_modalities(where: str, value: Any) -> dict[str, ModalityConfig]:
    """Modality -> how it is encoded, from what a YAML holds (a dataset's, or a recipe's).

    Args:
        where: What an error begins with.
        value: Modality -> an encoder's name, or a mapping with the keys ``MODALITY_KEYS``.

    Raises:
        DatasetError, SamplingError: For unknown modalities and keys, and for what is no such mapping.
    """
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where}: is {value!r}; a mapping from modality to encoder is needed")
    return {
        joint_name(str(name)): _modality(f"{where}.{name}", str(name), one) for name, one in value.items()
    }


def joint_name(name: str) -> str:
    """One spelling for several modalities at once: ``depth + rgb`` is ``rgb+depth``."""
    order = {kind: place for place, kind in enumerate((*MODALITIES, TEXT))}
    parts = {part.strip() for part in name.split("+")}
    return "+".join(sorted(parts, key=lambda part: (order.get(base_modality(part), len(order)), part)))


def _modality(where: str, name: str, value: Any) -> ModalityConfig:
    kinds = (*MODALITIES, TEXT)
    for part in base_modality(name).split("+"):
        if part not in kinds:
            raise DatasetError(f"{where}: no modality {part!r}; there are: {', '.join(kinds)}")
    if isinstance(value, str):
        return ModalityConfig(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("encoder"), str):
        raise DatasetError(
            f"{where}: is {value!r}; an encoder's name, or a mapping with `encoder`, is needed"
        )
    _check_keys(where, value, MODALITY_KEYS)
    sampling, fields, weights = (value.get(key) for key in ("sampling", "fields", "weights"))
    fields = [name.strip() for name in fields.split(",")] if isinstance(fields, str) else fields
    return ModalityConfig(
        value["encoder"],
        None if sampling is None else Sampling.parse(sampling),
        None if fields is None else tuple(fields),
        dict(value.get("options") or {}),
        None if weights is None else str(weights),
    )


def _check_keys(where: str, content: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise DatasetError(f"{where}: unknown key {unknown[0]!r}; accepted are {', '.join(known)}")


def _check_options(config: DatasetConfig, adapter: Any) -> None:
    accepted = list(inspect.signature(adapter).parameters)[1:]
    unknown = sorted(set(config.options) - set(accepted))
    if unknown:
        raise DatasetError(
            f"{config.source}: options.{unknown[0]} is unknown to adapter {config.adapter!r}; "
            f"accepted are {', '.join(accepted)}"
        )
