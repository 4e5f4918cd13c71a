"""MSR-VTT (Xu, Mei, Yao, Rui, CVPR 2016): 10,000 cut clips of web videos, 20 captions each.

Official files, each optional:

- ``MSRVTT_data.json`` (released with CLIP4Clip), or ``train_val_videodatainfo.json`` and
  ``test_videodatainfo.json`` (of the authors, 2016): ``videos`` with ``video_id``, ``split`` (``train``,
  ``validate``, ``test``), ``category``, ``url``, ``start time`` and ``end time`` in the web video (the clips
  are cut already); ``sentences`` with ``video_id`` and ``caption``.
- ``MSRVTT_JSFUSION_test.csv`` (of JSFusion: Yu, Kim, Kim, ECCV 2018): ``key, vid_key, video_id, sentence``;
  1,000 clips of the official test part, one sentence each.
- ``MSRVTT_train.9k.csv``, ``MSRVTT_train.7k.csv`` (released with CLIP4Clip): ``video_id``.

Videos are ``video0`` to ``video9999``, with any usual suffix.

Protocols, all with the names that the literature has:

- ``full``: train 6,513, val 497, test 2,990; all 20 captions of a clip.
- ``1k-A``: test is JSFusion's 1,000 clips, each with its one sentence; train is all 9,000 others.
- ``7k``: the same test; train is the official train and val parts (7,010 clips).

The train lists' own files decide where they are there. 32 of the 1,000 test clips have no sound track:
Multi-SK and Everything-at-once retrieve among 968, and count the others as misses.
"""

import re
from pathlib import Path

from extract.datasets.annotations import Node, read_table
from extract.datasets.captioned import Captioned, Listing, Official
from extract.datasets.clips import DatasetError

AUTHORS = "www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset"
CLIP4CLIP = "github.com/ArrowLuo/CLIP4Clip/releases (msrvtt_data.zip)"
DATA = ("MSRVTT_data.json", "train_val_videodatainfo.json", "test_videodatainfo.json")
TEST, TRAIN_9K, TRAIN_7K = "MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv"
PARTS = {"train": "train", "validate": "val", "test": "test"}
CAPTIONS, TEST_CAPTIONS = "msrvtt", "jsfusion-test"  # sources
NAME = re.compile(r"video\d+")


class MSRVTT(Captioned):
    """Lists the clips; attributes ``category`` (0 to 19) and ``url``. See the module, and the base."""

    name = "msrvtt"
    files = (
        Official(DATA[0], "captions and official parts of all 10,000 clips", CLIP4CLIP),
        Official(DATA[1], "captions of train and val, where there is no MSRVTT_data.json", AUTHORS),
        Official(DATA[2], "captions of test, where there is no MSRVTT_data.json", AUTHORS),
        Official(TEST, "test clips and sentences of 1k-A and 7k", CLIP4CLIP),
        Official(TRAIN_9K, "train list of 1k-A", CLIP4CLIP),
        Official(TRAIN_7K, "train list of 7k", CLIP4CLIP),
    )
    protocols = {"full": ("train", "val", "test"), "1k-A": ("train", "test"), "7k": ("train", "test")}
    caption_sources = {
        "full": {"train": [CAPTIONS], "val": [CAPTIONS], "test": [CAPTIONS]},
        "1k-A": {"train": [CAPTIONS], "test": [TEST_CAPTIONS]},
        "7k": {"train": [CAPTIONS], "test": [TEST_CAPTIONS]},
    }

    def read(self, listing: Listing) -> None:
        """The JSON files first: they list most clips."""
        for name in DATA:
            data = self.json(name)
            if data is not None:
                _read_data(data, listing)
        test = self.file(TEST)
        if test is not None:
            _read_test(test, listing)
            self._read_train(listing, "1k-A", TRAIN_9K, set(PARTS.values()))
            self._read_train(listing, "7k", TRAIN_7K, {"train", "val"})

    def _read_train(self, listing: Listing, protocol: str, name: str, official: set[str]) -> None:
        """The list's clips; without the list, those of the official parts that are not in the test part."""
        path = self.file(name)
        if path is not None:
            for where, row in read_table(path, ("video_id",)):
                listing.add(_checked(where, row["video_id"]))
                listing.part(where, protocol, row["video_id"], "train")
            return
        parts = {clip_id: part for (known, clip_id), part in listing.parts.items() if known == "full"}
        if official <= set(parts.values()):  # else only some of the clips would be there
            for clip_id, part in parts.items():
                if part in official and (protocol, clip_id) not in listing.parts:
                    listing.part(name, protocol, clip_id, "train")


def _read_data(data: Node, listing: Listing) -> None:
    for video in data["videos"].items():
        clip_id = _checked(video["video_id"].where, video["video_id"].text())
        told = {name: video[name].value for name in ("category", "url") if name in video}
        listing.add(clip_id, **told)
        listing.part(video.where, "full", clip_id, PARTS[video["split"].choice(list(PARTS))])
    for sentence in data["sentences"].items():
        clip_id = sentence["video_id"].text()
        if clip_id not in listing.clips:
            raise DatasetError(f"{sentence.where}: {clip_id!r} is not among the videos; take the whole file")
        listing.caption(clip_id, sentence["caption"].text(), CAPTIONS)


def _read_test(path: Path, listing: Listing) -> None:
    for where, row in read_table(path, ("key", "vid_key", "video_id", "sentence")):
        clip_id = _checked(where, row["video_id"])
        if ("1k-A", clip_id) in listing.parts:
            raise DatasetError(f"{where}: {clip_id!r} is there twice; a test clip has one sentence")
        listing.add(clip_id)
        listing.caption(clip_id, row["sentence"], TEST_CAPTIONS)
        for protocol in ("1k-A", "7k"):
            listing.part(where, protocol, clip_id, "test")


def _checked(where: str, clip_id: str) -> str:
    if not NAME.fullmatch(clip_id):
        raise DatasetError(f"{where}: {clip_id!r} is no clip of MSR-VTT; `video` and a number is needed")
    return clip_id
