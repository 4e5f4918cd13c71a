"""What the UTD-MHAD table compares: for each part, which methods answer which tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from evaluate.metrics import top_k_hits
from evaluate.readout import Readout, read_out, standardised
from evaluate.utd_mhad_data import CLASSES, SCORED, TEACH, Half, Split
from evaluate.utd_mhad_heads import HEADS, NAMED, PAIRS, Embedded
from evaluate.utd_mhad_scores import BASELINE, Scores

if TYPE_CHECKING:
    from evaluate.fusion import Joined
    from store.bank import Bank

PROBE = "probe"
RAW_LATE, RAW_LEARNT, RAW_CONCAT = "probes, late", "probes, learnt weights", "probe of all, concatenated"
BEST_SINGLE, BEST_RAW = "best single probe", "best raw fusion"
BY_NAMES, BY_CLASSIFIERS = "aligned, by names", "aligned, named, classifiers"
BY_PAIRS = "aligned, pairs, classifiers"
SHOTS = (1, 2, 4)  # clips a class; all eight: the actions' table
NEIGHBOURS = 5  # CMVRA's
TRANSFERS = (("skeleton", "inertial"), ("inertial", "skeleton"))
FUSED = ("skeleton", "inertial")  # the pair of the first table
CHANCE = 1 / CLASSES
PUBLISHED = (
    "published (Chen, Jafari, Kehtarnavaz 2015; all eight subjects, ours are four of them): "
    "inertial 67.2, depth + inertial 79.1"
)


@dataclass
class Material:
    """All that the tables of one half are made from.

    Attributes:
        bank: The bank.
        half: Who teaches, who is scored.
        data: Modality -> its clips.
        aligned: Method -> an alignment's embeddings a seed.
    """

    bank: "Bank"
    half: Half
    data: dict[str, Split]
    aligned: Mapping[str, Sequence[Embedded]]

    @cached_property
    def probes(self) -> dict[str, Readout]:
        """Modality -> a logistic classifier's answers by the stored features."""
        return {name: taught(split, *split.stored(), "logistic") for name, split in self.data.items()}

    def read(self, found: Embedded) -> dict[str, np.ndarray]:
        """Modality -> (m, C) scores of a ridge classifier on its embeddings."""
        rows = {name: found.rows[name] for name in self.data}
        return {name: taught(self.data[name], *sides, "none").scores for name, sides in rows.items()}

    def named(self, found: Embedded) -> dict[str, np.ndarray]:
        """Modality -> (m, C) logits by the action names alone."""
        return {name: found.class_scores(name) for name in self.data}

    @property
    def together(self) -> list[Split]:
        """All modalities' clips, which must be the same ones.

        Raises:
            EvaluateError: If they are not.
        """
        first, *others = self.data.values()
        for other in others:
            first.same_clips(other.selections)
        return [first, *others]


def taught(split: Split, train: np.ndarray, test: np.ndarray, per: str, classifier: str = "ridge") -> Readout:
    """A classifier taught by a half's teaching clips, asked about the others."""
    return read_out(train, split.train_labels, split.groups, test, CLASSES, per, classifier)


def actions(material: Material, scores: Scores) -> None:
    """Each modality's actions, and retrieval: the baseline, the probe, aligned with names and on pairs."""
    data = material.data
    answers = _baseline(material)
    scores.classified(BASELINE, data, answers, FUSED)
    if all(name in answers for name in FUSED):
        scores.search(BASELINE, "inertial", "skeleton", data, answers)
    scores.classified(PROBE, data, {name: one.scores for name, one in material.probes.items()}, FUSED)
    for method in (NAMED, PAIRS):
        for found in material.aligned[method]:
            rows = {name: found.rows[name][SCORED] for name in data}
            scores.classified(method, data, material.read(found), FUSED)
            scores.search(method, "inertial", "skeleton", data, rows)
            if found.texts is not None:
                for name, split in data.items():
                    scores.search_text(method, name, found.texts, rows[name], split.test_labels)


