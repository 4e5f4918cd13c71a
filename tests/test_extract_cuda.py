"""Extraction on a GPU: the same features as on the CPU. Skipped where there is none."""

import faiss
import numpy as np
import pytest
import torch
from precision_cases import cosines, features, load

from extract.encode import BatchEncoder, default_precision, resolve_device

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")
ENCODERS = ["efficientnet-lite0", "clip-vit-b16", "dinov2-s14", "clip-vip-b16", "omnivore-swin-t"]


def _on(name, device, precision, clips=2):
    encoder = load(name, "rgb", tiny=True, device=device)
    return features(encoder, "rgb", precision, clips, device)


@GPU
@pytest.mark.parametrize("name", ENCODERS)
def test_float32_on_the_gpu_is_float32_on_the_cpu(name):
    """To 1e-4 of the largest value: no TF32, which keeps 10 bits."""
    expected, found = _on(name, "cpu", "fp32"), _on(name, "cuda", "fp32")
    for field, values in expected.items():
        assert torch.allclose(values, found[field], atol=1e-4 * values.abs().max().item(), rtol=0), field


@GPU
@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_on_the_gpu_keeps_the_direction(name):
    expected, found = _on(name, "cpu", "fp32"), _on(name, "cuda", "bf16")
    for field, values in expected.items():
        assert cosines(values, found[field]).min() >= (0.999 if field == "embedding" else 0.998), field


@GPU
def test_batches_wait_in_page_locked_memory_and_run_under_autocast():
    encoder, seen = load("dinov2-s14", "rgb", tiny=True, device="cuda"), []
    original = encoder.features
    encoder.features = lambda batch: seen.append(torch.is_autocast_enabled("cuda")) or original(batch)
    with BatchEncoder(encoder, "bf16", "cuda") as batches:
        assert torch.from_numpy(batches._buffer((4, 3), np.dtype(np.uint8))).is_pinned()
        list(batches.add(0, np.zeros((3, 3, *encoder.preprocess.sides), np.uint8)))
        (done,) = batches.flush()
    assert done.error is None and seen == [True]


@GPU
def test_auto_takes_the_gpu_in_bfloat16_where_it_is_native():
    assert resolve_device("auto") == "cuda"
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert default_precision("cuda", True) == ("bf16" if native else "fp32")
    assert default_precision("cuda", False) == "fp32"


@pytest.mark.skipif(
    getattr(faiss, "get_num_gpus", lambda: 0)() == 0, reason="faiss finds no GPU (or is faiss-cpu)"
)
def test_an_exact_index_on_the_gpu_finds_what_it_finds_on_the_cpu():
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    index = faiss.IndexFlatIP(64)
    index.add(vectors)
    moved = faiss.index_cpu_to_all_gpus(index)
    scores, found = index.search(vectors[:50], 10)
    gpu_scores, gpu_found = moved.search(vectors[:50], 10)
    assert np.array_equal(found, gpu_found)
    assert np.allclose(scores, gpu_scores, rtol=1e-4)
