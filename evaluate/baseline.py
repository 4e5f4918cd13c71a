"""What a reader would try in five minutes on the raw sequences, and what stored features have to beat.

The sequence as the sensor gave it, resampled to a fixed length, each channel standardised, and a ridge
classifier whose strength is chosen between the training subjects (``evaluate.readout``).
"""

from collections.abc import Callable

import numpy as np

STEPS = 48
PER, CLASSIFIER = "channel", "ridge"
HIP_CENTRE = 3  # of the `joints` encoder's 20 joints


def hip_centred(sequences: np.ndarray) -> np.ndarray:
    """(n, K, 20, 3) metres -> relative to each frame's hips: where the person stands says nothing."""
    values = sequences.astype(np.float32)
    return values - values[:, :, HIP_CENTRE : HIP_CENTRE + 1]


def plain(sequences: np.ndarray) -> np.ndarray:
    """(n, K, N, D) as it is, in float32."""
    return sequences.astype(np.float32)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"skeleton": hip_centred, "inertial": plain}
