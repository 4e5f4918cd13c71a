"""UTD-MHAD's halves: who teaches and who is scored, and what is read of their clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from evaluate.source import Clips
    from store.bank import Bank
    from store.selection import Selection

DATASET = "utd-mhad"
CLASSES = 27
# How the probe reads stored features: field, reduction, dims of them, standardisation.
READ = {
    "skeleton": ("tokens", "resample:32", slice(0, 3), "dim"),  # the movement, without the velocity
    "inertial": ("tokens", "resample:32", slice(None), "dim"),
    "depth": ("cls", "resample:8", slice(None), "clip"),
}
TEACH, SCORED = 0, 1  # the two sides of a half


@dataclass(frozen=True)
class Half:
    """Who teaches and who is scored.

    Attributes:
        name: For people.
        protocol: Of the dataset.
        train_where: SQL condition on the clips of the ``train`` part that teach; None: all of it.
        part: Part that is scored.
        where: SQL condition on its clips; None: all of them.
        groups: Column of ``clips`` whose values are held out in turn to choose a strength.
    """

    name: str
    protocol: str
    train_where: str | None = None
    part: str = "test"
    where: str | None = None
    groups: str = "subject"

    def select(self, bank: "Bank", modality: str, field: str, encoder: str) -> "tuple[Selection, Selection]":
        """Features of those who teach, and of those who are scored."""
        common: dict[str, Any] = {"encoder": encoder, "field": field, "protocol": self.protocol}
        train = bank.select(DATASET, modality, part="train", where=self.train_where, **common)
        return train, bank.select(DATASET, modality, part=self.part, where=self.where, **common)


HALVES = {
    "test": (
        Half("subjects 1 3 teach, 2 4 scored", "cross-subject"),
        Half("subjects 2 4 teach, 1 3 scored", "cross-subject-swapped"),
    ),
    # One subject teaches: its trials are held out in turn, as there is no second subject.
    "training": tuple(
        Half(
            f"subject {one} teaches, {other} scored",
            "cross-subject",
            f"subject = '{one}'",
            "train",
            f"subject = '{other}'",
            "replication",
        )
        for one, other in (("1", "3"), ("3", "1"))
    ),
}


@dataclass(frozen=True)
class Split:
    """A modality's clips of one half.

    Attributes:
        modality: Name.
        encoder: Name of the feature set.
        selections: Of those who teach, and of those who are scored.
        groups: (n,) of those who teach.
    """

    modality: str
    encoder: str
    selections: "tuple[Selection, Selection]"
    groups: np.ndarray

    @classmethod
    def of(cls, bank: "Bank", half: Half, modality: str, encoder: str | None, field: str | None) -> "Split":
        """Select a modality's clips, from the feature set that a recipe names.

        Args:
            bank: The bank.
            half: Who teaches, who is scored.
            modality: Key of ``READ``.
            encoder: The recipe's.
            field: The recipe's.

        Raises:
            EvaluateError: If a clip is on both sides.
        """
        from evaluate.source import EvaluateError

        own = READ[modality][0]
        first = bank.select(DATASET, modality, encoder=encoder, field=field or own, protocol=half.protocol)
        train, test = half.select(bank, modality, own, first.feature_set)
        shared = sorted(set(train.items) & set(test.items))
        if shared:
            raise EvaluateError(f"{half.name}: {shared[0]} is on both sides; register the dataset anew")
        return cls(modality, first.feature_set, (train, test), train.column(half.groups).astype(str))

    def stored(self) -> tuple[np.ndarray, np.ndarray, str]:
        """What the probe reads, (n, K, N, D) and (m, K, N, D), and how it is standardised."""
        _, reduce, dims, per = READ[self.modality]
        train, test = (one.materialise(reduce)[..., dims] for one in self.selections)
        return train, test, per

    def clips(self, side: int, vectors: np.ndarray) -> "Clips":
        """Vectors of the clips that ``TEACH`` or are ``SCORED``, as the other evaluations take them."""
        from evaluate.source import Clips

        own = self.selections[side]
        return Clips(self.modality, own.items, own.labels, own.column("subject"), vectors, self.encoder)

    def same_clips(self, others: "Sequence[Selection]") -> None:
        """Refuse another field or modality that holds other clips.

        Raises:
            EvaluateError: If it does: one was added later and not finished, or lacks a recording.
        """
        from evaluate.source import EvaluateError

        for one, other in zip(self.selections, others, strict=True):
            if not np.array_equal(one.items, other.items):
                raise EvaluateError(
                    f"{self.encoder}: {other.modality} {other.field.name} has {len(other)} clips, "
                    f"{one.modality} {one.field.name} has {len(one)}; "
                    f"python -m extract --dataset {DATASET} --modality {one.modality},{other.modality}"
                )

    @property
    def train_labels(self) -> np.ndarray:
        """(n,)."""
        return self.selections[TEACH].labels

    @property
    def test_labels(self) -> np.ndarray:
        """(m,)."""
        return self.selections[SCORED].labels


def class_names(bank: "Bank") -> list[str]:
    """The 27 action names by label."""
    query = """
        SELECT text FROM label_texts JOIN texts USING (text_id)
        WHERE dataset = ? AND prompt_set = 'name' ORDER BY label
    """
    names: list[str] = bank.sql(query, [DATASET])["text"].to_pylist()
    return names
