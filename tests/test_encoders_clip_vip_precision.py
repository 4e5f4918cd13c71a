"""CLIP-ViP's skeletons in bfloat16: patches of three values, too few for oneDNN's convolutions."""

import torch

from encoders import load_encoder


def test_skeletons_in_bfloat16_are_those_in_float32_but_for_rounding():
    encoder = load_encoder("clip-vip-b16", "random", modality="skeleton", architecture="tiny")
    clips = torch.randn(8, 12, 25, 3, generator=torch.Generator().manual_seed(0))
    exact = encoder.encode(clips)["embedding"].flatten(1)
    for _ in range(10):  # what the convolution read beside its values differed from run to run
        freed = [torch.full((1 << 20,), float("nan")) for _ in range(4)]
        del freed
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder.encode(clips)["embedding"].flatten(1)
        assert torch.cosine_similarity(exact, rounded).min() > 0.999
