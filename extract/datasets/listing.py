"""A list of clips in a file: ``path label`` lines, CSV or JSON lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extract.datasets.classes import load_names, prompt_texts
from extract.datasets.clips import Clip, DatasetError, LabelText, Split
from extract.datasets.listing_clips import clip_from_row
from extract.datasets.listing_rows import Row, RowReader
from store.register import DuplicateClipError, LabelError


class Listing:
    """Lists the clips that a file (or one file per part) names.

    Forms, by the file's ending:

    - ``.csv``, ``.tsv``: a header, then a line per clip. ``.jsonl``: an object per line. Columns: ``clip_id``
      (else the path); a modality each, suffix allowed (``rgb``, ``ir.ceiling``), empty = missing; ``label``
      (number from 0, or name), ``label_name``; ``caption`` (in JSON also a list, or objects with ``text``,
      ``source``, ``start_seconds``, ``end_seconds``), ``caption_file``; ``split`` or ``split:<protocol>``;
      ``subject``, ``camera``, ``setup``, ``replication``; ``start_seconds``, ``end_seconds`` (or ``start``,
      ``end``). Others become attributes.
    - any other: ``path label`` a line, as M2CLIP and most video lists (a path may hold spaces); with
      ``columns: [path, frames, label]`` the older ``path frames label``.

    Protocols: ``listed`` from ``file`` per part or the column ``split``; others from ``split:<protocol>``.

    Args:
        root: What paths are relative to.
        file: The list, relative to ``root`` or absolute; or part -> list.
        classes: A class list (see `classes.load_names`), or the names themselves. Without, labels that are
            names make the class list (in alphabetical order), and numbers are not checked.
        modality: Of the path in ``path label`` lines.
        columns: Of those lines.
        suffix: Appended to every path of those lines (``.mp4``).
        readers: Modality -> reader's name, or mapping with ``reader`` and its options, where the file's
            ending does not tell (``depth: {reader: mat, layout: HWT, fps: 30}``).
        prompts: Prompt set -> template with ``{label}``.
    """

    name = "listing"

    def __init__(
        self,
        root: Path,
        file: str | Mapping[str, str] = "clips.csv",
        classes: str | Sequence[str] | None = None,
        modality: str = "rgb",
        columns: Sequence[str] = ("path", "label"),
        suffix: str = "",
        readers: Mapping[str, Any] | None = None,
        prompts: Mapping[str, str] | None = None,
    ):
        self._root, self._prompts, self._readers = Path(root), prompts, dict(readers or {})
        self._classes = load_names(self._root / classes) if isinstance(classes, str) else list(classes or [])
        self._closed = bool(self._classes)  # the list was given: labels must be in it
        read = RowReader(modality, tuple(columns), suffix)
        files = {None: file} if isinstance(file, str) else dict(file)
        self._rows = [row for part, path in files.items() for row in read(self._root / path, part)]
        if not self._closed:
            self._classes = _names_in_use(self._rows)
        self._splits = list(self._clip_splits())

    def class_names(self) -> list[str]:
        """Class names by label; empty if labels are numbers without names."""
        return list(self._classes)

    def clips(self) -> Iterator[Clip]:
        """The clips in the order of the list.

        Raises:
            DuplicateClipError: For a clip id that two lines have; names both lines.
            LabelError: For a label outside the class list; names file and line.
            DatasetError: For a line that says too little, or wrong things.
        """
        lines: dict[str, str] = {}
        for row in self._rows:
            clip = clip_from_row(row, self._label(row), self._root, self._readers)
            if clip.clip_id in lines:
                raise DuplicateClipError(
                    f"{row.where}: clip id {clip.clip_id!r} is also that of {lines[clip.clip_id]}; "
                    "give each clip a clip_id of its own"
                )
            lines[clip.clip_id] = row.where
            yield clip

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The parts that the lists give."""
        known = {clip.clip_id for clip in clips}
        return (split for split in self._splits if split.clip_id in known)

    def label_texts(self) -> Iterator[LabelText]:
        """The class names in every prompt."""
        return prompt_texts(self._classes, self._prompts)

    def _clip_splits(self) -> Iterator[Split]:
        for row in self._rows:
            for protocol, part in row.splits.items():
                yield Split(protocol, row.clip_id, part)

    def _label(self, row: Row) -> tuple[int | None, str | None]:
        """(label, label_name) by the class list."""
        label, name = row.label, row.label_name
        if isinstance(label, str):
            label, name = None, label
        if label is None and name is not None:
            if name not in self._classes:
                raise LabelError(f"{row.where}: label {name!r} is not in the class list; {self._accepted()}")
            label = self._classes.index(name)
        if label is not None and (label < 0 or (self._classes and label >= len(self._classes))):
            raise LabelError(f"{row.where}: label {label} is outside the class list; {self._accepted()}")
        if label is not None and self._classes:
            name = self._classes[label]
        return label, name

    def _accepted(self) -> str:
        if not self._classes:
            return "0, 1, ... are accepted"
        return f"0 to {len(self._classes) - 1} are accepted, or their names"


def _names_in_use(rows: Sequence[Row]) -> list[str]:
    """The class list that the rows imply: names alone in alphabetical order; or names by their numbers.

    Raises:
        DatasetError: If some labels are names and others numbers, or a number has two names.
    """
    alone = sorted({row.label for row in rows if isinstance(row.label, str)})
    numbered: dict[int, str] = {}
    for row in rows:
        if isinstance(row.label, int):
            if alone:
                raise DatasetError(
                    f"{row.where}: label {row.label} is a number, others are names; use one kind"
                )
            if row.label_name and numbered.setdefault(row.label, row.label_name) != row.label_name:
                other = numbered[row.label]
                raise DatasetError(
                    f"{row.where}: label {row.label} is {row.label_name!r}, elsewhere {other!r}"
                )
        elif row.label is None and row.label_name:
            alone = sorted({*alone, row.label_name})
    if sorted(numbered) == list(range(len(numbered))):
        return [numbered[label] for label in range(len(numbered))] or alone
    return alone
