"""CLIP's tokenizer without a checkpoint: known ids, a naive reference, and what the text tower needs."""

import re
from itertools import pairwise

import pytest
import torch

from encoders.clip_tokenizer import _byte_alphabet, _merges, clip_tokenizer
from encoders.text import encode_in_buckets

START, END = 49406, 49407
TEXTS = [
    "somebody takes a seat, doesn't he? we'll see; i'd say they've stayed",
    "put on a hat/cap (3D skeleton, 25 joints, 30 fps)",
    "#C C puts the kn1fe down, underscore_words   and\ttabs",
    "İstanbul, straße, crème brûlée, 日本語 🙂🙂",
    "supercalifragilisticexpialidocious",
]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hello   World!", [3306, 1002, 256]),
        ("a diagram", [320, 22697]),
        ("", []),
    ],
)
def test_ids_are_those_that_openai_publishes(text, ids):
    assert clip_tokenizer()(text)["input_ids"] == [START, *ids, END]


def _naive(text: str) -> list[int]:
    """Byte-pair encoding (Sennrich et al., 2016): merge the earliest-learnt pair, again and again."""
    merges, alphabet = _merges(), _byte_alphabet()
    letters = {
        byte: letter for byte, letter in zip(sorted(range(256), key=_hidden_last), alphabet, strict=True)
    }
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges)]
    numbers = {token: number for number, token in enumerate(tokens)}
    ids = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", text.lower()):
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, 1e9), i) for i, pair in enumerate(pairwise(parts)))
            if rank == 1e9:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [numbers[part] for part in parts]
    return ids


def _hidden_last(byte: int) -> tuple[bool, int]:
    """Bytes that Latin-1 shows come first."""
    return byte <= 32 or 127 <= byte <= 160 or byte == 173, byte


@pytest.mark.parametrize("text", TEXTS)
def test_equals_a_naive_byte_pair_encoding(text):
    assert clip_tokenizer()(text)["input_ids"] == [START, *_naive(text), END]


def test_ids_cover_the_vocabulary():
    tokenizer = clip_tokenizer()
    assert sorted(tokenizer.get_vocab().values()) == list(range(49408))
    assert tokenizer.convert_tokens_to_ids(["!", "<|startoftext|>", "<|endoftext|>"]) == [0, START, END]


def test_long_texts_are_cut_and_still_end():
    ids = clip_tokenizer(16)("drink water " * 50, truncation=True)["input_ids"]
    assert len(ids) == 16 and ids[0] == START and ids[-1] == END


def test_the_first_largest_id_is_the_texts_own_end_in_every_bucket():
    """CLIP reads the text's feature off there, and padding must not move it."""
    texts = ["wave", "drink from a long cup " * 4, "walk " * 200]
    places = encode_in_buckets(
        texts,
        clip_tokenizer(),
        lambda tokens: tokens["input_ids"].argmax(1, keepdim=True).float(),
        77,
        1,
        (16, 32, 77),
    )
    lengths = [len(clip_tokenizer()(text, truncation=True)["input_ids"]) for text in texts]
    assert places[:, 0].tolist() == [length - 1 for length in lengths] == [2, 21, 76]


def test_padding_with_the_end_token_changes_no_text_feature():
    """Against OpenAI's padding with 0, through transformers' text tower."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=END
    )
    model = CLIPTextModel(config).eval()
    tokens = clip_tokenizer()("take off a shoe", padding="max_length", return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.inference_mode():
        ours = model(input_ids=ids, attention_mask=mask).pooler_output
        openai = model(input_ids=ids * mask).pooler_output
    assert torch.allclose(ours, openai, atol=1e-6)
