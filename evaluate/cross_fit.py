"""What fusion may learn on when a checkpoint's own training clips teach: class scores of clips left out.

Embeddings of the clips that trained a head lie closer to their class than those of new clips ever will: on
them every modality looks perfect, and weights between modalities learnt there are worthless. So the alignment
is trained again, K times, each time without some of the subjects (or clips); embeddings of the clips left out
are then as good as a new clip's. The K spaces are rotated differently, so no embedding crosses from one to
another: only class log-probabilities do, which an expert of each space gives (Wolpert's stacking, 1992, with
the representation itself inside the cross-validation).
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.fusion import Joined, groups_of
from evaluate.fusion_linear import as_evidence, clip_weights, log_softmax
from evaluate.fusion_sides import Sides, encoders_saw, heads_saw, part_of, raw_source, sides_of
from evaluate.source import EvaluateError, Source

if TYPE_CHECKING:
    from align.alignment import Alignment
    from align.config import AlignConfig
    from evaluate.fuse import Plan

TEMPERATURE = 0.07  # of cosines to texts; the fusion's weights scale it
NAMED = 4  # groups that a progress line names

Candidates = dict[str, np.ndarray]
"""Modality -> log-probabilities (S, n, C) at S strengths."""


@dataclass(frozen=True)
class Space:
    """One alignment (or none) at work: who teaches its experts, and who is asked about.

    Attributes:
        source: Reads through the alignment.
        learn: Vectors of clips that teach.
        asked: Vectors of clips to give log-probabilities of.
        classes: C.
        balanced: Whether classes weigh alike.
    """

    source: Source
    learn: Joined
    asked: Joined
    classes: int
    balanced: bool


def probe(space: Space) -> Candidates:
    """A linear classifier a modality, at all strengths.

    Raises:
        EvaluateError: If no clip that teaches has one of the modalities.
    """
    from evaluate.logistic import CHOOSING, STRENGTHS, fit_path

    found = {}
    for place, (name, vectors) in enumerate(space.learn.vectors.items()):
        rows = space.learn.present[:, place]
        if not rows.any():
            raise EvaluateError(f"fuse: --cross-fit: only clips to be left out have {name}; use fewer folds")
        labels = space.learn.labels[rows]
        weights = clip_weights(labels, space.classes, space.balanced)
        models = fit_path(vectors[rows], labels, STRENGTHS, gap=CHOOSING, weights=weights)
        asked = space.asked.vectors[name]
        found[name] = np.stack([log_softmax(one.scores(asked, space.classes)) for one in models])
    return found


def texts(space: Space) -> Candidates:
    """Cosines to the classes' texts (all prompt sets averaged), as log-probabilities."""
    from evaluate.index import unit
    from evaluate.zero_shot import prompts

    classes = prompts(space.source)[-1]
    found = {}
    for name, vectors in space.asked.vectors.items():
        cosines = unit(vectors) @ classes.vectors.T
        scores = np.repeat(cosines.min(axis=1, keepdims=True), space.classes, axis=1)
        scores[:, classes.classes] = cosines
        found[name] = log_softmax(scores / TEMPERATURE)[None]
    return found


EVIDENCE: dict[str, tuple[Callable[[Space], Candidates], bool]] = {
    "probe": (probe, True),
    "texts": (texts, True),
    "raw": (probe, False),
}
"""Name -> its experts, and whether they read embeddings (or raw features)."""


