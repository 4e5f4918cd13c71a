"""Fusions by linear classifiers, each solved to its optimum: late, concatenated, and of the mean embedding.

All classifiers are those of ``evaluate.logistic``, their L2 chosen with whole training groups held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.fusion import Joined, class_balance, groups_of
from evaluate.logistic import Logistic, choose_strength, fit_logistic, group_folds
from evaluate.source import EvaluateError

AUTO, EQUAL, LEARNT = "auto", "equal", "learnt"
TOWARDS_ONE = 1e-3  # penalty that keeps weights finite where the held-out clips are all told apart


class Late:
    """Weighted sum of the modalities' log-probabilities: each has a classifier of its own.

    ``sum_m w_m log p_m(c)`` over the modalities that a clip has (logarithmic opinion pool). With ``equal``
    weights it is the plain average. ``learnt`` weights, w >= 0, minimise the cross-entropy on clips that the
    classifiers did not see (whole groups held out), a convex problem; every combination of modalities that a
    clip may have has its own. One that no training clip has keeps equal weights.

    Args:
        weights: ``equal``, ``learnt``, or ``auto``: learnt where whole groups (subjects) can be held out and
            the vectors are no embeddings of a checkpoint's own training clips. Elsewhere modalities look
            better than they are, and not evenly so: a subject's other clips are easier than a new subject's.
    """

    seeded = False

    def __init__(self, weights: str = AUTO):
        if weights not in (AUTO, EQUAL, LEARNT):
            raise ValueError(f"weights: {weights!r} is unknown; accepted: {AUTO}, {EQUAL}, {LEARNT}")
        self.weights = weights
        self.experts: Experts | None = None
        self.held: Joined | None = None
        self.classes, self.balanced = 0, False
        self.modalities: tuple[str, ...] = ()
        self.known: dict[tuple[bool, ...], np.ndarray] = {}

    def fit(self, train: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """See :class:`evaluate.fusion.Fusion`."""
        self.classes, self.balanced = classes, balanced
        self.modalities, self.known = train.modalities, {}
        honest = train.fresh and groups_of(train) is not None
        learn = self.weights == LEARNT or (self.weights == AUTO and honest)
        if train.kind == "log-probabilities":
            self.experts, self.held = None, train if learn else None
            return
        self.experts = Experts.fit(train, classes, seed, balanced)
        self.held = out_of_fold(train, self.experts, seed) if learn else None

    def scores(self, clips: Joined) -> np.ndarray:
        """See :class:`evaluate.fusion.Fusion`."""
        evidence = clips if self.experts is None else self.experts.log_probabilities(clips)
        log = stacked(evidence, self.classes)
        found = np.zeros((len(clips), self.classes), np.float32)
        for pattern, rows in clips.patterns():
            found[rows] = np.tensordot(log[rows], self._weights(pattern, clips), (1, 0))
        return found

    def told(self) -> str:
        """L2 strengths, and the weights of the combinations that scores were asked for so far."""
        strengths = "" if self.experts is None else self.experts.told()
        each = " | ".join(self._weights_told(weights) for key, weights in self.known.items() if sum(key) > 1)
        return "; ".join(part for part in (strengths, f"weights {each}" if each else "") if part)

    def _weights_told(self, weights: np.ndarray) -> str:
        """``skeleton 1.2 inertial 0.8``; of several experts a modality ``skeleton 1.2/0.3``."""
        own = weights.reshape(len(self.modalities), -1)
        used = [(name, part) for name, part in zip(self.modalities, own, strict=True) if part.any()]
        return " ".join(f"{name} {'/'.join(f'{one:.2g}' for one in part)}" for name, part in used)

    def _weights(self, pattern: np.ndarray, clips: Joined) -> np.ndarray:
        """(K,) weights of all experts for clips that have these modalities; 0 for the others'."""
        key = tuple(pattern.tolist())
        if key not in self.known:
            experts = experts_of(clips, self.classes) if self.experts is None else np.ones(len(pattern), int)
            used = np.repeat(pattern, experts)
            weights = np.where(used, 1 / used.sum(), 0.0)
            if self.held is not None and used.sum() > 1:
                held = self.held.take(np.flatnonzero(self.held.present[:, pattern].all(axis=1)))
                if len(held):
                    per_clip = clip_weights(held.labels, self.classes, self.balanced)
                    log = stacked(held, self.classes)[:, used]
                    weights[used] = pooling_weights(log, held.labels, per_clip)
            self.known[key] = weights
        return self.known[key]


