"""Drive&Act as it is downloaded: whole recordings, and CSVs that say in frames where each clip lies in them.

Every camera's CSVs count its own frames: those of the Kinect's colour camera come 15 times a second, all
others about 30 times. A clip's span is therefore worked out in seconds, for each file by its own rate, so
that all modalities of a clip show the same time. (CMVRA chooses frames by the colour file's count for every
file: of infrared and depth it sees the first half of a clip only.)
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

from extract.datasets.annotations import read_table
from extract.datasets.clips import DatasetError, Media
from extract.datasets.daa_clips import Collected, find_folders
from extract.datasets.daa_names import (
    BY_FOLDER,
    PARTS,
    SUBJECTS,
    VIEWS,
    ClipName,
    Recording,
    UnknownActivities,
    View,
    check_part,
)
from extract.datasets.media_kinds import VIDEO_SUFFIXES
from extract.datasets.scan import entries
from extract.readers.media import ReadError, printable

ANNOTATIONS = "activities_3s"
FILE = "midlevel.chunks_90.split_{split}.{part}.csv"
COLUMNS = (
    "participant_id", "file_id", "annotation_id", "frame_start", "frame_end", "activity", "chunk_id",
)  # fmt: skip
POSES = ".openpose.3d.csv"
EXAMPLE = "vp1/run1b_2018-05-29-14-02-47"
TOLERATED = 1.2  # ratio of a clip's duration by two cameras: each rounds to its own frames

Files = dict[Recording, str]  # path relative to the root


class Row(NamedTuple):
    """A line of a CSV: the clip's first and last frame in one camera's recordings (both are in the clip)."""

    where: str
    label: int
    first: int
    last: int


class Release:
    """Reads the release below ``root``; see the module."""

    def __init__(self, root: Path):
        self._root = root
        self._folders = find_folders(root, {ANNOTATIONS, *BY_FOLDER})
        self._rates: dict[str, float] = {}  # path -> frames a second

    @property
    def is_there(self) -> bool:
        """Whether there are annotations, below ``root`` or one folder further down."""
        return ANNOTATIONS in self._folders

    def read(self) -> Collected:
        """All clips of all views.

        Raises:
            DatasetError: For annotations that are not there, or not as they were published.
        """
        reference = next((view for view in VIEWS if self._rows[view]), None)
        if reference is None:
            example = f"{ANNOTATIONS}/kinect_color/{FILE.format(split=0, part='train')}"
            raise DatasetError(
                f"{printable(self._root)}: no annotations below {ANNOTATIONS}; {example} is needed, "
                "or that of another camera"
            )
        collected = Collected()
        for view in VIEWS:
            counted_by = view if self._rows[view] else reference
            for name, row in self._rows[counted_by].items():
                fps = self._fps(counted_by, name.recording)
                span = row.first / fps, (row.last + 1) / fps
                collected.add(name, view.modality, row.label, self._media(view, name, span), span)
        collected.notes += [*self._absent(reference), *self._misfits(reference)]
        return collected

    @cached_property
    def _rows(self) -> dict[View, dict[ClipName, Row]]:
        unknown = UnknownActivities()
        annotations = self._root / self._folders.get(ANNOTATIONS, ANNOTATIONS)
        names = {name for view in VIEWS for name in view.annotated}
        found = {name: read_rows(annotations / name, unknown) for name in sorted(names)}
        unknown.check()
        return {view: next(filter(None, map(found.get, view.annotated)), {}) for view in VIEWS}

    @cached_property
    def _files(self) -> dict[View, Files]:
        return {view: self._files_of(view) for view in VIEWS}

    def _files_of(self, view: View) -> Files:
        folders = [self._folders[name] for name in view.folders if name in self._folders]
        found: Files = {}
        for folder in folders:
            for recording, path in recordings(self._root, folder, view.modality == "skeleton"):
                found.setdefault(recording, path)
        return found

    def _media(self, view: View, name: ClipName, span: tuple[float, float]) -> Media | None:
        path = self._files[view].get(name.recording)
        if path is None:
            return None
        if view.modality == "skeleton":
            return Media(path, "openpose-3d", {"fps": self._fps(view, name.recording)}, *span)
        return Media(path, "video", {}, *span)

    def _fps(self, view: View, recording: Recording) -> float:
        """The rate of the frames that the view's rows count: of its camera's file, else the nominal one."""
        camera = BY_FOLDER[view.annotated[0]]
        path = self._files[camera].get(recording)
        if path is not None and path not in self._rates:
            self._rates[path] = _fps_of(self._root / path, camera.fps)
        return camera.fps if path is None else self._rates[path]

    def _absent(self, reference: View) -> Iterator[str]:
        drives = {name.recording for rows in self._rows.values() for name in rows}
        for view in VIEWS:
            folder, files = view.folders[0], self._files[view]
            without = sorted(drives - set(files))
            if without:
                expected = f"{folder}/{EXAMPLE}.{view.stream}{_suffix(view)}"
                yield f"{folder}: {len(without)} of {len(drives)} recordings have no file such as {expected}"
            if files and not self._rows[view]:
                yield f"{folder}: no annotations of its own; {reference.folders[0]}'s are used, in seconds"

    def _misfits(self, reference: View) -> Iterator[str]:
        """Files with another rate than the annotations count: a clip lasts longer in them than elsewhere."""
        for view in VIEWS:
            both = [name for name in self._rows[view] if name in self._rows[reference]]
            ratios = [self._seconds(view, name) / self._seconds(reference, name) for name in both]
            ratio = median(ratios) if ratios else 1.0
            if max(ratio, 1 / ratio) > TOLERATED:
                yield (
                    f"{view.folders[0]}: clips last {ratio:.2f} times as long as in {reference.folders[0]}; "
                    "one of them does not have the frame rate that its annotations count: download it again"
                )

    def _seconds(self, view: View, name: ClipName) -> float:
        row = self._rows[view][name]
        return (row.last + 1 - row.first) / self._fps(view, name.recording)


def _suffix(view: View) -> str:
    return POSES if view.modality == "skeleton" else ".mp4"


def _fps_of(path: Path, nominal: float) -> float:
    """A video's rate; of a broken one the nominal rate: extraction meets the same error, and records it."""
    from extract.readers.rate import average_fps

    try:
        return average_fps(path)
    except ReadError:
        return nominal


