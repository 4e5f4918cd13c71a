"""Listing folders: sorted, without hidden files, and never silently incomplete."""

import os
from collections.abc import Iterator
from pathlib import Path

from extract.datasets.clips import DatasetError
from extract.readers.media import printable


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder in the order of their names; names that begin with a dot are left out.

    Raises:
        DatasetError: If it cannot be listed (clips would be missing without a word), or a name is not UTF-8.
    """
    try:
        with os.scandir(folder) as scanned:
            found = sorted((entry for entry in scanned if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"{printable(folder)}: cannot be listed ({error.strerror}); allow reading it or move it away"
        ) from None
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            shown = ascii(entry.name)
            raise DatasetError(f"{printable(folder)}: name {shown} is not UTF-8; rename it") from None
        yield entry
