"""Thumbnails: right size and content for each modality, remade when the media changes, never half written."""

import os

import numpy as np
import pytest
from PIL import Image

from extract.thumbnails import BONES, SIDE, STRIP_FRAMES, strip_path, write_thumbnails


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture
def media(tmp_path):
    path = tmp_path / "media.bin"
    path.write_bytes(b"x")
    return path


def test_rgb_strip_shows_six_moments_in_order(tmp_path, media):
    """Frame k has brightness 10 k; the strip's parts are the middles of six equal stretches."""
    values = np.repeat(10 * np.arange(12, dtype=np.uint8), 90 * 160 * 3).reshape(12, 90, 160, 3)
    thumbnail = tmp_path / "deep" / "clip é.v1.jpg"
    assert write_thumbnails(thumbnail, "rgb", values, media)
    assert pixels(thumbnail).shape == (90, 160, 3)
    strip = pixels(strip_path(thumbnail))
    assert strip_path(thumbnail).name == "clip é.v1.strip.jpg"
    means = strip.reshape(90, STRIP_FRAMES, 160, 3).mean((0, 2, 3))
    assert np.allclose(means, [10, 30, 50, 70, 90, 110], atol=2)
    assert sorted(p.name for p in thumbnail.parent.iterdir()) == ["clip é.v1.jpg", "clip é.v1.strip.jpg"]


@pytest.mark.parametrize(
    ("shape", "size"), [((1080, 1920), (90, 160)), ((640, 64), (160, 16)), ((8, 12), (8, 12))]
)
def test_longer_side_is_at_most_160(tmp_path, media, shape, size):
    write_thumbnails(tmp_path / "a.jpg", "ir.ceiling", np.zeros((2, *shape, 3), np.uint8), media)
    assert pixels(tmp_path / "a.jpg").shape[:2] == size
    assert max(size) <= SIDE


def test_depth_near_is_bright_and_unmeasured_is_black(tmp_path, media):
    depth = np.zeros((3, 60, 90), np.uint16)
    depth[:, :, 30:60], depth[:, :, 60:] = 800, 4000
    write_thumbnails(tmp_path / "a.jpg", "depth", depth, media)
    picture = pixels(tmp_path / "a.jpg")
    unmeasured, near, far = (picture[:, k : k + 20].mean() for k in (5, 35, 65))
    assert unmeasured < 5 < far < 80 < near
    write_thumbnails(tmp_path / "b.jpg", "depth", np.zeros((1, 60, 90), np.uint16), media)
    assert pixels(tmp_path / "b.jpg").max() < 5


def test_depth_that_is_a_video_is_shown_as_it_is(tmp_path, media):
    """Drive&Act's depth: eight bits, three channels, no millimetres."""
    values = np.repeat(np.uint8([40, 200]), 24 * 32 * 3).reshape(2, 24, 32, 3)
    assert write_thumbnails(tmp_path / "a.jpg", "depth", values, media)
    strip = pixels(strip_path(tmp_path / "a.jpg"))
    assert strip.shape == (24, 64, 3)
    assert np.allclose(strip.reshape(24, 2, 32, 3).mean((0, 2, 3)), [40, 200], atol=2)


@pytest.mark.parametrize("joints", [25, 20, 17])
def test_skeletons_are_drawn_head_up_and_unseen_bodies_not_at_all(tmp_path, media, joints):
    body = np.zeros((4, 2, joints, 3), np.float32)
    body[:, 0] = np.stack(
        [np.linspace(-0.2, 0.2, joints), np.linspace(1, 0.8, joints), np.full(joints, 3)], -1
    )
    body[:, 0, 3 if joints == 25 else 0, 1] = -1.0  # a joint with one bone, far below
    write_thumbnails(tmp_path / "a.jpg", "skeleton", body, media)
    ink = pixels(tmp_path / "a.jpg").max(-1) > 120
    assert ink.any() and ink[:40].sum() > ink[80:].sum()
    body[:, 0] = 0
    write_thumbnails(tmp_path / "b.jpg", "skeleton", body, media)
    assert not (pixels(tmp_path / "b.jpg").max(-1) > 120).any()


def test_bones_name_existing_joints_and_connect_all():
    for joints, bones in BONES.items():
        reached = {0}
        for _ in bones:
            reached |= {x for bone in bones if reached & set(bone) for x in bone}
        assert reached == set(range(joints)) and len(bones) == joints - 1


@pytest.mark.parametrize("values", [np.sin(np.arange(400.0))[:, None], np.ones((1, 6)), np.arange(16000.0)])
def test_signals_are_plotted(tmp_path, media, values):
    modality = "audio" if values.ndim == 1 else "inertial"
    assert write_thumbnails(tmp_path / "a.jpg", modality, values.astype(np.float32), media)
    assert pixels(tmp_path / "a.jpg").shape == (SIDE, SIDE, 3)


def test_remade_only_when_the_media_is_newer(tmp_path, media):
    thumbnail = tmp_path / "a.jpg"
    dark, bright = np.zeros((2, 20, 20, 3), np.uint8), np.full((2, 20, 20, 3), 200, np.uint8)
    os.utime(media, (1e9, 1e9))
    assert write_thumbnails(thumbnail, "rgb", dark, media)
    assert not write_thumbnails(thumbnail, "rgb", bright, media)
    assert pixels(thumbnail).mean() < 5
    os.utime(media, (4e9, 4e9))
    assert write_thumbnails(thumbnail, "rgb", bright, media)
    assert pixels(thumbnail).mean() > 190


def test_nothing_for_text_or_no_frames(tmp_path, media):
    assert not write_thumbnails(tmp_path / "a.jpg", "text", np.array(["x"], object), media)
    assert not write_thumbnails(tmp_path / "a.jpg", "rgb", np.zeros((0, 4, 4, 3), np.uint8), media)
