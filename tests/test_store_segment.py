"""Writing segments: any Zarr v3 reader reads them, nothing half-written shows, nothing non-finite enters."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from conftest import ROOT
from fixtures.segments import ATTRIBUTES, manifest, place, write_segment

from store.layout import SHARD, Layout, SegmentError, choose_inner_frames, to_float32
from store.locks import is_held, writer_lives
from store.mapped import Segment
from store.segment import FieldShapeError, NonFiniteError, SegmentWriter, encode, new_segment_id
from store.spec import FieldSpec

# tokens, dim, clip lengths, inner frames: one frame; exactly whole chunks; partial last chunk; clips longer
# and shorter than a chunk; one frame a chunk; the chosen inner size with several chunks.
GEOMETRIES = [
    (1, 768, [1], None),
    (1, 16, [3, 5, 8], 4),
    (1, 16, [3, 5, 9], 4),
    (5, 32, [1, 30, 2, 7], 3),
    (197, 64, [2, 3], 1),
    (1, 768, [8, 24, 17, 90], None),
    (25, 6, [600, 1], None),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("tokens", "dim", "counts", "inner"), GEOMETRIES)
def test_zarr_and_tensorstore_read_every_bit(tmp_path, tokens, dim, counts, inner, dtype):
    written = write_segment(tmp_path, counts, tokens, dim, dtype, inner)
    by_zarr = zarr.open_array(written.path, mode="r")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(written.path)}}
    by_tensorstore = tensorstore.open(spec, open=True, read=True).result()
    for array in (by_zarr[:], by_tensorstore.read().result(), Segment.open(written.path).read()):
        assert array.shape == (sum(counts), tokens, dim)
        assert array.dtype == (np.float16 if dtype == "float16" else np.uint16)
        assert array.tobytes() == written.values.tobytes()
    assert by_zarr.attrs["logical_dtype"] == dtype
    assert by_zarr.attrs["framebank"]["dataset"] == "toy set"


def test_padding_is_nan_and_file_has_the_size_that_the_layout_says(tmp_path):
    for dtype, nan in (("float16", 0x7E00), ("bfloat16", 0x7FC0)):
        written = write_segment(tmp_path / dtype, [3, 3], 2, 4, dtype, inner_frames=4)
        segment = Segment.open(written.path)
        assert (written.path / SHARD).stat().st_size == segment.layout.file_bytes == written.nbytes
        assert (segment.blocks().view(np.uint16)[1, 2:] == nan).all()


def test_zarr_fills_with_nan(tmp_path):
    """A reader that meets a missing shard gets NaN, which nobody mistakes for features."""
    written = write_segment(tmp_path, [6], dim=4, inner_frames=2)
    (written.path / SHARD).unlink()
    assert np.isnan(zarr.open_array(written.path, mode="r")[:]).all()


def test_layout_by_hand():
    layout = Layout(frames=10, tokens=2, dim=3, dtype="float16", inner_frames=4)
    assert (layout.frame_bytes, layout.inner_bytes, layout.stride) == (12, 48, 52)
    assert (layout.chunks, layout.index_bytes, layout.file_bytes) == (3, 52, 208)
    entries = np.frombuffer(layout.index()[:-4], "<u8").reshape(3, 2)
    assert entries.tolist() == [[0, 52], [52, 52], [104, 52]]


@pytest.mark.parametrize(
    ("tokens", "dim", "frames"), [(1, 768, 64), (1, 1024, 64), (5, 768, 16), (50, 768, 2), (197, 768, 1)]
)
def test_inner_chunks_are_about_128_kb_but_hold_a_frame(tokens, dim, frames):
    assert choose_inner_frames(tokens * dim * 2) == frames


def test_a_lone_short_chunk_is_not_padded(tmp_path):
    written = write_segment(tmp_path, [2, 1], dim=8)
    assert Segment.open(written.path).layout.inner_frames == 3


def test_bfloat16_rounds_like_torch():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    ties = (rng.integers(0, 0x7F00, 1000).astype(np.uint32) << 16 | 0x8000).view(np.float32)
    values = np.concatenate([values[np.isfinite(values) & (np.abs(values) < 3e38)], ties])[:, None, None]
    field = FieldSpec("x", 1, 1, "bfloat16")
    stored = encode(values, field, "test")
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(torch.from_numpy(stored).view(torch.bfloat16), expected)
    assert np.array_equal(to_float32(stored, "bfloat16"), expected.float().numpy())
    assert np.array_equal(encode(stored, field, "test"), stored)  # bits go in as they are


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
def test_float16_rounds_to_nearest(source):
    values = np.linspace(-60000, 60000, 999).astype(source)[:, None, None]
    assert np.array_equal(encode(values, FieldSpec("x", 1, 1), "test"), values.astype(np.float16))


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("float16", np.nan),
        ("float16", -np.inf),
        ("float16", 65520.0),
        ("bfloat16", np.nan),
        ("bfloat16", np.inf),
        ("bfloat16", 3.4e38),
    ],
)
def test_non_finite_is_refused_before_anything_is_written(tmp_path, dtype, bad):
    field = FieldSpec("x", 1, 4, dtype)
    writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES, inner_frames=2)
    good = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    wrong = good.copy()
    wrong[2, 0, 3] = bad
    writer.append(good)
    with pytest.raises(NonFiniteError, match=f"'x' has 1 values outside {dtype}, the first"):
        writer.append(wrong)
    assert writer.frames == 3
    assert writer.append(good) == 3
    closed = writer.close(manifest([0, 3], [3, 3]))
    assert (
        to_float32(Segment.open(closed.path).read(), dtype).tolist() == np.concatenate([good, good]).tolist()
    )


@pytest.mark.parametrize(
    "values", [np.zeros((2, 1, 5)), np.zeros((0, 1, 4)), np.zeros((2, 4)), np.zeros((2, 1, 4), int)]
)
def test_misshapen_values_are_refused(tmp_path, values):
    field = FieldSpec("x", 1, 4)
    writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES)
    with pytest.raises(FieldShapeError, match=r"shape .* expected \(T >= 1, 1, 4\)|dtype int64"):
        writer.append(values)
    writer.abort()


@pytest.mark.parametrize(
    ("first", "counts", "message"),
    [
        ([0, 2], [2, 2], "4 frames, the array 5"),
        ([0, 3], [2, 3], "not consecutive"),
        ([0, 0], [0, 5], "not consecutive"),
    ],
)
def test_contradictory_manifest_publishes_nothing(tmp_path, first, counts, message):
    field = FieldSpec("x", 1, 4)
    writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES)
    writer.append(np.ones((5, 1, 4)))
    with pytest.raises(SegmentError, match=message):
        writer.close(manifest(first, counts))
    assert list(writer.final.parent.iterdir()) == []


def test_repeated_item_and_missing_times_are_contradictions(tmp_path):
    field = FieldSpec("x", 1, 4)
    for column, replacement, message in (
        ("item_id", ["a", "a"], "occurs twice"),
        ("times_seconds", [[0.0], [0.0]], "times_seconds do not match"),
    ):
        writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES)
        writer.append(np.ones((5, 1, 4)))
        table = manifest([0, 2], [2, 3])
        table = table.set_column(table.schema.get_field_index(column), column, [replacement])
        with pytest.raises(SegmentError, match=message):
            writer.close(table)


def test_an_empty_segment_cannot_be_closed(tmp_path):
    field = FieldSpec("x", 1, 4)
    writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES)
    with pytest.raises(SegmentError, match="no frames"):
        writer.close(manifest([], []))
    with pytest.raises(SegmentError, match="closed"):
        writer.append(np.ones((1, 1, 4)))


def test_an_existing_segment_is_never_replaced(tmp_path):
    written = write_segment(tmp_path, [3])
    before = (written.path / SHARD).read_bytes()
    with pytest.raises(SegmentError, match="exists already"):
        write_segment(tmp_path, [3], seed=1)
    assert (written.path / SHARD).read_bytes() == before
    assert os.listdir(written.path.parent) == [written.path.name]


def test_writer_holds_its_lease_until_released(tmp_path):
    field = FieldSpec("x", 1, 4)
    writer = SegmentWriter(place(tmp_path, field, "s"), field, ATTRIBUTES)
    writer.append(np.ones((5, 1, 4)))
    assert writer_lives(writer.partial)
    closed = writer.close(manifest([0], [5]))
    assert writer_lives(closed.path)
    assert (closed.frames, closed.segment_id) == (5, "s")
    closed.release()
    assert not writer_lives(closed.path)
    assert sorted(os.listdir(closed.path)) == ["c", "manifest.parquet", "zarr.json"]


def test_segment_ids_are_unique_and_ordered_in_time(monkeypatch):
    ids = [new_segment_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {len(name) for name in ids} == {26}
    monkeypatch.setattr("time.time_ns", lambda: 4_000_000_000_000_000_000)
    assert new_segment_id() > max(ids)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    """The kernel may write less than asked at any byte."""
    real, rng = os.write, np.random.default_rng(0)
    monkeypatch.setattr(os, "write", lambda fd, content: real(fd, content[: int(rng.integers(1, 40))]))
    written = write_segment(tmp_path, [3, 5, 9], dim=16, inner_frames=4)
    assert np.array_equal(zarr.open_array(written.path, mode="r")[:], written.values)


def _write_until_failure(root, clips=200):
    field = FieldSpec("x", 1, 768)
    writer = SegmentWriter(place(root, field, "s"), field, ATTRIBUTES)
    for _ in range(clips):
        writer.append(np.ones((24, 1, 768), np.float32))
    writer.close(manifest([24 * clip for clip in range(clips)], [24] * clips))


def test_file_size_limit_leaves_nothing_visible(tmp_path):
    """A real failing write in the middle of a chunk (EFBIG after a short write), as a full disk gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        with pytest.raises(SegmentError, match=r"cannot write segment \(File too large\)") as caught:
            _write_until_failure(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    _write_until_failure(tmp_path)  # with room again, the same path works


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB; needs root, so it skips elsewhere (the limit above runs everywhere)."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_full_disk_leaves_nothing_visible(small_disk):
    with pytest.raises(SegmentError, match=r"No space left on device.*free some space") as caught:
        _write_until_failure(small_disk)
    assert caught.value.errno == errno.ENOSPC
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    write_segment(small_disk, [5])  # the space is free again


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SegmentError, match="Permission denied"):
        write_segment(tmp_path, [3])


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    import store.segment
    from fixtures.segments import write_segment
    wanted = int(sys.argv[2])
    seen = 0
    def deadly(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global seen
            seen += 1
            if seen == wanted:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)
    store.segment.WRITE_BYTES = 256  # so that 17 frames take several writes
    for name in ("write", "fsync", "rename", "close", "mkdir"):
        deadly(name)
    write_segment(Path(sys.argv[1]), [3, 5, 9], dim=16, inner_frames=4)
    print(seen)
