"""The imu encoder: units, gravity from a turning sensor, energies without phase, rates of any kind."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from encoders.errors import EncoderError
from encoders.imu import IMU, gravity_direction

ACCELERATION, RATE, SHAKING, TURNING, GRAVITY, ANGLE = (slice(3 * k, 3 * k + 3) for k in range(6))
RAW = slice(18, 24)


def features(readings: np.ndarray, hz: float = 50.0, **options) -> np.ndarray:
    """(T, 6) -> (T, 24) of the first sensor."""
    times = np.arange(len(readings)) / hz
    return IMU(**options).prepare()(readings.astype(np.float32), "inertial", None, times)[:, 0]


def still(frames: int = 150) -> np.ndarray:
    """A sensor that lies on a table: +1 g upwards, no turning."""
    return np.tile([0.0, 0.0, 1.0, 0.0, 0.0, 0.0], (frames, 1))


def turning(degrees_a_second: float, frames: int = 150, hz: float = 50.0) -> np.ndarray:
    """A sensor that turns about its x axis at the same place, beginning level."""
    attitude = Rotation.from_rotvec(
        np.outer(np.arange(frames) / hz, [np.deg2rad(degrees_a_second), 0.0, 0.0])
    )
    up = attitude.inv().apply([0.0, 0.0, 1.0])
    return np.concatenate([up, np.tile([degrees_a_second, 0.0, 0.0], (frames, 1))], 1)


def test_a_sensor_at_rest_shows_gravity_and_nothing_else():
    found = features(still())
    np.testing.assert_allclose(found[:, ACCELERATION], np.tile([0, 0, 1], (150, 1)), atol=1e-6)
    np.testing.assert_allclose(found[:, GRAVITY], np.tile([0, 0, 1], (150, 1)), atol=1e-6)
    for part in (RATE, SHAKING, TURNING, ANGLE):
        np.testing.assert_allclose(found[:, part], 0, atol=1e-6)


def test_gravity_follows_a_sensor_that_turns_and_is_shaken():
    readings = turning(90.0)
    truth = readings[:, :3].copy()
    shake = 0.8 * np.sin(2 * np.pi * 4 * np.arange(150) / 50.0)
    readings[:, 1] += shake
    step = 1 / 50.0
    found = gravity_direction(readings[:, :3], np.deg2rad(readings[:, 3:]), step)
    angles = np.rad2deg(np.arccos(np.clip((found * truth).sum(1), -1, 1)))
    assert angles.max() < 8
    naive = readings[:, :3] / np.linalg.norm(readings[:, :3], axis=1, keepdims=True)
    assert angles.mean() < 0.3 * np.rad2deg(np.arccos(np.clip((naive * truth).sum(1), -1, 1))).mean()


def test_angle_turned_is_in_radians_and_rate_in_radians_a_second():
    found = features(turning(90.0))
    np.testing.assert_allclose(found[20:-20, RATE], np.tile([np.pi / 2, 0, 0], (110, 1)), atol=1e-3)
    turned = found[100, ANGLE][0] - found[50, ANGLE][0]  # a second: 90 degrees, less what the mean drifts
    assert 0.3 < turned <= np.pi / 2 + 1e-6
    assert np.all(np.diff(found[:, ANGLE][:, 0]) > 0)


def test_energies_do_not_show_the_phase_of_a_shake():
    times = np.arange(200) / 50.0
    waves = []
    for phase in (0.0, np.pi / 2):
        readings = still(200)
        readings[:, 0] += np.sin(2 * np.pi * 5 * times + phase)
        waves.append(features(readings))
    inner = slice(40, 160)
    assert np.abs(waves[0][inner, ACCELERATION] - waves[1][inner, ACCELERATION]).max() > 0.15
    np.testing.assert_allclose(waves[0][inner, SHAKING], waves[1][inner, SHAKING], atol=0.03)
    np.testing.assert_allclose(waves[0][inner, SHAKING][:, 0], np.sqrt(0.5), atol=0.05)


def test_features_are_those_of_the_movement_not_of_the_sampling_rate():
    def wave(hz: float) -> np.ndarray:
        times = np.arange(int(3 * hz)) / hz
        readings = still(len(times))
        readings[:, 1] += 0.5 * np.sin(2 * np.pi * times)
        readings[:, 5] = 60 * np.cos(2 * np.pi * times)
        return features(readings, hz)

    slow, fast = wave(50.0), wave(100.0)
    # The gyroscope is integrated in steps, which leaves a small difference.
    np.testing.assert_allclose(fast[::2][10:-10], slow[10:-10], atol=0.05)


def test_units_are_converted_and_do_not_change_the_space():
    readings = turning(45.0)
    metric = np.concatenate([readings[:, :3] * 9.80665, np.deg2rad(readings[:, 3:])], 1)
    options = {"acceleration_unit": "m/s2", "rate_unit": "rad/s"}
    np.testing.assert_allclose(features(metric, **options), features(readings), atol=1e-5)
    assert IMU(**options).space == IMU().space


def test_raw_holds_the_readings_in_g_and_radians_a_second():
    readings = turning(90.0)
    expected = np.concatenate([readings[:, :3], np.deg2rad(readings[:, 3:])], 1)
    np.testing.assert_allclose(features(readings)[:, RAW], expected, atol=1e-6)


def test_several_sensors_are_tokens_of_their_own():
    both = np.concatenate([turning(90.0), still()], 1).astype(np.float32)
    encoder = IMU(sensors=2)
    prepared = encoder.prepare()(both, "inertial", None, np.arange(150) / 50.0)
    out = encoder.encode(torch.from_numpy(prepared)[None])
    assert tuple(out["tokens"].shape) == (1, 150, 2, 18) and tuple(out["raw"].shape) == (1, 150, 2, 6)
    np.testing.assert_array_equal(prepared[:, 1], features(still()))


def test_one_reading_is_enough():
    assert np.isfinite(features(still(1))).all()


@pytest.mark.parametrize(
    ("readings", "message"),
    [
        (np.zeros((5, 3)), r"\(5, 3\); needed: \(T, 6\), T >= 1, for 1 sensor"),
        (np.zeros((0, 6)), "T >= 1"),
        (np.full((5, 6), np.nan), "30 readings are not finite"),
    ],
)
def test_readings_that_cannot_be_used_say_why(readings, message):
    with pytest.raises(EncoderError, match=message):
        features(readings)


def test_options_are_checked():
    with pytest.raises(EncoderError, match="acceleration_unit is 'mg'; accepted: g, m/s2"):
        IMU(acceleration_unit="mg")
    with pytest.raises(EncoderError, match="no weights, so not 'weights'"):
        IMU(weights="weights")
    with pytest.raises(EncoderError, match="sensors is 0"):
        IMU(sensors=0)
