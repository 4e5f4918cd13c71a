"""LLaVA-NeXT (Liu et al. 2024): frames -> sentences about them, by transformers' model.

CMVRA captions its clips with llava-v1.6-34b in 8 bit at temperature 0.5; here the weights are bfloat16 or
float32. A frame is read once for all its samples: the model sees it, and what it remembers of it (the cache
of keys and values) is copied for each sample. All frames of a batch have one size, so nothing is padded, and
each sample has its own random numbers: a text does not depend on the batch that it was made in, up to the
rounding of the device's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from encoders import hub
from encoders.errors import EncoderError
from encoders.pretrained import Card
from encoders.weights import folder_digest

NAME = "llava-next"
CARD = Card(
    "llava-hf/llava-v1.6-34b-hf, or smaller: llava-hf/llava-v1.6-mistral-7b-hf",
    "huggingface.co/llava-hf",
    "that of its language model (Apache-2.0 with Yi and Mistral, Llama 2's with Vicuna); see its page",
)
PROMPT = "Describe the human action in this frame in just one sentence."  # CMVRA's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LlavaNext:
    """Describes frames.

    Args:
        weights: A folder that ``save_pretrained`` wrote, with tokenizer, processor and chat template, or a
            hub id.
        device: Where it runs.
        prompt: What is asked about each frame.
        temperature: Of the sampling; 0 takes the likeliest token each time.
        max_new_tokens: A text that gets longer is cut.
        allow_partial: Keys, or prefixes ending in ``.``, that the checkpoint may lack.

    Raises:
        WeightsError: If there is no such model; names the official ones and their licences.
        EncoderError: If it lacks a tokenizer, an image processor or a chat template.
    """

    revision = 1

    def __init__(
        self,
        weights: str,
        device: str = "cpu",
        *,
        prompt: str = PROMPT,
        temperature: float = 0.5,
        max_new_tokens: int = 512,
        allow_partial: Sequence[str] = (),
    ):
        hub.quiet()
        self.device, self.temperature, self.max_new_tokens = torch.device(device), temperature, max_new_tokens
        self.allow_partial = tuple(allow_partial)
        self.folder = hub.locate(NAME, weights, CARD)
        self.config = hub.read_config(self.folder, ("llava_next",), NAME)
        self.processor = _processor(self.folder, self.config)
        self.text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        if self.processor.image_token not in self.text:
            raise EncoderError(
                f"{NAME}: {self.folder}: its chat template leaves the image out: {self.text!r}; "
                f"it must write {self.processor.image_token}"
            )

    @property
    def space(self) -> dict[str, Any]:
        """What decides the texts, but for the frames, the random numbers and the precision."""
        return {
            "model": NAME,
            "revision": self.revision,
            "weights": folder_digest(self.folder),
            "preprocess": self.processor.image_processor.to_dict(),
            "prompt": self.text,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            **({"allow_partial": sorted(self.allow_partial)} if self.allow_partial else {}),
        }

    def load(self, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        """Read the weights, strictly, into the device's memory.

        Raises:
            WeightsError: With every key that does not fit.
        """
        classes, self.dtype = ("LlavaNextForConditionalGeneration",), DTYPES[precision]
        model, _ = hub.load(self.folder, classes, NAME, self.allow_partial, dtype=self.dtype)
        self.model = model.to(self.device)
        ends = self.model.generation_config.eos_token_id
        several = ends if isinstance(ends, list) else [ends]
        known = {one for one in (*several, self.processor.tokenizer.eos_token_id) if one is not None}
        self._ends = torch.tensor(sorted(known), device=self.device)

    @torch.inference_mode()
    def describe(self, frames: Sequence[np.ndarray], seeds: Sequence[Sequence[int]]) -> list[list[str]]:
        """Texts about frames.

        Args:
            frames: (H, W, 3) uint8 each, all of one size.
            seeds: For each frame as many as texts are wanted (equally many): the same seed, the same text.

        Returns:
            The texts of each frame, white space squeezed; one that ends before it began is empty.
        """
        samples = len(seeds[0])
        given = self.processor(
            images=[_picture(frame) for frame in frames], text=[self.text] * len(frames), return_tensors="pt"
        ).to(self.device)
        seen = self.model(
            input_ids=given["input_ids"],
            pixel_values=given["pixel_values"].to(self.dtype),
            image_sizes=given["image_sizes"],
            use_cache=True,
            logits_to_keep=1,
        )
        seen.past_key_values.batch_repeat_interleave(samples)
        logits = seen.logits[:, -1].repeat_interleave(samples, 0)
        rows = self._continued(logits, seen.past_key_values, self._draws(seeds))
        texts = self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        clean = [" ".join(text.split()) for text in texts]
        return [clean[start : start + samples] for start in range(0, len(clean), samples)]

    def _draws(self, seeds: Sequence[Sequence[int]]) -> torch.Tensor:
        """(R, most tokens) float64 in 0..1: the random numbers of each row, whatever the other rows are."""
        generators = [torch.Generator().manual_seed(seed) for several in seeds for seed in several]
        rows = [torch.rand(self.max_new_tokens, dtype=torch.float64, generator=one) for one in generators]
        return torch.stack(rows).to(self.device)

    def _continued(self, logits: torch.Tensor, cache: Any, draws: torch.Tensor) -> list[list[int]]:
        """The tokens of each row, from the logits (R, V) of its first one, up to its end or the limit."""
        done = torch.zeros(len(logits), dtype=torch.bool, device=self.device)
        columns: list[torch.Tensor] = []
        for step in range(self.max_new_tokens):
            chosen = chosen_tokens(logits, draws[:, step], self.temperature)
            columns.append(chosen)
            done |= torch.isin(chosen, self._ends)
            if done.all() or step + 1 == self.max_new_tokens:
                break
            out = self.model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True)
            logits = out.logits[:, -1]
        ends = set(self._ends.tolist())
        return [_until(row, ends) for row in torch.stack(columns, 1).tolist()]


def chosen_tokens(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """(R, V) logits and (R,) numbers in 0..1 -> (R,) tokens: where each number falls in the row's softmax.

    Sampling by the inverse of the cumulative distribution: over uniform numbers, token k comes with its
    probability softmax(logits / temperature)[k]. Temperature 0: the likeliest.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulated = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    # A number times the last sum is below it, but for rounding; the clamp is for that.
    place = torch.searchsorted(cumulated, draws[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return place.clamp(max=logits.shape[-1] - 1)


def _until(row: list[int], ends: set[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


def _picture(frame: np.ndarray) -> Any:
    """Through Pillow, whose shape needs no guessing: (H, W, 3) with H = 3 would pass for channels first."""
    from PIL import Image

    return Image.fromarray(frame)


def _processor(folder: Path, config: Any) -> Any:
    """The folder's processor, its pixels through Pillow whichever imaging libraries are installed.

    Older folders do not say how many tokens a picture gets; the model's configuration does.
    """
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = hub.tokenizer(folder, NAME)
    try:
        values, _ = LlavaNextProcessor.get_processor_dict(folder, local_files_only=True)
        pixels = LlavaNextImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EncoderError(f"{NAME}: {folder} has no image processor ({reason}); save it too") from error
    template = values.get("chat_template") or tokenizer.chat_template
    if not template:
        raise EncoderError(
            f"{NAME}: {folder} has no chat template; put the chat_template.json or .jinja of the published "
            "model beside it"
        )
    vision = config.vision_config
    strategy = values.get("vision_feature_select_strategy") or config.vision_feature_select_strategy
    extra = values.get("num_additional_image_tokens")
    processor = LlavaNextProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=values.get("patch_size") or vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(vision.model_type == "clip_vision_model") if extra is None else extra,
        image_token=values.get("image_token", "<image>"),
        chat_template=template,
    )
    if processor.image_token_id != config.image_token_id:
        raise EncoderError(
            f"{NAME}: {folder}: the tokenizer's {processor.image_token} is token {processor.image_token_id}, "
            f"the model's {config.image_token_id}; take both from one published model"
        )
    return processor
