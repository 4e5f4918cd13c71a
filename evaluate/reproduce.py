"""`python -m evaluate reproduce cmvra`: published protocols run on the bank, figures beside figures."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align.recipe import RecipeError
from evaluate.published import MEAN, RECIPES, Experiment, read_published
from evaluate.published_features import RANDOM, MissingError, Place
from evaluate.recorded import interrupted, metrics, recorded, step
from evaluate.source import EvaluateError
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from align.config import AlignConfig, ModalityConfig
    from evaluate.records import Score

METRIC_NAMES = {"accuracy": "accuracy", "balanced": "balanced_accuracy"}
# The original's way with features as they are stored. Heads give unit vectors, on which its probe, made for
# longer ones (Adam at 1e-4), hardly moves: those are probed by our solver.
WAYS: dict[str, dict[str, Any]] = {
    "probe": {"pool": "mean", "solver": "cmvra"},
    "fuse": {"pool": "mean"},
    "knn": {"pool": "mean"},
    "zero-shot": {},
}


@dataclass(frozen=True)
class Line:
    """One published figure and ours.

    Attributes:
        experiment: Which.
        metric: ``accuracy`` or ``balanced``.
        modality: Or several.
        protocol: Its published name, or ``mean``.
        published: Percent.
        ours: None where features are missing.
        why_not: Why the two cannot be compared; empty if they can.
    """

    experiment: Experiment
    metric: str
    modality: str
    protocol: str
    published: float
    ours: "Score | None" = None
    why_not: str = ""

    def row(self) -> dict[str, Any]:
        """For the table."""
        from evaluate.records import percent

        return {
            "experiment": f"{self.experiment.name}, {self.experiment.task}",
            "protocol": self.protocol,
            "modality": self.modality,
            "metric": self.metric,
            "published": f"{self.published:.1f}",
            "ours": "missing" if self.ours is None else percent(self.ours),
            "difference": self.difference() if self.ours is not None and not self.why_not else "",
            "n": "" if self.ours is None else str(self.ours.n),
            "comparable": self.comparable(),
        }

    def comparable(self) -> str:
        """For people; where we align, heads stand for their encoders."""
        if self.ours is None or self.why_not:
            return f"no: {self.why_not}" if self.ours else ""
        return "in part: heads for encoders" if self.experiment.recipe else "yes"

    def difference(self) -> str:
        """Ours less the published figure, which is taken as exact, with the interval of ours."""
        assert self.ours is not None and self.ours.low is not None and self.ours.high is not None
        points = [value * 100 - self.published for value in (self.ours.value, self.ours.low, self.ours.high)]
        return f"{points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}]"


def reproduce(
    whose: str,
    bank: str = "bank",
    dataset: str | None = None,
    like: str | None = None,
    setting: str = "base",
    only: str | None = None,
    encoders: dict[str, str] | None = None,
    train: dict[str, Any] | None = None,
) -> int:
    """Run what others ran, by their protocols and on the bank's features, beside what they published.

    Probes, fusion, nearest neighbours and class texts are done the original's way; modalities are aligned by
    the recipes of configs/align/cmvra, which train heads on stored features (the original trains whole
    encoders). The cleanest figures come first. What was run before with the same configuration and features
    is not run again. Where features are missing, the command and the file that they need are named, and the
    rest is done.

    Examples:
      python -m extract --dataset ntu --root DIR --modality rgb,text --config configs/extract/cmvra.yaml
          --weights pretrain_clipvip_base_16.pt
      python -m evaluate reproduce cmvra --dataset ntu

    Args:
        whose: Whose figures (cmvra): those in configs/evaluate/<whose>.yaml, with their conditions.
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        like: Whose published figures to set beside it: ntu, ntu120, daa. None: those of the dataset's own
            name; of the synthetic corpus ntu's. Another dataset's are shown, not compared.
        setting: Whose weights the features are of; `settings` in the YAML explains them.
        only: Experiments with one of these words in their name or task, with commas.
        encoders: Modality -> feature set, where there are several.
        train: Options of the alignments' loop instead of the recipes', e.g. '{"epochs": 5}'.
    """
    from align.recipe import choose_dataset
    from evaluate.records import print_table
    from store.bank import Bank

    asked = resolved(**locals())
    opened = Bank.open(bank)
    name = choose_dataset(opened, dataset)
    published = read_published(whose, like or {"synthetic": "ntu"}.get(name, name))
    place = Place(opened, name, published, setting, encoders or {})
    chosen = _chosen(published.under(setting), only)
    lines = [line for one in chosen for line in _lines(place, one, train or {})]
    with opened.record_run("evaluate reproduce", {**asked, "dataset": name}) as run:
        for line in lines:
            if line.ours is not None:
                line.ours.record(run, "reproduce")
    print(f"{name} beside {published.dataset}: {published.source}")
    print(f"{setting}: {published.settings[setting]['what']}\n")
    print_table([line.row() for line in lines])
    _print_notes(place, chosen)
    return 0


def _chosen(experiments: Sequence[Experiment], only: str | None) -> list[Experiment]:
    words = [word.strip() for word in (only or "").split(",") if word.strip()]
    found = [
        one for one in experiments if not words or any(word in f"{one.name} {one.task}" for word in words)
    ]
    if not found:
        names = ", ".join(f"{one.name} {one.task}" for one in experiments)
        raise EvaluateError(f"reproduce: no experiment fits --only {only!r}; there are: {names}")
    return found


def _lines(place: Place, experiment: Experiment, train: Mapping[str, Any]) -> list[Line]:
    """The figures of one experiment; without ours if features are missing."""
    lines = [Line(experiment, *row) for row in experiment.rows()]
    wanted, ours = {line.protocol for line in lines}, place.published.protocols
    try:
        found = {
            name: _measured(place, experiment, protocol, train)
            for name, protocol in ours.items()
            if {name, MEAN} & wanted
        }
    except MissingError as error:
        place.missing += [one for one in str(error).splitlines() if one not in place.missing]
        return lines
    except (EvaluateError, RecipeError) as error:  # this one cannot be had here; the others can
        place.refused.append(f"{experiment.name}, {experiment.task}: {error}")
        return lines
    return [_filled(place, line, found) for line in lines]


def _measured(
    place: Place, experiment: Experiment, protocol: str, train: Mapping[str, Any]
) -> "dict[tuple[str, str], Score]":
    """(metric, modality) -> score under one protocol.

    Raises:
        MissingError: If the bank lacks features.
    """
    from evaluate.records import Score

    arguments = {"dataset": place.dataset, "protocol": protocol, **experiment.options}
    if experiment.recipe is None:
        arguments = WAYS[experiment.task] | arguments
        sets = place.feature_sets({name: (name, encoder) for name, encoder in experiment.needs.items()})
        arguments |= {"encoders": sets, "fields": dict.fromkeys(sets, "embedding")}
        arguments["modalities"] = ",".join(name for name in sets if name != TEXT)
    else:
        arguments["checkpoint"] = f"run:{_aligned(place, experiment.recipe, protocol, train)}"
    run_id = step(place.bank, f"evaluate {experiment.task}", _function(experiment.task), **arguments)
    found = {}
    for row in metrics(place.bank, run_id):
        name = row["name"].rpartition("/")[2]
        found[name, row["detail"].get("modality")] = Score(
            name, *(row[key] for key in ("value", "n", "low", "high"))
        )
    return found


def _function(task: str) -> Any:
    from importlib import import_module

    return getattr(import_module(f"evaluate.{task.replace('-', '_')}"), task.replace("-", "_"))


def _aligned(place: Place, recipe: str, protocol: str, train: Mapping[str, Any]) -> str:
    """The run that aligned by a recipe under a protocol: recorded, interrupted and now finished, or new."""
    from align.checkpoint import STATE_FILE
    from align.run import ResumeError, continue_run
    from align.run import train as align

    config = _config(place, recipe, protocol, train)
    asked = {"asked": config.as_json()}
    if known := recorded(place.bank, "align", asked):
        return known
    if begun := interrupted(place.bank, "align", asked, STATE_FILE):
        try:
            return continue_run(place.bank, f"run:{begun}").name
        except ResumeError as error:
            print(f"run:{begun} is not continued, but aligned anew: {error}", file=sys.stderr)
    return align(place.bank, config).name


def _config(place: Place, recipe: str, protocol: str, train: Mapping[str, Any]) -> "AlignConfig":
    """The recipe on this dataset and protocol, with the feature sets that are there."""
    from align.recipe import read_recipe

    config = read_recipe(str(RECIPES / f"{recipe}.yaml"))
    assert isinstance(config.modalities, dict)
    given = {name: one for name, one in config.modalities.items() if one is not None}
    sets = place.feature_sets({name: (one.modality or name, str(one.encoder)) for name, one in given.items()})
    modalities: dict[str, ModalityConfig | None] = {
        name: replace(one, encoder=sets[name]) for name, one in given.items()
    }
    loop = replace(config.train, **train)
    return replace(config, dataset=place.dataset, protocol=protocol, modalities=modalities, train=loop)


def _filled(place: Place, line: Line, found: "Mapping[str, Mapping[tuple[str, str], Score]]") -> Line:
    """The line with our figure."""
    key = (METRIC_NAMES[line.metric], line.modality)
    names = list(found) if line.protocol == MEAN else [line.protocol]
    scores = [found[name][key] for name in names]
    ours = scores[0] if len(scores) == 1 else mean_score(scores)
    done = replace(line, ours=ours, why_not=_why_not(place, names, scores))
    detail = {
        "experiment": f"{line.experiment.name}, {line.experiment.task} ({line.experiment.setting})",
        "task": line.experiment.task,
        "modality": line.modality,
        "published_protocol": line.protocol,
        "published": round(line.published / 100, 4),
        "difference": "" if done.why_not else done.difference(),
        "comparable": done.comparable(),
    }
    return replace(done, ours=replace(ours, name=METRIC_NAMES[line.metric], detail=detail))


def mean_score(scores: "Sequence[Score]") -> "Score":
    """The mean over test parts that share no clip, with the interval of a mean of independent numbers."""
    from evaluate.records import Score

    value = sum(one.value for one in scores) / len(scores)
    low, high = (
        math.sqrt(sum((getattr(one, side) - one.value) ** 2 for one in scores)) / len(scores)
        for side in ("low", "high")
    )
    return Score(scores[0].name, value, sum(one.n for one in scores), value - low, value + high)


def _why_not(place: Place, protocols: Sequence[str], scores: "Sequence[Score]") -> str:
    """Why our figure and the published one are of different things; empty if they are not."""
    reasons = []
    if place.dataset != place.published.dataset:
        reasons.append("other data")
    if any(RANDOM + "@" in name for name in place.sets.values()):
        reasons.append("random weights")
    whole = sum(place.published.clips[name] for name in protocols)
    if not reasons and sum(one.n for one in scores) != whole:
        reasons.append(f"of {whole} clips")
    return ", ".join(reasons)


def _print_notes(place: Place, experiments: Sequence[Experiment]) -> None:
    """What to know about the figures, and what to run for those that are missing."""
    notes = [f"{one.name}, {one.task}: {one.note}" for one in experiments if one.note]
    if any(one.recipe for one in experiments):
        notes.append(
            "joint, pairwise, self-alignment: ours are heads on stored features, theirs are whole encoders, "
            "trained (configs/align/cmvra)"
        )
    notes.append("published: one run of one seed, taken as exact; intervals are ours, over the test clips")
    print("\n" + "\n".join(notes))
    if place.refused:
        print("\nnot done:\n" + "\n".join(place.refused))
    if place.missing:
        print("\nmissing features; one command each:")
        print("\n".join(place.missing))
