"""CLIP's tokenizer, for checkpoints that bring none: OpenAI's archives, CLIP-ViP's and LaViLa's files.

Source: Radford et al., CLIP (ICML 2021): byte-pair encoding of lower-cased text, 49,408 tokens. Its merges
come from github.com/openai/CLIP (MIT, `data/clip_merges.LICENSE.txt`). As in transformers' CLIPTokenizer,
and unlike OpenAI's own, texts are not repaired first (ftfy) and HTML entities not resolved: both matter for
scraped captions only, and a text then has the same tokens whichever file the weights came from.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.text import encode_in_buckets, tokenise

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

MERGES = Path(__file__).with_name("data") / "clip_merges.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CONTEXT_LENGTH = 77
SHORT = (16, 32)  # padded lengths of most texts


@cache
def clip_tokenizer(context_length: int = CONTEXT_LENGTH) -> CLIPTokenizer:
    """CLIP's tokenizer: 49406, the text's tokens, 49407; padding is 49407 too.

    Padding with the end token instead of OpenAI's 0 changes no text feature: attention is causal, and the
    first largest id, where CLIP reads the feature off, is the text's own end either way.

    Args:
        context_length: Positions of the text tower; with ``truncation=True`` longer texts are cut there, and
            still end with 49407.
    """
    from transformers import CLIPTokenizer

    merges: Any = _merges()  # pairs are accepted, though annotated as text
    vocabulary = {token: number for number, token in enumerate(_tokens(merges))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def encode_clip_texts(
    texts: Sequence[str], encode: Callable[[dict[str, torch.Tensor]], torch.Tensor], length: int, dim: int
) -> torch.Tensor:
    """L texts -> ``(L, dim)`` float32 by a text tower of ``length`` positions (:mod:`encoders.text`)."""
    return encode_in_buckets(list(texts), clip_tokenizer(length), encode, length, dim, (*SHORT, length))


def clip_tokens(texts: Sequence[str], length: int) -> dict[str, torch.Tensor]:
    """L texts -> token tensors for a text tower of ``length`` positions (:mod:`encoders.text`)."""
    return tokenise(texts, clip_tokenizer(length), length, (*SHORT, length))


def _merges() -> list[tuple[str, str]]:
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split(" ") for line in lines)
    return [(left, right) for left, right in pairs]


def _tokens(merges: list[tuple[str, str]]) -> list[str]:
    """All tokens in the order of their ids: bytes, bytes that end a word, merges, start and end."""
    alphabet = _byte_alphabet()
    merged = [left + right for left, right in merges]
    return [*alphabet, *(letter + END_OF_WORD for letter in alphabet), *merged, START, END]


def _byte_alphabet() -> list[str]:
    """A visible character for each of the 256 bytes: itself where Latin-1 has one, else one from 256 on.

    The visible ones come first, as in GPT-2 (Radford et al., 2019), whose byte-level encoding this is.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(visible)
    return [chr(code) for code in (*visible, *range(256, 256 + hidden))]
