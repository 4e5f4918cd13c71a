"""Readers of image folders, depth maps, MATLAB arrays, sound and text."""

import os

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from extract.readers import load_reader
from extract.readers.images import natural_key
from extract.readers.media import DamagedMediaError, NoFramesError, UnreadableMediaError
from extract.sampling import Sampling, SamplingError
from tests.media_files import cut, write_depth_folder, write_sound, write_video

ALL = Sampling(frames="all")
DRAW = np.random.default_rng(0)


# ---- image folders


@pytest.fixture
def jpegs(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(12):  # 1.jpg ... 12.jpg: alphabetical order would be 1, 10, 11, 12, 2, ...
        Image.fromarray(np.full((24, 32, 3), k * 10, np.uint8)).save(folder / f"{k + 1}.jpg")
    (folder / "notes.txt").write_text("not a frame")
    return folder


def test_images_are_read_in_natural_order_at_their_rate(jpegs):
    frames = load_reader("images").read(jpegs, Sampling(frames=4), fps=6.0)
    assert np.rint(frames.values.mean(axis=(1, 2, 3)) / 10).tolist() == [1, 4, 7, 10]
    assert frames.times_seconds == pytest.approx([1 / 6, 4 / 6, 7 / 6, 10 / 6])
    assert frames.values.shape == (4, 24, 32, 3) and frames.values.dtype == np.uint8
    info = load_reader("images").probe(jpegs, fps=6.0)
    assert (info.frames, info.width, info.height, info.duration_seconds) == (12, 32, 24, 2.0)


def test_only_the_wanted_images_are_opened(jpegs):
    for k in (2, 3, 9):
        (jpegs / f"{k}.jpg").write_text("broken, but nobody looks")
    frames = load_reader("images").read(jpegs, Sampling(frames=2))  # the 4th and the 10th
    assert np.rint(frames.values.mean(axis=(1, 2, 3)) / 10).tolist() == [3, 9]
    assert frames.decoded_frames == 12


def test_broken_image_is_replaced_by_its_neighbour_and_counted(jpegs):
    (jpegs / "4.jpg").write_text("broken")
    (jpegs / "5.jpg").write_bytes(b"")
    frames = load_reader("images").read(jpegs, Sampling(frames=2))  # the 4th and the 10th are wanted
    assert np.rint(frames.values.mean(axis=(1, 2, 3)) / 10).tolist() == [2, 9]
    assert frames.times_seconds == pytest.approx([2 / 30, 9 / 30])
    assert (frames.declared_frames, frames.decoded_frames) == (12, 10)


def test_folders_that_give_nothing(tmp_path, jpegs):
    reader = load_reader("images")
    for image in jpegs.glob("*.jpg"):
        image.write_text("broken")
    with pytest.raises(DamagedMediaError, match=r"jpg: does not decode \(no image\)"):
        reader.read(jpegs, ALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoFramesError, match=r"empty: the folder holds no \.jpg"):
        reader.read(tmp_path / "empty", ALL)


def test_images_of_two_sizes_are_refused(jpegs):
    Image.new("RGB", (10, 10)).save(jpegs / "12.jpg")
    with pytest.raises(DamagedMediaError, match=r"12\.jpg: is \(10, 10, 3\) beside \(24, 32, 3\)"):
        load_reader("images").read(jpegs, ALL)


def test_single_image_and_grey_image(tmp_path):
    Image.new("L", (8, 6), 77).save(tmp_path / "one.png")
    frames = load_reader("images").read(tmp_path / "one.png", Sampling(frames=3))
    assert frames.values.shape == (3, 6, 8, 3) and (frames.values == 77).all()


def test_unlistable_folder(jpegs, monkeypatch):
    if os.geteuid() != 0:
        jpegs.chmod(0)
    else:  # root may list everything: let the system call answer what others get

        def scandir(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UnreadableMediaError, match=r"frames: cannot be listed \(Permission denied\)"):
        load_reader("images").read(jpegs, ALL)


def test_natural_key():
    names = ["f10.png", "f2.png", "F1.png", "f02.png", "10.png", "x.png"]
    assert sorted(names, key=natural_key) == ["10.png", "F1.png", "f02.png", "f2.png", "f10.png", "x.png"]


# ---- depth maps


def test_depth_is_millimetres_bit_for_bit(tmp_path):
    folder = write_depth_folder(tmp_path / "S001C001P001R001A001", frames=12)
    frames = load_reader("depth-png").read(folder, Sampling(frames=3))
    assert frames.values.dtype == np.uint16 and frames.values.shape == (3, 24, 32)
    assert frames.values[:, 5, 5].tolist() == [1002, 1006, 1010]
    assert (frames.values[:, 0] == 0).all()  # nothing measured


def test_depth_in_other_units(tmp_path):
    folder = write_depth_folder(tmp_path / "d", frames=1)
    values = load_reader("depth-png").read(folder, ALL, millimetres_per_unit=0.2).values
    assert values[0, 5, 5] == 200
    assert load_reader("depth-png").read(folder, ALL, millimetres_per_unit=100.0).values.max() == 65535


def test_eight_bit_images_are_no_depth(tmp_path):
    (tmp_path / "d").mkdir()
    Image.new("L", (8, 6), 77).save(tmp_path / "d" / "1.png")
    with pytest.raises(DamagedMediaError, match=r"1\.png: holds L pixels; 16-bit"):
        load_reader("depth-png").read(tmp_path / "d", ALL)


# ---- .mat


def test_mat_arrays_become_time_first(tmp_path):
    depth = DRAW.integers(0, 4000, (24, 32, 9)).astype(np.uint16)
    skeleton, inertial = DRAW.normal(size=(20, 3, 9)), DRAW.normal(size=(15, 6))
    savemat(tmp_path / "m.mat", {"d_depth": depth, "d_skel": skeleton, "d_iner": inertial})
    read = load_reader("mat").read
    d = read(tmp_path / "m.mat", Sampling(frames=3), layout="HWT", fps=30.0, variable="d_depth")
    assert d.values.dtype == np.uint16 and (d.values == depth.transpose(2, 0, 1)[[1, 4, 7]]).all()
    s = read(tmp_path / "m.mat", ALL, layout="JXT", fps=30.0, variable="d_skel")
    assert s.values.shape == (9, 1, 20, 3) and np.allclose(s.values[:, 0], skeleton.transpose(2, 0, 1))
    i = read(tmp_path / "m.mat", ALL, 0.1, 0.2, layout="TC", fps=50.0, variable="d_iner")
    assert np.allclose(i.values, inertial[5:10]) and i.values.dtype == np.float32
    assert i.times_seconds == pytest.approx([0.1, 0.12, 0.14, 0.16, 0.18])


def test_mat_probe_and_the_only_array_needs_no_name(tmp_path):
    savemat(tmp_path / "m.mat", {"d_depth": np.zeros((24, 32, 9), np.uint16)})
    info = load_reader("mat").probe(tmp_path / "m.mat", layout="HWT", fps=30.0)
    assert (info.frames, info.height, info.width) == (9, 24, 32)
    assert info.duration_seconds == pytest.approx(0.3)


def test_mat_version_7_3(tmp_path):
    depth = DRAW.integers(0, 4000, (24, 32, 9)).astype(np.uint16)
    with h5py.File(tmp_path / "m.mat", "w", userblock_size=512) as file:
        file["d_depth"] = depth.T  # MATLAB writes columns first
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    content = (tmp_path / "m.mat").read_bytes()
    (tmp_path / "m.mat").write_bytes(header + content[len(header) :])
    read = load_reader("mat").read(tmp_path / "m.mat", ALL, layout="HWT", fps=30.0)
    assert (read.values == depth.transpose(2, 0, 1)).all()


def test_mat_errors(tmp_path):
    savemat(tmp_path / "m.mat", {"a": np.zeros((5, 6)), "b": np.zeros(3)})
    read = load_reader("mat").read
    with pytest.raises(DamagedMediaError, match=r"has no array None; it has: a, b; set `variable`"):
        read(tmp_path / "m.mat", ALL, layout="TC", fps=50.0)
    with pytest.raises(DamagedMediaError, match="layout 'TZ' is unknown"):
        read(tmp_path / "m.mat", ALL, layout="TZ", fps=50.0)
    with pytest.raises(DamagedMediaError, match=r"holds float64 of shape \(5, 6\)"):
        read(tmp_path / "m.mat", ALL, layout="HWT", fps=50.0, variable="a")
    with pytest.raises(DamagedMediaError, match=r"is no \.mat file"):
        read(cut(tmp_path / "m.mat", tmp_path / "cut.mat", 0.6), ALL, layout="TC", fps=50.0)
    (tmp_path / "text.mat").write_text("not a matrix " * 40)
    with pytest.raises(DamagedMediaError, match=r"is no \.mat file"):
        read(tmp_path / "text.mat", ALL, layout="TC", fps=50.0)


def test_utd_mhad_recordings(shared):
    folder, read = shared / "data" / "utd_mhad", load_reader("mat").read
    depth = read(folder / "Depth/a10_s1_t1_depth.mat", Sampling(frames=12), layout="HWT", fps=30.0)
    skeleton = read(folder / "Skeleton/a10_s1_t1_skeleton.mat", ALL, layout="JXT", fps=30.0)
    inertial = read(folder / "Inertial/a10_s1_t1_inertial.mat", ALL, layout="TC", fps=50.0)
    assert depth.values.shape == (12, 240, 320) and skeleton.values.shape == (76, 1, 20, 3)
    assert inertial.values.shape == (192, 6)
    # The truth about the world: the sensor stands 2 to 4 m away, heads are above feet, 1 g pulls.
    measured = depth.values[depth.values > 0]
    assert 2000 < np.median(measured) < 4000
    height = skeleton.values[:, 0, 0, 1] - skeleton.values[:, 0, 15, 1]
    assert (height > 1.0).all() and (height < 2.0).all()
    assert 0.5 < np.median(np.linalg.norm(inertial.values[:, :3], axis=1)) < 1.5


# ---- sound


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_wav_is_read_sample_for_sample(tmp_path):
    samples = tone(0.5, 16000)
    read = load_reader("audio").read(write_sound(tmp_path / "s.wav", samples[None]))
    assert read.values.dtype == np.float32 and np.abs(read.values - samples).max() < 1e-4
    assert (read.declared_frames, read.decoded_frames, read.fps) == (8000, 8000, 16000.0)
    assert load_reader("audio").probe(tmp_path / "s.wav").duration_seconds == pytest.approx(0.5)


def test_stereo_is_averaged_and_resampled(tmp_path):
    left, right = tone(0.5, 48000, 300.0), tone(0.5, 48000, 900.0)
    read = load_reader("audio").read(write_sound(tmp_path / "s.wav", np.stack([left, right]), 48000))
    assert abs(len(read.values) - 8000) <= 20
    spectrum = np.abs(np.fft.rfft(read.values[1000:7000]))
    peaks = np.argsort(spectrum)[-2:] * 16000 / 6000
    assert sorted(np.rint(peaks).tolist()) == [299, 901] or np.allclose(sorted(peaks), [300, 900], atol=3)
    assert spectrum.max() / 3000 == pytest.approx(0.25, rel=0.1)  # half of an amplitude of 0.5


@pytest.mark.parametrize("name", ["s.wav", "s.m4a"])
def test_a_span_of_sound_is_the_same_samples_as_the_whole(tmp_path, name):
    codec = "pcm_s16le" if name.endswith("wav") else "aac"
    sweep = 0.5 * np.sin(2 * np.pi * 200 * np.linspace(0, 3, 48000) ** 2)
    path = write_sound(tmp_path / name, sweep[None], codec=codec)
    whole = load_reader("audio").read(path).values
    part = load_reader("audio").read(path, None, 1.5, 2.0)
    assert len(part.values) == 8000 and part.times_seconds.tolist() == [1.5]
    assert np.abs(part.values - whole[24000:32000]).max() < 0.02


def test_audio_track_of_nothing(tmp_path):
    silent = write_video(tmp_path / "v.mp4", frames=5)
    with pytest.raises(NoFramesError, match=r"holds no audio track \(it holds: video\)"):
        load_reader("audio").read(silent)
    (tmp_path / "s.wav").write_text("RIFF? no.")
    with pytest.raises(DamagedMediaError, match="is no sound or video file"):
        load_reader("audio").read(tmp_path / "s.wav")
    path = write_sound(tmp_path / "t.wav", tone(0.5, 16000)[None])
    with pytest.raises(SamplingError, match=r"9\.0 to None seconds holds no sample"):
        load_reader("audio").read(path, None, 9.0)


def test_cut_wav_gives_what_is_there(tmp_path):
    whole = write_sound(tmp_path / "s.wav", tone(1.0, 16000)[None])
    read = load_reader("audio").read(cut(whole, tmp_path / "cut.wav", 0.5))
    assert 7000 < read.decoded_frames == len(read.values) < 9000


# ---- text


def test_text_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeff a person waves \n".encode())
    assert load_reader("text").read(tmp_path / "t.txt").values.tolist() == ["a person waves"]
    (tmp_path / "l.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(DamagedMediaError, match=r"not UTF-8 \(byte 2 is 0xf6\)"):
        load_reader("text").read(tmp_path / "l.txt")
    (tmp_path / "w.txt").write_text(" \n")
    with pytest.raises(DamagedMediaError, match="white space only"):
        load_reader("text").read(tmp_path / "w.txt")
