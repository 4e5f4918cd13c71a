"""Prepared frames -> features: batches that cross clip boundaries, put back together clip by clip.

Frame encoders see batches of single frames, whichever clips they come from, so that short clips keep the
device as busy as long ones; clip encoders see batches of clips of equal length. A clip's feature does not
depend on the batch that it travelled in (up to the rounding of the device's kernels).

On a CPU several batches run side by side, one thread each: that beats one batch split over all cores, whose
threads wait for each other after every layer, the more so with decode processes on the same cores. In
bfloat16 the encoder's layers are exchanged for faster ones meanwhile (:mod:`encoders.fast_layers`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch

from encoders import fast_layers
from encoders.errors import WeightsError
from encoders.protocols import Encoder
from encoders.tokens import field_values
from store.errors import FrameBankError

_PENDING_BYTES = 256 << 20  # of clips that wait in buckets for others of their shape
# On a CPU small batches stay in its caches: 8 frames of EfficientNet-Lite0 are 2x as fast as 64.
_BATCH_FRAMES = {"cpu": 8, "cuda": 256}
_MAX_THREADS = 8  # above that Python's lock costs more than the side-by-side gains


@dataclass(frozen=True)
class Encoded:
    """A clip's features: field -> ``(T, N, D)`` float32, T = 1 for per-clip fields; or why it has none."""

    key: Any
    fields: dict[str, np.ndarray]
    error: str | None = None


@dataclass
class _Clip:
    """A clip on its way: frames not yet encoded, and the features so far, in order of time."""

    key: Any
    missing: int
    error: str | None = None
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)


@dataclass
class _Batch:
    """A batch being filled: rows of ``values`` and whose they are."""

    values: np.ndarray
    filled: int = 0
    owners: list[tuple[_Clip, int]] = field(default_factory=list)  # clip, number of its rows


@dataclass(frozen=True)
class _Computed:
    """What the encoder made of a batch, and what that took."""

    outputs: dict[str, np.ndarray]
    busy_seconds: float
    cpu_seconds: float


