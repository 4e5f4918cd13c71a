"""A toy bank in UTD-MHAD's shape: all 27 actions, through the real encoders."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from encoders.imu import IMU
from encoders.joints import JOINTS, Joints
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

CLASSES = 27


def recordings(label: int, subject: int, trial: int) -> tuple[np.ndarray, np.ndarray]:
    """Skeleton (T, 1, 20, 3) and inertial (T, 6): the right hand moves in a direction of the action's own."""
    rng = np.random.default_rng([label, subject, trial])
    direction = np.random.default_rng([99, label]).normal(size=3)
    body = np.random.default_rng(7).normal(size=(JOINTS, 3)) * (1 + 0.1 * subject)
    frames = int(rng.integers(12, 18))
    wave = np.sin(np.linspace(0, np.pi, frames) * (1 + label % 3))[:, None]
    clip = np.repeat(body[None], frames, 0) + 0.02 * rng.normal(size=(frames, JOINTS, 3))
    clip[:, 10:12] += (0.4 * wave * direction)[:, None]
    motion = np.concatenate([0.5 * wave * direction + [0, 0, 1], 80 * wave * np.roll(direction, 1)], 1)
    return clip[:, None].astype(np.float32), (motion + 0.05 * rng.normal(size=motion.shape)).astype(
        np.float32
    )


def toy_bank(path: Path, subjects: tuple[int, ...] = (1, 2, 3, 4)) -> Bank:
    """All 27 actions with two trials, through the real encoders; only ``subjects`` have features."""
    keys = [
        (label, subject, trial) for label in range(CLASSES) for subject in (1, 2, 3, 4) for trial in (1, 2)
    ]
    ids = [f"a{label + 1}_s{subject}_t{trial}" for label, subject, trial in keys]
    odd = [subject % 2 == 1 for _, subject, _ in keys]
    names = [f"action {label}" for label in range(CLASSES)]
    parts = [("cross-subject", "train", "test"), ("cross-subject-swapped", "test", "train")]
    bank = Bank.open(path, create=True)
    bank.register(
        "utd-mhad",
        clips=pa.table(
            {
                "clip_id": ids,
                "label": pa.array([key[0] for key in keys], pa.int32()),
                "label_name": [names[key[0]] for key in keys],
                "subject": [str(key[1]) for key in keys],
                "replication": [str(key[2]) for key in keys],
            }
        ),
        splits=pa.table(
            {
                "protocol": [name for name, _, _ in parts for _ in ids],
                "clip_id": ids * 2,
                "part": [one if is_odd else other for _, one, other in parts for is_odd in odd],
            }
        ),
        label_texts=pa.table(
            {
                "label": pa.array(range(CLASSES), pa.int32()),
                "label_name": names,
                "prompt_set": ["name"] * CLASSES,
                "text": names,
            }
        ),
    )
    for number, encoder in enumerate((Joints(), IMU())):
        modality = encoder.modalities[0]
        fields = [FieldSpec(one.name, one.tokens, one.dim) for one in encoder.fields.values()]
        with bank.writer("utd-mhad", modality, FeatureSpec(encoder.name, encoder.space), fields) as writer:
            for key, clip in zip(keys, ids, strict=True):
                if key[1] in subjects:
                    values = recordings(*key)[number]
                    times = np.arange(len(values)) / 30.0
                    prepared = encoder.prepare()(values, modality, None, times)
                    out = {name: array[0].numpy() for name, array in encoder.encode(_batch(prepared)).items()}
                    writer.add(clip, 0, out, times.astype(np.float32))
    rng = np.random.default_rng(0)
    with bank.writer(
        TEXTS, TEXT, FeatureSpec("minilm", {"revision": 0}), [FieldSpec("embedding", 1, 16)]
    ) as w:
        for text_id in bank.add_texts(names):
            w.add(text_id, 0, {"embedding": rng.normal(size=(1, 1, 16))}, np.zeros(1, np.float32))
    return bank


def _batch(prepared: np.ndarray):
    import torch

    return torch.from_numpy(prepared)[None]
