"""What was said about each clip, kept in the run's folder: whatever is averaged later needs no features.

``predictions.parquet`` has a row a clip, model (checkpoint or draw) and setting:

    SELECT clip_id, label, guess FROM read_parquet('bank/runs/<run>/predictions.parquet') WHERE hit < 0.5
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

PREDICTIONS_FILE = "predictions.parquet"
TIED = -1  # as a guess: several classes score best
SCHEMA = pa.schema(
    [
        ("detail", pa.dictionary(pa.int32(), pa.string())),  # JSON: what was scored, as in the metrics
        ("model", pa.int32()),
        ("clip_id", pa.string()),
        ("label", pa.int32()),
        ("guess", pa.int32()),
        ("hit", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Predictions:
    """One setting: a modality with its features, checkpoints and options.

    Attributes:
        detail: What was scored, as in the metrics.
        items: (n,) clip ids.
        labels: (n,) true classes.
        guesses: (S, n) predicted classes, a row a model; ``TIED`` where several score best.
        hits: (S, n) probability that the prediction is right (ties fairly).
    """

    detail: Mapping[str, Any]
    items: np.ndarray
    labels: np.ndarray
    guesses: np.ndarray
    hits: np.ndarray

    def __post_init__(self) -> None:
        shapes = [np.shape(each) for each in (self.items, self.labels, self.guesses, self.hits)]
        models, clips = np.shape(self.hits)
        if shapes != [(clips,), (clips,), (models, clips), (models, clips)]:
            raise ValueError(f"Predictions: items, labels, guesses and hits have shapes {shapes}")

    def table(self) -> pa.Table:
        """In the columns of ``SCHEMA``, model by model."""
        models, clips = self.hits.shape
        told = pa.DictionaryArray.from_arrays(
            np.zeros(models * clips, np.int32), [json.dumps(self.detail, sort_keys=True)]
        )
        columns = [
            told,
            np.repeat(np.arange(models, dtype=np.int32), clips),
            pa.array(np.tile(self.items, models), pa.string()),
            np.tile(self.labels, models).astype(np.int32),
            self.guesses.reshape(-1).astype(np.int32),
            self.hits.reshape(-1).astype(np.float32),
        ]
        return pa.table(columns, schema=SCHEMA)


def write_predictions(folder: Path, found: Sequence[Predictions]) -> None:
    """Into a run's folder."""
    import pyarrow.parquet as pq

    tables = pa.concat_tables([each.table() for each in found]).unify_dictionaries()
    pq.write_table(tables, folder / PREDICTIONS_FILE)


def read_predictions(folder: Path) -> list[Predictions]:
    """What :func:`write_predictions` left in a run's folder; empty where it left nothing."""
    import pyarrow.parquet as pq

    if not (folder / PREDICTIONS_FILE).exists():
        return []
    table = pq.read_table(folder / PREDICTIONS_FILE)
    told = table["detail"].combine_chunks()
    codes, found = told.indices.to_numpy(), []
    for code, detail in enumerate(told.dictionary.to_pylist()):
        rows = table.take(np.flatnonzero(codes == code))
        models = 1 + int(rows["model"].to_numpy().max())
        columns = {
            name: rows[name].to_numpy().reshape(models, -1) for name in ("clip_id", "label", "guess", "hit")
        }
        found.append(
            Predictions(
                json.loads(detail),
                columns["clip_id"][0],
                columns["label"][0].astype(np.int64),
                columns["guess"].astype(np.int64),
                columns["hit"].astype(np.float64),
            )
        )
    return found
