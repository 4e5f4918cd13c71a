"""CMVRA's fusion: self-attention over the modalities' embeddings, their mean, one linear layer.

Source: github.com/Cappl1/CMVRA (VIP/src/zeta/model_init.py, train_classefier.py). What a clip lacks is a zero
vector, which is attended like any other; ``evaluate.fusion_attention`` is the one that leaves it out.
"""

from collections.abc import Sequence
from math import floor

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluate.fusion import Joined, require_one_width
from evaluate.fusion_network import epochs, score, targets, train
from evaluate.source import EvaluateError

HALVED_AFTER = 0.4  # of the epochs the learning rate is halved, and again


class FusionHeads(nn.Module):
    """All that CMVRA trains on frozen embeddings: a linear probe a modality, and the attention fusion.

    Parameters are named as in its checkpoints (``rgb_classifier.weight``, ``attention.in_proj_weight``, ...,
    ``final_classifier.bias``), so that they load strictly.

    Args:
        modalities: Those with a probe of their own; may be empty.
        classes: C.
        width: E.
        heads: Of the attention.
    """

    def __init__(self, modalities: Sequence[str], classes: int, width: int, heads: int = 8):
        super().__init__()
        self.modalities = tuple(modalities)
        for name in modalities:
            self.add_module(_probe(name), nn.Linear(width, classes))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.final_classifier = nn.Linear(width, classes)

    def probe(self, modality: str, features: Tensor) -> Tensor:
        """One modality's linear probe: (B, E) -> (B, C)."""
        logits: Tensor = self.get_submodule(_probe(modality))(features)
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, E), zero where absent -> (B, C)."""
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        logits: Tensor = self.final_classifier(attended.mean(1))
        return logits


class CMVRA:
    """The original's training: each modality zeroed for a whole batch with some probability, maybe all.

    Adam, rate halved after each 0.4 of the epochs, clips in one order in all epochs. Ours differs in what it
    keeps: the last weights (the original's best on 2 % of the training clips, which were the training clips'
    own subjects). Its embeddings are not normalised, a checkpoint's of ours are unit rows.

    Args:
        epochs: Passes over the clips.
        batch: Clips a step.
        learning_rate: Adam's.
        drop: Probability that a modality is zeroed for a batch.
        heads: Of the attention; must divide the embedding's dims.
    """

    seeded = True

    def __init__(
        self,
        epochs: int = 500,
        batch: int = 32,
        learning_rate: float = 1e-4,
        drop: float = 0.1,
        heads: int = 8,
    ):
        self.epochs, self.batch, self.learning_rate = epochs, batch, learning_rate
        self.drop, self.heads = drop, heads
        self.model: FusionHeads | None = None

    def fit(self, train_clips: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """See :class:`evaluate.fusion.Fusion`."""
        width = require_one_width(train_clips, "cmvra")
        if width % self.heads:
            raise EvaluateError(
                f"fuse: cmvra's {self.heads} attention heads do not divide {width} dims; pass "
                f"""--options '{{"cmvra": {{"heads": N}}}}' or choose --methods attention"""
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = FusionHeads((), classes, width, self.heads)
            self._train(self.model, train_clips, classes, seed, balanced)

    def scores(self, clips: Joined) -> np.ndarray:
        """See :class:`evaluate.fusion.Fusion`."""
        model = self.model
        assert model is not None
        tokens = stack(clips)
        return score(lambda rows: model(tokens[rows]), len(clips))

    def told(self) -> str:
        """How long it was trained."""
        return f"{self.epochs} epochs"

    def _train(self, model: FusionHeads, clips: Joined, classes: int, seed: int, balanced: bool) -> None:
        tokens = stack(clips)
        labels, weights = targets(clips, classes, balanced)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)
        scheduler = torch.optim.lr_scheduler.StepLR(
            optimizer, max(1, floor(HALVED_AFTER * self.epochs)), gamma=0.5
        )

        def loss_of(rows: Tensor) -> Tensor:
            kept = (torch.rand(tokens.shape[1]) >= self.drop).to(tokens.dtype)
            return functional.cross_entropy(model(tokens[rows] * kept[:, None]), labels[rows], weights)

        order = epochs(self.epochs, len(clips), self.batch, seed, reshuffle=False)
        train(model, optimizer, scheduler, order, loss_of)


def stack(clips: Joined) -> Tensor:
    """(n, M, E), zero where absent."""
    return torch.from_numpy(np.stack(list(clips.vectors.values()), axis=1))


def _probe(modality: str) -> str:
    from align.model import module_key

    return f"{module_key(modality)}_classifier"
