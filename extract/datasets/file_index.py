"""Finding a dataset's files by name, in whatever folders they lie."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from extract.datasets.clips import DatasetError
from extract.datasets.media_kinds import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from extract.datasets.scan import entries
from extract.readers.media import printable

MAX_DEPTH = 12  # of folders; deeper means a link that leads back
VIDEOS = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix != ".gif")  # those are previews
TEXTS = (".json", ".csv")


class FileIndex:
    """The videos, sounds and annotation files below a folder by name; hidden ones are left out.

    Args:
        root: The dataset's root: what paths are relative to.
        folder: Folder to look in, relative to ``root`` or absolute; None = ``root``.
        option: The adapter's option that names it, for errors.

    Raises:
        DatasetError: If it, or a folder in it, cannot be listed.
    """

    def __init__(self, root: Path, folder: str | None, option: str):
        self.folder = root / (folder or "")
        self._option = option
        self._names: dict[str, list[str]] = {}
        self._media: dict[tuple[str, bool], list[str]] = {}
        if not self.folder.is_dir():
            raise DatasetError(f"options.{option}: {printable(self.folder)} is no folder; name the one")
        for path in _files(root, folder or "", 0):
            name = os.path.basename(path)
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in TEXTS:
                self._names.setdefault(name, []).append(path)
            elif suffix.lower() in VIDEOS + AUDIO_SUFFIXES:
                self._media.setdefault((stem, suffix.lower() in VIDEOS), []).append(path)

    def named(self, name: str) -> str | None:
        """The path of the one annotation file of that name; None if there is none.

        Raises:
            DatasetError: If there are several.
        """
        return self._only(name, self._names.get(name, []))

    def video(self, stem: str) -> str | None:
        """The path of the one video of that name without suffix; likewise."""
        return self._only(stem, self._media.get((stem, True), []))

    def sound(self, stem: str) -> str | None:
        """The path of the one sound file of that name without suffix; likewise."""
        return self._only(stem, self._media.get((stem, False), []))

    def _only(self, name: str, found: Sequence[str]) -> str | None:
        if len(found) > 1:
            raise DatasetError(
                f"{printable(self.folder)}: {len(found)} files are called {name!r}: "
                f"{', '.join(map(printable, found[:3]))}; "
                f"keep one, or set options.{self._option} to its folder"
            )
        return found[0] if found else None


def _files(root: Path, folder: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise DatasetError(f"{root / folder}: {depth} folders deep; a link may lead back, remove it")
    folders = []
    for entry in entries(root / folder):
        path = os.path.join(folder, entry.name)
        if entry.is_dir():
            folders.append(path)
        else:
            yield path
    for path in folders:
        yield from _files(root, path, depth + 1)
