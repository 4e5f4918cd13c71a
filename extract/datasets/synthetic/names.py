"""Clip names as NTU RGB+D writes them, and which clips a corpus of N has."""

import re
from dataclasses import dataclass

from extract.datasets.synthetic.actions import ACTIONS
from extract.datasets.synthetic.scene import AZIMUTHS, SETUPS
from store.errors import FrameBankError

# Performers by the official cross-subject rule of NTU RGB+D 60 (the same side in NTU RGB+D 120's).
TRAIN_PERFORMERS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
TEST_PERFORMERS = (3, 6, 7, 10, 11, 12, 20, 21, 22, 23, 24, 26, 29, 30, 32, 33, 36, 37, 39, 40)
_PERFORMERS = tuple(p for pair in zip(TRAIN_PERFORMERS, TEST_PERFORMERS, strict=True) for p in pair)
_REPLICATIONS = 2
_VIEWS = len(SETUPS) * len(AZIMUTHS) * _REPLICATIONS  # of one performer doing one action


class CorpusError(FrameBankError, ValueError):
    """A corpus that cannot be made, or not here."""


@dataclass(frozen=True)
class ClipName:
    """The five numbers of ``SsssCcccPpppRrrrAaaa``."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """In the order of the name."""
        return self.setup, self.camera, self.performer, self.replication, self.action

    def __str__(self) -> str:
        return "".join(f"{letter}{number:03d}" for letter, number in zip("SCPRA", self.numbers, strict=True))

    @classmethod
    def parse(cls, text: str) -> "ClipName":
        """The name in the text; ValueError where it is none."""
        match = re.fullmatch(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", text)
        if not match:
            raise ValueError(f"{text!r} is no NTU clip name (SsssCcccPpppRrrrAaaa)")
        return cls(*map(int, match.groups()))


def most_clips(actions: int) -> int:
    """How many clips a corpus with that many actions can have."""
    return actions * len(_PERFORMERS) * _VIEWS


def clip_names(clips: int, actions: int = len(ACTIONS)) -> list[ClipName]:
    """The names of a corpus; a smaller corpus is the beginning of a larger one.

    Actions take turns, and for each of them train and test performers do, so that every beginning is
    balanced over both; so do setups, cameras and replications within each part, lest the room give the action
    away. The first 40 x actions clips are all different performances, further ones add cameras, then setups.

    Args:
        clips: How many.
        actions: How many classes.

    Returns:
        That many different names.

    Raises:
        CorpusError: If there are not so many clips or actions, or fewer than one.
    """
    if not 2 <= actions <= len(ACTIONS):
        raise CorpusError(f"synthetic corpus: --actions is {actions}; there are 2 to {len(ACTIONS)}")
    most = most_clips(actions)
    if not 1 <= clips <= most:
        raise CorpusError(f"synthetic corpus: --clips is {clips}; {actions} actions make 1 to {most}")
    return [_name(*divmod(k, actions)) for k in range(clips)]


def _name(turn: int, action: int) -> ClipName:
    extra, turn = divmod(turn, len(_PERFORMERS))
    pair, part = divmod(turn, 2)
    # An even shift per action keeps train and test in turn.
    performer = _PERFORMERS[(turn + 6 * action) % len(_PERFORMERS)]
    # 3 cameras and 8 setups have no common divisor: 24 pairs meet all combinations.
    camera = (pair + action + part + extra) % len(AZIMUTHS)
    setup = (pair + 3 * action + 4 * part + extra // len(AZIMUTHS)) % len(SETUPS)
    replication = (pair // 2 + action + extra // (len(AZIMUTHS) * len(SETUPS))) % _REPLICATIONS
    return ClipName(tuple(SETUPS)[setup], camera + 1, performer, replication + 1, action + 1)
