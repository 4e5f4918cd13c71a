"""A video's frame rate, from its header alone."""

import os
from pathlib import Path

import av

from extract.readers.media import DamagedMediaError, checked_file


def average_fps(path: str | Path) -> float:
    """Frames a second on average; no packet is read.

    Raises:
        ReadError: If the file is missing, is no video, or its header tells no rate.
    """
    try:
        with av.open(os.fspath(checked_file(path)), metadata_errors="replace") as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except av.error.FFmpegError as error:
        raise DamagedMediaError(path, f"is no video ({error.strerror})", "copy it again") from None
    if not rate:
        raise DamagedMediaError(path, "its header tells no frame rate", "give a video file")
    return float(rate)
