"""A bank of generated features at full size, written as extraction writes, to be read as training reads."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

MODALITIES = ("rgb", "ir", "depth", "skeleton")
CLASSES = 60
BLOCK = 997  # clips after which the values repeat: their arithmetic is what is timed, not what they say
FIELD = "cls"


def make(folder: Path, clips: int, frames: int, dim: int) -> tuple[Bank, str, float]:
    """The bank in ``folder`` with so many clips of four modalities; what it has already is not written again.

    Returns:
        The bank, the dataset's name, and the seconds that writing took.
    """
    began = time.perf_counter()
    bank, dataset = Bank.open(folder / "bank", create=True), f"generated-{clips}x{frames}x{dim}"
    names = [f"{number:06d}" for number in range(clips)]
    labels = np.arange(clips, dtype=np.int32) % CLASSES
    bank.register(dataset, clips=pa.table({"clip_id": names, "label": labels}))
    values = np.random.default_rng(0).standard_normal((BLOCK, frames, 1, dim), np.float32)
    times = np.arange(frames, dtype=np.float32) / 6
    for place, modality in enumerate(MODALITIES):
        spec = FeatureSpec("generated", {"modality": modality, "dim": dim}, {"frames": frames})
        there = _there(bank, dataset, modality)
        with bank.writer(dataset, modality, spec, [FieldSpec(FIELD, 1, dim)]) as writer:
            for number, name in enumerate(names):
                if name not in there:
                    writer.add(name, 0, {FIELD: values[(number * (place + 1)) % BLOCK]}, times)
    return bank, dataset, time.perf_counter() - began


def _there(bank: Bank, dataset: str, modality: str) -> set[str]:
    query = "SELECT item_id FROM features JOIN feature_sets USING (set_id) WHERE dataset = ? AND modality = ?"
    return set(bank.sql(query, [dataset, modality]).column("item_id").to_pylist())
