"""Finding NTU RGB+D's files: by walking the folder, or from list files as CMVRA has them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from extract.datasets.clips import DatasetError, Media
from extract.datasets.ntu_names import NTUName
from extract.datasets.scan import entries

MAX_DEPTH = 4  # of folders in folders: archives unpack into folders of their own, often twice

# What follows the clip's name in a file's or folder's name -> modality, reader; better ones first. A folder
# without suffix is depth (``nturgb+d_depth_masked/S001...``), unless its parent's name says otherwise
# (``nturgb+d_rgb_frames/S001...``).
FILES = {
    "_rgb.avi": ("rgb", "video"),
    "_rgb.mp4": ("rgb", "video"),
    "_rgb_low_res.avi": ("rgb", "video"),
    "_ir.avi": ("ir", "video"),
    "_ir.mp4": ("ir", "video"),
    ".skeleton": ("skeleton", "ntu-skeleton"),
    ".skeleton.npy": ("skeleton", "skeleton-npy"),
}
FOLDERS = {
    "": ("depth", "depth-png"),
    "_depth": ("depth", "depth-png"),
    "_rgb": ("rgb", "images"),
    "_ir": ("ir", "images"),
}
RANKS = {suffix: rank for rank, suffix in enumerate([*FILES, *FOLDERS])}
LIST_COLUMNS = ("rgb", "ir", "depth", "skeleton")

Found = dict[NTUName, dict[str, Media]]


def walk(root: Path, folders: Mapping[str, str]) -> Found:
    """All clips under ``root`` with the best file of each modality.

    Args:
        root: The dataset's folder.
        folders: Modality -> the only folder (relative to root) in which it is looked for.

    Raises:
        DatasetError: If a folder cannot be listed, or a name is out of NTU's range.
    """
    found: Found = {}
    ranks: dict[tuple[NTUName, str], tuple[int, str]] = {}
    for path, name, suffix, (modality, reader) in _candidates(root, "", 0):
        only = folders.get(modality)
        if only is not None and PurePosixPath(only) not in PurePosixPath(path).parents:
            continue
        rank = (RANKS[suffix], path)
        if ranks.get((name, modality), rank) >= rank:
            ranks[name, modality] = rank
            found.setdefault(name, {})[modality] = Media(path, reader)
    return found


def _candidates(root: Path, folder: str, depth: int) -> Iterator[tuple[str, NTUName, str, tuple[str, str]]]:
    """(path, clip, suffix, (modality, reader)) of everything that carries a clip's name."""
    for entry in entries(root / folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        name = NTUName.find(entry.name)
        if name is not None:
            suffix = entry.name[len(str(name)) :]
            kind = FILES.get(suffix) if "." in suffix else _folder_kind(folder, suffix)
            if kind is not None:
                name.check()
                yield path, name, suffix, kind
        elif depth < MAX_DEPTH and entry.is_dir():
            yield from _candidates(root, path, depth + 1)


def _folder_kind(parent: str, suffix: str) -> tuple[str, str] | None:
    """(modality, reader) of a folder of images in ``parent``; None for a suffix that is not NTU's."""
    if suffix not in FOLDERS:
        return None
    modality = FOLDERS[suffix][0]
    if not suffix:
        told = PurePosixPath(parent).name.lower().removeprefix("nturgb+d").split("_")
        modality = next((name for name in ("rgb", "ir") if name in told), modality)
    return modality, _folder_reader(modality, parent)


def _folder_reader(modality: str, parent: str) -> str:
    """CMVRA's scripts stretch depth that they crop to eight bits: those are pictures, no millimetres."""
    metric = modality.partition(".")[0] == "depth" and "cropped" not in PurePosixPath(parent).name
    return "depth-png" if metric else "images"


def read_lists(root: Path, files: Sequence[str], columns: Sequence[str]) -> tuple[Found, list[NTUName]]:
    """Clips of list files: a line has one path a column, relative to ``root``, and the label from 1.

    ``None`` in place of a path means that the clip lacks the modality. Paths may not hold spaces.

    Returns:
        The clips, and their names in the order of the lists.

    Raises:
        DatasetError: With file and line, for a line of another form, a label that disagrees with the clip's
            name, or a clip that is listed twice.
    """
    found: Found = {}
    for file in files:
        for number, line in enumerate(_lines(root / file), 1):
            if not line.strip():
                continue
            name, media = _parse_line(f"{root / file}, line {number}", line.split(), columns)
            if name in found:
                raise DatasetError(f"{root / file}, line {number}: clip {name} is listed twice; remove one")
            found[name] = media
    return found, list(found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: list file cannot be read ({error}); give a UTF-8 text file") from None


def _parse_line(where: str, words: Sequence[str], columns: Sequence[str]) -> tuple[NTUName, dict[str, Media]]:
    if len(words) != len(columns) + 1:
        raise DatasetError(
            f"{where}: has {len(words)} fields; {len(columns)} paths "
            f"({' '.join(columns)}) and a label are needed"
        )
    paths = {column: word for column, word in zip(columns, words, strict=False) if word != "None"}
    names = {NTUName.find(os.path.basename(path.rstrip("/"))) for path in paths.values()}
    if len(names) != 1 or None in names:
        raise DatasetError(f"{where}: its paths name {len(names)} clips; all of one NTU clip are needed")
    name = names.pop()
    assert name is not None
    name.check()
    if not words[-1].isdecimal() or int(words[-1]) != name.action:
        raise DatasetError(f"{where}: label {words[-1]} is not the action {name.action} of clip {name}")
    return name, {column: Media(path, _reader(where, column, path)) for column, path in paths.items()}


def _reader(where: str, modality: str, path: str) -> str:
    """The reader by the path's ending; folders have none."""
    for suffix, (_, reader) in FILES.items():
        if path.endswith(suffix) and reader != "video":
            return reader
    if os.path.splitext(path)[1]:
        return "video"
    return _folder_reader(modality, os.path.dirname(path.rstrip("/")))
