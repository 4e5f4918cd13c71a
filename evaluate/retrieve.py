"""`python -m evaluate retrieve`: find clips of one modality by another, or by text, through FAISS."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from evaluate.provenance import told
from evaluate.sides import By
from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from evaluate.sides import Side


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
    caption_source: str | None = None,
    other_clips_only: bool = False,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
    index: str = "flat",
    missing: Literal["leave-out", "miss"] = "leave-out",
    convention: Literal["expected", "multi-sk", "optimistic", "clip-vip", "avlnet"] = "expected",
    rescore: Literal["dual-softmax", "inverted-softmax"] | None = None,
    average: str | None = None,
) -> int:
    """Rank the clips (or texts) of a part for each query, and say how high the first right one stands.

    Prints and records R@1/5/10/50, MedR and MeanR (with --by label also mAP and nDCG) with fair ties, for
    every direction between the modalities.

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
        caption_source: Whose captions stand for `text` with `--by clip`, by the name in the table `captions`;
            None: those that the dataset's protocol counts, never generated ones.
        other_clips_only: With `--by label`, do not count the query's own clip in another modality.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K, auto.
        index: Name in evaluate.INDEXES; an approximate one is labelled wherever it shows.
        missing: Queries whose clip has no features: leave them out, or count each as a `miss` in R@k, as the
            benchmarks with lost videos do (MSR-VTT: 968 of 1,000 clips have sound). For `--by clip`.
        convention: How another codebase counts ties, beside ours (the expectation over their orders).
        rescore: TRANSDUCTIVE: scores made anew out of all queries' scores; labelled so wherever it shows.
        average: Clips with the same value of this column or attribute (`video`) count as one, their mean.
    """
    asked = resolved(**locals())
    from evaluate.ranking import Options, outcome, search
    from evaluate.records import EXAMPLES_FILE, print_saved, print_table, write_file
    from evaluate.videos import averaged, captions_of, videos_of

    if missing == "miss" and by != "clip":
        raise EvaluateError(
            f"retrieve: --missing miss counts lost clips, but right is the same {by}; use --by clip"
        )
    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    asked |= {"dataset": first.dataset, "protocol": first.protocol}
    galleries = [
        load_sides(source, query, gallery, by, part, prompt_set, caption_source) for source in sources
    ]
    captions = first.captions(clip_items(galleries[0]), part, caption_source) if by == "clip" else {}
    videos = videos_of(first, average) if average else None
    if videos is not None:
        captions = captions_of(captions, videos)
        galleries = [
            {name: side if name == TEXT else averaged(side, videos) for name, side in sides.items()}
            for sides in galleries
        ]
    pairs = directions(first, galleries[0], query, gallery, by)
    rows, examples, others = [], [], []
    with first.bank.record_run("evaluate retrieve", asked) as run:
        for one, other in pairs:
            print(f"searching {other} by {one}", file=sys.stderr)
            searches = [
                search(sides[one], sides[other], by, captions, other_clips_only) for sides in galleries
            ]
            complete = None
            if missing == "miss":
                complete = complete_queries(first, one, part, caption_source, videos)
            found = outcome(sources, searches, Options(by, index, complete, convention, rescore, average))
            for score in found.scores:
                score.record(run, "retrieve")
            rows.append(found.row)
            others.append(found.other)
            examples += found.examples
        write_file(run, EXAMPLES_FILE, examples)
        run.used(*(selection for source in sources for selection in source.used))
    print(heading(sources, by, part, rescore, index))
    print_table(rows)
    if convention != "expected":
        print(f"\nthe same, ties counted as {convention} does\n")
        print_table(others)
    print_saved(sources)
    return 0


def load_sides(
    source: Source,
    query: str | None,
    gallery: str | None,
    by: By,
    part: str,
    prompt_set: str | None,
    caption_source: str | None = None,
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
    captions = source.captions(clip_items(sides) or all_clips(source, part), part, caption_source)
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
    from evaluate.leakage import part_clips

    return part_clips(source, part).column("clip_id").to_pylist()


def complete_queries(
    source: Source,
    modality: str,
    part: str,
    caption_source: str | None = None,
    videos: Mapping[str, str] | None = None,
) -> int:
    """How many queries a modality would have if no clip (or video, of clips averaged) were lost."""
    clips = all_clips(source, part)
    if modality != TEXT:
        return len({videos[clip] for clip in clips}) if videos else len(clips)
    return len(
        {text for several in source.captions(clips, part, caption_source).values() for text in several}
    )


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


def heading(
    sources: Sequence[Source], by: By, part: str, rescore: str | None = None, index: str = "flat"
) -> str:
    """What the table below it shows."""
    from evaluate.index import index_class

    seen = f"; TRANSDUCTIVE: {rescore} over all queries" if rescore else ""
    seen += "" if index_class(index).exact else f"; APPROXIMATE: by {index}, what it does not find is last"
    place = sources[0].place(part)
    return f"{place}; right = same {by}; {told(sources)}{seen}; R@k in percent [95 %]\n"


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
