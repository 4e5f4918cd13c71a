"""What is collected of Drive&Act's clips while its annotations, folders or lists are read."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from extract.datasets.clips import Media
from extract.datasets.daa_names import ClipName
from extract.datasets.scan import entries

MAX_DEPTH = 2  # of the views' folders: some unpack all archives into one of its own


@dataclass
class Listed:
    """A clip: its label, its span in seconds (None: the whole of its files), and modality -> file."""

    label: int | None
    span: tuple[float, float] | None = None
    media: dict[str, Media] = field(default_factory=dict)


@dataclass
class Collected:
    """All clips, their part in the user's own lists, and what the user should know about them.

    Attributes:
        clips: Every clip that some view names, with or without files.
        parts: Clip -> part of the lists, if there are lists.
        disagreeing: Modality -> clips in which its activity is another than that of the views before it.
        notes: Sentences about what is not there.
    """

    clips: dict[ClipName, Listed] = field(default_factory=dict)
    parts: dict[ClipName, str] = field(default_factory=dict)
    disagreeing: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        name: ClipName,
        modality: str,
        label: int | None,
        media: Media | None,
        span: tuple[float, float] | None = None,
    ) -> None:
        """One view of a clip. The first view's span counts, the first file of a modality, the first label.

        A view that names another activity than those before shows something else: its file is left out.
        """
        listed = self.clips.setdefault(name, Listed(label, span))
        if listed.label is None:
            listed.label = label
        if label is not None and label != listed.label:
            self.disagreeing[modality] += 1
        elif media is not None:
            listed.media.setdefault(modality, media)

    def all_notes(self) -> list[str]:
        """``notes``, and how many files were left out."""
        left_out = [
            f"{count} clips of {modality} are left out: their activity is not that of the clip's other views"
            for modality, count in self.disagreeing.items()
        ]
        return [*self.notes, *left_out]


def find_folders(root: Path, names: Collection[str]) -> dict[str, str]:
    """Folder name -> path relative to ``root`` of the first folder so called, upper ones first.

    Raises:
        DatasetError: If a folder on the way cannot be listed.
    """
    found: dict[str, str] = {}
    level = [""]
    for _ in range(MAX_DEPTH):
        below = []
        for folder in level:
            for entry in entries(root / folder):
                path = f"{folder}/{entry.name}".lstrip("/")
                if entry.is_dir() and entry.name in names:
                    found.setdefault(entry.name, path)
                elif entry.is_dir():
                    below.append(path)
        level = below
    return found
