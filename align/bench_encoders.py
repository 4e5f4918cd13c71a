"""One alignment step three ways: the anchor encoded anew, the anchor from the bank, everything from the bank.

CMVRA encodes its frozen anchor again in every step. Here the anchor is the real network on generated frames,
with random weights: the arithmetic is the same. Decoding, which the first way needs for the anchor too, is
left out, so the ratios are lower bounds of what the bank saves.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.losses import InfoNCE
from align.model import Heads, HeadSpec

RANDOM = "random"
ANCHOR, STUDENT = "rgb", "depth"


def compare(
    anchor: str, student: str, clips: int, frames: int, rounds: int, device: torch.device, precision: str
) -> None:
    """Time the three steps in alternation and print the medians and their ratios.

    Args:
        anchor: Encoder of rgb, frozen; its head is frozen, too.
        student: Encoder of depth, trained with its head.
        clips: B.
        frames: Frames a clip where the encoder does not want a number of its own.
        rounds: Timed rounds, after one that warms up.
        device: Where.
        precision: ``bf16`` is autocast.
    """
    frozen, trained = (_load(*which, device) for which in ((anchor, ANCHOR), (student, STUDENT)))
    seen = {
        name: _media(encoder, name, clips, frames, device)
        for name, encoder in ((ANCHOR, frozen), (STUDENT, trained))
    }
    with torch.no_grad(), _autocast(device, precision):
        cached = {ANCHOR: frozen.features(seen[ANCHOR]), STUDENT: trained.features(seen[STUDENT])}
    fields = {name: next(iter(values.values())).shape for name, values in cached.items()}
    heads = Heads({name: HeadSpec("linear", *shape[2:]) for name, shape in fields.items()}, 512).to(device)
    heads.freeze([ANCHOR])
    loss = InfoNCE(temperature=0.1).to(device)
    optimizer = torch.optim.AdamW([*heads.heads[STUDENT].parameters(), *trained.model.parameters()], lr=0.0)

    def step(live: tuple[str, ...]) -> None:
        with _autocast(device, precision):
            features = dict(cached)
            if ANCHOR in live:
                with torch.no_grad():
                    features[ANCHOR] = frozen.features(seen[ANCHOR])
            if STUDENT in live:
                features[STUDENT] = trained.features(seen[STUDENT])
            first = {name: _first(values) for name, values in features.items()}
            embeddings = heads(first, dict.fromkeys(first))
        optimizer.zero_grad(set_to_none=True)
        loss(embeddings).backward()
        optimizer.step()

    ways: dict[str, tuple[str, ...]] = {
        f"anchor ({anchor}) encoded each step": (ANCHOR, STUDENT),
        f"anchor cached, {student} trained": (STUDENT,),
        "all cached, heads trained": (),
    }
    seconds = _alternated([partial(step, live) for live in ways.values()], rounds, device)
    print(f"\na step of {clips} clips, {ANCHOR} and {STUDENT}, {precision}, encoders with random weights")
    for name, taken in zip(ways, seconds, strict=True):
        print(
            f"{name:<46} {taken:9.4f} s {clips / taken:10,.2f} clips/s {seconds[0] / taken:9,.2f} x the first"
        )


def _load(name: str, modality: str, device: torch.device) -> Any:
    from encoders import load_encoder

    return load_encoder(name, RANDOM, str(device), modality)


def _media(encoder: Any, modality: str, clips: int, frames: int, device: torch.device) -> Tensor:
    """Prepared media of ``clips`` generated clips."""
    from encoders.generated import generated

    wanted = encoder.sampling.get("frames", frames)
    prepare, made = encoder.prepare(), []
    for seed in range(clips):
        values, times = generated(modality, wanted if isinstance(wanted, int) else frames, seed)
        made.append(prepare(values, modality, None, times))
    return torch.from_numpy(np.stack(made)).to(device)


def _first(fields: dict[str, Tensor]) -> Tensor:
    """The first field, which encoders write unless told otherwise."""
    return next(iter(fields.values()))


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _alternated(steps: list[Callable[[], None]], rounds: int, device: torch.device) -> list[float]:
    """Median seconds of each step."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for own, step in zip(taken, steps, strict=True):
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            own.append(time.perf_counter() - began)
    return [statistics.median(own[1:]) for own in taken]
