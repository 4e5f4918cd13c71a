"""Encoders in training as part of the heads: decoded clips or tokens -> features -> embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.model import Heads, module_key
from align.resample import resample
from align.standardise import Statistics

Values = Tensor | Mapping[str, Tensor]


@dataclass
class Seen:
    """What the encoder of one modality sees of a batch.

    Args:
        values: Prepared media (b, T, ...), or token tensors (b, L) by name.
        rows: (b,) int64: which clips of the batch these are; the others lack the modality.
        size: B.
    """

    values: Values
    rows: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, most: int) -> list[Values]:
        """In parts of at most so many clips."""
        return [
            _rows(self.values, slice(start, start + most)) for start in range(0, len(self.rows), max(1, most))
        ]

    def placed(self, embedded: Tensor | None, embedding: int) -> Tensor:
        """(b, E) -> (B, E), zeros where the modality lacks."""
        if embedded is None:
            return torch.zeros(self.size, embedding, device=self.rows.device)
        if len(embedded) == self.size:
            return embedded
        whole = embedded.new_zeros(self.size, embedding)
        return whole.index_copy(0, self.rows, embedded)


class Tower(nn.Module):
    """An encoder and all that lies between it and its head, as reading its stored features would give it.

    Args:
        model: The encoder's network.
        encode: Prepared media or tokens -> the field (b, T, N, D) float32, differentiable; uses ``model``.
        reduce: ``mean``, ``cls`` or ``resample:K``, as ``Selection.materialise`` has them.
        per_clip: Whether the field is one row a clip: frames are averaged.
        shape: Of the statistics: (1, D), or (N, D) where each token has its own.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[Any], Tensor],
        reduce: str,
        per_clip: bool,
        shape: tuple[int, int],
    ):
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.model, self._encode, self._reduce, self._per_clip = model, encode, reduce, per_clip
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def train(self, mode: bool = True) -> "Tower":
        """As any module; batch norms keep the statistics that they were trained with."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self, values: Values) -> Tensor:
        """What is standardised: (b, T, N, D)."""
        found = self._encode(values)
        if self._per_clip and found.shape[1] > 1:
            found = found.mean(1, keepdim=True)
        if self._reduce == "mean":
            return found.mean((1, 2))[:, None, None]
        if self._reduce == "cls":
            return found[:, :, 0].mean(1)[:, None, None]
        return resample(found, None, int(self._reduce.partition(":")[2]))

    def forward(self, values: Values) -> Tensor:
        """What the head takes: (b, T, N, D) float32."""
        limit = Statistics.LIMIT
        return ((self.features(values).float() - self.mean) / self.scale).clamp(-limit, limit)

    def standard(self) -> Statistics:
        """The statistics, as checkpoints keep them."""
        return Statistics(self.mean.cpu().numpy(), self.scale.cpu().numpy())

    def set_standard(self, found: Statistics) -> None:
        """Take statistics of features."""
        self.mean.copy_(torch.from_numpy(found.mean))
        self.scale.copy_(torch.from_numpy(found.scale))


class Towers(Heads):
    """The heads of all modalities, with encoders under some of them.

    Args:
        heads: Their modules are shared.
        towers: Modality -> its encoder.
        micro_batch: Clips that pass at once.
    """

    def __init__(self, heads: Heads, towers: Mapping[str, Tower], micro_batch: int):
        super().__init__({}, heads.embedding)
        self.modalities, self.heads, self.micro_batch = heads.modalities, heads.heads, micro_batch
        self.frozen = heads.frozen
        self.towers = nn.ModuleDict({module_key(name): tower for name, tower in towers.items()})

    def tower(self, modality: str) -> Tower:
        """A modality's encoder."""
        found = self.towers[module_key(modality)]
        assert isinstance(found, Tower)
        return found

    def forward(self, features: Mapping[str, Any], masks: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """All modalities of a batch, in their own order."""
        return {name: self.embed(name, features[name], masks.get(name)) for name in self.modalities}

    def embed(self, modality: str, features: Any, mask: Tensor | None = None) -> Tensor:
        """As :class:`align.model.Heads`; what an encoder sees (:class:`Seen`) in micro-batches."""
        if not isinstance(features, Seen):
            return super().embed(modality, features, mask)
        parts = [self.encode(modality, values) for values in features.split(self.micro_batch)]
        return features.placed(torch.cat(parts) if parts else None, self.embedding)

    def encode(self, modality: str, values: Values) -> Tensor:
        """One micro-batch: prepared media or tokens -> (b, E) unit rows."""
        return super().embed(modality, self.tower(modality)(values))

    def without_towers(self) -> Heads:
        """The heads alone, the same modules: what an alignment's checkpoint holds."""
        plain = Heads({}, self.embedding)
        plain.modalities, plain.heads, plain.frozen = self.modalities, self.heads, self.frozen
        return plain


def _rows(values: Values, rows: slice) -> Values:
    if isinstance(values, Tensor):
        return values[rows]
    return {name: one[rows] for name, one in values.items()}
