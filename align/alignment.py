"""Trained heads in use: stored features -> embeddings, refused where the feature space is another one.

A head only means something for the space it was trained on (encoder, weights, preprocessing). Another
sampling, precision, dataset or view of the same space is fine.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from align.checkpoint import (
    CURVE_FILE,
    HEADS_FILE,
    ROWS_FILE,
    CheckpointError,
    locate,
    read_config,
    read_heads,
)
from align.materialise import plain
from align.model import Heads, HeadSpec
from align.standardise import Statistics
from store.errors import FrameBankError

CHUNK = 2048  # rows materialised at a time when embedding


class SpaceError(FrameBankError, ValueError):
    """Features of another space than the heads were trained on."""


class Features(Protocol):
    """What ``embed`` needs of a ``store`` Selection."""

    field: Any

    @property
    def feature_set(self) -> str:
        """``<encoder>@<fingerprint>``."""

    @property
    def space_digest(self) -> str:
        """Of the space its vectors live in."""

    def __len__(self) -> int: ...

    def take(self, rows: Any) -> "Features":
        """Some of its rows."""

    def materialise(self, reduce: str) -> Any:
        """Its features as one array."""


class Alignment:
    """Trained heads: stored features in, unit vectors of the shared space out.

    Args:
        directory: Where the checkpoint lies.
        config: Its config.json.
        heads: In evaluation mode.
        standards: Modality -> statistics of its training features.
        device: Where to compute.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        heads: Heads,
        standards: Mapping[str, Statistics],
        device: torch.device,
    ):
        self.directory, self.config, self.device = directory, config, device
        self.heads, self.standards = heads.to(device).eval(), dict(standards)

    @property
    def modalities(self) -> list[str]:
        """In the order of training; ``text`` among them if it was aligned."""
        return list(self.config["modalities"])

    @property
    def embedding(self) -> int:
        """E."""
        return self.heads.embedding

    @property
    def supervision(self) -> list[str]:
        """What told training more than which features belong to one clip: ``captions``, ``labels``."""
        return list(self.config["supervision"])

    def head_of(self, modality: str) -> str:
        """The aligned modality whose head serves this one: itself, or that before the dot (``ir.ceiling``).

        Raises:
            CheckpointError: If there is none.
        """
        for name in (modality, modality.partition(".")[0]):
            if name in self.config["modalities"]:
                return name
        raise CheckpointError(
            f"{self.directory}: no head for modality {modality!r}; it has: {', '.join(self.modalities)}"
        )

    def media_of(self, modality: str) -> str:
        """Whose features stand for a modality: ``rgb`` for one that was aligned as ``rgb.omnivore``."""
        own = self.config["modalities"].get(modality, {})
        return str(own.get("modality", modality))

    def settings(self, modality: str) -> dict[str, Any]:
        """encoder, feature_set, space_digest, field, tokens, dim, reduce, head, ... of a modality."""
        return dict(self.config["modalities"][self.head_of(modality)])

    def check_space(self, modality: str, space_digest: str, feature_set: str = "") -> None:
        """Refuse features that the modality's head was not trained for.

        Raises:
            SpaceError: Naming both spaces.
        """
        own = self.settings(modality)
        if own["space_digest"] != space_digest:
            name = feature_set or "these features"
            fix = (
                f"choose a feature set of {own['encoder']} with that space (python -m store info), extract "
                "it, or align anew"
            )
            if "extract" in own:  # its encoder was trained with it
                fix = own["extract"]
            other = f"space {space_digest}" if space_digest else "others"
            raise SpaceError(
                f"{self.directory}: the {modality} head was trained on space {own['space_digest']} "
                f"({own['feature_set']}), but {name} is of {other}; {fix}"
            )

    def embed(self, modality: str, selection: Features, rows: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of a selection's items.

        Args:
            modality: Whose head to use.
            selection: Features of the space that this head was trained on.
            rows: (n,) rows of the selection, in any order; None: all.

        Returns:
            (n, E) float32 unit rows.

        Raises:
            SpaceError: If the features are of another space.
            CheckpointError: If the modality has no head, or the field has another shape.
        """
        own = self.settings(modality)
        self.check_space(modality, selection.space_digest, selection.feature_set)
        shape = (selection.field.tokens, selection.field.dim)
        if (selection.field.name, *shape) != (own["field"], *own["stored_shape"]):
            takes = f"{own['field']} {tuple(own['stored_shape'])}"
            raise CheckpointError(
                f"{self.directory}: the {modality} head takes field {takes}, "
                f"not {selection.field.name} {shape}; select field {own['field']!r}"
            )
        rows = np.arange(len(selection)) if rows is None else np.asarray(rows)
        parts = [np.empty((0, self.embedding), np.float32)]
        for start in range(0, len(rows), CHUNK):
            part = selection.take(rows[start : start + CHUNK]).materialise(own["reduce"])
            values, offsets = part if isinstance(part, tuple) else (part, None)
            if offsets is not None:
                values = plain(values, selection.field.dtype)
            parts.append(self.embed_features(modality, values, offsets))
        return np.concatenate(parts)

    @torch.no_grad()
    def embed_features(
        self, modality: str, features: np.ndarray, offsets: np.ndarray | None = None
    ) -> np.ndarray:
        """Embeddings of materialised features, whose space the caller has checked.

        Args:
            modality: Whose head to use.
            features: (n, D), (n, T, N, D), or (sum of T, N, D) with ``offsets`` (n + 1,).
            offsets: For ragged features.

        Returns:
            (n, E) float32 unit rows.
        """
        name = self.head_of(modality)
        standard = self.standards[name]
        if offsets is None:
            values = features[:, None, None] if features.ndim == 2 else features
            return self._embed(name, torch.from_numpy(standard.apply(values)), None)
        lengths = np.diff(offsets)
        steps = np.arange(max(int(lengths.max(initial=1)), 1))
        valid = steps < lengths[:, None]
        places = np.where(valid, offsets[:-1, None] + steps, 0)
        return self._embed(name, torch.from_numpy(standard.apply(features)[places]), torch.from_numpy(valid))

    def embed_texts(self, features: np.ndarray, space_digest: str | None = None) -> np.ndarray:
        """Embeddings of text features (n, D) of the text encoder that was aligned -> (n, E) unit rows.

        Raises:
            SpaceError: If ``space_digest`` is given and is another space.
            CheckpointError: If text was not aligned.
        """
        if space_digest is not None:
            self.check_space("text", space_digest)
        return self.embed_features("text", np.asarray(features))

    def training_rows(self) -> pa.Table:
        """dataset, clip_id, label, subject and role (train, validation) of every clip that training saw."""
        return pq.read_table(self.directory / ROWS_FILE)

    def curve(self) -> list[dict[str, Any]]:
        """A row an epoch (see :meth:`align.train.Trainer.run`)."""
        rows: list[dict[str, Any]] = json.loads((self.directory / CURVE_FILE).read_text())
        return rows

    def _embed(self, name: str, values: Tensor, mask: Tensor | None) -> np.ndarray:
        mask = None if mask is None else mask.to(self.device)
        return self.heads.embed(name, values.to(self.device), mask).float().cpu().numpy()


def load(
    checkpoint: str | os.PathLike[str], bank: str | os.PathLike[str] = "bank", device: str = "cpu"
) -> Alignment:
    """Trained heads from a directory, ``run:<id>`` or ``latest`` of a bank.

    Raises:
        CheckpointError: If there is no finished checkpoint, naming what was looked for.
    """
    from align.train import resolve_device

    directory = locate(checkpoint, bank)
    config = read_config(directory)
    if not (directory / HEADS_FILE).exists():
        raise CheckpointError(f"{directory}: training has not finished; python -m align --resume {directory}")
    specs = {
        name: HeadSpec(own["head"], own["tokens"], own["dim"], own["head_options"])
        for name, own in config["modalities"].items()
    }
    heads = Heads(specs, config["embedding"])
    standards = read_heads(directory, heads)
    return Alignment(directory, config, heads, standards, resolve_device(device))
