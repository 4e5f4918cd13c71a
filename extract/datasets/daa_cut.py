"""Drive&Act as CMVRA's scripts leave it: a file for every clip and view, in folders or in lists.

What such a file has lost cannot be had back: the scripts write 15 frames a second into all of them, so that
the times of cameras with 30 go half as fast, and they stop after 48 frames unless told otherwise. A count of
frames (``--frames 12``) covers the whole of each file, whatever it says; for times that are true, extract
from the release.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from extract.datasets.annotations import read_lines
from extract.datasets.clips import DatasetError, Media
from extract.datasets.daa_clips import Collected, find_folders
from extract.datasets.daa_names import (
    BY_FOLDER,
    VIEWS,
    ClipName,
    UnknownActivities,
    check_part,
    labels,
    parse_cut,
)
from extract.datasets.media_kinds import VIDEO_SUFFIXES
from extract.datasets.scan import entries
from extract.readers.media import printable

CLIPS = "clips"  # the folder in a view's folder
MISSING = "None"
_PART = re.compile(r"(train|val|test)([012]?)")
_SKELETON = ".npy"
_SUFFIXES = (*VIDEO_SUFFIXES, _SKELETON)


def read_folders(root: Path) -> Collected:
    """The clips in ``<view>/clips/<part>``: ``train val test`` of split 0, ``train1`` ... of split 1 and 2.

    A clip is cut once for every split; the first copy counts.

    Raises:
        DatasetError: For files that are no clips, unknown activities, or a participant in a wrong part.
    """
    collected, unknown = Collected(), UnknownActivities()
    for folder, path in sorted(find_folders(root, BY_FOLDER).items(), key=lambda item: _order(item[0])):
        for split, part, below in _parts(root, f"{path}/{CLIPS}"):
            for entry in entries(root / below):
                where, suffix = f"{below}/{entry.name}", os.path.splitext(entry.name)[1].lower()
                modality = BY_FOLDER[folder].modality
                if suffix == _SKELETON if modality == "skeleton" else suffix in VIDEO_SUFFIXES:
                    name, label = _told(where, unknown)
                    check_part(printable(where), split, name.participant, part)
                    collected.add(name, modality, label, _media(modality, where))
    unknown.check()
    nameless = sum(listed.label is None for listed in collected.clips.values())
    if nameless:
        collected.notes.append(
            f"{nameless} clips have only a skeleton, whose name tells no activity: no label"
        )
    return collected


def _order(folder: str) -> tuple[int, int]:
    """As ``VIEWS``, the better folder of a view first."""
    view = BY_FOLDER[folder]
    return VIEWS.index(view), view.folders.index(folder)


def _parts(root: Path, folder: str) -> list[tuple[int, str, str]]:
    """(split, part, path) of a view's folders of clips, split 0 first."""
    if not (root / folder).is_dir():
        return []
    matches = [(_PART.fullmatch(entry.name), entry) for entry in entries(root / folder) if entry.is_dir()]
    return sorted(
        (int(match[2] or 0), match[1], f"{folder}/{entry.name}") for match, entry in matches if match
    )


def _told(path: str, unknown: UnknownActivities) -> tuple[ClipName, int | None]:
    """Clip and label from a file's name."""
    where = printable(path)
    name, activity = parse_cut(where, os.path.splitext(os.path.basename(path))[0])
    return name, None if activity is None else unknown.label(where, activity)


def _media(modality: str, path: str) -> Media:
    if modality == "skeleton":
        return Media(path, "skeleton-npy", {"max_persons": 1, "fps": 30.0})
    return Media(path, "video")


def read_lists(root: Path, files: Mapping[str, str]) -> Collected:
    """The clips of CMVRA's list files, part -> file relative to ``root``.

    A line has nine paths (``rgb ir depth skeleton ceiling inner_mirror a_column_co_driver a_column_driver
    steering_wheel``; ``None`` for a missing one) and the label from 0. Paths may hold spaces
    (``looking_or_moving_around (e.g. searching)_1_vp1_...avi``): a path goes on until a word ends like a
    media file. Lines that repeat a clip, as in CMVRA's "balanced" lists, count once.

    Raises:
        DatasetError: With file and line, for a line of another form, paths of several clips, or a label that
            is not that of the paths' activity.
    """
    collected, unknown = Collected(), UnknownActivities()
    for part, file in files.items():
        for where, line in read_lines(root / file):
            paths, label = split_line(where, line)
            named = [(modality, path, *_told(path, unknown)) for modality, path in _columns(where, paths)]
            unknown.check()
            name = _only_name(where, [found[2] for found in named])
            if any(told not in (None, label) for *_, told in named):
                raise DatasetError(
                    f"{where}: label {label} is not that of {named[0][1]!r}; labels among all 34 classes are "
                    "needed (zero-shot lists count anew: options.zero_shot takes the splits they come from)"
                )
            if collected.parts.setdefault(name, part) != part:
                raise DatasetError(
                    f"{where}: clip {name} is in part {collected.parts[name]!r} too; remove one"
                )
            for modality, path, *_ in named:
                collected.add(name, modality, label, _media(modality, path))
    return collected


def split_line(where: str, line: str) -> tuple[list[str | None], int]:
    """A list's line -> its paths (None where missing) and the label.

    Raises:
        DatasetError: If it does not end in a label, or a path in a media file's ending.
    """
    *words, last = line.split()
    if not last.isdecimal() or int(last) not in labels().values():
        raise DatasetError(f"{where}: ends in {last!r}; a label from 0 to {max(labels().values())} is needed")
    paths: list[str | None] = []
    begun: list[str] = []
    for word in words:
        begun.append(word)
        if begun == [MISSING]:
            paths.append(None)
        elif os.path.splitext(word)[1].lower() in _SUFFIXES:
            paths.append(" ".join(begun))
        else:
            continue
        begun = []
    if begun:
        raise DatasetError(f"{where}: {' '.join(begun)!r} ends like no media file; {', '.join(_SUFFIXES)} do")
    return paths, int(last)


def _columns(where: str, paths: list[str | None]) -> Iterator[tuple[str, str]]:
    """(modality, path): by the view's folder in the path, else by its place in the line."""
    seen: set[str] = set()
    for place, path in enumerate(paths):
        if path is None:
            continue
        view = next((BY_FOLDER[name] for name in PurePosixPath(path).parts if name in BY_FOLDER), None)
        if view is None and len(paths) == len(VIEWS):
            view = VIEWS[place]
        if view is None or view.modality in seen:
            problem = "is of no view" if view is None else f"is a second file of {view.modality}"
            raise DatasetError(
                f"{where}: {path!r} {problem}; {len(VIEWS)} paths, or paths with a view's folder "
                f"({', '.join(BY_FOLDER)}), are needed"
            )
        seen.add(view.modality)
        yield view.modality, path


def _only_name(where: str, names: list[ClipName]) -> ClipName:
    if len(set(names)) != 1:
        raise DatasetError(f"{where}: its paths name {len(set(names))} clips; all of one clip are needed")
    return names[0]
