"""Tiny LLaVA-NeXT folders as the hub has them: random weights, a few words, processor and chat template."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

SPECIAL = ("</s>", "<s>", "<unk>", "<image>")  # the end is token 0: what argmax takes of equal logits
WORDS = (
    "a person man woman child slowly quickly waves kicks claps drinks walks sits stands with the left right "
)
WORDS += "hand foot cup hat door chair on in near and then looks up down . ? : user assistant what is done"
GRID = [[28, 56], [56, 28], [56, 56]]
OFFICIAL_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
WIDTHS = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "initializer_range": 0.5,  # far from zero, so that what is seen and said decides what is said next
}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *WORDS.split())))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
        extra_special_tokens={"image_token": "<image>"},
    )


def write_llava_next(folder: Path, seed: int = 0, mute: bool = False, official_size: bool = False) -> Path:
    """A model that says other words about other pictures; a mute one ends before its first word.

    Of the official size it is as narrow, but looks at pictures as the published ones do.
    """
    side, grid = (336, OFFICIAL_GRID) if official_size else (28, GRID)
    words = tokenizer()
    text = {
        **{"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(words)},
        **{"max_position_embeddings": 4096, "eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0},
    }
    vision = {"model_type": "clip_vision_model", "image_size": side, "patch_size": 14, "projection_dim": 16}
    config = LlavaNextConfig(
        vision_config=WIDTHS | vision,
        text_config=WIDTHS | text,
        image_token_index=words.image_token_id,
        image_grid_pinpoints=grid,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration(config)
    if mute:  # all logits are zero then
        torch.nn.init.zeros_(model.model.language_model.norm.weight)
    model.save_pretrained(folder)
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=grid
    )
    LlavaNextProcessor(
        **{"image_processor": pixels, "tokenizer": words, "patch_size": 14, "chat_template": TEMPLATE},
        **{"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ).save_pretrained(folder)
    return folder


def as_published_in_2024(folder: Path) -> Path:
    """The same folder's files as older ones have them: other keys, the processor's values apart."""
    weights = folder / "model.safetensors"
    keys = {key: key.replace("vision_tower.", "vision_tower.vision_model.") for key in load_file(weights)}
    save_file({keys[key]: value for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    values = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(values["image_processor"]))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "processor_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    return folder
