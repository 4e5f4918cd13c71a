"""OpenAI's CLIP archives: a compact CLIP with its keys and arithmetic, saved as TorchScript, against ours."""

import re
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import golden_fixtures
import pytest
import torch
from torch import nn

from encoders.checkpoint import load_strictly, read_checkpoint
from encoders.errors import WeightsError
from encoders.openai_clip import SCALARS, clip_config, is_openai_clip, to_transformers

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
VOCABULARY, CONTEXT, JOINT, PATCH, PIXELS = 50, 9, 24, 8, 24


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP, as Radford et al. describe it; sequence first."""

    def __init__(self, width: int, causal: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 3 * width), gelu=QuickGELU(), c_proj=nn.Linear(3 * width, width)
            )
        )
        self.attn_mask = torch.full((causal, causal), float("-inf")).triu(1) if causal else torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        mask = self.attn_mask.to(x.dtype) if self.attn_mask.dim() else None
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, causal: int = 0):
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(width, causal) for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        tokens = (PIXELS // PATCH) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.randn(width, JOINT))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(images), 1, -1)
        x = self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """Keys, scalars and arithmetic of the published archives; widths of two and one heads."""

    def __init__(self):
        super().__init__()
        self.visual = Visual(width=128, layers=2)
        self.transformer = Transformer(width=64, layers=3, causal=CONTEXT)
        self.token_embedding = nn.Embedding(VOCABULARY, 64)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(3.5))
        for name, value in zip(SCALARS, (PIXELS, CONTEXT, VOCABULARY), strict=True):
            self.register_buffer(name, torch.tensor(value))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.visual(images), self.encode_text(ids)


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images; texts that end in the vocabulary's last token, padded with 0 as OpenAI's are."""
    ids = torch.randint(1, VOCABULARY - 2, (3, CONTEXT))
    for row, length in enumerate((3, 6, CONTEXT)):
        ids[row, 0], ids[row, length - 1], ids[row, length:] = VOCABULARY - 2, VOCABULARY - 1, 0
    return torch.randn(2, 3, PIXELS, PIXELS), ids


@pytest.fixture(scope="module", params=["trace", "script"])
def archive(request, tmp_path_factory) -> tuple[Path, OpenAIClip]:
    torch.manual_seed(0)
    model = OpenAIClip().half().float().eval()  # values that half precision holds exactly
    path = tmp_path_factory.mktemp("clip") / "ViT-tiny.pt"
    half = deepcopy(model).half()
    images, ids = _inputs()
    traced = request.param == "trace"
    (torch.jit.trace(half, (images.half(), ids)) if traced else torch.jit.script(half)).save(str(path))
    return path, model


def test_an_archive_in_half_precision_computes_what_openais_clip_computes(archive):
    from transformers import CLIPModel

    path, reference = archive
    tensors = read_checkpoint(path)
    assert set(tensors) == set(reference.state_dict())
    ours = CLIPModel(clip_config(tensors)).eval()
    load_strictly(ours, to_transformers(tensors), "tiny")
    images, ids = _inputs()
    with torch.inference_mode():
        image, text = reference(images, ids)
        got_image = ours.get_image_features(pixel_values=images).pooler_output
        got_text = ours.get_text_features(input_ids=ids).pooler_output
    assert torch.allclose(got_image, image, atol=1e-4)
    assert torch.allclose(got_text, text, atol=1e-4)
    assert float(ours.logit_scale.detach()) == 3.5


def test_the_architecture_is_read_off_the_shapes(archive):
    config = clip_config(read_checkpoint(archive[0]))
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (128, 2, 2)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (PIXELS, PATCH, 384)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 3, 1)
    assert (text.vocab_size, text.max_position_embeddings) == (VOCABULARY, CONTEXT)
    assert config.projection_dim == vision.projection_dim == text.projection_dim == JOINT
    assert vision.hidden_act == text.hidden_act == "quick_gelu"
    assert clip_config(read_checkpoint(archive[0]), activation="gelu").text_config.hidden_act == "gelu"


def test_what_does_not_fit_is_reported_under_a_readable_key(archive):
    from transformers import CLIPModel

    tensors = read_checkpoint(archive[0])
    config = clip_config(tensors)
    del tensors["visual.transformer.resblocks.1.ln_2.bias"]
    tensors["visual.attnpool.weight"] = torch.ones(1)
    with pytest.raises(WeightsError) as error:
        load_strictly(CLIPModel(config), to_transformers(tensors), "tiny")
    assert "missing (1): vision_model.encoder.layers.1.layer_norm2.bias" in str(error.value)
    assert "unexpected (1): visual.attnpool.weight" in str(error.value)


def test_other_checkpoints_and_resnets_are_refused():
    with pytest.raises(WeightsError, match=r"keys \(a\.weight\.\.\.\) are not those of OpenAI's"):
        clip_config({"a.weight": torch.ones(1)})
    resnet = {
        key: torch.ones(1) for key in ("visual.conv1.weight", "text_projection", "token_embedding.weight")
    }
    assert is_openai_clip(resnet)
    with pytest.raises(WeightsError, match="a CLIP with a ResNet; accepted are those with a vision"):
        clip_config(resnet)
    incomplete = {**resnet, "visual.proj": torch.ones(1, 1), "visual.conv1.weight": torch.ones(1, 3, 8, 8)}
    with pytest.raises(WeightsError, match=r"lacks visual\.positional_embedding; it is incomplete"):
        clip_config({**incomplete, "token_embedding.weight": torch.ones(1, 1)})


@pytest.mark.slow
def test_vit_b16_at_full_size():
    """M2CLIP's manifest holds OpenAI's ViT-B/16 keys among its own; all of them find their place."""
    from transformers import CLIPModel

    shapes = golden_fixtures.manifest("m2clip_vitb16_k400_12x384")
    shapes = {key: shape for key, shape in shapes.items() if _of_openai(key)}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    config = clip_config(tensors)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (12, 8)
    with torch.device("meta"):
        own = CLIPModel(config).state_dict()
    renamed = to_transformers(tensors)
    assert {key: value.shape for key, value in renamed.items()} == {k: v.shape for k, v in own.items()}


def _of_openai(key: str) -> bool:
    return not re.search("adapter|classifier|prompt|decoder", key)
