"""What the captioned benchmarks share: official annotation files, and videos by name in any folder.

All clips that the annotations name are registered, whether their video is there or not: a clip without one
has no media, but it is in its splits and keeps its captions. So the size of a protocol's test part is known
from the catalog (1,000 for MSR-VTT's), and an evaluation can count a missing clip as a miss:

    SELECT count(*) FROM splits WHERE dataset = 'msrvtt' AND protocol = '1k-A' AND part = 'test'

A video is also the clip's sound (modality ``audio``), unless a sound file of its name lies there too; one
without a sound track becomes a row of ``failures`` when sound is extracted.

``Caption.source`` tells which annotation a caption comes from. Where a part of a protocol uses some of them
only, the adapter's ``caption_sources`` says which, and the catalog keeps it in the dataset's configuration.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from extract.datasets.annotations import Node, read_json, read_lines, read_table
from extract.datasets.clips import Caption, Clip, DatasetError, LabelText, Media, Split
from extract.datasets.file_index import FileIndex
from extract.readers.media import printable

Lists = Mapping[str, Mapping[str, str]]  # protocol -> part -> file


@dataclass(frozen=True)
class Official:
    """An annotation file as its authors publish it.

    Attributes:
        name: Of the file.
        what: What is in it.
        source: Where it is published.
    """

    name: str
    what: str
    source: str


@dataclass(frozen=True)
class Place:
    """Where a clip may be found.

    Attributes:
        stem: Name of the video without suffix.
        start_seconds: Beginning of the clip in it; None = its beginning.
        end_seconds: End of the clip in it; None = its end.
    """

    stem: str
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass
class Listed:
    """A clip as the annotations tell it: where it may be (the first place counts), what is said about it."""

    places: tuple[Place, ...]
    attributes: dict[str, Any]
    captions: dict[Caption, None] = field(default_factory=dict)


class Listing:
    """Clips, captions and parts, collected while the annotation files are read.

    Attributes:
        clips: Clip id -> clip, in the order of the files.
        parts: (protocol, clip id) -> part.
    """

    def __init__(self) -> None:
        self.clips: dict[str, Listed] = {}
        self.parts: dict[tuple[str, str], str] = {}

    def add(self, clip_id: str, *places: Place, **attributes: Any) -> Listed:
        """The clip of that id; made of ``places`` (its id alone if none) and attributes if it is new."""
        if clip_id not in self.clips:
            told = {name: value for name, value in attributes.items() if value is not None}
            self.clips[clip_id] = Listed(places or (Place(clip_id),), told)
        return self.clips[clip_id]

    def caption(self, clip_id: str, text: str, source: str, *span: float) -> None:
        """A caption of a known clip, or of a span of it; blank ones and repetitions are left out."""
        if text.strip():
            self.clips[clip_id].captions[Caption(text.strip(), source, *span)] = None

    def part(self, where: str, protocol: str, clip_id: str, part: str) -> None:
        """A known clip's part in a protocol. Raises: DatasetError, if it has another one already."""
        other = self.parts.setdefault((protocol, clip_id), part)
        if other != part:
            raise DatasetError(
                f"{where}: {clip_id!r} is in part {part!r} of {protocol!r}, but in {other!r} too; "
                "a clip has one part in a protocol: give the files as they were published"
            )