def cross_fitted(source: Source, modalities: Sequence[str], plan: "Plan") -> tuple[Joined, Joined]:
    """Class log-probabilities of the training clips, each by an alignment without it, and of the test clips.

    Args:
        source: Through the checkpoint, which gives the test clips' and is trained again as its recipe says.
        modalities: To fuse.
        plan: Parts, folds, evidence, seed.

    Returns:
        Training clips and test clips; experts of the evidence side by side.

    Raises:
        EvaluateError: If the checkpoint saw none of the training clips, or keeps no recipe.
    """
    from evaluate.logistic import group_folds

    began = time.monotonic()
    whole = sides_of(source, modalities, plan.train_part, plan.part)
    if not heads_saw(source, whole.train):
        raise EvaluateError(
            f"fuse: --cross-fit: {source.name} saw none of these training clips; leave --cross-fit out"
        )
    groups = groups_of(whole.train)
    folds = group_folds(whole.train.labels, groups, plan.seed, most=plan.cross_fit)
    gathered = Gathered(len(source.label_names), whole.train, plan)
    sides = {True: (source, whole.train, whole.test)}
    if not all(EVIDENCE[name][1] for name in gathered.evidence):
        sides[False] = _raw(source, whole, plan)
    for fold in np.unique(folds):
        rest, rows = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        column, values = left_out(whole.train, groups, rows)
        told = _told(column, values, len(rows))
        print(f"cross-fit {fold + 1} of {folds.max() + 1}: {told}", file=sys.stderr)
        own = replace(source, alignment=realigned(source, column, values))
        inside = part_of(own, modalities, plan.train_part)
        _same_clips(whole.train, inside)
        spaces = {**sides, True: (own, inside, inside)}
        gathered.add({on: (one, a.take(rest), a.take(rows)) for on, (one, a, _) in spaces.items()}, rows)
    train, test = gathered.chosen(sides)
    took = f"{folds.max() + 1} alignments, {time.monotonic() - began:.0f} s"
    print(f"cross-fit: {gathered.told()}; {took}", file=sys.stderr)
    return replace(train, fresh=not encoders_saw(source, train)), test  # encoders are not trained again


def _raw(source: Source, whole: Sides, plan: "Plan") -> tuple[Source, Joined, Joined]:
    """The same clips' raw features."""
    raw = raw_source(source, whole.train.modalities)
    bare = sides_of(raw, whole.train.modalities, plan.train_part, plan.part)
    _same_clips(whole.train, bare.train)
    _same_clips(whole.test, bare.test)
    return raw, bare.train, bare.test


def by_texts(source: Source, sides: Sides) -> Sides:
    """The clips' log-probabilities by the classes' texts; nothing is fitted to them.

    Raises:
        EvaluateError: If the dataset has no class texts, or a modality does not share their space.
    """
    from evaluate.zero_shot import scorable

    scorable(source, ",".join(sides.train.modalities))
    train, test = (_by_texts(source, one) for one in (sides.train, sides.test))
    return Sides(train, test)


def _by_texts(source: Source, clips: Joined) -> Joined:
    said = texts(Space(source, clips, clips, len(source.label_names), balanced=False))
    has = dict(zip(clips.modalities, clips.present.T, strict=True))
    found = {name: [one[0] * has[name][:, None]] for name, one in said.items()}
    return replace(_evidence(clips, found), fresh=clips.fresh)


Spaces = Mapping[bool, tuple[Source, Joined, Joined]]
"""On embeddings or not -> where they are read, who teaches, who is asked about."""


class Gathered:
    """Log-probabilities of the clips left out, fold by fold, then the strengths that suit them best.

    Args:
        classes: C.
        train: All training clips.
        plan: Evidence, and whether classes weigh alike.
    """

    def __init__(self, classes: int, train: Joined, plan: "Plan"):
        self.classes, self.train, self.plan = classes, train, plan
        self.evidence = plan.evidence or ("probe",)
        self.held: dict[tuple[str, str], np.ndarray] = {}
        self.strengths: dict[tuple[str, str], int] = {}

    def add(self, sides: Spaces, rows: np.ndarray) -> None:
        """One fold's: ``rows`` of the training clips are those asked about."""
        for name in self.evidence:
            for modality, found in self._ask(name, sides).items():
                shape = (len(found), len(self.train), self.classes)
                held = self.held.setdefault((name, modality), np.zeros(shape, np.float32))
                held[:, rows] = found

    def chosen(self, sides: Spaces) -> tuple[Joined, Joined]:
        """Training and test clips' evidence, at the strengths of least cross-entropy on clips left out."""
        per_clip = clip_weights(self.train.labels, self.classes, self.plan.balanced)
        train, test = dict[str, list[np.ndarray]](), dict[str, list[np.ndarray]]()
        for name in self.evidence:
            asked = self._ask(name, sides)
            for place, modality in enumerate(self.train.modalities):
                held, has = self.held[name, modality], self.train.present[:, place]
                right = held[:, np.arange(len(self.train)), self.train.labels]
                best = int(np.argmax(right[:, has] @ per_clip[has]))
                self.strengths[name, modality] = best
                train.setdefault(modality, []).append(held[best] * has[:, None])
                there = sides[True][2].present[:, place, None]
                test.setdefault(modality, []).append(asked[modality][best] * there)
        return _evidence(self.train, train), _evidence(sides[True][2], test)

    def told(self) -> str:
        """Which strengths were chosen."""
        from evaluate.logistic import STRENGTHS

        chosen = [
            f"{name} of {modality} L2 {STRENGTHS[best]:g}"
            for (name, modality), best in self.strengths.items()
            if len(self.held[name, modality]) > 1
        ]
        return ", ".join(chosen) or "no strengths to choose"

    def _ask(self, name: str, sides: Spaces) -> Candidates:
        experts, on_embeddings = EVIDENCE[name]
        source, learn, asked = sides[on_embeddings]
        return experts(Space(source, learn, asked, self.classes, self.plan.balanced))


