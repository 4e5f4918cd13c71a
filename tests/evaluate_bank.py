"""A toy bank with a trained checkpoint, made once for all tests of evaluate; and one joint space by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from align_bank import Toy, make_bank

from align.config import AlignConfig, TrainConfig
from align.run import train
from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

QUICK = TrainConfig(epochs=12, batch=32, learning_rate=3e-3)
_made: dict[str, tuple[Bank, str]] = {}


def aligned_bank(tmp_path_factory) -> tuple[Bank, str]:
    """The shared bank, and its first checkpoint as ``run:<id>``; tests only add runs to it."""
    if "toy" not in _made:
        bank = make_bank(tmp_path_factory.mktemp("evaluate") / "bank", Toy(clips=96))
        _made["toy"] = (bank, trained(bank))
    return _made["toy"]


def trained(bank: Bank, **options) -> str:
    """Train quickly; the checkpoint as ``run:<id>``."""
    return f"run:{train(bank, AlignConfig(train=QUICK, **options)).name}"


def joint_bank(path: Path, collapsed: bool = False) -> Bank:
    """Four classes, 40 clips and class texts in one encoder's joint space (as CLIP's), without a split.

    Class k lies along axis k; clip i is of class i mod 4. Two prompt sets; ``collapsed``: one vector for all.
    """
    bank = Bank.open(path, create=True)
    names = ["wave", "kick", "clap", "sit"]
    ids = [f"c{number:02d}" for number in range(40)]
    labels = np.arange(40) % 4
    texts = [(label, name, kind, text.format(name)) for label, name in enumerate(names)
             for kind, text in (("name", "{}"), ("photo", "a photo of a {}"))]  # fmt: skip
    label, label_name, kind, text = zip(*texts, strict=True)
    bank.register(
        "joint",
        clips=pa.table(
            {"clip_id": ids, "label": labels.astype(np.int32), "label_name": [names[k] for k in labels]}
        ),
        label_texts=pa.table(
            {"label": pa.array(label, pa.int32()), "label_name": label_name, "prompt_set": kind, "text": text}
        ),
    )
    spec = FeatureSpec("clip", {"weights": "by hand"})
    field = FieldSpec("embedding", 1, 8)
    rng = np.random.default_rng(0)

    def vector(label: int, noise: float) -> np.ndarray:
        values = np.ones(8) if collapsed else np.eye(8)[label] + noise * rng.normal(size=8)
        return values.reshape(1, 1, 8)

    with bank.writer("joint", "rgb", spec, [field]) as writer:
        for clip, one in zip(ids, labels, strict=True):
            writer.add(clip, 0, {"embedding": vector(one, 0.1)}, [0.0])
    known = bank.add_texts(list(text))
    with bank.writer(TEXTS, TEXT, spec, [field]) as writer:
        for text_id, one in zip(known, label, strict=True):
            writer.add(text_id, 0, {"embedding": vector(one, 0.1)}, [0.0])
    return bank


def metrics_of(bank: Bank, command: str) -> list[dict]:
    """The metrics of the newest finished run of a command, ``detail`` parsed."""
    import json

    rows = bank.sql(
        """
        SELECT name, value, n, low, high, detail::VARCHAR AS detail FROM metrics WHERE run_id = (
            SELECT run_id FROM runs WHERE command = ? AND status = 'done'
            ORDER BY started_at DESC, run_id DESC LIMIT 1)
        """,
        [command],
    ).to_pylist()
    return [row | {"detail": json.loads(row["detail"])} for row in rows]
