"""Image-text and video-text encoders through transformers: CLIP, SigLIP, SigLIP 2 and X-CLIP.

Sources: Radford et al., CLIP (ICML 2021); Zhai et al., SigLIP (ICCV 2023); Tschannen et al., SigLIP 2
(2025; the checkpoints of fixed resolution); Ni et al., X-CLIP (ECCV 2022).

``tokens`` are the vision tower's ``last_hidden_state`` without the class token, as transformers defines it:
after the final norm for SigLIP, before it for CLIP and X-CLIP, whose final norm is the class token's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from encoders import hub
from encoders.checkpoint import read_tensors
from encoders.clip_checkpoints import ARCHITECTURES, FAMILIES, TINY_SIZES, card, configuration, tiny
from encoders.clip_tokenizer import clip_tokenizer
from encoders.errors import EncoderError, WeightsError
from encoders.openai_clip import clip_config, to_transformers
from encoders.pretrained import TINY, Card, Pretrained
from encoders.protocols import Field
from encoders.text import encode_in_buckets, tokenise
from encoders.tokens import token_fields
from encoders.weights import folder_digest

# Any CLIP or SigLIP: without weights of its own, and whatever its folder holds.
GENERIC = "clip"


class Clip(Pretrained):
    """Frames, clips and texts -> one joint space, un-normalised.

    CLIP and SigLIP see single frames: ``cls`` is a frame's joint-space vector (CLIP's projected class token,
    SigLIP's attention-pooled output), ``embedding`` of a clip the mean of its frames'. X-CLIP sees clips of a
    fixed number of frames: ``cls`` are the frames' vectors after its integration over time, ``embedding``
    their mean. Its texts are encoded without the video, once for all of them; the published scores add a
    small term of each video's to each text first.

    A folder's configuration decides; where it is not that of the name, the name ends in ``-custom``.

    Args:
        weights: Folder or hub id; the official id if None. For CLIP also a file: OpenAI's archive, or a state
            dictionary with its keys.
        device: See :class:`Pretrained`.
        modality: See :class:`Pretrained`; ``text`` leaves the fields of images out.
        name: A key of ``ARCHITECTURES``, or ``clip`` for any CLIP or SigLIP.
        activation: Of a file's network, which its tensors do not tell: ``quick_gelu`` (OpenAI's) or ``gelu``
            (most that OpenCLIP trained). A folder's configuration says it.
        **options: See :class:`Pretrained`.
    """

    architectures = {GENERIC: ARCHITECTURES["clip-vit-b32"], **ARCHITECTURES}
    tiny = TINY_SIZES
    cards = {
        GENERIC: Card("any CLIP or SigLIP", "its publisher's page", "see there"),
        **{name: card(name) for name in ARCHITECTURES},
    }
    modalities = ("rgb", "ir", "depth", "text")
    unit: Literal["frame", "clip"] = "frame"

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        *,
        name: str = GENERIC,
        architecture: Any = None,
        activation: Literal["quick_gelu", "gelu"] | None = None,
        **options: Any,
    ):
        super().__init__(weights, device, modality, name=name, architecture=architecture, **options)
        if architecture == TINY:
            self.architecture = tiny(self.architectures[name])
        self.family = FAMILIES[self.architecture.family]
        self.folder = self.path if self.path is not None and self.path.is_dir() else None
        self.activation = self._activation(activation)
        self.config = self._configuration(any_family=name == GENERIC)
        if self.folder is not None and activation not in (None, self.config.vision_config.hidden_act):
            own = f"{self.folder} says {self.config.vision_config.hidden_act}"
            raise EncoderError(f"{self.name}: activation is for weights in a file; {own}: leave it out")
        if name != GENERIC and not hub.agrees(self.config, configuration(self.architecture)):
            self.name += "-custom"
        if self.config.model_type == "xclip":
            self.unit, self.sampling = "clip", {"frames": self.config.vision_config.num_frames}
        self._declare()

    def _activation(self, asked: str | None) -> str:
        if asked not in (None, "quick_gelu", "gelu"):
            raise EncoderError(f"{self.name}: activation is {asked!r}; accepted are: quick_gelu, gelu")
        if asked is not None and self.path is None:
            raise EncoderError(f"{self.name}: activation is for weights in a file; leave it out")
        return asked or "quick_gelu"

    def _configuration(self, any_family: bool) -> Any:
        """Transformers' configuration: the folder's, the file's by its shapes, or the architecture's."""
        hub.quiet()
        import transformers

        if self.folder is not None:
            kinds = ("clip", "siglip") if any_family else (self.family.model_type,)
            config = hub.read_config(self.folder, kinds, self.name)
            if config.model_type != self.family.model_type:
                self.family = FAMILIES[config.model_type]
            return config
        if self.path is not None:
            if self.family.model_type != "clip":
                raise WeightsError(f"{self.name}: {self.path} is a file; give a folder or a hub id")
            return clip_config(read_tensors(self.path), self.activation)
        return getattr(transformers, f"{self.family.classes}Config")(**configuration(self.architecture))

    def _declare(self) -> None:
        """The fields and the preprocessing, from the configuration."""
        vision = self.config.vision_config
        published = replace(self.family.pixels, size=vision.image_size)
        self.preprocess = (
            published if self.folder is None else hub.preprocessing(self.folder, published, self.name)
        )
        joint = vision.hidden_size if self.config.model_type == "siglip" else self.config.projection_dim
        self.fields = {"embedding": Field("embedding", 1, joint, per_clip=True)}
        self.default_fields = ("embedding",)
        if self.modality != "text":
            side = vision.image_size // vision.patch_size
            self.fields |= {"cls": Field("cls", 1, joint)}
            self.fields |= token_fields(side * side, vision.hidden_size, (side, side))
            self.default_fields = ("embedding", "cls", "tokens.pooled")

    def locate(self, name: str, weights: str | None) -> Path:
        """Folder, file, or the hub's snapshot."""
        if weights is None and name == GENERIC:
            raise WeightsError(
                "clip: no weights given; pass --weights with a folder that save_pretrained wrote, a file of "
                "OpenAI's, or a hub id such as openai/clip-vit-base-patch32"
            )
        return hub.locate(name, weights, self.card)

    def weights_digest(self) -> str:
        """By content; a folder's configuration and tokenizer included."""
        return super().weights_digest() if self.folder is None else folder_digest(self.folder)

    def build(self) -> nn.Module:
        """The two towers with fresh weights."""
        import transformers

        return getattr(transformers, f"{self.family.classes}Model")(self.config)

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        """This network with other tensors, as a folder that ``weights`` takes."""
        own = None if self.folder is not None or self.config.model_type == "siglip" else self.tokenizer
        return hub.save(folder, self.build(), tensors, self.folder, own)

    def translate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """OpenAI's keys -> transformers'."""
        return to_transformers(tensors)

    @cached_property
    @torch.inference_mode(False)  # as in Pretrained
    def model(self) -> Any:
        """The two towers in evaluation mode, loaded strictly."""
        if self.folder is None:
            return super().model
        classes = (f"{self.family.classes}Model",)
        model, self.load_report = hub.load(self.folder, classes, self.name, self.allow_partial)
        return model.to(self.device)

    @cached_property
    def space(self) -> dict[str, Any]:
        """Identity; images and texts share one joint space, and the digest covers the architecture."""
        if self.path is None:
            return super().space
        identity: dict[str, Any] = {
            "encoder": self.name,
            "revision": self.revision,
            "family": self.config.model_type,
            "weights": self.weights_digest(),
            "preprocess": self.preprocess.space(),
        }
        if self.config.model_type == "siglip":
            identity["lowercase"] = True
        if self.folder is None:
            identity["activation"] = self.activation
        if self.allow_partial:
            identity["allow_partial"] = sorted(self.allow_partial)
        return identity

    def features(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, T, C, S, S)`` uint8 -> cls ``(B, T, 1, E)``, embedding likewise (X-CLIP: T' = 1), tokens."""
        clips, steps = batch.shape[:2]
        images = self.preprocess.normalise(batch.to(self.device).flatten(0, 1))
        if self.config.model_type == "xclip":
            self._check_frames(steps)
        vision = self.model.vision_model(pixel_values=images)
        joint, patches = vision.pooler_output, vision.last_hidden_state
        if self.config.model_type != "siglip":
            joint, patches = self.model.visual_projection(joint), patches[:, 1:]
        joint = joint.view(clips, steps, -1)
        if self.config.model_type == "xclip":
            joint = self.model.mit(joint).last_hidden_state
        cls = joint.float().unsqueeze(2)
        return {
            "embedding": cls.mean(1, keepdim=True) if self.unit == "clip" else cls,
            "cls": cls,
            "tokens": patches.float().reshape(clips, steps, *patches.shape[1:]),
        }

    def _check_frames(self, steps: int) -> None:
        frames = self.config.vision_config.num_frames
        if steps != frames:
            raise EncoderError(
                f"{self.name}: {steps} frames a clip; it takes {frames}: pass --frames {frames}"
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own, or CLIP's where no folder comes along."""
        if self.folder is not None:
            own = hub.tokenizer(self.folder, self.name)
            if self.config.model_type == "siglip":
                # Its feature is read off the last position, padding or not; Gemma's default is left.
                own.padding_side = "right"
            return own
        if self.config.model_type == "siglip":
            raise EncoderError(f"{self.name}: its tokenizer comes with its folder; pass --weights FOLDER")
        return clip_tokenizer(self.config.text_config.max_position_embeddings)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """L texts -> ``(L, E)`` float32 in the joint space, un-normalised."""
        wanted, longest, buckets = self._padded(texts)
        dim = self.fields["embedding"].dim
        return encode_in_buckets(wanted, self.tokenizer, self._encode_tokens, longest, dim, buckets)

    def tokenise(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """See :class:`encoders.protocols.TextEncoder`."""
        wanted, longest, buckets = self._padded(texts)
        return tokenise(wanted, self.tokenizer, longest, buckets)

    def _padded(self, texts: Sequence[str]) -> tuple[list[str], int, tuple[int, ...]]:
        """The texts as the tokenizer wants them, the most tokens, the padded lengths."""
        longest = self.config.text_config.max_position_embeddings
        if self.config.model_type == "siglip":
            # Trained on lower-cased texts, padded to full length; SigLIP 2's tokenizer keeps the case.
            return [text.lower() for text in texts], longest, (longest,)
        return list(texts), longest, (16, 32, longest)

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See :class:`encoders.protocols.TextEncoder`."""
        inputs = {"input_ids": tokens["input_ids"].to(self.device)}
        if self.config.model_type != "siglip":
            inputs["attention_mask"] = tokens["attention_mask"].to(self.device)
        return self.model.get_text_features(**inputs).pooler_output.float()

    @torch.inference_mode()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.text_features(tokens).cpu()
