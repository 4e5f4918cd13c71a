"""`python -m evaluate classify`: classifiers that were trained elsewhere, applied to stored features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.classification import Outcome, outcome, record_and_print
from evaluate.import_cmvra import HEADS, Facts, load_classifiers
from evaluate.provenance import provenance
from evaluate.source import EvaluateError, Source, open_sources
from store.cli import resolved

if TYPE_CHECKING:
    from evaluate.fusion import Joined
    from evaluate.fusion_cmvra import FusionHeads

FUSED = "fused"  # what stands in the list of modalities for all their combinations
LEAST_FUSED = 2


@dataclass(frozen=True)
class Stored:
    """Imported classifiers, ready to score; CMVRA calls views by their own names (``ceiling``)."""

    facts: Facts
    heads: "FusionHeads"

    def name_for(self, modality: str) -> str | None:
        """Whose classifier fits a modality: its own, else for a view that of its kind (``ir``)."""
        base, _, view = modality.partition(".")
        return next((name for name in (view, base) if name in self.facts.classifiers), None)

    def owns(self, modality: str) -> bool:
        """Whether there is a classifier, and a place in the fusion, for just this modality or view."""
        return self.name_for(modality) == (modality.partition(".")[2] or modality)


def classify(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    classifiers: str = "latest",
    classifier: str | None = None,
    part: str = "test",
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
) -> int:
    """Score classifiers out of CMVRA's checkpoints on stored features; nothing is trained (its epochs: 0).

    Each modality by its linear classifier, then every combination of modalities by the attention fusion
    (absent ones are zero vectors, as there). The features have to be of the checkpoint's own encoders.

    Examples:
      python -m evaluate import-cmvra checkpoint.pth
      python -m evaluate classify --dataset ntu --protocol cross-subject-raw
      python -m evaluate classify --dataset daa --protocol split-1 --classifier ir --modalities ir.ceiling

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject; `none`: all clips.
        modalities: With commas; None: all that have features and a classifier.
        classifiers: run:<id> or directory of an import, or `latest`.
        classifier: Whose classifier to apply, whichever modality is scored: CMVRA copies that of the Kinect's
            infrared camera to the other cameras. None: the modality's own, else for a view that of its kind.
        part: Part to score.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
    """
    asked = resolved(**locals())
    (source,) = open_sources(bank, dataset, protocol, None, part, encoders, fields, "mean")
    stored = _loaded(source, classifiers)
    if classifier is not None and classifier not in stored.facts.classifiers:
        raise EvaluateError(
            f"classify: --classifier {classifier!r}; accepted: {', '.join(stored.facts.classifiers)}"
        )
    asked["digest"] = stored.facts.digest

    def outcomes(modality: str) -> list[Outcome]:
        if modality == FUSED:
            return _fused(source, stored, _own(source, stored, modalities), part)
        return [_single(source, stored, modality, classifier or stored.name_for(modality), part)]

    def names() -> list[str]:
        chosen = source.modalities(modalities)
        if modalities is None:
            chosen = [name for name in chosen if classifier or stored.name_for(name)]
        own = _own(source, stored, modalities) if classifier is None else []
        return [*chosen, *([FUSED] if stored.facts.fusion and len(own) >= LEAST_FUSED else [])]

    record_and_print(
        "classify", [source], asked, names, "classifying", outcomes,
        f"{source.place(part)}; classifiers of {stored.facts.file}",
    )  # fmt: skip
    return 0


def _loaded(source: Source, classifiers: str) -> Stored:
    """Raises: EvaluateError: If the dataset has another number of classes."""
    from evaluate.fusion_cmvra import FusionHeads

    facts, tensors = load_classifiers(source.bank, classifiers)
    known = len(source.label_names)
    if known != facts.classes:
        raise EvaluateError(
            f"classify: the classifiers tell {facts.classes} classes apart, {source.dataset} has {known}; "
            "choose the --dataset that they were trained on"
        )
    heads = FusionHeads(facts.classifiers, facts.classes, facts.width, HEADS if facts.fusion else 1)
    heads.load_state_dict(heads.state_dict() | tensors)  # without a fusion in the file it stays unused
    return Stored(facts, heads.eval())


def _own(source: Source, stored: Stored, asked: str | None) -> list[str]:
    """The modalities with a place in the fusion."""
    return [name for name in source.modalities(asked) if stored.owns(name)]


def _clips(source: Source, stored: Stored, modalities: Sequence[str], part: str) -> "Joined":
    """The labelled clips with their un-normalised vectors.

    Raises:
        EvaluateError: If these have another width than the classifiers take, or no clip has a label.
    """
    from evaluate.fusion import join

    clips = join([source.clips(name, part) for name in modalities]).labelled()
    for name, vectors in clips.vectors.items():
        if vectors.shape[1] != stored.facts.width:
            raise EvaluateError(
                f"classify: {name} features have {vectors.shape[1]} dims, the classifiers take "
                f"{stored.facts.width}; extract {name} with --weights {stored.facts.file}"
            )
    if not len(clips):
        raise EvaluateError(f"classify: no labelled clip in part {part!r}; scoring needs some")
    return clips


def _single(source: Source, stored: Stored, modality: str, name: str | None, part: str) -> Outcome:
    """One modality by a linear classifier."""
    import torch

    from evaluate.fusion_subsets import classified

    if name is None:
        raise EvaluateError(
            f"classify: no classifier for {modality}; choose another's by --classifier: "
            f"{', '.join(stored.facts.classifiers)}"
        )
    clips = _clips(source, stored, [modality], part)
    with torch.no_grad():
        scores = stored.heads.probe(name, torch.from_numpy(clips.vectors[modality])).numpy()
    detail = _detail(source, stored, [modality]) | {"modality": modality, "learn_from": name}
    shown = {"modality": modality, "classifier": name, "encoders": _whose(detail)}
    return outcome([classified(scores, clips)], source.label_names, detail, shown)


def _fused(source: Source, stored: Stored, modalities: Sequence[str], part: str) -> list[Outcome]:
    """Every combination of the modalities by the attention over all that it was trained with."""
    import torch

    from evaluate.fusion import BESIDE, subsets
    from evaluate.fusion_subsets import classified

    joined, found = _clips(source, stored, modalities, part), []
    for names in subsets(modalities):
        clips = joined.only(names)
        with torch.no_grad():
            scores = stored.heads(torch.from_numpy(_tokens(clips, stored))).numpy()
        detail = _detail(source, stored, names) | {
            "modality": BESIDE.join(names),
            "fusion": "cmvra, imported",
        }
        shown = {"modality": BESIDE.join(names), "classifier": FUSED, "encoders": _whose(detail)}
        found.append(outcome([classified(scores, clips)], source.label_names, detail, shown))
    return found


def _tokens(clips: "Joined", stored: Stored) -> np.ndarray:
    """(n, M, E), a token for each of the checkpoint's modalities, zero where absent."""
    tokens = np.zeros((len(clips), len(stored.facts.classifiers), stored.facts.width), np.float32)
    for modality, vectors in clips.vectors.items():
        tokens[:, stored.facts.classifiers.index(str(stored.name_for(modality)))] = vectors
    return tokens


def _detail(source: Source, stored: Stored, modalities: Sequence[str]) -> dict[str, Any]:
    """What was scored; ``same_file``: whether the encoders' weights are out of the classifiers' file."""
    query = "SELECT spec -> 'space' ->> 'weights' AS weights FROM feature_sets WHERE name = ANY(?)"
    sets = [source.selection(name).feature_set for name in modalities]
    weights = source.bank.sql(query, [sets])["weights"].to_pylist()
    return {
        **provenance([source]),
        "features": "; ".join(sets),
        "classifiers": stored.facts.digest,
        "same_file": all(str(one).partition(":")[0] == stored.facts.digest for one in weights),
        "chance": 1 / stored.facts.classes,
    }


def _whose(detail: dict[str, Any]) -> str:
    return "same file" if detail["same_file"] else "OTHER FILE"
