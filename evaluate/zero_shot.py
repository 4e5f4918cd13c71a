"""`python -m evaluate zero-shot`: classify clips by the texts of the classes, with no classifier trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evaluate.classification import Classified, Outcome, outcome, record_and_print
from evaluate.provenance import provenance
from evaluate.source import AUTO, Clips, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

ALL_SETS = "all sets"  # the average over the prompt sets


@dataclass(frozen=True)
class Prompts:
    """One vector a class out of the texts of one prompt set.

    Attributes:
        name: The prompt set, or ``all sets``.
        classes: (K,) labels that have a text, ascending.
        vectors: (K, E) unit rows.
    """

    name: str
    classes: np.ndarray
    vectors: np.ndarray

    def among(self, labels: Sequence[int]) -> "Prompts":
        """Only these classes."""
        kept = np.isin(self.classes, labels)
        return Prompts(self.name, self.classes[kept], self.vectors[kept])


def zero_shot(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    part: str = "test",
    prompt_set: str | None = None,
    classes: Literal["all", "part"] = "all",
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
) -> int:
    """Give each clip the class whose texts lie nearest, and count how often that is right.

    A class is the mean of its texts' unit vectors; several prompt sets are scored one by one and averaged.
    Without a checkpoint this needs an encoder whose clips and texts share one space (CLIP). Where the part
    has clips of classes that the checkpoint's training saw and of others, the accuracies of both (means over
    classes) and their harmonic mean are given, too.

    Examples:
      python -m evaluate zero-shot --checkpoint latest
      python -m evaluate zero-shot --protocol zs0 --classes part --checkpoint RUN    ten unseen classes
      python -m evaluate pooled --command zero-shot --protocols zs0,zs1,zs2          their mean

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject; `none`: all clips.
        modalities: With commas; None: all that can be.
        checkpoint: run:<id>, a directory or `latest` (several with commas are averaged) that aligned text.
        part: Part to score.
        prompt_set: Score only this one; None: each, and their average.
        classes: Between which to choose: `all` of the dataset's, or those that the `part` has (its unseen
            ones, in a zero-shot protocol such as Drive&Act's zs0).
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
    """
    asked = resolved(**locals())
    from evaluate.unseen import seen_of_both

    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, AUTO)
    first = sources[0]
    sets = [prompts(source, prompt_set) for source in sources]
    there = part_classes(first, part)
    if classes == "part" and not there:
        raise EvaluateError(
            f"zero-shot: --classes part, but {first.protocol or 'no protocol'} {part} has no labelled clip; "
            "use --classes all"
        )
    if classes == "part":
        sets = [[one.among(there) for one in several] for several in sets]
    seen = seen_of_both(sources, there)

    def outcomes(modality: str) -> list[Outcome]:
        clips = [source.clips(modality, part) for source in sources]
        several = [list(one) for one in zip(*sets, strict=True)]
        return [classified(sources, clips, one, classes, seen) for one in several]

    record_and_print(
        "zero-shot",
        sources,
        asked,
        lambda: scorable(first, modalities),
        "classifying",
        outcomes,
        f"{first.place(part)}; nearest class text",
    )
    return 0


def prompts(source: Source, prompt_set: str | None = None) -> list[Prompts]:
    """The classes' vectors by each prompt set, and last by their average if there are several.

    Raises:
        EvaluateError: If the dataset has no such texts; lists the prompt sets that it has.
    """
    from evaluate.index import unit

    sets = source.label_texts()
    if not sets or (prompt_set is not None and prompt_set not in sets):
        raise EvaluateError(
            f"{source.dataset}: no class texts{f' in prompt set {prompt_set!r}' if prompt_set else ''}; "
            f"there are the prompt sets: {', '.join(sets) or 'none (its adapter gives them)'}"
        )
    chosen = {name: pairs for name, pairs in sets.items() if prompt_set in (None, name)}
    texts = sorted({text for pairs in chosen.values() for _, text in pairs})
    vectors = dict(zip(texts, unit(source.texts(texts)), strict=True))
    single = [class_means(name, pairs, vectors) for name, pairs in chosen.items()]
    if len(single) == 1:
        return single
    every = [(label, row) for one in single for label, row in zip(one.classes, one.vectors, strict=True)]
    return [*single, averaged(ALL_SETS, every)]


def part_classes(source: Source, part: str) -> list[int]:
    """The labels of a part's clips, ascending; none without a protocol."""
    query = """
        SELECT DISTINCT label FROM splits JOIN clips USING (dataset, clip_id)
        WHERE dataset = ? AND protocol = ? AND part = ? AND label >= 0 ORDER BY label
    """
    found: list[int] = source.bank.sql(query, [source.dataset, source.protocol, part])["label"].to_pylist()
    return found


