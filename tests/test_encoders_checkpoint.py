"""Checkpoint files: the containers that weights come in, what is refused, and the strict load's report."""

import argparse
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PosixPath

import golden_fixtures
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from encoders.checkpoint import checkpoint_digest, load_strictly, read_checkpoint, read_tensors
from encoders.errors import WeightsError


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return OrderedDict(
        {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "seen": torch.tensor(7, dtype=torch.int64)}
    )


def _equal(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.torch", "a.safetensors", "a.bin", "weights"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_decides_not_the_name(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(_state(), path)
    else:
        torch.save(_state(), path, _use_new_zipfile_serialization=kind == "zip")
    assert _equal(read_checkpoint(path), _state())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("zipped", [True, False])
def test_trainers_leave_arguments_and_optimizers_beside_the_weights(tmp_path, wrapper, zipped):
    """What LaViLa, TAHAR and EAO save: arguments, a real optimizer's state, the scaler, numpy numbers."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    beside = {
        "epoch": 4,
        "args": argparse.Namespace(model="TSF", lr=3e-5, output=PosixPath("runs"), betas=(0.9, 0.999)),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "best_acc1": np.float64(31.5),
        "history": np.arange(3, dtype=np.float32),
        "done": np.bool_(True),
        "config": {"arch": {"type": "FusionModel"}},
    }
    content = {**beside, wrapper: model.state_dict()} if wrapper else {**beside, **model.state_dict()}
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert _equal(read_checkpoint(path), dict(model.state_dict()))


def test_nested_parts_become_dotted_keys(tmp_path):
    """Omnivore's files: the trunk's and the heads' own state dicts."""
    path = tmp_path / "swin.torch"
    torch.save({"trunk": {"norm.weight": torch.ones(2)}, "heads": {"image.bias": torch.zeros(3)}}, path)
    assert sorted(read_checkpoint(path)) == ["heads.image.bias", "trunk.norm.weight"]


def test_module_is_stripped_where_all_keys_have_it_however_often(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"module.module.a": torch.ones(1), "module.module.b": torch.ones(1)}}, path)
    assert sorted(read_checkpoint(path)) == ["a", "b"]
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert sorted(read_checkpoint(path)) == ["b", "module.a"]


