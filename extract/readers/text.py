"""Text files: one text a file."""

from pathlib import Path

import numpy as np

from extract.readers.media import DamagedMediaError, Frames, MediaInfo, checked_file
from extract.sampling import Sampling


class TextReader:
    """Reads a UTF-8 file; values (1,) object: the text without its byte-order mark and outer white space."""

    revision = 1

    def probe(self, path: str | Path) -> MediaInfo:
        """One frame, of no duration. Raises: ReadError."""
        checked_file(path)
        return MediaInfo(1, 1.0, None, None, 0.0)

    def read(
        self,
        path: str | Path,
        sampling: Sampling | None = None,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
    ) -> Frames:
        """The whole text: there are no frames to choose from.

        Raises:
            ReadError: If the file is missing, empty, or not UTF-8.
        """
        try:
            text = checked_file(path).read_bytes().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
            raise DamagedMediaError(path, problem, "convert it to UTF-8") from None
        if not text:
            raise DamagedMediaError(path, "holds white space only", "write a text into it or remove it")
        return Frames(np.array([text], dtype=object), np.zeros(1), 1.0, 1, 1)
