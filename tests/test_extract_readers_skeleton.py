"""Readers of skeletons: NTU text files, and pickled dictionaries that must not run what they carry."""

import os
import pickle

import numpy as np
import pytest

from extract.readers import load_reader
from extract.readers.media import DamagedMediaError, NoFramesError, UnsafeMediaError
from extract.readers.ntu_skeleton import persons_by_motion
from extract.readers.safe_npy import load_npy
from extract.sampling import Sampling
from tests.media_files import cut, write_ntu_skeleton

ALL = Sampling(frames="all")
DRAW = np.random.default_rng(0)


def body(frames: int, motion: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    pose = draw.normal(size=(25, 3)) + np.array([0, 0, 3])
    return (pose + motion * np.sin(np.arange(frames))[:, None, None]).astype(np.float32)


def test_skeleton_text_keeps_people_apart_and_puts_the_moving_one_first(tmp_path):
    chair, walker = body(6, 0.001, 1), body(6, 0.5, 2)
    frames = [[("72057594037944738", chair[t])] for t in range(6)]
    for t in (1, 2, 4):  # the walker comes, is lost in frame 3, and is back under the same number
        frames[t].insert(0, ("72057594037944739", walker[t]))
    path = write_ntu_skeleton(tmp_path / "S001C001P001R001A001.skeleton", frames)
    read = load_reader("ntu-skeleton").read(path, ALL)
    assert read.values.shape == (6, 2, 25, 3) and read.values.dtype == np.float32
    assert np.allclose(read.values[[1, 2, 4], 0], walker[[1, 2, 4]], atol=1e-5)
    assert (read.values[[0, 3, 5], 0] == 0).all()
    assert np.allclose(read.values[:, 1], chair, atol=1e-5)
    assert load_reader("ntu-skeleton").read(path, ALL, max_persons=1).values.shape == (6, 1, 25, 3)


def test_skeleton_frames_without_anybody_keep_their_time(tmp_path):
    walker = body(4, 0.5)
    path = write_ntu_skeleton(tmp_path / "s.skeleton", [[("1", walker[0])], [], [], [("1", walker[3])]])
    read = load_reader("ntu-skeleton").read(path, ALL)
    assert (read.values != 0).any(axis=(1, 2, 3)).tolist() == [True, False, False, True]
    assert read.times_seconds == pytest.approx(np.arange(4) / 30)
    assert load_reader("ntu-skeleton").probe(path).duration_seconds == pytest.approx(4 / 30)


def test_cut_skeleton_keeps_the_complete_frames(tmp_path):
    walker = body(20, 0.5)
    whole = write_ntu_skeleton(tmp_path / "s.skeleton", [[("1", pose)] for pose in walker])
    read = load_reader("ntu-skeleton").read(cut(whole, tmp_path / "cut.skeleton", 0.52), ALL)
    assert (read.declared_frames, read.decoded_frames, len(read.values)) == (20, 10, 10)
    assert np.allclose(read.values[:, 0], walker[:10], atol=1e-5)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("0\n", NoFramesError, "declares 0 frames"),
        ("2\n0\n0\n", NoFramesError, "no body is seen in any frame"),
        ("<html>", DamagedMediaError, "no NTU skeleton file"),
        ("5\nx", DamagedMediaError, "declares 5 frames and holds none complete"),
    ],
)
def test_skeleton_files_that_give_nothing(tmp_path, content, error, match):
    (tmp_path / "s.skeleton").write_text(content)
    with pytest.raises(error, match=match):
        load_reader("ntu-skeleton").read(tmp_path / "s.skeleton", ALL)