def test_files_are_read_in_threads(tmp_path):
    """torch's list of allowed classes is one for the process: nobody takes it away from another thread."""
    path = tmp_path / "a.pt"
    beside = {f"args{i}": argparse.Namespace(a=i) for i in range(2000)}
    torch.save({"state_dict": _state(), **beside}, path)
    with ThreadPoolExecutor(8) as pool:
        assert all(_equal(one, _state()) for one in pool.map(read_checkpoint, [path] * 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32_and_integers_stay(tmp_path, dtype):
    path = tmp_path / "half.pt"
    torch.save({"weight": torch.randn(5).to(dtype), "ids": torch.arange(3), "mask": torch.ones(2) > 0}, path)
    read, stored = read_checkpoint(path), read_tensors(path)
    assert [read[key].dtype for key in ("weight", "ids", "mask")] == [torch.float32, torch.int64, torch.bool]
    assert stored["weight"].dtype == dtype
    assert torch.equal(read["weight"], stored["weight"].float())


# CMVRA ----------------------------------------------------------------------------------------------------


@pytest.fixture
def alignment(tmp_path) -> Path:
    """CMVRA's own keys around two encoders, wrapped twice as its trainer does."""
    heads = golden_fixtures.manifest("cmvra_multimodality_heads_ntu60_512")
    state = {f"module.{key}": torch.zeros(shape) for key, shape in heads.items()}
    for value, modality in enumerate(("ir", "skeleton")):
        for key in ("conv.weight", "conv.bias"):
            state[f"module.modalities_encoders.{modality}.module.{key}"] = torch.full((2,), float(value))
    path = tmp_path / "checkpoint_ir_skeleton_MIX_ntu.pth"
    torch.save(
        {"epoch": 9, "model_state_dict": state, "optimizer_state_dict": {}, "best_val_loss": 0.1}, path
    )
    return path


def test_a_cmvra_checkpoint_gives_the_encoder_of_one_modality(alignment):
    assert _equal(
        read_checkpoint(alignment, "ir"), {"conv.weight": torch.zeros(2), "conv.bias": torch.zeros(2)}
    )
    assert read_checkpoint(alignment, "skeleton")["conv.bias"].tolist() == [1, 1]


@pytest.mark.parametrize("modality", [None, "rgb"])
def test_a_cmvra_checkpoint_lists_its_modalities(alignment, modality):
    with pytest.raises(
        WeightsError, match=r"pth: holds encoders of several modalities, .* held: ir, skeleton"
    ):
        read_checkpoint(alignment, modality)


def test_a_views_encoder_is_its_own_where_the_file_has_one(tmp_path):
    """CMVRA keys Drive&Act's cameras by name; one without an encoder of its own is encoded as infrared."""
    path = tmp_path / "checkpoint_ceiling_ir_rgb2.pth"
    state = {
        f"module.modalities_encoders.{name}.module.{key}": torch.full((2,), float(value))
        for value, name in enumerate(("ceiling", "ir", "rgb2"))
        for key in ("conv.weight", "conv.bias")
    }
    torch.save({"epoch": 9, "model_state_dict": state}, path)
    taken = {
        name: read_checkpoint(path, name)["conv.bias"][0].item()
        for name in ("ir.ceiling", "ir.inner_mirror", "ir", "rgb2")
    }
    assert taken == {"ir.ceiling": 0, "ir.inner_mirror": 1, "ir": 1, "rgb2": 2}
    digests = {name: checkpoint_digest(path, name).partition(":")[2] for name in taken}
    assert digests == {"ir.ceiling": "ceiling", "ir.inner_mirror": "ir", "ir": "ir", "rgb2": "rgb2"}
    with pytest.raises(WeightsError, match=r"none for 'depth.ceiling2'; held: ceiling, ir, rgb2"):
        read_checkpoint(path, "depth.ceiling2")


def test_the_digest_names_the_content_and_the_encoder_taken_out(alignment, tmp_path):
    """Another name of the file changes nothing; another modality of the same file is other weights."""
    copy = shutil.copy(alignment, tmp_path / "other.pth")
    assert checkpoint_digest(Path(copy), "ir") == checkpoint_digest(alignment, "ir")
    assert checkpoint_digest(alignment, "ir") != checkpoint_digest(alignment, "skeleton")
    for zipped in (True, False):
        torch.save(_state(), tmp_path / "single.pt", _use_new_zipfile_serialization=zipped)
        single = checkpoint_digest(tmp_path / "single.pt", "ir")
        assert single == checkpoint_digest(tmp_path / "single.pt", None)
        torch.save({**_state(), "a.bias": torch.ones(3)}, tmp_path / "single.pt")
        assert single != checkpoint_digest(tmp_path / "single.pt", "ir")
    (tmp_path / "empty.pt").touch()
    assert checkpoint_digest(tmp_path / "empty.pt", "ir") != single


# Files that are not what they should be -------------------------------------------------------------------


class Foreign:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Configuration:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_named_and_never_run(tmp_path, zipped):
    path, trap = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"state_dict": _state(), "hook": Foreign(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"trap\.pt: holds an object of posix\.mkdir.*refused"):
        read_checkpoint(path)
    assert not trap.exists()
    torch.save({"state_dict": _state(), "config": Configuration()}, path)
    with pytest.raises(
        WeightsError, match=r"object of .*Configuration, which could run code.*state_dict\(\)"
    ):
        read_checkpoint(path)


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(
        WeightsError, match=r"whole\.pt: holds an object of torch\.nn\.modules\.linear\.Linear"
    ):
        read_checkpoint(tmp_path / "whole.pt")


def _files(folder: Path) -> dict[str, Path]:
    paths = {kind: folder / f"{kind}.pt" for kind in ("zip", "legacy", "safetensors", "script")}
    state = {"weight": torch.randn(64, 64)}
    torch.save(state, paths["zip"])
    torch.save(state, paths["legacy"], _use_new_zipfile_serialization=False)
    save_file(state, paths["safetensors"])
    torch.jit.script(nn.Linear(64, 64)).save(str(paths["script"]))
    return paths


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "script"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_clear_error(tmp_path, kind, share):
    path = _files(tmp_path)[kind]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=rf"/{kind}\.pt(: | is no checkpoint that loads safely: )\S"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "script"])
