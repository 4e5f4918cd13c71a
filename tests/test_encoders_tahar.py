"""TAHAR: parity with the original code, faults that parity must notice, clips with gaps, checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_fixtures import Golden, cases, manifest
from torch import nn

from encoders import load_encoder
from encoders.checkpoint import load_strictly
from encoders.errors import WeightsError
from encoders.prenormalize import prenormalise
from encoders.tahar import Tahar, arrange
from encoders.tahar_model import Positions, TaharModel, TaharShape
from encoders.tahar_pretraining import (
    encode_visible,
    predict,
    reconstruct,
    reconstruct_masked,
    scatter,
    shuffled_half,
)

FIXTURES = cases("tahar_")
TASKS = ("tafar", "bert", "casmae", "smae")


def loaded(golden: Golden, task: str, folder: Path, changed: dict | None = None) -> TaharModel:
    """One of a fixture's models, by way of an official file."""
    weights = golden.part("weight", f"{task}.") | (changed or {})
    made = golden.meta["constructor"]
    decoder = None
    if any(key.startswith("decoder.") for key in weights):
        decoder = "cross" if "decoder.layers.0.multihead_attn.in_proj_weight" in weights else "self"
    shape = TaharShape(
        joints=made["orig_dim"] // 3,
        width=made["hidden_dim"],
        depth=made["depth"],
        heads=made["num_heads"],
        mlp_ratio=made["mlp_ratio"],
        positions=made["max_position_embeddings"],
        dropout=made["dropout"],
        decoder=decoder,
        mask_token="mask_token" in weights,
    )
    torch.save({"epoch": 1, "model": weights}, folder / "tahar.pth")
    return Tahar(str(folder / "tahar.pth"), name="tahar", architecture=shape).model


def layers(stack: nn.Module) -> list[tuple[int, nn.Module]]:
    return list(enumerate(stack.layers))


def outputs(golden: Golden, models: dict[str, TaharModel]) -> dict[str, torch.Tensor]:
    """Every output that a fixture may hold, under its name there."""
    given = golden.part("input")
    clip, poses, places = given["skeleton"].flatten(2), given["tgt"].flatten(2), given["idx_remain"]
    found = {}
    for name in [name for name in given if name.startswith("skeleton")]:
        found |= encoder_outputs(models["tafar"], given[name].flatten(2), name.replace("skeleton", "tafar"))
    memory = found["tafar/memory"]
    found["tafar/seq_only_cls_dropped_memory"] = memory[:, 1:]
    found |= decoder_outputs(models["tafar"], memory, poses)
    found["tafar/reconstruction_causal_padded"] = predict(
        models["tafar"], memory, poses, True, given["memory_key_padding_mask"], given["tgt_key_padding_mask"]
    )
    found["tafar/cls_embedding_idx_remain"] = encode_visible(models["tafar"], clip, places)[:, 0]
    found["bert/memory"], found["bert/reconstruction"] = reconstruct(models["bert"], clip)
    found |= masked_outputs(models["casmae"], clip, places)
    found["smae/memory_visible"], found["smae/mask"], found["smae/ids_restore"] = shuffled_half(
        models["smae"], clip, given["smae_noise"]
    )
    return found


