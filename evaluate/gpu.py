"""FAISS's indexes on the first GPU that FAISS sees; where it sees none, there are none."""

from typing import Any

import numpy as np

from evaluate.shortlist import library

BLOCK = 32_768  # vectors copied at a time
GPU_DEPTH = 2048  # neighbours that FAISS gives on a GPU at most


def gpu_copy(structure: Any) -> Any:
    """A copy of a FAISS index that a GPU can search; None without a GPU."""
    faiss = library()

    if not faiss.get_num_gpus():
        return None
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, structure)


def gpu_flat(vectors: np.ndarray) -> Any:
    """(n, E) vectors in a GPU's memory, searched exactly in float32; None without a GPU."""
    faiss = library()

    if not faiss.get_num_gpus():
        return None
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), vectors.shape[1])
    for at in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[at : at + BLOCK], np.float32))
    return index
