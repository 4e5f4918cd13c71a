"""OpenAI's CLIP checkpoints (ViT) as transformers' CLIPModel: the configuration, and the tensors' keys.

Source: Radford et al., CLIP (ICML 2021), github.com/openai/CLIP (MIT). What the archives do not say is fixed
there: 64 dims a head, layer norms with eps 1e-5, QuickGELU.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from encoders.errors import WeightsError

if TYPE_CHECKING:
    from transformers import CLIPConfig

HEAD_DIM = 64
# Numbers that the archives hold beside the weights.
SCALARS = ("input_resolution", "context_length", "vocab_size")
# Both towers' blocks.
_BLOCK = {
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_KEYS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelled so in transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
# OpenAI multiplies from the right by (inputs, outputs); a linear layer's weight is (outputs, inputs).
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


def is_openai_clip(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a checkpoint's keys are those of OpenAI's CLIP, with a vision transformer or a ResNet."""
    return {"visual.conv1.weight", "text_projection", "token_embedding.weight"} <= set(tensors)


def clip_config(tensors: dict[str, torch.Tensor], activation: str = "quick_gelu") -> CLIPConfig:
    """Configuration of a checkpoint for transformers, inferred from its shapes.

    Args:
        tensors: As ``read_checkpoint`` returns them.
        activation: Shapes do not tell it. ``gelu`` for most checkpoints that OpenCLIP trained itself, which
            have the same keys.

    Raises:
        WeightsError: Not OpenAI's CLIP, or one with a ResNet, which transformers has no class for.
    """
    from transformers import CLIPConfig

    if not is_openai_clip(tensors):
        first = ", ".join(sorted(tensors)[:3])
        raise WeightsError(
            f"clip: the keys ({first}...) are not those of OpenAI's CLIP (visual.conv1.weight...)"
        )
    if "visual.proj" not in tensors:
        raise WeightsError("clip: a CLIP with a ResNet; accepted are those with a vision transformer (ViT)")
    vocabulary, text_width = _shape(tensors, "token_embedding.weight")
    vision_width, _, _, patch = _shape(tensors, "visual.conv1.weight")
    grid = round((_shape(tensors, "visual.positional_embedding")[0] - 1) ** 0.5)
    joint = _shape(tensors, "text_projection")[1]
    text = {
        **_tower(tensors, "transformer.", text_width, activation),
        "projection_dim": joint,
        "vocab_size": vocabulary,
        "max_position_embeddings": _shape(tensors, "positional_embedding")[0],
        # The text's feature is read off its end token, the vocabulary's last.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        **_tower(tensors, "visual.transformer.", vision_width, activation),
        "projection_dim": joint,
        "image_size": grid * patch,
        "patch_size": patch,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=joint)


def _shape(tensors: dict[str, torch.Tensor], key: str) -> torch.Size:
    if key not in tensors:
        raise WeightsError(f"clip: the checkpoint lacks {key}; it is incomplete or not OpenAI's CLIP")
    return tensors[key].shape


def _tower(tensors: dict[str, torch.Tensor], prefix: str, width: int, activation: str) -> dict[str, Any]:
    layers = {key[len(prefix) :].split(".")[1] for key in tensors if key.startswith(prefix + "resblocks.")}
    return {
        "hidden_size": width,
        "intermediate_size": _shape(tensors, prefix + "resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // HEAD_DIM),
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def to_transformers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's tensors under CLIPModel's keys: in-projections split, projections transposed.

    Keys that OpenAI's CLIP does not have are left as they are, for the strict load to report.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if key in SCALARS:
            continue
        if key in _TRANSPOSED:
            renamed[_TRANSPOSED[key]] = tensor.T.contiguous()
        elif block := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", key):
            tower = "vision_model" if block[1] else "text_model"
            renamed |= _block(f"{tower}.encoder.layers.{block[2]}.", block[3], tensor)
        else:
            renamed[_KEYS.get(key, key)] = tensor
    return renamed


def _block(layer: str, key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if key.startswith("attn.in_proj_"):
        kind = key.removeprefix("attn.in_proj_")
        return {
            f"{layer}self_attn.{which}_proj.{kind}": part
            for which, part in zip("qkv", tensor.chunk(3), strict=True)
        }
    for official, ours in _BLOCK.items():
        if key.startswith(official):
            return {layer + ours + key.removeprefix(official): tensor}
    return {layer + key: tensor}
