"""LSMDC (Rohrbach et al., IJCV 2017): cut clips of some 200 films, described for people who cannot see them.

Official files of the 2016 challenge (sites.google.com/site/describingmovies, with a password that the authors
give), each optional: lines of six cells with tabs between them and no header, ``clip id, start aligned, end
aligned, start extracted, end extracted, sentence``; the times are those in the film, the clips are cut.

- ``LSMDC16_annos_training.csv`` (101,079 lines), ``LSMDC16_annos_val.csv`` (7,408) and
  ``LSMDC16_annos_test.csv`` (10,053): train, val and the public test.
- ``LSMDC16_challenge_1000_publictect.csv`` (so spelt): the 1,000 clips of the retrieval test.

A clip's file is ``<film>/<clip id>.avi``. An id may have several lines: several captions. The blind test has
no sentences and is not read.

Protocols: ``retrieval``: train, val, and the 1,000 clips as test; ``official``: test is the public test. Some
code leaves out the clip 1012_Unbreakable_00.05.16.065-00.05.21.941 as problematic; here it is listed, and
becomes a row of ``failures`` if its file is damaged.
"""

from extract.datasets.annotations import read_lines
from extract.datasets.captioned import Captioned, Listing, Official
from extract.datasets.clips import DatasetError

AUTHORS = "sites.google.com/site/describingmovies/lsmdc-2016/download"
TRAIN, VAL, TEST = (f"LSMDC16_annos_{part}.csv" for part in ("training", "val", "test"))
TEST_1000 = "LSMDC16_challenge_1000_publictect.csv"
CELLS = "<film>_<times>, four times and a sentence"
CAPTIONS, TEST_CAPTIONS = "lsmdc", "lsmdc-retrieval"  # sources


class LSMDC(Captioned):
    """Lists the clips; attribute ``film``. See the module, and the base."""

    name = "lsmdc"
    files = (
        Official(TRAIN, "captions of train", AUTHORS),
        Official(VAL, "captions of val", AUTHORS),
        Official(TEST, "captions of the public test", AUTHORS),
        Official(TEST_1000, "the 1,000 clips of the retrieval test", AUTHORS),
    )
    protocols = {"official": ("train", "val", "test"), "retrieval": ("train", "val", "test")}
    caption_sources = {
        "official": {"train": [CAPTIONS], "val": [CAPTIONS], "test": [CAPTIONS]},
        "retrieval": {"train": [CAPTIONS], "val": [CAPTIONS], "test": [TEST_CAPTIONS]},
    }

    def read(self, listing: Listing) -> None:
        """The lines of each file."""
        both = ("official", "retrieval")
        self._read(listing, TRAIN, "train", both, CAPTIONS)
        self._read(listing, VAL, "val", both, CAPTIONS)
        self._read(listing, TEST, "test", ("official",), CAPTIONS)
        self._read(listing, TEST_1000, "test", ("retrieval",), TEST_CAPTIONS)

    def _read(self, listing: Listing, name: str, part: str, protocols: tuple[str, ...], source: str) -> None:
        path = self.file(name)
        for where, line in read_lines(path) if path is not None else ():
            cells = [cell.strip() for cell in line.split("\t")]
            cells[0] = cells[0].strip('"')  # copies with a stray quote before the id are in circulation
            film, _, times = cells[0].rpartition("_")
            if len(cells) != 6 or not film or not times:
                raise DatasetError(f"{where}: is {line!r:.80}; {CELLS} with tabs between them are needed")
            listing.add(cells[0], film=film)
            listing.caption(cells[0], cells[5], source)
            for protocol in protocols:
                listing.part(where, protocol, cells[0], part)
