"""YouCook2 (Zhou, Xu, Corso, AAAI 2018): steps of recipes, cut from 2,000 web videos, a sentence each.

Official files, each optional:

- ``youcookii_annotations_trainval.json`` (youcook2.eecs.umich.edu/download): ``database`` -> YouTube id ->
  ``subset`` (``training``, ``validation``), ``recipe_type``, and ``annotations`` with ``segment`` (start and
  end in seconds) and ``sentence``.
- ``youcookii_annotations_test_segments_only.json``: likewise, ``subset`` is ``testing`` and there are no
  sentences.
- ``validation_youcook.csv`` (of github.com/antoine77340/MIL-NCE_HowTo100M, folder ``csv``): ``end, start,
  task, text, video_id``; the 3,350 steps of the validation part whose videos are not in HowTo100M.

Videos are called by their YouTube id. A clip is a step: its video from ``start_seconds`` to ``end_seconds``,
its id ``<YouTube id>_<start>_<end>``, so that all files name it alike.

Protocols: ``official`` (10,337 steps in train, 3,492 in val; test has no sentences) and ``retrieval``, which
the text-to-video numbers of the literature are about: train as there, test the 3,350 steps.
Multi-SK and Everything-at-once found 3,339 of them and count the others as misses.
"""

from pathlib import Path

from extract.datasets.annotations import Node, read_table
from extract.datasets.captioned import Captioned, Listing, Official, Place
from extract.datasets.clips import DatasetError

AUTHORS = "youcook2.eecs.umich.edu/download"
TRAINVAL = "youcookii_annotations_trainval.json"
TEST = "youcookii_annotations_test_segments_only.json"
RETRIEVAL = "validation_youcook.csv"
PARTS = {"training": "train", "validation": "val", "testing": "test"}
CAPTIONS, TEST_CAPTIONS = "youcook2", "youcook2-retrieval"  # sources


class YouCook2(Captioned):
    """Lists the steps; attributes ``video`` and ``recipe_type``. See the module, and the base."""

    name = "youcook2"
    files = (
        Official(TRAINVAL, "steps and sentences of train and val", AUTHORS),
        Official(TEST, "steps of test, without sentences", AUTHORS),
        Official(
            RETRIEVAL, "the 3,350 steps of the retrieval test", "github.com/antoine77340/MIL-NCE_HowTo100M"
        ),
    )
    protocols = {"official": ("train", "val", "test"), "retrieval": ("train", "test")}
    caption_sources = {
        "official": {"train": [CAPTIONS], "val": [CAPTIONS]},
        "retrieval": {"train": [CAPTIONS], "test": [TEST_CAPTIONS]},
    }

    def read(self, listing: Listing) -> None:
        """The steps of each file."""
        for name in (TRAINVAL, TEST):
            data = self.json(name)
            if data is not None:
                for video, told in data["database"].members():
                    _read_video(video, told, listing)
        retrieval = self.file(RETRIEVAL)
        if retrieval is not None:
            _read_retrieval(retrieval, listing)


def _read_video(video: str, told: Node, listing: Listing) -> None:
    part = PARTS[told["subset"].choice(list(PARTS))]
    recipe = told["recipe_type"].value if "recipe_type" in told else None
    for step in told["annotations"].items():
        clip_id = _add(listing, video, *step["segment"].span(), recipe)
        listing.part(step.where, "official", clip_id, part)
        if part == "train":
            listing.part(step.where, "retrieval", clip_id, part)
        if part != "test":
            listing.caption(clip_id, step["sentence"].text(), CAPTIONS)


def _read_retrieval(path: Path, listing: Listing) -> None:
    for where, row in read_table(path, ("end", "start", "task", "text", "video_id")):
        try:
            start, end = float(row["start"]), float(row["end"])
        except ValueError:
            raise DatasetError(f"{where}: {row['start']!r} to {row['end']!r}; seconds are needed") from None
        if not (row["video_id"] and 0 <= start < end < float("inf")):
            raise DatasetError(
                f"{where}: {row['video_id']!r} from {start:g} to {end:g}; a video and start < end are needed"
            )
        clip_id = _add(listing, row["video_id"], start, end, row["task"])
        listing.caption(clip_id, row["text"], TEST_CAPTIONS)
        listing.part(where, "retrieval", clip_id, "test")


def _add(listing: Listing, video: str, start: float, end: float, recipe: object) -> str:
    clip_id = f"{video}_{start:g}_{end:g}"
    told = None if recipe is None else str(recipe)
    listing.add(clip_id, Place(video, start, end), video=video, recipe_type=told)
    return clip_id
