"""LaViLa: parity with the original code, faults that parity must notice, other frame counts, checkpoints."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_fixtures import Golden, cases, manifest
from torch import nn
from torch.nn import functional

from encoders import lavila, load_encoder, space_time
from encoders.checkpoint import load_strictly
from encoders.clip_vip_model import QuickGELU
from encoders.errors import EncoderError, WeightsError
from encoders.lavila import Lavila, LavilaModel, LavilaShape, TextShape, shape_of
from encoders.space_time import Block, DividedAttention, SpaceTimeShape, SpaceTimeTransformer, inflated

FIXTURES = cases("lavila_dual_encoder", "lavila_eps_probe")
TINY = Lavila.tiny


# Parity with the original code.


def golden_shape(golden: Golden, quick_gelu: bool = True) -> LavilaShape:
    video, text = golden.meta["constructor"]["visual"], golden.meta["constructor"]["clip"]
    assert video["attention_style"] == "frozen-in-time"
    return LavilaShape(
        SpaceTimeShape(
            image=video["img_size"],
            patch=video["patch_size"],
            width=video["embed_dim"],
            layers=video["depth"],
            heads=video["num_heads"],
            frames=video["num_frames"],
            pre_norm=video["ln_pre"],
            quick_gelu=quick_gelu,
            gated=video["is_tanh_gating"],
        ),
        TextShape(
            vocabulary=text["vocab_size"],
            width=text["transformer_width"],
            layers=text["transformer_layers"],
            heads=text["transformer_heads"],
            hidden=4 * text["transformer_width"],
            length=text["context_length"],
        ),
        text["embed_dim"],
    )


def wrapped(weights: dict[str, torch.Tensor]) -> dict:
    """A checkpoint as the authors save it."""
    return {
        "epoch": 5,
        "state_dict": {f"module.{key}": value for key, value in weights.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 3e-5}]},
        "args": argparse.Namespace(model="CLIP_OPENAI_TIMESFORMER_BASE", norm_embed=True),
    }


def loaded(golden: Golden, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> LavilaModel:
    """The fixture's weights, by way of an official file."""
    torch.save(wrapped(weights or golden.part("weight")), folder / "lavila.pth")
    shape = golden_shape(golden, has_quick_gelu(golden))
    return Lavila(str(folder / "lavila.pth"), name="lavila-tsf-b", architecture=shape).model


@torch.no_grad()
def _other_gelu(mlp):
    return nn.GELU() if isinstance(mlp.activation_fn, QuickGELU) else QuickGELU()


def has_quick_gelu(golden: Golden) -> bool:
    """The constructor in the JSON does not say; the first layer does."""
    pixels, want = golden.part("input")["image"].transpose(1, 2), golden.part("output")["visual_block0"]
    distances = {}
    for quick in (True, False):
        tower = SpaceTimeTransformer(golden_shape(golden, quick).video)
        tower.load_state_dict(golden.part("weight", "visual."))
        tower.blocks[0].register_forward_hook(
            lambda m, i, output, quick=quick: distances.__setitem__(quick, (output - want).abs().max())
        )
        tower(pixels)
    return bool(distances[True] < distances[False])


