"""How well held-out clips find each other across modalities: a running check while training, not a result.

The results come from ``evaluate retrieve``; this is the one number a curve needs.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def recall_at_1(similarity: Tensor, relevant: Tensor) -> float:
    """Chance that a query's best match is relevant; ties share the place.

    Args:
        similarity: (Q, G).
        relevant: (Q, G) bool.

    Returns:
        In [0, 1]; a collapsed space scores the mean share of relevant items.
    """
    best = similarity == similarity.max(1, keepdim=True).values
    return ((best & relevant).sum(1) / best.sum(1)).mean().item()


def pair_recall(
    embeddings: Mapping[str, Tensor], present: Tensor, text_ids: Mapping[str, np.ndarray] | None = None
) -> dict[str, float]:
    """R@1 of each unordered modality pair, mean of both directions.

    Args:
        embeddings: Modality -> (n, E) unit rows.
        present: (n, M) bool in the order of ``embeddings``.
        text_ids: Text modality -> (n,) ids: clips with the same text are all relevant to it.

    Returns:
        "first-second" -> recall, for pairs that at least two clips have.
    """
    scores = {}
    for (i, first), (j, second) in itertools.combinations(enumerate(embeddings), 2):
        rows = (present[:, i] & present[:, j]).nonzero()[:, 0]
        if len(rows) < 2:
            continue
        similarity = embeddings[first][rows] @ embeddings[second][rows].T
        relevant = torch.eye(len(rows), dtype=torch.bool)
        for name in (first, second):
            if text_ids and name in text_ids:
                ids = torch.from_numpy(text_ids[name])[rows]
                relevant = relevant | (ids[:, None] == ids[None])
        scores[f"{first}-{second}"] = (
            recall_at_1(similarity, relevant) + recall_at_1(similarity.T, relevant)
        ) / 2
    return scores
