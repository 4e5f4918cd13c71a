"""3D residual networks: parity with the original's blocks, stages and logits; windows; checkpoints."""

import golden_fixtures
import numpy as np
import pytest
import torch
import yaml
from extract_toys import contents, extract
from media_files import write_video
from torch import nn

from encoders import load_encoder
from encoders.checkpoint import load_strictly
from encoders.errors import WeightsError
from encoders.resnext3d import COUNTER, MEAN, Block3d, Network3d, ResNeXt3d, Shape3d
from extract.steps import step_times

NAME = "resnext-101-3d"


def _block(told):
    shape = Shape3d(groups=told["cardinality"], shortcut=told["shortcut"])
    return Block3d(told["inplanes"], told["planes"], told["stride"], shape).eval()


def _block_errors(golden, fault=None):
    for name, told in golden.meta["constructor"].items():
        block = _block(told)
        block.load_state_dict(golden.part("weight", f"{name}."))
        if fault:
            fault(block)
        with torch.no_grad():
            got = block(golden.part("input")[f"{name}_x"])
        yield float(golden.errors(got, golden.part("output")[f"{name}_y"]).max())


def _stages(golden):
    """The first stages of a network, as many as a fixture has weights of."""
    told, weights = golden.meta["constructor"], golden.part("weight")
    count = len({key.split(".")[0] for key in weights if key.startswith("layer")})
    shape = Shape3d(
        tuple(told["layers"][:count]),
        Shape3d.planes[:count],
        groups=told["cardinality"],
        shortcut=told["shortcut_type"],
    )
    model = Network3d(shape).eval()
    wrong = model.load_state_dict(weights, strict=False)
    assert set(wrong.missing_keys) == {"fc.weight", "fc.bias"} and not wrong.unexpected_keys
    return model


def _stage_errors(golden, model):
    outputs = golden.part("output")
    with torch.no_grad():
        x = model.stem(golden.part("input")["video"])
        yield float(golden.errors(x, outputs["stem"]).max())
        for name in sorted(outputs.keys() - {"stem"}):
            x = getattr(model, name)(x)
            yield float(golden.errors(x, outputs[name]).max())


def _plain(golden):
    """The plain ResNet of a fixture."""
    told = golden.meta["constructor"]
    planes = tuple(int(one * told.get("widen_factor", 1.0)) for one in told["block_inplanes"])
    model = Network3d(
        Shape3d(
            tuple(told["layers"]),
            planes,
            stem=planes[0],
            expansion={"BasicBlock": 1, "Bottleneck": 4}[told["block"]],
            groups=1,
            shortcut=told.get("shortcut_type", "B"),
            classes=told["n_classes"],
            stem_frames=told["conv1_t_size"],
            stem_stride=told.get("conv1_t_stride", 1),
            pools=not told.get("no_max_pool", False),
        )
    ).eval()
    model.load_state_dict(golden.part("weight"))
    return model


def _logit_errors(golden, model):
    with torch.no_grad():
        got = model.fc(model(golden.part("input")["video"]))
    return float(golden.errors(got, golden.part("output")["logits"]).max())


@pytest.mark.parametrize("golden", golden_fixtures.cases("resnext3d_blocks"))
def test_the_original_s_blocks(golden):
    assert max(_block_errors(golden)) <= 1


@pytest.mark.parametrize("golden", golden_fixtures.cases("resnext3d_stem"))
def test_the_original_s_stem_and_stages(golden):
    assert max(_stage_errors(golden, _stages(golden))) <= 1


@pytest.mark.parametrize("golden", golden_fixtures.cases("resnet3d_new"))
def test_the_original_s_logits_of_a_plain_resnet(golden):
    assert _logit_errors(golden, _plain(golden)) <= 1


def _epsilon(model, epsilon=1e-4):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = epsilon


def _swapped_norms(model):
    block = model if isinstance(model, Block3d) else model.layer1[0]
    block.bn1, block.bn2 = block.bn2, block.bn1


@pytest.mark.parametrize("fault", [_epsilon, _swapped_norms])
@pytest.mark.parametrize("golden", golden_fixtures.cases("resnext3d_blocks"))
def test_faults_are_caught_by_the_original_s_blocks(golden, fault):
    assert max(_block_errors(golden, fault)) > 1


@pytest.mark.parametrize("fault", [_epsilon, _swapped_norms])
@pytest.mark.parametrize("golden", golden_fixtures.cases("resnet3d_new"))
def test_faults_are_caught_by_the_original_s_logits(golden, fault):
    model = _plain(golden)
    fault(model)
    assert _logit_errors(golden, model) > 1


def test_the_epsilon_of_the_norms():
    """As the original's 1e-5, where variances are as small; 1e-6 gives something else."""
    torch.manual_seed(0)
    block = Block3d(8, 32, 1, Shape3d(groups=4)).eval()
    norm = block.bn1
    nn.init.constant_(norm.running_var, 1e-5)
    x = torch.randn(2, norm.num_features, 1, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), x / (2e-5**0.5))
    _epsilon(block, 1e-6)
    with torch.no_grad():
        assert not torch.allclose(norm(x), x / (2e-5**0.5), rtol=0.1)


def test_shortcut_a_by_hand():
    shape = Shape3d((1,), (2,), expansion=1, groups=1, shortcut="A")
    block = Block3d(1, 2, 2, shape).eval()
    assert "downsample.0.weight" not in block.state_dict()
    for name in ("conv1", "conv2"):
        nn.init.zeros_(getattr(block, name).weight)
    x = torch.arange(1.0, 28.0).view(1, 1, 3, 3, 3)
    with torch.no_grad():
        got = block(x)
    assert got[0, 0].flatten().tolist() == [1, 3, 7, 9, 19, 21, 25, 27]
    assert got[0, 1].abs().sum() == 0


