"""`python -m evaluate search "somebody waves"`: the clips that fit a typed sentence, or another clip."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.source import AUTO, EvaluateError, Source, open_sources
from store.cli import resolved
from store.tables import TEXT

if TYPE_CHECKING:
    from store.bank import Bank


THUMBNAIL = "thumbnail"
COLUMNS = ("place", "score", "clip", "class", "text", THUMBNAIL)


@dataclass(frozen=True)
class Shelf:
    """What is searched, and the query in the same space.

    Attributes:
        how: In which space, for people.
        items: n clip ids.
        vectors: (n, E) unit rows.
        query: (E,) unit.
        matched: n texts that stood for the clips, if texts were compared.
    """

    how: str
    items: Sequence[str]
    vectors: np.ndarray
    query: np.ndarray
    matched: Sequence[str] | None = None


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
    index: str = "flat",
) -> int:
    """Find the clips that fit a sentence (or resemble a clip), with scores and thumbnails.

    Compares in a checkpoint's aligned space; without one, in an encoder's own joint space (CLIP). Where there
    is neither, the sentence is compared with the clips' captions or class texts, and the output says so.

    Args:
        query: A sentence in quotes; with --like a clip id.
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        like: The query is a clip id: find the clips that resemble it.
        modalities: What of the clips is compared, with commas; several are averaged. None: all that can be.
        checkpoint: run:<id>, a directory or `latest`.
        top: How many clips.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        text_weights: Where the text encoder's weights are, if it does not find them itself.
        pool: Raw features to one vector a clip, for --like: mean, cls, resample:K, auto.
        index: Name in evaluate.INDEXES.
    """
    asked = resolved(**locals())
    from evaluate.records import EXAMPLES_FILE, print_saved, print_table, write_file

    source = open_sources(bank, dataset, "none", checkpoint, None, encoders, fields, pool)[0]
    if like:
        shelf = like_shelf(source, query, modalities)
    else:
        shelf = text_shelf(source, query, modalities, text_weights)
    results = best(source, shelf, top, index, query if like else None)
    print(f"{source.dataset}: {query!r}; {shelf.how}\n")
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


def text_shelf(source: Source, query: str, modalities: str | None, text_weights: str | None = None) -> Shelf:
    """A sentence against clips, in the best space there is: aligned, joint, or that of their texts.

    Raises:
        EvaluateError: If the modalities that were named share no space with text; holds the command.
    """
    from evaluate.index import unit

    if source.alignment is not None:
        vector = unit(encoded(source, [query], text_weights))[0]
        names = source.modalities(modalities)
        items, vectors = averaged_clips(source, names)
        return Shelf(f"in the {source.name} space of {', '.join(names)} and text", items, vectors, vector)
    names = joint_modalities(source, modalities)
    if not names:
        return caption_shelf(source, query, text_weights)
    vector = unit(encoded(source, [query], text_weights))[0]
    items, vectors = averaged_clips(source, names)
    return Shelf(f"in the joint space of text and {', '.join(names)}", items, vectors, vector)


def like_shelf(source: Source, clip: str, modalities: str | None) -> Shelf:
    """A clip against the other clips: aligned, or by the raw features of one modality.

    Raises:
        EvaluateError: If the clip has no features, or several raw modalities would be mixed.
    """
    names = source.modalities(modalities)
    if source.alignment is None and len(names) > 1:
        if modalities is not None:
            raise EvaluateError(
                f"search: raw {', '.join(names)} share no space; name one, or pass --checkpoint"
            )
        names = names[:1]
    items, vectors = averaged_clips(source, names)
    if clip not in items:
        raise EvaluateError(
            f"search --like: no {', '.join(names)} features of clip {clip!r} in {source.dataset}"
        )
    return Shelf(f"by {', '.join(names)}, {source.name}", items, vectors, vectors[items.index(clip)])


def caption_shelf(source: Source, query: str, text_weights: str | None = None) -> Shelf:
    """A sentence against the clips' captions, or their class texts: it sees what was written, not the clips.

    Raises:
        EvaluateError: If the clips have neither.
    """
    from evaluate.index import unit

    pairs = written(source)
    if not pairs:
        raise EvaluateError(
            f"search: {source.dataset} has no captions, no class texts, and no features that share a space "
            f"with text; `python -m align --bank {source.bank.path}` makes one (then --checkpoint latest)"
        )
    texts = sorted({text for _, text in pairs})
    vectors = dict(zip(texts, unit(source.texts(texts)), strict=True))
    vector = unit(encoded(source, [query], text_weights))[0]
    closest: dict[str, str] = {}
    for clip, text in pairs:
        if clip not in closest or vectors[text] @ vector > vectors[closest[clip]] @ vector:
            closest[clip] = text
    matched = list(closest.values())
    how = "TEXT TO TEXT: by captions or class texts, not by content; pass --checkpoint for that"
    return Shelf(how, list(closest), np.stack([vectors[text] for text in matched]), vector, matched)


def written(source: Source) -> list[tuple[str, str]]:
    """(clip, text) for all captions; where a dataset has none, for the texts of the clips' classes."""
    clips = source.bank.sql("SELECT clip_id, label FROM clips WHERE dataset = ? ORDER BY 1", [source.dataset])
    captions = source.captions(clips["clip_id"].to_pylist())
    if captions:
        return [(clip, text) for clip, several in captions.items() for text in several]
    by_label: dict[int, list[str]] = {}
    for pairs in source.label_texts().values():
        for label, text in pairs:
            by_label.setdefault(label, []).append(text)
    return [(row["clip_id"], text) for row in clips.to_pylist() for text in by_label.get(row["label"], [])]


