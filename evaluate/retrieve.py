"""`python -m evaluate retrieve`: find clips of one modality by another, or by text, through FAISS."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.metrics import RECALL_AT, Ranks, chance_ranks, retrieval_metrics
from evaluate.sides import By
from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from evaluate.records import Score
    from evaluate.relevance import Relevance, SameKey
    from evaluate.sides import Side

SHOWN_RESULTS = 6  # per example in the report
EXAMPLES = 6  # per direction


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


def retrieve(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    query: str | None = None,
    gallery: str | None = None,
    by: By = "clip",
    checkpoint: str | None = None,
    part: str = "test",
    prompt_set: str | None = None,
    other_clips_only: bool = False,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
    index: str = "flat",
) -> int:
    """Rank the clips (or texts) of a part for each query, and say how high the first right one stands.

    Prints and records R@1/5/10, MedR and MeanR with fair ties, for every direction between the modalities.

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject; `none`: all clips.
        query: Modalities that ask, with commas, `text` included; None: all.
        gallery: Modalities that are searched; None: all.
        by: `clip`: right is the same clip (or its captions); `label`: anything of the same class.
        checkpoint: run:<id>, a directory or `latest` (several with commas are averaged). None: raw features,
            which are comparable within a modality and within an encoder's joint space.
        part: Part to search.
        prompt_set: Which class texts stand for `text` with `--by label`; None: all.
        other_clips_only: With `--by label`, do not count the query's own clip in another modality.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K, auto.
        index: Name in evaluate.INDEXES.
    """
    asked = resolved(**locals())
    from evaluate.records import EXAMPLES_FILE, print_saved, print_table, write_file

    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    asked |= {"dataset": first.dataset, "protocol": first.protocol}
    galleries = [load_sides(source, query, gallery, by, part, prompt_set) for source in sources]
    captions = first.captions(clip_items(galleries[0])) if by == "clip" else {}
    pairs = directions(first, galleries[0], query, gallery, by)
    rows, examples = [], []
    with first.bank.record_run("evaluate retrieve", asked) as run:
        for one, other in pairs:
            print(f"searching {other} by {one}", file=sys.stderr)
            searches = [
                search(sides[one], sides[other], by, captions, other_clips_only) for sides in galleries
            ]
            scores, row, shown = outcome(sources, searches, by, index)
            for score in scores:
                score.record(run, "retrieve")
            rows.append(row)
            examples += shown
        write_file(run, EXAMPLES_FILE, examples)
        run.used(*(selection for source in sources for selection in source.used))
    print(heading(first, by, part))
    print_table(rows)
    print_saved(sources)
    return 0


def load_sides(
    source: Source, query: str | None, gallery: str | None, by: By, part: str, prompt_set: str | None
) -> "dict[str, Side]":
    """Modality -> side, for all that ask or are searched; ``text`` only where it has vectors and texts."""
    from evaluate.sides import caption_side, clip_side, label_side

    named = {name.strip() for given in (query, gallery) if given for name in given.split(",")}
    everything = source.modalities() if query is None or gallery is None else []
    media = sorted((named | set(everything)) - {TEXT})
    sides = {name: clip_side(source, name, part) for name in media}
    if TEXT not in named and not (everything and _has_text(source, by)):
        return sides
    if by == "label":
        sides[TEXT] = label_side(source, prompt_set)
        return sides
    captions = source.captions(clip_items(sides) or all_clips(source, part))
    if not captions:
        raise EvaluateError(
            f"{source.dataset}: no captions to search by clip; use --by label for class texts"
        )
    sides[TEXT] = caption_side(source, captions)
    return sides


def clip_items(sides: "Mapping[str, Side]") -> list[str]:
    """The clips of all media sides."""
    return sorted({item for name, side in sides.items() if name != TEXT for item in side.items})


def all_clips(source: Source, part: str) -> list[str]:
    """The clips of a part, with or without features."""
    from evaluate.source import part_clips

    return part_clips(source, part).column("clip_id").to_pylist()


def directions(
    source: Source, sides: "Mapping[str, Side]", query: str | None, gallery: str | None, by: By
) -> list[tuple[str, str]]:
    """(asks, is searched) pairs: those that were named, or all that have a meaning.

    Raises:
        EvaluateError: If two named modalities cannot be compared, or no pair is left.
    """
    asks = _named(query) or list(sides)
    searched = _named(gallery) or list(sides)
    pairs, reasons, both_named = [], [], query is not None and gallery is not None
    for pair in ((one, other) for one in asks for other in searched):
        reason = _meaningless(source, sides, pair, by)
        pairs += [] if reason else [pair]
        reasons += [f"{pair[0]} to {pair[1]}: {reason}"] if reason else []
        if reason and both_named and pair[0] != pair[1]:
            raise EvaluateError(f"retrieve: {reasons[-1]}")
    if not pairs:
        raise EvaluateError(f"retrieve: {reasons[0]}")
    return pairs


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


def outcome(
    sources: Sequence[Source], searches: Sequence[Search], by: By, index: str = "flat"
) -> "tuple[list[Score], dict[str, Any], list[dict[str, Any]]]":
    """One direction over all checkpoints -> scores to record, a row to print, examples to show."""
    from evaluate.examples import examples
    from evaluate.index import make_index, ranked
    from evaluate.records import percent

    ranks, one = [], searches[0]
    if any(each.queries.items != one.queries.items for each in searches):
        raise EvaluateError("retrieve: these checkpoints embed different clips; evaluate them one by one")
    for each in searches:
        found = make_index(index, each.gallery.vectors)
        ranks.append(ranked(found, each.queries.vectors, each.relevant, each.excluded))
    detail = {
        "query": one.queries.modality,
        "gallery": one.gallery.modality,
        "by": by,
        "source": " ".join(source.name for source in sources),
        "features": f"{one.queries.features} -> {one.gallery.features}",
        "gallery_size": len(one.gallery),
        "unanswered": one.unanswered,
        "supervision": sources[0].supervision,
    }
    chance = retrieval_metrics(one.chance())
    scores = _scores(ranks, chance, detail)
    values = {score.name: score for score in scores}
    row: dict[str, Any] = {"query": one.queries.modality, "gallery": one.gallery.modality}
    row |= {name: percent(values[name]) for name in (f"R@{k}" for k in RECALL_AT)}
    row |= {name: f"{values[name].value:.1f}" for name in ("MedR", "MeanR")}
    row |= {"chance R@1": f"{chance['R@1'] * 100:.1f}", "n": len(one.queries), "of": len(one.gallery)}
    again, places = make_index(index, one.gallery.vectors), ranks[0].expected()
    shown = examples(one, places, again, EXAMPLES, SHOWN_RESULTS, sources[0].label_names)
    return scores, row, [{**detail, **entry, "dataset": sources[0].dataset} for entry in shown]


def heading(source: Source, by: By, part: str) -> str:
    """What the table below it shows."""
    where = (
        f"{source.dataset}, {source.protocol} {part}" if source.protocol else f"{source.dataset}, all clips"
    )
    told = (
        f"; the checkpoint was supervised by {' and '.join(source.supervision)}" if source.supervision else ""
    )
    return f"{where}; right = same {by}; {source.name}{told}; R@k in percent [95 %]\n"


def _scores(ranks: Sequence[Ranks], chance: Mapping[str, float], detail: Mapping[str, Any]) -> "list[Score]":
    """Averages over checkpoints, query by query; the median over queries is averaged as it is."""
    from evaluate.intervals import bootstrap_interval
    from evaluate.records import Score, share

    scores = []
    for k in RECALL_AT:
        hits = np.stack([one.within(k) for one in ranks])
        scores.append(share(f"R@{k}", hits, {**detail, "chance": chance[f"R@{k}"]}))
    for name, part, middle in (("MedR", "median", np.median), ("MeanR", "expected", np.mean)):
        places = np.stack([getattr(one, part)() for one in ranks])
        each = [float(middle(row)) for row in places]
        low, high = bootstrap_interval(places.mean(0), middle)
        told = {**detail, "chance": chance[name], "each": each}
        scores.append(Score(name, float(np.mean(each)), places.shape[1], low, high, told))
    return scores


def _has_text(source: Source, by: By) -> bool:
    """Whether ``text`` takes part without being named: it has a head, and the dataset has such texts."""
    if source.alignment is not None and TEXT not in source.alignment.modalities:
        return False
    if source.alignment is None:
        from align.recipe import covered

        if TEXT not in covered(source.bank, source.dataset):
            return False
    table = "captions" if by == "clip" else "label_texts"
    query = f"SELECT count(*) AS n FROM {table} WHERE dataset = ?"
    return bool(source.bank.sql(query, [source.dataset])["n"][0].as_py())


def _named(given: str | None) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()] if given else []


def _meaningless(source: Source, sides: "Mapping[str, Side]", pair: tuple[str, str], by: By) -> str | None:
    """Why a direction cannot be searched; None if it can."""
    one, other = pair
    if one == other and (by == "clip" or one == TEXT):
        return (
            "a clip always finds itself; use --by label" if one != TEXT else "texts are not searched by texts"
        )
    if source.alignment is None and one != other and not _joint(source, one, other):
        names = ",".join(sorted({*pair}))
        return (
            "raw features of different spaces cannot be compared; pass --checkpoint latest after "
            f"`python -m align --modalities {names} --bank {source.bank.path}`"
        )
    return None


def _joint(source: Source, one: str, other: str) -> bool:
    """Whether raw features of two modalities lie in one encoder's joint space."""
    spaces = {selection.modality: selection.space_digest for selection in source.used}
    return spaces.get(one) is not None and spaces.get(one) == spaces.get(other)
