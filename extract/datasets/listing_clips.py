"""A row of a list -> a clip: readers by file ending, captions from cells and files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extract.datasets.clips import Caption, Clip, DatasetError, Media
from extract.datasets.listing_rows import Row
from extract.datasets.media_kinds import reader_for
from extract.readers import READERS, ReadError
from extract.readers.text import TextReader
from store.errors import UnknownNameError

SOURCE = "listing"


def clip_from_row(
    row: Row, label: tuple[int | None, str | None], root: Path, readers: Mapping[str, Any]
) -> Clip:
    """The clip that a row describes.

    Args:
        row: Line of the list.
        label: (label, label_name) by the class list.
        root: What paths are relative to.
        readers: Modality -> reader's name, or mapping with ``reader`` and options.

    Raises:
        DatasetError: With file and line, for a span that ends before it begins, a caption of another form,
            or a file whose ending tells no reader.
    """
    if row.start_seconds is not None and row.end_seconds is not None and row.end_seconds <= row.start_seconds:
        raise DatasetError(
            f"{row.where}: the clip ends at {row.end_seconds:g} s and begins at {row.start_seconds:g} s; "
            "it must end later"
        )
    return Clip(
        clip_id=row.clip_id,
        media={modality: _media(row, modality, root, readers) for modality in row.paths},
        label=label[0],
        label_name=label[1],
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        attributes=row.attributes,
        captions=_captions(row, root),
        **row.description,
    )


def _media(row: Row, modality: str, root: Path, readers: Mapping[str, Any]) -> Media:
    path = row.paths[modality]
    chosen = readers.get(modality, readers.get(modality.partition(".")[0]))
    if chosen is None:
        name = reader_for(path, modality, root)
        if name is None:
            raise DatasetError(f"{row.where}: no reader for {modality} file {path!r}; set readers.{modality}")
        return Media(path, name)
    options = dict(chosen) if isinstance(chosen, Mapping) else {"reader": chosen}
    name = options.pop("reader", None)
    if name not in READERS:
        raise UnknownNameError(f"readers.{modality}", "reader", str(name), sorted(READERS))
    return Media(path, name, options)


def _captions(row: Row, root: Path) -> tuple[Caption, ...]:
    captions = [_caption(row.where, value) for value in row.captions]
    if row.caption_file is not None:
        try:
            text = str(TextReader().read(root / row.caption_file).values[0])
        except ReadError as error:
            raise DatasetError(f"{row.where}: {error}") from None
        captions.append(Caption(text, SOURCE))
    return tuple(dict.fromkeys(captions))


def _caption(where: str, value: Any) -> Caption:
    if isinstance(value, str):
        return Caption(value, SOURCE)
    keys = {"text", "source", "start_seconds", "end_seconds"}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or set(value) - keys:
        raise DatasetError(
            f"{where}: caption is {value!r:.60}; text, or an object with {sorted(keys)}, is needed"
        )
    return Caption(
        value["text"],
        str(value.get("source", SOURCE)),
        value.get("start_seconds"),
        value.get("end_seconds"),
    )
