"""`python -m evaluate probe`: how much a linear classifier finds in each modality's features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluate.adam import Schedule
from evaluate.classification import Outcome, record_and_print
from evaluate.leakage import refuse_same_recordings
from evaluate.predictions import Predictions
from evaluate.provenance import provenance
from evaluate.source import AUTO, Clips, EvaluateError, Source, open_sources
from store.cli import resolved

if TYPE_CHECKING:
    from evaluate.logistic import Logistic


@dataclass(frozen=True)
class Probed:
    """A probe's outcome on the clips to score.

    Attributes:
        items: (n,) clip ids.
        guesses: (n,) the class that scores best, -1 where several do.
        hits: (n,) probability that the prediction is right (ties fairly).
        labels: (n,) true classes.
        confusion: (C, C) counts, row = true class.
        strength: L2 strength chosen on held-out training groups; None: not of this solver.
        epoch: Chosen on held-out training clips; None: not of this solver.
        held_out: Accuracy there.
        gap: The fit's objective lies at most this share above the optimum; infinite if nobody knows.
        classes: Number of classes in training.
    """

    items: np.ndarray
    guesses: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    confusion: np.ndarray
    strength: float | None
    epoch: int | None
    held_out: float
    gap: float
    classes: int


def probe(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    train_part: str = "train",
    part: str = "test",
    learn_from: str | None = None,
    learn_dataset: str | None = None,
    learn_protocol: str | None = None,
    shots: int | None = None,
    draws: int = 5,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
    solver: Literal["convex", "cmvra"] = "convex",
    cmvra: Schedule = Schedule(),  # noqa: B008 (frozen)
    balanced: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Train a linear classifier on one part of a protocol and score it on another, for each modality.

    Multinomial logistic regression, solved to its optimum; its L2 strength is chosen by cross-validation
    within the training part, whole subjects held out. Or CMVRA's protocol: features as they are, 500
    epochs of Adam. Prints and records accuracy and balanced accuracy.

    Examples:
      python -m evaluate probe                                  each modality's stored features
      python -m evaluate probe --checkpoint latest              the aligned embeddings
      python -m evaluate probe --checkpoint latest --shots 5    five training clips a class
      python -m evaluate probe --checkpoint latest --learn-from skeleton    does its classifier fit others?
      python -m evaluate probe --modalities ir.ceiling --learn-from ir      another camera view, untrained
      python -m evaluate probe --dataset daa --checkpoint RUN_ON_NTU        aligned there, probed here
      python -m evaluate probe --dataset daa --learn-dataset ntu            learnt there, scored here
      python -m evaluate probe --solver cmvra                   as CMVRA did, for comparing with its numbers

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject.
        modalities: With commas; None: all that have features (and, with a checkpoint, a head).
        checkpoint: run:<id>, a directory or `latest` (several with commas are averaged): probe its aligned
            embeddings. None: raw features.
        train_part: Part to learn from.
        part: Part to score, once.
        learn_from: Modality whose training clips teach, whichever is scored (classifier transfer): another
            modality of the checkpoint's space, or another view (ir.ceiling) of one encoder's.
        learn_dataset: Dataset whose training clips teach: those of the classes that have the same name in
            both. Clips of other classes are neither learnt from nor scored.
        learn_protocol: Which split of it; None: the only one, or cross-subject.
        shots: Training clips a class (all that a class has, if fewer); None: all. With one, nothing can be
            held out, and the strongest L2 is taken.
        draws: With shots: how often they are drawn anew; the interval covers the draws.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K (order in time kept), auto.
        solver: convex: the optimum; cmvra: its first-order training (on the CPU, whatever the device).
        cmvra: The schedule of --solver cmvra.
        balanced: Weigh the training clips so that each class counts alike (CMVRA's balancedCE).
        seed: Of the folds, draws and initial values.
        device: Where to solve.
    """
    asked = resolved(**locals())
    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    first.require_parts("a probe")
    if (shots is not None and shots < 1) or draws < 1:
        raise EvaluateError(f"probe: --shots {shots}, --draws {draws}; 1 or more is accepted")
    often = draws if shots else 1
    lesson = Lesson(train_part, part, learn_from, shots, often, seed, learn_dataset, learn_protocol)
    way = Way(solver, cmvra, balanced, device)
    record_and_print(
        "probe",
        sources,
        asked,
        lambda: first.modalities(modalities),
        "probing",
        lambda modality: [probe_modality(sources, modality, lesson, way)],
        f"{first.dataset}, {first.protocol}: {lesson.told()}{way.told()}",
    )
    return 0


