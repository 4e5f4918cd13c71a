"""CLIP-ViP: parity with the original code, faults that parity must notice, what goes in and out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_fixtures import Golden, cases
from torch import nn
from torch.nn import functional

from encoders import clip_vip_model, load_encoder
from encoders.clip_vip import ClipVip, ClipVipModel, ClipVipShape, TextShape
from encoders.clip_vip_model import ProxyAttention, VideoEmbeddings, VideoShape
from encoders.errors import EncoderError
from encoders.protocols import CropBox

FIXTURES = cases("clipvip_")


def shape_of(golden: Golden) -> ClipVipShape:
    made = golden.meta["constructor"]
    vision, text, added = made["vision_config"], made["text_config"], made["clip_vision_additional_config"]
    video = VideoShape(
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        hidden=vision["intermediate_size"],
        image=(vision["image_size"],) * 2,
        patch=(vision["patch_size"],) * 2,
        frames=added["temporal_size"] if added["if_use_temporal_embed"] else 0,
        proxies=added["add_cls_num"],
    )
    words = TextShape(
        vocabulary=text["vocab_size"],
        width=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        hidden=text["intermediate_size"],
        length=text["max_position_embeddings"],
    )
    return ClipVipShape(video, words, made["projection_dim"])


def loaded(golden: Golden, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> ClipVipModel:
    """The fixture's weights, by way of an official file."""
    torch.save(weights or golden.part("weight"), folder / "clip.pt")
    return ClipVip(str(folder / "clip.pt"), name="clip-vip-b16", architecture=shape_of(golden)).model


