"""`python -m align.bench`: how close an epoch comes to the heads' own arithmetic, and what the bank saves.

The limit of an epoch is the same steps on one batch that is already on the device: whatever an epoch takes
beyond it is the feed (gather, conversion, augmentation). The steps with encoders are the same alignment step
three ways: the frozen anchor encoded anew (as CMVRA does), the anchor from the bank, all from the bank.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from store.cli import run

if TYPE_CHECKING:
    from align.data import Batch
    from align.train import Trainer

GOAL = 0.9  # of the compute-only rate


def bench(
    clips: int = 40320,
    frames: int = 12,
    dim: int = 512,
    batch: int = 512,
    head: str | None = None,
    rounds: int = 3,
    augmented: bool = False,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
    folder: Path | None = None,
    anchor: str = "clip-vip-b16",
    student: str = "omnivore-swin-t",
    encoder_clips: int = 2,
) -> int:
    """Compare an epoch of the heads with its limit, and steps with encoders with cached ones.

    Exit 1 if the epoch runs below 0.9 of the limit's rate.

    Args:
        clips: Clips of the generated bank (40,320: NTU RGB+D 60's training part), of four modalities.
        frames: Frames a clip.
        dim: Feature dim.
        batch: Clips a step.
        head: Head of all modalities (align.HEADS); None: the one that bare `python -m align` takes.
        rounds: Alternated rounds; medians are printed.
        augmented: With the augmentation of bare `python -m align` (time crop and warp), instead of without.
        precision: Of heads and encoders; auto: bf16 where the processor has it.
        device: auto, cpu, cuda.
        folder: Where the bank is kept between runs (2 GB at full size). None: a temporary folder.
        anchor: Encoder of the frozen rgb anchor, with random weights.
        student: Encoder of depth, which is trained, with random weights.
        encoder_clips: Clips of a step with encoders; 0 leaves these steps out.
    """
    resolved = _precision(precision, device)
    with tempfile.TemporaryDirectory(prefix="framebank-bench-") as temporary:
        trainer = _trainer(
            folder or Path(temporary), (clips, frames, dim), batch, head, device, augmented, resolved
        )
        share = _epochs(trainer, rounds)
    if encoder_clips:
        from align.bench_encoders import compare

        compare(anchor, student, encoder_clips, frames, rounds, trainer.device, resolved)
    verdict = "reached" if share >= GOAL else "missed"
    print(f"\nepoch at {share:.2f} of the compute-only rate, goal {GOAL}: {verdict}")
    return 0 if share >= GOAL else 1


def _epochs(trainer: "Trainer", rounds: int) -> float:
    """Time epochs, the same steps on one batch, and the feed alone; the share of the limit's rate."""
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
    print(f"{'epoch / limit, rate':<22} {medians[1] / medians[0]:8.2f}", flush=True)
    return medians[1] / medians[0]


def _trainer(
    folder: Path,
    size: tuple[int, int, int],
    batch: int,
    head: str | None,
    device: str,
    augmented: bool,
    precision: Any,
) -> "Trainer":
    """A trainer as `python -m align` makes it, on a generated bank."""
    from align.bench_bank import MODALITIES, make
    from align.config import AlignConfig, AugmentConfig, ModalityConfig, TrainConfig, ValidationConfig
    from align.prepare import describe, prepare
    from align.run import load_clips

    bank, dataset, written = make(folder, *size)
    off = AugmentConfig(frame_drop=0, token_drop=0, time_crop=1, time_warp=0, noise=0, scale=0)
    config = AlignConfig(
        dataset=dataset,
        modalities={name: ModalityConfig(head=head) for name in MODALITIES},
        augment=AugmentConfig() if augmented else off,
        validation=ValidationConfig(fraction=0),
        # Rate 0: the weights stay, so that one batch again and again is the same arithmetic as many batches.
        train=TrainConfig(epochs=1, batch=batch, learning_rate=0, device=device, precision=precision),
    )
    began = time.perf_counter()
    prepared = prepare(config, load_clips(bank, config))
    print(describe(prepared.record))
    print(
        f"{'written, read':<22} {written:8.1f} s {time.perf_counter() - began:8.1f} s  {precision}",
        flush=True,
    )
    return prepared.trainer


def _precision(asked: str, device: str) -> str:
    """``auto``: bf16 where it is native."""
    import torch

    if asked != "auto":
        return asked
    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


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
