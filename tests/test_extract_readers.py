"""Readers of videos: the right frames at the right times, from sound and from damaged files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from extract.readers import READERS, load_reader
from extract.readers.media import (
    DamagedMediaError,
    MissingMediaError,
    NoFramesError,
    ReadError,
    UnreadableMediaError,
    printable,
)
from extract.sampling import Sampling, SamplingError
from store.errors import UnknownNameError
from tests.media_files import cut, frame_numbers, noise, set_mp4_matrix, write_sound, write_video

ALL = Sampling(frames="all")

# What decord alone gets wrong is marked: there it answers other frames than asked, without an error.
KINDS = {
    "h264.mp4": {"codec": "libx264", "gop": 25},
    "h264-b-frames.mp4": {"codec": "libx264", "gop": 250, "bf": 3},
    "h264-open-groups.mp4": {"codec": "libx264", "x264-params": "open-gop=1:bframes=3:keyint=25"},  # wrong
    "h264.mkv": {"codec": "libx264", "gop": 25},
    "h264.ts": {"codec": "libx264", "gop": 25},  # wrong
    "mpeg4.avi": {},
    "mpeg4-b-frames.avi": {"bf": 2},  # wrong
    "mpeg4-b-frames.mp4": {"bf": 2},  # wrong
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": 2},  # wrong
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 25},
}


@pytest.fixture
def reader():
    return load_reader("video")


def sequential(path) -> np.ndarray:
    """The reference: every frame, decoded in order from the beginning."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_right_ones_in_every_kind_of_file(tmp_path, reader, kind):
    path = write_video(tmp_path / kind, frames=70, **KINDS[kind])
    reference = sequential(path)
    assert len(reference) == 70
    everything = reader.read(path, ALL)
    assert (everything.values == reference).all()
    assert everything.times_seconds == pytest.approx(np.arange(70) / 30, abs=2e-3)
    assert (everything.declared_frames, everything.decoded_frames) == (70, 70)
    draw = np.random.default_rng(0)
    for _ in range(8):
        start = draw.uniform(0, 2.2)
        sampling = Sampling(frames=int(draw.integers(1, 9)))
        some = reader.read(path, sampling, start, start + draw.uniform(0.05, 1.0))
        places = np.rint(some.times_seconds * 30).astype(int)
        assert (some.values == reference[places]).all()


def test_frame_k_has_brightness_k_where_and_when_it_is_asked_for(tmp_path, reader):
    path = write_video(tmp_path / "v.mp4", frames=60, codec="libx264")
    frames = reader.read(path, Sampling(frames=4))  # middles of quarters of 2 s: 0.25, 0.75, 1.25, 1.75
    assert frame_numbers(frames.values) == [7, 22, 37, 52]
    assert frames.times_seconds == pytest.approx([7 / 30, 22 / 30, 37 / 30, 52 / 30], abs=1e-3)
    assert frame_numbers(reader.read(path, ALL, 1.0, 1.2).values) == [30, 31, 32, 33, 34, 35]
    assert frames.fps == pytest.approx(30) and frames.values.dtype == np.uint8


def test_twice_the_rate_covers_the_same_span(tmp_path, reader):
    slow = write_video(tmp_path / "slow.avi", frames=40, fps=20)
    fast = write_video(tmp_path / "fast.avi", frames=80, fps=40)
    a, b = (reader.read(path, Sampling(frames=8)) for path in (slow, fast))
    assert frame_numbers(a.values) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert frame_numbers(b.values) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert a.times_seconds == pytest.approx(b.times_seconds, abs=1 / 20)


def test_repeated_frames_are_decoded_once_and_returned_as_often_as_wanted(tmp_path, reader):
    path = write_video(tmp_path / "v.avi", frames=3)
    frames = reader.read(path, Sampling(frames=6))
    assert frame_numbers(frames.values) == [0, 0, 1, 1, 2, 2]
    assert frames.times_seconds == pytest.approx(np.array([0, 0, 1, 1, 2, 2]) / 30)


def test_probe_tells_what_the_file_holds(tmp_path, reader):
    info = reader.probe(write_video(tmp_path / "v.mkv", frames=50, fps=25, codec="libx264"))
    assert (info.frames, info.width, info.height) == (50, 64, 48)
    assert info.fps == pytest.approx(25) and info.duration_seconds == pytest.approx(2.0, abs=2e-3)


