"""The clips that fusion learns on and those that it is scored on, read raw or through a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.fusion import Joined, join
from evaluate.source import EvaluateError, Source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Sides:
    """The clips that teach, and those that are scored."""

    train: Joined
    test: Joined


def sides_of(source: Source, modalities: Sequence[str], train_part: str, part: str) -> Sides:
    """The labelled clips of both parts.

    Raises:
        LeakageError: If a clip is on both sides.
        EvaluateError: If one of them has no labelled clip.
    """
    from evaluate.leakage import refuse_overlap

    train, test = (part_of(source, modalities, part) for part in (train_part, part))
    refuse_overlap("fuse", train.items, test.items, "clips to score", "use parts that share none")
    return Sides(replace(train, fresh=not (heads_saw(source, train) or encoders_saw(source, train))), test)


def part_of(source: Source, modalities: Sequence[str], part: str) -> Joined:
    """The labelled clips of one part.

    Raises:
        EvaluateError: If there is none.
    """
    kind: Any = "features" if source.alignment is None else "embeddings"
    joined = join([source.clips(name, part) for name in modalities], kind).labelled()
    if not len(joined):
        raise EvaluateError(f"fuse: no labelled clip in part {part!r}; learning and scoring need some")
    return joined


def heads_saw(source: Source, clips: Joined) -> bool:
    """Whether some of these clips trained the source's checkpoint."""
    return source.alignment is not None and _among(source, clips, source.alignment.training_rows())


def encoders_saw(source: Source, clips: Joined) -> bool:
    """Whether some of these clips trained an encoder of what the source has read so far."""
    return any(_among(source, clips, one.rows()) for one in source.trained)


def _among(source: Source, clips: Joined, rows: "pa.Table") -> bool:
    own = np.asarray(rows["dataset"]) == source.dataset
    return bool(np.isin(clips.items.astype(str), np.asarray(rows["clip_id"])[own].astype(str)).any())


def raw_source(source: Source, modalities: Sequence[str]) -> Source:
    """The same feature sets and fields, without the checkpoint.

    Raises:
        EvaluateError: If a modality has its name from the checkpoint's recipe alone.
    """
    if source.alignment is None:
        return source
    for name in modalities:
        if source.media(name) != name:
            raise EvaluateError(
                f"fuse: {name} is the recipe's name for {source.media(name)}; without the checkpoint there "
                "are no such features: choose other --modalities, or leave --against and --cross-fit out"
            )
    read = {name: source.selection(name) for name in modalities}
    encoders = {name: one.feature_set for name, one in read.items()}
    names = {name: one.field.name for name, one in read.items()}
    return replace(source, alignment=None, encoders=encoders, fields=names)


def coverage(clips: Joined) -> str:
    """``216 clips (210 have all modalities; lacking: depth 6)``."""
    lacking = (~clips.present).sum(axis=0)
    if not lacking.any():
        return f"{len(clips):,} clips, all with all modalities"
    told = ", ".join(f"{name} {n}" for name, n in zip(clips.modalities, lacking, strict=True) if n)
    return f"{len(clips):,} clips ({clips.present.all(axis=1).sum():,} have all modalities; lacking: {told})"
