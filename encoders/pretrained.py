"""What all encoders with a published checkpoint share: where weights come from, and loading them strictly.

A family (CLIP-ViP, Omnivore...) derives from :class:`Pretrained` once and says what is its own: the
architectures by name, the module, how the official keys map onto it, the preprocessing and the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from encoders.checkpoint import checkpoint_digest, load_strictly, read_checkpoint
from encoders.errors import EncoderError, WeightsError
from encoders.protocols import Field, Prepare
from encoders.weights import RANDOM

TINY = "tiny"
OFFICIAL = "official"
CMVRA = "cmvra"


@dataclass(frozen=True)
class Card:
    """Where a checkpoint comes from.

    Attributes:
        file: The official file's name, or the hub id.
        published: Where its authors publish it.
        licence: Of the weights, with what it forbids.
    """

    file: str
    published: str
    licence: str


class Pretrained:
    """Base of the families; see :class:`encoders.protocols.Encoder` for what extraction reads.

    A family sets the class attributes, ``fields``, ``default_fields`` and ``preprocess`` in its ``__init__``
    after calling ours, and implements ``build``, ``features`` and, where official keys differ from the
    module's, ``translate``.

    Args:
        weights: Checkpoint file, or ``random``.
        device: Where it runs.
        modality: What it will be fed, without a view's suffix; None if that is not known.
        name: A key of ``ENCODERS``, and of ``architectures``.
        architecture: Instead of the name's: ``tiny`` (for tests), or an instance.
        preset: ``official`` (the authors' preprocessing) or another of ``presets``.
        allow_partial: Keys, or prefixes ending in ``.``, that the checkpoint may lack.
        entry: Which encoder of a CMVRA alignment checkpoint (see ``read_checkpoint``); None: the modality's.

    Raises:
        WeightsError: If there is no such file; names the official one, where it is published, its licence.
        EncoderError: For an unknown preset.
    """

    architectures: ClassVar[Mapping[str, Any]]  # encoder name -> frozen dataclass
    tiny: ClassVar[Any]  # the same network, small enough for a test
    cards: ClassVar[Mapping[str, Card]]
    presets: ClassVar[tuple[str, ...]] = (OFFICIAL,)
    modalities: tuple[str, ...] = ()
    revision = 1
    unit: Literal["frame", "clip"] = "clip"
    sampling: Mapping[str, Any] = {"frames": 12}
    frames_per_step = 1  # see encoders.protocols.Encoder
    fields: Mapping[str, Field]
    default_fields: tuple[str, ...]
    tolerates_bf16 = True
    preprocess: Any  # a Prepare with .space(), and .normalise() for the encoder's side

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        *,
        name: str,
        architecture: Any = None,
        preset: str = OFFICIAL,
        allow_partial: tuple[str, ...] | list[str] = (),
        entry: str | None = None,
    ):
        if preset not in self.presets:
            raise EncoderError(f"{name}: preset is {preset!r}; accepted are: {', '.join(self.presets)}")
        self.card = self.cards[name]
        self.weights, self.modality, self.preset = weights, modality, preset
        self.allow_partial, self.entry = tuple(allow_partial), entry or modality
        self.device = torch.device(device)
        small = architecture == TINY
        self.architecture = self.tiny if small else architecture or self.architectures[name]
        self.name = name + ("-tiny" if small else "") + ("-random" if weights == RANDOM else "")
        self.path = None if weights == RANDOM else self.locate(name, weights)

    def locate(self, name: str, weights: str | None) -> Path:
        """The checkpoint's path."""
        card = self.card
        where = f"the official one is {card.file}, from {card.published}; licence: {card.licence}"
        if weights is None:
            raise WeightsError(f"{name}: no weights given; pass --weights FILE: {where}")
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(f"{name}: no checkpoint file at {weights!r}; {where}")
        return path

    def weights_digest(self) -> str:
        """The checkpoint's identity."""
        assert self.path is not None
        return checkpoint_digest(self.path, self.entry)

    def build(self) -> nn.Module:
        """The module of ``self.architecture``, with fresh weights."""
        raise NotImplementedError

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The official checkpoint's tensors under the module's keys."""
        return tensors

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """As ``encode``, and differentiable."""
        raise NotImplementedError

    @cached_property
    @torch.inference_mode(False)  # ordinary tensors, whoever asks first: autocast keeps its casts of those
    def model(self) -> Any:
        """The module in evaluation mode, loaded strictly."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
        if self.path is not None:
            tensors = self.translate(read_checkpoint(self.path, self.entry))
            self.load_report = load_strictly(model, tensors, f"{self.name}: {self.path}", self.allow_partial)
        return model.eval().to(self.device)

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity of the features: weights by content, architecture and preprocessing by value."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "weights": RANDOM if self.path is None else self.weights_digest(),
            "architecture": _plain(asdict(self.architecture)),
            "preprocess": self.preprocess.space(),
            **({"allow_partial": sorted(self.allow_partial)} if self.allow_partial else {}),
        }

    def prepare(self) -> Prepare:
        """The geometry, for the decode workers."""
        return self.preprocess

    @torch.inference_mode()
    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.Encoder`."""
        return self.features(batch)

    def parameters(self) -> int:
        """Number of parameters, counted without allocating them."""
        with torch.device("meta"):
            return sum(one.numel() for one in self.build().parameters())


def _plain(value: Any) -> Any:
    """JSON's types only: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
