"""`python -m align.bench`: how close an epoch comes to the head's own arithmetic, measured in one run.

The limit is the same steps on one batch that is already on the device: whatever an epoch takes beyond it is
the feed (gather, conversion, augmentation).
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from store.cli import run

if TYPE_CHECKING:
    from align.data import Batch
    from align.train import Trainer


def bench(
    clips: int = 8192,
    frames: int = 16,
    dim: int = 768,
    batch: int = 512,
    head: str = "conv",
    rounds: int = 5,
    device: str = "auto",
    augmented: bool = False,
) -> int:
    """Compare an epoch from materialised features with the same steps on a batch that stands still.

    Args:
        clips: Clips in memory, of two modalities.
        frames: Frames a clip of the first modality; the second has one vector.
        dim: Feature dim.
        batch: Clips a step.
        head: Head of the first modality (align.HEADS).
        rounds: Alternated rounds; medians are printed.
        device: auto, cpu, cuda.
        augmented: With time crop, time warp and noise, instead of without augmentation.
    """
    trainer = _trainer(clips, frames, dim, batch, head, device, augmented)
    still = next(iter(trainer.loader.epoch(0)))
    steps = len(trainer.loader)
    fed, limit, feed = [], [], []
    for number in range(rounds + 1):
        feed.append(_seconds(trainer.loader.epoch(number), len))
        fed.append(_seconds(trainer.loader.epoch(number), trainer.step))
        limit.append(_seconds([still] * steps, trainer.step))
    medians = [statistics.median(times[1:]) for times in (fed, limit, feed)]  # the first round warms up
    seen = steps * trainer.loader.batch
    for name, seconds in zip(("epoch", "compute only (limit)", "feed only"), medians, strict=True):
        print(f"{name:<22} {seconds:8.3f} s {seen / seconds:12,.0f} clips/s")
    print(f"epoch / limit          {medians[0] / medians[1]:8.2f}")
    return 0


def _trainer(
    clips: int, frames: int, dim: int, batch: int, head: str, device: str, augmented: bool
) -> "Trainer":
    import numpy as np

    from align.config import AugmentConfig, TrainConfig
    from align.data import ClipData, track
    from align.model import Heads, HeadSpec, build_losses
    from align.train import Trainer

    rng, names = np.random.default_rng(0), [str(number) for number in range(clips)]
    motion = rng.standard_normal((clips, frames, 1, dim), np.float32).astype(np.float16)
    vector = rng.standard_normal((clips, dim), np.float32)
    data = ClipData(
        np.array(names, object),
        np.zeros(clips, np.int64),
        {"motion": track(motion, names, names), "vector": track(vector, names, names)},
    )
    heads = Heads({"motion": HeadSpec(head, 1, dim), "vector": HeadSpec("mlp", 1, dim)}, 256)
    losses = build_losses(
        [{"name": "infonce", "weight": 1.0, "pairs": "all", "options": {}}], heads.modalities
    )
    off = AugmentConfig(frame_drop=0, token_drop=0, time_crop=1, time_warp=0, noise=0, scale=0)
    config = AugmentConfig(noise=0.1) if augmented else off
    train = TrainConfig(epochs=10**6, batch=batch, device=device)
    return Trainer(heads, losses, data, np.arange(clips), np.arange(0), train, config)


def _seconds(batches: "Iterable[Batch]", work: "Callable[[Batch], object]") -> float:
    import torch

    began = time.perf_counter()
    for batch in batches:
        work(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    run(bench, prog="python -m align.bench")