def test_persons_by_motion_weighs_variance_with_presence():
    still, flicker, walker = np.ones((10, 1, 2, 3)), np.zeros((10, 1, 2, 3)), np.zeros((10, 1, 2, 3))
    flicker[4:6, 0] = [[[1.0]], [[3.0]]]  # variance 1 in 2 frames
    walker[:, 0] = np.arange(1, 11)[:, None, None]  # variance 8.25 in 10 frames
    ordered = persons_by_motion(np.concatenate([still, flicker, walker], axis=1), 3)
    assert (ordered[:, 0] == walker[:, 0]).all() and (ordered[:, 1] == flicker[:, 0]).all()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_ntu_dictionary_is_loaded_with_every_pickle_protocol(tmp_path, protocol):
    content = {
        "file_name": "S001C001P001R001A001",
        "nbodys": [1, 2, np.int64(2)],
        "njoints": 25,
        "skel_body0": body(5, 0.4).astype(np.float64),
        "skel_body1": body(3, 0.1, 3).astype(">f4"),
        "rgb_body0": np.zeros((5, 25, 2)),
    }
    array = np.empty((), object)
    array[()] = content
    with (tmp_path / "s.skeleton.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, stream, protocol=protocol)
    read = load_reader("skeleton-npy").read(tmp_path / "s.skeleton.npy", ALL)
    assert read.values.shape == (5, 2, 25, 3)
    assert np.allclose(read.values[:, 0], content["skel_body0"], atol=1e-6)
    assert np.allclose(read.values[:3, 1], content["skel_body1"].astype(np.float32), atol=1e-6)
    assert (read.values[3:, 1] == 0).all()
    assert np.dtype("f4").isnative  # the big-endian array did not turn the process's own float32 around


def test_numpys_own_save_of_a_dictionary(tmp_path):
    np.save(tmp_path / "s.npy", np.array({"skel_body0": body(4, 0.4)}))
    assert load_reader("skeleton-npy").read(tmp_path / "s.npy", ALL).values.shape == (4, 1, 25, 3)


@pytest.mark.parametrize(("shape", "expected"), [((7, 25, 3), (7, 1, 25, 3)), ((7, 3, 20, 3), (7, 2, 20, 3))])
def test_plain_skeleton_arrays(tmp_path, shape, expected):
    np.save(tmp_path / "s.npy", DRAW.normal(size=shape))
    assert load_reader("skeleton-npy").read(tmp_path / "s.npy", ALL).values.shape == expected


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def evil_payloads(marker):
    reduce_system = pickle.dumps(Evil(marker))
    return {
        "os.system": reduce_system,
        "builtins.eval": b"c__builtin__\neval\n(Vopen(%r,'w')\ntR." % str(marker),
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nV__subclasses__\ntR.",
        "numpy.load": b"cnumpy\nload\n(V%s\ntR." % str(marker).encode(),
        "dtype attribute": b"cnumpy\ndtype\n}V__call__\nI1\nsb.",
        "codec lookup": b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
    }


@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "getattr", "numpy.load"])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, kind):
    marker = tmp_path / "executed"
    with (tmp_path / "s.npy").open("wb") as stream:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(evil_payloads(marker)[kind])
    with pytest.raises(UnsafeMediaError, match=r"calls for \w+\.\w+, which could run code; it was not run"):
        load_reader("skeleton-npy").read(tmp_path / "s.npy", ALL)
    assert not marker.exists()


def test_malicious_payload_inside_a_real_dictionary(tmp_path):
    marker = tmp_path / "executed"
    np.save(tmp_path / "s.npy", np.array({"skel_body0": body(3, 0.1), "file_name": Evil(marker)}))
    with pytest.raises(UnsafeMediaError, match=r"posix\.system"):
        load_npy(tmp_path / "s.npy")
    assert not marker.exists()
    np.load(tmp_path / "s.npy", allow_pickle=True)  # the payload is a live one: numpy itself runs it
    assert marker.exists()


@pytest.mark.parametrize("kind", ["dtype attribute", "codec lookup"])
def test_allowed_names_cannot_be_bent(tmp_path, kind):
    with (tmp_path / "s.npy").open("wb") as stream:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(evil_payloads("x")[kind])
    with pytest.raises(DamagedMediaError, match=r"UnpicklingError|AttributeError"):
        load_npy(tmp_path / "s.npy")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "empty"), (b"hello" * 30, "no .npy file"), (b"\x93NUMPY\x01\x00", "no .npy file, or is cut")],
)
def test_npy_files_that_are_none(tmp_path, content, match):
    (tmp_path / "s.npy").write_bytes(content)
    with pytest.raises(DamagedMediaError, match=match):
        load_reader("skeleton-npy").read(tmp_path / "s.npy", ALL)


def test_cut_npy_and_wrong_shapes(tmp_path):
    np.save(tmp_path / "s.npy", np.array({"skel_body0": body(40, 0.4)}))
    with pytest.raises(DamagedMediaError, match="is cut"):
        load_npy(cut(tmp_path / "s.npy", tmp_path / "cut.npy", 0.5))
    np.save(tmp_path / "flat.npy", np.zeros((7, 75)))
    with pytest.raises(DamagedMediaError, match=r"holds float64 of shape \(7, 75\)"):
        load_reader("skeleton-npy").read(tmp_path / "flat.npy", ALL)
    np.save(tmp_path / "zeros.npy", np.zeros((7, 25, 3)))
    with pytest.raises(NoFramesError, match="no body"):
        load_reader("skeleton-npy").read(tmp_path / "zeros.npy", ALL)
    np.save(tmp_path / "none.npy", np.array({"njoints": 25}))
    with pytest.raises(NoFramesError, match=r"holds no skel_body \(its keys: njoints\)"):
        load_reader("skeleton-npy").read(tmp_path / "none.npy", ALL)
