"""Embeddings of past steps: more columns for InfoNCE than the batch has.

MoCo (He et al. 2020, arXiv:1911.05722) keeps those of a slowly moving copy of the encoder; we keep those of
the heads themselves, as the cross-batch memory XBM does (Wang et al. 2020, arXiv:1912.06798), which found
that embeddings hardly drift over some hundred steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FACTS = ("labels", "texts", "clips")


@dataclass
class Past:
    """Columns that one direction of a pair has beside the batch's own.

    Args:
        embeddings: (K, E) unit rows of earlier steps, without gradients.
        positive: (B, K) bool, or None: none is.
        ignore: (B, K) bool.
    """

    embeddings: Tensor
    positive: Tensor | None
    ignore: Tensor


class Queue(nn.Module):
    """The last ``length`` clips' embeddings without gradients, newest first, and what is known of the clips.

    All of it is in ``state_dict``, so that a resumed run has the same columns.
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.kept: dict[str, Tensor] = {}  # modality -> (K, E)
        self.present: dict[str, Tensor] = {}  # modality -> (K,) bool
        self.facts: dict[str, Tensor] = {}  # labels, texts, clips -> (K,) int64, -1 = none

    def append(
        self,
        embeddings: Mapping[str, Tensor],
        present: Tensor | None,
        labels: Tensor | None,
        texts: Tensor | None,
        clips: Tensor,
    ) -> None:
        """Put a batch in front, and forget what is beyond ``length``; arguments as a loss has them."""
        B, device = len(clips), clips.device
        self._move(device)
        has = torch.ones(B, len(embeddings), dtype=torch.bool, device=device) if present is None else present
        none = torch.full((B,), -1, device=device)
        for place, (name, value) in enumerate(embeddings.items()):
            self._push(self.kept, name, value.detach())
            self._push(self.present, name, has[:, place])
        for name, ids in zip(FACTS, (labels, texts, clips), strict=True):
            self._push(self.facts, name, none if ids is None else ids)

    def past(self, modality: str, ids: Mapping[str, Tensor | None], rules: Mapping[str, str]) -> Past | None:
        """A modality's past as columns for rows of another; None before the first step.

        Args:
            modality: Whose past.
            ids: labels, texts and clips of the B rows, (B,) each or None.
            rules: What a past clip with the same ``labels`` or ``texts`` is: negative, ignore or positive.
        """
        if modality not in self.kept:
            return None
        self._move(known(ids["clips"]).device)
        there = self.present[modality]
        before = {name: values[there] for name, values in self.facts.items()}
        positive: Tensor | None = None
        ignore = known(ids["clips"])[:, None] == before["clips"]
        for name, rule in rules.items():
            own = ids[name]
            if own is None or rule == "negative":
                continue
            same = (own[:, None] == before[name]) & (own >= 0)[:, None]
            if rule == "ignore":
                ignore = ignore | same
            else:
                positive = same if positive is None else positive | same
        kept = self.kept[modality][there]
        return Past(kept, positive, ignore if positive is None else ignore & ~positive)

    def get_extra_state(self) -> dict[str, dict[str, Tensor]]:
        """For ``state_dict``: the tensors are never changed in place, so this stays what it is."""
        return {"kept": dict(self.kept), "present": dict(self.present), "facts": dict(self.facts)}

    def set_extra_state(self, state: Any) -> None:
        """For ``load_state_dict``."""
        self.kept, self.present, self.facts = (dict(state[name]) for name in ("kept", "present", "facts"))

    def _push(self, table: dict[str, Tensor], name: str, rows: Tensor) -> None:
        rows = rows[: self.length]
        table[name] = torch.cat([rows, table.get(name, rows[:0])[: self.length - len(rows)]])

    def _move(self, device: torch.device) -> None:
        """A state is loaded on the CPU, wherever training goes on."""
        for table in (self.kept, self.present, self.facts):
            table.update({name: values.to(device) for name, values in table.items()})


def known(clips: Tensor | None) -> Tensor:
    """The clips of a batch, which a queue cannot do without.

    Raises:
        ValueError: If the batch does not say.
    """
    if clips is None:
        raise ValueError("queue: the batch does not say which clip each row is of; give the loss `clips`")
    return clips
