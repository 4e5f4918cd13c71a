"""``python -m store import``: features that others extracted, into the bank."""

import sys
from pathlib import Path


def import_features(
    path: Path,
    dataset: str | None = None,
    modality: str | None = None,
    encoder: str | None = None,
    bank: str = "bank",
    pattern: str | None = None,
    key: str | None = None,
    ids: Path | None = None,
    fps: float = 1.0,
    field: str | None = None,
    space: dict | None = None,
    add_clips: bool = False,
) -> int:
    """Take over features from .npy, .npz, .pt or .h5 files. Pickled objects are refused, never executed.

    Arrays of shape (D,), (T, D) or (T, N, D). For HowTo100M's, say, give the folder, the names of dataset,
    modality and encoder, and --pattern "{clip_id}_2d.npz".

    Args:
        path: A folder with a file a clip, or one file with an array per clip.
        dataset: Whose clips they are; they must be registered, or see add_clips.
        modality: Which modality they describe.
        encoder: Name under which they are kept.
        bank: The bank's folder; made if absent.
        pattern: How the folder's files are named, with {clip_id}.
        key: Name of the array inside each file, if there are several.
        ids: For one file with one array (n, ...): a text file with a clip id a line.
        fps: Frames a second of the features, for their times.
        field: Name of the field; embedding for (D,), cls for (T, D), else tokens.
        space: What identifies their space besides the encoder's name, as {revision: 1, ...}.
        add_clips: Register clips that the dataset does not have, without labels.

    Returns:
        0, or 1 if some clips failed (see `python -m store sql "SELECT * FROM failures"`).
    """
    from store.bank import Bank
    from store.errors import FrameBankError
    from store.importing import Source, import_features

    if dataset is None or modality is None or encoder is None:
        raise FrameBankError(
            "import: --dataset, --modality and --encoder are needed; they name what is imported"
        )
    opened = Bank.open(bank, create=True)
    source = Source(path, pattern, key, ids)
    done = import_features(opened, dataset, modality, encoder, source, fps, field, space, add_clips)
    print(f"{done.clips} clips imported as {done.feature_set}, {len(done.failures)} failed")
    for clip, problem in list(done.failures.items())[:5]:
        print(f"{clip}: {problem}", file=sys.stderr)
    return 1 if done.failures else 0
