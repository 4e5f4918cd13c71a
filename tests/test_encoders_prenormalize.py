"""Skeletons in a frame of their own: parity with CMVRA's preparation, by hand, and what is refused."""

import numpy as np
import pytest
import torch
from golden_fixtures import cases

from encoders.errors import EncoderError
from encoders.prenormalize import (
    LEFT_SHOULDER,
    RIGHT_SHOULDER,
    SPINE_BASE,
    SPINE_MIDDLE,
    PrepareBody,
    normalise_3d,
    prenormalise,
)
from encoders.protocols import CropBox


def prepared(name: str, skeleton: torch.Tensor) -> torch.Tensor:
    kind, rest = name.split("/")
    if kind == "prenorm":
        return torch.from_numpy(prenormalise(skeleton.double().numpy()))
    layout, scale = rest.split("_scale")
    return torch.from_numpy(
        normalise_3d(skeleton.double().numpy(), layout, None if scale == "None" else float(scale))
    )


@pytest.mark.parametrize("golden", cases("skeleton_preproc_"))
def test_skeletons_are_normalised_as_by_the_original_code(golden):
    for name, skeleton in golden.part("input").items():
        golden.check(prepared(name, skeleton), name)


def body(frames: int, seed: int = 0) -> np.ndarray:
    """(T, 25, 3) metres: a body that moves, 3 m away."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.5, (1, 25, 3)) + rng.normal(0, 0.05, (frames, 25, 3))
    return joints + np.array([0.3, -0.2, 3.0])


def test_the_first_frame_stands_upright_at_the_origin_and_faces_along_x():
    out = prenormalise(body(5)[None])[0, 0]
    assert np.allclose(out[SPINE_MIDDLE], 0)
    shoulders = out[RIGHT_SHOULDER] - out[LEFT_SHOULDER]
    assert np.allclose(shoulders / np.linalg.norm(shoulders), [1, 0, 0])


def test_distances_within_the_body_are_kept_whatever_way_it_stood():
    given = body(4)
    turned = given @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] + 7.0
    for one in (given, turned):
        out = prenormalise(one[None])[0]
        height = np.linalg.norm(out[:, 3] - out[:, 12], axis=-1)
        assert np.allclose(height, np.linalg.norm(given[:, 3] - given[:, 12], axis=-1))


def test_vectors_without_length_turn_nothing_and_unseen_joints_stay_zero():
    still = np.zeros((1, 2, 25, 3))
    still[:, :, [SPINE_BASE, SPINE_MIDDLE, LEFT_SHOULDER, RIGHT_SHOULDER]] = [1.0, 2.0, 3.0]
    still[:, :, 3] = [1.0, 2.0, 4.0]
    out = prenormalise(still)
    assert np.allclose(out[0, 0, 3], [0, 0, 1])
    assert np.allclose(out[0, 0, 10], 0)
    upside_down = still.copy()
    upside_down[:, :, SPINE_BASE] = [1.0, 2.0, 4.0]  # the spine points exactly down: left as it is
    assert np.allclose(prenormalise(upside_down)[0, 0, SPINE_BASE], [0, 0, 1])


def test_the_body_that_is_seen_longest_is_followed_or_the_first():
    clip = np.stack([body(6), body(6, 1)], 1)
    clip[2:4, 0] = 0.0
    longest = PrepareBody("mark")(clip, "skeleton")
    assert np.allclose(longest, prenormalise(clip[:, 1][None])[0], atol=1e-6)
    first = PrepareBody("mark", follow="first")(clip, "skeleton")
    assert np.isnan(first).all((1, 2)).tolist() == [False, False, True, True, False, False]
    assert np.allclose(first[[0, 1, 4, 5]], prenormalise(clip[[0, 1, 4, 5], :1].swapaxes(0, 1))[0], atol=1e-6)
    # Equal bodies: the first.
    clip[:2, 1] = 0.0
    assert np.array_equal(PrepareBody("mark")(clip, "skeleton"), first, equal_nan=True)


def test_gaps_hold_the_last_pose_that_was_seen():
    clip = body(5)[:, None]
    clip[[0, 3]] = 0.0
    held = PrepareBody("hold")(clip, "skeleton")
    assert np.array_equal(held[0], held[1])
    assert np.array_equal(held[3], held[2])
    assert not np.array_equal(held[4], held[3])


def test_a_mirrored_view_is_the_other_hand():
    clip = body(4)[:, None]
    mirrored = clip * np.array([-1.0, 1.0, 1.0])
    order = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22]
    prepare = PrepareBody("mark")
    flipped = prepare(clip, "skeleton", CropBox(flip=True))
    assert np.array_equal(flipped, prepare(mirrored[:, :, order], "skeleton"))
    assert not np.allclose(flipped, prepare(clip, "skeleton"))


def test_a_clip_that_shows_nobody_is_left_alone_by_the_formulas():
    nobody = np.zeros((2, 3, 25, 3))
    assert np.array_equal(prenormalise(nobody), nobody)
    assert np.array_equal(normalise_3d(nobody[0], "DAA", 1.0), nobody[0])


def test_what_is_no_kinect_2_body_or_shows_none_is_refused():
    prepare = PrepareBody("mark", max_frames=7)
    with pytest.raises(EncoderError, match=r"no body is seen in any of the 3 frames"):
        prepare(np.zeros((3, 2, 25, 3)), "skeleton")
    with pytest.raises(EncoderError, match=r"no body is seen"):
        prepare(np.full((3, 1, 25, 3), np.nan), "skeleton")
    for shape in ((3, 1, 20, 3), (3, 25, 3), (3, 0, 25, 3)):
        with pytest.raises(EncoderError, match=r"needed: \(T, P, 25, 3\)"):
            prepare(np.ones(shape), "skeleton")
    with pytest.raises(EncoderError, match=r"8 frames; the encoder takes at most 7"):
        prepare(body(8)[:, None], "skeleton")
