"""What an encoder is: the attributes that extraction reads, and the shapes that go in and come out.

Shapes: B batch, T time, N tokens, D feature dim, C H W image, P persons, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Field:
    """A named output of an encoder, stored as its own array ``[frames, tokens, dim]``.

    Attributes:
        name: ``embedding`` (clip-level), ``cls`` (one token a frame), ``tokens`` (patch or joint
            tokens a frame).
        tokens: N, fixed.
        dim: D, fixed.
        per_clip: One ``(1, N, D)`` row a clip. Where the encoder works on single frames, extraction averages
            over the clip's frames in float32.
        source: The field that this one is pooled from (:mod:`encoders.tokens`); None for those that
            ``encode`` returns itself.
        grid: Rows and columns of the source's tokens, where they have such an order.
    """

    name: str
    tokens: int
    dim: int
    per_clip: bool = False
    source: str | None = None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class CropBox:
    """A view's crop, relative to the frame (0..1), and whether it is mirrored left to right."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False


class Prepare(Protocol):
    """The weightless part of preprocessing, run in the decode workers; it must pickle."""

    def __call__(
        self, values: Any, modality: str, crop: CropBox | None, times_seconds: np.ndarray
    ) -> np.ndarray:
        """One clip's media ``(T, ...)`` -> what ``encode`` takes, without the batch axis ``(T, ...)``.

        An encoder of several modalities at once (``rgb+depth``) gets ``{modality: (T, ...)}`` as ``values``.
        Where it gives another number of frames, their times follow: those made of one continuous stretch
        (audio) are evenly spaced, further ones repeat the last, and where some are missing they are the last.
        """
        ...


class Encoder(Protocol):
    """Frozen network (or formula) that turns prepared media into features.

    Attributes:
        name: As in ``ENCODERS``, plus ``-random`` when the weights are.
        revision: Raised by hand whenever the same configuration computes something else than before.
        modalities: What it takes.
        unit: ``frame``: frames are independent, and batches of ``(B, 1, ...)`` cross clip boundaries;
            ``clip``: ``(B, T, ...)`` of clips with equal T.
        sampling: The frames it wants by default: ``{"frames": 12}``, ``{"fps": 4.0, "max_frames": 64}`` or
            ``{"frames": "all", "max_frames": 300}``.
        fields: Everything it can write.
        default_fields: What it writes unless asked otherwise.
        space: JSON-able identity (name, revision, weights digest, preprocessing): equal spaces, equal
            features.
        tolerates_bf16: Whether precision ``auto`` may use bfloat16 autocast.
        frames_per_step: Optional, 1 if absent: the prepared frames that one of the T' output steps covers (2
            for tubelets of two frames, 16 for windows of sixteen). T' = ceil(T / frames_per_step), or floor
            where a rest is dropped: the times and the size estimate of a feature rest on it.
        prepared_hz: Optional: the rate of prepared frames, where it is not that of what was read (100 log-mel
            frames a second of a waveform); for the size estimate.
        reader_options: Optional: reader -> its options, where the encoder needs other than the reader's own
            (``{"audio": {"sample_rate": 48000}}``); they stand above the dataset's. The space must tell.
    """

    name: str
    revision: int
    modalities: tuple[str, ...]
    unit: Literal["frame", "clip"]
    sampling: Mapping[str, Any]
    fields: Mapping[str, Field]
    default_fields: tuple[str, ...]
    tolerates_bf16: bool

    @property
    def space(self) -> dict[str, Any]:
        """See the class."""
        ...

    def prepare(self) -> Prepare:
        """The picklable, weightless preprocessing for the decode workers."""
        ...

    # Those that can be trained end to end have ``model`` (an nn.Module) and ``features``: ``encode``,
    # differentiable. ``network()``, where there is one, gives the form of the model that is trained;
    # ``save(folder, tensors)`` writes it where weights are a folder, and returns that folder's digest.

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, ...)`` prepared media -> ``{field: (B, T', N, D)}`` float32, on its device.

        T' is the encoder's own number of time steps (1 for per-clip fields). Fields with a ``source`` are
        left out: :func:`encoders.tokens.field_values` makes them.
        """
        ...


class TextEncoder(Protocol):
    """Encoder of texts; each text's feature does not depend on its neighbours in the batch.

    Those that can be trained end to end have, as well, ``tokenise(texts)``: token tensors ``(L, length)`` on
    the CPU, and ``text_features(tokens)``: ``(L, D)`` float32 on its device, differentiable.
    """

    name: str
    revision: int
    modalities: tuple[str, ...]
    fields: Mapping[str, Field]
    default_fields: tuple[str, ...]
    tolerates_bf16: bool

    @property
    def space(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        ...

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, D)`` float32."""
        ...
