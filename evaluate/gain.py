"""`python -m evaluate gain`: one way to come by features and heads against another, clip by clip."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evaluate.source import EvaluateError, Source, open_sources
from store.cli import resolved

if TYPE_CHECKING:
    from evaluate.predictions import Predictions
    from evaluate.statistics import Interval

FEATURES, EMBEDDINGS = "features", "embeddings"


def gain(
    ours: str,
    rival: str,
    modality: str,
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    train_part: str = "train",
    part: str = "test",
) -> int:
    """Probe a modality under two sets of checkpoints, and print the difference with its 95 % interval.

    Of each checkpoint both are probed, as `evaluate probe` does: the stored features that its head takes, and
    the embeddings that the head makes of them. Clips are drawn together for both sides, checkpoints (seeds)
    of ours as well: a difference is beyond chance where its interval leaves 0 out.

    Examples:
      python -m evaluate gain run:A,run:B run:C,run:D depth

    Args:
        ours: Checkpoints with commas, one a seed: end-to-end trainings, say.
        rival: Those that they are compared with: the same recipe with the encoder frozen, say.
        modality: What is probed.
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject.
        train_part: Part to learn from.
        part: Part to score.
    """
    from evaluate.records import Score, print_table
    from evaluate.statistics import bootstrap, paired_bootstrap

    asked = resolved(**locals())
    sides = {name: open_sources(bank, dataset, protocol, name, part) for name in (ours, rival)}
    first = sides[ours][0]
    first.require_parts("a gain")
    config = {**asked, "dataset": first.dataset, "protocol": first.protocol}
    rows = []
    with first.bank.record_run("evaluate gain", config) as run:
        for kind in (FEATURES, EMBEDDINGS):
            found = _paired([_said(one, modality, kind, train_part, part) for one in sides.values()])
            scores = [("accuracy", name, bootstrap(own)) for name, own in zip(sides, found, strict=True)]
            scores.append(("gain", "difference", paired_bootstrap(found[0], found[1])))
            clips = found[0].shape[1]
            for metric, name, got in scores:
                detail = {"modality": modality, "of": kind, "source": name, "rival": rival}
                Score(metric, got.value, clips, got.low, got.high, detail).record(run, "gain")
                rows.append({"probe of": kind, "checkpoints": name, "accuracy": _percent(got, metric)})
        run.used(*(one for sources in sides.values() for source in sources for one in source.used))
    print(f"{first.place(part)}, {modality}; {clips} clips; percent [95 %]\n")
    print_table(rows)
    return 0


def _said(sources: Sequence[Source], modality: str, kind: str, train_part: str, part: str) -> "Predictions":
    """What a probe says of each clip, a row of hits a checkpoint."""
    from evaluate.probe import Lesson, probe_modality

    if kind == FEATURES:
        sources = [_features(source, modality) for source in sources]
    return probe_modality(sources, modality, Lesson(train_part, part)).predictions


def _paired(said: "Sequence[Predictions]") -> list[np.ndarray]:
    """(S, n) hits of each side, on the clips that both have."""
    first, second = (one.items.astype(str) for one in said)
    _, *places = np.intersect1d(first, second, return_indices=True)
    return [one.hits[:, rows] for one, rows in zip(said, places, strict=True)]


def _features(source: Source, modality: str) -> Source:
    """The stored features that a checkpoint's head takes, as they are."""
    assert source.alignment is not None
    taken = source.encoder(modality)
    if taken is None:
        raise EvaluateError(f"{source.name}: no {modality} features that its head takes")
    own = {modality: taken}, {modality: str(source.alignment.settings(modality)["field"])}
    return replace(source, alignment=None, encoders=own[0], fields=own[1])


def _percent(found: "Interval", metric: str) -> str:
    sign = "+" if metric == "gain" else ""
    value, low, high = (f"{100 * one:{sign}.1f}" for one in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
