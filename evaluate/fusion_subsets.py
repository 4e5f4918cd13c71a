"""A fitted fusion on every subset of the modalities, over checkpoints and seeds, beside its rivals."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.classification import Classified, Outcome, outcome
from evaluate.fusion import BESIDE, Fusion, Joined, make_fusion, subsets
from evaluate.fusion_sides import Sides, coverage, raw_source, sides_of
from evaluate.provenance import provenance
from evaluate.source import EvaluateError, Source

if TYPE_CHECKING:
    from evaluate.fuse import Plan
    from evaluate.records import Score

RAW_LATE, RAW_CONCAT, RAW_BEST = "raw-late", "raw-concat", "raw-best"
RIVALS = (RAW_LATE, RAW_CONCAT, RAW_BEST)
OVERFIT = (
    "learnt on embeddings of the checkpoint's (or an encoder's) own training clips, which are better than "
    "those of new clips; --cross-fit 5 trains the checkpoint again and learns on clips left out"
)


@dataclass
class Task:
    """What is fused; loads on first use, so that errors are in the run's record.

    Attributes:
        sources: One a checkpoint.
        asked: Modalities with commas; None: all that there are.
        plan: How.
        rivals: Names of ``RIVALS``.
        rival_options: Of their late fusion.
    """

    sources: Sequence[Source]
    asked: str | None
    plan: "Plan"
    rivals: Sequence[str] = ()
    rival_options: Mapping[str, Any] = field(default_factory=dict)
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
        if not self.sides[0].train.fresh and (method != "late" or options.get("weights") == "learnt"):
            print(f"{method}: {OVERFIT}", file=sys.stderr)
        tests = [sides.test for sides in self.sides for _ in range(len(fitted) // len(self.sides))]
        decided = fitted[0].told()  # asked for scores, late fusion has more to tell
        label = {"fusion": self.plan.label(method), "fitted": decided}
        made = [self._outcome(method, names, fitted, tests, label) for names in subsets(self.modalities)]
        print(f"{method}: {fitted[0].told()}", file=sys.stderr)
        return made

    def _sides(self, source: Source) -> Sides:
        from evaluate.cross_fit import by_texts, cross_fitted

        if self.plan.cross_fit:
            return Sides(*cross_fitted(source, self.modalities, self.plan))
        sides = sides_of(source, self.modalities, self.plan.train_part, self.plan.part)
        return by_texts(source, sides) if self.plan.evidence else sides

    def _fitted(self, method: str, options: Mapping[str, Any], train: Joined, seed: int) -> Fusion:
        fusion = make_fusion(method, options)
        fusion.fit(train, self.classes, seed, self.plan.balanced)
        return fusion

    def _outcome(
        self,
        method: str,
        names: Sequence[str],
        fitted: Sequence[Fusion],
        tests: Sequence[Joined],
        label: Mapping[str, str],
    ) -> Outcome:
        """One subset over all checkpoints and seeds, with the differences to the rivals."""
        clips = [test.only(names) for test in tests]
        found = [classified(fusion.scores(one), one) for fusion, one in zip(fitted, clips, strict=True)]
        first = clips[0]
        lacking = int((first.present.sum(axis=1) < len(names)).sum())
        shown = {"method": method, "present": BESIDE.join(names)}
        detail = {
            "modality": shown["present"],
            **label,
            **provenance(self.sources),
            "features": "; ".join(first.features[name] for name in names),
            "chance": 1 / len(np.unique(self.sides[0].train.labels)),
            "incomplete": lacking,
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
        """The rival's hits with these modalities; those that are one classifier are fitted to them alone."""
        if (rival, names) not in self._rival_hits:
            if rival == RAW_BEST:
                alone = [self._rival(RAW_LATE, (name,)) for name in names]
                found = max(alone, key=lambda one: one.hits.mean())
            else:
                late = rival == RAW_LATE
                clips = self.raw.test.only(names) if late else self.raw.test.among(names)
                fusion = self._raw_late if late else self._raw_concat(names)
                hits = classified(fusion.scores(clips), clips).top_1
                found = Hits(clips.items, hits[None], BESIDE.join(names))
            self._rival_hits[rival, names] = found
        return self._rival_hits[rival, names]

    def _raw_concat(self, names: Sequence[str]) -> Fusion:
        return self._fitted("concat", {}, self.raw.train.among(names), self.plan.seed)

    @cached_property
    def _raw_late(self) -> Fusion:
        return self._fitted("late", self.rival_options, self.raw.train, self.plan.seed)


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
