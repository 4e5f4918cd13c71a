"""`python -m evaluate search "somebody waves"`: the clips that fit a typed sentence, or another clip."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from evaluate.shelves import Shelf
    from store.bank import Bank


THUMBNAIL = "thumbnail"
COLUMNS = ("place", "score", "clip", "class", "moment", "text", THUMBNAIL)


def search(
    query: str,
    bank: str = "bank",
    dataset: str | None = None,
    like: bool = False,
    modalities: str | None = None,
    checkpoint: str | None = None,
    top: int = 5,
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    text_weights: str | None = None,
    pool: str = AUTO,
    index: str | None = None,
    where: str | None = None,
    frames: bool = False,
) -> int:
    """Find the clips that fit a sentence (or resemble a clip), with scores and thumbnails.

    Compares in a checkpoint's aligned space; without one, in an encoder's own joint space (CLIP). Where there
    is neither, the sentence is compared with the clips' captions or class texts, and the output says so.

    Args:
        query: A sentence in quotes; with --like a clip id.
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        like: The query is a clip id: find the clips that resemble it.
        modalities: What of the clips is compared, with commas; several are averaged; `text`: their captions.
            None: all that can be.
        checkpoint: run:<id>, a directory or `latest`.
        top: How many clips.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        text_weights: Where the text encoder's weights are, if it does not find them itself.
        pool: Raw features to one vector a clip, for --like: mean, cls, resample:K, auto.
        index: A saved index (`python -m evaluate index info`), whose dataset, modalities and checkpoint are
            then the defaults; or a name in evaluate.INDEXES, made anew. None: a saved one that fits, or flat.
        where: Only clips that fit this SQL condition over the columns of `clips`.
        frames: Say which moment of each clip fits best, by its frames' features.
    """
    asked = resolved(**locals())
    from evaluate.records import EXAMPLES_FILE, print_saved, print_table, write_file
    from evaluate.saved import SavedIndex
    from evaluate.shelves import as_saved, like_shelf, text_shelf

    chosen = as_saved(bank, index)
    if isinstance(chosen, SavedIndex):
        own = chosen.defaults()
        dataset, modalities = dataset or own["dataset"], modalities or own["modalities"]
        checkpoint, pool = checkpoint or own["checkpoint"], own["pool"] if pool == AUTO else pool
        encoders, fields = own["encoders"] | (encoders or {}), own["fields"] | (fields or {})
    source = open_sources(bank, dataset, "none", checkpoint, None, encoders, fields, pool)[0]
    if like:
        shelf = like_shelf(source, query, modalities, chosen)
    else:
        shelf = text_shelf(source, query, modalities, text_weights, chosen)
    results = best(source, shelf, top, where, query if like else None, frames)
    left = f"; where {where}" if where else ""
    print(f"{source.dataset}: {query!r}; {shelf.how}{left}\n")
    columns = [name for name in COLUMNS if any(row[name] != "" for row in results)]
    print_table(
        [{name: row[name] for name in columns} for row in results],
        whole=THUMBNAIL if THUMBNAIL in columns else None,
    )
    print_saved([source])
    if source.bank.catalog.read_only:
        print(f"{bank}: read-only; this search is not recorded", file=sys.stderr)
        return 0
    with source.bank.record_run("evaluate search", asked | {"dataset": source.dataset}) as run:
        write_file(run, EXAMPLES_FILE, [example(source, query, like, shelf.how, results)])
        run.used(*source.used)
    return 0


def best(
    source: Source,
    shelf: "Shelf",
    top: int,
    where: str | None = None,
    own: str | None = None,
    frames: bool = False,
) -> list[dict[str, Any]]:
    """The best clips but ``own``: place, score, clip, class, moment, text, thumbnail.

    Raises:
        EvaluateError: If no clip fits ``where``, or the best moments are asked for and there are no frames.
    """
    from evaluate.filters import fitting_clips
    from evaluate.moments import best_moments
    from store.places import thumbnail_path

    wanted = None if where is None else fitting_clips(source.bank, source.dataset, where)
    ranked = shelf.best(top, wanted, own)
    if not ranked:
        which = f"clip that fits {where!r}" if where else "other clip"
        raise EvaluateError(f"search: no {which} has {', '.join(shelf.modalities)} features")
    clips = [clip for clip, _, _ in ranked]
    moments = best_moments(source, shelf.modalities, clips, shelf.query) if frames else {}
    query = "SELECT clip_id, label_name FROM clips WHERE dataset = ? AND list_contains(?, clip_id)"
    rows = source.bank.sql(query, [source.dataset, clips]).to_pylist()
    known = {row["clip_id"]: row["label_name"] for row in rows}
    pictured = pictured_modalities(source.bank, source.dataset)
    found: list[dict[str, Any]] = []
    for clip, score, text in ranked:
        paths = (thumbnail_path(source.bank, source.dataset, name, clip) for name in pictured)
        found.append(
            {
                "place": len(found) + 1,
                "score": round(score, 4),
                "clip": clip,
                "class": known[clip] or "",
                "moment": str(moments.get(clip, "")),
                "text": text,
                THUMBNAIL: str(next((path for path in paths if path.exists()), "")),
            }
        )
    return found


def pictured_modalities(bank: "Bank", dataset: str) -> list[str]:
    """A dataset's modalities that have pictures in the bank, rgb first."""
    from store.places import THUMBNAILS, path_part

    folder = bank.path / THUMBNAILS / path_part(dataset)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return sorted(names, key=lambda name: (not name.startswith("rgb"), name))


def example(
    source: Source, query: str, like: bool, how: str, results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The search as the report shows it."""
    pictured = pictured_modalities(source.bank, source.dataset)
    modality = pictured[0] if pictured else ""
    asked = {"modality": modality, "item": query} if like else {"modality": TEXT, "text": query}
    rows = [
        {
            "modality": modality,
            "item": row["clip"],
            "class": row["class"],
            "score": row["score"],
            "right": None,
        }
        for row in results
    ]
    return {
        "dataset": source.dataset,
        "how": how,
        "query_item": {**asked, "class": ""},
        "results": rows,
    }
