"""`python -m evaluate knn`: classify clips by their nearest training clips; nothing is fitted."""

from collections.abc import Sequence

import numpy as np

from evaluate.classification import Classified, Outcome, outcome, record_and_print
from evaluate.provenance import provenance
from evaluate.source import AUTO, Clips, EvaluateError, Source, open_sources
from store.cli import resolved


def knn(
    bank: str = "bank",
    dataset: str | None = None,
    protocol: str | None = None,
    modalities: str | None = None,
    checkpoint: str | None = None,
    neighbours: int = 5,
    among: str | None = None,
    train_part: str = "train",
    part: str = "test",
    encoders: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    pool: str = AUTO,
) -> int:
    """Give each clip the class that most of its nearest training clips have (cosine; ties count as shares).

    With a checkpoint, `--among` looks for the neighbours in another modality: how well do the labelled
    skeletons tell what the inertial clips are?

    Args:
        bank: The bank's directory.
        dataset: Which dataset; may be left out if the bank has one.
        protocol: Which split; None: the only one, or cross-subject.
        modalities: With commas; None: all that have features (and, with a checkpoint, a head).
        checkpoint: run:<id>, a directory or `latest` (several with commas are averaged): search its aligned
            embeddings. None: raw features.
        neighbours: How many vote; CMVRA: 5.
        among: Modality whose training clips are searched; None: the same.
        train_part: Part whose clips are searched.
        part: Part to score.
        encoders: Modality -> feature set, where there are several.
        fields: Modality -> field of that set.
        pool: Raw features to one vector a clip: mean, cls, resample:K (order in time kept), auto.
    """
    asked = resolved(**locals())
    if neighbours < 1:
        raise EvaluateError(f"knn: --neighbours {neighbours}; 1 or more is accepted")
    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    first.require_parts("knn")
    if among is not None and first.alignment is None:
        raise EvaluateError(
            "knn: --among needs --checkpoint: raw features of two modalities are not comparable"
        )
    record_and_print(
        "knn",
        sources,
        asked,
        lambda: first.modalities(modalities),
        "searching the neighbours of",
        lambda modality: [_scored(sources, modality, among or modality, train_part, part, neighbours)],
        f"{first.dataset}, {first.protocol}: {neighbours} nearest of {train_part}, {part}",
    )
    return 0


def _scored(
    sources: Sequence[Source], modality: str, among: str, train_part: str, part: str, neighbours: int
) -> Outcome:
    """One modality over all checkpoints."""
    names = sources[0].label_names
    found, features = [], ""
    for source in sources:
        known, asked = source.clips(among, train_part), source.clips(modality, part)
        found.append(vote(known, asked, neighbours, len(names)))
        features = asked.features
    detail = {
        "modality": modality,
        "among": among,
        "neighbours": neighbours,
        "features": features,
        "chance": 1 / len(np.unique(found[0].labels)),
        **provenance(sources),
    }
    return outcome(found, names, detail, {"modality": modality, "among": among})


def vote(known: Clips, asked: Clips, neighbours: int, classes: int) -> Classified:
    """Class of the labelled clips in ``asked`` by majority of their nearest in ``known`` (unit cosine).

    Args:
        known: Labelled clips to search; those without a label are left out.
        asked: Clips to classify, of the same dims.
        neighbours: k; at most the number of known clips vote.
        classes: C.

    Raises:
        LeakageError: If a clip is on both sides.
        EvaluateError: If no clip has a label on one of the sides.
    """
    from evaluate.index import FlatIndex, unit
    from evaluate.leakage import refuse_overlap
    from evaluate.metrics import expected_confusion, sole_best, top_k_hits

    refuse_overlap("knn", known.items, asked.items, "clips to score", "use parts that share none")
    here, there = known.labels >= 0, asked.labels >= 0
    if not here.any() or not there.any():
        raise EvaluateError(
            f"knn: {here.sum()} labelled {known.modality} clips to search and {there.sum()} labelled "
            f"{asked.modality} clips to score; both are needed"
        )
    index = FlatIndex(unit(known.vectors[here]))
    _, rows = index.search(unit(asked.vectors[there]), neighbours)
    nearest, labels = known.labels[here][rows], asked.labels[there]
    votes = np.zeros((len(labels), classes), np.float32)
    np.add.at(votes, (np.arange(len(labels))[:, None], nearest), 1.0)
    # A class without a vote is never the answer, also not as one of many that share the fifth place.
    voted = votes[np.arange(len(labels)), labels] > 0
    top_1, top_5 = (top_k_hits(votes, labels, k) * voted for k in (1, 5))
    confusion = expected_confusion(votes, labels)
    return Classified(asked.items[there], labels, sole_best(votes), top_1, top_5, confusion)
