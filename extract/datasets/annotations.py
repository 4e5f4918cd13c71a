"""Reading annotation files: JSON values and table rows that know where they stand, for errors."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from extract.datasets.clips import DatasetError
from extract.readers.media import printable


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a JSON file.

    Attributes:
        value: What ``json`` made of it.
        path: The file.
        keys: The way to it: names of objects' members, indices of lists.
    """

    value: Any
    path: Path
    keys: tuple[str | int, ...] = ()

    @property
    def where(self) -> str:
        """``file: videos[3].split``."""
        way = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)
        return f"{printable(self.path)}: {printable(way.removeprefix('.')) or 'the file'}"

    def __getitem__(self, key: str) -> "Node":
        """The member of that name. Raises: DatasetError, if this is no object or has none."""
        if not isinstance(self.value, dict):
            self._refuse("an object")
        if key not in self.value:
            has = ", ".join(sorted(map(str, self.value))[:8]) or "nothing"
            raise DatasetError(f"{self.where} has no {key!r}, but {has}; give the file as it was published")
        return Node(self.value[key], self.path, (*self.keys, key))

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def members(self) -> "Iterator[tuple[str, Node]]":
        """(name, value) of an object's members. Raises: DatasetError."""
        if not isinstance(self.value, dict):
            self._refuse("an object")
        return ((name, Node(value, self.path, (*self.keys, name))) for name, value in self.value.items())

    def items(self) -> "list[Node]":
        """A list's values. Raises: DatasetError."""
        if not isinstance(self.value, list):
            self._refuse("a list")
        return [Node(value, self.path, (*self.keys, k)) for k, value in enumerate(self.value)]

    def text(self) -> str:
        """Text without white space around it. Raises: DatasetError."""
        if not isinstance(self.value, str):
            self._refuse("text")
        return str(self.value).strip()

    def choice(self, choices: Sequence[str]) -> str:
        """Text that is one of some. Raises: DatasetError."""
        if self.value not in choices:
            self._refuse(" or ".join(choices))
        return str(self.value)

    def seconds(self) -> float:
        """A time from 0. Raises: DatasetError."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            self._refuse("seconds from 0")
        return float(value)

    def span(self) -> tuple[float, float]:
        """Two times, the second one later. Raises: DatasetError."""
        times = [time.seconds() for time in self.items()]
        if len(times) != 2 or times[0] >= times[1]:
            self._refuse("[start, end] in seconds, start < end,")
        return times[0], times[1]

    def _refuse(self, wanted: str) -> NoReturn:
        raise DatasetError(f"{self.where} is {self.value!r:.60}; {wanted} is needed")


def read_json(path: Path) -> Node:
    """A JSON file. Raises: DatasetError, with the line that is no JSON."""
    try:
        return Node(json.loads(read_text(path)), path)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{printable(path)}, line {error.lineno}: is no JSON ({error.msg}); copy the file again"
        ) from None


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, column -> cell without white space around it) of a CSV file's rows.

    Raises:
        DatasetError: If the header lacks one of ``columns``, or a row has another number of cells.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in columns if name not in header]
    if missing:
        raise DatasetError(
            f"{printable(path)}, line 1: no column {missing[0]!r} among {', '.join(header) or 'none'}; "
            f"{', '.join(columns)} {'is' if len(columns) == 1 else 'are'} needed"
        )
    reader.fieldnames = header
    for row in reader:
        where = f"{printable(path)}, line {reader.line_num}"
        if None in row or None in row.values():
            raise DatasetError(f"{where}: does not have the header's {len(header)} cells; quote commas")
        yield where, {name: row[name].strip() for name in columns}


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line, text) of a file's lines that are not blank. Raises: DatasetError."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield f"{printable(path)}, line {number}", line.rstrip("\r")


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises: DatasetError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{printable(path)}: cannot be read ({error}); give a UTF-8 file") from None
