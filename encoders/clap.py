"""CLAP with HTS-AT: sounds and texts in one joint space, through transformers.

Source: Wu et al., Large-scale Contrastive Language-Audio Pretraining (ICASSP 2023), the checkpoints without
feature fusion. The front end computes what transformers' ``ClapFeatureExtractor`` does, which cuts a random
piece out of a long sound; here windows are spread evenly over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from encoders import hub
from encoders.errors import EncoderError, WeightsError
from encoders.logmel import decibels, mel_power, mono, slaney_filters
from encoders.pretrained import Card, Pretrained
from encoders.protocols import CropBox, Field
from encoders.text import encode_in_buckets
from encoders.tokens import TOKENS, token_fields
from encoders.weights import folder_digest

TEXT = "text"
TEXT_TOKENS = 77  # it was trained on texts cut there
BATCH_WINDOWS = 16  # through the network at once
# Counts and zeros that transformers makes itself; which of them a file holds depends on what wrote it.
COUNTS = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")


@dataclass(frozen=True)
class ClapLogMel:
    """CLAP's front end, run in the decode workers: mono sound -> log-mel windows of ten seconds.

    A sound of up to ten seconds is one window: repeated as often as it fits in whole, the rest silence. A
    longer one is ``ceil(seconds / 10)`` windows, from its beginning to its end at equal distances: the k-th
    shows the k-th of as many equal parts and what is around it.

    Attributes:
        rate_hz: Of the samples.
        seconds: Of a window.
        window: Samples of the transform and of its Hann window.
        hop: Samples from one frame to the next.
        bins: Mel bins.
        low_hz: Where the lowest one begins.
        high_hz: Where the highest one ends.
    """

    rate_hz: int = 48000
    seconds: int = 10
    window: int = 1024
    hop: int = 480
    bins: int = 64
    low_hz: float = 50.0
    high_hz: float = 14000.0

    def space(self) -> dict[str, Any]:
        """The values that decide the features."""
        return {"front_end": "clap log-mel", **asdict(self), "revision": 1}

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples ``(S,)`` in [-1, 1] -> ``(windows, frames, bins)`` float32 decibels."""
        filters = slaney_filters(self.rate_hz, self.window, self.bins, self.low_hz, self.high_hz)
        hann = np.hanning(self.window + 1)[:-1]  # periodic
        powers = [mel_power(one, hann, self.hop, filters) for one in self.windows(mono(values, modality))]
        return decibels(np.stack(powers)).astype(np.float32)

    def windows(self, samples: np.ndarray) -> list[np.ndarray]:
        """Samples ``(S,)`` -> windows ``(seconds * rate_hz,)``."""
        length = self.seconds * self.rate_hz
        if len(samples) <= length:
            samples = np.tile(samples, length // len(samples))
            samples = np.pad(samples, (0, length - len(samples)))
        starts = np.linspace(0, len(samples) - length, ceil(len(samples) / length))
        return [samples[start : start + length] for start in np.rint(starts).astype(int)]


@dataclass(frozen=True)
class ClapShape:
    """Sizes of both towers.

    Attributes:
        depths: Blocks of each stage of the audio tower.
        heads: Attention heads of each.
        width: Channels after the first stage's patches; doubled by every stage.
        bins: Mel bins.
        side: Of the square that a window's spectrogram is folded into.
        seconds: Of a window.
        text_layers: Of the text tower.
        text_width: Its channels.
        text_heads: Its attention heads.
        joint: Dimensions of the joint space.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    width: int = 96
    bins: int = 64
    side: int = 256
    seconds: int = 10
    text_layers: int = 12
    text_width: int = 768
    text_heads: int = 12
    joint: int = 512

    def configuration(self) -> dict[str, Any]:
        """As values of transformers' ``ClapConfig``."""
        audio = {
            "depths": list(self.depths),
            "num_attention_heads": list(self.heads),
            "patch_embeds_hidden_size": self.width,
            "hidden_size": self.width * 2 ** (len(self.depths) - 1),
            "num_mel_bins": self.bins,
            "spec_size": self.side,
            "enable_fusion": False,
        }
        text = {
            "num_hidden_layers": self.text_layers,
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "num_attention_heads": self.text_heads,
        }
        return {"audio_config": audio, "text_config": text, "projection_dim": self.joint}


class Clap(Pretrained):
    """Sounds -> ``tokens``, one joint-space vector for every ten seconds, and ``embedding``, their mean.

    All vectors are un-normalised. Texts -> ``embedding``. CLAP hears up to 14 kHz, so it has the reader give
    it samples at 48 kHz.

    Args:
        weights: A folder that ``save_pretrained`` wrote, or a hub id; the official one if None.
        device: See :class:`Pretrained`.
        modality: See :class:`Pretrained`.
        **options: See :class:`Pretrained`.
    """

    architectures = {"clap-htsat": ClapShape()}
    tiny = ClapShape((1, 1), (2, 4), 8, 16, 64, 2, 1, 16, 2, 12)
    cards = {"clap-htsat": Card("laion/clap-htsat-unfused", "github.com/LAION-AI/CLAP", "Apache-2.0")}
    modalities = ("audio", TEXT)
    sampling = {"frames": "all"}
    reader_options = {"audio": {"sample_rate": ClapLogMel.rate_hz}}

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        **options: Any,
    ):
        super().__init__(weights, device, modality, **options)
        shape: ClapShape = self.architecture
        self.preprocess = ClapLogMel(bins=shape.bins, seconds=shape.seconds)
        self.config = self._config()
        if self.path is not None:
            self.preprocess = _published(self.path, self.preprocess, self.name)
            if not hub.agrees(self.config, shape.configuration()):
                self.name += "-custom"
        joint = self.config.projection_dim
        self.fields = {"embedding": Field("embedding", 1, joint, per_clip=True)}
        if modality != TEXT:
            self.fields |= token_fields(1, joint)
        self.default_fields = ("embedding",) if modality == TEXT else ("embedding", TOKENS)

    def _config(self) -> Any:
        """Transformers' configuration: the folder's, or the architecture's."""
        hub.quiet()
        if self.path is None:
            from transformers import ClapConfig

            return ClapConfig(**self.architecture.configuration())
        config = hub.read_config(self.path, ("clap",), self.name)
        audio = config.audio_config
        # Tuples where the file leaves them out, lists where it has them.
        audio.depths, audio.num_attention_heads = list(audio.depths), list(audio.num_attention_heads)
        if audio.enable_fusion:
            raise WeightsError(
                f"{self.name}: {self.path} fuses random crops of a sound; give a checkpoint "
                f"without fusion, such as {self.card.file}"
            )
        return config

    def locate(self, name: str, weights: str | None) -> Path:
        """Folder, or the hub's snapshot."""
        path = hub.locate(name, weights, self.card)
        if not path.is_dir():
            raise WeightsError(f"{name}: {path} is a file; give a folder or a hub id")
        return path

    def weights_digest(self) -> str:
        """By content, its configuration and tokenizer included."""
        assert self.path is not None
        return folder_digest(self.path)

    def build(self) -> nn.Module:
        """Both towers with fresh weights."""
        from transformers import ClapModel

        return ClapModel(self.config)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        """Both towers with other tensors, as a folder that ``weights`` takes."""
        return hub.save(folder, self.build(), tensors, self.path)

    @cached_property
    @torch.inference_mode(False)  # as in Pretrained
    def model(self) -> Any:
        """Both towers in evaluation mode, loaded strictly."""
        if self.path is None:
            return super().model
        partial = (*COUNTS, *self.allow_partial)
        loaded, self.load_report = hub.load(self.path, ("ClapModel",), self.name, partial)
        return loaded.to(self.device)

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Windows ``(B, T, frames, bins)`` -> tokens ``(B, T, 1, E)``, embedding ``(B, 1, 1, E)``."""
        parts = batch.flatten(0, 1)[:, None].split(BATCH_WINDOWS)
        pooled = [self.model.audio_model(input_features=one.to(self.device)).pooler_output for one in parts]
        joint = self.model.audio_projection(torch.cat(pooled)).float()
        steps = joint.unflatten(0, batch.shape[:2])[:, :, None]
        return {"embedding": steps.mean(1, keepdim=True), TOKENS: steps}

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own."""
        if self.path is None:
            raise EncoderError(f"{self.name}: its tokenizer comes with its folder; pass --weights FOLDER")
        return hub.tokenizer(self.path, self.name)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, E)`` float32 in the joint space, un-normalised, on the CPU."""
        # Positions are counted from behind the padding token's id.
        longest = min(TEXT_TOKENS, self.config.text_config.max_position_embeddings - 2)
        dim = self.config.projection_dim
        return encode_in_buckets(
            list(texts), self.tokenizer, self._encode_tokens, longest, dim, (16, 32, longest)
        )

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = (tokens[key].to(self.device) for key in ("input_ids", "attention_mask"))
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return self.model.text_projection(pooled).float().cpu()


def _published(folder: Path, default: ClapLogMel, where: str) -> ClapLogMel:
    """The front end as a folder's feature extractor has it; the released one where the folder has none.

    Raises:
        WeightsError: If it does something that is not done here.
    """
    own, nested = (
        json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        for name in ("preprocessor_config.json", "processor_config.json")
    )
    values = nested.get("feature_extractor", own)  # from transformers 5 on
    for key, accepted in (("padding", "repeatpad"), ("truncation", "rand_trunc")):
        if values.get(key, accepted) != accepted:
            raise WeightsError(f"{where}: {folder}: {key} is {values[key]!r}; accepted is {accepted!r}")
    ours = {
        "rate_hz": "sampling_rate",
        "seconds": "max_length_s",
        "window": "fft_window_size",
        "hop": "hop_length",
        "bins": "feature_size",
        "low_hz": "frequency_min",
        "high_hz": "frequency_max",
    }
    return replace(default, **{name: values[key] for name, key in ours.items() if key in values})
