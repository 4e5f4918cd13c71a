"""Drive&Act: 34 activities of 15 drivers in eight camera views, with 3-D poses (Martin et al., ICCV 2019)."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from extract.datasets.annotations import read_lines
from extract.datasets.classes import prompt_texts
from extract.datasets.clips import Caption, Clip, DatasetError, LabelText, Split
from extract.datasets.daa_clips import Collected, Listed
from extract.datasets.daa_cut import read_folders, read_lists
from extract.datasets.daa_names import PARTS, SUBJECTS, ClipName, classes, labels, official_part, parse_clip
from extract.datasets.daa_release import ANNOTATIONS, Release
from extract.datasets.ntu import read_captions
from extract.readers.media import printable

LAYOUTS = ("release", "cut")
ZERO_SHOT_FOLDERS = ("splits", "zs-drive_and_act/splits", "")
ZERO_SHOT_SPLITS = 10
ZERO_SHOT_FILES = {"train": "seen_classes", "val": "unseen_classes_val", "test": "unseen_classes_test"}


class DriveAct:
    """Lists the clips of three seconds at most that the fine-grained ("midlevel") annotations cut.

    Modalities: ``rgb`` (kinect_color), ``ir`` (kinect_ir), ``depth`` (kinect_depth, as 8-bit video),
    ``skeleton`` (openpose_3d, mapped to NTU's joints), and ``ir.ceiling``, ``ir.inner_mirror``,
    ``ir.a_column_co_driver``, ``ir.a_column_driver``, ``ir.steering_wheel``. Participant, recording,
    annotation and chunk are a clip's identity in all views and layouts
    (``vp1_run1b_2018-05-29-14-02-47_3_0``). A view whose folder is not there is absent.

    Protocols: ``split-0``, ``split-1``, ``split-2`` with parts ``train``, ``val``, ``test``, by the
    participants of the official splits, against which the files are checked; ``zs0`` to ``zs9`` where the
    class lists of zs-Drive&Act (github.com/Simael/zs-drive_and_act; Reiss et al., CVPRW 2020) are found: the
    classes of ``val`` and ``test``, 10 each, are unseen: none of the 14 of ``train``. Labels are 0 to 33 in
    all of them.

    Args:
        root: Folder of the views' folders (or of one folder with these).
        layout: ``release``, see `daa_release`; ``cut``, see `daa_cut`; by default the former where
            ``activities_3s`` is found.
        lists: Part -> CMVRA's list file, relative to ``root``, instead; the parts are protocol ``listed``.
        zero_shot: Folder of the zero-shot class lists, relative to ``root``; by default ``splits`` or
            ``zs-drive_and_act/splits``.
        captions: A JSONL file of ``{"clip_id", "text": str or list}`` relative to ``root``, with our clip ids
            or CMVRA's (the names of cut files).
        caption_source: What is recorded as these captions' source.
        prompts: Prompt set -> template with ``{label}``, besides ``sentence``.

    Raises:
        DatasetError: For an unknown layout, or lists without parts.
    """

    name = "daa"

    def __init__(
        self,
        root: Path,
        layout: str | None = None,
        lists: Mapping[str, str] | None = None,
        zero_shot: str | None = None,
        captions: str | None = None,
        caption_source: str = "captions",
        prompts: Mapping[str, str] | None = None,
    ):
        if layout not in (None, *LAYOUTS):
            raise DatasetError(f"dataset daa: layout is {layout!r}; {' or '.join(LAYOUTS)} is accepted")
        if lists is not None and not isinstance(lists, Mapping):
            raise DatasetError(f"dataset daa: lists is {lists!r}; a mapping from part to file is accepted")
        self._root, self._layout, self._lists = Path(root), layout, lists
        self._zero_shot, self._prompts = zero_shot, prompts
        self._captions, self._caption_source = captions, caption_source

    def class_names(self) -> list[str]:
        """Class names by label, as the annotations have them."""
        return [name for name, _ in classes()]

    def clips(self) -> Iterator[Clip]:
        """All clips by participant, recording, annotation and chunk.

        Of whole recordings the headers are opened, for their frame rates.

        Raises:
            DatasetError: If nothing is found, or what is found is not Drive&Act.
        """
        captions = self._read_captions()
        for name, listed in sorted(self._collected.clips.items()):
            yield _clip(name, listed, self.class_names(), captions.get(name, ()))

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The parts of the official splits, the zero-shot splits, and the lists."""
        zero_shot = self._zero_shot_parts()
        listed = {str(name): part for name, part in self._collected.parts.items()}
        for clip in clips:
            for split in range(len(SUBJECTS)):
                yield Split(f"split-{split}", clip.clip_id, official_part(split, int(clip.subject or 0)))
            for protocol, parts in zero_shot.items():
                if clip.label in parts:
                    yield Split(protocol, clip.clip_id, parts[clip.label])
            if clip.clip_id in listed:
                yield Split("listed", clip.clip_id, listed[clip.clip_id])

    def label_texts(self) -> Iterator[LabelText]:
        """The class names in every prompt, and a sentence for each class."""
        names = self.class_names()
        for text in prompt_texts([name.replace("_", " ") for name in names], self._prompts):
            yield text._replace(label_name=names[text.label])
        for label, (name, sentence) in enumerate(classes()):
            yield LabelText(label, name, "sentence", sentence)

    def notes(self) -> list[str]:
        """Views and recordings that are not there."""
        return self._collected.all_notes()

    @cached_property
    def _collected(self) -> Collected:
        if self._lists is not None:
            return read_lists(self._root, self._lists)
        release = Release(self._root)
        if release.is_there if self._layout is None else self._layout == "release":
            return release.read()
        collected = read_folders(self._root)
        if not collected.clips:
            raise DatasetError(
                f"{printable(self._root)}: neither {ANNOTATIONS}/ of Drive&Act's release nor cut clips "
                "(kinect_color/clips/train/*.avi, ...); give the folder that holds them with --root DIR"
            )
        return collected

    def _zero_shot_parts(self) -> dict[str, dict[int | None, str]]:
        """Protocol -> label -> part."""
        choices = ZERO_SHOT_FOLDERS if self._zero_shot is None else (self._zero_shot,)
        for folder in choices:
            found = read_zero_shot(self._root / folder)
            if found:
                return found
        if self._zero_shot is not None:
            raise DatasetError(
                f"{printable(self._root / self._zero_shot)}: no zero-shot splits; "
                f"{', '.join(_zero_shot_file(part, 0) for part in PARTS)} and so on are needed"
            )
        return {}

    def _read_captions(self) -> dict[ClipName, tuple[Caption, ...]]:
        if self._captions is None:
            return {}
        path = self._root / self._captions
        found = read_captions(path, self._caption_source)
        return {parse_clip(printable(path), key): texts for key, texts in found.items()}


def _clip(name: ClipName, listed: Listed, names: list[str], captions: tuple[Caption, ...]) -> Clip:
    start, end = listed.span or (None, None)
    return Clip(
        clip_id=str(name),
        media=dict(sorted(listed.media.items())),
        label=listed.label,
        label_name=None if listed.label is None else names[listed.label],
        subject=str(name.participant),
        start_seconds=start,
        end_seconds=end,
        attributes={"recording": name.run, "annotation": name.annotation, "chunk": name.chunk},
        captions=captions,
    )


def _zero_shot_file(part: str, split: int) -> str:
    return f"midlevel_{ZERO_SHOT_FILES[part]}_{split}.txt"


def read_zero_shot(folder: Path) -> dict[str, dict[int | None, str]]:
    """Protocol (``zs0``, ...) -> label -> part, of the splits that are there.

    Raises:
        DatasetError: If a split lacks one of its three files, or they name no class, or one twice.
    """
    protocols = {}
    for split in range(ZERO_SHOT_SPLITS):
        files = {part: folder / _zero_shot_file(part, split) for part in PARTS}
        if any(path.exists() for path in files.values()):
            protocols[f"zs{split}"] = _classes_by_part(files)
    return protocols


def _classes_by_part(files: Mapping[str, Path]) -> dict[int | None, str]:
    parts: dict[int | None, str] = {}
    for part, path in files.items():
        for where, line in read_lines(path):
            label = labels().get(line.strip())
            if label is None:
                raise DatasetError(f"{where}: {line.strip()!r} is no class of Drive&Act; give the file again")
            if label in parts:
                raise DatasetError(
                    f"{where}: class {line.strip()!r} is in part {parts[label]!r} too; remove one"
                )
            parts[label] = part
    return parts
