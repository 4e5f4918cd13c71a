"""A classifier learnt on one dataset and scored on another: clips of the classes that both name alike."""

from dataclasses import replace

import numpy as np

from evaluate.source import Clips, EvaluateError, Source


def elsewhere(source: Source, dataset: str, protocol: str | None = None) -> Source:
    """The same bank, checkpoint and options, but another dataset.

    Raises:
        UnknownNameError: If the bank lacks it, or it lacks the protocol.
        EvaluateError: If it is the same one.
    """
    from align.recipe import choose_dataset, choose_protocol

    name = choose_dataset(source.bank, dataset)
    if name == source.dataset:
        raise EvaluateError(f"--learn-dataset {name} is the scored dataset; leave it out, or name another")
    return replace(source, dataset=name, protocol=choose_protocol(source.bank, name, protocol))


def by_name(taught: Source, train: Clips, scored: Source, test: Clips) -> tuple[Clips, Clips]:
    """Both with the scored dataset's labels; clips of classes that only one of the datasets has lose theirs.

    Names are equal but for case, underscores and spaces. Clip ids of the other dataset get its name in front:
    equal ids of two datasets are two clips (one file that both list is ``evaluate.leakage``'s concern).

    Raises:
        EvaluateError: If no class has the same name in both.
    """
    names = {plain(name): label for label, name in enumerate(scored.label_names)}
    renamed = np.array([names.get(plain(name), -1) for name in taught.label_names] + [-1])
    labels = renamed[train.labels]  # -1 takes the last: none
    shared = set(renamed[renamed >= 0].tolist())
    if not shared:
        told = [", ".join(each.label_names[:3]) for each in (taught, scored)]
        raise EvaluateError(
            f"{taught.dataset} and {scored.dataset} have no class name in common ({told[0]}, ... against "
            f"{told[1]}, ...); a classifier passes on only between classes of one name"
        )
    items = np.array([f"{taught.dataset}: {item}" for item in train.items], object)
    kept = np.where(np.isin(test.labels, list(shared)), test.labels, -1)
    return replace(train, items=items, labels=labels), replace(test, labels=kept)


def plain(name: str) -> str:
    """``Drinking_Water`` -> ``drinking water``."""
    return " ".join(name.replace("_", " ").casefold().split())