def left_out(train: Joined, groups: np.ndarray | None, rows: np.ndarray) -> tuple[str, list[str]]:
    """The column of clips, and its values, by which the alignment leaves these clips out."""
    if groups is None:
        return "clip_id", sorted(train.items[rows].astype(str).tolist())
    return "subject", sorted(set(groups[rows].tolist()))


def realigned(source: Source, column: str, values: Sequence[str]) -> "Alignment":
    """The source's alignment trained again without clips that have one of these values; kept in memory."""
    from align.alignment import Alignment
    from align.prepare import prepare
    from align.run import load_clips
    from align.warm_start import earlier

    assert source.alignment is not None
    config = recipe(source.alignment)
    names = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    apart = f"coalesce({column}, '') NOT IN ({names})"
    asked = replace(config, where=f"({config.where}) AND {apart}" if config.where else apart)
    start = earlier(source.bank, asked)
    if start is not None:
        _refuse_start(start, source.dataset, column, values)
    prepared = prepare(asked, load_clips(source.bank, asked, start), start)
    prepared.trainer.run()
    heads, device = prepared.trainer.heads, prepared.trainer.device
    return Alignment(source.alignment.directory, prepared.record, heads, prepared.standards, device)


def _refuse_start(start: "Alignment", dataset: str, column: str, values: Sequence[str]) -> None:
    """Heads that training starts from must not know the clips left out either."""
    rows = start.training_rows().to_pylist()
    if any(row["dataset"] == dataset and str(row[column]) in values for row in rows):
        raise EvaluateError(
            f"fuse: --cross-fit: the checkpoint started from {start.directory}, which saw the clips that "
            "would be left out; leave --cross-fit out, or align without --init"
        )


def recipe(alignment: "Alignment") -> "AlignConfig":
    """What the checkpoint was trained by, everything resolved as it was then.

    Raises:
        EvaluateError: If the checkpoint does not say, or trained encoders with its heads.
    """
    from align.config import AlignConfig, ModalityConfig

    record = alignment.config
    if "asked" not in record:
        raise EvaluateError(
            f"{alignment.directory}: no recipe in its config.json, so it cannot be trained again; leave "
            "--cross-fit out"
        )
    if set(record["asked"]) - {one.name for one in fields(AlignConfig)}:
        raise EvaluateError(
            f"{alignment.directory}: its encoders were trained with its heads, which --cross-fit does not do "
            "again; extract with these encoders, align what they give, or leave --cross-fit out"
        )
    config = AlignConfig.from_json(record["asked"])
    kept = ("modality", "field", "reduce", "head", "head_options", "standardise")
    modalities: dict[str, Any] = {
        name: ModalityConfig(encoder=own["feature_set"], **{key: own[key] for key in kept if key in own})
        for name, own in record["modalities"].items()
    }
    text = replace(config.text, source=record["text_source"]) if record["text_source"] else config.text
    place = {"dataset": record["dataset"], "protocol": record["protocol"] or "none"}
    return replace(config, modalities=modalities, text=text, **place)


def _same_clips(one: Joined, other: Joined) -> None:
    """Rows must mean the same clips: something may be extracting meanwhile."""
    if not np.array_equal(one.items, other.items) or not np.array_equal(one.present, other.present):
        raise EvaluateError(
            f"fuse: --cross-fit: {len(one)} and then {len(other)} clips, or other modalities of them; try "
            "again when nothing is being extracted"
        )


def _evidence(clips: Joined, found: Mapping[str, Sequence[np.ndarray]]) -> Joined:
    """The experts of each modality side by side."""
    beside = {name: np.concatenate(parts, axis=1).astype(np.float32) for name, parts in found.items()}
    return as_evidence(clips, beside)


def _told(column: str, values: Sequence[str], clips: int) -> str:
    names = ", ".join(values[:NAMED]) + (", ..." if len(values) > NAMED else "")
    which = "" if column == "clip_id" else f"{column} {names}, "
    return f"aligning without {which}{clips} clips"
