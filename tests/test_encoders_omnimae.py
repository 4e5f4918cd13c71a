"""OmniMAE: parity with the original code, faults that parity must notice, its task, both forms of files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_fixtures import Golden, cases, manifest
from torch import nn
from torch.nn import functional

from encoders import load_encoder, omnimae_model
from encoders.checkpoint import load_strictly
from encoders.errors import EncoderError, WeightsError
from encoders.omnimae import OmniMae, shape_of
from encoders.omnimae_model import BlockShape, OmniMaeModel, OmniMaeShape, position_table
from encoders.omnimae_pretraining import normalised_patches, patchify, random_mask, reconstruction_loss
from encoders.preprocess import ImagePreprocess

FIXTURES = cases("omnimae_")
TINY = OmniMae.tiny


# Parity with the original code.


def golden_shape(golden: Golden) -> OmniMaeShape:
    made = golden.meta["constructor"]
    return OmniMaeShape(
        tuple(made["img"]),
        tuple(made["patch"]),
        BlockShape(made["dim"], made["depth"], made["heads"], made["qkv_bias_encoder"]),
        BlockShape(made["dec_dim"], made["dec_depth"], made["dec_heads"], made["qkv_bias_decoder"]),
    )


def fine_tuned(pretrained: dict[str, torch.Tensor], head: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official fine-tuned form: the trunk without what only pre-training needs, and another head."""
    left_out = ("trunk.decoder.", "trunk.mask_token", "head.")
    return {key: value for key, value in pretrained.items() if not key.startswith(left_out)} | head


def load(tensors: dict[str, torch.Tensor], shape: OmniMaeShape, folder: Path) -> OmniMaeModel:
    """By way of an official file."""
    torch.save(tensors, folder / "vitb.torch")
    return OmniMae(str(folder / "vitb.torch"), name="omnimae-vit-b", architecture=shape).model


def models(golden: Golden, folder: Path) -> tuple[OmniMaeModel, OmniMaeModel]:
    """Both forms of a fixture's network: pre-trained, and fine-tuned."""
    weights, shape = golden.part("weight", "mae."), golden_shape(golden)
    tuned = fine_tuned(weights, golden.part("weight", "ft."))
    return load(weights, shape, folder), load(tuned, shape, folder)