def test_a_flipped_bit_among_the_weights_is_noticed(tmp_path, kind):
    path = _files(tmp_path)[kind]
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"data/0 does not match its checksum|Bad CRC"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\x00" * 100, "is no checkpoint"),
        (b"not a checkpoint", "is no checkpoint"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (b"\x1f\x8b\x08\x00", "gzip-compressed"),
        (pickle.dumps({"epoch": 1}), "is no checkpoint"),
    ],
)
def test_foreign_files_say_what_they_are(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.pth.*{said}"):
        read_checkpoint(path)


def test_other_zips_and_absent_files_are_refused(tmp_path):
    np.savez(tmp_path / "features.npz", a=np.zeros(3))
    for name in ("features.npz", "absent.pt", "."):
        with pytest.raises(WeightsError, match="no checkpoint that loads safely"):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [torch.ones(2)], torch.ones(2)])
def test_a_file_without_named_tensors_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "none.pt")
    with pytest.raises(
        WeightsError, match=r"none\.pt: holds (no tensors, only: (epoch|nothing)|a (list|Tensor))"
    ):
        read_checkpoint(tmp_path / "none.pt")


# TorchScript ----------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Nested as CLIP is: lists of blocks, a buffer, a bare parameter, and a mask that is no weight."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)])
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("positions", torch.arange(4))
        self.mask = torch.full((4, 4), float("-inf"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x) * self.scale + self.positions + self.mask.triu(1).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_an_archives_tensors_are_those_of_the_module(tmp_path, dtype, how):
    tower = Tower().to(dtype).eval()
    archive = (
        torch.jit.script(tower) if how == "script" else torch.jit.trace(tower, torch.ones(2, 4, dtype=dtype))
    )
    archive.save(str(tmp_path / "tower.pt"))
    stored = read_tensors(tmp_path / "tower.pt")
    assert _equal(stored, dict(tower.state_dict()))
    assert stored["scale"].dtype == dtype
    assert _equal(
        read_checkpoint(tmp_path / "tower.pt"),
        {key: value.float() if value.is_floating_point() else value for key, value in stored.items()},
    )


def test_an_archives_code_is_never_run_nor_its_pickle_trusted(tmp_path):
    """The code may be nonsense; a pickle that refers to anything but tensors is refused by name."""
    torch.jit.script(Tower().eval()).save(str(tmp_path / "tower.pt"))
    with zipfile.ZipFile(tmp_path / "tower.pt") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    code = next(name for name in content if name.endswith("__torch__/test_encoders_checkpoint.py"))
    content[code] += b"\nraise SystemExit('ran')\n"
    _zip(tmp_path / "code.pt", content)
    assert _equal(read_checkpoint(tmp_path / "code.pt"), read_checkpoint(tmp_path / "tower.pt"))
    content["tower/data.pkl"] = pickle.dumps(Foreign(tmp_path / "sprung"), protocol=2)
    _zip(tmp_path / "trap.pt", content)
    with pytest.raises(WeightsError, match=r"trap\.pt: the archive refers to posix\.mkdir, which is refused"):
        read_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def _zip(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)


# Strict loading -------------------------------------------------------------------------------------------


def _model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(trunk=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), head=nn.Linear(3, 2)))


def test_everything_fits():
    model, other = _model(), _model()
    nn.init.ones_(other.head.weight)
    report = load_strictly(model, other.state_dict(), "x")
    assert _equal(dict(model.state_dict()), dict(other.state_dict()))
    assert set(report.loaded) == set(other.state_dict())
    assert not (report.missing or report.unexpected or report.misshapen)


def test_the_report_groups_what_does_not_fit():
    tensors = dict(_model().state_dict())
    del tensors["norm.weight"]
    tensors["extra"] = torch.ones(1)
    tensors["trunk.weight"] = tensors["trunk.weight"].T
    tensors["norm.num_batches_tracked"] = torch.tensor(0.5)  # would be cut to an integer
    model, before = _model(), dict(_model().state_dict())
    with pytest.raises(WeightsError) as error:
        load_strictly(model, tensors, "omnivore-swin-t: swin.torch")
    assert str(error.value).splitlines() == [
        "omnivore-swin-t: swin.torch: the checkpoint does not fit; 6 of 9 keys do",
        "  missing (1): norm.weight",
        "  unexpected (1): extra",
        "  misshapen (2): trunk.weight (4, 3) instead of (3, 4), "
        "norm.num_batches_tracked () instead of () int64",
        "  to load the rest, name these with --allow-partial KEY or PREFIX.",
    ]
    assert _equal(dict(model.state_dict()), before)


