"""Features that others extracted, into the bank: one file a clip, or one file with all clips."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from store.errors import FrameBankError, UnknownNameError
from store.foreign import READERS, WHOLE, ForeignFileError, load_arrays
from store.spec import FeatureSpec, FieldSpec
from store.tables import shortened

if TYPE_CHECKING:
    from store.bank import Bank

PLACEHOLDER = "{clip_id}"
Load = Callable[[], np.ndarray]


class ImportingError(FrameBankError, ValueError):
    """What was given cannot be brought together with the catalog's clips."""


@dataclass
class Imported:
    """What ``import_features`` did.

    Attributes:
        feature_set: Its name.
        clips: How many were written.
        failures: clip id -> why it was not.
    """

    feature_set: str
    clips: int = 0
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where the arrays are and how they are named.

    Attributes:
        path: A folder with a file a clip, or one file with an array per clip.
        pattern: For a folder: how files are named, such as ``{clip_id}_2d.npz``; any known type if None.
        key: Name of the array inside each file; the only one if None.
        ids: For one file with one array (n, ...): a text file with one clip id a line.
    """

    path: Path
    pattern: str | None = None
    key: str | None = None
    ids: Path | None = None

    def entries(self) -> list[tuple[str, Load]]:
        """Clip id and how to get the array of each clip; a folder's files are not read yet.

        Raises:
            ImportingError: If nothing fits the pattern, or ids and array do not fit.
        """
        if self.path.is_dir():
            files = list(matching(self.path, self.pattern))
            if not files:
                wanted = self.pattern or f"{PLACEHOLDER} + {' or '.join(READERS)}"
                raise ImportingError(f"{self.path}: no file is named like {wanted}; see --pattern")
            return [(clip, partial(_only, file, self.key)) for clip, file in files]
        if self.ids is not None:
            return self._rows(self.ids)
        arrays = load_arrays(self.path)
        if WHOLE in arrays:
            raise ImportingError(f"{self.path}: one array without clip ids; name them by --ids FILE")
        return [(name, partial(arrays.__getitem__, name)) for name in arrays]

    def _rows(self, ids: Path) -> list[tuple[str, Load]]:
        names = ids.read_text(encoding="utf-8").splitlines()
        array = _only(self.path, self.key)
        if array.ndim < 2 or len(array) != len(names):
            raise ImportingError(f"{self.path}: array {array.shape} but {len(names)} ids in {ids}")
        return [(name, partial(array.__getitem__, row)) for row, name in enumerate(names)]


def matching(folder: Path, pattern: str | None) -> Iterator[tuple[str, Path]]:
    """Clip ids in the names of a folder's files (subfolders included), and the files; sorted.

    Raises:
        ImportingError: If the pattern does not hold ``{clip_id}`` once.
    """
    if pattern is not None and pattern.count(PLACEHOLDER) != 1:
        raise ImportingError(
            f"pattern {pattern!r}: must hold {PLACEHOLDER} once, as in '{PLACEHOLDER}_2d.npz'"
        )
    before, _, after = (pattern or PLACEHOLDER).partition(PLACEHOLDER)
    suffix = "" if pattern else f"(?:{'|'.join(map(re.escape, READERS))})"
    shape = re.compile(f"{re.escape(before)}(.+){re.escape(after)}{suffix}", re.DOTALL)
    for file in sorted(folder.rglob("*")):
        match = shape.fullmatch(file.relative_to(folder).as_posix())
        if match and file.is_file():
            yield match[1], file


def _only(path: Path, key: str | None) -> np.ndarray:
    arrays = load_arrays(path)
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key not in arrays:
        raise UnknownNameError(f"{path} (--key)", "array", str(key), sorted(arrays))
    return arrays[key]


def import_features(
    bank: "Bank",
    dataset: str,
    modality: str,
    encoder: str,
    source: Source,
    fps: float = 1.0,
    field_name: str | None = None,
    space: Mapping[str, Any] | None = None,
    add_clips: bool = False,
) -> Imported:
    """Write the arrays of ``source`` as a feature set.

    Arrays of shape (D,) become one frame of one token, (T, D) T frames of one token, (T, N, D) stay. Files
    that cannot be read or have another shape than the first are recorded as failures.

    Args:
        bank: The bank.
        dataset: Whose clips they are.
        modality: Which modality they describe.
        encoder: Name under which they are kept.
        source: Where they are.
        fps: Frames a second of the features, for their times.
        field_name: Field to store them as; ``embedding`` for (D,), ``cls`` for (T, D), else ``tokens``.
        space: What identifies the space besides the name: revision, checkpoint, ...
        add_clips: Register clips that the dataset does not have, without labels.

    Raises:
        ImportingError: If clips are unknown and may not be added, or none can be read.
    """
    if fps <= 0:
        raise ImportingError(f"import: fps {fps}; a positive rate of the features is needed")
    spec = FeatureSpec(encoder, {"name": encoder, "imported": True, **(space or {})}, {"fps": fps})
    entries = source.entries()
    failed, first, rest = _first_readable(source, entries)
    shaped = _shaped(first[1])
    name = field_name or {1: "embedding", 2: "cls"}.get(first[1].ndim, "tokens")
    spec_field = FieldSpec(name, shaped.shape[1], shaped.shape[2])
    _require_known(bank, dataset, [clip for clip, _ in entries], add_clips)
    with bank.writer(dataset, modality, spec, [spec_field]) as writer:
        for clip, array in chain(failed, [first], ((clip, _loaded(load)) for clip, load in rest)):
            problem = _problem(array, spec_field)
            if problem:
                writer.fail(clip, "import", problem)
            else:
                values = _shaped(array).astype(np.float32)
                writer.add(clip, 0, {name: values}, np.arange(len(values)) / fps)
    return Imported(spec.name, writer.added, dict(writer.failures))


def _loaded(load: Load) -> np.ndarray | FrameBankError:
    try:
        return load()
    except (ForeignFileError, UnknownNameError) as error:
        return error  # recorded as this clip's failure


def _first_readable(
    source: Source, entries: Sequence[tuple[str, Load]]
) -> tuple[list[tuple[str, Any]], tuple[str, np.ndarray], Sequence[tuple[str, Load]]]:
    """The failures before the first array that can be read, that array, and the entries after it."""
    failed: list[tuple[str, Any]] = []
    for number, (clip, load) in enumerate(entries):
        array = _loaded(load)
        if isinstance(array, np.ndarray) and array.ndim in (1, 2, 3) and array.size:
            return failed, (clip, array), entries[number + 1 :]
        failed.append((clip, array))
    why = failed[0][1] if failed else "it holds no arrays"
    raise ImportingError(f"{source.path}: no clip of it can be read; the first: {_problem(why, None) or why}")


def _shaped(array: np.ndarray) -> np.ndarray:
    """(D,), (T, D) or (T, N, D) -> (T, N, D)."""
    if array.ndim == 1:
        return array[None, None]
    return array[:, None] if array.ndim == 2 else array


def _problem(array: Any, field: FieldSpec | None) -> str | None:
    if isinstance(array, Exception):
        return str(array)
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2, 3) or not array.size:
        return f"array of shape {getattr(array, 'shape', None)}; (D,), (T, D) or (T, N, D) is needed"
    if field is not None and _shaped(array).shape[1:] != (field.tokens, field.dim):
        return f"array of shape {array.shape}; the others are (T, {field.tokens}, {field.dim})"
    return None


def _require_known(bank: "Bank", dataset: str, clips: Sequence[str], add_clips: bool) -> None:
    """Make sure that the catalog has the clips.

    Raises:
        ImportingError: If it lacks some and they may not be added.
    """
    found = bank.sql("SELECT clip_id FROM clips WHERE dataset = ?", [dataset])["clip_id"].to_pylist()
    unknown = sorted(set(clips) - set(found))
    if unknown and not add_clips:
        raise ImportingError(
            f"{dataset}: clips that it does not have: {shortened(unknown)}; register the dataset"
            f" (`python -m extract --dataset {dataset} --register-only`) or add them: --add-clips"
        )
    if unknown:
        bank.register(dataset, clips=pa.table({"clip_id": unknown}))
