"""UTD-MHAD: 27 actions of 8 subjects, 4 trials each, with depth, skeleton, inertial sensor and RGB."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from extract.datasets.classes import load_names, prompt_texts
from extract.datasets.clips import Clip, DatasetError, LabelText, Media, Split
from extract.datasets.scan import entries

CLASSES = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "utd-mhad" / "classes.yaml"
PATTERN = re.compile(r"a(\d+)_s(\d+)_t(\d+)_(depth|skeleton|inertial|color)\.(mat|avi)", re.IGNORECASE)
MAX_DEPTH = 2  # of folders: Depth/, Skeleton/, Inertial/, RGB/

# Kinect v1 records at 30 Hz, the inertial sensor (accelerations in g, rotation in degrees/s) at 50 Hz.
DEPTH = {"layout": "HWT", "fps": 30.0, "variable": "d_depth"}
SKELETON = {"layout": "JXT", "fps": 30.0, "variable": "d_skel"}
INERTIAL = {"layout": "TC", "fps": 50.0, "variable": "d_iner"}
KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "depth": ("depth", "mat", DEPTH),
    "skeleton": ("skeleton", "mat", SKELETON),
    "inertial": ("inertial", "mat", INERTIAL),
    "color": ("rgb", "video", {}),
}


class UTDMHAD:
    """Lists the recordings ``aA_sS_tT_<kind>`` found under ``root``.

    Protocols: ``cross-subject`` (subjects 1, 3, 5, 7 train; 2, 4, 6, 8 test, as the dataset's authors have
    it) and ``cross-subject-swapped`` (the other way round).

    Args:
        root: Folder that holds ``Depth``, ``Skeleton``, ``Inertial`` and ``RGB``, any of them.
        prompts: Prompt set -> template with ``{label}``.
    """

    name = "utd-mhad"

    def __init__(self, root: Path, prompts: Mapping[str, str] | None = None):
        self._root, self._prompts = Path(root), prompts

    def class_names(self) -> list[str]:
        """Class names by label."""
        return load_names(CLASSES)

    def clips(self) -> Iterator[Clip]:
        """All recordings by action, subject and trial.

        Raises:
            DatasetError: If a folder cannot be listed, or a name has an action above 27.
        """
        names = self.class_names()
        found: dict[tuple[int, int, int], dict[str, Media]] = {}
        for path, key, media in _files(self._root, "", 0):
            if not 1 <= key[0] <= len(names):
                raise DatasetError(f"{path}: action {key[0]} does not exist; UTD-MHAD has 1 to {len(names)}")
            found.setdefault(key, {}).update(media)
        for (action, subject, trial), media in sorted(found.items()):
            yield Clip(
                clip_id=f"a{action}_s{subject}_t{trial}",
                media=dict(sorted(media.items())),
                label=action - 1,
                label_name=names[action - 1],
                subject=str(subject),
                replication=str(trial),
            )

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """Odd subjects train and even ones test, and swapped."""
        for clip in clips:
            odd = int(clip.subject or 0) % 2 == 1
            yield Split("cross-subject", clip.clip_id, "train" if odd else "test")
            yield Split("cross-subject-swapped", clip.clip_id, "test" if odd else "train")

    def label_texts(self) -> Iterator[LabelText]:
        """The action names in every prompt."""
        return prompt_texts(self.class_names(), self._prompts)


def _files(
    root: Path, folder: str, depth: int
) -> Iterator[tuple[str, tuple[int, int, int], dict[str, Media]]]:
    for entry in entries(root / folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        match = PATTERN.fullmatch(entry.name)
        if match:
            modality, reader, options = KINDS[match[4].lower()]
            yield (
                path,
                (int(match[1]), int(match[2]), int(match[3])),
                {modality: Media(path, reader, options)},
            )
        elif depth < MAX_DEPTH and entry.is_dir():
            yield from _files(root, path, depth + 1)