def _baseline(material: Material) -> dict[str, np.ndarray]:
    """Ridge classifiers on resampled raw sequences."""
    from evaluate.baseline import BASELINES, PER, STEPS

    answers = {}
    for name, sequence in BASELINES.items():
        split = material.data[name]
        pair = material.half.select(material.bank, name, "raw", split.encoder)
        split.same_clips(pair)
        train, test = (sequence(one.materialise(f"resample:{STEPS}")) for one in pair)
        answers[name] = taught(split, train, test, PER).scores
    return answers


def heads(material: Material, scores: Scores) -> None:
    """Each modality's actions by embeddings of different heads; the recipe's own are the last column."""
    scores.classified(PROBE, material.data, {name: one.scores for name, one in material.probes.items()})
    for method in (*HEADS, NAMED):
        for found in material.aligned[method]:
            scores.classified(method, material.data, material.read(found))


def fusion(material: Material, scores: Scores) -> None:
    """Every subset of modalities that is present, fused.

    Raw late fusion weighs the probes' log-probabilities alike, or by weights learnt on held-out teaching
    groups. The best raw fusion, and the best single probe, are chosen by what they score on the very clips
    that are scored, which favours them.
    """
    from evaluate.fusion import BESIDE, subsets

    names, labels = subsets(list(material.data)), material.together[0].test_labels
    raw = {one: _raw_fusions(material, one, labels) for one in names}
    single = max((each[RAW_LATE] for one, each in raw.items() if len(one) == 1), key=np.mean)
    best = max((hits for each in raw.values() for hits in each.values()), key=np.mean)
    for one, each in raw.items():
        for method, hits in {BEST_SINGLE: single, BEST_RAW: best, **each}.items():
            scores.add(BESIDE.join(one), method, hits, CHANCE)
    for method, aligned in ((BY_PAIRS, PAIRS), (BY_CLASSIFIERS, NAMED), (BY_NAMES, NAMED)):
        by_names = method == BY_NAMES
        for found in material.aligned[aligned]:
            answers = joined(material, SCORED, material.named(found) if by_names else material.read(found))
            for one in names:
                scores.add(BESIDE.join(one), method, _hits(answers, one, labels), CHANCE)


