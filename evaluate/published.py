"""Figures that others published, with their conditions: configs/evaluate/<whose>.yaml, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.source import EvaluateError
from store.errors import UnknownNameError

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "evaluate"
RECIPES = FOLDER.parent / "align" / "cmvra"
EXTRACT = FOLDER.parent / "extract"
MEAN = "mean"  # over all protocols of the dataset
METRICS = ("accuracy", "balanced")

# Modality (or several) -> protocol, by its published name -> percent.
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Experiment:
    """What was run, and what came out.

    Attributes:
        name: For people.
        setting: Whose weights the features are of.
        task: Command: probe, fuse, knn, zero-shot.
        accuracy: Its figures.
        balanced: Balanced accuracy, where it was logged.
        recipe: Of the alignment before, in configs/align/cmvra; None: features as they are stored.
        needs: Modality -> encoder, without a recipe.
        options: Of the command.
        note: What to know about the figures.
    """

    name: str
    setting: str
    task: str
    accuracy: Figures
    balanced: Figures = field(default_factory=dict)
    recipe: str | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def rows(self) -> list[tuple[str, str, str, float]]:
        """(metric, modality, protocol or ``mean``, percent) of each figure."""
        return [
            (metric, modality, protocol, value)
            for metric in METRICS
            for modality, values in getattr(self, metric).items()
            for protocol, value in values.items()
        ]


@dataclass(frozen=True)
class Published:
    """The figures on one dataset.

    Attributes:
        dataset: Its name.
        source: Where they come from.
        protocols: Published name -> ours.
        clips: Published name -> clips of the whole test part.
        settings: Name -> {what, extract: recipes, weights: encoder -> {file, at}}.
        experiments: The cleanest first.
    """

    dataset: str
    source: str
    protocols: Mapping[str, str]
    clips: Mapping[str, int]
    settings: Mapping[str, Mapping[str, Any]]
    experiments: list[Experiment]

    def under(self, setting: str) -> list[Experiment]:
        """The experiments of one setting.

        Raises:
            UnknownNameError: For a setting that has none; lists those that have.
        """
        found = [one for one in self.experiments if one.setting == setting]
        if not found:
            raise UnknownNameError(
                f"figures on {self.dataset}",
                "setting",
                setting,
                sorted({one.setting for one in self.experiments}),
            )
        return found


def read_published(whose: str, dataset: str) -> Published:
    """The figures of ``configs/evaluate/<whose>.yaml`` on a dataset.

    Raises:
        UnknownNameError: If there is no such file, or it has none on this dataset.
        EvaluateError: If the file contradicts itself.
    """
    import yaml

    path = FOLDER / f"{whose}.yaml"
    if not path.is_file():
        raise UnknownNameError(
            str(FOLDER), "source", whose, sorted(one.stem for one in FOLDER.glob("*.yaml"))
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if dataset not in content["datasets"]:
        raise UnknownNameError(str(path), "dataset (--like)", dataset, sorted(content["datasets"]))
    own = content["datasets"][dataset]
    shared = {name: content[name] for name in ("source", "settings")}
    experiments = [Experiment(**one) for one in own["experiments"]]
    found = Published(
        dataset, protocols=own["protocols"], clips=own["clips"], experiments=experiments, **shared
    )
    for one in experiments:
        _check(f"{path}: {dataset}: {one.name} ({one.setting}, {one.task})", one, found)
    return found


def _check(where: str, experiment: Experiment, published: Published) -> None:
    known = {*published.protocols, MEAN}
    strange = [protocol for _, _, protocol, _ in experiment.rows() if protocol not in known]
    if strange:
        raise EvaluateError(f"{where}: protocol {strange[0]!r}; accepted: {', '.join(sorted(known))}")
    if experiment.setting not in published.settings:
        raise EvaluateError(f"{where}: the setting is not explained under `settings`")
    if bool(experiment.recipe) == bool(experiment.needs):
        raise EvaluateError(f"{where}: either a recipe or `needs` says which features; write one of them")
    if experiment.recipe and not (RECIPES / f"{experiment.recipe}.yaml").is_file():
        raise EvaluateError(f"{where}: no recipe {experiment.recipe}.yaml in {RECIPES}")