@dataclass(frozen=True)
class Experts:
    """A linear classifier a modality.

    Attributes:
        models: Modality -> its classifier.
        strengths: Modality -> L2 strength.
        classes: C.
        balanced: Whether classes weigh alike.
    """

    models: Mapping[str, Logistic]
    strengths: Mapping[str, float]
    classes: int
    balanced: bool

    @classmethod
    def fit(
        cls,
        train: Joined,
        classes: int,
        seed: int,
        balanced: bool,
        strengths: Mapping[str, float] | None = None,
    ) -> "Experts":
        """Fit each modality on the clips that have it.

        Args:
            train: Labelled clips.
            classes: C.
            seed: Of the folds.
            balanced: See :class:`evaluate.fusion.Fusion`.
            strengths: Of the L2 penalties; None: chosen with groups held out.

        Raises:
            EvaluateError: If no training clip has one of the modalities.
        """
        models, chosen = {}, {}
        for place, name in enumerate(train.modalities):
            own = train.take(train.present[:, place])
            if not len(own):
                raise EvaluateError(f"fuse: no labelled clip to learn from has {name}; leave it out")
            weights = clip_weights(own.labels, classes, balanced)
            features = own.vectors[name]
            if strengths is None:
                chosen[name], _ = choose_strength(
                    features, own.labels, groups_of(own), seed=seed, weights=weights
                )
            else:
                chosen[name] = strengths[name]
            models[name] = fit_logistic(features, own.labels, chosen[name], weights=weights)
        return cls(models, chosen, classes, balanced)

    def log_probabilities(self, clips: Joined) -> Joined:
        """What the classifiers say of the clips, as vectors (n, C)."""
        vectors = {}
        for place, (name, model) in enumerate(self.models.items()):
            log = log_softmax(model.scores(clips.vectors[name], self.classes))
            vectors[name] = np.where(clips.present[:, place, None], log, 0).astype(np.float32)
        return as_evidence(clips, vectors)

    def told(self) -> str:
        """The strengths, for people."""
        return "L2 " + ", ".join(f"{name} {strength:g}" for name, strength in self.strengths.items())


class Concatenated:
    """One linear classifier of the vectors side by side; what a clip lacks is the training clips' mean.

    All modalities have the same variance in it, whatever their dims.
    """

    seeded = False

    def __init__(self) -> None:
        self.means: dict[str, np.ndarray] = {}
        self.model: Logistic | None = None
        self.strength, self.classes = 0.0, 0

    def fit(self, train: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """See :class:`evaluate.fusion.Fusion`."""
        self.classes = classes
        self.means = {
            name: one[train.present[:, place]].mean(axis=0) if train.present[:, place].any() else one[0]
            for place, (name, one) in enumerate(train.vectors.items())
        }
        dims = np.array([one.shape[1] for one in train.vectors.values()])
        spread = np.repeat(dims, dims)
        self.model, self.strength = _fitted(self._joined(train), train, classes, seed, balanced, spread)

    def scores(self, clips: Joined) -> np.ndarray:
        """See :class:`evaluate.fusion.Fusion`."""
        assert self.model is not None
        return self.model.scores(self._joined(clips), self.classes)

    def told(self) -> str:
        """The L2 strength."""
        return f"L2 {self.strength:g}"

    def _joined(self, clips: Joined) -> np.ndarray:
        parts = [
            np.where(clips.present[:, place, None], one, self.means[name])
            for place, (name, one) in enumerate(clips.vectors.items())
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)


class MeanEmbedding:
    """One linear classifier of the mean embedding (scaled to length 1) of the modalities that a clip has."""

    seeded = False

    def __init__(self) -> None:
        self.model: Logistic | None = None
        self.strength, self.classes = 0.0, 0

    def fit(self, train: Joined, classes: int, seed: int = 0, balanced: bool = False) -> None:
        """See :class:`evaluate.fusion.Fusion`."""
        if train.kind != "embeddings":
            raise EvaluateError(
                f"fuse: --methods mean takes embeddings of one space, not {train.kind}; pass --checkpoint "
                "latest, without --cross-fit (there, --evidence mean)"
            )
        self.classes = classes
        self.model, self.strength = _fitted(mean_embedding(train), train, classes, seed, balanced)

    def scores(self, clips: Joined) -> np.ndarray:
        """See :class:`evaluate.fusion.Fusion`."""
        assert self.model is not None
        return self.model.scores(mean_embedding(clips), self.classes)

    def told(self) -> str:
        """The L2 strength."""
        return f"L2 {self.strength:g}"


def mean_embedding(clips: Joined) -> np.ndarray:
    """(n, E) unit mean of the embeddings that each clip has (those it lacks are zero)."""
    from evaluate.index import unit

    return unit(np.sum(list(clips.vectors.values()), axis=0))


def pooling_weights(log: np.ndarray, labels: np.ndarray, per_clip: np.ndarray) -> np.ndarray:
    """Weights of a logarithmic opinion pool: the w >= 0 that explain the labels best.

    Minimises ``sum_i a_i CE(softmax(sum_k w_k log p_ik), y_i) + TOWARDS_ONE / 2 ||w - 1||^2``, convex in w (1
    each would be right if the experts were calibrated and their errors independent).

    Args:
        log: (n, K, C) log-probabilities by K experts that did not see these clips.
        labels: (n,).
        per_clip: (n,) a, sums to 1.

    Returns:
        (K,) float64.
    """
    from scipy.optimize import minimize

    values, rows = log.astype(np.float64), np.arange(len(labels))
    truth = values[rows, :, labels]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        found = log_softmax(np.tensordot(values, weights, (1, 0)))
        loss = -per_clip @ found[rows, labels]
        expected = np.einsum("nc,nkc->nk", np.exp(found), values)
        slope = per_clip @ (expected - truth) + TOWARDS_ONE * (weights - 1)
        return float(loss + 0.5 * TOWARDS_ONE * ((weights - 1) ** 2).sum()), slope

    bounds = [(0.0, None)] * values.shape[1]
    start = np.ones(values.shape[1])
    options = {"gtol": 1e-8, "ftol": 1e-14}
    solved = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options=options)
    found: np.ndarray = solved.x
    return found


