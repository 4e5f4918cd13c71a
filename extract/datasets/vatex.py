"""VATEX (Wang et al., ICCV 2019): 41,250 cuts of web videos, 10 English and 10 Chinese captions each.

Official files (eric-xw.github.io/vatex-website/download.html), each optional: ``vatex_training_v1.0.json``
(25,991 clips), ``vatex_validation_v1.0.json`` (3,000), ``vatex_public_test_english_v1.1.json`` (6,000) and
``vatex_private_test_without_annotations.json`` (6,278, from memory): lists of ``videoID``, ``enCap`` and
``chCap`` (which the public test lacks). An id is ``<YouTube id>_<start>_<end>``, the seconds in six digits.

A clip's video is called by that id, cut; or by the YouTube id alone, and then it is read from start to end.

Protocol ``official``: train, val, test (the public test), private-test (no captions). Most retrieval papers
halve the validation part into 1,500 clips each for val and test (HGR: Chen et al., CVPR 2020). With the clip
ids of these lists in text files that is

    lists: {hgr: {train: trn.txt, val: val.txt, test: tst.txt}}
"""

import re
from pathlib import Path

from extract.datasets.annotations import Node
from extract.datasets.captioned import Captioned, Listing, Lists, Official, Place
from extract.datasets.clips import DatasetError

AUTHORS = "eric-xw.github.io/vatex-website/download.html"
FILES = {
    "vatex_training_v1.0.json": "train",
    "vatex_validation_v1.0.json": "val",
    "vatex_public_test_english_v1.1.json": "test",
    "vatex_private_test_without_annotations.json": "private-test",
}
LANGUAGES = {"en": "enCap", "zh": "chCap"}
CLIP_ID = re.compile(r"(.+)_(\d{6})_(\d{6})")


class VATEX(Captioned):
    """Lists the clips; attribute ``video``. See the module; further arguments: the base.

    Args:
        root: Folder of the videos and annotation files.
        annotations: Another folder of the annotation files.
        videos: The only folder of videos.
        lists: Further protocols.
        language: ``en`` or ``zh`` (train and val only); the captions' source is ``vatex-<language>``.
    """

    name = "vatex"
    files = tuple(Official(name, f"captions of {part}", AUTHORS) for name, part in FILES.items())
    protocols = {"official": ("train", "val", "test")}

    def __init__(
        self,
        root: Path,
        annotations: str | None = None,
        videos: str | None = None,
        lists: Lists | None = None,
        language: str = "en",
    ):
        super().__init__(root, annotations, videos, lists)
        if language not in LANGUAGES:
            raise DatasetError(f"options.language: is {language!r}; {' or '.join(LANGUAGES)} is accepted")
        self._language = language

    def read(self, listing: Listing) -> None:
        """The clips of each file."""
        for name, part in FILES.items():
            data = self.json(name)
            for one in data.items() if data is not None else ():
                clip_id = _add(listing, one["videoID"])
                listing.part(one.where, "official", clip_id, part)
                key = LANGUAGES[self._language]
                # The private test has no captions, the public one no Chinese.
                for text in one[key].items() if key in one or part in ("train", "val") else ():
                    listing.caption(clip_id, text.text(), f"vatex-{self._language}")


def _add(listing: Listing, name: Node) -> str:
    match = CLIP_ID.fullmatch(name.text())
    if match is None or int(match[2]) >= int(match[3]):
        raise DatasetError(f"{name.where} is {name.value!r:.60}; <YouTube id>_<start>_<end> is needed")
    whole = Place(match[1], float(match[2]), float(match[3]))
    listing.add(match[0], Place(match[0]), whole, video=match[1])
    return match[0]
