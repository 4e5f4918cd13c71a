"""`python -m evaluate fuse`: classify clips by several modalities together, and by every subset of them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate import FUSIONS
from evaluate.classification import Classified, Outcome, outcome, record_and_print
from evaluate.fusion import BESIDE, Fusion, Joined, make_fusion, subsets
from evaluate.fusion_sides import Sides, coverage, raw_source, sides_of
from evaluate.provenance import provenance
from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.errors import UnknownNameError

if TYPE_CHECKING:
    from evaluate.records import Score

RAW_LATE, RAW_BEST = "raw-late", "raw-best"
RIVALS = (RAW_LATE, RAW_BEST)
OVERFIT = (
    "learnt on embeddings of the checkpoint's own training clips, which are better than those of new clips; "
    "--cross-fit 5 learns on clips left out"
)


def fuse(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    methods: str = "late",
    options: dict[str, dict[str, Any]] | None = None,
    cross_fit: int = 0,
    evidence: str = "probe",
    against: str | None = None,
    balanced: bool = False,
    seeds: int = 1,
    train_part: str = "train",
    part: str = "test",
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
    seed: int = 0,
) -> int:
    """Classify clips by several modalities together; a row for every subset of modalities that is PRESENT.

    Clips that lack a modality take part, in training and in the test, with what they have. A row scores the
    clips that have one of its modalities at least, and says how many of those lack some.

    Examples:
      python -m evaluate fuse                                      raw features, late fusion
      python -m evaluate fuse --methods late,attention,cmvra --seeds 3
      python -m evaluate fuse --checkpoint latest --cross-fit 5 --against raw-late,raw-best

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject.
        modalities: With commas; None: all that have features (and, with a checkpoint, a head).
        checkpoint: run:<id>, a directory or `latest` (several with commas are averaged): fuse its aligned
            embeddings. None: raw features.
        methods: With commas: late (weighted log-probabilities of a linear classifier a modality), concat (one
            linear classifier of all vectors), mean (one of the mean embedding; with a checkpoint), attention
            (a network in which absent modalities are masked), cmvra (the original's network).
        options: Method -> its options (see its class), e.g. '{"attention": {"epochs": 30}}'.
        cross_fit: Embeddings of a checkpoint's own training clips are better than those of new clips will be,
            so that what fusion learns on them misleads. With K > 1 the alignment is trained K times more,
            each time without some of the subjects (or clips), and fusion learns on the class scores of the
            clips left out. 0: not; late fusion with a checkpoint then has equal weights.
        evidence: With --cross-fit, what class scores, with commas: probe (a linear classifier of the
            embeddings), texts (cosines to the classes' texts), raw (a linear classifier of raw features).
        against: Rivals with commas: raw-late (late fusion of raw features), raw-best (the raw single modality
            of the subset that scores best on the clips to score, which favours it). Prints differences.
        balanced: Weigh the training clips so that each class counts alike (for imbalanced data).
        seeds: How often networks are trained: seed, seed + 1, ...
        train_part: Part to learn from.
        part: Part to score, once.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K (order in time kept), auto.
        seed: Of folds and networks.
    """
    asked = resolved(**locals())
    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    first.require_parts("fuse")
    plan = Plan(train_part, part, cross_fit, listed(evidence), balanced, seeds, seed)
    rivals = listed(against or "")
    plan.check(first, rivals)
    task = Task(sources, modalities, plan, rivals)
    chosen = choose(listed(methods), options or {})
    record_and_print(
        "fuse",
        sources,
        asked,
        lambda: list(chosen),
        "fusing by",
        lambda name: task.outcomes(name, chosen[name]),
        f"{first.dataset}, {first.protocol}: learnt on {train_part}, scored on {part}, by what is PRESENT",
    )
    return 0


def listed(names: str) -> list[str]:
    """``a, b`` -> its parts."""
    return [name.strip() for name in names.split(",") if name.strip()]


def choose(methods: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Method -> its options; wrong ones are refused before anything is read.

    Raises:
        EvaluateError, UnknownNameError, OptionError: Saying what is accepted.
    """
    if not methods or set(options) - set(methods):
        raise EvaluateError(
            f"fuse: --methods {','.join(methods)!r}, --options for {', '.join(options) or 'none'}; accepted: "
            f"some of {', '.join(FUSIONS)}, and options for these"
        )
    for name in methods:
        make_fusion(name, options.get(name, {}))
    return {name: options.get(name, {}) for name in methods}


@dataclass(frozen=True)
class Plan:
    """How everything is learnt and scored; see :func:`fuse`."""

    train_part: str = "train"
    part: str = "test"
    cross_fit: int = 0
    evidence: Sequence[str] = ("probe",)
    balanced: bool = False
    seeds: int = 1
    seed: int = 0

    def check(self, source: Source, rivals: Sequence[str]) -> None:
        """Refuse what cannot be.

        Raises:
            EvaluateError, UnknownNameError: Saying what is accepted.
        """
        from evaluate.cross_fit import EVIDENCE

        if self.seeds < 1 or self.cross_fit < 0 or self.cross_fit == 1:
            raise EvaluateError(
                f"fuse: --seeds {self.seeds}, --cross-fit {self.cross_fit}; accepted: 1 seed or more, and 0 "
                "(not), 2 or more folds"
            )
        if self.cross_fit and source.alignment is None:
            raise EvaluateError("fuse: --cross-fit needs --checkpoint: raw features were not trained")
        for option, given, known in (
            ("--evidence", self.evidence, EVIDENCE),
            ("--against", rivals, RIVALS),
        ):
            for name in given:
                if name not in known:
                    raise UnknownNameError(option, option.strip("-"), name, sorted(known))

    def label(self, method: str) -> str:
        """The method and what else makes its numbers others: ``late, cross-fit 5 (probe)``."""
        fitted = f"cross-fit {self.cross_fit} ({'+'.join(self.evidence)})" if self.cross_fit else ""
        return ", ".join(part for part in (method, fitted, "balanced" if self.balanced else "") if part)


@dataclass
class Task:
    """What is fused; loads on first use, so that errors are in the run's record.

    Attributes:
        sources: One a checkpoint.
        asked: Modalities with commas; None: all that there are.
        plan: How.
        rivals: Names of ``RIVALS``.
    """

    sources: Sequence[Source]
    asked: str | None
    plan: Plan
    rivals: Sequence[str] = ()
    _rival_hits: dict[tuple[str, tuple[str, ...]], "Hits"] = field(default_factory=dict)

    @cached_property
    def modalities(self) -> list[str]:
        """Those to fuse.

        Raises:
            EvaluateError: If they are fewer than two.
        """
        names = self.sources[0].modalities(self.asked)
        if len(names) < 2:
            raise EvaluateError(
                f"fuse: {', '.join(names)} alone; fusion takes two modalities or more "
                "(python -m evaluate probe scores one)"
            )
        return names

    @cached_property
    def sides(self) -> list[Sides]:
        """Of each source."""
        found = [self._sides(source) for source in self.sources]
        taught, asked = coverage(found[0].train), coverage(found[0].test)
        print(f"learning from {taught}; to score: {asked}", file=sys.stderr)
        return found

    @cached_property
    def raw(self) -> Sides:
        """The rivals' features: those that the checkpoint's heads read, as they are stored."""
        raw = raw_source(self.sources[0], self.modalities)
        return sides_of(raw, self.modalities, self.plan.train_part, self.plan.part)

    @cached_property
    def classes(self) -> int:
        """C."""
        return len(self.sources[0].label_names)

    def outcomes(self, method: str, options: Mapping[str, Any]) -> list[Outcome]:
        """A method's outcomes, all modalities last."""
        fitted = [
            self._fitted(method, options, sides.train, self.plan.seed + number)
            for sides in self.sides
            for number in range(self.plan.seeds if make_fusion(method, options).seeded else 1)
        ]
        tests = [sides.test for sides in self.sides for _ in range(len(fitted) // len(self.sides))]
        made = [self._outcome(method, names, fitted, tests) for names in subsets(self.modalities)]
        print(f"{method}: {fitted[0].told()}", file=sys.stderr)
        return made

    def _sides(self, source: Source) -> Sides:
        from evaluate.cross_fit import cross_fitted

        if not self.plan.cross_fit:
            return sides_of(source, self.modalities, self.plan.train_part, self.plan.part)
        return Sides(*cross_fitted(source, self.modalities, self.plan))

    def _fitted(self, method: str, options: Mapping[str, Any], train: Joined, seed: int) -> Fusion:
        fusion = make_fusion(method, options)
        fusion.fit(train, self.classes, seed, self.plan.balanced)
        if not train.fresh:
            print(f"{method}: {OVERFIT}", file=sys.stderr)
        return fusion

    def _outcome(
        self, method: str, names: Sequence[str], fitted: Sequence[Fusion], tests: Sequence[Joined]
    ) -> Outcome:
        """One subset over all checkpoints and seeds, with the differences to the rivals."""
        clips = [test.only(names) for test in tests]
        found = [classified(fusion.scores(one), one) for fusion, one in zip(fitted, clips, strict=True)]
        first = clips[0]
        lacking = int((first.present.sum(axis=1) < len(names)).sum())
        shown = {"method": method, "present": BESIDE.join(names)}
        detail = {
            "modality": shown["present"],
            "fusion": self.plan.label(method),
            **provenance(self.sources),
            "features": first.features,
            "chance": 1 / len(np.unique(self.sides[0].train.labels)),
            "incomplete": lacking,
            "fitted": fitted[0].told(),
        }
        made = outcome(found, self.sources[0].label_names, detail, shown)
        own = Hits(first.items, np.stack([one.top_1 for one in found]))
        gains = [self._gain(rival, names, own, detail) for rival in self.rivals]
        row = {key: value for key, value in made.row.items() if key not in ("top 5", "chance", "n")}
        row |= {f"over {rival}": points(gain) for rival, gain in zip(self.rivals, gains, strict=True)}
        row |= {"chance": made.row["chance"], "n": made.row["n"], "incomplete": lacking}
        return replace(made, scores=[*made.scores, *gains], row=row)

    def _gain(self, rival: str, names: Sequence[str], own: "Hits", detail: Mapping[str, Any]) -> "Score":
        """How much better than the rival, in accuracy, paired by clip."""
        from evaluate.records import Score
        from evaluate.statistics import paired_bootstrap

        other = self._rival(rival, tuple(names))
        _, mine, theirs = np.intersect1d(own.items.astype(str), other.items.astype(str), return_indices=True)
        if not len(mine):
            raise EvaluateError(f"fuse: --against {rival}: it scores none of the same clips")
        gain = paired_bootstrap(own.hits[:, mine], other.hits[:, theirs])
        told = {**detail, "against": rival, "rival": other.name}
        return Score(f"over_{rival}", gain.value, len(mine), gain.low, gain.high, told)

    def _rival(self, rival: str, names: tuple[str, ...]) -> "Hits":
        if (rival, names) not in self._rival_hits:
            if rival == RAW_LATE or len(names) == 1:
                clips = self.raw.test.only(names)
                hits = classified(self._raw_late.scores(clips), clips).top_1
                found = Hits(clips.items, hits[None], BESIDE.join(names))
            else:
                found = max((self._rival(rival, (name,)) for name in names), key=lambda one: one.hits.mean())
            self._rival_hits[rival, names] = found
        return self._rival_hits[rival, names]

    @cached_property
    def _raw_late(self) -> Fusion:
        return self._fitted("late", {}, self.raw.train, self.plan.seed)


@dataclass(frozen=True)
class Hits:
    """(S, n) hits of n clips, a row a checkpoint and seed."""

    items: np.ndarray
    hits: np.ndarray
    name: str = ""


def classified(scores: np.ndarray, clips: Joined) -> Classified:
    """Scores (n, C) of labelled clips -> hits, ties fairly."""
    from evaluate.logistic import TIE
    from evaluate.metrics import expected_confusion, sole_best, top_k_hits

    labels = clips.labels
    top_1, top_5 = (top_k_hits(scores, labels, k, TIE) for k in (1, 5))
    confusion = expected_confusion(scores, labels, TIE)
    return Classified(clips.items, labels, sole_best(scores, TIE), top_1, top_5, confusion)


def points(gain: "Score") -> str:
    """``+1.4 [-2.8, 6.0]``: percentage points."""
    assert gain.low is not None and gain.high is not None
    return f"{100 * gain.value:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
