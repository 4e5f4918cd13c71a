"""What a number rests on: stored or aligned features, aligned on which dataset, supervised by what.

A checkpoint that was told the class names (CMVRA's "ft" anchors) is no rival of one that saw pairs only, so
this goes into the detail of each metric and over each table.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate.source import Source

LABELS = "labels"
# What, of a metric's detail, says under which setting it was taken: two that differ in any of these are no
# older and newer figure of one thing.
IDENTITY = (
    "modality", "pair", "fusion", "classifiers", "experiment", "published_protocol",
    "features", "aligned_on", "part", "among", "neighbours",
    "learn_from", "learn_dataset", "shots", "epochs", "balanced", "query", "gallery", "by", "prompt_set",
    "classes", "transductive", "index", "average", "convention", "missing", "of", "over",
)  # fmt: skip


def provenance(sources: "Sequence[Source]") -> dict[str, Any]:
    """For the catalog: ``source``, ``aligned_on`` (None: raw features), ``supervision``."""
    aligned = [source.alignment for source in sources if source.alignment is not None]
    return {
        "source": " ".join(source.name for source in sources),
        "aligned_on": ", ".join(dict.fromkeys(each.config["dataset"] for each in aligned)) or None,
        "supervision": list(dict.fromkeys(told for source in sources for told in source.supervision)),
    }


def told(sources: "Sequence[Source]") -> str:
    """For people: ``raw``; ``aligned <run> on ntu; SUPERVISED: ... class names or labels of ntu``."""
    found, names = provenance(sources), " ".join(source.name for source in sources)
    elsewhere = found["aligned_on"] not in (None, sources[0].dataset)
    where = f" on {found['aligned_on']}" if elsewhere else ""
    learner = "the encoder" if found["source"].startswith("raw") else "the checkpoint"
    if LABELS in found["supervision"]:
        whose = (
            f"the class names or labels of {found['aligned_on']}"
            if elsewhere
            else "these class names or labels"
        )
        return f"{names}{where}; SUPERVISED: {learner} was trained with {whose}"
    if found["supervision"]:
        return f"{names}{where}; {learner} was supervised by {' and '.join(found['supervision'])}"
    return names + where


def kind(detail: Mapping[str, Any]) -> tuple[Any, ...]:
    """What was scored and under which setting, without which run of it."""
    source = str(detail.get("source", "")).split(" ")[0]
    return (*(detail.get(name) for name in IDENTITY), source, tuple(detail.get("supervision") or ()))


def setting(detail: Mapping[str, Any]) -> str:
    """What is not the usual about a classification, for people: ``5 shots, learnt from skeleton``."""
    modality, shots, prompts = (detail.get(name) for name in ("modality", "shots", "prompt_set"))
    among, teacher = detail.get("among", modality), detail.get("learn_from", modality)
    notes = [
        detail.get("of"),
        detail.get("fusion"),
        prompts,
        "imported classifier" if "classifiers" in detail and "fusion" not in detail else None,
        f"{shots} shots" if shots else None,
        f"{detail['neighbours']} nearest" if "neighbours" in detail else None,
        f"among {among}" if among != modality else None,
        f"learnt from {teacher}" if teacher != modality else None,
        f"learnt on {detail['learn_dataset']}" if detail.get("learn_dataset") else None,
        f"{detail['epochs']} epochs of Adam" if detail.get("epochs") else None,
        "balanced" if detail.get("balanced") else None,
        "among the part's classes" if detail.get("classes") == "part" else None,
        detail.get("over"),
    ]
    return ", ".join(str(note) for note in notes if note)
