"""NTU RGB+D's clip names, and its official protocols as rules over them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from extract.datasets.clips import DatasetError

DATA = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "ntu"
PATTERN = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")

SETUPS_60, ACTIONS_60 = 17, 60
MAXIMA = {"setup": 32, "camera": 3, "performer": 106, "replication": 2, "action": 120}

# Shahroudy et al., CVPR 2016 (NTU RGB+D, 40 performers) and Liu et al., TPAMI 2020 (NTU RGB+D 120, 106
# performers).
TRAIN_PERFORMERS_60 = frozenset({1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38})
TRAIN_PERFORMERS_120 = TRAIN_PERFORMERS_60 | frozenset(
    {45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87), 89, *range(91, 96), 97, 98, 100, 103}
)
TRAIN_CAMERAS = frozenset({2, 3})


@dataclass(frozen=True, order=True)
class NTUName:
    """The five numbers of a clip's name ``SsssCcccPpppRrrrAaaa``, each from 1."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int

    def __str__(self) -> str:
        return (
            f"S{self.setup:03d}C{self.camera:03d}P{self.performer:03d}"
            f"R{self.replication:03d}A{self.action:03d}"
        )

    @classmethod
    def find(cls, text: str) -> "NTUName | None":
        """The name that ``text`` begins with, or None."""
        match = PATTERN.match(text)
        return cls(*map(int, match.groups())) if match else None

    @classmethod
    def parse(cls, text: str) -> "NTUName":
        """The name that ``text`` is.

        Raises:
            DatasetError: If it is none, or a number is out of NTU RGB+D 120's range.
        """
        name = cls.find(text)
        if name is None or str(name) != text:
            raise DatasetError(f"{text!r} is no NTU clip name; SsssCcccPpppRrrrAaaa with five numbers is")
        name.check()
        return name

    def check(self) -> None:
        """Raises: DatasetError if a number is out of range: no class, subject or camera has it."""
        for part, most in MAXIMA.items():
            number = getattr(self, part)
            if not 1 <= number <= most:
                raise DatasetError(f"{self}: {part} {number} does not exist; NTU RGB+D has 1 to {most}")

    @property
    def in_60(self) -> bool:
        """Whether NTU RGB+D, the first 60 actions, has it."""
        return self.setup <= SETUPS_60 and self.action <= ACTIONS_60


# Protocol -> whether a clip trains. `cross-view` is official for 60 actions, `cross-setup` for 120; the
# rules apply to both. The 120-performer rule agrees with the 40-performer one on the first 40.
PROTOCOLS: dict[str, Callable[[NTUName], bool]] = {
    "cross-subject": lambda name: name.performer in TRAIN_PERFORMERS_120,
    "cross-view": lambda name: name.camera in TRAIN_CAMERAS,
    "cross-setup": lambda name: name.setup % 2 == 0,
}


@cache
def missing_skeletons() -> frozenset[str]:
    """The 535 clips (302 of them with 60 actions) whose skeletons are missing or incomplete."""
    content = yaml.safe_load((DATA / "missing-skeletons.yaml").read_text(encoding="utf-8"))
    return frozenset(content["clips"].split())
