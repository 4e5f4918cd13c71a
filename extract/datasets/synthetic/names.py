"""Which clips a corpus of N has: NTU RGB+D's names, in an order of which every beginning is balanced."""

from collections.abc import Iterator
from itertools import islice

from extract.datasets.ntu_names import TRAIN_PERFORMERS_60, NTUName, missing_skeletons
from extract.datasets.synthetic.actions import ACTIONS
from extract.datasets.synthetic.scene import AZIMUTHS, SETUPS
from store.errors import FrameBankError

_TRAIN = sorted(TRAIN_PERFORMERS_60)
_TEST = sorted(set(range(1, 41)) - TRAIN_PERFORMERS_60)
PERFORMERS = tuple(performer for pair in zip(_TRAIN, _TEST, strict=True) for performer in pair)
_REPLICATIONS = 2
_TAKES = len(SETUPS) * len(AZIMUTHS) * _REPLICATIONS  # of one performer doing one action


class CorpusError(FrameBankError, ValueError):
    """A corpus that cannot be made, or not here."""


def clip_names(clips: int, actions: int = len(ACTIONS)) -> list[NTUName]:
    """The names of a corpus; a smaller corpus is the beginning of a larger one.

    Actions take turns, and for each of them train and test performers do, so that every beginning is
    balanced over both; so do setups, cameras and replications within each part, lest the room give the action
    away. The first 40 x actions clips are all different performances, further ones add cameras, then setups.
    The few names whose skeletons are officially missing are left out: NTU's own rules hold unchanged.

    Args:
        clips: How many.
        actions: How many classes.

    Returns:
        That many different names.

    Raises:
        CorpusError: If there are not so many clips or actions, or too few are asked for.
    """
    if not 2 <= actions <= len(ACTIONS):
        raise CorpusError(f"synthetic corpus: --actions is {actions}; 2 to {len(ACTIONS)} are accepted")
    names = list(islice(_all_names(actions), max(clips, 0)))
    if clips < 1 or len(names) < clips:
        most = len(names) if clips > 0 else sum(1 for _ in _all_names(actions))
        raise CorpusError(f"synthetic corpus: --clips is {clips}; {actions} actions make 1 to {most}")
    return names


def _all_names(actions: int) -> Iterator[NTUName]:
    missing = missing_skeletons()
    for turn in range(len(PERFORMERS) * _TAKES):
        for action in range(actions):
            name = _name(turn, action)
            if str(name) not in missing:
                yield name


def _name(turn: int, action: int) -> NTUName:
    extra, turn = divmod(turn, len(PERFORMERS))
    pair, part = divmod(turn, 2)
    # An even shift per action keeps train and test in turn.
    performer = PERFORMERS[(turn + 6 * action) % len(PERFORMERS)]
    # 3 cameras and 8 setups have no common divisor: 24 pairs meet all combinations.
    camera = (pair + action + part + extra) % len(AZIMUTHS)
    setup = (pair + 3 * action + 4 * part + extra // len(AZIMUTHS)) % len(SETUPS)
    replication = (pair // 2 + action + extra // (len(AZIMUTHS) * len(SETUPS))) % _REPLICATIONS
    return NTUName(tuple(SETUPS)[setup], camera + 1, performer, replication + 1, action + 1)
