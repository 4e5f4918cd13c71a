"""Drive&Act's views, clip names, classes, and its official splits as a rule."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from extract.datasets.clips import DatasetError

CLASSES = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "daa" / "classes.yaml"
PARTICIPANTS = 15
PARTS = ("train", "val", "test")
# Per split: who validates and who tests; all others train.
SUBJECTS = (
    {"val": {14, 15}, "test": {5, 11, 13}},
    {"val": {3, 8}, "test": {9, 10, 12}},
    {"val": {1, 2}, "test": {4, 6, 7}},
)


@dataclass(frozen=True)
class View:
    """A camera of the car, or the poses computed from several.

    Attributes:
        modality: What it is here.
        folders: How the folder of its files is called, the better one first.
        annotated: How the folder of its annotations is called, which count its frames.
        stream: How the release calls it in file names.
        fps: Its nominal rate, where no file tells a better one.
    """

    modality: str
    folders: tuple[str, ...]
    annotated: tuple[str, ...]
    stream: str
    fps: float = 30.0


def _infrared(name: str, stream: str) -> View:
    return View(f"ir.{name}", (name,), (name,), stream)


DEPTH_FOLDERS = ("kinect_depth_mp4", "kinect_depth")
# In the order of the columns of CMVRA's lists.
VIEWS = (
    View("rgb", ("kinect_color",), ("kinect_color",), "kinect_color", 15.0),
    View("ir", ("kinect_ir",), ("kinect_ir",), "kinect_ir"),
    View("depth", DEPTH_FOLDERS, DEPTH_FOLDERS, "kinect_depth"),
    View("skeleton", ("openpose_3d",), ("inner_mirror",), "ids_1"),
    _infrared("ceiling", "ids_3"),
    _infrared("inner_mirror", "ids_1"),
    _infrared("a_column_co_driver", "ids_2"),
    _infrared("a_column_driver", "ids_5"),
    _infrared("steering_wheel", "ids_4"),
)
BY_FOLDER = {folder: view for view in VIEWS for folder in view.folders}

# The camera's part of a recording's name: kinect_color, ids_1 (inner mirror), ...
_STREAM = r"(?:\.(?:kinect_\w+?|ids_\d+))?"
_RECORDING = re.compile(rf"vp(\d+)/([^/]+?){_STREAM}")
_CLIP = re.compile(r"vp(\d+)_(.+)_(\d+)_(\d+)")
_CUT = re.compile(rf"(?:(.+)_)?(\d+)_vp(\d+)_(.+?){_STREAM}_(\d+)_(\d+)_(\d+)_(\d+)")


class Recording(NamedTuple):
    """One drive of a participant, whichever camera saw it (``vp1/run1b_2018-05-29-14-02-47``)."""

    participant: int
    run: str

    @classmethod
    def parse(cls, where: str, file_id: str) -> "Recording":
        """From ``vp1/run1b_2018-05-29-14-02-47``, with or without the camera (``.ids_1``).

        Raises:
            DatasetError: For anything else, or a participant who does not exist.
        """
        match = _RECORDING.fullmatch(file_id)
        if match is None:
            raise DatasetError(f"{where}: file_id is {file_id!r}; vp<participant>/<recording> is needed")
        return cls(_participant(where, int(match[1])), match[2])


class ClipName(NamedTuple):
    """What identifies a clip in every view; the frame numbers do not, as each camera counts its own."""

    participant: int
    run: str
    annotation: int
    chunk: int

    def __str__(self) -> str:
        return f"vp{self.participant}_{self.run}_{self.annotation}_{self.chunk}"

    @property
    def recording(self) -> Recording:
        """The drive that it is a part of."""
        return Recording(self.participant, self.run)


def parse_cut(where: str, stem: str) -> tuple[ClipName, str | None]:
    """Clip and activity from the name, without suffix, of a file that CMVRA's scripts cut.

    It is ``<activity>_<participant>_<file_id with _>_<start>_<end>_<annotation>_<chunk>``, where the activity
    may hold spaces and the files of skeletons have none.

    Raises:
        DatasetError: If it is none.
    """
    match = _CUT.fullmatch(stem)
    if match is None or match[2] != match[3]:
        raise DatasetError(
            f"{where}: {stem!r} is no clip of Drive&Act; "
            "<activity>_<participant>_vp<participant>_<recording>_<start>_<end>_<annotation>_<chunk> is"
        )
    return ClipName(_participant(where, int(match[2])), match[4], int(match[7]), int(match[8])), match[1]


def parse_clip(where: str, text: str) -> ClipName:
    """From a clip id (``vp1_run1b_2018-05-29-14-02-47_3_0``), or the name of a cut file.

    Raises:
        DatasetError: If it is neither.
    """
    match = _CLIP.fullmatch(text)
    if match is None:
        return parse_cut(where, text)[0]
    return ClipName(_participant(where, int(match[1])), match[2], int(match[3]), int(match[4]))


def _participant(where: str, number: int) -> int:
    if not 1 <= number <= PARTICIPANTS:
        raise DatasetError(f"{where}: participant {number} does not exist; Drive&Act has 1 to {PARTICIPANTS}")
    return number


def official_part(split: int, participant: int) -> str:
    """The part of a participant's clips in split 0, 1 or 2."""
    held = (part for part, participants in SUBJECTS[split].items() if participant in participants)
    return next(held, "train")


def check_part(where: str, split: int, participant: int, part: str) -> None:
    """Raises: DatasetError if a file has a participant in a part where the official split has not."""
    official = official_part(split, participant)
    if part != official:
        raise DatasetError(
            f"{where}: participant {participant} is in part {part!r} of split {split}, officially in "
            f"{official!r}; give the files as they were published, or lists of your own (options.lists)"
        )


@cache
def classes() -> tuple[tuple[str, str], ...]:
    """(name, sentence) of the classes by label."""
    content = yaml.safe_load(CLASSES.read_text(encoding="utf-8"))
    return tuple((str(name), str(sentence)) for name, sentence in content["classes"])


@cache
def labels() -> dict[str, int]:
    """Class name -> label; what stands in brackets may be left out, as some of CMVRA's scripts do."""
    names = [name for name, _ in classes()]
    return {form: label for label, name in enumerate(names) for form in (name.partition(" (")[0], name)}


class UnknownActivities:
    """Collects activities that are no classes, so that one error names them all."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def label(self, where: str, activity: str) -> int:
        """The activity's label; -1 if it has none."""
        label = labels().get(activity.strip(), -1)
        if label < 0:
            self._first.setdefault(activity, where)
        return label

    def check(self) -> None:
        """Raises: DatasetError if there were any."""
        if self._first:
            names = ", ".join(map(repr, sorted(self._first)))
            where = next(iter(self._first.values()))
            raise DatasetError(
                f"{where}: activities that are no classes of Drive&Act: {names}; "
                f"the {len(classes())} fine-grained (midlevel) ones of {CLASSES.name} are: "
                f"{', '.join(name for name, _ in classes())}"
            )
