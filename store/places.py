"""Where things lie inside a bank's folder; every name from outside is quoted to one safe path part."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from store.bank import Bank

FEATURES = "features"
THUMBNAILS = "thumbnails"
RUNS = "runs"
LONGEST_PART = 180  # file systems allow 255 bytes; extensions and `.partial-<pid>` come on top
READERS_LOCK = "readers.lock"


def path_part(name: str) -> str:
    """``name`` as one folder or file name: percent-encoded, never hidden, ``..`` or too long.

    Long names keep their beginning and end in 16 hex digits of their SHA-256, so that they stay distinct.
    """
    quoted = quote(name, safe="@+=,~ ").replace(" ", "%20")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if len(quoted) <= LONGEST_PART:
        return quoted or "%00"
    return f"{quoted[: LONGEST_PART - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def set_directory(bank: Path, dataset: str, modality: str, feature_set: str) -> Path:
    """``<bank>/features/<dataset>/<modality>/<encoder>@<fingerprint>``."""
    return bank / FEATURES / path_part(dataset) / path_part(modality) / path_part(feature_set)


def field_directory(bank: Path, dataset: str, modality: str, feature_set: str, field: str) -> Path:
    """The folder that holds the segments of one field."""
    return set_directory(bank, dataset, modality, feature_set) / path_part(field)


def run_directory(bank: Path, run_id: str) -> Path:
    """``<bank>/runs/<run id>``."""
    return bank / RUNS / run_id


def thumbnail_path(
    bank: "Bank | Path | str", dataset: str, modality: str, clip_id: str, strip: bool = False
) -> Path:
    """Where a clip's thumbnail (<= 160 px JPEG) or, with ``strip``, its strip of six frames is kept.

    Args:
        bank: The bank or its folder.
        dataset: Its dataset.
        modality: A visual one.
        clip_id: The clip.
        strip: The strip instead of the single picture.
    """
    folder = Path(bank) if isinstance(bank, (str, Path)) else bank.path
    name = path_part(clip_id) + (".strip.jpg" if strip else ".jpg")
    return folder / THUMBNAILS / path_part(dataset) / path_part(modality) / name
