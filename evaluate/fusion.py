"""Several modalities of the same clips side by side, every subset of them, and what a fusion of them is."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from evaluate import FUSIONS
from evaluate.source import Clips, EvaluateError
from store.errors import UnknownNameError

Kind = Literal["features", "embeddings", "log-probabilities"]
BESIDE = " + "  # between the names of modalities that are present (`rgb+depth` is one modality)


@dataclass(frozen=True)
class Joined:
    """Clips with the vectors of up to M modalities.

    Attributes:
        items: (n,) clip ids.
        labels: (n,) int64, -1 = none.
        subjects: (n,) object, None where unknown.
        vectors: Modality -> (n, D) float32, D may differ; a clip that lacks the modality has a zero row.
        present: (n, M) bool: what each clip has; at least one each.
        kind: Raw ``features``; ``embeddings`` (unit rows of one space); or ``log-probabilities`` of the
            classes, by one expert a modality or by several side by side (D = experts x C).
        fresh: Whether the vectors come from heads that never saw these clips. On the others' training clips
            the vectors are better than they will be on new clips, so weights learnt on them mislead.
        features: Modality -> what its vectors are, for people.
    """

    items: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    vectors: dict[str, np.ndarray]
    present: np.ndarray
    kind: Kind = "features"
    fresh: bool = True
    features: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def modalities(self) -> tuple[str, ...]:
        """M names, in the order of ``present``'s columns."""
        return tuple(self.vectors)

    def take(self, rows: np.ndarray) -> "Joined":
        """Some of the clips: indices, or a mask."""
        parts = {name: getattr(self, name)[rows] for name in ("items", "labels", "subjects", "present")}
        return replace(self, vectors={name: one[rows] for name, one in self.vectors.items()}, **parts)

    def labelled(self) -> "Joined":
        """The clips that have a label."""
        return self.take(np.flatnonzero(self.labels >= 0))

    def only(self, names: Iterable[str]) -> "Joined":
        """The clips as if these modalities were all there are; those that have none of them are left out."""
        kept = np.isin(self.modalities, list(names))
        present = self.present & kept
        vectors = {
            name: one if keep else np.zeros_like(one)
            for keep, (name, one) in zip(kept, self.vectors.items(), strict=True)
        }
        return replace(self, vectors=vectors, present=present).take(np.flatnonzero(present.any(axis=1)))

    def among(self, names: Sequence[str]) -> "Joined":
        """The clips as if there were no other modalities than these; those that have none are left out."""
        columns = [self.modalities.index(name) for name in names]
        vectors = {name: self.vectors[name] for name in names}
        kept = replace(self, vectors=vectors, present=self.present[:, columns])
        return kept.take(np.flatnonzero(kept.present.any(axis=1)))

    def patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each combination of modalities that some clip has: (M,) bool, and the clips' rows."""
        found, index = np.unique(self.present, axis=0, return_inverse=True)
        return [(one, np.flatnonzero(index.ravel() == place)) for place, one in enumerate(found)]


class Fusion(Protocol):
    """A classifier of clips by whatever modalities they have; made as ``Class(**options)``.

    Attributes:
        seeded: Whether the outcome depends on the seed by more than the choice of folds.
    """

    seeded: bool

    def fit(self, train: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """Learn from labelled clips of classes 0 .. ``classes`` - 1.

        Args:
            train: Clips; some may lack modalities.
            classes: C.
            seed: Of folds, order, initial weights and dropout.
            balanced: Weigh each clip's cross-entropy by :func:`class_balance` (CMVRA's ``balancedCE``).

        Raises:
            EvaluateError: If these vectors cannot be fused this way.
        """

    def scores(self, clips: Joined) -> np.ndarray:
        """(n, C) float32, higher is likelier, by the modalities that ``clips.present`` says."""

    def told(self) -> str:
        """What fitting decided, in a few words, for people."""


def join(parts: Sequence[Clips], kind: Kind = "features", fresh: bool = True) -> Joined:
    """Vectors of several modalities, modality by modality -> clip by clip, in the order of clip ids.

    Args:
        parts: One a modality; each holds the clips that have it.
        kind: See :class:`Joined`.
        fresh: See :class:`Joined`.
    """
    items = np.unique(np.concatenate([one.items.astype(str) for one in parts]))
    labels, subjects = np.full(len(items), -1, np.int64), np.full(len(items), None, object)
    present, vectors = np.zeros((len(items), len(parts)), bool), {}
    for place, one in enumerate(parts):
        rows = np.searchsorted(items, one.items.astype(str))
        labels[rows], subjects[rows], present[rows, place] = one.labels, one.subjects, True
        vectors[one.modality] = np.zeros((len(items), one.vectors.shape[1]), np.float32)
        vectors[one.modality][rows] = one.vectors
    features = {one.modality: one.features for one in parts}
    return Joined(items.astype(object), labels, subjects, vectors, present, kind, fresh, features)


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """All 2^M - 1 that are not empty, small ones first; the last is all of them."""
    sizes = range(1, len(modalities) + 1)
    return [one for size in sizes for one in itertools.combinations(modalities, size)]


def make_fusion(name: str, options: Mapping[str, Any]) -> Fusion:
    """The fusion ``name`` of ``FUSIONS``.

    Raises:
        UnknownNameError: For a name that is not there.
        OptionError: For an option that it does not have, or a value it refuses.
    """
    from align.model import build

    if name not in FUSIONS:
        raise UnknownNameError("--methods", "fusion", name, sorted(FUSIONS))
    made: Fusion = build(FUSIONS, "fusion", name, {}, options)
    return made


def class_balance(labels: np.ndarray, classes: int) -> np.ndarray:
    """(C,) float64: one over each class's count, scaled to sum 1; 0 for classes without a clip.

    CMVRA's weights of ``balancedCE`` (compute_class_weights), which has no class without a clip.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    inverse = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    return inverse / inverse.sum()


def groups_of(clips: Joined) -> np.ndarray | None:
    """(n,) what must not be torn apart by folds: subjects; None where they are unknown or only one."""
    known = all(subject is not None for subject in clips.subjects)
    return clips.subjects.astype(str) if known and len(set(clips.subjects)) > 1 else None


def require_one_width(clips: Joined, who: str) -> int:
    """D, if it is the same for all modalities.

    Raises:
        EvaluateError: If not, with what to do.
    """
    widths = {name: one.shape[1] for name, one in clips.vectors.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise EvaluateError(
            f"fuse: {who} takes vectors of one width, these have {told}; pass --checkpoint latest, "
            "or choose --methods attention, late or concat"
        )
    return next(iter(widths.values()))