def test_long_lists_are_cut_and_counted():
    tensors = {**_model().state_dict(), **{f"more.{i}": torch.ones(1) for i in range(30)}}
    with pytest.raises(WeightsError, match=r"unexpected \(30\): more\.0, .*more\.7, and 22 more"):
        load_strictly(_model(), tensors, "x")


def test_allow_partial_loads_the_rest_and_nothing_else():
    tensors = {**_model().state_dict(), "decoder.a": torch.ones(1), "decoder.b": torch.ones(1)}
    tensors["trunk.bias"] = torch.full((3,), 9.0)
    tensors["head.weight"] = torch.ones(60, 3)
    del tensors["head.bias"]
    model, fresh = _model(), _model()
    report = load_strictly(model, tensors, "x", ["decoder.", "head.weight", "head.bias"])
    assert (report.missing, report.misshapen) == (("head.bias",), ("head.weight",))
    assert report.unexpected == ("decoder.a", "decoder.b")
    assert torch.equal(model.head.weight, fresh.head.weight)
    assert model.trunk.bias.tolist() == [9, 9, 9]
    with pytest.raises(WeightsError, match=r"missing \(1\): head\.bias") as error:
        load_strictly(_model(), tensors, "x", ["decoder.", "head.weight"])
    assert "misshapen" not in str(error.value) and "unexpected" not in str(error.value)
    with pytest.raises(WeightsError, match="allow_partial names decoder, but nothing there"):
        load_strictly(_model(), tensors, "x", ["decoder", "head."])  # no dot: a key, not a prefix


def test_an_allowance_that_nothing_needs_is_an_error():
    with pytest.raises(WeightsError, match=r"x: allow_partial names heads\., trunk\., but nothing there"):
        load_strictly(_model(), dict(_model().state_dict()), "x", ["heads.", "trunk."])


def test_hints_name_prefixes_and_families():
    state = _model().state_dict()
    with pytest.raises(WeightsError, match=r"hint: most keys fit without the prefix 'clipmodel\.'"):
        load_strictly(_model(), {f"clipmodel.{key}": value for key, value in state.items()}, "x")
    inner = nn.Sequential(OrderedDict(encoder=_model()))
    with pytest.raises(WeightsError, match=r"hint: most keys fit with the prefix 'encoder\.' before"):
        load_strictly(inner, dict(state), "x")
    with pytest.raises(WeightsError, match="hint: the names fit and the sizes do not; it looks like another"):
        load_strictly(_model(), {key: value[None] for key, value in state.items()}, "x")
    with pytest.raises(WeightsError, match="hint: it looks like a checkpoint of LaViLa"):
        load_strictly(_model(), {"visual.temporal_embed": torch.ones(1)}, "x")


@pytest.mark.parametrize(
    ("manifest", "family"),
    [
        ("clipvip_base_16", "CLIP-ViP"),
        ("cmvra_clipvip_vision_base_16", "CLIP-ViP, without the prefix"),
        ("omnimae_vitb_pretrain", "OmniMAE"),
        ("omnimae_vitb_ssv2_ft", "OmniMAE"),
        ("omnivore_swinT", "Omnivore"),
        ("lavila_tsf_base", "LaViLa"),
        ("tahar_ntu", "TAHAR"),
        ("davenet_v1", "DAVEnet"),
        ("davenet_v2", "DAVEnet"),
        ("resnext101_3d_kinetics", "a ResNet or ResNeXt"),
        ("eao_full_tva", "EAO or Multi-SK"),
    ],
)
def test_every_familys_official_keys_are_recognised(manifest, family):
    shapes = golden_fixtures.manifest(manifest)
    if manifest.startswith("omnivore"):
        shapes = {f"trunk.{key}": shape for key, shape in shapes["trunk"].items()}
    with pytest.raises(WeightsError, match=f"hint: it looks like a checkpoint of {family}"):
        load_strictly(_model(), {key: torch.empty(0) for key in shapes}, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    tensors = dict(_model().state_dict())
    tensors["trunk.weight"] = tensors["trunk.weight"].clone().fill_(0.0).index_fill(0, torch.tensor(1), value)
    with pytest.raises(WeightsError, match=r"x: NaN or infinite values \(1\): trunk\.weight \(4 of 12\)"):
        load_strictly(_model(), tensors, "x")