def encoder_outputs(model: TaharModel, clip: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    seen = {}
    for k, layer in layers(model.encoder):
        layer.register_forward_hook(
            lambda module, inputs, output, k=k: seen.__setitem__(f"{name}/enc_layer{k}", output)
        )
    memory = model.encode(clip)
    for _, layer in layers(model.encoder):
        layer._forward_hooks.clear()
    return seen | {f"{name}/memory": memory, f"{name}/cls_embedding": memory[:, 0]}


def decoder_outputs(model: TaharModel, memory: torch.Tensor, poses: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for kind, causal in (("causal", True), ("noncausal", False)):
        for k, layer in layers(model.decoder):
            layer.register_forward_hook(
                lambda module, inputs, output, name=f"tafar/decoder_{kind}_layer{k}": found.__setitem__(
                    name, output
                )
            )
        found[f"tafar/reconstruction_{kind}"] = predict(model, memory, poses, causal)
        for _, layer in layers(model.decoder):
            layer._forward_hooks.clear()
    return found


def masked_outputs(model: TaharModel, clip: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
    memory = encode_visible(model, clip, places)
    return {
        "casmae/memory_visible": memory,
        "casmae/forward_cls": memory[:, 0],
        "casmae/memory_scattered": scatter(model, memory, places, clip.shape[1]),
        "casmae/reconstruction_seq_only": reconstruct_masked(model, clip, places, "frames"),
        "casmae/reconstruction_cls_only": reconstruct_masked(model, clip, places, "cls"),
        "casmae/reconstruction_cls_with_seq": reconstruct_masked(model, clip, places, "cls and frames"),
    }


def models_of(golden: Golden, folder: Path) -> dict[str, TaharModel]:
    return {task: loaded(golden, task, folder) for task in TASKS}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("golden", FIXTURES)
def test_every_output_is_that_of_the_original_code(golden, inference, tmp_path):
    models = models_of(golden, tmp_path)
    # In inference mode torch runs a fused layer of its own.
    with torch.inference_mode(inference):
        found = outputs(golden, models)
    for name in golden.part("output"):
        golden.check(found[name], name)


# What could go wrong unnoticed: each must break a fixture.


def change_layers(models: dict[str, TaharModel], change) -> None:
    for model in models.values():
        for module in model.modules():
            change(module)


def wrong_eps(module: nn.Module) -> None:
    if isinstance(module, nn.LayerNorm):
        module.eps = 1e-5


def tanh_gelu(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module.activation = nn.GELU(approximate="tanh")


def quick_gelu(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module.activation = lambda x: x * torch.sigmoid(1.702 * x)


def norm_first(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoderLayer):
        module.norm_first = True


def late_positions(module: nn.Module) -> None:
    if isinstance(module, Positions):
        table = module.position_embeddings.weight
        table.data = table.data.roll(1, 0)


@pytest.mark.parametrize("fault", [wrong_eps, tanh_gelu, quick_gelu, norm_first, late_positions])
def test_a_fault_in_the_network_breaks_a_fixture(fault, tmp_path):
    shares = []
    for case in FIXTURES:
        golden = case.values[0] or pytest.skip("no parity fixtures")
        models = models_of(golden, tmp_path)
        change_layers(models, fault)
        memory = outputs(golden, models)["tafar/memory"].detach()
        shares.append(float(golden.errors(memory, golden.part("output")["tafar/memory"]).max()))
    assert max(shares) > 5


@pytest.mark.parametrize("fault", ["swapped keys", "transposed projection"])
@pytest.mark.parametrize("golden", FIXTURES[:1])
def test_a_fault_in_the_weights_breaks_a_fixture(golden, fault, tmp_path):
    weights = golden.part("weight", "tafar.encoder.layers.")
    out = "{}.self_attn.out_proj.weight"
    if fault == "swapped keys":
        changed = {out.format(0): weights[out.format(1)], out.format(1): weights[out.format(0)]}
    else:
        changed = {out.format(0): weights[out.format(0)].T.contiguous()}
    model = loaded(golden, "tafar", tmp_path, {f"encoder.layers.{k}": v for k, v in changed.items()})
    memory = model.encode(golden.part("input")["skeleton"].flatten(2))
    assert golden.errors(memory.detach(), golden.part("output")["tafar/memory"]).max() > 10


# The encoder.


def body(frames: int, seed: int = 0) -> np.ndarray:
    """(T, 25, 3) metres: a body that moves, 3 m away."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.5, (1, 25, 3)) + rng.normal(0, 0.05, (frames, 25, 3))
    return joints + np.array([0.3, -0.2, 3.0])


def tiny(weights: str = "random", **options) -> Tahar:
    return load_encoder("tahar", weights, modality="skeleton", architecture="tiny", **options)


def encoded(encoder: Tahar, *clips: np.ndarray) -> dict[str, torch.Tensor]:
    batch = [encoder.prepare()(clip, "skeleton", None, np.arange(len(clip)) / 30) for clip in clips]
    return encoder.encode(torch.from_numpy(np.stack(batch)))


def test_embedding_is_cls_and_tokens_are_the_frames():
    encoder = tiny()
    clip = body(6)[:, None]
    found = encoded(encoder, clip)
    memory = encoder.model.encode(torch.from_numpy(prenormalise(clip.swapaxes(0, 1))).float().flatten(2))
    assert found["embedding"].shape == (1, 1, 1, 32)
    assert found["tokens"].shape == (1, 6, 1, 32)
    assert torch.allclose(found["embedding"][:, 0, 0], memory[:, 0], atol=1e-5)
    assert torch.allclose(found["tokens"][:, :, 0], memory[:, 1:], atol=1e-5)


def test_frames_without_a_body_are_left_out_of_the_sequence():
    encoder = tiny()
    clip = body(6)[:, None]
    gaps = np.insert(clip, [0, 3, 3, 6], 0.0, axis=0)  # frames 0, 4, 5 and 9 are empty
    other = body(10, 1)[:, None]
    found, dense = encoded(encoder, gaps, other), encoded(encoder, clip)
    assert torch.allclose(found["embedding"][0], dense["embedding"][0], atol=1e-5)
    shown = [0, 0, 1, 2, 2, 2, 3, 4, 5, 5]
    assert torch.allclose(found["tokens"][0], dense["tokens"][0, shown], atol=1e-5)
    assert torch.allclose(found["embedding"][1], encoded(encoder, other)["embedding"][0], atol=1e-5)


def test_cmvra_repeats_the_last_frame_up_to_ninety_and_cuts_nothing():
    encoder = tiny(preset="cmvra")
    clip = body(70)[:, None]
    padded = np.concatenate([clip, np.repeat(clip[-1:], 20, 0)])
    short, full = encoded(encoder, clip), encoded(encoder, padded)
    assert short["tokens"].shape[1] == 70
    assert torch.allclose(short["embedding"], full["embedding"], atol=1e-5)
    assert torch.allclose(short["tokens"], full["tokens"][:, :70], atol=1e-5)
    assert not torch.allclose(short["embedding"], encoded(tiny(), clip)["embedding"], atol=1e-3)
    # Longer ones stay as they are, and a gap is left out before the padding.
    long = body(95)[:, None]
    assert torch.allclose(encoded(encoder, long)["embedding"], encoded(tiny(), long)["embedding"], atol=1e-5)
    gap = np.insert(clip, 10, 0.0, axis=0)
    assert torch.allclose(encoded(encoder, gap)["embedding"], short["embedding"], atol=1e-5)


def test_places_of_frames_by_hand():
    seen = torch.tensor([[True, False, True], [False, True, False]])
    frames, empty, steps = arrange(seen)
    assert frames.tolist() == [[0, 2, 2], [1, 1, 1]]
    assert empty.tolist() == [[False, False, True], [False, True, True]]
    assert steps.tolist() == [[0, 0, 1], [0, 0, 0]]
    frames, empty, _ = arrange(seen, 4)
    assert frames.tolist() == [[0, 2, 2, 2], [1, 1, 1, 1]]
    assert not empty.any()


def test_what_decides_the_features_is_in_the_space():
    official, cmvra = tiny(), tiny(preset="cmvra")
    assert official.space != cmvra.space
    assert cmvra.space["padded_frames"] == 90
    full = load_encoder("tahar", "random")
    assert dict(full.sampling) == {"frames": "all", "max_frames": 511}
    assert full.parameters() == 15_315_019  # as published, decoder and output layer included


def test_without_weights_the_error_names_the_official_file():
    with pytest.raises(WeightsError, match=r"checkpoint_best_transformer\.pth.*licence: none stated"):
        load_encoder("tahar")


def test_a_wrong_checkpoint_is_refused(tmp_path):
    state = {**tiny().model.state_dict(), "enc_pe.position_ids": torch.arange(100)[None]}
    state["dec_pe.position_ids"] = state["enc_pe.position_ids"]
    clip = body(4)[:, None]

    def from_file(tensors: dict[str, torch.Tensor]) -> Tahar:
        torch.save({"model": tensors, "epoch": 7}, tmp_path / "tahar.pth")
        return tiny(str(tmp_path / "tahar.pth"))

    found = encoded(from_file(state), clip)["embedding"]
    assert torch.allclose(found, encoded(tiny(), clip)["embedding"], atol=1e-6)
    key = "decoder.layers.1.norm3.bias"
    rest = {name: value for name, value in state.items() if name != key}
    for wrong in (rest, {**rest, key: torch.zeros(3)}, {**state, "bogus": torch.zeros(1)}):
        with pytest.raises(WeightsError, match=r"norm3\.bias|bogus"):
            encoded(from_file(wrong), clip)


@pytest.mark.slow
def test_the_official_file_fits_key_for_key_and_runs_at_full_size():
    listed = manifest("tahar_ntu")
    whole = manifest("tahar_ntu.notes")["int64_buffers"]
    tensors = {
        key: torch.arange(shape[1])[None] if key in whole else 0.02 * torch.randn(shape)
        for key, shape in listed.items()
    }
    encoder = load_encoder("tahar", "random", modality="skeleton")
    encoder.model = encoder.build().eval()
    load_strictly(encoder.model, encoder.translate(tensors), "tahar")
    found = encoded(encoder, body(511)[:, None])
    assert found["embedding"].shape == (1, 1, 1, 512)
    assert found["tokens"].shape == (1, 511, 1, 512)
    key = "encoder.layers.1.linear2.weight"
    rest = {name: value for name, value in tensors.items() if name != key}
    for wrong in (rest, {**rest, key: tensors[key].T}, {**tensors, "bogus": tensors[key]}):
        with pytest.raises(WeightsError, match=r"linear2|bogus"):
            load_strictly(encoder.model, encoder.translate(wrong), "tahar")
