"""Inertial recordings without weights: smoothed signals, short-time energies and where the sensor is turned.

An accelerometer adds gravity to the movement, so its slow part says how the sensor is held and its fast part
how it is shaken. Three things that no small head finds by itself in a few hundred clips are worked out here:
the strength of shaking and turning around each moment (an action's rhythm, without its phase), the direction
of gravity in the sensor's own axes, steadied by the gyroscope (its reading turns with the sensor, which a
low-passed accelerometer follows only after the fact), and the angle turned about each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from encoders.errors import EncoderError
from encoders.protocols import CropBox, Field

CHANNELS = 6  # of one sensor: acceleration x y z, angular rate x y z
TOKEN_DIM = 18
SMOOTHING_SECONDS = 0.06  # of the signals: keeps 3 Hz movements, drops jitter
ENERGY_SECONDS = 0.12  # around each moment, over which squares are averaged
GRAVITY_SECONDS = 0.24  # what changes more slowly than this in the acceleration is counted as gravity
ANCHOR_SECONDS = 3.0  # over so long the gyroscope alone carries directions; beyond, drift would win
ACCELERATION_UNITS = {"g": 1.0, "m/s2": 1 / 9.80665}
RATE_UNITS = {"deg/s": np.pi / 180, "rad/s": 1.0}


@dataclass(frozen=True)
class PrepareIMU:
    """Readings -> features, before the batch axis.

    Attributes:
        sensors: How many sensors of six channels each stand side by side.
        acceleration_factor: From the file's unit to g.
        rate_factor: From the file's unit to radians a second.
    """

    sensors: int
    acceleration_factor: float
    rate_factor: float

    def __call__(
        self, values: np.ndarray, modality: str, crop: CropBox | None, times_seconds: np.ndarray
    ) -> np.ndarray:
        """One clip.

        Args:
            values: (T, 6 x sensors).
            modality: ``inertial``.
            crop: Of a view: its box and flip have no meaning for a worn sensor (mirroring would say that it
                sits on the other arm); its window in time has been cut already.
            times_seconds: (T,) ascending.

        Returns:
            (T, sensors, 24) float32: the features, then acceleration (g) and angular rate (rad/s).

        Raises:
            EncoderError: If the channels do not fit, or a reading is not finite.
        """
        if values.ndim != 2 or values.shape[1] != self.sensors * CHANNELS or not len(values):
            wanted = f"(T, {self.sensors * CHANNELS}), T >= 1, for {self.sensors} sensor(s)"
            raise EncoderError(f"imu: a clip of shape {values.shape}; needed: {wanted}")
        if not np.isfinite(values).all():
            raise EncoderError(f"imu: {int((~np.isfinite(values)).sum())} readings are not finite")
        step = _step_seconds(times_seconds)
        readings = values.astype(np.float64).reshape(len(values), self.sensors, 2, 3)
        acceleration = readings[:, :, 0] * self.acceleration_factor
        rate = readings[:, :, 1] * self.rate_factor
        tokens = [_described(acceleration[:, s], rate[:, s], step) for s in range(self.sensors)]
        return np.concatenate([np.stack(tokens, 1), acceleration, rate], -1).astype(np.float32)


class IMU:
    """Accelerometer and gyroscope at any rate -> one token a sensor and reading.

    ``tokens`` (D = 18, three axes each): acceleration (g) and angular rate (rad/s), smoothed; root mean
    squares around the moment of the acceleration without gravity and of the rate; direction of gravity (unit
    vector, sensor axes); angle turned (rad) relative to its mean over some seconds. ``raw`` (D = 6): the
    readings in g and rad/s, unsmoothed, for heads that learn their own filters, and for baselines.
    """

    name = "imu"
    modalities = ("inertial",)
    revision = 1
    unit: Literal["clip"] = "clip"
    sampling = {"frames": "all", "max_frames": 3000}
    default_fields = ("tokens", "raw")
    tolerates_bf16 = False

    def __init__(
        self,
        weights: str | None = None,
        device: str = "cpu",
        modality: str | None = None,
        sensors: int = 1,
        acceleration_unit: str = "g",
        rate_unit: str = "deg/s",
    ):
        if weights is not None:
            raise EncoderError(f"imu: it has no weights, so not {weights!r} either; omit --weights")
        if sensors < 1:
            raise EncoderError(f"imu: sensors is {sensors}; 1 or more is accepted")
        self.device = torch.device(device)
        self.sensors = sensors
        self.acceleration_factor = _factor(ACCELERATION_UNITS, acceleration_unit, "acceleration_unit")
        self.rate_factor = _factor(RATE_UNITS, rate_unit, "rate_unit")
        self.fields = {"tokens": Field("tokens", sensors, TOKEN_DIM), "raw": Field("raw", sensors, CHANNELS)}

    @property
    def space(self) -> dict[str, Any]:
        """Identity of the features; units are converted, so they make no difference to it."""
        return {
            "encoder": self.name,
            "revision": self.revision,
            "sensors": self.sensors,
            "smoothing_seconds": SMOOTHING_SECONDS,
            "energy_seconds": ENERGY_SECONDS,
            "gravity_seconds": GRAVITY_SECONDS,
            "anchor_seconds": ANCHOR_SECONDS,
        }

    def prepare(self) -> PrepareIMU:
        """The whole formula, for the decode workers."""
        return PrepareIMU(self.sensors, self.acceleration_factor, self.rate_factor)

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, T, sensors, 24) -> tokens (B, T, sensors, 18), raw (B, T, sensors, 6)."""
        values = batch.to(self.device, torch.float32)
        return {"tokens": values[..., :TOKEN_DIM], "raw": values[..., TOKEN_DIM:]}


