"""`python -m evaluate fuse`: classify clips by several modalities together, and by every subset of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate import FUSIONS
from evaluate.classification import record_and_print
from evaluate.fusion import make_fusion
from evaluate.fusion_subsets import RIVALS, Task
from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.errors import UnknownNameError

TEXTS_ALONE = "texts"  # the evidence that needs no cross-fitting


def fuse(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    methods: str = "late",
    options: dict[str, dict[str, Any]] | None = None,
    cross_fit: int = 0,
    evidence: str | None = None,
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
      python -m evaluate fuse --checkpoint latest --evidence texts --against raw-late,raw-best
      python -m evaluate fuse --checkpoint latest --cross-fit 5 --methods late,attention

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
            clips left out. 0: not; late fusion with a checkpoint then has equal weights, as it has where
            there are not two training subjects to hold one out.
        evidence: Class scores to fuse instead of vectors: `texts`, cosines to the classes' texts, which need
            no classifier (where text was aligned, or raw features and texts share a space). With --cross-fit
            also, with commas, probe (a linear classifier of the embeddings; what None stands for there) and
            raw (one of raw features).
        against: Rivals with commas, of which differences are printed: raw-late (late fusion of raw features,
            with the options of late), raw-concat (one linear classifier of the subset's raw features side by
            side), raw-best (the subset's single modality that scores best on the clips to score, which
            favours it).
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
    plan = Plan(train_part, part, cross_fit, listed(evidence or ""), balanced, seeds, seed)
    rivals = listed(against or "")
    plan.check(first, rivals)
    chosen = choose(listed(methods), options or {})
    task = Task(sources, modalities, plan, rivals, chosen.get("late", {}))
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
    evidence: Sequence[str] = ()
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
        asked = [("--evidence", "evidence", name, EVIDENCE) for name in self.evidence]
        for option, kind, name, known in [*asked, *(("--against", "rival", one, RIVALS) for one in rivals)]:
            if name not in known:
                raise UnknownNameError(option, kind, name, sorted(known))
        if not self.cross_fit and set(self.evidence) - {TEXTS_ALONE}:
            raise EvaluateError(
                f"fuse: --evidence {','.join(self.evidence)} needs --cross-fit 5; accepted without: texts"
            )

    def label(self, method: str) -> str:
        """The method and what else makes its numbers others: ``late, cross-fit 5 of probe``."""
        of = "+".join(self.evidence)
        fitted = f"cross-fit {self.cross_fit} of {of or 'probe'}" if self.cross_fit else of and f"of {of}"
        return ", ".join(part for part in (method, fitted, "balanced" if self.balanced else "") if part)