@pytest.mark.parametrize(
    ("matrix", "bright"),
    [
        ((0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30), "right"),  # a quarter turn clockwise
        ((-1 << 16, 0, 0, 0, -1 << 16, 0, 64 << 16, 48 << 16, 1 << 30), "bottom"),  # upside down
    ],
)
def test_a_phone_held_sideways_gives_upright_frames(tmp_path, reader, matrix, bright):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24] = 200  # the sensor's upper half is bright
    path = write_video(tmp_path / "v.mp4", frames=10, codec="libx264", pattern=lambda k: image)
    set_mp4_matrix(path, matrix)
    values = reader.read(path, Sampling(frames=2)).values
    assert values.shape == ((2, 64, 48, 3) if bright == "right" else (2, 48, 64, 3))
    part = values[:, :, 30:] if bright == "right" else values[:, 30:]
    rest = values[:, :, :18] if bright == "right" else values[:, :18]
    assert part.mean() > 190 and rest.mean() < 10


def test_a_replaced_file_is_not_read_from_the_open_decoder(tmp_path, reader):
    path = write_video(tmp_path / "v.avi", frames=10)
    assert reader.probe(path).frames == 10
    path.unlink()  # as an atomic replacement would
    write_video(path, frames=20)
    assert reader.probe(path).frames == 20


@pytest.mark.parametrize(
    "name", ["a b.avi", "Türkçe 動画.avi", "new\nline.avi", "quote'\"$(x).avi", "%41.avi", "-f.avi"]
)
def test_awkward_file_names(tmp_path, reader, name):
    folder = tmp_path / "folder with space\nand newline"
    folder.mkdir()
    shutil.copy(write_video(tmp_path / "plain.avi", frames=12), folder / name)
    assert frame_numbers(reader.read(folder / name, Sampling(frames=3)).values) == [2, 6, 10]


def test_awkward_names_stay_on_one_line_of_an_error(tmp_path, reader):
    with pytest.raises(ReadError, match=r"new\\nline.avi: there is no such file") as caught:
        reader.read(tmp_path / "new\nline.avi", ALL)
    assert "\n" not in str(caught.value)
    assert printable("日本.avi") == "日本.avi"


# ---- damaged files


def test_empty_file(tmp_path, reader):
    (tmp_path / "v.mp4").touch()
    with pytest.raises(DamagedMediaError, match=r"v\.mp4: the file is empty"):
        reader.read(tmp_path / "v.mp4", ALL)


def test_text_file_named_mp4(tmp_path, reader):
    (tmp_path / "v.mp4").write_text("Access denied. Please log in to download.\n" * 50)
    with pytest.raises(DamagedMediaError, match=r"v\.mp4: is no video, or is cut before its index"):
        reader.read(tmp_path / "v.mp4", ALL)


def test_mp4_cut_before_its_index(tmp_path, reader):
    whole = write_video(tmp_path / "whole.mp4", frames=20, codec="libx264", size=(320, 240), pattern=noise)
    with pytest.raises(DamagedMediaError, match=r"cut\.mp4: is no video, or is cut before its index"):
        reader.read(cut(whole, tmp_path / "cut.mp4", 0.8), ALL)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_avi_cut_in_the_middle_keeps_what_decodes(tmp_path, reader, b_frames):
    whole = write_video(tmp_path / "w.avi", frames=40, size=(320, 240), pattern=noise, bf=b_frames)
    reference = sequential(whole)
    frames = reader.read(cut(whole, tmp_path / "cut.avi", 0.5), ALL)
    assert frames.declared_frames == 40
    assert 9 < frames.decoded_frames < 30
    intact = frames.decoded_frames - 3  # the last packet is cut; B-frames before it lean on it
    assert (frames.values[:intact] == reference[:intact]).all()
    assert frames.times_seconds[:intact] == pytest.approx(np.arange(intact) / 30)
    # A sampling spreads over what is there, and its times say so.
    assert reader.read(tmp_path / "cut.avi", Sampling(frames=4)).times_seconds[-1] < 30 / 30


