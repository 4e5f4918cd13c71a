"""`python -m evaluate knn`: classify clips by their nearest training clips; nothing is fitted."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluate.source import AUTO, Clips, EvaluateError, Source, open_sources
from store.cli import resolved

if TYPE_CHECKING:
    from evaluate.zero_shot import Classified


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
    from evaluate.records import CONFUSION_FILE, print_saved, print_table, write_file

    if neighbours < 1:
        raise EvaluateError(f"knn: --neighbours {neighbours}; 1 or more is accepted")
    sources = open_sources(bank, dataset, protocol, checkpoint, part, encoders, fields, pool)
    first = sources[0]
    if first.protocol is None:
        raise EvaluateError(
            f"{first.dataset}: knn needs a protocol with parts; the dataset's adapter gives them, "
            f"python -m extract --dataset {first.dataset} --register-only --bank {bank}"
        )
    if among is not None and first.alignment is None:
        raise EvaluateError(
            "knn: --among needs --checkpoint: raw features of two modalities are not comparable"
        )
    asked |= {"dataset": first.dataset, "protocol": first.protocol}
    rows, matrices = [], []
    with first.bank.record_run("evaluate knn", asked) as run:
        for modality in first.modalities(modalities):
            print(f"searching the neighbours of {modality}", file=sys.stderr)
            scores, row, matrix = _scored(sources, modality, among or modality, train_part, part, neighbours)
            for score in scores:
                score.record(run, "knn")
            rows.append(row)
            matrices.append(matrix)
        write_file(run, CONFUSION_FILE, matrices)
        run.used(*(selection for source in sources for selection in source.used))
    print(
        f"{first.dataset}, {first.protocol}: {neighbours} nearest of {train_part}, {part}; percent [95 %]\n"
    )
    print_table(rows)
    print_saved(sources)
    return 0


def _scored(
    sources: Sequence[Source], modality: str, among: str, train_part: str, part: str, neighbours: int
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """One modality over all checkpoints -> scores, a row to print, a confusion matrix."""
    from evaluate.records import confusion_entry, percent, share

    names = sources[0].label_names
    found, features = [], ""
    for source in sources:
        known, asked = source.clips(among, train_part), source.clips(modality, part)
        found.append(vote(known, asked, neighbours, len(names)))
        features = asked.features
    labels = found[0].labels
    chance = 1 / len(np.unique(labels))
    detail = {
        "modality": modality,
        "among": among,
        "neighbours": neighbours,
        "source": " ".join(source.name for source in sources),
        "features": features,
        "chance": chance,
        "supervision": sources[0].supervision,
    }
    top_1, top_5 = (np.stack([getattr(one, name) for one in found]) for name in ("top_1", "top_5"))
    scores = [
        share("accuracy", top_1, detail),
        share("balanced_accuracy", top_1, detail, labels),
        share("top_5_accuracy", top_5, detail | {"chance": min(1.0, 5 * chance)}),
    ]
    row: dict[str, Any] = {"modality": modality, "among": among}
    columns = ("accuracy", "balanced", "top 5")
    row |= {name: percent(score) for name, score in zip(columns, scores, strict=True)}
    row |= {"chance": f"{chance * 100:.1f}", "n": len(labels)}
    matrix = np.mean([one.confusion for one in found], axis=0)
    return scores, row, confusion_entry(matrix, names, accuracy=scores[0].value, **detail)


def vote(known: Clips, asked: Clips, neighbours: int, classes: int) -> "Classified":
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
    from evaluate.metrics import expected_confusion, top_k_hits
    from evaluate.zero_shot import Classified

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
    return Classified(labels, top_1, top_5, expected_confusion(votes, labels))