def read_rows(folder: Path, unknown: UnknownActivities) -> dict[ClipName, Row]:
    """The clips of one camera's CSVs, of whichever of the nine are there.

    Raises:
        DatasetError: For a line of another form, a participant in a part where the official split has not, or
            a clip that two lines tell differently.
    """
    rows: dict[ClipName, Row] = {}
    for split in range(len(SUBJECTS)):
        for part in PARTS:
            path = folder / FILE.format(split=split, part=part)
            for where, cells in read_table(path, COLUMNS) if path.exists() else ():
                name, row = _parse(where, cells, unknown)
                check_part(where, split, name.participant, part)
                other = rows.setdefault(name, row)
                if other[1:] != row[1:]:
                    raise DatasetError(
                        f"{where}: clip {name} is frames {row.first} to {row.last}, {cells['activity']}; "
                        f"{other.where} tells otherwise; give the files as they were published"
                    )
    return rows


def _parse(where: str, cells: dict[str, str], unknown: UnknownActivities) -> tuple[ClipName, Row]:
    recording = Recording.parse(where, cells["file_id"])
    first, last = _number(where, cells, "frame_start"), _number(where, cells, "frame_end")
    if last < first:
        raise DatasetError(f"{where}: frame_end {last} comes before frame_start {first}; correct them")
    if _number(where, cells, "participant_id") != recording.participant:
        told = f"participant_id {cells['participant_id']} and file_id {cells['file_id']!r}"
        raise DatasetError(f"{where}: {told} are two participants; correct one")
    name = ClipName(*recording, _number(where, cells, "annotation_id"), _number(where, cells, "chunk_id"))
    return name, Row(where, unknown.label(where, cells["activity"]), first, last)


def _number(where: str, cells: dict[str, str], column: str) -> int:
    if not cells[column].isdecimal():
        raise DatasetError(f"{where}: {column} is {cells[column]!r}; a number from 0 is needed")
    return int(cells[column])


def recordings(root: Path, folder: str, poses: bool) -> Iterator[tuple[Recording, str]]:
    """(recording, path) of the videos, or files of poses, in a view's folders ``vp1``, ``vp2``, ...

    Files whose names are no recordings are left out.
    """
    for participant in entries(root / folder):
        if not (participant.name.startswith("vp") and participant.is_dir()):
            continue
        for entry in entries(root / folder / participant.name):
            stem, suffix = os.path.splitext(entry.name)
            if poses and entry.name.endswith(POSES):
                stem = entry.name.removesuffix(POSES)
            elif poses or suffix.lower() not in VIDEO_SUFFIXES:
                continue
            path = f"{folder}/{participant.name}/{entry.name}"
            yield Recording.parse(printable(path), f"{participant.name}/{stem}"), path