def test_a_damaged_stretch_costs_its_own_frames_only(tmp_path, reader):
    whole = write_video(
        tmp_path / "w.mp4", frames=40, codec="libx264", gop=10, size=(320, 240), pattern=noise
    )
    reference = sequential(whole)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 12000] = bytes(12000)
    (tmp_path / "d.mp4").write_bytes(content)
    frames = reader.read(tmp_path / "d.mp4", ALL)
    same = np.array([(a == b).all() for a, b in zip(frames.values, reference, strict=True)])
    assert same[:10].all() and same[30:].all() and not same.all()


def test_broken_packets_are_counted_and_replaced_by_sound_frames(tmp_path, reader):
    whole = write_video(tmp_path / "w.avi", frames=30, codec="mjpeg", size=(64, 48))
    content = bytearray(whole.read_bytes())
    offset = content.find(b"00dc", content.find(b"movi"))
    for k in range(30):  # chunks of an AVI: four letters, the size, the packet, and a byte to make it even
        size = int.from_bytes(content[offset + 4 : offset + 8], "little")
        if k in (10, 11, 29):
            content[offset + 8 : offset + 8 + size] = bytes(size)
        offset += 8 + size + size % 2
    (tmp_path / "d.avi").write_bytes(content)
    frames = reader.read(tmp_path / "d.avi", ALL)
    assert (frames.declared_frames, frames.decoded_frames) == (30, 27)
    expected = [12 if k in (10, 11) else min(k, 28) for k in range(30)]
    assert frame_numbers(frames.values) == expected
    assert np.rint(frames.times_seconds * 30).tolist() == expected


def test_video_without_frames(tmp_path, reader):
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(NoFramesError, match=r"v\.avi: the video stream holds no frame"):
        reader.read(tmp_path / "v.avi", ALL)


def test_sound_only_file_is_no_video(tmp_path, reader):
    path = write_sound(tmp_path / "v.mkv", np.zeros((1, 8000)))
    with pytest.raises(NoFramesError, match=r"holds no video stream \(it holds: audio\)"):
        reader.read(path, ALL)


def test_missing_file_and_folder_in_its_place(tmp_path, reader):
    with pytest.raises(MissingMediaError, match="there is no such file"):
        reader.read(tmp_path / "no.avi", ALL)
    with pytest.raises(MissingMediaError, match="is a folder"):
        reader.read(tmp_path, ALL)
    assert issubclass(MissingMediaError, FileNotFoundError)


def test_file_that_may_not_be_read(tmp_path, reader, monkeypatch):
    path = write_video(tmp_path / "v.avi", frames=3)
    if os.geteuid() != 0:
        path.chmod(0)
    else:  # root may read everything: let the system call answer what others get
        real = type(path).open
        denied = PermissionError(13, "Permission denied")
        monkeypatch.setattr(
            type(path), "open", lambda p, *a, **k: _raise(denied) if p == path else real(p, *a, **k)
        )
    with pytest.raises(UnreadableMediaError, match=r"v\.avi: cannot be opened \(Permission denied\)"):
        reader.read(path, ALL)


def _raise(error):
    raise error


def test_span_outside_the_video(tmp_path, reader):
    with pytest.raises(SamplingError, match=r"5\.0 to 6\.0 seconds holds none of the frames"):
        reader.read(write_video(tmp_path / "v.avi", frames=30), ALL, 5.0, 6.0)


# ---- the table


def test_unknown_reader_lists_those_that_there_are():
    with pytest.raises(
        UnknownNameError, match=r"no reader named 'vidoe' \(did you mean 'video'\?\).*depth-png"
    ):
        load_reader("vidoe")


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_has_a_revision_and_names_a_missing_file(name, tmp_path):
    reader = load_reader(name)
    assert isinstance(reader.revision, int) and reader.revision >= 1
    options = {"layout": "TC", "fps": 50.0} if name == "mat" else {}
    for call in (reader.probe, lambda path, **o: reader.read(path, ALL, **o)):
        with pytest.raises(MissingMediaError, match=r"nothing here: there is no such"):
            call(tmp_path / "nothing here", **options)


def test_layers_run_in_a_process_that_has_read_a_video():
    """decord alone loads CUDA's BLAS, in which torch's layers crash where there is no GPU."""
    code = """
from extract.readers import load_reader
load_reader("video")
import torch
print(torch.nn.functional.linear(torch.ones(64, 768), torch.ones(768, 768))[0, 0].item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout.strip()) == (0, "768.0"), done.stderr
