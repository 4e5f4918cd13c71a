"""The joints encoder: what it takes out (place, size, facing), what it keeps, and how it fills gaps."""

import numpy as np
import pytest
import torch

from encoders.errors import EncoderError
from encoders.joints import HIP_CENTRE, JOINTS, LAYOUTS, MIRRORED, Joints
from encoders.protocols import CropBox

TIMES = np.arange(40) / 30.0
MOVEMENT, VELOCITY, POSE, RAW = (slice(3 * k, 3 * k + 3) for k in range(4))
WRIST = 10  # right


def stick_figure(frames: int = 40) -> np.ndarray:
    """(T, 1, 20, 3) metres: a standing body, 3 m away, that raises and lowers its right arm once."""
    body = np.zeros((JOINTS, 3))
    body[[0, 1, 2, 3]] = [[0, 0.7, 0], [0, 0.45, 0], [0, 0.2, 0], [0, 0, 0]]
    for side, arm, leg in ((-1, 4, 12), (1, 8, 16)):
        body[arm : arm + 4] = [[side * 0.2, 0.45 - 0.2 * k, 0] for k in range(4)]
        body[leg : leg + 4] = [[side * 0.1, -0.3 * k, 0] for k in range(4)]
    clip = np.repeat(body[None], frames, 0)
    clip[:, 9:12, 1] += 0.4 * np.sin(np.pi * np.arange(frames) / (frames - 1))[:, None]
    return (clip + np.array([0.5, 0.1, 3.0]))[:, None].astype(np.float32)


def features(clip: np.ndarray, crop: CropBox | None = None, times=None, **options) -> np.ndarray:
    times = np.arange(len(clip)) / 30.0 if times is None else times
    return Joints(**options).prepare()(clip, "skeleton", crop, times)


def turned(clip: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return clip @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)


def test_place_size_and_facing_make_no_difference_to_the_features():
    clip = stick_figure()
    plain = features(clip)[..., :9]
    for changed in (clip + np.array([1.0, -0.3, 2.0]), clip * 1.3, turned(clip, 65), turned(clip, 180) * 0.8):
        np.testing.assert_allclose(features(changed.astype(np.float32))[..., :9], plain, atol=1e-4)


def test_facing_is_kept_when_asked():
    clip = stick_figure()
    assert (
        np.abs(features(turned(clip, 65), face_camera=False) - features(clip, face_camera=False)).max() > 0.3
    )


def test_the_unit_is_the_torso_and_the_origin_the_hips():
    pose = features(stick_figure())[..., POSE]
    torso = 0.45  # shoulder centre to hip centre, 0.25 + 0.2 m
    np.testing.assert_allclose(pose[0, 0], [0, 0.7 / torso, 0], atol=1e-5)
    np.testing.assert_allclose(pose[0, 16], [0.1 / torso, 0, 0], atol=1e-5)


def test_movement_has_no_mean_and_only_what_moves_moves():
    movement = features(stick_figure())[..., MOVEMENT]
    np.testing.assert_allclose(movement.mean(0), 0, atol=1e-5)
    moving = np.abs(movement).max((0, 2)) > 0.05
    assert set(np.flatnonzero(moving)) == {9, 10, 11}


def test_velocity_is_the_slope_in_torso_lengths_a_second_whatever_the_frame_rate():
    for rate in (30.0, 15.0):
        times = np.arange(30) / rate
        clip = stick_figure(30)
        clip[:, 0, WRIST] = clip[0, 0, WRIST] + np.outer(times, [0.0, 0.45, 0.0])  # one torso length a second
        speed = features(clip, times=times)[10:20, WRIST, VELOCITY]
        np.testing.assert_allclose(speed, np.tile([0, 1, 0], (10, 1)), atol=1e-3)


