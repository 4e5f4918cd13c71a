"""A small real bank whose modalities share a latent: what the tests of align (and evaluate) train on."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec
from store.tables import TEXT, TEXTS

CLASSES = ("wave", "kick", "clap", "sit")


@dataclass
class Toy:
    """What to make; every modality carries the same 6-dim latent of its clip.

    Args:
        clips: How many; clip i is of subject i mod ``subjects`` and class (i // subjects) mod 4.
        subjects: The first half trains, the second half tests (protocol cross-subject).
        without_depth: Every so many-th clip lacks depth; 0: none.
        revision: Of all encoders: another one is another space.
    """

    clips: int = 120
    subjects: int = 6
    without_depth: int = 5
    revision: int = 1
    modalities: tuple[str, ...] = ("skeleton", "inertial", "depth", "text")
    views: int = 1
    name: str = "toy"
    captions: bool = True
    seed: int = 0
    spaces: dict[str, int] = field(default_factory=dict)

    def spec(self, modality: str, frames: int = 0) -> FeatureSpec:
        """The configuration under which a modality is stored."""
        space = {"name": f"toy-{modality}", "revision": self.revision + self.spaces.get(modality, 0)}
        return FeatureSpec(f"toy-{modality}", space, {"frames": frames})


FIELDS = {"skeleton": (3, 4), "inertial": (1, 6), "depth": (1, 16)}


def make_bank(path: Path, toy: Toy | None = None) -> Bank:
    """Register and 'extract' a toy dataset; the features are ragged sequences whose slope is the latent."""
    toy = toy or Toy()
    bank = Bank.open(path, create=True)
    rng = np.random.default_rng(toy.seed)
    labels = np.arange(toy.clips) // toy.subjects % len(CLASSES)
    means = np.random.default_rng(99).normal(size=(len(CLASSES), 6)) * 1.5
    latent = means[labels] + 0.6 * rng.normal(size=(toy.clips, 6))
    ids = [f"{toy.name} clip/{number:04d}" for number in range(toy.clips)]
    _register(bank, toy, ids, labels)
    for modality in toy.modalities:
        if modality == TEXT:
            _write_texts(bank, toy, means)
        else:
            _write(bank, toy, modality, ids, latent, rng)
    return bank


def caption(label: int, phrasing: int) -> str:
    """One of three ways to say what a class does."""
    return ("somebody performs a {}", "{}, seen from afar", "a person: {}")[phrasing].format(CLASSES[label])


def _register(bank: Bank, toy: Toy, ids: list[str], labels: np.ndarray) -> None:
    subjects = [f"P{number % toy.subjects:03d}" for number in range(toy.clips)]
    parts = ["train" if number % toy.subjects < toy.subjects / 2 else "test" for number in range(toy.clips)]
    names = [CLASSES[label] for label in labels]
    captions = [(clip, caption(label, k)) for clip, label in zip(ids, labels, strict=True) for k in range(3)]
    bank.register(
        toy.name,
        clips=pa.table(
            {"clip_id": ids, "label": labels.astype(np.int32), "label_name": names, "subject": subjects}
        ),
        media=None,
        splits=pa.table({"protocol": ["cross-subject"] * len(ids), "clip_id": ids, "part": parts}),
        captions=pa.table(dict(zip(("clip_id", "text"), zip(*captions, strict=True), strict=True)))
        if toy.captions
        else None,
        label_texts=pa.table(
            {
                "label": pa.array(range(len(CLASSES)), pa.int32()),
                "label_name": CLASSES,
                "prompt_set": ["names"] * len(CLASSES),
                "text": CLASSES,
            }
        ),
    )


def _write(
    bank: Bank, toy: Toy, modality: str, ids: list[str], latent: np.ndarray, rng: np.random.Generator
) -> None:
    tokens, dim = FIELDS[modality]
    mix = np.random.default_rng(len(modality)).normal(size=(6, tokens * dim))
    with bank.writer(toy.name, modality, toy.spec(modality), [FieldSpec("tokens", tokens, dim)]) as writer:
        for number, clip in enumerate(ids):
            if modality == "depth" and toy.without_depth and number % toy.without_depth == 0:
                continue
            for view in range(toy.views):
                frames = int(rng.integers(8, 17))
                slope = np.linspace(-1, 1, frames)[:, None] * (latent[number] @ mix)
                values = slope + 0.2 * rng.normal(size=slope.shape) + 3
                times = np.arange(frames, dtype=np.float32) / 10
                writer.add(clip, view, {"tokens": values.reshape(frames, tokens, dim)}, times)


def _write_texts(bank: Bank, toy: Toy, means: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(6, 12))
    texts = [(text, label) for label, text in enumerate(CLASSES)]
    if toy.captions:
        texts += [(caption(label, k), label) for label in range(len(CLASSES)) for k in range(3)]
    ids = bank.add_texts([text for text, _ in texts])
    with bank.writer(TEXTS, TEXT, toy.spec(TEXT), [FieldSpec("embedding", 1, 12)]) as writer:
        for text_id, (_, label) in zip(ids, texts, strict=True):
            vector = means[label] @ mix + 0.3 * rng.normal(size=12)
            writer.add(text_id, 0, {"embedding": vector.reshape(1, 1, 12)}, np.zeros(1, np.float32))
