"""`retrieve --average`: the clips of one video count as one, their mean, as Multi-SK's tests do."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluate.conventions import average_by_id
from evaluate.index import unit
from evaluate.sides import Side
from evaluate.source import EvaluateError, Source

QUERY = """
SELECT clip_id, coalesce({name}, clip_id) AS video FROM (
    SELECT clip_id, subject, camera, setup, replication, attributes FROM clips WHERE dataset = $dataset)
"""


def videos_of(source: Source, name: str) -> dict[str, str]:
    """Clip -> its value of a column of ``clips``, or of an attribute; a clip without one stands alone.

    Raises:
        EvaluateError: If no clip has a value; lists the attributes that there are.
    """
    columns = ("subject", "camera", "setup", "replication")
    value = name if name in columns else "attributes ->> $name"
    params = {"dataset": source.dataset} | ({} if name in columns else {"name": name})
    rows = source.bank.catalog.read(QUERY.format(name=value), params).to_pylist()
    if all(row["video"] == row["clip_id"] for row in rows):
        there = "SELECT DISTINCT unnest(json_keys(attributes)) AS key FROM clips WHERE dataset = ? ORDER BY 1"
        known = [*columns, *source.bank.sql(there, [source.dataset])["key"].to_pylist()]
        raise EvaluateError(
            f"retrieve: --average {name}: no clip of {source.dataset} has it; accepted: {', '.join(known)}"
        )
    return {row["clip_id"]: row["video"] for row in rows}


def averaged(side: Side, videos: Mapping[str, str]) -> Side:
    """A row a video: the mean of its clips' unit vectors, made a unit vector; its first clip's label."""
    ids = [videos[clip] for clip in side.items]
    names, means = average_by_id(ids, side.vectors, skip="")
    first = {name: row for row, name in reversed([*enumerate(ids)])}
    labels = side.labels[[first[name] for name in names]]
    return Side(side.modality, names, np.asarray(labels), unit(means), f"{side.features}, averaged")


def captions_of(captions: Mapping[str, Sequence[str]], videos: Mapping[str, str]) -> dict[str, list[str]]:
    """Video -> the captions of all its clips."""
    found: dict[str, list[str]] = {}
    for clip, several in captions.items():
        found.setdefault(videos[clip], []).extend(several)
    return found
