"""NTU RGB+D 60 and 120: 56,880 and 114,480 clips of RGB, infrared, depth and skeletons."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extract.datasets.classes import load_names, prompt_texts
from extract.datasets.clips import Caption, Clip, DatasetError, LabelText, Media, Split
from extract.datasets.ntu_layout import LIST_COLUMNS, read_lists, walk
from extract.datasets.ntu_names import ACTIONS_60, DATA, MAXIMA, PROTOCOLS, NTUName, missing_skeletons


class NTU:
    """Lists the clips found under ``root`` (or in list files) by their names ``SsssCcccPpppRrrrAaaa``.

    Protocols: ``cross-subject``, ``cross-view``, ``cross-setup`` with parts ``train`` and ``test``, without
    the clips whose skeletons are missing; the same with ``-raw`` keep those, as CMVRA does. Clips with a
    missing skeleton have no skeleton media and the attribute ``missing_skeleton``.

    Args:
        root: Folder of the media; how its folders are called does not matter.
        actions: 60 or 120; with 60, clips of the other 60 actions and of setups above 17 are left out.
        lists: List files relative to ``root`` (one, several, or part -> file, which also become the protocol
            ``listed``), instead of walking the folder.
        columns: Modalities of a list's columns.
        folders: Modality -> the only folder that is used for it (where there are several qualities).
        captions: A JSONL file of ``{"clip_id", "text": str or list}`` as CMVRA's, relative to ``root``.
        caption_source: What is recorded as these captions' source.
        prompts: Prompt set -> template with ``{label}``.

    Raises:
        DatasetError: If ``actions`` is neither.
    """

    name = "ntu"

    def __init__(
        self,
        root: Path,
        actions: int = ACTIONS_60,
        lists: str | Sequence[str] | Mapping[str, str] | None = None,
        columns: Sequence[str] = LIST_COLUMNS,
        folders: Mapping[str, str] | None = None,
        captions: str | None = None,
        caption_source: str = "captions",
        prompts: Mapping[str, str] | None = None,
    ):
        if actions not in (ACTIONS_60, MAXIMA["action"]):
            raise DatasetError(f"dataset ntu: actions is {actions!r}; 60 or 120 is accepted")
        self._root, self._actions, self._prompts = Path(root), actions, prompts
        self._lists, self._columns, self._folders = lists, tuple(columns), dict(folders or {})
        self._captions, self._caption_source = captions, caption_source
        self._parts: dict[str, str] = {}  # clip -> part of the lists

    def class_names(self) -> list[str]:
        """Class names by label."""
        return load_names(DATA / "classes.yaml")[: self._actions]

    def clips(self) -> Iterator[Clip]:
        """All clips by name.

        Raises:
            DatasetError: If a folder or list cannot be read, or names a clip that cannot be.
        """
        names, missing = self.class_names(), missing_skeletons()
        captions = self._read_captions()
        for name, media in sorted(self._found().items()):
            if self._actions == MAXIMA["action"] or name.in_60:
                yield _clip(
                    name, media, names[name.action - 1], str(name) in missing, captions.get(str(name))
                )

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The parts of the official protocols, raw and without missing skeletons, and of the lists."""
        missing = missing_skeletons()
        for clip in clips:
            name = NTUName.parse(clip.clip_id)
            for protocol, trains in PROTOCOLS.items():
                part = "train" if trains(name) else "test"
                yield Split(f"{protocol}-raw", clip.clip_id, part)
                if clip.clip_id not in missing:
                    yield Split(protocol, clip.clip_id, part)
            if clip.clip_id in self._parts:
                yield Split("listed", clip.clip_id, self._parts[clip.clip_id])

    def label_texts(self) -> Iterator[LabelText]:
        """The class names in every prompt."""
        return prompt_texts(self.class_names(), self._prompts)

    def _found(self) -> dict[NTUName, dict[str, Media]]:
        if self._lists is None:
            return walk(self._root, self._folders)
        if isinstance(self._lists, Mapping):
            return self._read_parts(self._lists)
        files = [self._lists] if isinstance(self._lists, str) else self._lists
        return read_lists(self._root, files, self._columns)[0]

    def _read_parts(self, parts: Mapping[str, str]) -> dict[NTUName, dict[str, Media]]:
        found = {}
        for part, file in parts.items():
            listed, order = read_lists(self._root, [file], self._columns)
            both = [name for name in order if name in found]
            if both:
                raise DatasetError(f"{self._root / file}: clip {both[0]} is in another part too; remove one")
            found.update(listed)
            self._parts |= {str(name): part for name in order}
        return found

    def _read_captions(self) -> dict[str, tuple[Caption, ...]]:
        return (
            {} if self._captions is None else read_captions(self._root / self._captions, self._caption_source)
        )


def read_captions(path: Path, source: str) -> dict[str, tuple[Caption, ...]]:
    """Captions by clip from lines of ``{"clip_id": ..., "text": str or list of str}``; repeated ones once.

    Raises:
        DatasetError: With file and line, for a line of another form.
    """
    captions: dict[str, dict[Caption, None]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: captions cannot be read ({error}); give a UTF-8 JSONL file") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            clip_id, texts = _caption_line(f"{path}, line {number}", line)
            kept = captions.setdefault(clip_id, {})
            kept.update((Caption(text, source), None) for text in texts if text.strip())
    return {clip_id: tuple(kept) for clip_id, kept in captions.items()}


def _caption_line(where: str, line: str) -> tuple[str, list[str]]:
    try:
        row: Any = json.loads(line)
        clip_id, text = row["clip_id"], row["text"]
    except (ValueError, KeyError, TypeError):
        raise DatasetError(f'{where}: is no {{"clip_id": ..., "text": ...}}; correct it') from None
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise DatasetError(f"{where}: text is {text!r:.60}; a string or a list of strings is needed")
    # CMVRA's lists name clips by the RGB file's stem.
    name = NTUName.find(str(clip_id))
    return (str(name) if name else str(clip_id)), texts


def _clip(name: NTUName, media: Mapping[str, Media], label_name: str, missing: bool, captions: Any) -> Clip:
    kept = {key: value for key, value in sorted(media.items()) if not (missing and key == "skeleton")}
    return Clip(
        clip_id=str(name),
        media=kept,
        label=name.action - 1,
        label_name=label_name,
        subject=str(name.performer),
        camera=str(name.camera),
        setup=str(name.setup),
        replication=str(name.replication),
        attributes={"missing_skeleton": True} if missing else {},
        captions=captions or (),
    )
