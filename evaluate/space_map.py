"""Embeddings of several modalities -> two dimensions, for looking: distances on a map are not results."""

from typing import Literal

import numpy as np

Method = Literal["pca", "t-sne"]
MOST_POINTS = 1500
PERPLEXITY = 30.0
PCA_FIRST = 50  # dimensions that t-SNE sees


def positions(vectors: np.ndarray, method: Method, seed: int = 0) -> np.ndarray:
    """(n, E) -> (n, 2) float32; equal for equal input and seed, but for rounding.

    Args:
        vectors: At least 3 rows.
        method: ``pca``: the two directions of most variance, linear and honest about distances; ``t-sne``:
            who is whose neighbour (distances between groups mean nothing).
        seed: Of t-SNE.

    Raises:
        ValueError: For fewer than 3 rows.
    """
    if len(vectors) < 3:
        raise ValueError(f"space_map: {len(vectors)} points; a map needs at least 3")
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    flat = _principal(centred, 2)
    if method == "pca" or not np.any(np.abs(centred) > 1e-9):
        return flat.astype(np.float32)
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # Starting from PCA keeps the large arrangement and makes runs comparable.
    start = (flat / max(float(flat[:, 0].std()), 1e-12) * 1e-4).astype(np.float32)
    model = TSNE(2, perplexity=perplexity, init=start, random_state=seed, max_iter=750)
    return np.asarray(model.fit_transform(_principal(centred, PCA_FIRST).astype(np.float32)), np.float32)


def sample_rows(sizes: dict[str, int], most: int = MOST_POINTS, seed: int = 0) -> dict[str, np.ndarray]:
    """How many items each modality has -> which rows to draw, evenly, ascending, ``most`` together."""
    rng = np.random.default_rng(seed)
    share = max(1, most // max(len(sizes), 1))
    rows = {name: rng.permutation(size)[:share] for name, size in sizes.items()}
    return {name: np.sort(chosen) for name, chosen in rows.items()}


def _principal(centred: np.ndarray, count: int) -> np.ndarray:
    """(n, E) -> (n, count) coordinates along the main directions, signs fixed by the largest coordinate."""
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    flat = left[:, :count] * lengths[:count]
    if flat.shape[1] < count:
        flat = np.pad(flat, ((0, 0), (0, count - flat.shape[1])))
    largest = np.take_along_axis(flat, np.abs(flat).argmax(axis=0)[None], axis=0)
    return flat * np.where(largest < 0, -1.0, 1.0)
