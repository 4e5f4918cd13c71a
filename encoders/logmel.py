"""Sound -> log-mel spectrograms, in numpy: the filterbank and transform of librosa, and AVLnet's front end.

Sources: Slaney, Auditory Toolbox (Interval Research, 1998) for the mel scale and the filters of equal area,
as librosa has them by default; Rouditchenko et al., AVLnet (Interspeech 2021), github.com/roudimit/AVLnet,
for the front end, which rests on librosa 0.8: later versions pad with zeros where that one reflects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from encoders.errors import EncoderError
from encoders.protocols import CropBox

# Slaney's mel scale: linear below 1 kHz (one mel is 200/3 Hz), above it 27 mels for every factor of 6.4.
HZ_PER_MEL = 200.0 / 3
KNEE_HZ = 1000.0
KNEE_MEL = KNEE_HZ / HZ_PER_MEL
LOG_STEP = np.log(6.4) / 27
LEAST_POWER = 1e-10  # powers below it count as it: -100 dB
SAMPLE_TYPES = (np.float32, np.float64, np.int16)
BLOCK_FRAMES = 8192  # transformed at once: an hour of sound needs megabytes, not gigabytes


def slaney_mel(hz: float) -> float:
    """Frequency in Hz -> mel."""
    return hz / HZ_PER_MEL if hz < KNEE_HZ else KNEE_MEL + np.log(hz / KNEE_HZ) / LOG_STEP


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    """Mel -> frequency in Hz."""
    return np.where(mel < KNEE_MEL, mel * HZ_PER_MEL, KNEE_HZ * np.exp(LOG_STEP * (mel - KNEE_MEL)))


@lru_cache(maxsize=8)
def slaney_filters(rate_hz: int, fft_size: int, bins: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Triangular filters ``(bins, fft_size // 2 + 1)`` over the powers of a real transform.

    Their corners are equally far apart in mel from ``low_hz`` to ``high_hz``; each has area 1 over Hz.
    """
    corners = slaney_hz(np.linspace(slaney_mel(low_hz), slaney_mel(high_hz), bins + 2))
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    frequencies = np.arange(fft_size // 2 + 1) * (rate_hz / fft_size)
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))


def mel_power(samples: np.ndarray, window: np.ndarray, hop: int, filters: np.ndarray) -> np.ndarray:
    """Samples ``(S,)`` -> mel powers ``(1 + S // hop, bins)`` float64.

    Frame k is centred on sample ``k * hop``; beyond both ends the sound is reflected.
    """
    padded = np.pad(samples.astype(np.float64), len(window) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop]
    blocks = [
        np.abs(np.fft.rfft(frames[start : start + BLOCK_FRAMES] * window)) ** 2 @ filters.T
        for start in range(0, len(frames), BLOCK_FRAMES)
    ]
    return np.concatenate(blocks)


def decibels(power: np.ndarray) -> np.ndarray:
    """Powers -> 10 log10 of them, from -100 dB up."""
    return 10.0 * np.log10(np.maximum(power, LEAST_POWER))


def mono(values: np.ndarray, modality: str) -> np.ndarray:
    """Samples ``(S,)`` float in [-1, 1], or int16, -> float64 in [-1, 1].

    Raises:
        EncoderError: If they are something else, or there are none.
    """
    if values.ndim != 1 or not len(values) or values.dtype not in SAMPLE_TYPES:
        raise EncoderError(
            f"log-mel: {modality} is {values.dtype} {values.shape}; expected (samples,) float or int16"
        )
    return values.astype(np.float64) / (32768.0 if values.dtype == np.int16 else 1.0)


@dataclass(frozen=True)
class AvlnetLogMel:
    """AVLnet's front end, run in the decode workers: mono sound -> log-mel frames, a hundred a second.

    Mean removed, first difference with 0.97, 25 ms windows every 10 ms, 40 mel bins from 20 Hz to 8 kHz, in
    decibels below the clip's loudest bin, cut off 80 below it. The authors resampled to 16 kHz, -4 dB, into
    16-bit files; the level cancels out here, so that only the rounding to 16 bits is missing.

    Attributes:
        rate_hz: Of the samples that it is given.
        window: Samples of the transform and of its Hamming window, symmetric as scipy's function makes it.
        hop: Samples from one frame to the next.
        bins: Mel bins.
        low_hz: Where the lowest one begins; the highest ends at half the rate.
        preemphasis: The share of the sample before that is taken off.
        range_db: Between the loudest bin and the floor.
    """

    rate_hz: int = 16000
    window: int = 400
    hop: int = 160
    bins: int = 40
    low_hz: float = 20.0
    preemphasis: float = 0.97
    range_db: float = 80.0

    def space(self) -> dict[str, Any]:
        """The values that decide the features."""
        return {"front_end": "avlnet log-mel", **asdict(self), "revision": 1}

    def __call__(
        self,
        values: np.ndarray,
        modality: str,
        crop: CropBox | None = None,
        times_seconds: np.ndarray | None = None,
    ) -> np.ndarray:
        """Samples ``(S,)`` float in [-1, 1], or int16, -> ``(1 + S // hop, bins)`` float32 decibels."""
        samples = mono(values, modality)
        samples = samples - samples.mean()
        samples[1:] -= self.preemphasis * samples[:-1]
        filters = slaney_filters(self.rate_hz, self.window, self.bins, self.low_hz, self.rate_hz / 2)
        level = decibels(mel_power(samples, np.hamming(self.window), self.hop, filters))
        return np.maximum(level - level.max(), -self.range_db).astype(np.float32)


def fit_frames(frames: np.ndarray, count: int) -> np.ndarray:
    """Frames ``(T, bins)`` cut or filled up to ``count`` as AVLnet does: with zeros, the loudest level."""
    return np.pad(frames[:count], ((0, max(0, count - len(frames))), (0, 0)))
