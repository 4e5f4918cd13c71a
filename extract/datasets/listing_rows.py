"""The lines of a list of clips, whatever its form, as rows with the same fields."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extract.datasets.clips import MODALITIES, DatasetError
from extract.readers.media import printable

DESCRIPTION = ("subject", "camera", "setup", "replication")
TIMES = {"start_seconds": "start_seconds", "start": "start_seconds"} | {
    "end_seconds": "end_seconds",
    "end": "end_seconds",
}
LISTED = "listed"  # the protocol of a column `split`, or of a list per part


@dataclass(frozen=True)
class Row:
    """One line of a list.

    Attributes:
        where: File and line, for errors.
        clip_id: Given, or made of the first path (and the span).
        paths: Modality -> path.
        label: Number or name.
        label_name: Name beside a number.
        splits: Protocol -> part.
        start_seconds: Beginning of the clip.
        end_seconds: End of the clip.
        captions: Strings or objects.
        caption_file: Path of a text file.
        description: Values of the columns in ``DESCRIPTION``.
        attributes: All other columns.
    """

    where: str
    clip_id: str
    paths: Mapping[str, str]
    label: int | str | None = None
    label_name: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float | None = None
    end_seconds: float | None = None
    captions: tuple[Any, ...] = ()
    caption_file: str | None = None
    description: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowReader:
    """Reads a list file; ``modality``, ``columns`` and ``suffix`` are for ``path label`` lines."""

    modality: str
    columns: tuple[str, ...]
    suffix: str

    def __call__(self, path: Path, part: str | None) -> list[Row]:
        """The rows of the list; ``part`` is that of all of them in protocol ``listed``.

        Raises:
            DatasetError: With file and line, for what cannot be understood.
        """
        text = _text(path)
        if path.suffix.lower() in (".csv", ".tsv"):
            cells = _csv_cells(path, text)
        elif path.suffix.lower() in (".jsonl", ".ndjson"):
            cells = _json_cells(path, text)
        else:
            cells = self._line_cells(path, text)
        rows = [_row(where, values, part) for where, values in cells]
        if not rows:
            raise DatasetError(f"{printable(path)}: lists no clip; a line per clip is needed")
        return rows

    def _line_cells(self, path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.columns not in (("path", "label"), ("path", "frames", "label"), ("path",)):
            known = "[path, label], [path, frames, label] or [path]"
            raise DatasetError(f"listing: columns is {list(self.columns)}; {known} is accepted")
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{printable(path)}, line {number}"
                words = line.strip().rsplit(maxsplit=len(self.columns) - 1)
                if len(words) < len(self.columns):
                    raise DatasetError(f"{where}: is {line!r:.80}; `{' '.join(self.columns)}` is needed")
                values = dict(zip(self.columns, words, strict=True))
                label = {"label": values["label"]} if "label" in values else {}
                yield where, {self.modality: values["path"] + self.suffix, **label}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{printable(path)}: there is no such list; set `file`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{printable(path)}: list cannot be read ({error}); give a UTF-8 file") from None


def _csv_cells(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ","
    )
    for values in reader:
        where = f"{printable(path)}, line {reader.line_num}"
        if None in values or None in values.values():
            count = len(reader.fieldnames or ())
            raise DatasetError(
                f"{where}: does not have the header's {count} fields; quote fields with commas"
            )
        yield where, dict(values)


def _json_cells(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{where}: is no JSON ({error}); an object per line is needed") from None
            if not isinstance(values, dict):
                raise DatasetError(f"{where}: is a {type(values).__name__}; an object per line is needed")
            yield where, values


def _row(where: str, cells: Mapping[str, Any], part: str | None) -> Row:
    values = {str(key).strip(): value for key, value in cells.items() if value not in (None, "", [])}
    paths = {key: str(values.pop(key)) for key in list(values) if key.partition(".")[0] in MODALITIES}
    if not paths:
        raise DatasetError(f"{where}: names no media; a column of {', '.join(MODALITIES)} is needed")
    splits = {LISTED: part} if part else {}
    for key in [key for key in values if key == "split" or key.startswith("split:")]:
        splits[key.partition(":")[2] or LISTED] = str(values.pop(key))
    times = {TIMES[key]: _seconds(where, key, values.pop(key)) for key in TIMES if key in values}
    captions = values.pop("caption", None) or values.pop("captions", None) or ()
    return Row(
        where=where,
        clip_id=str(values.pop("clip_id", "")) or _default_id(paths, times),
        paths=paths,
        label=_label(where, values.pop("label", None)),
        label_name=_optional_text(values.pop("label_name", None)),
        splits=splits,
        captions=tuple(captions) if isinstance(captions, list) else ((captions,) if captions else ()),
        caption_file=_optional_text(values.pop("caption_file", None)),
        description={key: str(values.pop(key)) for key in DESCRIPTION if key in values},
        attributes=values,
        **times,
    )


def _default_id(paths: Mapping[str, str], times: Mapping[str, float]) -> str:
    """The first path; with the span where there is one, as one recording then has several clips."""
    first = next(iter(paths.values()))
    if not times:
        return first
    return f"{first}#{times.get('start_seconds', 0.0):g}-{times.get('end_seconds', float('inf')):g}"


def _optional_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _label(where: str, value: Any) -> int | str | None:
    """A number where it is one (also as text, ``7`` or ``007``), else a name."""
    if isinstance(value, bool) or (value is not None and not isinstance(value, int | str)):
        raise DatasetError(f"{where}: label is {value!r}; a number from 0 or a name is needed")
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    return value


def _seconds(where: str, key: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise DatasetError(f"{where}: {key} is {value!r}; seconds are needed") from None
    if not 0 <= seconds < float("inf"):
        raise DatasetError(f"{where}: {key} is {value!r}; seconds from 0 are needed")
    return seconds
