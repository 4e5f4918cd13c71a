"""A weightless encoder of real frames, small real videos, and `python -m extract` that knows the encoder."""

import atexit
import csv
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import yaml
from conftest import ROOT
from media_files import write_video

import encoders
from encoders.protocols import Field
from store.bank import Bank

GRID = 4  # patches along each side


@dataclass(frozen=True)
class PatchMeans:
    """(T, H, W, 3) uint8 -> (T, 16, 3) float32 patch means, 0..1, of a view's crop."""

    def __call__(self, values, modality, crop, times_seconds):
        if crop is not None:
            height, width = values.shape[1:3]
            top, left = round(crop.top * height), round(crop.left * width)
            values = values[
                :, top : top + round(crop.height * height), left : left + round(crop.width * width)
            ]
            values = values[:, :, ::-1] if crop.flip else values
        rows = np.array_split(values.astype(np.float32), GRID, axis=1)
        patches = [patch.mean((1, 2)) for row in rows for patch in np.array_split(row, GRID, axis=2)]
        return np.stack(patches, 1) / 255


class Patches:
    """Patch colours: three fields of a frame encoder, every value checkable by eye."""

    name = "patches"
    revision = 1
    modalities = ("rgb", "ir")
    unit = "frame"
    sampling = {"frames": 6}
    fields = {
        "tokens": Field("tokens", GRID * GRID, 3),
        "cls": Field("cls", 1, 3),
        "embedding": Field("embedding", 1, 3, per_clip=True),
    }
    default_fields = ("tokens", "cls")
    tolerates_bf16 = False

    def __init__(self, weights=None, device="cpu", modality=None, gain=1.0, delay_seconds=0.0):
        self.gain, self.delay_seconds = gain, delay_seconds

    @property
    def space(self):
        return {"encoder": self.name, "revision": self.revision, "gain": self.gain}

    def prepare(self):
        return PatchMeans()

    def encode(self, batch):
        time.sleep(self.delay_seconds)
        if (batch > 0.99).all(-1).all(-1).any():
            raise ValueError("this encoder cannot look at white frames")
        tokens = batch.float() * self.gain
        mean = tokens.mean(2, keepdim=True)
        return {"tokens": tokens, "cls": mean, "embedding": mean}


class ClipPatches(Patches):
    """The same as a clip encoder that halves the time steps."""

    name = "clip-patches"
    unit = "clip"
    frames_per_step = 2

    def encode(self, batch):
        outputs = super().encode(batch)
        halved = {name: values[:, ::2] for name, values in outputs.items()}
        return halved | {"embedding": outputs["embedding"].mean(1, keepdim=True)}


@dataclass(frozen=True)
class BothMeans:
    """{"rgb": (T, H, W, 3) uint8, "depth": (T, h, w) uint16} -> (T, 16, 4): colours, and depth / 255."""

    def __call__(self, values, modality, crop, times_seconds):
        assert modality == "rgb+depth" and list(values) == ["rgb", "depth"]
        assert values["rgb"].dtype == np.uint8 and values["depth"].dtype == np.uint16
        colours = PatchMeans()(values["rgb"], "rgb", crop, times_seconds)
        depth = PatchMeans()(values["depth"][..., None], "depth", crop, times_seconds)
        return np.concatenate([colours, depth], -1)


class Both(Patches):
    """Pictures and depth at once."""

    name = "both"
    modalities = ("rgb+depth",)
    fields = {"tokens": Field("tokens", GRID * GRID, 4)}
    default_fields = ("tokens",)

    def prepare(self):
        return BothMeans()

    def encode(self, batch):
        return {"tokens": batch.float()}


def install_encoders():
    """Put the toys into the table of encoders of this process."""
    encoders.ENCODERS["both"] = f"{__name__}:Both"
    encoders.ENCODERS["patches"] = f"{__name__}:Patches"
    encoders.ENCODERS["clip-patches"] = f"{__name__}:ClipPatches"


