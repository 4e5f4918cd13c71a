"""What is to be extracted, with everything that decides the features; how a run behaves; what it did."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoders.protocols import Encoder
from extract.sampling import Sampling
from store.spec import FeatureSpec, FieldSpec


@dataclass(frozen=True)
class Task:
    """One dataset's modality and everything that decides its features, resolved.

    Attributes:
        fields: Names of the fields wanted.
        views: How many views of each clip.
        where: SQL condition over the columns of ``clips``.
    """

    dataset: str
    modality: str
    root: Path
    encoder: Encoder
    spec: FeatureSpec
    sampling: Sampling
    fields: tuple[str, ...]
    device: str = "cpu"
    views: int = 1
    where: str | None = None

    @property
    def label(self) -> str:
        """Short name for messages."""
        return f"{self.dataset}/{self.modality} {self.spec.name}"

    def field_specs(self) -> list[FieldSpec]:
        """The fields as the store wants them."""
        fields = (self.encoder.fields[name] for name in self.fields)
        return [FieldSpec(one.name, one.tokens, one.dim) for one in fields]


@dataclass(frozen=True)
class Limits:
    """How a run behaves.

    Attributes:
        max_failures: Share of failed clips above which it stops.
        batch_frames: Frames in an encoder batch; by device if None.
        max_segment_bytes: Size at which a segment is committed; the store's default if None.
        max_segment_seconds: Age at which it is; likewise.
    """

    max_failures: float = 0.2
    batch_frames: int | None = None
    max_segment_bytes: int | None = None
    max_segment_seconds: float | None = None

    def writer_options(self) -> dict[str, Any]:
        """Arguments of ``bank.writer``."""
        options = {"max_bytes": self.max_segment_bytes, "max_seconds": self.max_segment_seconds}
        return {name: value for name, value in options.items() if value is not None}


@dataclass
class Outcome:
    """What a run did with one task.

    Attributes:
        planned: (item, view) rows that were missing.
        added: Those that were stored.
        failed: Those that failed.
        skipped: Those that another run stored meanwhile.
        seconds: Wall time.
        stopped: Why the run ended before its time; None if it didn't.
        notes: Things that went wrong without costing a feature, and how often.
    """

    planned: int = 0
    added: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    commonest_error: str | None = None
    notes: dict[str, int] = field(default_factory=dict)
