"""`python -m extract.bench`: extraction against the limit of its own stages, and against a plain loop.

Everything is measured in one run, over the same clips. *Decode only* reads and prepares them in the decode
processes; *encode only* encodes prepared clips from memory; the *pipeline* is what `python -m extract` does,
into a real bank, thumbnails, checksums and commits included. Processes, weights and catalog are warm for all
of them; what a command takes once is printed beside.

The limit on a CPU: the stages share the cores, so no pipeline is faster than (decode + encode core-seconds) /
cores. On a GPU: the slower of the two stages. The loop is that of `extract/bench_loop.py`: one clip at a
time, decord, transformers' processor, the float32 model on all cores, `np.save`.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from store.cli import run

if TYPE_CHECKING:
    from extract.bench_stages import Stage
    from extract.resolve import Choices
    from extract.task import Task

LIMIT_GOAL = 0.85  # of the limit's speed
LOOP_GOALS = {"clip-vit-b16": 2.5, "efficientnet-lite0": 1.5}  # times the loop's speed, bf16 on a CPU
_ROW = "  {:<30}{:>9}{:>9}{:>14}"


def bench(
    clips: int = 200,
    encoders: str = "clip-vit-b16,efficientnet-lite0",
    frames: int = 8,
    seconds: float = 3.0,
    loop_clips: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    workers: int | None = None,
    profile: bool = False,
    directory: Path | None = None,
    out: Path | None = None,
) -> int:
    """Measure decode, encode, the whole pipeline and a plain loop; exit 1 if a goal is missed.

    Args:
        clips: Clips of 640 x 480 in H.264.
        encoders: Comma-separated names; those with a published checkpoint run with random weights.
        frames: Frames encoded of each clip.
        seconds: A clip's length, at 30 frames a second.
        loop_clips: Clips that the loop runs over; all if omitted, 0 leaves it out.
        device: cpu, cuda; auto takes a GPU if there is one.
        precision: Of the pipeline; the loop has float32.
        workers: Decode processes; one per core if omitted.
        profile: Also print where the pipeline's core-seconds go.
        directory: Where to write clips and banks; a temporary folder if None.
        out: Also write all figures to this JSON file.
    """
    import torch

    from extract.bench_clips import write_clips
    from extract.encode import resolve_device
    from extract.memory import keep_freed_memory
    from extract.resolve import Choices

    chosen: dict[str, Any] = {
        "frames": frames,
        "device": resolve_device(device),
        "precision": precision,
    }
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="framebank-bench-", dir=directory) as folder:
        _say(f"writing {clips} clips of {seconds:g} s")
        dataset = write_clips(Path(folder), clips, seconds)
        found = []
        for name in (one.strip() for one in encoders.split(",")):
            weights = "random" if _is_published(name) else None
            choices = Choices(encoder=name, weights=weights, **chosen)
            found.append(_measure(dataset, choices, clips, loop_clips, workers, profile))
            _print(found[-1])
    reached = [ratio["reached"] for one in found for ratio in one["ratios"] if ratio["goal"] is not None]
    print(f"\n{sum(reached)} of {len(reached)} goals reached")
    if out is not None:
        machine = {
            "cores": _cores(),
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }
        out.write_text(
            json.dumps({"machine": machine, "clips": clips, "seconds": seconds, "encoders": found})
        )
    return 0 if all(reached) else 1


def _measure(
    dataset: Path, choices: "Choices", clips: int, loop_clips: int | None, workers: int | None, profile: bool
) -> dict[str, Any]:
    """All stages for one encoder; returns the figures."""
    from extract import bench_stages as stages
    from extract.datasets import load_dataset
    from extract.register import register
    from extract.resolve import clip_task
    from extract.workers import DecodePool, default_workers
    from store.bank import Bank

    with ExitStack() as stack:
        began = time.perf_counter()
        bank = Bank.open(dataset.parent / f"bank-{choices.encoder}", create=True)
        adapter, config = load_dataset(dataset)
        register(bank, adapter, config)
        task = clip_task(bank, config, "rgb", choices)
        jobs = stages.jobs_of(task, bank)
        pool = stack.enter_context(DecodePool(workers or default_workers()))
        _, prepared = stages.decode_only(jobs[: 2 * (workers or default_workers())], pool)
        stages.encode_only(task, prepared, 1)
        seconds = {"start": time.perf_counter() - began}

        paths = sorted(dataset.parent.glob("*.mp4"))[: clips if loop_clips is None else loop_clips]
        paths = paths if stages.has_loop(str(choices.encoder)) else []
        _say(f"{task.encoder.name}, {task.spec.precision} on {task.device}: {clips} clips")
        # Half of the loop before and half after: a machine that gets slower meanwhile favours neither.
        halves = [half for half in (paths[::2], paths[1::2]) if half]
        loop = [stages.loop(task, half, dataset.parent) for half in halves[:1]]
        whole = stages.pipeline(task, bank, pool)
        memory = stages.peak_memory_bytes()
        decode, prepared = stages.decode_only(jobs, pool)
        encode = stages.encode_only(task, prepared, clips)
        loop += [stages.loop(task, half, dataset.parent) for half in halves[1:]]
    if paths:
        stages.require_same(task, bank, paths, dataset.parent)
        seconds["loop"] = sum(loop) * clips / len(paths)
    figures = _figures(task, clips, seconds, decode, encode, whole) | {"peak_bytes": memory}
    return figures | {"left": _left(task, prepared, whole, decode) if profile else []}


def _figures(
    task: "Task", clips: int, seconds: dict[str, float], decode: "Stage", encode: "Stage", whole: "Stage"
) -> dict[str, Any]:
    """Everything that is printed and written to ``--out``."""
    on_cpu, name = task.device == "cpu", task.encoder.name.removesuffix("-random")
    limit = (decode.core_seconds + encode.core_seconds) / _cores()
    if not on_cpu:
        limit = max(decode.seconds, encode.seconds)
    ratios = [_ratio("the limit", limit / whole.seconds, LIMIT_GOAL)]
    if "loop" in seconds:
        goal = LOOP_GOALS.get(name) if on_cpu and task.spec.precision == "bf16" else None
        ratios.append(_ratio("the loop", seconds["loop"] / whole.seconds, goal))
    stages = {"decode only": decode, "encode only": encode, "pipeline": whole}
    return {
        "encoder": task.encoder.name,
        "precision": task.spec.precision,
        "device": task.device,
        "clips": clips,
        "stages": {name: vars(stage) for name, stage in stages.items()},
        "limit_seconds": limit,
        "seconds": seconds,
        "write_share": whole.parts["write"] / whole.seconds,
        "ratios": ratios,
    }


def _ratio(of: str, value: float, goal: float | None) -> dict[str, Any]:
    return {"of": of, "value": value, "goal": goal, "reached": goal is None or value >= goal}


def _left(task: "Task", prepared: "list[Any]", whole: "Stage", decode: "Stage") -> list[tuple[str, float]]:
    from extract.bench_profile import encoder_shares, what_is_left

    return what_is_left(whole, decode, encoder_shares(task, prepared), _cores())


def _print(figures: dict[str, Any]) -> None:
    clips, seconds = figures["clips"], figures["seconds"]
    title = f"{figures['encoder']}, {figures['precision']} on {figures['device']}, {clips} clips"
    print(f"\n{title}\n" + _ROW.format("", "seconds", "clips/s", "core-seconds"))
    for name, stage in figures["stages"].items():
        core = f"{stage['core_seconds']:.1f}"
        print(_ROW.format(name, f"{stage['seconds']:.1f}", f"{clips / stage['seconds']:.1f}", core))
    limit = figures["limit_seconds"]
    print(_ROW.format("limit of these stages", f"{limit:.1f}", f"{clips / limit:.1f}", ""))
    if "loop" in seconds:
        print(_ROW.format("the loop", f"{seconds['loop']:.1f}", f"{clips / seconds['loop']:.1f}", ""))
    for ratio in figures["ratios"]:
        goal = f" (goal {ratio['goal']:.2f}x): {'reached' if ratio['reached'] else 'MISSED'}"
        print(f"  pipeline: {ratio['value']:.2f}x the speed of {ratio['of']}{goal if ratio['goal'] else ''}")
    print(f"  once a command: {seconds['start']:.1f} s (register, start processes, load weights)")
    memory = f"{figures['peak_bytes'] / 1e9:.2f} GB in the main process"
    print(f"  peak memory {memory}; the writer is busy {figures['write_share']:.1%} of the time")
    _print_left(figures)


def _print_left(figures: dict[str, Any]) -> None:
    total = sum(spent for _, spent in figures["left"])
    for name, spent in figures["left"]:
        print(f"    {name:<58}{spent:>8.2f} core-s {spent / total:>7.1%}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_published(name: str) -> bool:
    """Whether an encoder's weights come from its authors, and not with an installed package."""
    from encoders import ENCODERS

    module, _, attribute = ENCODERS.get(name, ":").partition(":")
    return bool(module) and hasattr(getattr(import_module(module), attribute), "cards")


def _say(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from encoders.errors import EncoderError

    run(bench, expected=(EncoderError, OSError), prog="python -m extract.bench")
