"""`python -m extract.bench --profile`: which operations the encoder's core-seconds go to."""

from collections.abc import Mapping

import numpy as np
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

from extract.bench_stages import Stage
from extract.encode import BatchEncoder
from extract.task import Task

_BATCHES = 6

# Parts of an operation's name -> what it is; the first that fits. Activations that a product computes itself
# (encoders.fast_layers) count as product.
KINDS = {
    "attention": ("scaled_dot_product", "softmax", "bmm", "flash_attention"),
    "convolutions": ("conv",),
    "products: projections, MLP": ("linear", "addmm", "::mm", "matmul"),
    "norms": ("norm",),
    "activations": ("gelu", "sigmoid", "silu", "relu", "hardtanh", "clamp", "tanh"),
    "casts and copies": ("copy_", "cat", "clone", "contiguous", "index", "gather", "roll", "pad", "fill_"),
    "residual sums, normalising pixels": ("add", "sub", "mul", "div"),
}
OTHER = "other operations"


def kind_of(operation: str) -> str:
    """The kind of an ATen operation."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def encoder_shares(task: Task, prepared: list[np.ndarray]) -> dict[str, float]:
    """Kind of operation -> its share of the encoder's time, largest first; they add up to 1."""
    with BatchEncoder(task.encoder, str(task.spec.precision), task.device, task.fields, threads=1) as encoder:
        for number in range(2):
            list(encoder.add(number, prepared[0]))
        list(encoder.flush())
        everywhere = _ExperimentalConfig(profile_all_threads=True)  # the encoder has a thread of its own
        with profile(activities=_activities(task.device), experimental_config=everywhere) as profiled:
            for number in range(_BATCHES):
                list(encoder.add(number, prepared[number % len(prepared)]))
            list(encoder.flush())
    seconds: dict[str, float] = {}
    for one in profiled.key_averages():
        own = one.self_device_time_total if task.device != "cpu" else one.self_cpu_time_total
        if one.key.startswith(("aten::", "mkldnn::")):
            seconds[kind_of(one.key)] = seconds.get(kind_of(one.key), 0.0) + own
    total = sum(seconds.values()) or 1.0
    return {kind: spent / total for kind, spent in sorted(seconds.items(), key=lambda one: -one[1])}


def _activities(device: str) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]


def what_is_left(
    whole: Stage, decode: Stage, shares: Mapping[str, float], cores: int
) -> list[tuple[str, float]]:
    """Where the pipeline's core-seconds went, idle ones included: (what, core-seconds).

    The decode processes' time is split as decode-only's was, the encoder's by its shares.
    """
    rows = [("decode processes: " + name, seconds) for name, seconds in _split(whole, decode)]
    rows += [("encoder: " + kind, whole.parts["encoder"] * share) for kind, share in shares.items()]
    rows.append(("write: checksums, files, catalog", whole.parts["write"]))
    rest = whole.parts.get("rest of the main process", 0.0)
    rows.append(("main process: batches, messages, start and end", rest))
    rows.append(("idle, or other processes' time", max(0.0, cores * whole.seconds - whole.core_seconds)))
    return rows


def _split(whole: Stage, decode: Stage) -> list[tuple[str, float]]:
    spent = whole.parts["decode processes"]
    scale = min(1.0, spent / decode.core_seconds)
    rows = [(name, seconds * scale) for name, seconds in decode.parts.items()]
    return [*rows, ("thumbnails, slower than alone", spent - sum(seconds for _, seconds in rows))]