def class_means(name: str, pairs: Sequence[tuple[int, str]], vectors: Mapping[str, np.ndarray]) -> Prompts:
    """One prompt set: (label, text) pairs and the texts' unit vectors -> a unit vector a class."""
    return averaged(name, [(label, vectors[text]) for label, text in pairs])


def averaged(name: str, rows: Sequence[tuple[int, np.ndarray]]) -> Prompts:
    """(label, vector) rows -> the unit mean of each label's vectors."""
    from evaluate.index import unit

    classes = sorted({int(label) for label, _ in rows})
    means = [np.mean([row for label, row in rows if label == one], axis=0) for one in classes]
    return Prompts(name, np.array(classes, np.int64), unit(np.stack(means)))


def scorable(source: Source, asked: str | None) -> list[str]:
    """The modalities whose vectors can be compared with texts.

    Raises:
        EvaluateError: If there is none, with the command that makes some.
    """
    if source.alignment is not None:
        return source.modalities(asked)
    space = source.space(TEXT)
    names = source.modalities(asked)
    joint = [name for name in names if source.space(name) == space]
    if not joint or (asked is not None and len(joint) < len(names)):
        wrong = next((name for name in names if name not in joint), "no modality")
        raise EvaluateError(
            f"zero-shot: raw {wrong} features and text features lie in different spaces; pass --checkpoint "
            f"latest after `python -m align --modalities {wrong},{TEXT} --bank {source.bank.path}`"
        )
    return joint


def classified(
    sources: Sequence[Source],
    clips: Sequence[Clips],
    sets: Sequence[Prompts],
    among: str = "all",
    seen: frozenset[int] = frozenset(),
) -> Outcome:
    """One modality and prompt set over all checkpoints.

    Args:
        sources: One a checkpoint.
        clips: Of each.
        sets: Of each.
        among: Which classes the prompts are of, for the catalog.
        seen: Labels that training saw; empty: the clips' classes are all alike in that.
    """
    from evaluate.records import percent
    from evaluate.unseen import COLUMNS, apart

    names, classes = sources[0].label_names, len(sets[0].classes)
    found = [classify(one, prompt, len(names)) for one, prompt in zip(clips, sets, strict=True)]
    detail = {
        "modality": clips[0].modality,
        "prompt_set": sets[0].name,
        "classes": among,
        "features": clips[0].features,
        "chance": 1 / classes,
        **provenance(sources),
    }
    made = outcome(found, names, detail, {"modality": clips[0].modality, "prompts": sets[0].name})
    row = {**made.row, "classes": classes}
    extra = apart(made.predictions.hits, made.predictions.labels, seen, detail)
    told = dict(zip(COLUMNS, map(percent, extra), strict=False))
    row |= {name: told.get(name, "") for name in COLUMNS} if seen else {}
    return replace(made, scores=[*made.scores, *extra], row=row)


def classify(clips: Clips, prompts: Prompts, classes: int) -> Classified:
    """Compare clips with the classes' vectors; clips of classes without a text are wrong.

    Raises:
        EvaluateError: If no clip has a label.
    """
    from evaluate.index import TOLERANCE, unit
    from evaluate.metrics import expected_confusion, sole_best, top_k_hits

    rows = np.flatnonzero(clips.labels >= 0)
    if not len(rows):
        raise EvaluateError(f"zero-shot: none of {len(clips)} {clips.modality} clips has a label")
    labels = clips.labels[rows]
    known = unit(clips.vectors[rows]) @ prompts.vectors.T
    scores = np.repeat(known.min(axis=1, keepdims=True) - 1, classes, axis=1)
    scores[:, prompts.classes] = known
    named = np.isin(labels, prompts.classes)
    top_1, top_5 = (top_k_hits(scores, labels, k, TOLERANCE) * named for k in (1, 5))
    confusion = expected_confusion(scores, labels, TOLERANCE)
    return Classified(clips.items[rows], labels, sole_best(scores, TOLERANCE), top_1, top_5, confusion)