def _tiny(weights="random", **options):
    return ResNeXt3d(weights, modality="rgb", name=NAME, architecture="tiny", **options)


def test_windows_are_encoded_each_for_itself_and_the_last_is_filled_with_black(monkeypatch):
    encoder = _tiny()
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 10, 3, 32, 32), dtype=np.uint8))
    tokens = encoder.encode(clips)["tokens"]
    assert tokens.shape == (2, 3, 1, 128) and encoder.frames_per_step == 4
    black = torch.cat([clips[:, 8:], torch.zeros(2, 2, 3, 32, 32, dtype=torch.uint8)], 1)
    for step, window in enumerate((clips[:, :4], clips[:, 4:8], black)):
        pixels = window.float() - torch.tensor(MEAN).view(3, 1, 1)
        with torch.no_grad():
            want = encoder.model(pixels.transpose(1, 2))
        torch.testing.assert_close(tokens[:, step, 0], want, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("encoders.resnext3d.BATCH_WINDOWS", 1)
    torch.testing.assert_close(encoder.encode(clips)["tokens"], tokens, rtol=1e-4, atol=1e-5)


def test_times_are_those_of_the_windows():
    times = step_times(np.arange(40) / 24.0, 3, 16)
    assert times == pytest.approx([7.5 / 24, 23.5 / 24, 35.5 / 24])


def test_geometry_is_the_shorter_side_and_the_middle():
    encoder = load_encoder(NAME, "random", modality="rgb")
    frames = np.zeros((1, 240, 480, 3), np.uint8)
    frames[:, :, 120:360] = 200  # the middle square
    prepared = encoder.prepare()(frames, "rgb", None, np.zeros(1))
    assert prepared.shape == (1, 3, 112, 112)
    assert prepared[..., 2:-2].min() == 200
    normalised = encoder.preprocess.normalise(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8))
    assert normalised[0, :, 0, 0].tolist() == pytest.approx([200 - mean for mean in MEAN], abs=1e-4)


def _saved(tmp_path, content):
    torch.save(content, tmp_path / "resnext101.pth")
    return str(tmp_path / "resnext101.pth")


@pytest.mark.parametrize("kind", ["bare", "wrapped", "without counters"])
def test_checkpoints_as_their_authors_wrote_them(tmp_path, kind):
    torch.manual_seed(1)
    own = _tiny().build().state_dict()
    content = {
        "bare": own,
        "wrapped": {"arch": NAME, "epoch": 9, "state_dict": {f"module.{k}": v for k, v in own.items()}},
        "without counters": {key: value for key, value in own.items() if not key.endswith(COUNTER)},
    }[kind]
    loaded = _tiny(_saved(tmp_path, content)).model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    own = _tiny().build().state_dict()
    for change, message in (
        ({"layer3.0.bn2.weight": None}, r"missing \(1\): layer3.0.bn2.weight"),
        ({"fc.weight": torch.ones(4, 128)}, r"misshapen \(1\): fc.weight"),
        ({"layer5.0.bn1.num_batches_tracked": torch.tensor(0)}, r"unexpected \(1\): layer5"),
    ):
        tensors = {key: value for key, value in {**own, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=message):
            _ = _tiny(_saved(tmp_path, tensors)).model


@pytest.mark.slow
def test_the_official_checkpoint_loads_strictly_and_runs():
    shapes, tensors = golden_fixtures.manifest("resnext101_3d_kinetics"), {}
    torch.manual_seed(0)
    for key, shape in shapes.items():
        counts = key.endswith(COUNTER)
        tensors[key] = torch.tensor(5) if counts else (torch.rand(shape[-1:]) / 50).expand(shape)
    encoder = load_encoder(NAME, "random", modality="rgb")
    report = load_strictly(encoder.model, encoder.translate(tensors), NAME)
    assert set(report.loaded) == set(tensors) == set(encoder.model.state_dict())
    clip = np.random.default_rng(0).integers(0, 256, (1, 20, 3, 112, 112), dtype=np.uint8)
    tokens = encoder.encode(torch.from_numpy(clip))["tokens"]
    assert tokens.shape == (1, 2, 1, 2048)
    assert tokens.isfinite().all() and tokens.std() > 0
    last = "layer4.2.conv3.weight"
    for change in ({last: None}, {last: torch.ones(3)}, {"layer9.weight": torch.ones(3)}):
        wrong = {key: one for key, one in {**tensors, **change}.items() if one is not None}
        with pytest.raises(WeightsError, match=r"\(1\): layer"):
            load_strictly(encoder.model, encoder.translate(wrong), NAME)


@pytest.mark.slow
def test_a_video_is_windows_at_24_frames_a_second(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=60, fps=30, size=(64, 48))  # 2 s
    (tmp_path / "list.txt").write_text("clip.mp4 0\n")
    config = {
        "name": "videos",
        "adapter": "listing",
        "root": str(tmp_path),
        "options": {"file": "list.txt"},
        "modalities": {"rgb": {"encoder": NAME, "weights": "random", "options": {"architecture": "tiny"}}},
    }
    (tmp_path / "videos.yaml").write_text(yaml.safe_dump(config))
    bank = extract(tmp_path / "videos.yaml", tmp_path / "bank", precision="fp32")
    ((tokens, times),) = contents(bank, "videos").values()
    assert tokens.shape == (12, 1, 128)  # 48 frames in windows of 4
    np.testing.assert_allclose(times, (np.arange(12) + 0.5) / 6, atol=0.04)