def traced(model: ClipVipModel, golden: Golden) -> dict[str, torch.Tensor]:
    """Every output that a fixture may hold, under its name there."""
    given, found = golden.part("input"), {}
    for name in [name for name in given if name.startswith("pixel_values")]:
        of = f"vision{name.removeprefix('pixel_values')}"
        found |= {f"{of}/{part}": value for part, value in video_outputs(model, given[name]).items()}
    for of, mask in (("text_nomask", None), ("text_masked", given["input_mask"])):
        found |= {f"{of}/{p}": v for p, v in text_outputs(model, given["input_ids"], mask).items()}
    found["vidclip_forward/vis_features"] = found["vision/video_features_normalized"]
    found["vidclip_forward/text_features"] = found["text_masked/text_features_normalized"]
    if "image" in given:
        images = given["image"].flatten(0, 1)[:, None]
        found["vidclip_forward/img_features"] = functional.normalize(model.video(images)[0], dim=-1)
        captions = given["caption_ids_img"].flatten(0, 1), given["caption_mask_img"].flatten(0, 1)
        found["vidclip_forward/cap_features"] = functional.normalize(model.text(*captions), dim=-1)
    logits = model.logits(found["text_masked/text_features"], found["vision/video_features"])
    pairs = torch.arange(len(logits))
    loss = (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
    model.zero_grad()
    loss.backward()
    found |= {"logits_per_text": logits, "logits_per_image": logits.T, "clip_loss": loss}
    gradients = {name: one.grad for name, one in model.named_parameters()}
    return found | {f"grad_of_clip_loss/clipmodel.{name}": one for name, one in gradients.items()}


def video_outputs(model: ClipVipModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    tower, seen = model.vision_model, {}

    def keep(name: str) -> Callable:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = [
        tower.embeddings.register_forward_hook(keep("embeddings")),
        tower.pre_layrnorm.register_forward_hook(keep("hidden_state_0")),
        tower.post_layernorm.register_forward_hook(keep("pooled")),
    ]
    layers = tower.encoder.layers
    for k, layer in enumerate(layers, 1):
        hooks.append(layer.register_forward_hook(keep(f"hidden_state_{k}")))
    features, patches = model.video(pixels)
    for hook in hooks:
        hook.remove()
    return seen | {
        "cls_and_proxy_tokens": seen[f"hidden_state_{len(layers)}"][:, : tower.proxies],
        "patch_tokens": patches,
        "video_features": features,
        "video_features_normalized": functional.normalize(features, dim=-1),
    }


def text_outputs(
    model: ClipVipModel, ids: torch.Tensor, mask: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    hidden = model.text_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    features = model.text(ids, mask)
    return {f"hidden_state_{k}": states for k, states in enumerate(hidden.hidden_states)} | {
        "last_hidden_state_after_final_ln": hidden.last_hidden_state,
        "pooled": hidden.pooler_output,
        "text_features": features,
        "text_features_normalized": functional.normalize(features, dim=-1),
    }


def worst(model: ClipVipModel, golden: Golden) -> float:
    """The largest error of all outputs, as a share of what is allowed."""
    found = traced(model, golden)
    wanted = golden.part("output")
    return max(float(golden.errors(found[name].detach(), value).max()) for name, value in wanted.items())


@pytest.mark.parametrize("golden", FIXTURES)
def test_every_output_and_gradient_is_that_of_the_original_code(golden, tmp_path):
    found = traced(loaded(golden, tmp_path), golden)
    for name in golden.part("output"):
        golden.check(found[name], name)


# What could go wrong unnoticed: each must break a fixture.


def wrong_eps(model: ClipVipModel, tower: str) -> None:
    for module in getattr(model, tower).modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def masked(pattern: Callable) -> Callable:
    """Attention of one softmax over all tokens with a mask: slow, and the reference for ours."""

    def forward(self: ProxyAttention, x: torch.Tensor, proxies: int, frames: int) -> torch.Tensor:
        per_frame = (x.shape[1] - proxies) // frames
        frame = torch.cat([torch.full((proxies,), -1), torch.arange(frames).repeat_interleave(per_frame)])
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~pattern(frame[:, None], frame[None]), float("-inf"))
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    return forward


def right_pattern(asks: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    return (asks == answers) | (asks == -1) | (answers == -1)


PATTERNS = {
    "patches see all frames": lambda asks, answers: torch.ones(len(asks), len(asks), dtype=torch.bool),
    "patches see no proxies": lambda asks, answers: (asks == answers) | (asks == -1),
    "proxies see no patches": lambda asks, answers: (asks == answers) | (answers == -1),
}
ATTENTION = "encoder.layers.0.self_attn."
FAULTS = {
    "eps of the video tower": lambda patch, model: wrong_eps(model, "vision_model"),
    "eps of the text tower": lambda patch, model: wrong_eps(model, "text_model"),
    "GELU in the video tower": lambda patch, model: patch.setattr(
        clip_vip_model, "quick_gelu", functional.gelu
    ),
    "GELU in the text tower": lambda patch, model: [
        setattr(layer.mlp, "activation_fn", nn.GELU()) for layer in model.text_model.encoder.layers
    ],
    "align_corners": lambda patch, model: patch.setattr(
        VideoEmbeddings,
        "_times",
        lambda self, frames: (
            functional.interpolate(
                self.temporal_embedding.mT, size=frames, mode="linear", align_corners=True
            ).mT
        ),
    ),
} | {
    name: (lambda patch, model, pattern=pattern: patch.setattr(ProxyAttention, "forward", masked(pattern)))
    for name, pattern in PATTERNS.items()
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_network_breaks_a_fixture(fault, tmp_path, monkeypatch):
    shares = []
    for case in FIXTURES:
        golden = case.values[0] or pytest.skip("no parity fixtures")
        model = loaded(golden, tmp_path)
        with monkeypatch.context() as patch:
            FAULTS[fault](patch, model)
            shares.append(worst(model, golden))
    assert max(shares) > 10


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
@pytest.mark.parametrize("fault", ["swapped keys", "transposed projection"])
@pytest.mark.parametrize("golden", FIXTURES[:1])
def test_a_fault_in_the_weights_breaks_a_fixture(golden, tower, fault, tmp_path):
    weights = golden.part("weight")
    query, key = (f"clipmodel.{tower}.{ATTENTION}{name}_proj.weight" for name in ("q", "v"))
    if fault == "swapped keys":
        weights[query], weights[key] = weights[key], weights[query]
    else:
        weights[query] = weights[query].T.contiguous()
    assert worst(loaded(golden, tmp_path, weights), golden) > 10


@pytest.mark.parametrize(("frames", "proxies"), [(1, 3), (4, 3), (3, 0)])
def test_two_attentions_are_one_masked_attention(frames, proxies):
    shape = VideoShape(width=24, heads=3, image=(6, 4), patch=(2, 2), proxies=proxies)
    attention = ProxyAttention(shape)
    x = torch.randn(2, 1 + proxies + frames * 6, 24)
    ours, theirs = attention(x, 1 + proxies, frames), masked(right_pattern)(attention, x, 1 + proxies, frames)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_without_a_temporal_embedding_the_order_of_frames_does_not_matter():
    shape = replace(ClipVip.tiny.video, frames=0)
    tower = clip_vip_model.VideoTower(shape).eval()
    assert "embeddings.temporal_embedding" not in tower.state_dict()
    clip = torch.randn(1, 5, 3, *shape.image)
    pooled, patches = tower(clip)
    turned, turned_patches = tower(clip.flip(1))
    assert torch.allclose(pooled, turned, atol=1e-5)
    assert torch.allclose(patches, turned_patches.flip(1), atol=1e-5)


# The encoder.


def tiny(modality: str | None = None, weights: str = "random", **options) -> ClipVip:
    return load_encoder("clip-vip-b16", weights, modality=modality, architecture="tiny", **options)


def media(modality: str, frames: int) -> np.ndarray:
    rng = np.random.default_rng(frames)
    if modality == "skeleton":
        return rng.normal(size=(frames, 2, 25, 3)).astype(np.float32)
    if modality == "depth":
        return rng.integers(0, 5000, (frames, 40, 60)).astype(np.uint16)
    return rng.integers(0, 256, (frames, 40, 60, 3)).astype(np.uint8)


@pytest.mark.parametrize("preset", ["official", "cmvra"])
@pytest.mark.parametrize("frames", [1, 3, 7])
@pytest.mark.parametrize("modality", ["rgb", "ir", "depth", "skeleton"])
def test_fields_of_clips_of_any_length(modality, frames, preset):
    encoder = tiny(modality, preset=preset)
    prepared = encoder.prepare()(media(modality, frames), modality, None, np.arange(frames) / 30)
    found = encoder.encode(torch.from_numpy(prepared)[None])
    tokens = 25 if modality == "skeleton" else 4
    assert found["embedding"].shape == (1, 1, 1, 20)
    assert (
        found["tokens"].shape == (1, frames, tokens, 32) == (1, frames, encoder.fields["tokens"].tokens, 32)
    )
    assert ("tokens.grid2" in encoder.fields) is False  # 2 x 2 patches: nothing to pool


def test_the_base_models_declare_their_grids():
    b16 = load_encoder("clip-vip-b16", "random", modality="rgb")
    assert (b16.fields["embedding"].dim, b16.fields["tokens"].tokens) == (512, 196)
    assert b16.fields["tokens.grid4"].grid == (14, 14)
    b32 = load_encoder("clip-vip-b32", "random", modality="rgb")
    assert (b32.fields["tokens"].tokens, b32.fields["tokens.grid2"].grid) == (49, (7, 7))
    skeleton = load_encoder("clip-vip-b16", "random", modality="skeleton")
    assert skeleton.fields["tokens"].tokens == 25
    assert "tokens.grid2" not in skeleton.fields  # joints stand in no grid
    assert set(load_encoder("clip-vip-b16", "random", modality="text").fields) == {"embedding"}
    assert b16.parameters() == 86_204_160  # the video tower with its projection, as published


def test_frames_become_pixels_by_clips_statistics_and_a_squash():
    encoder = tiny("rgb")
    black = encoder.prepare()(np.zeros((1, 40, 60, 3), np.uint8), "rgb", None, np.zeros(1))
    assert black.shape == (1, 3, 32, 32)
    pixels = encoder.preprocess.normalise(torch.from_numpy(black))
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([-1.79226, -1.75210, -1.48022]), atol=1e-4)
    # The right edge is still there: nothing is cropped.
    marked = np.zeros((1, 40, 60, 3), np.uint8)
    marked[:, :, 58:] = 255
    assert encoder.prepare()(marked, "rgb", None, np.zeros(1))[..., -1].min() > 100


def test_cmvra_cuts_depth_off_where_the_official_preset_keeps_millimetres_apart():
    near, far = np.full((1, 32, 32), 1000, np.uint16), np.full((1, 32, 32), 3000, np.uint16)
    for preset, differ in (("official", True), ("cmvra", False)):
        prepare = tiny("depth", preset=preset).prepare()
        values = [prepare(one, "depth", None, np.zeros(1)) for one in (near, far)]
        assert values[0].shape == (1, 1, 32, 32)
        assert bool(values[0].mean() != values[1].mean()) is differ
    assert values[0].min() == 255
    assert prepare(np.full((1, 32, 32), 7, np.uint16), "depth", None, np.zeros(1)).max() == 7


def test_spaces_tell_what_is_comparable():
    assert tiny("rgb").space == tiny("text").space == tiny("depth").space == tiny(None).space
    assert tiny("rgb").space != tiny("rgb", preset="cmvra").space
    assert tiny("rgb").space != tiny("skeleton").space


def test_equal_spaces_give_equal_features_even_of_random_weights():
    batch = torch.randint(0, 256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    both = tiny(None)
    assert torch.equal(tiny("rgb").encode(batch)["embedding"], both.encode(batch)["embedding"])
    assert torch.equal(tiny("text").encode_text(["a cat"]), both.encode_text(["a cat"]))


def test_a_mirrored_skeleton_swaps_left_and_right():
    body = media("skeleton", 3)[:, :1]
    prepare = tiny("skeleton").prepare()
    mirrored = prepare(body, "skeleton", CropBox(flip=True), np.zeros(3))
    # The first frame's shoulders always point along x; the arms below them change places.
    straight = prepare(body, "skeleton", None, np.zeros(3))
    left, right = mirrored[:, 5], straight[:, 9]
    assert np.allclose(np.linalg.norm(left, axis=-1), np.linalg.norm(right, axis=-1), atol=1e-5)


def test_a_text_does_not_depend_on_its_neighbours():
    encoder = tiny("text")
    texts = ["a cat", "a person takes off a jacket and throws it onto the chair " * 3, "drinking", "x " * 300]
    together = encoder.encode_text(texts)
    assert together.shape == (4, 20)
    alone = torch.cat([encoder.encode_text([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(encoder.encode_text(texts[::-1]).flip(0), together, atol=1e-6)
    assert not torch.allclose(together[0], together[2], atol=1e-4)
    assert encoder.encode_text([]).shape == (0, 20)


def test_each_tower_says_what_it_was_made_for():
    with pytest.raises(EncoderError, match="made for rgb; make one for modality 'text'"):
        tiny("rgb").encode_text(["a cat"])
    with pytest.raises(EncoderError, match="made for texts"):
        tiny("text").encode(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8))


def test_features_are_differentiable():
    encoder = tiny("rgb")
    batch = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    encoder.features(batch)["embedding"].square().sum().backward()
    assert all(one.grad is not None for one in encoder.model.vision_model.embeddings.parameters())
