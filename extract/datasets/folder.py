"""A folder of media: a directory per class, or media without classes."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from extract.datasets.classes import prompt_texts
from extract.datasets.clips import Caption, Clip, DatasetError, LabelText, Media, Split
from extract.datasets.media_kinds import kind_of
from extract.datasets.scan import entries
from extract.readers.media import ReadError
from extract.readers.text import TextReader

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "test": "test",
    "testing": "test",
}
IMAGES = ("rgb", "images")
MAX_DEPTH = 12  # deeper means a link that leads back


class Folder:
    """Lists ``root/<class>/.../<file>``; with folders ``train``, ``val``, ``test`` above the classes, if any.

    Files that differ in their suffix only are one clip (``a.mp4`` and ``a.wav``); a ``.txt`` beside them is
    its caption. A folder below a class's that holds images is one clip, a sequence. Where media lie in
    ``root`` itself there are no classes: everything below is unlabelled. The protocol of part folders is
    ``folder``.

    Args:
        root: The folder.
        classes: Whether its folders are classes; ``"auto"``: unless ``root`` holds media itself.
        prompts: Prompt set -> template with ``{label}``; underscores in class names become spaces in it.
        fps: Rate of image sequences.
    """

    name = "folder"

    def __init__(
        self,
        root: Path,
        classes: bool | Literal["auto"] = "auto",
        prompts: Mapping[str, str] | None = None,
        fps: float = 30.0,
    ):
        self._root, self._prompts, self._fps = Path(root), prompts, fps
        top = list(entries(self._root))
        folders = [entry.name for entry in top if entry.is_dir()]
        self._parts = bool(folders) and all(name.lower() in PARTS for name in folders)
        loose = any(entry.is_file() and kind_of(entry.name) for entry in top)
        self._classed = not loose if classes == "auto" else classes
        self._names = self._class_names(folders) if self._classed else []

    def class_names(self) -> list[str]:
        """Class names by label: the folders' names in alphabetical order; empty without classes."""
        return list(self._names)

    def clips(self) -> Iterator[Clip]:
        """All clips by path.

        Raises:
            DatasetError: If a folder cannot be listed, or a caption file is not UTF-8.
        """
        labels = {name: label for label, name in enumerate(self._names)}
        for clip_id, found in sorted(self._found().items()):
            folders = clip_id.split("/")[int(self._parts) : -1]
            label_name = folders[0] if self._classed and folders else None
            yield Clip(
                clip_id=clip_id,
                media={modality: files[0] for modality, files in found.media.items()},
                label=labels.get(label_name) if label_name is not None else None,
                label_name=label_name,
                captions=tuple(_caption(self._root / path) for path in found.texts),
            )

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The part folder of each clip, where there are any."""
        for clip in clips:
            if self._parts:
                yield Split("folder", clip.clip_id, PARTS[clip.clip_id.split("/")[0].lower()])

    def label_texts(self) -> Iterator[LabelText]:
        """The class names, with spaces for underscores, in every prompt."""
        spoken = [name.replace("_", " ") for name in self._names]
        for text in prompt_texts(spoken, self._prompts):
            yield text._replace(label_name=self._names[text.label])

    def _class_names(self, folders: list[str]) -> list[str]:
        if not self._parts:
            return sorted(folders)
        below = (entries(self._root / folder) for folder in folders)
        return sorted({entry.name for listed in below for entry in listed if entry.is_dir()})

    def _found(self) -> dict[str, "_Files"]:
        """Clip id -> its files. The id is the path without suffix, or with it where two would be the same."""
        stems: dict[str, _Files] = {}
        for stem, modality, media in self._media("", 0):
            files = stems.setdefault(stem, _Files())
            if modality == "text":
                files.texts.append(media.path)
            else:
                files.media.setdefault(modality, []).append(media)
        return {key: files for stem, group in stems.items() for key, files in group.clips(stem)}

    def _media(self, folder: str, depth: int) -> Iterator[tuple[str, str, Media]]:
        """(path without suffix, modality, media) of every file and every image sequence."""
        if depth > MAX_DEPTH:
            raise DatasetError(
                f"{self._root / folder}: {depth} folders deep; a link may lead back, remove it"
            )
        listed = list(entries(self._root / folder))
        kinds = {entry.name: _kind(entry.name) for entry in listed if entry.is_file()}
        own = int(self._parts) + int(self._classed)  # levels of folders that are no sequences
        if depth > own and IMAGES in kinds.values():
            yield folder, "rgb", Media(folder, "images", {"fps": self._fps})
            kinds = {name: kind for name, kind in kinds.items() if kind != IMAGES}
        for name, kind in kinds.items():
            if kind:
                path = f"{folder}/{name}" if folder else name
                yield os.path.splitext(path)[0], kind[0], Media(path, kind[1])
        for entry in listed:
            if entry.is_dir():
                yield from self._media(f"{folder}/{entry.name}" if folder else entry.name, depth + 1)


@dataclass
class _Files:
    """What lies under one path without suffix."""

    media: dict[str, list[Media]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def clips(self, stem: str) -> Iterator[tuple[str, "_Files"]]:
        """One clip (none for a lone text); or one per file where a modality has several files."""
        if all(len(files) == 1 for files in self.media.values()):
            if self.media:
                yield stem, self
            return
        for modality, files in self.media.items():
            for media in files:
                yield media.path, _Files({modality: [media]}, self.texts)


def _kind(name: str) -> tuple[str, str] | None:
    return ("text", "text") if name.lower().endswith(".txt") else kind_of(name)


def _caption(path: Path) -> Caption:
    try:
        return Caption(str(TextReader().read(path).values[0]), "folder")
    except ReadError as error:
        raise DatasetError(str(error)) from None