"""


def _run_killed(root, wanted):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(root), str(wanted)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_kill_at_every_system_call_shows_all_or_nothing(tmp_path):
    """SIGKILL before each write, fsync, rename, ...: a whole segment, or only a dead .partial is left."""
    calls = int(_run_killed(tmp_path / "whole", 0).stdout)
    whole = 0
    for wanted in range(1, calls + 1):
        root = tmp_path / str(wanted)
        assert _run_killed(root, wanted).returncode == -signal.SIGKILL
        segments = [path.parent for path in root.rglob("zarr.json") if ".partial-" not in path.parent.name]
        partials = [path for path in root.rglob("*.partial-*") if path.is_dir()]
        assert len(segments) + len(partials) <= 1
        for path in segments:
            whole += 1
            assert Segment.open(path).read().shape == (17, 1, 16)
        for path in segments + partials:
            assert not is_held(path / "writer.lock")
    assert 0 < whole < calls  # kills fell on both sides of the rename


def test_kill_between_writes_leaves_only_a_partial(tmp_path):
    result = _run_killed(tmp_path, 24)
    assert result.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.rglob("embedding/*"))
    assert ".partial-" in left.name
    assert not is_held(left / "writer.lock")


def test_metadata_is_exactly_what_zarr_writes_itself(tmp_path):
    """zarr-python, asked for the same array, describes it in the same words."""
    written = write_segment(tmp_path, [10], 2, 8, inner_frames=4)
    ours = json.loads((written.path / "zarr.json").read_text())
    zarr.create_array(
        tmp_path / "theirs",
        shape=(10, 2, 8),
        shards=(12, 2, 8),
        chunks=(4, 2, 8),
        dtype="float16",
        fill_value=np.nan,
        compressors=zarr.codecs.Crc32cCodec(),
        dimension_names=("frame", "token", "dim"),
    )
    theirs = json.loads((tmp_path / "theirs" / "zarr.json").read_text())
    ours.pop("attributes")
    theirs.pop("attributes")
    theirs.pop("storage_transformers", None)
    assert ours == theirs
