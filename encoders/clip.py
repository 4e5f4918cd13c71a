"""Any CLIP or SigLIP checkpoint, through transformers: a local folder or a hub id.

Sources: Radford et al., CLIP (ICML 2021); Zhai et al., SigLIP (ICCV 2023). The preprocessing values are read
from the checkpoint's ``preprocessor_config.json``, the arithmetic is ours (:mod:`encoders.preprocess`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from encoders.errors import EncoderError, WeightsError
from encoders.preprocess import ImagePreprocess
from encoders.protocols import Field
from encoders.text import encode_in_buckets
from encoders.weights import folder_digest, model_folder

FAMILIES = ("clip", "siglip")
# PIL's numbers, as the configuration files carry them.
INTERPOLATION: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """Single frames -> ``cls`` in the joint image-text space and patch ``tokens``; texts -> ``embedding``.

    ``embedding`` of a clip is the mean of its frames' joint-space vectors. All are stored un-normalised.
    """

    modalities = ("rgb", "ir", "depth", "text")
    revision = 1
    unit: Literal["frame", "clip"] = "frame"
    sampling = {"frames": 12}
    tolerates_bf16 = True

    def __init__(self, weights: str | None = None, device: str = "cpu", modality: str | None = None):
        if weights is None:
            raise WeightsError(
                "clip: no weights given; pass --weights with a folder that save_pretrained wrote, or a hub "
                "id such as openai/clip-vit-base-patch32 or google/siglip-base-patch16-224"
            )
        self.folder = model_folder(weights, "clip")
        self.device = torch.device(device)
        self.name = "clip"
        self.config = _read_json(self.folder / "config.json")
        self.family = self.config.get("model_type")
        if self.family not in FAMILIES:
            raise WeightsError(
                f"clip: {weights} is a {self.family!r} model; accepted are: {', '.join(FAMILIES)}"
            )
        self.preprocess = _preprocess(self.folder, self.family)
        vision = self._model_config.vision_config
        joint = self._model_config.projection_dim if self.family == "clip" else vision.hidden_size
        patches = (vision.image_size // vision.patch_size) ** 2
        self.fields = {"embedding": Field("embedding", 1, joint, per_clip=True)}
        self.default_fields: tuple[str, ...] = ("embedding",)
        if modality != "text":
            self.fields |= {
                "cls": Field("cls", 1, joint),
                "tokens": Field("tokens", patches, vision.hidden_size),
            }
            self.default_fields = ("embedding", "cls")

    @cached_property
    def _model_config(self):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity: weights by content, preprocessing by value; images and texts share one joint space."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "family": self.family,
            "weights": folder_digest(self.folder),
            "preprocess": self.preprocess.space(),
        }

    def prepare(self) -> ImagePreprocess:
        """The geometry, for the decode workers."""
        return self.preprocess

    @cached_property
    @torch.inference_mode(False)  # ordinary tensors, whoever asks first: autocast keeps its casts of those
    def model(self) -> Any:
        """The two towers in evaluation mode, loaded strictly."""
        from transformers import CLIPModel, SiglipModel
        from transformers.utils import logging

        logging.disable_progress_bar()

        kind = CLIPModel if self.family == "clip" else SiglipModel
        # With output_loading_info transformers returns a pair, which its annotations do not say.
        loaded: Any = kind.from_pretrained(
            self.folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        model, report = loaded
        wrong = {
            key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]
        }
        if wrong:
            raise WeightsError(f"clip: {self.folder} does not fit {kind.__name__}: {wrong}")
        return model.eval().to(self.device)

    @torch.inference_mode()
    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, S, S)`` uint8 -> cls and embedding ``(B, T, 1, E)``, tokens ``(B, T, N, D)``."""
        clips, steps = batch.shape[:2]
        images = self.preprocess.normalise(batch.to(self.device).flatten(0, 1))
        vision = self.model.vision_model(pixel_values=images)
        joint, patches = vision.pooler_output, vision.last_hidden_state
        if self.family == "clip":
            joint, patches = self.model.visual_projection(joint), patches[:, 1:]
        joint = joint.float().view(clips, steps, 1, -1)
        tokens = patches.float().reshape(clips, steps, *patches.shape[1:])
        return {"embedding": joint, "cls": joint, "tokens": tokens}

    @cached_property
    def tokenizer(self):
        """The checkpoint's own tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise EncoderError(f"clip: {self.folder} has no tokenizer; save it beside the model") from error

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, E)`` float32 in the joint space, un-normalised."""
        longest = self._model_config.text_config.max_position_embeddings
        # SigLIP was trained on, and expects, texts padded to full length.
        buckets = (longest,) if self.family == "siglip" else (16, 32, longest)
        dim = self.fields["embedding"].dim
        return encode_in_buckets(list(texts), self.tokenizer, self._encode_tokens, longest, dim, buckets)

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {"input_ids": tokens["input_ids"].to(self.device)}
        if self.family == "clip":
            inputs["attention_mask"] = tokens["attention_mask"].to(self.device)
        return self.model.get_text_features(**inputs).pooler_output.float().cpu()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"clip: {path.parent} has no {path.name}; give a folder that save_pretrained wrote"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _preprocess(folder: Path, family: str) -> ImagePreprocess:
    """The checkpoint's own values; the family's published ones where the file is not there."""
    path = folder / "preprocessor_config.json"
    values = _read_json(path) if path.exists() else {}
    vision = _read_json(folder / "config.json").get("vision_config", {})
    size = values.get("size", vision.get("image_size", 224))
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    crop = values.get("do_center_crop", family == "clip")
    cropped = values.get("crop_size", size)
    cropped = cropped.get("height", size) if isinstance(cropped, dict) else cropped
    half = (0.5, 0.5, 0.5)
    return ImagePreprocess(
        size=cropped if crop else size,
        resize="centre" if crop else "squash",
        centre_fraction=cropped / size if crop else 1.0,
        interpolation=INTERPOLATION.get(values.get("resample", 3), "bicubic"),
        mean=tuple(values.get("image_mean", CLIP_MEAN if family == "clip" else half)),
        std=tuple(values.get("image_std", CLIP_STD if family == "clip" else half)),
    )