def trace(modules: dict[str, nn.Module], run) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What ``run()`` returns, and what some modules returned meanwhile; ``< name``: what they were given."""
    seen, hooks = {}, []
    for name, module in modules.items():

        def keep(module, inputs, output, name=name):
            seen[name], seen[f"< {name}"] = output, inputs[0]

        hooks.append(module.register_forward_hook(keep))
    result = run()
    for hook in hooks:
        hook.remove()
    return result, seen


def whole(tuned: OmniMaeModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    trunk = tuned.trunk
    blocks = {f"block{k}": block for k, block in enumerate(trunk.blocks)}
    x, seen = trace({"patch_embed": trunk.patch_embed, **blocks}, lambda: trunk(pixels))
    return {name: seen[name] for name in blocks} | {
        "patch_embed": seen["patch_embed"].flatten(1, 3),
        "tokens_plus_pos": seen["< block0"],
        "pooled_then_normed": tuned.pooled(x),
        "ft_logits": tuned.head(tuned.pooled(x)),
        "last_all_normed": trunk.norm(x),
        "last_patch_avg_normed_then_pooled": trunk.norm(x).mean(1),
        "cmvra_pooled_without_norm": x.mean(1),
    }


def masked(model: OmniMaeModel, pixels: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    trunk, patch = model.trunk, model.trunk.shape.patch
    modules = {f"enc_block{k}": block for k, block in enumerate(trunk.blocks)}
    modules |= {f"dec_block{k}": block for k, block in enumerate(trunk.decoder.decoder_blocks)}
    modules |= {"enc_normed_visible": trunk.norm, "decoder": trunk.decoder}
    pred, seen = trace(modules, lambda: model.reconstruct(pixels, mask))
    last = seen[f"enc_block{len(trunk.blocks) - 1}"]
    colours = patchify(unnormalised(pixels), patch)
    targets = {
        "loss_official": normalised_patches(colours),
        "loss_norm_pix_all_channels": normalised_patches(colours, per_channel=False),
        "loss_raw_pixels": patchify(pixels, patch),
    }
    return (
        {name: seen[name] for name in modules if name != "decoder"}
        | {name: reconstruction_loss(pred, target, mask) for name, target in targets.items()}
        | {
            "pred": pred,
            "visible_tokens_plus_pos": seen["< enc_block0"],
            "decoder_input_with_mask_tokens": seen["< decoder"],
            "decoder_out_normed": seen["decoder"],
            "target_patchified": targets["loss_raw_pixels"],
            "cmvra_mim_encoder_out_no_norm": trunk.restored(last, mask),
        }
    )


def unnormalised(pixels: torch.Tensor) -> torch.Tensor:
    statistics = ImagePreprocess()
    mean, std = (torch.tensor(one).view(3, 1, 1, 1) for one in (statistics.mean, statistics.std))
    return pixels * std + mean


def outputs(pretrained: OmniMaeModel, tuned: OmniMaeModel, golden: Golden) -> dict[str, torch.Tensor]:
    given, found = golden.part("input"), {}
    for name in [name for name in given if not name.startswith("mask_")]:
        pixels = given[name] if given[name].ndim == 5 else given[name].unsqueeze(2)
        found |= {f"{name}/{part}": value for part, value in whole(tuned, pixels).items()}
        if f"mask_{name}" in given:
            parts = masked(pretrained, pixels, given[f"mask_{name}"])
            found |= {f"{name}/masked/{part}": value for part, value in parts.items()}
    return found


@torch.no_grad()
def worst(pretrained: OmniMaeModel, tuned: OmniMaeModel, golden: Golden) -> float:
    """The largest error of all outputs, as a share of what is allowed."""
    found = outputs(pretrained, tuned, golden)
    return max(float(golden.errors(found[key], want).max()) for key, want in golden.part("output").items())


@pytest.mark.parametrize("golden", FIXTURES)
def test_every_output_is_the_original_codes(golden, tmp_path):
    found = outputs(*models(golden, tmp_path), golden)
    assert not golden.part("output").keys() - found.keys()
    for name in golden.part("output"):
        golden.check(found[name], name)


@pytest.mark.parametrize("golden", FIXTURES)
def test_the_position_table_is_the_files_bit_for_bit(golden):
    for key, table in golden.part("weight").items():
        if key.endswith("pos_embed"):
            assert torch.equal(position_table(*table.shape[1:]), table)


def pad_with_zeros(self, pixels):
    missing = self.frames - pixels.shape[2] if pixels.shape[2] == 1 else 0
    return functional.pad(pixels, (0, 0, 0, 0, 0, missing))


def set_eps(*norms: nn.LayerNorm) -> None:
    for norm in norms:
        norm.eps = 1e-5


def norms(model: nn.Module) -> list[nn.LayerNorm]:
    return [one for one in model.modules() if isinstance(one, nn.LayerNorm)]


# What is done -> (monkeypatch, pre-trained, fine-tuned) that does it.
FAULTS = {
    "eps of the encoder": lambda patch, mae, tuned: set_eps(*norms(tuned)),
    "eps of the decoder": lambda patch, mae, tuned: set_eps(*norms(mae.trunk.decoder)),
    "eps of the last norm": lambda patch, mae, tuned: set_eps(tuned.trunk.norm),
    "QuickGELU": lambda patch, mae, tuned: patch.setattr(
        functional, "gelu", lambda x: x * torch.sigmoid(1.702 * x)
    ),
    "GELU by tanh": lambda patch, mae, tuned: patch.setattr(
        functional, "gelu", lambda x: torch._C._nn.gelu(x, approximate="tanh")
    ),
    "a black second frame": lambda patch, mae, tuned: patch.setattr(
        omnimae_model.RepeatFrame, "forward", pad_with_zeros
    ),
    "norm before the mean": lambda patch, mae, tuned: patch.setattr(
        OmniMaeModel, "pooled", lambda self, tokens: self.trunk.norm(tokens).mean(1)
    ),
    "no positions in the decoder": lambda patch, mae, tuned: mae.trunk.decoder.pos_embed.zero_(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_network_breaks_a_fixture(fault, tmp_path, monkeypatch):
    shares = []
    for case in FIXTURES:
        golden = case.values[0] or pytest.skip("no parity fixtures")
        both = models(golden, tmp_path)
        with monkeypatch.context() as patch:
            FAULTS[fault](patch, *both)
            shares.append(worst(*both, golden))
    assert max(shares) > 10


@pytest.mark.parametrize("fault", ["swapped keys", "transposed projection"])
@pytest.mark.parametrize("part", ["blocks", "decoder.decoder_blocks"])
@pytest.mark.parametrize("golden", FIXTURES[:1])
def test_a_fault_in_the_weights_breaks_a_fixture(golden, part, fault, tmp_path):
    weights = golden.part("weight", "mae.")
    block = f"trunk.{part}.0."
    if fault == "swapped keys":
        one, other = block + "norm1.weight", block + "norm2.weight"
        weights[one], weights[other] = weights[other], weights[one]
    else:
        weights[block + "attn.proj.weight"] = weights[block + "attn.proj.weight"].T.contiguous()
    shape, tuned = golden_shape(golden), fine_tuned(weights, golden.part("weight", "ft."))
    assert worst(load(weights, shape, tmp_path), load(tuned, shape, tmp_path), golden) > 10


# Its pre-training task.


def test_patches_hold_frames_rows_columns_and_channels_in_this_order():
    pixels = torch.arange(2 * 3 * 4 * 4 * 6).view(2, 3, 4, 4, 6)
    patches = patchify(pixels, (2, 2, 3))
    assert patches.shape == (2, 2 * 2 * 2, 2 * 2 * 3 * 3)
    # Patch 5 of clip 1 is that of step 1, row 0, column 1.
    naive = [
        pixels[1, channel, 2 + frame, row, 3 + column]
        for frame in range(2)
        for row in range(2)
        for column in range(3)
        for channel in range(3)
    ]
    assert patches[1, 5].tolist() == [int(value) for value in naive]
    image = pixels[:, :, :1]
    assert torch.equal(patchify(image, (2, 2, 3)), patchify(torch.cat([image, image], 2), (2, 2, 3)))


def test_normalised_patches_by_hand():
    patches = torch.tensor([[[1.0, 0.0, 5.0, 3.0, 0.0, 5.0]]])  # two pixels of three channels
    found = normalised_patches(patches)[0, 0]
    assert torch.allclose(found, torch.tensor([-(0.5**0.5), 0, 0, 0.5**0.5, 0, 0]), atol=1e-5)
    values = patches.double().flatten()
    over_all = (values - values.mean()) / (values.var(unbiased=True) + 1e-6).sqrt()
    assert torch.allclose(normalised_patches(patches, per_channel=False)[0, 0].double(), over_all, atol=1e-6)


def test_the_loss_counts_hidden_patches_only():
    mask = torch.tensor([[[[True, False]]], [[[False, True]]]])
    target, predicted = torch.zeros(2, 2, 3), torch.zeros(2, 2, 3)
    predicted[0, 1] = predicted[1, 0] = 100.0
    assert reconstruction_loss(predicted, target, mask) == 0
    predicted[0, 0] = torch.tensor([1.0, 2.0, 3.0])
    assert reconstruction_loss(predicted, target, mask) == pytest.approx((1 + 4 + 9) / 6)


def test_random_masks_hide_equally_many_anywhere():
    generator = torch.Generator().manual_seed(0)
    masks = random_mask(400, (2, 3, 4), 0.75, generator)
    assert masks.shape == (400, 2, 3, 4)
    assert masks.flatten(1).sum(1).eq(18).all()
    # Each patch is hidden in 300 of 400 draws, give or take 5 standard deviations.
    assert (masks.sum(0) - 300).abs().max() < 5 * (400 * 0.75 * 0.25) ** 0.5
    assert not torch.equal(masks, random_mask(400, (2, 3, 4), 0.75, generator))
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(EncoderError, match=f"share={share} hides"):
            random_mask(2, (2, 3, 4), share)


def test_masked_pretraining_learns_and_reaches_every_parameter():
    torch.manual_seed(0)
    model = OmniMaeModel(TINY)
    pixels, mask = torch.rand(4, 3, *TINY.input), random_mask(4, TINY.grid, 0.75)
    # Smooth pictures: what is hidden can be told from its surroundings.
    pixels = functional.interpolate(pixels[..., ::8, ::8], size=TINY.input, mode="trilinear")
    target = patchify(pixels, TINY.patch)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = reconstruction_loss(model.reconstruct(pixels, mask), target, mask)
        optimiser.zero_grad()
        loss.backward()
        assert all(one.grad is not None for one in model.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_what_is_hidden_does_not_reach_the_encoder():
    model = OmniMaeModel(TINY).eval()
    pixels, mask = torch.rand(2, 3, *TINY.input), random_mask(2, TINY.grid, 0.5)
    hidden = functional.interpolate(mask[:, None].float(), size=TINY.input)
    assert torch.equal(model.reconstruct(pixels, mask), model.reconstruct(pixels + 9 * hidden, mask))
    assert not torch.equal(
        model.reconstruct(pixels, mask), model.reconstruct(pixels + 9 * (1 - hidden), mask)
    )


def test_masks_of_another_grid_or_of_unequal_counts_are_refused():
    model, pixels = OmniMaeModel(TINY), torch.rand(2, 3, *TINY.input)
    uneven = torch.zeros(2, *TINY.grid, dtype=torch.bool)
    uneven[0, 0, 0, :2] = True  # of 64 patches 62 are left: enough for 31 a clip
    with pytest.raises(EncoderError, match=r"hides \[0, 2\] patches a clip; expected 2 x 4 x 4"):
        model.reconstruct(pixels, uneven)
    with pytest.raises(EncoderError, match=r"a mask of 1 x 4 x 4 .*expected 2 x 4 x 4"):
        model.reconstruct(pixels, uneven[:, :1])


# The encoder.


def tiny(weights: str = "random", **options) -> OmniMae:
    return load_encoder("omnimae-vit-b", weights, architecture="tiny", **options)


def test_the_base_model_declares_its_grid_and_sampling():
    base = load_encoder("omnimae-vit-b", "random")
    assert base.parameters() == 94_217_856  # as the original
    assert (base.sampling, base.frames_per_step) == ({"frames": 16}, 2)
    assert (base.fields["tokens"].tokens, base.fields["tokens"].dim) == (196, 768)
    assert base.fields["tokens.grid4"].grid == (14, 14)


@pytest.mark.parametrize("preset", ["official", "cmvra"])
def test_clips_and_images_have_their_fields(preset):
    encoder = tiny(preset=preset)
    for frames, steps in ((4, 2), (1, 1)):
        batch = torch.randint(0, 256, (3, frames, 3, 32, 32), dtype=torch.uint8)
        found = encoder.encode(batch)
        assert found["embedding"].shape == (3, 1, 1, 24)
        assert found["tokens"].shape == (3, steps, 16, 24)


def test_a_still_clip_of_one_step_is_an_image():
    encoder = OmniMae("random", name="omnimae-vit-b", architecture=replace(TINY, input=(2, 32, 32)))
    image = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8)
    still = image.expand(-1, 2, -1, -1, -1)
    assert torch.allclose(encoder.encode(image)["tokens"], encoder.encode(still)["tokens"], atol=1e-6)


@pytest.mark.parametrize("frames", [2, 6])
def test_a_clip_of_another_length_is_refused(frames):
    with pytest.raises(EncoderError, match=f"clip of {frames} x 32 x 32 .*accepted.* of 4 x 32 x 32"):
        tiny().encode(torch.zeros(1, frames, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (24, 24), (40, 24)])
def test_images_of_other_sizes_get_the_first_steps_positions_resized(height, width):
    trunk = tiny().model.trunk
    seen = trace({"block": trunk.blocks[0]}, lambda: trunk(torch.zeros(1, 3, 1, height, width)))[1]
    added = seen["< block"] - trunk.patch_embed(torch.zeros(1, 3, 1, height, width)).flatten(1, 3)
    first = trunk.pos_embed[0, :16].T.view(1, 24, 4, 4)
    want = functional.interpolate(first, scale_factor=(height / 32, width / 32), mode="bicubic")
    assert torch.allclose(added[0], want.flatten(2)[0].T, atol=1e-5)


def test_presets_differ_in_statistics_geometry_depth_and_the_norm():
    official, cmvra = tiny(), tiny(preset="cmvra")
    assert official.space != cmvra.space
    batch = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    black = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert official.preprocess.normalise(black)[0, 0, 0, 0] == pytest.approx(-0.485 / 0.229)
    assert cmvra.preprocess.normalise(black)[0, 0, 0, 0] == pytest.approx(-0.48145466 / 0.26862954)
    model, raw = official.model, {}
    for name, encoder in (("official", official), ("cmvra", cmvra)):
        raw[name] = model.trunk(encoder.preprocess.normalise(batch).transpose(1, 2))
    normed = official.encode(batch)
    assert torch.allclose(normed["embedding"][:, 0, 0], model.trunk.norm(raw["official"].mean(1)))
    assert torch.allclose(normed["tokens"].flatten(1, 2), model.trunk.norm(raw["official"]))
    bare = cmvra.encode(batch)
    assert torch.allclose(bare["embedding"][:, 0, 0], raw["cmvra"].mean(1), atol=1e-6)
    assert torch.allclose(bare["tokens"].flatten(1, 2), raw["cmvra"], atol=1e-6)
    wide = np.zeros((4, 32, 64, 3), np.uint8)
    wide[:, :, 60:] = 255
    assert official.prepare()(wide, "rgb", None, np.arange(4)).max() == 0  # cropped away
    assert cmvra.prepare()(wide, "rgb", None, np.arange(4)).max() > 200
    far = np.full((4, 32, 32), 3000, np.uint16)
    assert cmvra.prepare()(far, "depth", None, np.arange(4)).min() == 255
    assert 0 < official.prepare()(far, "depth", None, np.arange(4)).max() < 255


def test_features_are_differentiable():
    encoder = tiny()
    batch = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    encoder.features(batch)["embedding"].square().sum().backward()
    assert all(one.grad is not None for one in encoder.model.trunk.blocks.parameters())


# Checkpoints.


def save(tensors: dict, folder: Path) -> str:
    torch.save(tensors, folder / "vitb.torch")
    return str(folder / "vitb.torch")


def test_both_forms_load_and_give_the_same_features(tmp_path):
    pretrained = tiny().model.state_dict()
    tuned = fine_tuned(pretrained, {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)})
    batch = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    want = tiny().encode(batch)
    for tensors, form in ((pretrained, "pre-trained"), (tuned, "fine-tuned for 7 classes")):
        encoder = tiny(save(tensors, tmp_path))
        found = encoder.encode(batch)
        assert all(torch.equal(found[name], want[name]) for name in want)
        assert encoder.form == form


@pytest.mark.parametrize("form", ["pre-trained", "fine-tuned"])
@pytest.mark.parametrize("change", ["missing", "misshapen", "unexpected"])
@pytest.mark.parametrize("key", ["trunk.pos_embed", "trunk.blocks.1.attn.qkv.bias", "head.weight"])
def test_a_key_too_few_or_many_is_refused(key, change, form, tmp_path):
    tensors = dict(tiny().model.state_dict())
    if form == "fine-tuned":
        tensors = fine_tuned(tensors, {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)})
    if change == "missing":
        del tensors[key]
    elif change == "misshapen":
        tensors[key] = torch.zeros(3, 5)
    else:
        key += "_2"
        tensors[key] = torch.zeros(3)
    # A head of other classes is another architecture, so that its bias is what does not fit.
    with pytest.raises(WeightsError, match=rf"{key}|head\.bias"):
        tiny(save(tensors, tmp_path)).model  # noqa: B018 - loads


def test_without_weights_the_error_names_the_official_file():
    with pytest.raises(WeightsError, match=r"vitb_pretrain\.torch.*facebookresearch/omnivore.*CC-BY-NC 4\.0"):
        load_encoder("omnimae-vit-b", modality="rgb")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["omnimae_vitb_pretrain", "omnimae_vitb_in1k_ft", "omnimae_vitb_ssv2_ft"])
def test_official_files_fit_key_for_key_and_run_at_full_size(file):
    listed = manifest(file)
    tensors = {key: 0.02 * torch.randn(shape) for key, shape in listed.items()}
    encoder = load_encoder("omnimae-vit-b", "random")
    encoder.model = model = OmniMaeModel(shape_of(tensors, encoder.architecture)).eval()
    load_strictly(model, tensors, file)
    assert {key: list(one.shape) for key, one in model.state_dict().items()} == listed
    found = encoder.encode(torch.randint(0, 256, (1, 16, 3, 224, 224), dtype=torch.uint8))
    assert found["embedding"].shape == (1, 1, 1, 768)
    assert found["tokens"].shape == (1, 8, 196, 768)
    assert all(one.isfinite().all() for one in found.values())
    if encoder.form == "pre-trained":
        mask = random_mask(1, encoder.architecture.grid, 0.9)
        with torch.inference_mode():
            assert model.reconstruct(torch.randn(1, 3, 16, 224, 224), mask).shape == (1, 1568, 1536)
    else:
        with torch.inference_mode():
            assert model.head(found["embedding"]).shape[-1] == listed["head.weight"][0]
    for change in ({"bogus": torch.zeros(1)}, {"trunk.norm.bias": torch.zeros(7)}):
        with pytest.raises(WeightsError, match=r"bogus|trunk\.norm\.bias"):
            load_strictly(model, tensors | change, file)
    del tensors["trunk.norm.bias"]
    with pytest.raises(WeightsError, match=r"trunk\.norm\.bias"):
        load_strictly(model, tensors, file)