def out_of_fold(train: Joined, experts: Experts, seed: int) -> Joined:
    """Log-probabilities of the training clips, each by classifiers fitted without its group."""
    folds = group_folds(train.labels, groups_of(train), seed)
    vectors = {name: np.zeros((len(train), experts.classes), np.float32) for name in train.modalities}
    for fold in np.unique(folds):
        rest, rows = train.take(folds != fold), np.flatnonzero(folds == fold)
        fitted = Experts.fit(rest, experts.classes, seed, experts.balanced, experts.strengths)
        for name, log in fitted.log_probabilities(train.take(rows)).vectors.items():
            vectors[name][rows] = log
    return as_evidence(train, vectors)


def as_evidence(clips: Joined, vectors: dict[str, np.ndarray]) -> Joined:
    """The same clips with log-probabilities in place of their vectors."""
    from dataclasses import replace

    return replace(clips, vectors=vectors, kind="log-probabilities", fresh=True)


def experts_of(clips: Joined, classes: int) -> np.ndarray:
    """(M,) how many experts speak for each modality."""
    return np.array([one.shape[1] // classes for one in clips.vectors.values()])


def stacked(evidence: Joined, classes: int) -> np.ndarray:
    """Log-probabilities (n, K, C) of all K experts, modality by modality."""
    parts = [one.reshape(len(evidence), -1, classes) for one in evidence.vectors.values()]
    return np.concatenate(parts, axis=1)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """(n, C) -> log-probabilities."""
    from scipy.special import log_softmax as by_row

    found: np.ndarray = by_row(scores, axis=1)
    return found


def clip_weights(labels: np.ndarray, classes: int, balanced: bool) -> np.ndarray:
    """(n,) weights of the clips' cross-entropies, which sum to 1: equal, or equal in sum for each class."""
    weights = class_balance(labels, classes)[labels] if balanced else np.ones(len(labels))
    return weights / weights.sum()


def _fitted(
    features: np.ndarray,
    train: Joined,
    classes: int,
    seed: int,
    balanced: bool,
    spread: np.ndarray | None = None,
) -> tuple[Logistic, float]:
    more: Any = {"weights": clip_weights(train.labels, classes, balanced), "spread": spread}
    strength, _ = choose_strength(features, train.labels, groups_of(train), seed=seed, **more)
    return fit_logistic(features, train.labels, strength, **more), strength
