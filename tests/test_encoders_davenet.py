"""DAVEnet: parity with the original, a naive reference, official checkpoints, and what a step covers."""

import golden_fixtures
import numpy as np
import pytest
import torch
import yaml
from extract_toys import contents, extract
from media_files import write_sound
from torch import nn

from encoders import load_encoder
from encoders.checkpoint import load_strictly
from encoders.davenet import Davenet, DavenetModel, DavenetShape
from encoders.errors import WeightsError
from encoders.logmel import AvlnetLogMel
from extract.steps import step_times

MANIFESTS = {"davenet": "davenet_v1", "davenet-v2": "davenet_v2"}
WHOLE_MODELS = [
    ("avlnet_baseline_eao", "davenet"),
    ("eao_full_tva", "davenet-v2"),
    ("msk_model_full", "davenet-v2"),
]
SMALL = DavenetShape((2, 1), (4, 4, 6), kernel=5, bins=7)


def _original(golden):
    """The module with a fixture's weights, and its input as we lay it out."""
    told = golden.meta["constructor"]
    shape = DavenetShape(
        tuple(told["layers"]), tuple(told["layer_widths"]), told["convsize"], told["feat_dim"]
    )
    model = DavenetModel(shape).eval()
    model.load_state_dict(golden.part("weight"))
    frames = golden.part("input")["spectrogram"]
    return model, frames.reshape(len(frames), *frames.shape[-2:]).transpose(1, 2)


def _errors(golden, model, frames):
    with torch.no_grad():
        return golden.errors(model(frames).transpose(1, 2), golden.part("output")["features"]).max()


@pytest.mark.parametrize("golden", golden_fixtures.cases("davenet_v"))
def test_the_original_s_features(golden):
    assert _errors(golden, *_original(golden)) <= 1


