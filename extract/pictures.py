"""Single frames of clips, for models that prepare pictures themselves. Decode workers load this module."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from extract.sampling import WHERE, Sampling, SamplingError


@dataclass(frozen=True)
class AtPositions(Sampling):
    """Frames at relative places of a clip: at p, the frame shown after the share p of its span.

    Of T frames at a constant rate that is frame ``int(p * T)``: CMVRA's ``T // 3`` at 1/3.

    Attributes:
        positions: From 0 to below 1, ascending; ``frames`` is their count.
    """

    positions: tuple[float, ...] = ()

    @classmethod
    def parse_positions(cls, text: str) -> "AtPositions":
        """``1/3, 0.5`` -> frames there.

        Raises:
            SamplingError: Unless all are numbers from 0 to below 1.
        """
        try:
            found = sorted({Fraction(part.strip()) for part in text.split(",")})
        except (ValueError, ZeroDivisionError):
            found = []
        if not found or found[0] < 0 or found[-1] >= 1:
            raise SamplingError(
                f"{WHERE}: positions {text!r}; accepted are numbers from 0 to below 1, as in 1/3,1/2,2/3"
            )
        return cls(frames=len(found), positions=tuple(float(one) for one in found))

    def key(self) -> dict[str, Any]:
        """See :meth:`Sampling.key`."""
        return {"positions": list(self.positions)}

    def times(self, start_seconds: float, end_seconds: float) -> np.ndarray:
        """See :meth:`Sampling.times`."""
        return start_seconds + np.asarray(self.positions) * (end_seconds - start_seconds)


class Pictures:
    """A Prepare (:mod:`encoders.protocols`) that only checks: (T, H, W, 3) uint8 stays what it is."""

    def __call__(self, values: Any, modality: str, crop: Any, times_seconds: np.ndarray) -> np.ndarray:
        """The same. Raises: ValueError: If they are no colour pictures."""
        if values.ndim != 4 or values.shape[-1] != 3 or values.dtype != np.uint8:
            raise ValueError(f"{modality}: {values.dtype} {values.shape}; (T, H, W, 3) uint8 is needed")
        return values