class Captioned:
    """A benchmark of videos with captions. Derived classes say which files there are, and read them.

    Args:
        root: Folder of the videos and annotation files, in any depth.
        annotations: Another folder of the annotation files (relative to ``root``, or absolute).
        videos: The only folder of videos and sounds, where several hold the same names; likewise.
        lists: Further protocols: protocol -> part -> file of ids (one a line; a CSV file with a column
            ``video_id``; or a JSON list), relative to the annotation files. An id is a clip's or a video's.
    """

    name = "captioned"
    files: tuple[Official, ...] = ()
    protocols: Mapping[str, Sequence[str]] = {}
    """Protocol -> its parts, if all files are there."""
    caption_sources: Mapping[str, Mapping[str, Sequence[str]]] = {}
    """Protocol -> part -> sources of the captions that belong to it; what is not named takes all captions."""

    def __init__(
        self,
        root: Path,
        annotations: str | None = None,
        videos: str | None = None,
        lists: Lists | None = None,
    ):
        for option, folder in (("annotations", annotations), ("videos", videos)):
            if not isinstance(folder, str | None):
                raise DatasetError(f"options.{option}: is {folder!r}; a folder is needed")
        self._root, self._lists = Path(root), lists or {}
        self._videos = FileIndex(self._root, videos, "videos")
        same = annotations == videos
        self._annotations = self._videos if same else FileIndex(self._root, annotations, "annotations")

    def read(self, listing: Listing) -> None:
        """Collect what the annotation files say. Raises: DatasetError."""
        raise NotImplementedError

    def file(self, name: str) -> Path | None:
        """An annotation file, if it is there. Raises: DatasetError, if there are several."""
        found = self._annotations.named(name)
        return None if found is None else self._root / found

    def json(self, name: str) -> Node | None:
        """The content of an annotation file, if it is there. Raises: DatasetError."""
        path = self.file(name)
        return None if path is None else read_json(path)

    def clips(self) -> Iterator[Clip]:
        """All clips that the annotation files name, in their order.

        Raises:
            DatasetError: If there are no such files, one is not as published, or videos share a name.
        """
        for clip_id, listed in self._listing.clips.items():
            place, media = self._found(listed.places)
            yield Clip(
                clip_id,
                media,
                start_seconds=place.start_seconds,
                end_seconds=place.end_seconds,
                attributes=listed.attributes,
                captions=tuple(listed.captions),
            )

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The parts of the protocols whose files are there."""
        known = {clip.clip_id for clip in clips}
        for (protocol, clip_id), part in self._listing.parts.items():
            if clip_id in known:
                yield Split(protocol, clip_id, part)

    def label_texts(self) -> Iterator[LabelText]:
        """None: the clips have captions, and no classes."""
        return iter(())

    def notes(self) -> list[str]:
        """How many clips have no video; which parts are empty, with the official files that are not there."""
        there = {(protocol, part) for (protocol, _), part in self._listing.parts.items()}
        empty = [
            f"{protocol} {part}"
            for protocol, parts in self.protocols.items()
            for part in parts
            if (protocol, part) not in there
        ]
        missing = _described(file for file in self.files if self.file(file.name) is None)
        absent = sum("rgb" not in clip.media for clip in self.clips())
        count = f"{absent} of {len(self._listing.clips)} clips have no video below"
        return [
            *([f"{count} {printable(self._videos.folder)}; they stay in their splits"] if absent else []),
            *([f"no clips in {', '.join(empty)}; not there: {missing}"] if empty else []),
        ]

    @cached_property
    def _listing(self) -> Listing:
        if all(self.file(file.name) is None for file in self.files):
            raise DatasetError(
                f"dataset {self.name}: no annotation file below {printable(self._annotations.folder)}; "
                f"put them there, or name their folder (options.annotations): {_described(self.files)}"
            )
        listing = Listing()
        self.read(listing)
        self._read_lists(listing)
        return listing

    def _found(self, places: Sequence[Place]) -> tuple[Place, dict[str, Media]]:
        """The first place that has a file, with the media there; no media where none has."""
        for place in places:
            video = self._videos.video(place.stem)
            sound = self._videos.sound(place.stem) or video
            media = {"rgb": Media(video, "video")} if video else {}
            if sound:
                return place, media | {"audio": Media(sound, "audio")}
        return places[-1], {}

    def _read_lists(self, listing: Listing) -> None:
        clips_of: dict[str, list[str]] = {}
        for clip_id, listed in listing.clips.items():
            for name in dict.fromkeys([clip_id, *(place.stem for place in listed.places)]):
                clips_of.setdefault(name, []).append(clip_id)
        for protocol, part, file in _list_files(self._lists):
            for where, name in _ids(self._annotations.folder / file):
                if name not in clips_of:
                    raise DatasetError(f"{where}: {name!r} is no clip or video of {self.name}; correct it")
                for clip_id in clips_of[name]:
                    listing.part(where, protocol, clip_id, part)


def _described(files: Iterable[Official]) -> str:
    """``a.json (captions), b.csv (test list) of example.org; ...``."""
    grouped: dict[str, list[str]] = {}
    for file in files:
        grouped.setdefault(file.source, []).append(f"{file.name} ({file.what})")
    return "; ".join(f"{', '.join(names)} of {source}" for source, names in grouped.items())


def _list_files(lists: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(lists, Mapping):
        raise DatasetError(f"options.lists: is {lists!r:.60}; `protocol: {{part: file}}` is needed")
    for protocol, parts in lists.items():
        if not isinstance(parts, Mapping) or not all(isinstance(file, str) for file in parts.values()):
            raise DatasetError(f"options.lists.{protocol}: is {parts!r:.60}; `part: file` is needed")
        for part, file in parts.items():
            yield str(protocol), str(part), file


def _ids(path: Path) -> Iterator[tuple[str, str]]:
    """(where, id) of a list of ids."""
    if path.suffix == ".json":
        return ((node.where, node.text()) for node in read_json(path).items())
    if path.suffix == ".csv":
        return ((where, row["video_id"]) for where, row in read_table(path, ("video_id",)))
    return ((where, line.strip()) for where, line in read_lines(path))
