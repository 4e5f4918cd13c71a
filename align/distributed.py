"""Several processes that train one model: torchrun's environment -> gathered rows, averaged gradients.

``torchrun --nproc_per_node 2 -m align ...``: each process (rank) embeds its own clips, gathers the embeddings
of all, and computes the whole loss L over them, so that every loss works as it is and has all negatives.
Backward through the gather sums over the W ranks, each of which has L: the own rows z_r get W dL/dz_r. The
mean of all gradients over the ranks is then

    heads:            1/W sum_r (dz_r/dw)' W dL/dz_r  =  dL/dw
    loss parameters:  1/W sum_r dL/dw                 =  dL/dw,  since each rank has the whole of it,

the gradient of one process with all the clips. Without torchrun there is one rank and no process group, and
every function here gives back what it was given.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from store.errors import FrameBankError

FAILED = "align/failed"  # counts, in the store that all ranks reach, those that ended by an error
EXIT_SILENT = 1  # of a rank that ends because another one, which says why, has failed


class DistributedError(FrameBankError):
    """Processes that cannot train together."""


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Be one of torchrun's ranks within the block: gloo on the CPU, nccl with a GPU for each rank.

    A rank that fails ends all of them: it raises its error, the others leave without a word.

    Args:
        device: Where the rank will compute: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        DistributedError: If there are fewer GPUs than ranks on this machine, or one was named for all.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    if device.startswith("cuda:"):
        raise DistributedError(
            f"torchrun: each process has a GPU of its own, not {device}; use --train.device cuda"
        )
    gpu = own_gpu() if _wants_gpu(device) else None
    store, rank, world = next(rendezvous("env://"))
    backend = "gloo" if gpu is None else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, device_id=gpu)
    try:
        yield
    except BaseException:
        if not _is_first_to_fail(store):
            raise SystemExit(EXIT_SILENT) from None
        raise
    dist.destroy_process_group()


def size() -> int:
    """W, the number of ranks; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the rank that prints, validates and writes."""
    return rank() == 0


def own_gpu() -> torch.device:
    """The GPU of this rank, made the current one.

    Raises:
        DistributedError: If there is none left for it.
    """
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= torch.cuda.device_count():
        raise DistributedError(
            f"torchrun: process {place} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; lower --nproc_per_node, or use --train.device cpu"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


class _Gather(torch.autograd.Function):
    """(B, ...) of each rank -> (W x B, ...); backward: the own rows of the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(size())[rank()]


def gather(values: Tensor) -> Tensor:
    """The rows of all ranks in the order of the ranks, with gradients: (B, ...) -> (W x B, ...).

    Args:
        values: As many rows on every rank. Numbers with gradients, or integers, or bool.
    """
    if size() == 1:
        return values
    if values.is_floating_point():
        gathered: Tensor = _Gather.apply(values)
        return gathered
    return _all(values.to(torch.int64)).to(values.dtype)


def gather_batch(
    embeddings: Mapping[str, Tensor],
    present: Tensor | None = None,
    labels: Tensor | None = None,
    texts: Tensor | None = None,
    clips: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """What a loss takes, of all ranks: W x B rows each, in the same order.

    Args:
        embeddings: Modality -> (B, E); the same modalities and B on every rank. One exchange for all.
        present: (B, M) bool, or None on every rank.
        labels: (B,) int64, likewise.
        texts: (B,) int64, likewise.
        clips: (B,) int64, likewise.
    """
    if size() == 1:
        return dict(embeddings), present, labels, texts, clips
    widths = [value.shape[1] for value in embeddings.values()]
    parts = gather(torch.cat(list(embeddings.values()), 1)).split(widths, 1)
    facts = [None if value is None else gather(value) for value in (present, labels, texts, clips)]
    return dict(zip(embeddings, parts, strict=True)), facts[0], facts[1], facts[2], facts[3]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks; the same parameters must have one on all of them."""
    if size() == 1:
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    for dtype in dict.fromkeys(value.dtype for value in gradients):
        own = [value for value in gradients if value.dtype == dtype]
        flat = torch.cat([value.flatten() for value in own])
        dist.all_reduce(flat)
        flat /= size()
        for value, mean in zip(own, flat.split([value.numel() for value in own]), strict=True):
            value.copy_(mean.view_as(value))


def from_first(*numbers: float) -> list[float]:
    """The numbers that rank 0 gives; what the others give only counts."""
    if size() == 1:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.broadcast(values, 0)
    return [float(value) for value in values]


def text_from_first(text: str) -> str:
    """The text that rank 0 gives."""
    if size() == 1:
        return text
    data = bytearray(text.encode())
    length = int(from_first(len(data))[0])
    values = torch.zeros(length, dtype=torch.uint8)
    if is_first():
        values = torch.frombuffer(data, dtype=torch.uint8)
    values = values.to(_device())
    dist.broadcast(values, 0)
    return bytes(values.tolist()).decode()


def barrier() -> None:
    """Wait for all ranks."""
    if size() > 1:
        dist.barrier()


def _all(values: Tensor) -> Tensor:
    values = values.contiguous()
    rows = values.new_empty(size(), *values.shape)
    dist.all_gather(list(rows.unbind()), values)
    return rows.flatten(0, 1)


def _device() -> torch.device:
    """Where the process group exchanges tensors."""
    gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def _wants_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _is_first_to_fail(store: dist.Store) -> bool:
    """Whether no other rank has failed before; a store that is gone went with the rank that held it."""
    try:
        return bool(store.add(FAILED, 1) == 1)
    except RuntimeError:
        return False
