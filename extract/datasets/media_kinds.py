"""Which modality and reader a file's name calls for."""

import os
from pathlib import Path

from extract.readers.images import IMAGE_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".flv",
    ".wmv", ".3gp", ".ogv", ".gif",
)
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".m4a", ".opus", ".aac", ".wma")
# fmt: on

# Suffix -> modality, reader.
KINDS = {
    **dict.fromkeys(VIDEO_SUFFIXES, ("rgb", "video")),
    **dict.fromkeys(AUDIO_SUFFIXES, ("audio", "audio")),
    **dict.fromkeys(IMAGE_SUFFIXES, ("rgb", "images")),
    ".skeleton": ("skeleton", "ntu-skeleton"),
    ".npy": ("skeleton", "skeleton-npy"),
}


def kind_of(name: str) -> tuple[str, str] | None:
    """(modality, reader) of a file by its name; None for files that are no media."""
    return KINDS.get(os.path.splitext(name)[1].lower())


def reader_for(path: str, modality: str, root: Path) -> str | None:
    """The reader for a file whose modality is known; None where nothing fits.

    A path without suffix, or one of an existing folder, is a folder of images.
    """
    suffix = os.path.splitext(path)[1].lower()
    base = modality.partition(".")[0]
    if suffix not in KINDS and (not suffix or (root / path).is_dir()):
        return "depth-png" if base == "depth" else "images"
    if base == "audio":
        return "audio" if suffix in AUDIO_SUFFIXES + VIDEO_SUFFIXES else None
    if base == "depth" and suffix in IMAGE_SUFFIXES:
        return "depth-png"
    found = KINDS.get(suffix)
    return None if found is None or found[1] == "audio" else found[1]
