"""One direction of a retrieval: who asks whom, what is right, and how high the first right answer stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.metrics import RECALL_AT, Ranks, chance_ranks, first_relevant, retrieval_metrics
from evaluate.provenance import provenance
from evaluate.sides import By
from evaluate.source import EvaluateError, Source

if TYPE_CHECKING:
    from evaluate.records import Score
    from evaluate.relevance import Relevance, SameKey
    from evaluate.sides import Side

SHOWN_RESULTS = 6  # per example in the report
EXAMPLES = 6  # per direction
CHUNK_VALUES = 8_000_000  # scores of which mAP is computed at a time
MOST_RESCORED = 200_000_000  # scores of all queries with all items that are in memory at a time


@dataclass(frozen=True)
class Options:
    """How a direction is scored; see :func:`evaluate.retrieve.retrieve`.

    Attributes:
        complete: Queries of the whole benchmark: those that are not there count as misses; None: left out.
    """

    by: By = "clip"
    index: str = "flat"
    complete: int | None = None
    convention: str = "expected"
    rescore: str | None = None
    average: str | None = None


@dataclass(frozen=True)
class Outcome:
    """One direction over all checkpoints.

    Attributes:
        scores: To record.
        row: To print.
        other: The same by the other convention.
        examples: To show in the report.
    """

    scores: "list[Score]"
    row: dict[str, Any]
    other: dict[str, Any]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Search:
    """One direction, one checkpoint: who asks whom, and what is right.

    Attributes:
        queries: Those that have an answer.
        gallery: What is searched.
        relevant: Between the two.
        excluded: Items that do not take part.
        unanswered: Queries left out because nothing in the gallery answers them.
    """

    queries: "Side"
    gallery: "Side"
    relevant: "Relevance"
    excluded: "SameKey"
    unanswered: int

    def chance(self) -> Ranks:
        """What a collapsed model would get."""
        out = self.excluded.counts()
        return chance_ranks(len(self.gallery) - out, self.relevant.counts() - out)


def search(
    queries: "Side", gallery: "Side", by: By, captions: Mapping[str, Sequence[str]], other_clips_only: bool
) -> Search:
    """What is searched in one direction, without the queries that nothing answers.

    Raises:
        EvaluateError: If no query is left.
    """
    from evaluate.sides import answers

    if by == "label":
        gallery = gallery.keep(np.flatnonzero(gallery.labels >= 0))
    relevant, excluded = answers(queries, gallery, by, captions, other_clips_only)
    answered = np.flatnonzero(relevant.counts() - excluded.counts() > 0)
    if not len(answered) and queries.modality == gallery.modality:
        raise EvaluateError(
            f"retrieve: no two of {len(queries)} {queries.modality} clips have one label, so none can be "
            "found by another; `python -m evaluate search CLIP --like` shows which resemble each other"
        )
    if not len(answered):
        raise EvaluateError(
            f"retrieve: nothing among {len(gallery)} of {gallery.modality} answers any of {len(queries)} of "
            f"{queries.modality} by {by}; check --part, or use --by {'label' if by == 'clip' else 'clip'}"
        )
    return Search(
        queries.keep(answered),
        gallery,
        relevant.take(answered),
        excluded.take(answered),
        len(queries) - len(answered),
    )


def outcome(sources: Sequence[Source], searches: Sequence[Search], options: Options) -> Outcome:
    """One direction over all checkpoints.

    Raises:
        EvaluateError: If the checkpoints embed different clips, or there is too much to rescore.
    """
    from evaluate.conventions import CONVENTIONS
    from evaluate.examples import examples
    from evaluate.index import index_class, make_index

    one = searches[0]
    if any(each.queries.items != one.queries.items for each in searches):
        raise EvaluateError("retrieve: these checkpoints embed different clips; evaluate them one by one")
    ranks = [rank(each, options) for each in searches]
    detail = {
        "query": one.queries.modality,
        "gallery": one.gallery.modality,
        "by": options.by,
        "features": f"{one.queries.features} -> {one.gallery.features}",
        "gallery_size": len(one.gallery),
        "unanswered": one.unanswered,
        **provenance(sources),
    }
    if options.average:
        detail["average"] = options.average
    if options.index != "flat":
        detail["index"] = options.index
    if options.rescore:
        detail["transductive"] = options.rescore
    chance = retrieval_metrics(one.chance())
    lost = max(0, (options.complete or 0) - len(one.queries))
    scores = _scores(ranks, chance, detail | ({"missing": lost} if lost else {}), lost)
    if options.by == "label" and index_class(options.index).exact and options.rescore is None:
        scores += _graded(searches, detail)
    by_convention = [CONVENTIONS[options.convention](each, RECALL_AT) for each in ranks]
    means = {name: float(np.mean([each[name] for each in by_convention])) for name in by_convention[0]}
    if options.convention != "expected":
        told = detail | {"convention": options.convention}
        scores += _by_convention(means, len(one.queries), lost, chance, told)
    again, places = make_index(options.index, one.gallery.vectors), ranks[0].expected()
    shown = examples(one, places, again, EXAMPLES, SHOWN_RESULTS, sources[0].label_names)
    return Outcome(
        scores,
        _row(one, {score.name: score for score in scores if "convention" not in score.detail}, chance, lost),
        {"query": one.queries.modality, "gallery": one.gallery.modality}
        | {name: _shown(name, value, len(one.queries), lost) for name, value in means.items()},
        [{**detail, **entry, "dataset": sources[0].dataset} for entry in shown],
    )


def rank(search: Search, options: Options) -> Ranks:
    """Where each query's first right answer stands, by the index or in rescored scores."""
    from evaluate.index import TOLERANCE, make_index, ranked
    from evaluate.rescoring import RESCORINGS

    if options.rescore is None:
        index = make_index(options.index, search.gallery.vectors)
        return ranked(index, search.queries.vectors, search.relevant, search.excluded)
    cells = len(search.queries) * len(search.gallery)
    if cells > MOST_RESCORED:
        raise EvaluateError(
            f"retrieve: --rescore needs all {cells:,} scores at once; at most {MOST_RESCORED:,} are held"
        )
    scores = RESCORINGS[options.rescore](search.queries.vectors @ search.gallery.vectors.T)
    queries = np.arange(len(search.queries))
    items = np.broadcast_to(np.arange(len(search.gallery)), scores.shape)
    right, out = search.relevant(queries, items), search.excluded(queries, items)
    scores[out] = scores.min() - 1
    return first_relevant(scores, right & ~out, TOLERANCE)


