"""DiDeMo (Hendricks et al., ICCV 2017): 10,000 videos of at most 30 seconds, moments of which are described.

Official files (github.com/LisaAnne/LocalizingMoments, folder ``data``), each optional: ``train_data.json``,
``val_data.json``, ``test_data.json``: lists of ``video`` (a file's name), ``description`` and ``times``, for
each annotator the first and last of the five-second chunks that the description is about.

Videos are called as ``video`` says, with that suffix, another, or a second one (``x.mov.mp4``, which is what
the authors' script makes of the copies in YFCC100M).

The field's paragraph protocol, ``paragraph``, pairs a whole video with all its sentences, joined by spaces in
the order of the file: train 8,395, val 1,065, test 1,004 videos. Some videos go on after 30 seconds, which
nobody described: ``until_seconds: 30`` leaves the rest out.
"""

from pathlib import Path

from extract.datasets.annotations import Node
from extract.datasets.captioned import Captioned, Listing, Lists, Official, Place
from extract.datasets.clips import DatasetError
from extract.datasets.media_kinds import VIDEO_SUFFIXES

AUTHORS = "github.com/LisaAnne/LocalizingMoments"
PARTS = ("train", "val", "test")
PROTOCOL, PARAGRAPH, SENTENCE = "paragraph", "didemo-paragraph", "didemo-sentence"
CHUNK_SECONDS = 5.0


class DiDeMo(Captioned):
    """Lists the videos. See the module; further arguments: the base.

    Args:
        root: Folder of the videos and annotation files.
        annotations: Another folder of the annotation files.
        videos: The only folder of videos.
        lists: Further protocols.
        sentences: Whether each sentence is a caption too, with the span that most annotators gave it.
        until_seconds: Where the videos are cut; None = nowhere.
    """

    name = "didemo"
    files = tuple(Official(f"{part}_data.json", f"descriptions of {part}", AUTHORS) for part in PARTS)
    protocols = {PROTOCOL: PARTS}
    caption_sources = {PROTOCOL: {part: [PARAGRAPH] for part in PARTS}}

    def __init__(
        self,
        root: Path,
        annotations: str | None = None,
        videos: str | None = None,
        lists: Lists | None = None,
        sentences: bool = False,
        until_seconds: float | None = None,
    ):
        super().__init__(root, annotations, videos, lists)
        if until_seconds is not None and not (isinstance(until_seconds, int | float) and until_seconds > 0):
            raise DatasetError(f"options.until_seconds: is {until_seconds!r}; more than 0 is needed")
        self._sentences, self._until = sentences, until_seconds

    def read(self, listing: Listing) -> None:
        """The descriptions of each video, then its paragraph."""
        for part in PARTS:
            data = self.json(f"{part}_data.json")
            told: dict[str, list[Node]] = {}
            for one in data.items() if data is not None else ():
                told.setdefault(one["video"].text(), []).append(one)
            for video, descriptions in told.items():
                self._add(listing, part, video, descriptions)

    def _add(self, listing: Listing, part: str, video: str, descriptions: list[Node]) -> None:
        clip_id, suffix = _split(video)
        start = None if self._until is None else 0.0
        places = (Place(name, start, self._until) for name in dict.fromkeys((clip_id, video)))
        listing.add(clip_id, *places, file=video if suffix else None)
        listing.part(descriptions[0].where, PROTOCOL, clip_id, part)
        texts = [one["description"].text() for one in descriptions]
        listing.caption(clip_id, " ".join(texts), PARAGRAPH)
        if self._sentences:
            for text, one in zip(texts, descriptions, strict=True):
                listing.caption(clip_id, text, SENTENCE, *_span(one["times"]))


def _split(video: str) -> tuple[str, str]:
    """Name and suffix; a dot that no video suffix follows belongs to the name."""
    stem, dot, suffix = video.rpartition(".")
    return (stem, suffix) if stem and f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else (video, "")


def _span(times: Node) -> tuple[float, float]:
    """The span in seconds that most annotators chose; of equally frequent ones the first."""
    chosen = [tuple(chunk.seconds() for chunk in one.items()) for one in times.items()]
    if not chosen or any(len(one) != 2 or one[0] > one[1] for one in chosen):
        raise DatasetError(f"{times.where} is {times.value!r:.60}; [first, last] chunks are needed")
    first, last = max(chosen, key=chosen.count)
    return first * CHUNK_SECONDS, (last + 1) * CHUNK_SECONDS
