"""Real frames in every modality, and an encoder's features of them in float32 and bfloat16."""

from functools import cache
from importlib import import_module

import numpy as np
import torch
from conftest import ROOT

from encoders import ENCODERS, load_encoder
from encoders.generated import generated
from encoders.pretrained import TINY
from encoders.weights import RANDOM
from extract.encode import BatchEncoder
from extract.readers import load_reader
from extract.sampling import Sampling

CLIPS = sorted((ROOT / "samples" / "clips").glob("*.mkv"))


def encoder_class(name):
    module, _, attribute = ENCODERS[name].partition(":")
    return getattr(import_module(module), attribute)


def is_family(name):
    """Whether its checkpoints are published (and its weights random here)."""
    return hasattr(encoder_class(name), "architectures")


def load(name, modality, tiny, device="cpu"):
    if not is_family(name):
        return load_encoder(name, device=device, modality=modality)
    options = {"architecture": TINY} if tiny else {}
    return load_encoder(name, RANDOM, device, modality, **options)


@cache
def _frames(path, sampling):
    """(T, H, W, 3) uint8 and their times."""
    frames = load_reader("video").read(path, sampling)
    return frames.values, frames.times_seconds


def media(encoder, modality, clip):
    """What the readers hand out: real pixels (as grey, or as millimetres), generated where there are none."""
    sampling = Sampling.parse(encoder.sampling)
    if modality.split("+")[0] not in ("rgb", "ir", "depth"):
        count = sampling.frames if isinstance(sampling.frames, int) else 64
        return generated(modality, count, seed=clip)
    values, times = _frames(CLIPS[clip], sampling)
    grey = values.mean(-1, keepdims=True)
    pixels = {
        "rgb": values,
        "ir": np.repeat(grey.astype(np.uint8), 3, -1),
        "depth": (500 + 15 * grey[..., 0]).astype(np.uint16),
    }
    given = {part: pixels[part] for part in modality.split("+")}
    return given if "+" in modality else given[modality], times


def features(encoder, modality, precision, clips, device="cpu"):
    """Field -> (all clips' rows, D): through extraction's own batches, all of the default fields."""
    found = {}
    with BatchEncoder(encoder, precision, device, threads=1) as batches:
        done = []
        for clip in range(clips):
            values, times = media(encoder, modality, clip)
            done += batches.add(clip, encoder.prepare()(values, modality, None, times))
        done += batches.flush()
    for one in sorted(done, key=lambda encoded: encoded.key):
        assert one.error is None, one.error
        for name, values in one.fields.items():
            found.setdefault(name, []).append(torch.from_numpy(values).flatten(0, 1))
    return {name: torch.cat(rows) for name, rows in found.items()}


def cosines(exact, rounded):
    """Of each row, in float64."""
    return torch.nn.functional.cosine_similarity(exact.double(), rounded.double(), dim=-1)