def graded(search: Search, collapsed: bool = False) -> dict[str, np.ndarray]:
    """``mAP`` and ``nDCG`` of each query, (Q,) each, where many items are right; or a collapsed model's."""
    from evaluate.graded import average_precision, ndcg
    from evaluate.index import TOLERANCE

    found: dict[str, list[np.ndarray]] = {"mAP": [], "nDCG": []}
    step = max(1, CHUNK_VALUES // len(search.gallery))
    for at in range(0, len(search.queries), step):
        rows = np.arange(at, min(at + step, len(search.queries)))
        scores = search.queries.vectors[rows] @ search.gallery.vectors.T
        items = np.broadcast_to(np.arange(len(search.gallery)), scores.shape)
        out = search.excluded(rows, items)
        scores = np.where(out, -2.0, 0.0 if collapsed else scores)  # below any cosine: after the last
        right = search.relevant(rows, items) & ~out
        found["mAP"].append(average_precision(scores, right, TOLERANCE))
        found["nDCG"].append(ndcg(scores, right, tolerance=TOLERANCE))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _graded(searches: Sequence[Search], detail: Mapping[str, Any]) -> "list[Score]":
    """Averages over checkpoints, query by query."""
    from evaluate.intervals import bootstrap_interval
    from evaluate.records import Score

    chance, all_found = graded(searches[0], collapsed=True), [graded(each) for each in searches]
    scores = []
    for name, one in chance.items():
        values = np.stack([found[name] for found in all_found])
        low, high = bootstrap_interval(values.mean(0), np.mean)
        told = {**detail, "chance": float(one.mean()), "each": values.mean(1).tolist()}
        scores.append(Score(name, float(values.mean()), values.shape[1], low, high, told))
    return scores


def _row(
    one: Search, values: "Mapping[str, Score]", chance: Mapping[str, float], lost: int
) -> dict[str, Any]:
    from evaluate.records import percent

    row: dict[str, Any] = {"query": one.queries.modality, "gallery": one.gallery.modality}
    row |= {name: percent(values[name]) for name in (f"R@{k}" for k in RECALL_AT)}
    row |= {name: f"{values[name].value:.1f}" for name in ("MedR", "MeanR")}
    row |= {name: percent(values[name]) for name in ("mAP", "nDCG") if name in values}
    row |= {"chance R@1": f"{chance['R@1'] * 100:.1f}", "n": len(one.queries) + lost, "of": len(one.gallery)}
    return row


def _shown(name: str, value: float, found: int, lost: int) -> str:
    return f"{value * 100 * found / (found + lost):.1f}" if name.startswith("R@") else f"{value:.1f}"


def _by_convention(
    means: Mapping[str, float], found: int, lost: int, chance: Mapping[str, float], detail: Mapping[str, Any]
) -> "list[Score]":
    from evaluate.conventions import count_missing
    from evaluate.records import Score

    values = count_missing(dict(means), found, found + lost)
    return [
        Score(name, value, found + lost, detail={**detail, "chance": chance[name]})
        for name, value in values.items()
    ]


def _scores(
    ranks: Sequence[Ranks], chance: Mapping[str, float], detail: Mapping[str, Any], lost: int
) -> "list[Score]":
    """Averages over checkpoints, query by query; the median over queries is averaged as it is.

    ``lost`` queries more count as misses in R@k; MedR and MeanR are those of the others.
    """
    from evaluate.intervals import bootstrap_interval
    from evaluate.records import Score, share

    scores = []
    for k in RECALL_AT:
        hits = np.pad(np.stack([one.within(k) for one in ranks]), ((0, 0), (0, lost)))
        scores.append(share(f"R@{k}", hits, {**detail, "chance": chance[f"R@{k}"]}))
    for name, part, middle in (("MedR", "median", np.median), ("MeanR", "expected", np.mean)):
        places = np.stack([getattr(one, part)() for one in ranks])
        each = [float(middle(row)) for row in places]
        low, high = bootstrap_interval(places.mean(0), middle)
        told = {**detail, "chance": chance[name], "each": each}
        scores.append(Score(name, float(np.mean(each)), places.shape[1], low, high, told))
    return scores