class BatchEncoder:
    """Runs an encoder over clips in threads of its own; use as a context manager.

    Args:
        encoder: See :class:`encoders.protocols.Encoder`.
        precision: ``fp32`` or ``bf16`` (autocast).
        device: Where the encoder runs.
        fields: Which of its fields are kept; its default ones if None.
        batch_frames: Frames in a batch; by device if None.
        threads: Batches that run side by side; by device and cores if None.

    Attributes:
        busy_seconds: Time spent in the encoder, summed over its threads.
        cpu_seconds: Processor time of those threads (their OpenMP helpers not counted).
    """

    def __init__(
        self,
        encoder: Encoder,
        precision: str,
        device: str = "cpu",
        fields: tuple[str, ...] | None = None,
        batch_frames: int | None = None,
        threads: int | None = None,
    ):
        self.encoder, self.precision = encoder, precision
        self.device = torch.device(device)
        self.fields = {name: encoder.fields[name] for name in fields or encoder.default_fields}
        self.batch_frames = batch_frames or _BATCH_FRAMES.get(self.device.type, 32)
        self.busy_seconds = self.cpu_seconds = 0.0
        if self.device.type == "cuda" and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # convolutions keep 10 bits with it, by default
        self._open: dict[Any, _Batch] = {}
        self._flying: deque[tuple[_Batch, Future[_Computed]]] = deque()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = threads or (min(cores, _MAX_THREADS) if self.device.type == "cpu" else 1)
        self._executor = ThreadPoolExecutor(
            self._threads,
            "encode",
            initializer=self._enter_thread,
            initargs=(max(1, cores // self._threads),),
        )
        self._first = True
        self._layers: ExitStack | None = None  # puts the encoder's own layers back at the end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        if self._layers is not None:
            self._layers.close()

    def _enter_thread(self, intra_op_threads: int) -> None:
        """Set up one thread for its whole life: autocast keeps its casts of the weights between batches."""
        if self.device.type == "cpu":
            torch.set_num_threads(intra_op_threads)
        # Not inference mode: its guard ends, for whatever thread runs then, when it is garbage-collected.
        if self.precision == "bf16":
            torch.autocast(self.device.type, torch.bfloat16).__enter__()

    @property
    def alone_seconds(self) -> float:
        """What encoding would have taken with the device to itself: what a stored feature saves."""
        if self.device.type != "cpu":
            return self.busy_seconds
        return self.cpu_seconds / self._threads  # busy time here includes waiting for a core

    def add(self, key: Any, values: np.ndarray) -> Iterator[Encoded]:
        """Take one clip's prepared frames ``(T, ...)`` (copied); yields the clips that are complete by now.

        Raises:
            ValueError: If there are no frames.
        """
        if not len(values):
            raise ValueError(f"encode: {key} has no frames")
        yield from (
            self._add_frames(key, values) if self.encoder.unit == "frame" else self._add_clip(key, values)
        )

    def ready(self) -> Iterator[Encoded]:
        """The clips whose last batch is done by now, without waiting."""
        while self._flying and self._flying[0][1].done():
            yield from self._land()

    def flush(self) -> Iterator[Encoded]:
        """Encode what still waits for a full batch, and wait for all."""
        for kind in list(self._open):
            yield from self._run(self._open.pop(kind))
        while self._flying:
            yield from self._land()

    def _add_frames(self, key: Any, values: np.ndarray) -> Iterator[Encoded]:
        clip, kind, position = _Clip(key, len(values)), (values.shape[1:], values.dtype), 0
        while position < len(values):
            if kind not in self._open:
                self._open[kind] = _Batch(self._buffer((self.batch_frames, *values.shape[1:]), values.dtype))
            batch = self._open[kind]
            count = min(len(values) - position, self.batch_frames - batch.filled)
            batch.values[batch.filled : batch.filled + count] = values[position : position + count]
            batch.owners.append((clip, count))
            batch.filled += count
            position += count
            if batch.filled == self.batch_frames:
                yield from self._run(self._open.pop(kind))
        yield from self.ready()

    def _add_clip(self, key: Any, values: np.ndarray) -> Iterator[Encoded]:
        kind = (values.shape, values.dtype)
        if kind not in self._open:
            clips = max(1, self.batch_frames // len(values))
            self._open[kind] = _Batch(self._buffer((clips, *values.shape), values.dtype))
        batch = self._open[kind]
        batch.values[batch.filled] = values
        batch.owners.append((_Clip(key, 1), 1))
        batch.filled += 1
        if batch.filled == len(batch.values):
            yield from self._run(self._open.pop(kind))
        while sum(batch.values.nbytes for batch in self._open.values()) > _PENDING_BYTES:
            fullest = max(self._open, key=lambda kind: self._open[kind].filled / len(self._open[kind].values))
            yield from self._run(self._open.pop(fullest))
        yield from self.ready()

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self.device.type != "cuda":
            return np.empty(shape, dtype)
        # Page-locked, so that the copy to the GPU runs beside the computation.
        return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True).numpy()

    def _run(self, batch: _Batch) -> Iterator[Encoded]:
        """Send a batch to the encoder; yields clips of older ones, and waits when too many are under way."""
        self._flying.append((batch, self._executor.submit(self._compute, batch)))
        # The first batch loads the weights: alone, since encoders need not do that under a lock.
        while len(self._flying) > (0 if self._first else self._threads):
            self._first = False
            yield from self._land()

    def _compute(self, batch: _Batch) -> _Computed:
        if self._layers is None:
            self._layers = self._exchanged_layers()
        wall, cpu = time.perf_counter(), time.thread_time()
        with torch.inference_mode():
            values = torch.from_numpy(batch.values[: batch.filled]).to(self.device, non_blocking=True)
            outputs = self.encoder.encode(values[:, None] if self.encoder.unit == "frame" else values)
            kept = {name: field_values(one, outputs).cpu().numpy() for name, one in self.fields.items()}
        return _Computed(kept, time.perf_counter() - wall, time.thread_time() - cpu)

    def _exchanged_layers(self) -> ExitStack:
        """Load the weights, and take fast layers where there are some; the first batch does so, alone."""
        stack = ExitStack()
        model = getattr(self.encoder, "model", None)
        on_cpu = self.precision == "bf16" and self.device.type == "cpu"
        if on_cpu and isinstance(model, torch.nn.Module) and fast_layers.available():
            stack.enter_context(fast_layers.fast_layers(model))
        return stack

    def _land(self) -> Iterator[Encoded]:
        batch, future = self._flying.popleft()
        try:
            computed = future.result()
        except WeightsError:
            raise
        except Exception as error:  # noqa: BLE001 - recorded, under the clips that it hits
            yield from self._blame(batch, f"{type(error).__name__}: {error}")
            return
        self.busy_seconds += computed.busy_seconds
        self.cpu_seconds += computed.cpu_seconds
        yield from self._complete(batch, computed.outputs)

    def _blame(self, batch: _Batch, error: str) -> Iterator[Encoded]:
        """Find out which clips a failed batch fails for, by encoding each clip's rows alone."""
        if len(batch.owners) == 1:
            clip, count = batch.owners[0]
            clip.error = clip.error or " ".join(error.split())
            clip.missing -= count
            if not clip.missing:
                yield Encoded(clip.key, {}, clip.error)
            return
        row = 0
        for clip, count in batch.owners:
            alone = _Batch(batch.values[row : row + count], count, [(clip, count)])
            self._flying.appendleft((alone, self._executor.submit(self._compute, alone)))
            yield from self._land()
            row += count

    def _complete(self, batch: _Batch, outputs: Mapping[str, np.ndarray]) -> Iterator[Encoded]:
        """Deal the rows of a batch out to their clips; yields the clips that have all of theirs."""
        row = 0
        for clip, count in batch.owners:
            for name, values in outputs.items():
                # frame encoder: (rows, 1, N, D) -> (count, N, D); clip encoder: (1, T, N, D) -> (T, N, D)
                clip.parts.setdefault(name, []).append(
                    values[row : row + count].reshape(-1, *values.shape[2:])
                )
            row += count
            clip.missing -= count
            if not clip.missing:
                yield Encoded(clip.key, self._joined(clip) if clip.error is None else {}, clip.error)

    def _joined(self, clip: _Clip) -> dict[str, np.ndarray]:
        """A clip's parts in order of time; the mean over its frames where a field is per clip."""
        joined = {}
        for name, parts in clip.parts.items():
            values = np.concatenate(parts) if len(parts) > 1 else parts[0]
            if self.fields[name].per_clip and self.encoder.unit == "frame":
                values = values.mean(0, dtype=np.float32, keepdims=True)
            joined[name] = values
        return joined


class DeviceError(FrameBankError, ValueError):
    """A device that this machine has not."""


def resolve_device(device: str) -> str:
    """``auto`` -> ``cuda`` if there is one, else ``cpu``; anything else as given, if it is there.

    Raises:
        DeviceError: With the devices that there are.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if device not in known:
        raise DeviceError(f"extract: no device {device!r} here; there are: {', '.join(known)}")
    return device


def default_precision(device: str, tolerates_bf16: bool) -> str:
    """What ``auto`` means here: ``bf16`` where it is native and the encoder bears it, else ``fp32``."""
    if not tolerates_bf16:
        return "fp32"
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