def _factor(units: dict[str, float], unit: str, option: str) -> float:
    if unit not in units:
        raise EncoderError(f"imu: {option} is {unit!r}; accepted: {', '.join(units)}")
    return units[unit]


def _step_seconds(times_seconds: np.ndarray) -> float:
    """Median time between readings; a single reading counts as one of 50 a second."""
    if len(times_seconds) < 2:
        return 0.02
    return max(float(np.median(np.diff(times_seconds))), 1e-6)


def _smoothed(values: np.ndarray, seconds: float, step: float) -> np.ndarray:
    result: np.ndarray = gaussian_filter1d(values, seconds / step, axis=0, mode="nearest")
    return result


def _described(acceleration: np.ndarray, rate: np.ndarray, step: float) -> np.ndarray:
    """(T, 3) g and (T, 3) rad/s -> (T, 18)."""
    moving = acceleration - _smoothed(acceleration, GRAVITY_SECONDS, step)
    turned = np.cumsum(rate, axis=0) * step
    return np.concatenate(
        [
            _smoothed(acceleration, SMOOTHING_SECONDS, step),
            _smoothed(rate, SMOOTHING_SECONDS, step),
            np.sqrt(_smoothed(moving**2, ENERGY_SECONDS, step)),
            np.sqrt(_smoothed(rate**2, ENERGY_SECONDS, step)),
            gravity_direction(acceleration, rate, step),
            turned - _smoothed(turned, ANCHOR_SECONDS, step),
        ],
        axis=-1,
    )


def gravity_direction(acceleration: np.ndarray, rate: np.ndarray, step: float) -> np.ndarray:
    """Unit vector of what a resting accelerometer would read (up), in the sensor's axes at each moment.

    The gyroscope gives each moment's attitude relative to the first. Rotated into that common frame, the
    accelerations of the surrounding seconds are averaged, where movement cancels and gravity does not; the
    average is turned back.

    Args:
        acceleration: (T, 3) g.
        rate: (T, 3) rad/s about the sensor's own axes.
        step: Seconds between readings.

    Returns:
        (T, 3).
    """
    attitude = [Rotation.identity()]
    for turn in Rotation.from_rotvec(rate[1:] * step):
        attitude.append(attitude[-1] * turn)
    to_common = Rotation.concatenate(attitude)
    mean = _smoothed(to_common.apply(acceleration), ANCHOR_SECONDS, step)
    direction: np.ndarray = to_common.inv().apply(mean)
    return direction / np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-9)
