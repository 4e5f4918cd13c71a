"""ResNet on frames: torchvision's keys against a reference, hub folders, HowTo100M's geometry."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from encoders import load_encoder
from encoders.errors import WeightsError
from encoders.resnet import ResNet, WholeFrame
from encoders.resnext3d import COUNTER

NAME = "resnet-152"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def _weights(shape, seed=0):
    """A state dictionary with torchvision's keys, head included."""
    torch.manual_seed(seed)
    layers = {"conv1": nn.Conv2d(3, shape.stem, 7, bias=False), "bn1": nn.BatchNorm2d(shape.stem)}
    inputs = shape.stem
    for stage, (blocks, outputs) in enumerate(zip(shape.depths, shape.widths, strict=True), 1):
        middle = outputs // 4
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            sizes = [(inputs, middle, 1), (middle, middle, 3), (middle, outputs, 1)]
            for number, (given, made, size) in enumerate(sizes, 1):
                layers[f"{name}.conv{number}"] = nn.Conv2d(given, made, size, bias=False)
                layers[f"{name}.bn{number}"] = nn.BatchNorm2d(made)
            if block == 0:
                layers[f"{name}.downsample.0"] = nn.Conv2d(inputs, outputs, 1, bias=False)
                layers[f"{name}.downsample.1"] = nn.BatchNorm2d(outputs)
            inputs = outputs
    layers["fc"] = nn.Linear(inputs, 10)
    for layer in layers.values():
        if isinstance(layer, nn.BatchNorm2d):
            for buffer in (layer.running_mean, layer.weight, layer.bias):
                nn.init.normal_(buffer, 0.3, 0.3)
            nn.init.uniform_(layer.running_var, 1e-5, 0.5)  # the epsilon matters
    return {f"{name}.{key}": value for name, one in layers.items() for key, value in one.state_dict().items()}