@dataclass(frozen=True)
class Lesson:
    """What teaches and what is scored; see :func:`probe`."""

    train_part: str = "train"
    part: str = "test"
    learn_from: str | None = None
    shots: int | None = None
    draws: int = 1
    seed: int = 0
    learn_dataset: str | None = None
    learn_protocol: str | None = None

    def told(self) -> str:
        """For people."""
        few = f"{self.shots} clips a class of " if self.shots else ""
        elsewhere = ", ".join(one for one in (self.learn_dataset, self.learn_from) if one)
        other = f" ({elsewhere})" if elsewhere else ""
        often = f", {self.draws} draws" if self.shots else ""
        return f"learnt on {few}{self.train_part}{other}, scored on {self.part}{often}"

    def clips(self, source: Source, modality: str) -> tuple[Clips, Clips]:
        """Those that teach, all of them, and those that are scored.

        Raises:
            EvaluateError: If the two modalities' vectors cannot be compared.
        """
        from evaluate.transfer import by_name, elsewhere

        teacher, school = self.learn_from or modality, source
        if self.learn_dataset is not None:
            school = elsewhere(source, self.learn_dataset, self.learn_protocol)
            school.require_parts("a probe")
        apart = source.alignment is None and school.space(teacher) != source.space(modality)
        if apart and (teacher != modality or school is not source):
            raise EvaluateError(
                f"probe: raw {teacher} and {modality} features lie in different spaces, so no classifier can "
                "pass from one to the other; pass --checkpoint latest"
            )
        train, test = school.clips(teacher, self.train_part), source.clips(modality, self.part)
        if school is source:
            return train, test
        taught = ((school.dataset, item) for item in train.items)
        refuse_same_recordings("probe", source.bank, taught, source.dataset, test.items)
        return by_name(school, train, source, test)


def few(clips: Clips, shots: int, seed: int) -> Clips:
    """``shots`` labelled clips of each class, drawn; the same clips whichever modality they are read in."""
    rng, kept = np.random.default_rng(seed), []
    for label in np.unique(clips.labels[clips.labels >= 0]):
        rows = np.flatnonzero(clips.labels == label)
        names = np.sort(clips.items[rows].astype(str))
        kept += rng.permutation(names)[:shots].tolist()
    rows = np.flatnonzero(np.isin(clips.items.astype(str), kept))
    parts = {name: getattr(clips, name)[rows] for name in ("items", "labels", "subjects", "vectors")}
    return replace(clips, **parts)


@dataclass(frozen=True)
class Way:
    """How a classifier is fitted; see :func:`probe`."""

    solver: Literal["convex", "cmvra"] = "convex"
    schedule: Schedule = Schedule()  # noqa: RUF009 (frozen)
    balanced: bool = False
    device: str = "cpu"

    def told(self) -> str:
        """For people, what is not the default."""
        epochs = f" by {self.schedule.epochs} epochs of Adam" if self.solver == "cmvra" else ""
        return f"{epochs}{', classes balanced' if self.balanced else ''}"