def traced(model: LavilaModel, golden: Golden) -> dict[str, torch.Tensor]:
    """Every output that a fixture may hold, under its name there."""
    given, found = golden.part("input"), {}
    for k, block in enumerate(model.visual.blocks):
        block.register_forward_hook(lambda m, i, output, k=k: found.__setitem__(f"visual_block{k}", output))
    pixels = given["image"].transpose(1, 2)
    tokens = model.visual(pixels)
    images, patches = model.video(pixels)
    assert torch.equal(patches.flatten(1, 2), tokens[:, 1:])
    texts, scale = model.text(given["text"]), model.logit_scale.exp()
    unit_images, unit_texts = functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1)
    logits = scale * unit_images @ unit_texts.T
    pairs = torch.arange(len(logits))
    loss = (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
    return found | {
        "visual_all_tokens": tokens,
        "visual_features": tokens[:, 0],
        "image_embed": images,
        "text_embed": texts,
        "logit_scale": scale,
        "image_embed_norm": unit_images,
        "text_embed_norm": unit_texts,
        "logits_per_image": logits,
        "clip_loss": loss,
        "clip_acc": 100 * (logits.argmax(1) == pairs).float().mean(),
    }


@torch.no_grad()
def worst(model: LavilaModel, golden: Golden) -> float:
    """The largest error of all outputs but the accuracy, as a share of what is allowed."""
    found, wanted = traced(model, golden), golden.part("output")
    return max(float(golden.errors(found[key], wanted[key]).max()) for key in wanted if key != "clip_acc")


@pytest.mark.parametrize("golden", FIXTURES)
def test_every_output_is_the_original_codes(golden, tmp_path):
    model = loaded(golden, tmp_path)
    found = traced(model, golden)
    assert not golden.part("output").keys() - found.keys()
    for name in golden.part("output"):
        golden.check(found[name], name)
    with torch.inference_mode():  # torch has another path for attention there
        golden.check(model.text(golden.part("input")["text"]), "text_embed")


@pytest.mark.parametrize("golden", cases("lavila_losses"))
def test_inflated_times_are_the_original_codes(golden):
    times = golden.part("input")["temporal_embed"]
    wanted = golden.part("output", "temporal_embed_")
    assert wanted
    for name in wanted:
        frames, how = name.split("_")
        golden.check(inflated(times, int(frames), how), f"temporal_embed_{name}")


def wrong_eps(model: nn.Module, eps: float, *parts: str) -> None:
    for name, one in model.named_modules():
        if isinstance(one, nn.LayerNorm) and any(part in name for part in parts):
            assert one.eps != eps
            one.eps = eps


def from_time(self, x, frames):
    in_time = x + self.timeattn(self.norm3(x), frames, "time")
    in_space = in_time + self.attn(self.norm1(in_time), frames, "space")
    return in_space + self.mlp(self.norm2(in_space))


def space_first(self, x, frames):
    in_space = x + self.attn(self.norm1(x), frames, "space")
    in_time = x + self.timeattn(self.norm3(in_space), frames, "time")
    return in_time + self.mlp(self.norm2(in_time))


def without_cls_in_time(forward):
    """As TimeSformer has it: in time a patch does not see CLS."""

    def run(self, x, frames, over):
        if over == "space":
            return forward(self, x, frames, over)
        kept = space_time._attend
        calls = iter([kept, lambda q, k, v: kept(q, k[:, 1:], v[:, 1:])])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(space_time, "_attend", lambda q, k, v: next(calls)(q, k, v))
            return forward(self, x, frames, over)

    return run


# What is done -> (monkeypatch, model) that does it.
FAULTS = {
    "eps of the pre-norm": lambda patch, model: wrong_eps(model.visual, 1e-6, "ln_pre"),
    "eps of the video layers": lambda patch, model: wrong_eps(model.visual, 1e-5, "norm1", "norm2", "norm3"),
    "eps of the last norm": lambda patch, model: patch.setattr(model.visual.norm, "eps", 1e-5),
    "eps of the text layers": lambda patch, model: wrong_eps(model.transformer, 1e-6, "ln_"),
    "the other GELU in the video tower": lambda patch, model: [
        patch.setattr(block.mlp, "activation_fn", _other_gelu(block.mlp)) for block in model.visual.blocks
    ],
    "GELU in the text tower": lambda patch, model: patch.setattr(lavila, "quick_gelu", functional.gelu),
    "space added to time": lambda patch, model: patch.setattr(Block, "forward", from_time),
    "space before time": lambda patch, model: patch.setattr(Block, "forward", space_first),
    "no CLS in time": lambda patch, model: patch.setattr(
        DividedAttention, "forward", without_cls_in_time(DividedAttention.forward)
    ),
    "reversed times": lambda patch, model: patch.setattr(
        space_time, "inflated", lambda times, frames, how: times.flip(1)
    ),
    "the last token's text": lambda patch, model: patch.setattr(
        torch.Tensor, "argmax", lambda self, axis: torch.full((len(self),), self.shape[1] - 1)
    ),
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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("visual.blocks.0.attn.proj.weight", "visual.blocks.0.timeattn.proj.weight"),
        ("visual.blocks.0.norm1.weight", "visual.blocks.0.norm3.weight"),
        ("transformer.resblocks.0.ln_1.weight", "transformer.resblocks.0.ln_2.weight"),
        ("visual.blocks.1.attn.proj.weight", "visual.blocks.1.attn.proj.weight"),
        ("visual.blocks.1.timeattn.proj.weight", "visual.blocks.1.timeattn.proj.weight"),
        ("transformer.resblocks.0.attn.out_proj.weight", "transformer.resblocks.0.attn.out_proj.weight"),
    ],
)
@pytest.mark.parametrize("golden", FIXTURES[:1])
def test_swapped_keys_and_transposed_projections_break_a_fixture(golden, one, other, tmp_path):
    weights = golden.part("weight")
    if one == other:
        weights[one] = weights[one].T.contiguous()
    else:
        weights[one], weights[other] = weights[other], weights[one]
    assert worst(loaded(golden, tmp_path, weights), golden) > 10


# The network, beyond the fixtures.


