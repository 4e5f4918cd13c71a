"""Batches across clips: what a clip gets does not depend on how it travelled."""

import numpy as np
import pytest
import torch
from extract_toys import ClipPatches, Patches

from extract.encode import BatchEncoder


@pytest.mark.parametrize("encoder", [Patches(), ClipPatches()])
def test_results_do_not_depend_on_batches_threads_or_order(encoder):
    rng = np.random.default_rng(0)
    clips = {key: rng.random((int(rng.integers(1, 30)), 16, 3), dtype=np.float32) * 0.9 for key in range(25)}
    fields = ("tokens", "cls", "embedding")

    def run(batch_frames, threads, order):
        with BatchEncoder(encoder, "fp32", "cpu", fields, batch_frames, threads) as batches:
            found = [one for key in order for one in batches.add(key, clips[key])]
            found += list(batches.flush())
        assert sorted(one.key for one in found) == sorted(clips)
        return {one.key: one.fields for one in found}

    reference = run(1, 1, range(25))
    for batch_frames, threads in ((7, 1), (8, 2), (64, 3), (10_000, 1)):
        other = run(batch_frames, threads, rng.permutation(25).tolist())
        for key, features in reference.items():
            for name in fields:
                assert np.array_equal(features[name], other[key][name]), (batch_frames, key, name)


def test_batches_cross_clip_boundaries_and_none_is_larger_than_asked():
    sizes = []

    class Counting(Patches):
        def encode(self, batch):
            sizes.append(len(batch))
            return super().encode(batch)

    with BatchEncoder(Counting(), "fp32", batch_frames=8, threads=2) as batches:
        for key in range(10):
            list(batches.add(key, np.zeros((5, 16, 3), np.float32)))
        list(batches.flush())
    assert sorted(sizes) == [2, *[8] * 6]


def test_the_encoder_runs_under_autocast_in_its_threads():
    seen = []

    class Looking(Patches):
        def encode(self, batch):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
            return super().encode(batch)

    for precision in ("fp32", "bf16"):
        with BatchEncoder(Looking(), precision, threads=2) as batches:
            list(batches.add(0, np.zeros((40, 16, 3), np.float32)))
            list(batches.flush())
    assert set(seen[:5]) == {(False, True)} and set(seen[5:]) == {(True, True)}