def pattern(clip, k, size=(64, 48)):
    """Frame k of a clip: its left half has the clip's grey, the right one the frame's."""
    frame = np.empty((size[1], size[0], 3), np.uint8)
    frame[:, : size[0] // 2], frame[:, size[0] // 2 :] = 20 + 3 * clip, 20 + 6 * k
    return frame


def write_corpus(folder, clips=12, frames=lambda clip: 8 + clip % 5, encoder="patches", **modality):
    """Videos, a listing and a dataset YAML; returns the YAML's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for clip in range(clips):
        write_video(
            folder / f"clip {clip:03d}.avi", frames(clip), 10, pattern=lambda k, c=clip: pattern(c, k)
        )
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["clip_id", "rgb", "label", "subject", "caption"])
        for clip in range(clips):
            label = ("wave", "kick")[clip % 2]
            rows.writerow(
                [f"c{clip:03d}", f"clip {clip:03d}.avi", label, clip % 3, f"a {label}, take {clip % 4}"]
            )
    config = {
        "name": "toy",
        "adapter": "listing",
        "root": str(folder),
        "modalities": {"rgb": {"encoder": encoder, **modality}, "text": {"encoder": "minilm"}},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


DRIVER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import store.cli
import extract_toys
extract_toys.install_encoders()
getattr(extract_toys, sys.argv.pop(1))()
from extract.__main__ import main
main()
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def as_it_is():
    """Nothing special in the command's process."""


def small_segments():
    """Commit every few clips, so that there is something to disturb."""
    import extract.command
    from extract.task import Limits

    extract.command.Limits = partial(Limits, max_segment_bytes=2000, max_segment_seconds=0.3)


def start(*arguments, prepare=as_it_is, **options):
    """`python -m extract <arguments>` with the toy encoders, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, prepare.__name__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        **options,
    )


def command(*arguments, check=0, timeout=180, prepare=as_it_is):
    """Run it to its end; returns (stdout, stderr) after checking the exit status."""
    process = start(*arguments, prepare=prepare)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == check, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


@cache
def shared_pool():
    """One decode process for most tests: starting one takes longer than their clips do."""
    from extract.workers import DecodePool

    pool = DecodePool(1)
    atexit.register(pool.close)
    return pool


def extract(dataset, bank, check=0, modality="rgb", request=None, **choices):
    """`python -m extract` in this process; the bank, after checking the exit status."""
    from extract.command import Request, execute
    from extract.datasets.config import parse_modalities
    from extract.resolve import Choices

    install_encoders()
    choices["modalities"] = parse_modalities("modalities", choices.get("modalities", {}))
    asked = Request(str(dataset), modality, None, str(bank), Choices(**choices), **(request or {}))
    own_pool = {"workers", "timeout_seconds"} & (request or {}).keys()
    assert execute(asked, None if own_pool else shared_pool()) == check
    return Bank.open(bank)


def contents(bank, dataset="toy", modality="rgb", encoder=None):
    """{(field, view, item): (values, times)} of one feature set, through the bank's own reader."""
    sql = "SELECT DISTINCT field, view FROM clip_features WHERE dataset = ? AND modality = ?"
    found = {}
    for row in bank.sql(sql, [dataset, modality]).to_pylist():
        selection = bank.select(dataset, modality, encoder, row["field"], view=row["view"])
        values, offsets = selection.read(np.arange(len(selection)))
        times = selection.times(np.arange(len(selection)))
        for index, item in enumerate(selection.items.tolist()):
            part = np.array(values[offsets[index] : offsets[index + 1]])
            found[row["field"], row["view"], item] = (part, np.asarray(times[index], np.float32))
    return found


def assert_same(left, right, ulps=0):
    """Two banks' contents are equal bit for bit, or to that many float16 roundings."""
    assert left.keys() == right.keys()
    for key, (values, times) in left.items():
        assert np.array_equal(times, right[key][1]), key
        if ulps == 0:
            assert np.array_equal(values.view(np.uint16), right[key][0].view(np.uint16)), key
        else:
            tolerance = ulps * np.spacing(np.maximum(np.abs(values), np.float16(2**-10)))
            assert (
                np.abs(values.astype(np.float32) - right[key][0].astype(np.float32)) <= tolerance
            ).all(), key
