"""Finding weights and naming them by content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from encoders.errors import WeightsError

# What in a model folder decides its features.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
CONFIG_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
RANDOM = "random"


def file_digest(path: Path) -> str:
    """sha256 over a file's bytes (16 hex digits): its weights' identity, whatever it is called."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def digest(*paths: Path) -> str:
    """sha256 over the names and bytes of a model's files (16 hex digits)."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Digest of a saved transformers model: its weight files, configuration and tokenizer.

    Raises:
        WeightsError: The folder holds no weights.
    """
    weights = sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern))
    if not weights:
        raise WeightsError(
            f"weights: {folder} holds none of {', '.join(WEIGHT_PATTERNS)}; "
            "give the folder that save_pretrained wrote, or a hub id"
        )
    return digest(*weights, *(folder / name for name in CONFIG_FILES if (folder / name).exists()))


def model_folder(weights: str, encoder: str) -> Path:
    """A local folder as it is, or a hub id's snapshot (downloaded once, then found in the local cache).

    Raises:
        WeightsError: Neither a folder nor a model that the hub or the cache has.
    """
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or weights.count("/") != 1:
        raise WeightsError(
            f"{encoder}: no model folder at {weights!r}; give a folder written by save_pretrained, "
            "or a hub id such as openai/clip-vit-base-patch32"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*WEIGHT_PATTERNS[:2], *CONFIG_FILES, "*.json", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(weights, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{encoder}: cannot get {weights!r} from the hub ({reason}); "
            "check the id and the network, or give a local folder with --weights"
        ) from error
