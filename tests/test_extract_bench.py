"""The bench of extraction measures what it says, and every part of it runs."""

import json
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from extract.bench import _figures
from extract.bench_clips import write_clips
from extract.bench_profile import KINDS, kind_of, what_is_left
from extract.bench_stages import BenchError, Stage, forget_peak_memory, peak_memory_bytes, require_same
from extract.readers import load_reader
from extract.sampling import Sampling


class _Task:
    """As much of a task as the figures need."""

    class encoder:
        name = "clip-vit-b16-random"

    class spec:
        precision = "bf16"

    device, dataset, modality = "cpu", "bench", "rgb"


DECODE = Stage(6.0, 10.0, {"decode": 8.0, "resize": 2.0})
ENCODE = Stage(16.0, 30.0)
WHOLE = Stage(25.0, 44.0, {"decode processes": 11.0, "encoder": 30.0, "write": 1.0, "rest": 2.0})


def test_on_a_cpu_the_stages_share_the_cores(monkeypatch):
    """10 + 30 core-seconds over two cores: 20 s at best; the pipeline's 25 s are 0.8 of that speed."""
    monkeypatch.setattr("extract.bench._cores", lambda: 2)
    figures = _figures(_Task, 100, {"start": 1.0, "loop": 75.0}, DECODE, ENCODE, WHOLE)
    limit, loop = figures["ratios"]
    assert figures["limit_seconds"] == 20.0
    assert (limit["value"], limit["goal"], limit["reached"]) == (0.8, 0.85, False)
    assert (loop["value"], loop["goal"], loop["reached"]) == (3.0, 2.5, True)
    assert figures["write_share"] == 0.04


def test_on_a_gpu_the_slower_stage_is_the_limit_and_the_loop_has_no_goal(monkeypatch):
    monkeypatch.setattr(_Task, "device", "cuda")
    figures = _figures(_Task, 100, {"start": 1.0, "loop": 25.0}, DECODE, ENCODE, WHOLE)
    assert figures["limit_seconds"] == 16.0
    assert [ratio["goal"] for ratio in figures["ratios"]] == [0.85, None]


def test_what_is_left_adds_up_to_all_core_seconds():
    whole = Stage(25.0, 44.0, {**WHOLE.parts, "rest of the main process": 2.0})
    rows = dict(what_is_left(whole, DECODE, {"attention": 0.25, "norms": 0.75}, cores=2))
    assert sum(rows.values()) == pytest.approx(2 * 25.0)
    assert rows["decode processes: decode"] == pytest.approx(8.0)
    assert rows["decode processes: thumbnails, slower than alone"] == pytest.approx(1.0)
    assert rows["encoder: attention"] == 7.5
    assert rows["idle, or other processes' time"] == 6.0


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("mkldnn::_linear_pointwise", "products: projections, MLP"),
        ("aten::addmm", "products: projections, MLP"),
        ("mkldnn::_convolution_pointwise", "convolutions"),
        ("aten::native_layer_norm", "norms"),
        ("aten::add", "residual sums, normalising pixels"),
        ("aten::copy_", "casts and copies"),
        ("aten::view", "other operations"),
    ],
)
def test_operations_have_a_kind(operation, kind):
    assert kind_of(operation) == kind
    assert kind in KINDS or kind == "other operations"


def test_the_clips_are_as_said_and_they_move(tmp_path, monkeypatch):
    monkeypatch.setattr("extract.bench_clips.DISTINCT", 2)
    path = write_clips(tmp_path, 4, 0.4)
    assert path.name == "bench.yaml" and len(list(tmp_path.glob("*.mp4"))) == 4
    reader = load_reader("video")
    info = reader.probe(tmp_path / "clip-00001.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (12, 640, 480, 30)
    frames = reader.read(tmp_path / "clip-00001.mp4", Sampling(frames=8)).values
    changes = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    assert (changes > 2).all()
    assert (tmp_path / "clip-00003.mp4").read_bytes() == (tmp_path / "clip-00001.mp4").read_bytes()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc/self/clear_refs")
def test_peak_memory_is_that_of_the_measured_part():
    def touch(size):
        """Pages of their own, whatever the allocator keeps of what was freed before."""
        pages = mmap.mmap(-1, size)
        np.frombuffer(pages, np.uint8)[:] = 1
        return pages

    del_later = touch(200 << 20)
    del del_later
    forget_peak_memory()
    before = peak_memory_bytes()
    held = touch(64 << 20)
    assert 60 << 20 < peak_memory_bytes() - before < 200 << 20
    del held


def test_a_loop_that_computes_something_else_is_refused(tmp_path):
    features = np.random.default_rng(0).normal(size=(8, 1, 16)).astype(np.float32)

    class Bank:
        def select(self, dataset, modality, encoder, field, items):
            assert (field, items) == ("cls", ["a"])
            return self

        def read(self, rows):
            return features, np.array([0, 8])

    np.save(tmp_path / "a.npy", features[:, 0] * 3)
    require_same(_Task, Bank(), [tmp_path / "a.mp4"], tmp_path)
    np.save(tmp_path / "a.npy", features[::-1, 0])
    with pytest.raises(BenchError, match="a: the loop's features differ"):
        require_same(_Task, Bank(), [tmp_path / "a.mp4"], tmp_path)


@pytest.mark.slow
def test_the_bench_runs_and_prints_every_figure(tmp_path):
    options = ["--clips", "6", "--seconds", "0.5", "--loop-clips", "4", "--profile", "true"]
    result = subprocess.run(
        [sys.executable, "-m", "extract.bench", *options, "--out", str(tmp_path / "figures.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stderr  # 1: so few clips, or a busy machine, miss a goal
    for figure in (
        "clip-vit-b16-random, ",
        "efficientnet-lite0, ",
        "decode only",
        "encode only",
        "limit of these stages",
        "x the speed of the limit (goal 0.85x)",
        "x the speed of the loop",
        "peak memory",
        "encoder: attention",
        "encoder: convolutions",
        "decode processes: resize",
        "goals reached",
    ):
        assert figure in result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["torch"] == torch.__version__
    for one in figures["encoders"]:
        assert one["stages"]["pipeline"]["seconds"] > 0
        assert {"decode only", "encode only", "pipeline"} == set(one["stages"])
