"""Encoders that were trained on a bank's own clips: what taught them, and that no score is taken on those.

``python -m align.mae`` and ``python -m align.end_to_end`` leave a note beside each encoder that they write,
in the run's folder: ``encoder_<modality>.json``, with the digest by which a feature set names its weights. An
encoder may have started from another one of these; what that one saw counts as well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from store.bank import Bank
    from store.selection import Selection

NOTES = "runs/*/encoder_*.json"


@dataclass(frozen=True)
class Trained:
    """One training of an encoder.

    Attributes:
        path: Its note.
        note: dataset, protocol, training, supervision, encoder, weights...
    """

    path: Path
    note: Mapping[str, Any]

    @property
    def supervision(self) -> list[str]:
        """What told it more than which media belong to one clip: captions, labels."""
        return list(self.note["supervision"])

    def rows(self) -> "pa.Table":
        """dataset, clip_id, subject, role of every clip that it saw."""
        import pyarrow.parquet as pq

        from align.checkpoint import ROWS_FILE

        return pq.read_table(self.path.parent / ROWS_FILE)

    def told(self) -> str:
        """For people."""
        training = self.note["training"]
        part = f"{self.note['protocol']}/{training['part']}" if self.note["protocol"] else "all clips"
        by = " and ".join(self.supervision) or "nothing but which media belong to one clip"
        return f"encoder trained on {training['clips']} clips of {self.note['dataset']} ({part}), by {by}"


def trainings(bank: "Bank", selection: "Selection") -> list[Trained]:
    """The trainings that a feature set's encoder went through, the last first; empty for pretrained ones."""
    known = _notes(bank.path)
    weights, found = str(selection.spec.space.get("weights", "")), list[Trained]()
    while (one := known.get(weights.partition(":")[0])) is not None and one not in found:
        found.append(one)
        weights = str(one.note["encoder"]["initial"])
    return found


def _notes(bank: Path) -> dict[str, Trained]:
    """By the digest of the weights."""
    found = {}
    for path in sorted(bank.glob(NOTES)):
        note = json.loads(path.read_text())
        if "weights" in note:
            found[str(note["weights"])] = Trained(path, note)
    return found
