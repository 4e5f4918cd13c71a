"""Phase 2: stored features -> heads that map every modality into one space of unit vectors.

The tables below are all there is to a new head or loss: one class and one line (``name -> 'module:Class'``,
imported when first used, so that ``--help`` loads no torch).
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from store.errors import UnknownNameError

if TYPE_CHECKING:
    from os import PathLike

    from align.alignment import Alignment

HEADS: dict[str, str] = {
    "identity": "align.heads:Identity",
    "linear": "align.heads:Linear",
    "mlp": "align.heads:MLP",
    "attention": "align.heads:AttentionPooling",
    "sequence": "align.temporal:Sequence",
    "conv": "align.temporal:TemporalConv",
    "transformer": "align.temporal:TemporalTransformer",
}

LOSSES: dict[str, str] = {
    "infonce": "align.losses:InfoNCE",
    "joint-nce": "align.joint_nce:JointNCE",
    "mil-nce": "align.mil_nce:MILNCE",
    "sigmoid": "align.sigmoid:Sigmoid",
    "triplet": "align.triplet:Triplet",
    "mse": "align.regression:MSE",
    "kl": "align.regression:KL",
}


def find(table: Mapping[str, str], kind: str, name: str) -> Any:
    """The class that ``name`` stands for in one of the tables.

    Raises:
        UnknownNameError: If the table has no such name; the message lists the names it has.
    """
    if name not in table:
        raise UnknownNameError("align", kind, name, sorted(table))
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def load(
    checkpoint: "str | PathLike[str]", bank: "str | PathLike[str]" = "bank", device: str = "cpu"
) -> "Alignment":
    """Trained heads from a directory, ``run:<id>`` or ``latest`` (see :func:`align.alignment.load`)."""
    from align.alignment import load as load_alignment

    return load_alignment(checkpoint, bank=bank, device=device)