def probe_modality(sources: Sequence[Source], modality: str, lesson: Lesson, way: Way = Way()) -> Outcome:
    """Probe one modality by each source (checkpoint) and draw, and average over them, clip by clip."""
    from evaluate.records import confusion_entry, percent, share

    classes = len(sources[0].label_names)
    probed, features = [], ""
    for source in sources:
        train, test = lesson.clips(source, modality)
        for draw in range(lesson.draws):
            taught = train if lesson.shots is None else few(train, lesson.shots, lesson.seed + draw)
            probed.append(probe_clips(taught, test, classes, lesson.seed, way, lesson.shots is not None))
        features = test.features
    hits, labels = np.stack([one.hits for one in probed]), probed[0].labels
    detail = {
        "modality": modality,
        "learn_from": lesson.learn_from or modality,
        "learn_dataset": lesson.learn_dataset,
        "shots": lesson.shots,
        "features": features,
        "chance": 1 / probed[0].classes,
        "solver": way.solver,
        "balanced": way.balanced or None,
        "epochs": way.schedule.epochs if way.solver == "cmvra" else None,
        "strength": [one.strength for one in probed],
        "epoch": [one.epoch for one in probed],
        "held_out_accuracy": [one.held_out for one in probed],
        "gap": [one.gap for one in probed],
        **provenance(sources),
    }
    total = share("accuracy", hits, detail)
    balanced = share("balanced_accuracy", hits, detail, labels)
    row = {
        "modality": modality,
        "features": features,
        "accuracy": percent(total),
        "balanced": percent(balanced),
        "chance": f"{100 / probed[0].classes:.1f}",
        "n": len(labels),
        **chosen(probed),
    }
    matrix = np.mean([one.confusion for one in probed], axis=0)
    shown = {key: detail[key] for key in ("modality", "features", *provenance(sources))}
    entry = confusion_entry(matrix, sources[0].label_names, accuracy=total.value, **shown)
    said = Predictions(detail, probed[0].items, labels, np.stack([one.guesses for one in probed]), hits)
    return Outcome([total, balanced], row, entry, said)


def chosen(probed: Sequence[Probed]) -> dict[str, str]:
    """What was chosen on held-out training clips, for the table: the strength or the epoch."""
    strengths = sorted({one.strength for one in probed if one.strength is not None})
    epochs = sorted({one.epoch for one in probed if one.epoch is not None})
    if epochs:
        return {"epoch": ", ".join(map(str, epochs))}
    return {"L2": ", ".join(f"{strength:g}" for strength in strengths)}


def probe_clips(
    train: Clips,
    test: Clips,
    classes: int,
    seed: int = 0,
    way: Way = Way(),
    by_label: bool = False,
) -> Probed:
    """Fit on ``train``, score on ``test``; clips without a label are left out.

    Args:
        train: Those that teach.
        test: Those that are scored.
        classes: C.
        seed: Of the folds, or of what CMVRA's protocol draws.
        way: How to fit.
        by_label: Hold out clips of each class instead of whole subjects to choose the strength (few clips).

    Raises:
        LeakageError: If a clip is on both sides.
        EvaluateError: If nothing is left to fit or score.
    """
    from evaluate.leakage import refuse_overlap
    from evaluate.logistic import TIE
    from evaluate.metrics import expected_confusion, sole_best, top_k_hits

    refuse_overlap("probe", train.items, test.items, "clips to score", "use parts that share none")
    known, scored = train.labels >= 0, test.labels >= 0
    if not known.any() or not scored.any():
        raise EvaluateError(
            f"probe: {train.modality} has {known.sum()} labelled clips to learn from and "
            f"{scored.sum()} to score; both are needed"
        )
    groups = train.subjects[known]
    several = not by_label and all(group is not None for group in groups) and len(set(groups)) > 1
    model, strength, epoch, held_out = _fitted(
        train.vectors[known], train.labels[known], groups.astype(str) if several else None, seed, way
    )
    scores, truth = model.scores(test.vectors[scored], classes), test.labels[scored]
    return Probed(
        test.items[scored],
        sole_best(scores, TIE),
        top_k_hits(scores, truth, tolerance=TIE),
        truth,
        expected_confusion(scores, truth, tolerance=TIE),
        strength,
        epoch,
        held_out,
        model.gap,
        len(model.classes),
    )


def _fitted(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, seed: int, way: Way
) -> "tuple[Logistic, float | None, int | None, float]":
    """Model, strength, epoch, and accuracy on what was held out to choose one of them."""
    from evaluate.adam import train_probe
    from evaluate.fusion import class_balance
    from evaluate.logistic import choose_strength, fit_logistic

    weights = class_balance(labels, int(labels.max()) + 1)[labels] if way.balanced else None
    if way.solver == "cmvra":
        trained = train_probe(features, labels, way.schedule, seed, weights)
        return trained.model, None, trained.epoch, trained.held_out
    strength, means = choose_strength(features, labels, groups, seed=seed, device=way.device, weights=weights)
    return fit_logistic(features, labels, strength, way.device, weights), strength, None, means[strength]
