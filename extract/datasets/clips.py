"""What a dataset adapter yields: clips with their media and captions, splits, and texts of the classes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from store.errors import FrameBankError

MODALITIES = ("rgb", "ir", "depth", "skeleton", "inertial", "audio")
"""What a clip's media can be; a suffix after a dot tells apart several of a kind (``ir.ceiling``)."""


@dataclass(frozen=True)
class Media:
    """One file (or folder of images) of a clip.

    Attributes:
        path: Relative to the dataset's root (an absolute path stays as it is).
        reader: Name in ``extract.readers.READERS``.
        options: Keyword arguments of that reader, JSON-able.
        start_seconds: Where the clip begins in this file, if elsewhere than the clip's own start.
        end_seconds: Likewise.
    """

    path: str
    reader: str
    options: Mapping[str, Any] = field(default_factory=dict)
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Caption:
    """A text about a clip, or about a span of it.

    Attributes:
        text: The caption.
        source: Where it comes from (``"listing"``, ``"llava-v1.6-34b"``, ...).
        start_seconds: Beginning of the span that it describes; None = the whole clip.
        end_seconds: End of that span.
    """

    text: str
    source: str
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Clip:
    """A time span of a recording. ``clip_id`` is unique in its dataset and stays the same for ever.

    Attributes:
        clip_id: Identity within the dataset.
        media: Modality -> file.
        label: Class index from 0, None = unlabelled.
        label_name: Its name.
        subject: Who is seen.
        camera: Which view.
        setup: Which recording setup.
        replication: Which repetition.
        start_seconds: Where the clip begins in its media; None = at their beginning.
        end_seconds: Where it ends; None = at their end.
        attributes: Anything else, JSON-able.
        captions: Texts about it.
    """

    clip_id: str
    media: Mapping[str, Media]
    label: int | None = None
    label_name: str | None = None
    subject: str | None = None
    camera: str | None = None
    setup: str | None = None
    replication: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    captions: tuple[Caption, ...] = ()


class Split(NamedTuple):
    """One clip's part in one protocol."""

    protocol: str
    clip_id: str
    part: str


class LabelText(NamedTuple):
    """One text that stands for a class; all classes' texts of one kind are a prompt set."""

    label: int
    label_name: str
    prompt_set: str
    text: str


class Dataset(Protocol):
    """Lists a dataset's clips without opening their media.

    Made as ``Adapter(root, **options)``, with the options of the dataset's YAML. It may also have

    - ``caption_sources``: protocol -> part -> the sources of the captions that belong to it, where these are
      not all: the catalog keeps it in the dataset's configuration;
    - ``notes()``: sentences about what is not there, which ``python -m extract`` shows.
    """

    name: str

    def clips(self) -> Iterator[Clip]:
        """All clips in a fixed order. Raises: DatasetError."""
        ...

    def splits(self, clips: Iterable[Clip]) -> Iterator[Split]:
        """The part of each clip in each protocol that it belongs to."""
        ...

    def label_texts(self) -> Iterator[LabelText]:
        """The prompt sets; they also are the dataset's class list (empty = no class list)."""
        ...


class DatasetError(FrameBankError, ValueError):
    """A dataset that cannot be listed: what is wrong, where, and what is accepted."""