def encoded(source: Source, texts: Sequence[str], weights: str | None = None) -> np.ndarray:
    """Typed texts -> (n, D or E) vectors: from the bank if it knows them, else by the text encoder.

    Raises:
        EvaluateError: If the encoder, as it is now, gives another space than the bank's texts.
    """
    from encoders import load_stored
    from store.spec import FeatureSpec
    from store.texts import MissingTextError

    try:
        return source.texts(texts)
    except MissingTextError:
        stored = source.selection(TEXT)
    source.used.append(stored)
    space = ""
    for encoder in load_stored(stored.spec.encoder, weights, modality=TEXT):
        space = FeatureSpec(encoder.name, encoder.space).space_digest
        if space == stored.space_digest:
            vectors = encoder.encode_text(list(texts)).numpy()  # type: ignore[union-attr]
            return source.embed_texts(vectors, stored.space_digest)
    raise EvaluateError(
        f"search: text encoder {stored.spec.encoder} gives space {space}, the bank's texts are of "
        f"{stored.space_digest}; pass the weights that extracted them as --text-weights"
    )


def joint_modalities(source: Source, asked: str | None) -> list[str]:
    """The modalities whose raw features lie in the text features' space; [] if none does.

    Raises:
        EvaluateError: If one that was asked for does not.
    """
    from store.select import AmbiguousError

    space = source.space(TEXT)
    joint, names = [], source.modalities(asked)
    for name in names:
        try:
            if source.space(name) == space:
                joint.append(name)
        except AmbiguousError:
            if asked is not None:
                raise
    if asked is not None and len(joint) < len(names):
        wrong = next(name for name in names if name not in joint)
        raise EvaluateError(
            f"search: raw {wrong} features share no space with text; leave out --modalities, or pass "
            f"--checkpoint latest after `python -m align --modalities {wrong},{TEXT} "
            f"--bank {source.bank.path}`"
        )
    return joint


def averaged_clips(source: Source, modalities: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Clip ids and the unit means (n, E) of their modalities' unit vectors, as far as they have them."""
    from evaluate.index import unit

    sums: dict[str, np.ndarray] = {}
    for name in modalities:
        clips = source.clips(name, None)
        for item, vector in zip(clips.items.tolist(), unit(clips.vectors), strict=True):
            sums[item] = sums[item] + vector if item in sums else vector
    return list(sums), unit(np.stack(list(sums.values())))


def best(source: Source, shelf: Shelf, top: int, index: str, own: str | None) -> list[dict[str, Any]]:
    """The best clips but ``own``: place, score, clip, class, text, thumbnail."""
    from evaluate.index import make_index
    from store.places import thumbnail_path

    scores, rows = make_index(index, shelf.vectors).search(shelf.query[None], top + (own is not None))
    query = "SELECT clip_id, label_name FROM clips WHERE dataset = ?"
    known = {row["clip_id"]: row for row in source.bank.sql(query, [source.dataset]).to_pylist()}
    pictured = pictured_modalities(source.bank, source.dataset)
    found: list[dict[str, Any]] = []
    for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
        clip = shelf.items[row]
        if clip == own or len(found) == top:
            continue
        paths = (thumbnail_path(source.bank, source.dataset, name, clip) for name in pictured)
        found.append(
            {
                "place": len(found) + 1,
                "score": round(score, 4),
                "clip": clip,
                "class": known[clip]["label_name"] or "",
                "text": shelf.matched[row] if shelf.matched else "",
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
