"""`python -m evaluate geometry`: how embeddings lie, within each modality and between them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.leakage import guard
from evaluate.source import Clips, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from evaluate.records import Score
    from evaluate.statistics import Interval
    from evaluate.zero_shot import Prompts

GEOMETRY_FILE = "geometry.json"
RATIO_EDGES = np.linspace(0.0, 2.0, 81)


@dataclass
class Found:
    """What was found of a modality or of a pair: to record, to print, to draw.

    Attributes:
        detail: Of all its scores.
        scores: Numbers with n and interval.
        row: To print.
        histograms: Name -> counts over the edges that the report knows.
    """

    detail: dict[str, Any]
    row: dict[str, Any]
    scores: "list[Score]" = field(default_factory=list)
    histograms: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, n: int, value: "Interval | float", column: str = "", **more: Any) -> None:
        """A number: into the catalog, and under ``column`` into the table."""
        from evaluate.records import Score

        one = value if isinstance(value, float) else value.value
        low, high = (None, None) if isinstance(value, float) else (value.low, value.high)
        self.scores.append(Score(name, one, n, low, high, {**self.detail, **more}))
        if column:
            self.row[column] = f"{one:.3f}"

    def entry(self) -> dict[str, Any]:
        """For the report: the detail, ``scores`` (name -> value, low, high, n, chance) and histograms."""
        scores = {
            one.name: [one.value, one.low, one.high, one.n, one.detail.get("chance")] for one in self.scores
        }
        return {**self.detail, "scores": scores, "histograms": self.histograms}


def geometry(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    part: str = "test",
    prompt_set: str | None = None,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = "mean",
) -> int:
    """Measure the modality gap, alignment, uniformity, effective rank, and how classes lie to each other.

    Of each modality: uniformity (log mean Gaussian potential of pairs, t = 2; Wang and Isola 2020), effective
    rank, cosine distances to clips of the same and of other classes, the norm of the classes' covariances,
    and with class texts the distances to the own and to other texts and their ratio (CMVRA's embedding
    statistics). Of each pair of modalities in one space, text included: the modality gap (Liang et al. 2022),
    what it would be by chance, its share of the squared distances, alignment (mean squared distance of a
    clip's two vectors), and the distances of class centres and covariances. All vectors have length 1.

    The class texts are each class's mean over its prompts, and stand for its clips in the pairs with text.
    The catalog has each number with its n and interval; the report draws gaps and histograms.

    Examples:
      python -m evaluate geometry                               each modality's stored features
      python -m evaluate geometry --checkpoint latest           the aligned space, with all pairs

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject; `none`: all clips.
        modalities: With commas; None: all that have features (and, with a checkpoint, a head).
        checkpoint: run:<id>, a directory or `latest`: its aligned embeddings. None: stored features.
        part: Part to look at; where training saw some of it, the table and the report say so.
        prompt_set: Class texts of this prompt set only; None: the mean over all.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Stored features to one vector a clip: mean, cls, resample:K (order in time kept), auto.
    """
    asked = resolved(**locals())
    from evaluate.provenance import provenance, told
    from evaluate.records import print_saved, print_table, write_file

    sources = open_sources(bank, dataset, protocol, checkpoint, None, encoders, fields, pool)
    if len(sources) > 1:
        raise EvaluateError(f"geometry: {len(sources)} checkpoints; one at a time is accepted")
    source, names = sources[0], sources[0].modalities(modalities)
    shared = {**provenance(sources), "part": part, "seen_in_training": seen_in_training(source, part)}
    config = {**asked, "dataset": source.dataset, "protocol": source.protocol}
    with source.bank.record_run("evaluate geometry", config) as run:
        clips = {name: unit_clips(source, name, part) for name in names}
        texts = class_texts(source, names, prompt_set)
        single, double = [], []
        for name in names:
            print(f"measuring {name}", file=sys.stderr)
            single.append(of_modality(clips[name], texts.get(name), shared))
        for one, other in comparable(source, names):
            double.append(of_pair(clips[one], clips[other], shared))
        for name, prompts in texts.items():
            double.append(of_pair(clips[name], as_clips(clips[name], prompts), shared))
        for found in (*single, *double):
            for score in found.scores:
                score.record(run, "geometry")
        write_file(run, GEOMETRY_FILE, [found.entry() for found in (*single, *double)])
        run.used(*source.used)
    seen = "; training saw some of these clips" if shared["seen_in_training"] else ""
    print(f"{source.place(part)}; {told(sources)}{seen}\n")
    print_table(filled([one.row for one in single]))
    if double:
        print()
        print_table(filled([one.row for one in double]))
    print_saved(sources)
    return 0


def filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that are empty in all of them."""
    return [{key: row[key] for key in row if any(each[key] != "" for each in rows)} for row in rows]


def seen_in_training(source: Source, part: str) -> bool:
    """Whether the checkpoint was trained on some of the part's clips (or subjects, where they matter)."""
    from evaluate.leakage import LeakageError

    try:
        guard(source, part)
    except LeakageError:
        return True
    return False


def unit_clips(source: Source, modality: str, part: str) -> Clips:
    """A part's clips as unit vectors."""
    from dataclasses import replace

    from evaluate.index import unit

    found = source.clips(modality, part)
    if len(found) < 2:
        raise EvaluateError(f"geometry: {len(found)} {modality} clips in {source.place(part)}; 2 are needed")
    return replace(found, vectors=unit(found.vectors))


def comparable(source: Source, names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of modalities whose vectors lie in one space: all that are aligned, else by space digest."""
    from itertools import combinations

    spaces = {name: "aligned" if source.alignment else source.space(name) for name in names}
    return [(one, other) for one, other in combinations(names, 2) if spaces[one] == spaces[other]]


def class_texts(source: Source, names: Sequence[str], prompt_set: str | None) -> "dict[str, Prompts]":
    """Modality -> the classes' vectors, of the modalities that can be compared with texts; may be empty."""
    from evaluate.zero_shot import prompts

    sets = source.label_texts()
    if prompt_set is None and (not sets or not _text_is_near(source)):
        return {}
    near = [name for name in names if source.alignment or source.space(name) == source.space(TEXT)]
    return dict.fromkeys(near, prompts(source, prompt_set)[-1]) if near else {}


def _text_is_near(source: Source) -> bool:
    """Whether text was aligned; of raw features, whether any text is stored."""
    from align.recipe import covered

    if source.alignment is not None:
        return TEXT in source.alignment.modalities
    return TEXT in covered(source.bank, source.dataset)


def as_clips(clips: Clips, prompts: "Prompts") -> Clips:
    """The clips whose class has a text, each as the vector of that text."""
    rows = np.flatnonzero(np.isin(clips.labels, prompts.classes))
    vectors = prompts.vectors[np.searchsorted(prompts.classes, clips.labels[rows])]
    items, labels, subjects = clips.items[rows], clips.labels[rows], clips.subjects[rows]
    return Clips(TEXT, items, labels, subjects, vectors, f"class texts {prompts.name}")


def of_modality(clips: Clips, prompts: "Prompts | None", shared: Mapping[str, Any]) -> Found:
    """One modality."""
    from evaluate.class_statistics import class_distances, covariance_distance
    from evaluate.spread import effective_rank, pairs

    x, labels, n = clips.vectors, clips.labels, len(clips)
    detail = {**shared, "modality": clips.modality, "features": clips.features, "dims": x.shape[1]}
    found = Found(detail, {"modality": clips.modality, "n": n})
    among = pairs(x, labels)
    found.add("uniformity", n, among.uniformity, "uniformity")
    rank = effective_rank(x)
    found.add("effective_rank", n, rank)
    found.row["effective rank"] = f"{rank:.1f} of {x.shape[1]}"
    same, other = class_distances(x, labels)
    for name, values in (("same_class_distance", same), ("other_class_distance", other)):
        _add_mean(
            found, name, values[np.isfinite(values)], name.replace("_", " ").replace(" distance", ""), 2
        )
    norms = [covariance_distance(x[labels == label]) for label in _of_two(labels)]
    _add_mean(found, "covariance_norm", np.array(norms), "class covariance")
    found.histograms = {"same class": among.same.tolist(), "other classes": among.other.tolist()}
    if prompts is not None:
        _to_texts(found, clips, prompts)
    else:
        found.row |= dict.fromkeys(("own text", "other texts", "ratio"), "")
    return found


def _to_texts(found: Found, clips: Clips, prompts: "Prompts") -> None:
    from evaluate.class_statistics import text_distances
    from evaluate.spread import EDGES

    near = text_distances(clips.vectors, clips.labels, prompts.classes, prompts.vectors)
    _add_mean(found, "own_text_distance", near.own, "own text", prompt_set=prompts.name)
    others = near.others.mean(axis=1)
    _add_mean(found, "other_text_distance", others, "other texts", prompt_set=prompts.name)
    _add_mean(found, "text_ratio", near.ratio, "ratio", prompt_set=prompts.name, chance=1.0)
    found.histograms |= {
        "own text": np.histogram(near.own, EDGES)[0].tolist(),
        "other texts": np.histogram(near.others, EDGES)[0].tolist(),
        "ratio": np.histogram(np.minimum(near.ratio, RATIO_EDGES[-1]), RATIO_EDGES)[0].tolist(),
    }


def of_pair(one: Clips, other: Clips, shared: Mapping[str, Any]) -> Found:
    """Two modalities in one space, over the clips that have both.

    Raises:
        EvaluateError: If no clip has both.
    """
    from evaluate.class_statistics import centre_distances, centres, covariance_distance
    from evaluate.modality_gap import alignment, gap

    _, here, there = np.intersect1d(one.items, other.items, return_indices=True)
    name = f"{one.modality} – {other.modality}"
    if not len(here):
        raise EvaluateError(f"geometry: no clip has both {one.modality} and {other.modality}; leave one out")
    x, y, labels = one.vectors[here], other.vectors[there], one.labels[here]
    detail = {**shared, "pair": name, "features": f"{one.features}, {other.features}"}
    found = Found(detail, {"pair": name, "n": len(here)})
    apart = gap(x, y)
    found.add("gap", len(here), apart.distance, "gap", chance=apart.chance)
    found.row["by chance"] = f"{apart.chance:.3f}"
    found.add("gap_share", len(here), apart.share, "share")
    found.add("alignment", len(here), alignment(x, y), "alignment")
    straight, cosine = centre_distances(centres(x, labels), centres(y, labels))
    _add_mean(found, "centre_distance", straight, "class centres")
    _add_mean(found, "centre_cosine_distance", cosine, "their cosine")
    spreads = [covariance_distance(x[labels == each], y[labels == each]) for each in _of_two(labels)]
    _add_mean(found, "covariance_distance", np.array(spreads), "class covariances")
    return found


def _of_two(labels: np.ndarray) -> list[int]:
    """The classes that have two clips or more."""
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    return [int(label) for label, count in zip(found, counts, strict=True) if count > 1]


def _add_mean(found: Found, name: str, values: np.ndarray, column: str, order: int = 1, **more: Any) -> None:
    """The mean of values of clips (or classes) with its interval; an empty cell where there is none.

    Args:
        found: Where to.
        name: Of the metric.
        values: (n,).
        column: Of the table.
        order: 2: the values are means over pairs of clips, on which each clip bears twice.
        **more: Detail.
    """
    from evaluate.modality_gap import by_influence

    if not len(values):
        found.row[column] = ""
        return
    mean = float(np.mean(values, dtype=np.float64))
    found.add(name, len(values), by_influence(mean, order * (values - mean), -np.inf, np.inf), column, **more)