def test_the_hips_row_holds_where_the_body_is():
    clip = stick_figure()
    clip[..., 0] += np.linspace(0, 0.9, len(clip), dtype=np.float32)[:, None, None]  # walks 0.9 m = 2 torsos
    hips = features(clip)[:, HIP_CENTRE, POSE]
    np.testing.assert_allclose(hips[[0, -1], 0], [-1, 1], atol=1e-4)


def test_a_mirrored_view_swaps_left_and_right():
    clip = stick_figure()
    mirrored = features(clip, CropBox(flip=True))
    moving = np.abs(mirrored[..., MOVEMENT]).max((0, 2)) > 0.05
    assert set(np.flatnonzero(moving)) == {5, 6, 7}
    back = mirrored[:, MIRRORED] * np.tile([-1, 1, 1], 4)
    np.testing.assert_allclose(back, features(clip), atol=1e-4)
    np.testing.assert_array_equal(np.array(MIRRORED)[list(MIRRORED)], np.arange(JOINTS))


def test_kinect_2_joints_become_the_same_twenty():
    clip = stick_figure()
    kinect2 = np.full((len(clip), 1, 25, 3), 9.0, np.float32)  # finger tips and thumbs elsewhere
    kinect2[:, :, list(LAYOUTS[25])] = clip
    np.testing.assert_array_equal(features(kinect2), features(clip))


@pytest.mark.parametrize("gap", [0.0, np.nan])
def test_joints_and_bodies_that_are_lost_for_a_while_are_bridged(gap):
    clip = stick_figure()
    times = np.arange(40)
    clip[:, 0, WRIST, 1] = 0.01 * times
    whole = features(clip)[..., :9]
    clip[10:15] = gap  # the body is lost
    clip[20:25, 0, WRIST] = gap  # one joint is
    filled = features(clip)[..., :9]
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[:, WRIST], whole[:, WRIST], atol=2e-2)


def test_raw_is_what_was_read_to_the_bit():
    clip = stick_figure()
    encoder = Joints()
    out = encoder.encode(torch.from_numpy(features(clip))[None])
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "tokens": (1, 40, 20, 6),
        "pose": (1, 40, 20, 3),
        "raw": (1, 40, 20, 3),
    }
    np.testing.assert_array_equal(out["raw"][0].numpy(), clip[:, 0])


def test_two_persons_are_seen_from_the_first_and_a_missing_one_is_zero():
    one = stick_figure()
    other = one + np.array([0.9, 0, 0], np.float32)  # two torso lengths to the first one's right side
    both = features(np.concatenate([one, other], 1), persons=2)
    alone = features(one, persons=2)
    assert both.shape == alone.shape == (40, 40, 12)
    np.testing.assert_allclose(both[:, :20], alone[:, :20], atol=1e-6)
    np.testing.assert_allclose(both[:, 20, POSE] - both[:, 0, POSE], np.tile([2, 0, 0], (40, 1)), atol=1e-4)
    assert not alone[:, 20:].any()
    assert Joints(persons=2).space != Joints().space


def test_one_frame_and_repeated_times_stay_finite():
    assert not features(stick_figure(40)[:1])[..., VELOCITY].any()
    repeated = features(np.repeat(stick_figure(8), 3, 0), times=np.repeat(np.arange(8), 3) / 30.0)
    assert np.isfinite(repeated).all()


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros((5, 1, 17, 3), np.float32), r"\(5, 1, 17, 3\); needed: \(T, P, 20 or 25, 3\)"),
        (np.zeros((0, 1, 20, 3), np.float32), "T >= 1"),
        (np.zeros((5, 1, 20, 3), np.float32), "no body is seen in any of the 5 frames"),
    ],
)
def test_clips_that_cannot_be_read_say_why(clip, message):
    with pytest.raises(EncoderError, match=message):
        features(clip)


def test_weights_and_persons_are_checked():
    with pytest.raises(EncoderError, match="no weights, so not 'random'"):
        Joints(weights="random")
    with pytest.raises(EncoderError, match="persons is 0"):
        Joints(persons=0)