def naive(attention: DividedAttention, x: torch.Tensor, frames: int, over: str) -> torch.Tensor:
    """One masked attention over all tokens."""
    tokens = torch.arange(x.shape[1] - 1)
    patches = tokens.numel() // frames
    group = tokens % patches if over == "time" else tokens // patches
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    seen[1:, 1:] = group[:, None] == group[None]
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("over", ["time", "space"])
@pytest.mark.parametrize("frames", [1, 3])
def test_grouped_attention_is_masked_attention(over, frames):
    attention = DividedAttention(SpaceTimeShape(width=24, heads=3))
    x = torch.randn(2, 1 + frames * 6, 24)
    assert torch.allclose(attention(x, frames, over), naive(attention, x, frames, over), atol=1e-6)


def test_a_closed_gate_leaves_time_out():
    shape = replace(TINY.video, gated=True)
    tower = SpaceTimeTransformer(shape).eval()
    nn.init.zeros_(tower.temporal_embed)
    assert "blocks.0.alpha_timeattn" in tower.state_dict()
    still = torch.randn(1, 1, 3, 32, 32)
    clip = torch.cat([still, torch.randn(1, 2, 3, 32, 32)], 1)

    def first(clip):  # patches of the first frame after the first layer, which sees other frames in time only
        x = tower.ln_pre(tower._embedded(clip))
        return tower.blocks[0](x, clip.shape[1])[:, 1:5]

    assert torch.allclose(first(clip), first(still), atol=1e-5)
    nn.init.ones_(tower.blocks[0].alpha_timeattn)
    assert not torch.allclose(first(clip), first(still), atol=1e-3)


def test_without_the_pre_norm_patches_have_a_bias_and_the_network_gelu():
    tower = SpaceTimeTransformer(replace(TINY.video, pre_norm=False, quick_gelu=False))
    assert {"patch_embed.proj.bias"} == tower.state_dict().keys() - SpaceTimeTransformer(
        TINY.video
    ).state_dict().keys()
    assert "ln_pre.weight" not in tower.state_dict()
    x = torch.randn(3, 32)
    mlp = tower.blocks[0].mlp
    assert torch.equal(mlp(x), mlp.fc2(functional.gelu(mlp.fc1(x))))
    assert tower(torch.randn(1, 2, 3, 32, 32)).shape == (1, 9, 32)


def test_inflation_by_hand():
    times = torch.tensor([[[0.0], [8.0]]])
    assert inflated(times, 1).flatten().tolist() == [0]
    assert torch.equal(inflated(times, 2), times)
    assert inflated(times, 4).flatten().tolist() == [0, 2, 6, 8]
    assert inflated(times, 4, "interp").flatten().tolist() == [0, 0, 8, 8]
    assert inflated(times, 4, "zeros").flatten().tolist() == [0, 8, 0, 0]


# The encoder.


def tiny(modality: str | None = None, weights: str = "random", **options) -> Lavila:
    return load_encoder("lavila-tsf-b", weights, modality=modality, architecture="tiny", **options)