def _reference(weights, shape, images, stride_in_3x3=True):
    """torchvision's network, written out: images ``(B, 3, H, W)`` -> the last map."""

    def norm(x, name):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return x * scale.view(-1, 1, 1) + (weights[f"{name}.bias"] - mean * scale).view(-1, 1, 1)

    def convolve(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = functional.max_pool2d(norm(convolve(images, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage, blocks in enumerate(shape.depths, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            strides = (1, stride, 1) if stride_in_3x3 else (stride, 1, 1)
            skip = x
            if block == 0:
                skip = norm(convolve(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            for number in (1, 2, 3):
                x = convolve(x, f"{name}.conv{number}", strides[number - 1])
                x = norm(x, f"{name}.bn{number}")
                x = x.relu() if number < 3 else x
            x = (x + skip).relu()
    return x


def _encoder(weights, **options):
    return ResNet(weights, modality="rgb", name=NAME, architecture="tiny", **options)


def _saved(tmp_path, tensors):
    torch.save(tensors, tmp_path / "resnet152.pth")
    return str(tmp_path / "resnet152.pth")


FRAMES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 3, 32, 40), dtype=np.uint8))
PIXELS = (FRAMES[:, 0] / 255.0 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def test_torchvision_s_checkpoints_compute_what_torchvision_computes(tmp_path):
    weights = _weights(ResNet.tiny)
    features = _encoder(_saved(tmp_path, weights)).encode(FRAMES)
    want = _reference(weights, ResNet.tiny, PIXELS)
    assert want.shape == (3, 16, 4, 5)
    torch.testing.assert_close(features["cls"][:, 0, 0], want.mean((2, 3)), rtol=1e-4, atol=1e-4)
    cells = functional.adaptive_avg_pool2d(want, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features["tokens"][:, 0], cells, rtol=1e-4, atol=1e-4)
    wrong = _reference(weights, ResNet.tiny, PIXELS, stride_in_3x3=False)
    assert not torch.allclose(wrong.mean((2, 3)), want.mean((2, 3)), rtol=0.01)


def test_one_swapped_key_changes_the_features(tmp_path):
    weights = _weights(ResNet.tiny)
    before = _encoder(_saved(tmp_path, weights)).encode(FRAMES)["cls"]
    pair = [f"layer1.0.bn{number}.running_var" for number in (1, 2)]
    weights[pair[0]], weights[pair[1]] = weights[pair[1]], weights[pair[0]]
    after = _encoder(_saved(tmp_path, weights)).encode(FRAMES)["cls"]
    assert not torch.allclose(before, after, rtol=0.01)


def test_checkpoints_without_counters_load(tmp_path):
    weights = _weights(ResNet.tiny)
    old = {key: value for key, value in weights.items() if not key.endswith(COUNTER)}
    want = _encoder(_saved(tmp_path, weights)).encode(FRAMES)["cls"]
    assert torch.equal(_encoder(_saved(tmp_path, old)).encode(FRAMES)["cls"], want)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    for change, message in (
        ({"layer2.0.downsample.0.weight": None}, r"missing \(1\): encoder.stages.1.layers.0.shortcut.convol"),
        ({"layer2.1.bn3.bias": torch.ones(5)}, r"misshapen \(1\): encoder.stages.1.layers.1.layer.2.normal"),
        ({"layer2.2.conv1.weight": torch.ones(1)}, r"unexpected \(1\): encoder.stages.1.layers.2"),
        ({"head.weight": torch.ones(1)}, r"unexpected \(1\): head.weight"),
    ):
        weights = {
            key: value for key, value in {**_weights(ResNet.tiny), **change}.items() if value is not None
        }
        with pytest.raises(WeightsError, match=message):
            _ = _encoder(_saved(tmp_path, weights)).model


@pytest.mark.parametrize("kind", ["ResNetModel", "ResNetForImageClassification"])
def test_folders_as_transformers_saves_them(tmp_path, kind):
    import transformers

    source = _encoder("random")
    torch.manual_seed(3)
    model = getattr(transformers, kind)(source.build().config).eval()
    model.save_pretrained(tmp_path / "folder")
    encoder = _encoder(str(tmp_path / "folder"))
    assert encoder.name == "resnet-152-tiny"
    with torch.no_grad():
        want = model.base_model(PIXELS).pooler_output[:, :, 0, 0]
    torch.testing.assert_close(encoder.encode(FRAMES)["cls"][:, 0, 0], want, rtol=1e-4, atol=1e-5)
    tensors = {
        key: value + 0.5 if value.is_floating_point() else value
        for key, value in encoder.model.state_dict().items()
    }
    digest = encoder.save(tmp_path / "trained", tensors)
    trained = _encoder(str(tmp_path / "trained"))
    assert trained.space["weights"] == digest != encoder.space["weights"] and trained.name == encoder.name
    assert all(torch.equal(value, tensors[key]) for key, value in trained.model.state_dict().items())
    custom = ResNet(str(tmp_path / "folder"), modality="rgb", name=NAME)
    assert custom.name == "resnet-152-custom" and custom.fields["cls"].dim == 16
    assert custom.space != encoder.space


def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    _encoder("random").build().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("encoder.stages.0.layers.0.layer.1.convolution.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"encoder.stages.0.layers.0.layer.1.convolution.weight"):
        _ = _encoder(str(tmp_path)).model


@pytest.mark.parametrize(("height", "width", "scaled"), [(480, 640, (224, 298)), (640, 360, (398, 224))])
def test_frames_are_scaled_to_the_shorter_side_and_not_cropped(height, width, scaled):
    prepare = load_encoder(NAME, "random", modality="rgb").prepare()
    assert isinstance(prepare, WholeFrame)
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[:, :, : width // 2] = 200
    prepared = prepare(frames, "rgb", None, np.zeros(2))
    assert prepared.shape == (2, 3, *scaled)
    assert (prepared[..., : scaled[1] // 2 - 3] == 200).all() and not prepared[
        ..., scaled[1] // 2 + 3 :
    ].any()


@pytest.mark.slow
def test_the_full_size_network():
    encoder = load_encoder(NAME, "random", modality="rgb")
    assert encoder.parameters() == 58_143_808  # torchvision's 60,192,808 without its 1000 classes
    translated = encoder.translate(_weights(encoder.architecture))
    own = encoder.model.state_dict()
    assert {key: one.shape for key, one in translated.items()} == {key: one.shape for key, one in own.items()}
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 3, 224, 298), dtype=np.uint8))
    features = encoder.encode(frame)
    assert features["cls"].shape == (1, 1, 1, 2048) and features["tokens"].shape == (1, 1, 49, 2048)
    assert features["cls"].isfinite().all() and features["cls"].std() > 0
