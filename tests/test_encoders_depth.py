"""Depth as Omnivore takes it: disparities by hand, holes that stay holes, and units that are said."""

import numpy as np
import pytest
import torch

from encoders.depth import CAMERAS, DepthCamera, Disparity, depth_camera
from encoders.errors import EncoderError
from encoders.omnivore import Omnivore
from encoders.preprocess import ImagePreprocess
from encoders.protocols import CropBox

# 0.1 m * 300 px = 30 pixel metres in frames of 40 pixels.
CAMERA = DepthCamera(focal_pixels=300.0, width_pixels=40, baseline_metres=0.1)
CENTRE = ImagePreprocess(20, "centre")
TRUE = Disparity(CENTRE, CAMERA, "true")
TRAINED = Disparity(CENTRE, CAMERA)


def _constant(millimetres: int, height: int = 20, width: int = 40) -> np.ndarray:
    return np.full((1, height, width), millimetres, np.uint16)


def _share(preprocess: Disparity, depth: np.ndarray) -> float:
    prepared = preprocess(depth, "depth")
    assert (prepared.shape, prepared.dtype) == ((1, 1, 20, 20), np.float16)
    assert prepared.max() == prepared.min()
    return float(prepared.max())


def test_disparity_is_baseline_times_focal_length_by_depth():
    assert _share(TRUE, _constant(2000)) == pytest.approx(30 / 2 / 75, rel=1e-3)
    assert _share(TRUE, _constant(300)) == 1.0  # 100 pixels: clamped to 75
    assert _share(TRUE, _constant(0)) == 0.0  # unmeasured
    # A frame twice as wide of the same view has twice the disparity in pixels.
    assert _share(TRUE, _constant(2000, 40, 80)) == pytest.approx(2 * 30 / 2 / 75, rel=1e-3)


def test_by_default_an_eighth_of_it_as_in_training():
    assert _share(TRAINED, _constant(2000)) == pytest.approx(30 / 16 / 75, rel=1e-3)
    assert _share(TRAINED, _constant(6250)) == pytest.approx(30 / 50 / 75, rel=1e-3)
    assert _share(TRAINED, _constant(9000)) == pytest.approx(30 / 50 / 75, rel=1e-3)  # the authors' far limit


def test_a_room_before_a_kinect_lies_within_what_was_trained():
    """1 m to 4 m, in standard deviations of the published statistics: only the eighths are near 0."""
    for camera in CAMERAS.values():
        ends = []
        for disparity in ("as-trained", "true"):
            preprocess = Disparity(CENTRE, camera, disparity)
            for depth in (1000, 4000):
                frame = _constant(depth, 424, camera.width_pixels)
                ends.append(float(preprocess.channel(torch.from_numpy(preprocess(frame, "depth"))).mean()))
        assert -1.3 < ends[1] < 0 < ends[0] < 1.5
        assert ends[3] > 1.5 and ends[2] > 10


def test_the_channel_is_normalised_as_published():
    shares = torch.tensor([0.0, 0.0418, 1.0]).to(torch.float16).view(1, 1, 3, 1, 1).transpose(1, 2)
    got = TRUE.channel(shares).flatten()
    nothing = (0.01 / 75 - 0.0418) / 0.0295
    wanted = torch.tensor([nothing, 0.0, (1 - 0.0418) / 0.0295])
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)
    assert got.dtype == torch.float32


def test_holes_do_not_bleed_into_their_surroundings():
    depth = _constant(2000, 40, 80)
    depth[:, :, :33] = 0  # an edge in the middle of a resized pixel
    depth[0, 20, 50] = 0  # a hole smaller than a resized pixel
    prepared = TRUE(depth, "depth")[0, 0]
    assert set(np.unique(prepared)) == {np.float16(0), prepared.max()}
    assert (prepared[10, 10:] > 0).all()  # the small hole is filled from what is around it
    bled = CENTRE((depth // 10).astype(np.uint8), "depth")
    assert len(np.unique(bled)) > 2  # what plain interpolation makes of both


def test_resized_depth_keeps_eleven_digits():
    ramp = np.linspace(1500, 3000, 80, dtype=np.uint16)
    depth = np.broadcast_to(ramp, (1, 80, 80)).copy()
    preprocess = Disparity(ImagePreprocess(40, "squash"), CAMERA, "true")
    exact = (0.1 * 300 * 80 / 40 / (depth[0, 0] / 1000.0)) / 75
    weights = np.array([1.0, 3.0, 3.0, 1.0]) / 8  # antialiased bilinear, by two
    wanted = np.convolve(exact, weights, "valid")[1::2]
    got = preprocess(depth, "depth")[0, 0, 20, 1:-1].astype(np.float64)
    assert np.abs(got / wanted - 1).max() < 2.0**-11 + 1e-6
    assert np.unique(got).size == got.size


def test_depth_is_cut_and_mirrored_like_pictures():
    depth = np.zeros((1, 48, 64), np.uint16)
    depth[:, 6:20, 8:30] = 2000
    pictures = (depth > 0).astype(np.uint8)[..., None].repeat(3, -1) * 255
    crop = CropBox(0.0, 0.1, 0.8, 0.7, flip=True)
    images = ImagePreprocess(24, "centre")
    seen = images(pictures, "rgb", crop)[:, :1] > 127
    assert np.array_equal(Disparity(images, CAMERA)(depth, "depth", crop) > 0, seen)
    assert 0 < seen.mean() < 1


def test_given_disparities_are_taken_as_pixels():
    preprocess = Disparity(CENTRE, disparity="given")
    for dtype in (np.uint8, np.uint16, np.float32):
        assert _share(preprocess, np.full((1, 20, 40), 15, dtype)) == pytest.approx(0.2, rel=1e-3)
    assert _share(preprocess, np.full((1, 20, 40, 3), 15, np.uint8)) == pytest.approx(0.2, rel=1e-3)
    assert _share(preprocess, np.full((1, 20, 40), 300.0, np.float32)) == 1.0


def test_eight_bits_are_no_millimetres():
    with pytest.raises(EncoderError, match=r"uint8 \(1, 20, 40\).*disparity='given'.*preset='cmvra'"):
        TRUE(np.zeros((1, 20, 40), np.uint8), "depth")


@pytest.mark.parametrize("camera", ["kinect", {"focal_pixels": 300}, {"focal": 300, "width_pixels": 20}, 3])
def test_an_unknown_camera_is_refused(camera):
    with pytest.raises(EncoderError, match=r"kinect-v1, .*kinect-v2"):
        depth_camera(camera)


def test_an_unknown_disparity_is_refused():
    with pytest.raises(EncoderError, match="as-trained, true, given"):
        Disparity(CENTRE, disparity="metric")  # type: ignore[arg-type]


def test_what_decides_the_features_is_in_the_space():
    def space(**options):
        return Omnivore(
            "random", modality="depth", name="omnivore-swin-b", architecture="tiny", **options
        ).space

    assert space() == space(camera="kinect-v2") == space(camera=CAMERAS["kinect-v2"])
    numbers = {"focal_pixels": 300.0, "width_pixels": 40, "baseline_metres": 0.1}
    spaces = [
        space(),
        space(camera="kinect-v1"),
        space(camera=numbers),
        space(disparity="true"),
        space(disparity="given"),
        space(preset="cmvra"),
    ]
    assert all(one != other for i, one in enumerate(spaces) for other in spaces[:i])