def _raw_fusions(material: Material, names: Sequence[str], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Method -> (m,) hits of these modalities' stored features."""
    asked = joined(material, SCORED, {name: one.scores for name, one in material.probes.items()})
    held = joined(material, TEACH, {name: one.held_out_scores for name, one in material.probes.items()})
    return {
        RAW_LATE: _hits(asked, names, labels),
        RAW_LEARNT: _hits(asked, names, labels, held),
        RAW_CONCAT: top_k_hits(concatenated(material, names).scores, labels),
    }


def concatenated(material: Material, names: Sequence[str]) -> Readout:
    """One logistic classifier of the stored features side by side, each modality's rows of one mean size."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in names:
        train, test = standardised(*material.data[name].stored())
        size = np.sqrt(((train - train.mean(axis=0)) ** 2).sum(axis=1).mean())
        for side, rows in zip(sides, (train, test), strict=True):
            side.append(rows / size)
    first = material.data[names[0]]
    return taught(first, np.concatenate(sides[0], 1), np.concatenate(sides[1], 1), "none", "logistic")


def joined(material: Material, side: int, answers: Mapping[str, np.ndarray]) -> "Joined":
    """Class scores of several modalities as log-probabilities side by side, in the order of the clips."""
    from scipy.special import log_softmax

    from evaluate.fusion import Joined

    first = material.together[0].selections[side]
    vectors = {name: log_softmax(one, axis=1).astype(np.float32) for name, one in answers.items()}
    present = np.ones((len(first), len(vectors)), bool)
    columns = (first.items, first.labels, first.column("subject"))
    return Joined(*columns, vectors, present, "log-probabilities")


def _hits(
    asked: "Joined", names: Sequence[str], labels: np.ndarray, held: "Joined | None" = None
) -> np.ndarray:
    """(m,) of late fusion of these modalities: equal weights, or learnt on clips held out."""
    from evaluate.fusion_linear import Late

    late = Late("equal" if held is None else "learnt")
    late.fit((held or asked).only(names), CLASSES)
    return top_k_hits(late.scores(asked.only(names)), labels)


def shots(material: Material, scores: Scores) -> None:
    """A few labelled clips a class: stored features against embeddings that were aligned without labels."""
    labels = material.together[0].test_labels
    for seed, found in enumerate(material.aligned[PAIRS]):
        inputs = {
            PROBE: {name: (*split.stored(), "logistic") for name, split in material.data.items()},
            PAIRS: {name: (*found.rows[name], "none", "ridge") for name in material.data},
        }
        for count in SHOTS:
            for method, each in inputs.items():
                answers = {
                    name: _taught_by_few(material.data[name], count, seed, *own) for name, own in each.items()
                }
                for name, one in answers.items():
                    scores.add(f"{name}, {_clips(count)}", method, top_k_hits(one, labels), CHANCE)
                fused = _hits(joined(material, SCORED, answers), list(answers), labels)
                scores.add(f"all, {_clips(count)}", method, fused, CHANCE)


def _taught_by_few(
    split: Split, count: int, seed: int, train: np.ndarray, test: np.ndarray, per: str, classifier: str
) -> np.ndarray:
    """(m, C) scores of a classifier that saw ``count`` clips of each class."""
    drawn, places = _few(split.train_labels, count, seed)
    labels = split.train_labels[drawn]
    return read_out(train[drawn], labels, places, test, CLASSES, per, classifier).scores


def _clips(count: int) -> str:
    return f"{count} clip" + "s" * (count > 1)


def _few(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``count`` clips of each class, drawn, and which of its class's each is (to be held out)."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in range(CLASSES)]
    return np.concatenate(drawn), np.concatenate([np.arange(len(rows)) for rows in drawn])


def transfer(material: Material, scores: Scores) -> None:
    """A classifier learnt on one modality's embeddings, asked about another's; and nearest neighbours."""
    from evaluate.knn import vote

    data = material.data
    for name, split in data.items():
        rows = standardised(*split.stored())
        found = vote(split.clips(TEACH, rows[0]), split.clips(SCORED, rows[1]), NEIGHBOURS, CLASSES)
        scores.add(f"{name}, {NEIGHBOURS} neighbours", PROBE, found.top_1, CHANCE)
    for method in (NAMED, PAIRS):
        for one in material.aligned[method]:
            for name, split in data.items():
                known, asked = (split.clips(side, one.rows[name][side]) for side in (TEACH, SCORED))
                hits = vote(known, asked, NEIGHBOURS, CLASSES).top_1
                scores.add(f"{name}, {NEIGHBOURS} neighbours", method, hits, CHANCE)
            for teacher, asked_of in TRANSFERS:
                if teacher in data and asked_of in data:
                    rows = one.rows[teacher][TEACH], one.rows[asked_of][SCORED]
                    own = taught(data[teacher], *rows, "none").scores
                    hits = top_k_hits(own, data[asked_of].test_labels)
                    scores.add(f"learnt on {teacher}, asked {asked_of}", method, hits, CHANCE)


@dataclass(frozen=True)
class Table:
    """One of the tables.

    Attributes:
        title: For people.
        fill: Makes a half's scores.
        needs: Methods whose alignments it reads.
        rivals: Methods to which the others' differences are printed.
        note: Printed below.
    """

    title: str
    fill: Callable[[Material, Scores], None]
    needs: tuple[str, ...]
    rivals: tuple[str, ...]
    note: str = ""


TABLES = {
    "actions": Table("Actions and retrieval", actions, (NAMED, PAIRS), (BASELINE, PROBE)),
    "heads": Table("Heads", heads, (*HEADS, NAMED), (PROBE, "linear", "linear, in order")),
    "fusion": Table("Fusion", fusion, (NAMED, PAIRS), (BEST_SINGLE, RAW_LATE, RAW_CONCAT), PUBLISHED),
    "shots": Table("Few labelled clips", shots, (PAIRS,), (PROBE,)),
    "transfer": Table("Neighbours, and classifiers that change modality", transfer, (NAMED, PAIRS), (PROBE,)),
}
