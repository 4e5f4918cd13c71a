"""Registering a dataset: an adapter's clips -> the catalog, with a sample hash of every media file."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from extract.datasets.clips import Clip, Dataset, DatasetError, LabelText, Split
from extract.datasets.config import DatasetConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from store import Bank

SAMPLE_BYTES = 64 << 10  # hashed at each end of a file
SAMPLED_FILES = 16  # of a folder of images
THREADS = 8  # they wait for the disk, or for the network that it is on


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file was replaced.

    Attributes:
        bytes: Size (of a folder: of the sampled files); None where it is missing.
        mtime: Latest modification in seconds since 1970 (of the folder and the sampled files).
        sample_hash: Hash of the size and of 64 KiB at both ends (of the sampled files); None if not asked
        for.
    """

    bytes: int | None = None
    mtime: float | None = None
    sample_hash: str | None = None


def register(
    bank: "Bank",
    adapter: Dataset,
    config: DatasetConfig,
    hashed: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Bring the bank's catalog up to date with what the adapter lists.

    A file whose size and modification time are those of last time keeps its hash and is not opened. Missing
    files are registered too: extraction records them as failures.

    Args:
        bank: Where to.
        adapter: The dataset.
        config: Its configuration; kept in the catalog.
        hashed: Modalities whose files are hashed (all if None): those that are about to be extracted. Hashes
            of others are taken over if known, and made when their turn comes.
        progress: Called with (files looked at, files) now and then.

    Returns:
        What ``bank.register`` counts.

    Raises:
        DatasetError: If nothing is listed, or the adapter refuses something.
        DuplicateClipError, LabelError: See ``Bank.register``.
    """
    clips = list(adapter.clips())
    if not clips:
        raise DatasetError(
            f"dataset {config.name!r}: adapter {config.adapter!r} finds no clip in {config.root}; "
            "give the folder that it describes with --root DIR"
        )
    root = config.root or Path()
    known = _known(bank, config.name)
    stamps = _stamps(clips, root, known, hashed, progress)
    return bank.register(
        config.name,
        root=root,
        adapter=config.adapter,
        config=config.to_json() | _caption_sources(adapter),
        clips=clip_table(clips),
        media=media_table(clips, stamps),
        splits=_table(adapter.splits(clips), "splits", Split._fields),
        captions=caption_table(clips),
        label_texts=_table(adapter.label_texts(), "label_texts", LabelText._fields),
    )


def _caption_sources(adapter: Dataset) -> dict[str, Any]:
    """What the catalog keeps of which captions belong to which part of which protocol; see ``Dataset``."""
    told = getattr(adapter, "caption_sources", None)
    return {"caption_sources": told} if told else {}


def clip_table(clips: Iterable[Clip]) -> "pa.Table":
    """The rows of table ``clips``."""
    names = ("clip_id", "label", "label_name", "subject", "camera", "setup", "replication")
    columns = (*names, "start_seconds", "end_seconds", "attributes")
    rows = (
        (*(getattr(clip, name) for name in columns[:-1]), _json(clip.attributes) if clip.attributes else None)
        for clip in clips
    )
    return _table(rows, "clips", columns)


def media_table(clips: Iterable[Clip], stamps: Mapping[tuple[str, str], Stamp]) -> "pa.Table":
    """The rows of table ``media``; ``stamps`` by (clip_id, modality)."""
    columns = ("clip_id", "modality", "path", "reader", "options", "start_seconds", "end_seconds")
    rows = (
        (
            *(clip.clip_id, modality, media.path, media.reader, _json(media.options)),
            *(media.start_seconds, media.end_seconds),
            *(stamp.bytes, stamp.mtime, stamp.sample_hash),
        )
        for clip in clips
        for modality, media in clip.media.items()
        for stamp in (stamps[clip.clip_id, modality],)
    )
    return _table(rows, "media", (*columns, "bytes", "mtime", "sample_hash"))


def caption_table(clips: Iterable[Clip]) -> "pa.Table":
    """The rows of table ``captions``, with their texts."""
    rows = (
        (clip.clip_id, caption.text, caption.source, caption.start_seconds, caption.end_seconds)
        for clip in clips
        for caption in clip.captions
    )
    return _table(rows, "captions", ("clip_id", "text", "source", "start_seconds", "end_seconds"))


def _table(rows: Iterable[tuple[Any, ...]], kind: str, columns: tuple[str, ...]) -> "pa.Table":
    """Rows -> columns in the catalog's types (inferred ones would fail for a column that is all null)."""
    import pyarrow as pa

    from store.tables import COLUMNS

    values = list(zip(*rows, strict=True)) or [() for _ in columns]
    arrays = [pa.array(value, COLUMNS[kind][name]) for name, value in zip(columns, values, strict=True)]
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _known(bank: "Bank", dataset: str) -> dict[str, Stamp]:
    """Path -> what the catalog knows of it."""
    table = bank.sql(
        "SELECT DISTINCT path, bytes, mtime, sample_hash FROM media WHERE dataset = ?", [dataset]
    )
    columns = (table[name].to_pylist() for name in ("path", "bytes", "mtime", "sample_hash"))
    return {path: Stamp(*stamp) for path, *stamp in zip(*columns, strict=True)}


def _stamps(
    clips: Iterable[Clip],
    root: Path,
    known: Mapping[str, Stamp],
    hashed: Collection[str] | None,
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[str, str], Stamp]:
    """(clip_id, modality) -> stamp. A file that many clips share (a long recording) is looked at once."""
    uses = [
        (clip.clip_id, modality, media.path, _wanted(modality, hashed))
        for clip in clips
        for modality, media in clip.media.items()
    ]
    files: dict[str, bool] = {}
    for _, _, path, wanted in uses:
        files[path] = files.get(path, False) or wanted
    found = dict(zip(files, _look_at(root, files, known, progress), strict=True))
    return {(clip_id, modality): found[path] for clip_id, modality, path, _ in uses}


def _wanted(modality: str, hashed: Collection[str] | None) -> bool:
    return hashed is None or modality in hashed or modality.partition(".")[0] in hashed


def _look_at(
    root: Path,
    files: Mapping[str, bool],
    known: Mapping[str, Stamp],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Stamp]:
    def look(item: tuple[str, bool]) -> Stamp:
        return stamp(root / item[0], known.get(item[0], Stamp()), item[1])

    with ThreadPoolExecutor(THREADS) as pool:
        for done, found in enumerate(pool.map(look, files.items()), 1):
            if progress is not None and (done % 1000 == 0 or done == len(files)):
                progress(done, len(files))
            yield found


def stamp(path: Path, known: Stamp = Stamp(), hash_it: bool = True) -> Stamp:
    """Size, time and sample hash of a file or of a folder of images.

    Of a folder, 16 files spread evenly over its names are looked at: replacing a clip's images is noticed,
    overwriting a few of hundreds in place may not be.

    Args:
        path: File or folder; a missing or unreadable one has an empty stamp.
        known: What was found last time: its hash is kept if size and time are the same.
        hash_it: Whether to make a hash where none is known.
    """
    try:
        files, extra, newest = _sampled(path)
        statuses = [os.stat(file) for file in files]
        hash_it = hash_it and all(S_ISREG(status.st_mode) for status in statuses)  # opening a pipe hangs
        size = sum(status.st_size for status in statuses)
        mtime = max([newest, *(status.st_mtime for status in statuses)])
        if (size, mtime) == (known.bytes, known.mtime) and (known.sample_hash or not hash_it):
            return known
        return Stamp(size, mtime, _hash(files, extra) if hash_it else None)
    except OSError:
        return Stamp()  # extraction will meet the same error, and record it


def _sampled(path: Path) -> tuple[list[Path], str, float]:
    """The files to look at; what else belongs into the hash; and the latest time known without them."""
    if not path.is_dir():
        return [path], "", 0.0
    names = sorted(name for name in os.listdir(path) if name[0] != ".")
    step = max(len(names) / SAMPLED_FILES, 1.0)
    chosen = {names[int(k * step)] for k in range(min(len(names), SAMPLED_FILES))} | set(names[-1:])
    listing = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    files = [path / name for name in sorted(chosen) if (path / name).is_file()]
    return files, listing, path.stat().st_mtime


def _hash(files: Iterable[Path], extra: str) -> str:
    """32 hex digits over sizes and both ends of the files."""
    digest = hashlib.sha256(extra.encode())
    for file in files:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            digest.update(stream.read(SAMPLE_BYTES))
            if size > SAMPLE_BYTES:
                stream.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