def _epsilon(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-4


def _unused_norm_applied(model):
    model.conv1.register_forward_pre_hook(lambda _, given: model.batchnorm1(given[0]))


def _swapped_keys(model):
    block = model.layer1[0]
    block.bn1, block.bn2 = block.bn2, block.bn1


@pytest.mark.parametrize("fault", [_epsilon, _unused_norm_applied, _swapped_keys])
@pytest.mark.parametrize("golden", golden_fixtures.cases("davenet_v"))
def test_faults_are_caught_by_the_original_s_features(golden, fault):
    model, frames = _original(golden)
    fault(model)
    assert _errors(golden, model, frames) > 1


def _random(shape, seed=0):
    """A network whose variances are as small as the norms' epsilon."""
    torch.manual_seed(seed)
    model = DavenetModel(shape).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.01, 0.01)
            nn.init.uniform_(module.running_var, 0.5e-5, 2e-5)
            nn.init.uniform_(module.weight, 0.002, 0.01)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def _naive(weights, shape, frames):
    """``(T, bins)`` -> ``(T', C)`` in float64, one output at a time."""
    weights = {key: value.double().numpy() for key, value in weights.items()}

    def norm(x, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def along_time(x, name, stride):
        kernel = weights[f"{name}.weight"][:, :, 0]  # outputs, inputs, frames
        reach = kernel.shape[2] // 2
        padded = np.pad(x, ((reach, reach), (0, 0)))
        starts = range(0, len(x), stride)
        return np.array([np.einsum("oik,ki->o", kernel, padded[s : s + kernel.shape[2]]) for s in starts])

    x = np.maximum(norm(frames @ weights["conv1.weight"][:, 0, :, 0].T, "bn1"), 0)
    for stage, blocks in enumerate(shape.layers, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 1 if block else 2
            skip = x if block else norm(along_time(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
            x = np.maximum(norm(along_time(x, f"{name}.conv1", stride), f"{name}.bn1"), 0)
            x = np.maximum(norm(along_time(x, f"{name}.conv2", 1), f"{name}.bn2") + skip, 0)
    return x


@pytest.mark.parametrize("count", [1, 4, 13])
def test_naive_reference(count):
    model, frames = _random(SMALL), torch.randn(2, count, 7)
    with torch.no_grad():
        got = model(frames)
    for clip in range(2):
        want = _naive(model.state_dict(), SMALL, frames[clip].double().numpy())
        np.testing.assert_allclose(got[clip], want, atol=2e-4 * np.abs(want).max())


def test_the_naive_reference_tells_the_epsilons_apart():
    model, frames = _random(SMALL), torch.randn(1, 13, 7)
    want = _naive(model.state_dict(), SMALL, frames[0].double().numpy())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-6
    with torch.no_grad():
        assert np.abs(model(frames)[0].numpy() - want).max() > 0.02 * np.abs(want).max()


def _saved(tmp_path, tensors):
    path = tmp_path / "model.pth"
    torch.save(tensors, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module.", "DAVEnet.", "module.davenet."])
def test_checkpoints_of_the_network_and_of_whole_models(tmp_path, prefix):
    own = _random(Davenet.tiny, seed=1).state_dict()
    tensors = {prefix + key: value for key, value in own.items()}
    if "avenet" in prefix.lower():
        tensors[prefix.replace("davenet", "fusion").replace("DAVEnet", "GU_audio") + "weight"] = torch.ones(3)
    path = _saved(tmp_path, {"state_dict": tensors, "epoch": 3, "arch": "Net"})
    loaded = Davenet(path, name="davenet", architecture="tiny").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    own = _random(Davenet.tiny).state_dict()
    first = "DAVEnet.layer1.0.conv1.weight"
    whole = {f"DAVEnet.{key}": value for key, value in own.items()}
    for change, message in (
        ({first: None}, r"missing \(1\): layer1.0.conv1.weight"),
        ({first: torch.ones(8, 8, 1, 7)}, r"misshapen \(1\): layer1.0.conv1.weight"),
        ({"DAVEnet.layer9.0.conv1.weight": torch.ones(1)}, r"unexpected \(1\): layer9"),
    ):
        tensors = {key: value for key, value in {**whole, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=message):
            _ = Davenet(_saved(tmp_path, tensors), name="davenet", architecture="tiny").model


@pytest.mark.parametrize("name", MANIFESTS)
def test_without_weights_the_error_says_where_they_are(name):
    card = Davenet.cards[name]
    with pytest.raises(WeightsError, match="BSD-3-Clause") as error:
        load_encoder(name, modality="audio")
    assert card.file in str(error.value) and card.published in str(error.value)


def test_fields_and_times_of_the_steps():
    encoder = load_encoder("davenet", "random", modality="audio", architecture="tiny")
    frames = torch.from_numpy(AvlnetLogMel()(np.random.default_rng(0).normal(size=8000), "audio"))
    features = encoder.encode(torch.stack([frames, frames.flip(0)]))
    assert frames.shape == (51, 40) and encoder.frames_per_step == 4
    assert features["tokens"].shape == (2, 13, 1, 12)
    assert features["embedding"].shape == (2, 1, 1, 12)
    assert torch.allclose(features["embedding"], features["tokens"].mean(1, keepdim=True), atol=1e-6)
    times = step_times(np.arange(51) * 0.01, 13, encoder.frames_per_step)
    assert times[:2] == pytest.approx([0.015, 0.055]) and times[-1] == pytest.approx(0.49)


def test_a_step_answers_to_the_sound_of_its_time():
    model = _random(SMALL)
    frames = torch.randn(1, 128, 7)
    later = frames.clone()
    later[:, 64:68] += 1.0  # the frames of step 16 of 32
    with torch.no_grad():
        change = (model(later) - model(frames)).abs().sum(2)[0]
    assert abs(int(change.argmax()) - 16) <= 1
    assert change[0] == 0 and change[-1] == 0


def _official(name):
    """Tensors with the keys, shapes and types of the official checkpoint, random along their last axis."""
    torch.manual_seed(0)
    for key, shape in golden_fixtures.manifest(MANIFESTS[name]).items():
        counts = key.endswith("num_batches_tracked")
        yield f"davenet.{key}", torch.tensor(5) if counts else (torch.rand(shape[-1:]) / 50).expand(shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_official_checkpoint_loads_strictly_and_runs(name):
    encoder = load_encoder(name, "random", modality="audio")
    tensors = encoder.translate(dict(_official(name)))
    report = load_strictly(encoder.model, tensors, name)
    assert set(report.loaded) == set(tensors) == set(encoder.model.state_dict())
    frames = AvlnetLogMel()(np.random.default_rng(0).normal(size=16000), "audio")
    features = encoder.encode(torch.from_numpy(frames)[None])
    width, steps = encoder.fields["embedding"].dim, -(-101 // encoder.frames_per_step)
    assert features["tokens"].shape == (1, steps, 1, width)
    assert features["tokens"].isfinite().all() and features["embedding"].std() > 0
    last = f"layer{len(encoder.architecture.layers)}.0.conv2.weight"
    for change in ({last: None}, {last: torch.ones(3)}, {"layer9.weight": torch.ones(3)}):
        wrong = {key: one for key, one in {**tensors, **change}.items() if one is not None}
        with pytest.raises(WeightsError, match=r"\(1\): layer"):
            load_strictly(encoder.model, wrong, name)


@pytest.mark.parametrize(("whole", "name"), WHOLE_MODELS)
def test_whole_models_hold_exactly_our_network(whole, name):
    shapes = golden_fixtures.manifest(whole)
    encoder = load_encoder(name, "random", modality="audio")
    with torch.device("meta"):
        own = encoder.build().state_dict()
        given = encoder.translate({key: torch.empty(shape) for key, shape in shapes.items()})
    assert {key: one.shape for key, one in given.items()} == {key: one.shape for key, one in own.items()}


@pytest.mark.slow
def test_sounds_of_any_rate_and_length_extract_with_the_times_of_their_steps(tmp_path):
    seconds = {"long": 1.5, "short": 0.7}
    for name, length in seconds.items():
        at = np.arange(round(44100 * length)) / 44100
        tones = np.stack([np.sin(2 * np.pi * hz * at) for hz in (300, 2000)])  # left and right
        write_sound(tmp_path / f"{name}.wav", 0.3 * tones, rate=44100)
    (tmp_path / "list.txt").write_text("long.wav 0\nshort.wav 1\n")
    config = {
        "name": "sounds",
        "adapter": "listing",
        "root": str(tmp_path),
        "options": {"file": "list.txt", "modality": "audio"},
        "modalities": {
            "audio": {"encoder": "davenet", "weights": "random", "options": {"architecture": "tiny"}}
        },
    }
    (tmp_path / "sounds.yaml").write_text(yaml.safe_dump(config))
    bank = extract(tmp_path / "sounds.yaml", tmp_path / "bank", modality="audio", precision="fp32")
    stored = contents(bank, "sounds", "audio")
    encoder = load_encoder("davenet", "random", modality="audio", architecture="tiny")
    for name, length in seconds.items():
        at = np.arange(round(16000 * length)) / 16000
        mono = 0.15 * sum(np.sin(2 * np.pi * hz * at) for hz in (300, 2000))
        want = encoder.encode(torch.from_numpy(AvlnetLogMel()(mono, "audio"))[None])
        tokens, times = stored["tokens", 0, f"{name}.wav"]
        assert tokens.shape == want["tokens"].shape[1:]
        # Up to the resampler, and where the sound begins and ends.
        inner = want["tokens"][0, 1:-1].numpy()
        np.testing.assert_allclose(tokens[1:-1], inner, atol=0.02 * np.abs(inner).max())
        np.testing.assert_allclose(times[:-1], np.arange(len(times) - 1) * 0.04 + 0.015, atol=0.01)
        (embedding,), _ = stored["embedding", 0, f"{name}.wav"]
        np.testing.assert_allclose(embedding, tokens.astype(np.float32).mean(0), atol=0.02)