def clips(frames: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (count, frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_fields_of_clips_of_any_length(frames):
    found = tiny("rgb").encode(clips(frames))
    assert found["embedding"].shape == (2, 1, 1, 20)
    assert found["tokens"].shape == (2, frames, 4, 32)


def test_the_published_models_declare_their_fields():
    for name, tokens, width in (("lavila-tsf-b", 196, 768), ("lavila-tsf-l", 256, 1024)):
        encoder = load_encoder(name, "random", modality="rgb")
        assert (encoder.fields["embedding"].dim, encoder.sampling) == (256, {"frames": 4})
        assert (encoder.fields["tokens"].tokens, encoder.fields["tokens"].dim) == (tokens, width)
        assert set(load_encoder(name, "random", modality="text").fields) == {"embedding"}
    assert load_encoder("lavila-tsf-b", "random").parameters() == 177_662_977  # as the original


def test_pixels_have_lavilas_own_mean_slip_included():
    encoder = tiny("rgb")
    colours = torch.tensor([0.0, 127.0, 255.0])
    pixels = colours.byte().view(1, 3, 1, 1).expand(1, 3, 32, 32)
    mean = torch.tensor([0.48145466 * 225, 0.4578275 * 255, 0.40821073 * 255])
    std = 255 * torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(encoder.preprocess.normalise(pixels)[0, :, 0, 0], (colours - mean) / std, atol=1e-5)
    wide = np.zeros((2, 32, 64, 3), np.uint8)
    wide[:, :, 60:] = 255
    assert encoder.prepare()(wide, "rgb", None, np.arange(2)).max() == 0  # the middle is kept


def test_videos_and_texts_share_a_space_and_inflation_is_part_of_it():
    assert tiny("rgb").space == tiny("text").space == tiny().space
    assert tiny("rgb").space != tiny("rgb", inflation="zeros").space
    with pytest.raises(EncoderError, match="inflation is 'cubic'; accepted are: bilinear, interp, zeros"):
        tiny("rgb", inflation="cubic")


def test_more_frames_are_the_inflated_checkpoint(tmp_path):
    weights = dict(tiny().model.state_dict())
    for how in ("bilinear", "interp", "zeros"):
        longer = weights | {lavila.TEMPORAL: inflated(weights[lavila.TEMPORAL], 9, how)}
        torch.save(longer, tmp_path / "longer.pth")
        trained = tiny("rgb", str(tmp_path / "longer.pth"))
        assert trained.model.visual.temporal_embed.shape[1] == 9
        want = trained.encode(clips(9))["embedding"]
        assert torch.allclose(tiny("rgb", inflation=how).encode(clips(9))["embedding"], want, atol=1e-6)


def test_a_text_does_not_depend_on_its_neighbours():
    encoder = tiny("text")
    texts = ["#C C opens a drawer", "#C C puts the knife on the table " * 4, "a cat", "x " * 300]
    together = encoder.encode_text(texts)
    assert together.shape == (4, 20)
    alone = torch.cat([encoder.encode_text([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-4)
    assert encoder.encode_text([]).shape == (0, 20)


def test_the_padding_behind_a_texts_end_changes_nothing():
    model = tiny().model
    ids = torch.tensor([[49406, 320, 2368, 49407, 49407, 49407]])
    zeros = torch.tensor([[49406, 320, 2368, 49407, 0, 0]])  # as the authors pad
    assert torch.allclose(model.text(ids), model.text(zeros), atol=1e-6)
    assert torch.allclose(model.text(ids), model.text(ids[:, :4]), atol=1e-6)


def test_features_are_differentiable():
    encoder = tiny("rgb")
    encoder.features(clips(4))["embedding"].square().sum().backward()
    assert all(one.grad is not None for one in encoder.model.visual.parameters())


# Checkpoints.


def save(tensors: dict[str, torch.Tensor], folder: Path) -> str:
    torch.save(wrapped(tensors), folder / "lavila.pth")
    return str(folder / "lavila.pth")


def test_gates_are_found_in_the_checkpoint(tmp_path):
    model = LavilaModel(replace(TINY, video=replace(TINY.video, gated=True)))
    nn.init.constant_(model.visual.blocks[0].alpha_timeattn, 0.5)
    found = tiny("rgb", save(model.state_dict(), tmp_path)).model
    assert found.visual.blocks[0].alpha_timeattn.item() == 0.5


@pytest.mark.parametrize("change", ["missing", "misshapen", "unexpected"])
@pytest.mark.parametrize(
    "key", ["visual.temporal_embed", "text_projection", "visual.blocks.1.timeattn.qkv.bias"]
)
def test_a_key_too_few_or_many_is_refused(key, change, tmp_path):
    tensors = dict(tiny().model.state_dict())
    if change == "missing":
        del tensors[key]
    elif change == "misshapen":
        tensors[key] = torch.zeros(7, 5)
    else:
        key += "_2"
        tensors[key] = torch.zeros(3)
    with pytest.raises(WeightsError, match=key):
        tiny("rgb", save(tensors, tmp_path)).model  # noqa: B018 - loads


def test_without_weights_the_error_names_the_official_file():
    with pytest.raises(WeightsError, match=r"clip_openai_timesformer_large\..*facebookresearch/LaViLa.*MIT"):
        load_encoder("lavila-tsf-l", modality="rgb")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["lavila_tsf_base", "lavila_tsf_large"])
def test_official_files_fit_key_for_key_and_run_at_full_size(file):
    listed = manifest(file)
    encoder = load_encoder(f"lavila-tsf-{file.split('_')[2][0]}", "random")
    tensors = {key: 0.02 * torch.randn(shape) for key, shape in listed.items()}
    with torch.device("meta"):
        model = LavilaModel(shape_of(tensors, encoder.architecture))
    encoder.model = model = model.to_empty(device="cpu").eval()
    load_strictly(model, tensors, file)
    assert {key: list(one.shape) for key, one in model.state_dict().items()} == listed
    frames = torch.randint(0, 256, (1, 4, 3, 224, 224), dtype=torch.uint8)
    found = encoder.encode(frames)
    assert found["embedding"].shape == (1, 1, 1, 256)
    assert found["tokens"].shape == (1, 4, encoder.fields["tokens"].tokens, encoder.fields["tokens"].dim)
    assert encoder.encode_text(["#C C opens a drawer"]).shape == (1, 256)
    assert all(one.isfinite().all() for one in found.values())
    for change in ({"bogus": torch.zeros(1)}, {"ln_final.bias": torch.zeros(7)}):
        with pytest.raises(WeightsError, match=r"bogus|ln_final\.bias"):
            load_strictly(model, tensors | change, file)
    del tensors["ln_final.bias"]
    with pytest.raises(WeightsError, match=r"ln_final\.bias"):
        load_strictly(model, tensors, file)
