"""ActivityNet Captions (Krishna et al., ICCV 2017): 20,000 web videos, their events described in sentences.

Official files (cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip), each optional: ``train.json``,
``val_1.json``, ``val_2.json``: video id ``v_<YouTube id>`` -> ``duration``, ``timestamps`` (start and end of
each event in seconds) and ``sentences``, one each. ``val_2`` describes most of the same videos anew.

Videos are called ``v_<YouTube id>`` or by the YouTube id alone.

Protocols are the field's paragraph protocol: a whole video, and all its sentences joined by spaces in the
order of the file. ``val_1``: train 10,009 videos, test the 4,917 of ``val_1.json``; that is what the
literature calls val1. ``val_2``: the same with the 4,885 of ``val_2.json``.
"""

from pathlib import Path

from extract.datasets.annotations import Node
from extract.datasets.captioned import Captioned, Listing, Lists, Official, Place
from extract.datasets.clips import DatasetError

AUTHORS = "cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip"
TESTS = ("val_1", "val_2")


class ActivityNet(Captioned):
    """Lists the videos; attribute ``duration_seconds``. See the module; further arguments: the base.

    Args:
        root: Folder of the videos and annotation files.
        annotations: Another folder of the annotation files.
        videos: The only folder of videos.
        lists: Further protocols.
        sentences: Whether each sentence is a caption too, with its span; source ``val_1-sentence`` etc.
    """

    name = "activitynet"
    files = tuple(Official(f"{one}.json", f"sentences of {one}", AUTHORS) for one in ("train", *TESTS))
    protocols = {one: ("train", "test") for one in TESTS}
    caption_sources = {one: {"train": ["train"], "test": [one]} for one in TESTS}

    def __init__(
        self,
        root: Path,
        annotations: str | None = None,
        videos: str | None = None,
        lists: Lists | None = None,
        sentences: bool = False,
    ):
        super().__init__(root, annotations, videos, lists)
        self._sentences = sentences

    def read(self, listing: Listing) -> None:
        """The paragraphs of each file; their source is the file's name."""
        for source in ("train", *TESTS):
            data = self.json(f"{source}.json")
            for video, told in data.members() if data is not None else ():
                if not video.startswith("v_"):
                    raise DatasetError(f"{told.where}: is no video id; `v_` and a YouTube id is needed")
                self._add(listing, source, video, told)
                for protocol in TESTS if source == "train" else (source,):
                    listing.part(told.where, protocol, video, "train" if source == "train" else "test")

    def _add(self, listing: Listing, source: str, video: str, told: Node) -> None:
        places = Place(video), Place(video.removeprefix("v_"))
        listing.add(video, *places, duration_seconds=told["duration"].seconds())
        texts = [one.text() for one in told["sentences"].items()]
        listing.caption(video, " ".join(filter(None, texts)), source)
        if self._sentences:
            spans = told["timestamps"].items()
            if len(spans) != len(texts):
                raise DatasetError(f"{told.where}: {len(texts)} sentences, but {len(spans)} timestamps")
            for text, span in zip(texts, spans, strict=True):
                listing.caption(video, text, f"{source}-sentence", *_ordered(span))


def _ordered(span: Node) -> tuple[float, float]:
    """Start and end; some published spans are the wrong way round (from memory)."""
    times = sorted(time.seconds() for time in span.items())
    if len(times) != 2:
        raise DatasetError(f"{span.where} is {span.value!r:.60}; [start, end] in seconds is needed")
    return times[0], times[1]
