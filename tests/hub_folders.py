"""Tiny checkpoints as the hub has them: random weights, the official class that saves them, its processor."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from conftest import ROOT
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIDEO = "video_preprocessor_config.json"
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 64, "max_position_embeddings": 16}
CLIP_TEXT = {**TEXT, "eos_token_id": 2, "bos_token_id": 1}  # 2: as the official files have it
TWO = {"vision_config": {**VISION, "hidden_size": 48}, "text_config": CLIP_TEXT, "projection_dim": 24}
MIT = {"num_frames": 4, "mit_hidden_size": 24, "mit_intermediate_size": 48, "mit_num_attention_heads": 4}
XCLIP = {**TWO, "vision_config": {**VISION, **MIT}, "prompt_num_attention_heads": 4}
# A position table for 6 x 6 patches, of which a 32-pixel crop has 4 x 4.
DINO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
}
MAE_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
MAE = {**VISION, **MAE_DECODER, "num_frames": 4, "decoder_intermediate_size": 32}
TSF = {**VISION, "num_frames": 4}
JEPA = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "crop_size": 32},
    **{"frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_hidden_layers": 1, "num_pooler_layers": 1},
}


def _processor(kind: Any, edge: int | None = None, crop: int = 32, **values: Any) -> Any:
    """With the official geometry, scaled down: an edge before the crop, or the square alone."""
    size = {"height": crop, "width": crop} if edge is None else {"shortest_edge": edge}
    cropping = {} if edge is None else {"crop_size": {"height": crop, "width": crop}}
    return kind(size=size, **cropping, **values)


@dataclass(frozen=True)
class Case:
    """A checkpoint: our name, transformers' class and configuration, the processor of its family."""

    name: str
    kind: str
    config: dict[str, Any]
    processor: Any
    file: str = "preprocessor_config.json"
    frames: int = 3
    model_type: str = field(default="")

    def model(self) -> Any:
        """Random weights, norms and biases included: what is initialised to 0 or 1 would hide mistakes."""
        torch.manual_seed(0)
        kind = getattr(transformers, self.kind)
        model = kind(kind.config_class(**self.config)).eval()
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.normal_(1.0 if "norm" in key and "weight" in key else 0.0, 0.15)
        return model

    def save(self, folder: Path, shard: str = "1GB") -> Any:
        """Write the folder and return the model in it."""
        model = self.model()
        model.save_pretrained(folder, max_shard_size=shard)
        self.processor.save_pretrained(folder)
        (folder / "preprocessor_config.json").rename(folder / self.file)
        return model

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Transformers' own processor: frames ``(T, H, W, 3)`` -> ``(T, 3, S, S)``."""
        values = self.processor(list(frames), return_tensors="pt")["pixel_values"]
        return values[0] if values.ndim == 5 else values


def _video(edge: int, **values: Any) -> Any:
    return _processor(VideoMAEImageProcessorPil, edge, resample=2, **(IMAGENET | values))


CASES = [
    Case("clip-vit-b32", "CLIPModel", TWO, _processor(CLIPImageProcessorPil, 32)),
    Case(
        "siglip-b16-224",
        "SiglipModel",
        {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 32}},
        _processor(SiglipImageProcessorPil),
    ),
    Case(
        "siglip2-b16-224",
        "SiglipModel",
        {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 32}},
        _processor(SiglipImageProcessorPil, resample=2),
    ),
    Case("xclip-b16", "XCLIPModel", XCLIP, _video(32), frames=4),
    Case("dinov2-s14", "Dinov2Model", DINO, _processor(BitImageProcessorPil, 37, **IMAGENET)),
    Case(
        "dinov2-b14", "Dinov2ForImageClassification", DINO, _processor(BitImageProcessorPil, 37, **IMAGENET)
    ),
    Case(
        "dinov2-b14-reg",
        "Dinov2WithRegistersModel",
        {**DINO, "num_register_tokens": 3},
        _processor(BitImageProcessorPil, 37, **IMAGENET),
    ),
    Case("videomae-b", "VideoMAEForPreTraining", {**MAE, "use_mean_pooling": False}, _video(32), frames=4),
    Case("videomae-b-k400", "VideoMAEForVideoClassification", MAE, _video(32), frames=4),
    Case(
        "timesformer-b",
        "TimesformerForVideoClassification",
        TSF,
        _video(32, image_mean=[0.45] * 3, image_std=[0.225] * 3),
        frames=4,
    ),
    Case("vjepa2-l", "VJEPA2Model", JEPA, _video(36), VIDEO, frames=4),
    Case("vjepa2-h", "VJEPA2ForVideoClassification", JEPA, _video(36), VIDEO, frames=4),
]


TEXTS = ["a person drinks from a cup", "somebody waves", "the hand is long", "tea on the table"]


def save_sentencepiece(folder: Path) -> None:
    """A SigLIP tokenizer trained on ``TEXTS``; end of text is 1."""
    from io import BytesIO

    import sentencepiece
    from transformers import SiglipTokenizer

    trained = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=trained,
        vocab_size=50,
        hard_vocab_limit=False,
        unk_id=0,
        eos_id=1,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(trained.getvalue())
    SiglipTokenizer(str(folder / "spiece.model")).save_pretrained(folder)


def save_gemma(folder: Path) -> None:
    """A tokenizer of SigLIP 2's class, which knows the letters of ``TEXTS``; pads are 0, end of text is 1."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *sorted(set("".join(TEXTS)) - {" "})]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=False, add_eos_token=True).save_pretrained(
        folder
    )


@cache
def sample_frames(count: int, clip: str = "walk") -> np.ndarray:
    """Frames ``(T, H, W, 3)`` of one of the real clips in ``samples``, spread over it."""
    from decord import VideoReader

    reader = VideoReader(str(ROOT / "samples" / "clips" / f"{clip}.mkv"))
    return reader.get_batch(np.linspace(0, len(reader) - 1, count).astype(int).tolist()).asnumpy()


def encoded(encoder: Any, frames: np.ndarray) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Our pixels and our fields of one clip."""
    prepared = torch.from_numpy(encoder.prepare()(frames, "rgb"))
    batch = prepared[None] if encoder.unit == "clip" else prepared[:, None]
    outputs = encoder.encode(batch)
    outputs = {key: value[0] if encoder.unit == "clip" else value[:, 0] for key, value in outputs.items()}
    return encoder.preprocess.normalise(prepared), outputs
