"""Attention over the modalities that a clip has; those it lacks are masked, and have no influence at all."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluate.fusion import Joined
from evaluate.fusion_network import epochs, score, targets, train

LEAST_DEVIATION = 1e-6
STEPS_AN_EPOCH, LEAST_BATCH, MOST_BATCH = 100, 64, 1024  # unless the batch is given


class AttentionFusion(nn.Module):
    """A class token reads the modalities' tokens through pre-norm transformer layers.

    Each modality has its own linear map to the common width and its own embedding (CMVRA's fusion cannot tell
    modalities apart), residuals and norms carry the gradient, and the key-padding mask hides what is absent
    (CMVRA attends to zeros, which takes attention away from what is there).

    Args:
        dims: D of each modality.
        classes: C.
        width: Of the tokens.
        depth: Layers.
        heads: Of the attention.
        dropout: Of vectors, tokens and layers.
    """

    def __init__(
        self,
        dims: Sequence[int],
        classes: int,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.3,
    ):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.into = nn.ModuleList([nn.Linear(dim, width) for dim in dims])
        self.modality = nn.Parameter(torch.randn(len(dims), width) * 0.02)
        self.reader = nn.Parameter(torch.randn(1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, classes)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        """M vectors (B, D), present (B, M) -> (B, C); what absent vectors hold does not matter, even NaN."""
        tokens = torch.stack(
            [into(self.drop(one)) for into, one in zip(self.into, vectors, strict=True)], dim=1
        )
        # where, not only the mask: a masked key has weight 0, but 0 times NaN is NaN.
        tokens = torch.where(present[..., None], tokens + self.modality, tokens.new_zeros(()))
        tokens = torch.cat([self.reader.expand(len(tokens), 1, -1), tokens], dim=1)
        absent = functional.pad(~present, (1, 0))  # the reader is never absent
        logits: Tensor = self.out(self.layers(tokens, src_key_padding_mask=absent)[:, 0])
        return logits


class Attention:
    """Trains an :class:`AttentionFusion` with modalities dropped at random, clip by clip, never all.

    Vectors are standardised by the training clips' statistics. AdamW along half a cosine; the last weights
    are kept. The options' defaults are for hundreds to tens of thousands of clips.

    Args:
        epochs: Passes over the clips.
        batch: Clips a step; None: a hundredth of them, 64 to 1024.
        learning_rate: At the start.
        weight_decay: AdamW's.
        drop: Probability that a modality of a clip is hidden in a step.
        smoothing: Of the labels.
        width: Of the tokens.
        depth: Transformer layers.
        heads: Of the attention.
        dropout: Within the network.
    """

    seeded = True

    def __init__(
        self,
        epochs: int = 60,
        batch: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        drop: float = 0.5,
        smoothing: float = 0.1,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.3,
    ):
        self.epochs, self.batch, self.learning_rate = epochs, batch, learning_rate
        self.weight_decay, self.drop, self.smoothing = weight_decay, drop, smoothing
        self.network = {"width": width, "depth": depth, "heads": heads, "dropout": dropout}
        self.model: AttentionFusion | None = None
        self.standards: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, train_clips: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """See :class:`evaluate.fusion.Fusion`."""
        self.standards = {
            name: standard(one[train_clips.present[:, place]])
            for place, (name, one) in enumerate(train_clips.vectors.items())
        }
        dims = [one.shape[1] for one in train_clips.vectors.values()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = AttentionFusion(dims, classes, **self.network)  # type: ignore[arg-type]
            self._train(self.model, train_clips, classes, seed, balanced)

    def scores(self, clips: Joined) -> np.ndarray:
        """See :class:`evaluate.fusion.Fusion`."""
        model = self.model
        assert model is not None
        vectors, present = self._tensors(clips)
        return score(lambda rows: model([one[rows] for one in vectors], present[rows]), len(clips))

    def told(self) -> str:
        """How long it was trained."""
        return f"{self.epochs} epochs"

    def _tensors(self, clips: Joined) -> tuple[list[Tensor], Tensor]:
        vectors = [
            torch.from_numpy((one - self.standards[name][0]) / self.standards[name][1])
            for name, one in clips.vectors.items()
        ]
        return vectors, torch.from_numpy(clips.present)

    def _train(self, model: AttentionFusion, clips: Joined, classes: int, seed: int, balanced: bool) -> None:
        vectors, present = self._tensors(clips)
        labels, weights = targets(clips, classes, balanced)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)

        def loss_of(rows: Tensor) -> Tensor:
            seen = hide(present[rows], self.drop)
            logits = model([one[rows] for one in vectors], seen)
            return functional.cross_entropy(logits, labels[rows], weights, label_smoothing=self.smoothing)

        batch = self.batch or min(max(len(clips) // STEPS_AN_EPOCH, LEAST_BATCH), MOST_BATCH)
        order = epochs(self.epochs, len(clips), batch, seed, reshuffle=True)
        train(model, optimizer, scheduler, order, loss_of)


def hide(present: Tensor, probability: float) -> Tensor:
    """Each modality of each clip hidden with a probability, but one that it has always stays: (B, M) bool."""
    drawn = torch.rand(present.shape).masked_fill(~present, -1)
    kept = present & (drawn >= probability)
    last = functional.one_hot(drawn.argmax(1), present.shape[1]).bool()  # the one drawn highest
    return torch.where(kept.any(1, keepdim=True), kept, last & present)


def standard(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) of some vectors (n, D), as float32; a constant dim counts as deviation 1."""
    if not len(vectors):
        return np.zeros(vectors.shape[1], np.float32), np.ones(vectors.shape[1], np.float32)
    mean, deviation = vectors.mean(axis=0, dtype=np.float64), vectors.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(deviation > LEAST_DEVIATION, deviation, 1).astype(np.float32)
