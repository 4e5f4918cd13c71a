"""The full check finds each kind of damage, says what it is, and names the clips."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from fixtures.segments import flip, write_segment

from store.check import inspect_segment, segment_problems
from store.layout import SHARD, CorruptError, SegmentError, crc32c
from store.mapped import Segment
from store.reader import SegmentPool


@pytest.fixture
def written(tmp_path):
    """Three clips of 3, 2 and 4 frames in chunks of 2."""
    return write_segment(tmp_path, [3, 2, 4], dim=4, inner_frames=2)


def test_a_sound_segment_has_no_problems(written):
    assert segment_problems(written.path) == []


def test_every_flipped_byte_is_found_and_names_its_clips(written):
    """Chunks of 2 frames: clip-0 lies in chunks 0 and 1, clip-1 in 1 and 2, clip-2 in 2, 3 and 4."""
    clips = [["clip-0"], ["clip-0", "clip-1"], ["clip-1", "clip-2"], ["clip-2"], ["clip-2"]]
    stride = Segment.open(written.path).layout.stride
    for offset in range(5 * stride):
        flip(written.path / SHARD, offset, bit=offset % 8)
        (problem,) = inspect_segment(written.path)
        flip(written.path / SHARD, offset, bit=offset % 8)
        assert [item for item, view in problem.items] == clips[offset // stride]
        assert str(written.path) in problem.message
        assert ", ".join(clips[offset // stride]) in problem.message


def test_all_damaged_chunks_are_listed(written):
    stride = Segment.open(written.path).layout.stride
    flip(written.path / SHARD, 0)
    flip(written.path / SHARD, 4 * stride)
    assert len(segment_problems(written.path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "truncated or altered"),
        (lambda content: content[: len(content) // 2], "truncated or altered"),
        (lambda content: b"", "truncated or altered"),
        (lambda content: content + b"more", "truncated or altered"),
        (
            lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
            "index differs from its checksum",
        ),
    ],
)
def test_truncated_appended_and_index_damage_concern_all_clips(written, change, message):
    shard = written.path / SHARD
    shard.write_bytes(change(shard.read_bytes()))
    (problem,) = inspect_segment(written.path)
    assert message in problem.message
    assert "clips: clip-0, clip-1, clip-2" in problem.message
    assert problem.items == [("clip-0", 0), ("clip-1", 0), ("clip-2", 0)]


def test_a_deleted_segment_is_reported_for_the_catalog_to_name_its_clips(written):
    shutil.rmtree(written.path)
    problems = inspect_segment(written.path)
    assert any("segment missing" in problem.message for problem in problems)
    assert all(problem.items is None for problem in problems)


@pytest.mark.parametrize("name", ["zarr.json", str(SHARD)])
def test_a_deleted_file_is_reported_with_the_clips_of_the_manifest(written, name):
    (written.path / name).unlink()
    (problem,) = inspect_segment(written.path)
    assert "clips: clip-0, clip-1, clip-2" in problem.message


def _relabel(path, **labels):
    """Change zarr.json as an editor would who also knows its checksum."""
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"].pop("crc32c")
    metadata["attributes"]["framebank"].update(labels)
    metadata["attributes"]["crc32c"] = crc32c(json.dumps(metadata, sort_keys=True).encode())
    (path / "zarr.json").write_text(json.dumps(metadata))


def test_labels_that_contradict_the_place_or_the_manifest_are_found(written):
    _relabel(written.path, dataset="other")
    messages = segment_problems(written.path)
    assert any(
        "lies under toy%20set/rgb/" in line and "belongs under other/rgb/" in line for line in messages
    )
    assert any("describe different features" in line for line in messages)


def test_a_segment_in_a_wrong_folder_is_found(written, tmp_path):
    target = tmp_path / "features/toy%20set/depth" / written.path.parent.parent.name / "embedding/segment"
    shutil.copytree(written.path, target)
    (message,) = segment_problems(target)
    assert "mislabelled: lies under toy%20set/depth/" in message
    assert "belongs under toy%20set/rgb/" in message


def test_labels_that_contradict_the_array_are_found(written):
    _relabel(written.path, field={"name": "embedding", "tokens": 2, "dim": 4, "dtype": "float16"})
    assert any(
        "its field is (2, 4, 'float16'), its array (1, 4, 'float16')" in m
        for m in segment_problems(written.path)
    )


def test_manifest_damage_is_found(written):
    manifest = written.path / "manifest.parquet"
    whole = manifest.read_bytes()
    flip(manifest, len(whole) // 2)
    assert any("manifest.parquet" in line for line in segment_problems(written.path))
    manifest.write_bytes(whole)
    pq.write_table(pq.read_table(manifest).slice(1), manifest)
    messages = segment_problems(written.path)
    assert any("differs from its checksum" in line for line in messages)
    assert any("rows hold 6 frames, the array 9" in line for line in messages)
    manifest.unlink()
    assert any("has no manifest.parquet" in line for line in segment_problems(written.path))


def test_files_that_do_not_belong_are_found(written):
    (written.path / "c/1/0").mkdir(parents=True)
    shutil.copy(written.path / SHARD, written.path / "c/1/0/0")
    (message,) = segment_problems(written.path)
    assert "unexpected file 'c/1/0/0'" in message


def test_non_contiguous_chunks_are_refused_although_zarr_reads_them(written):
    """A legal shard whose chunks lie in another order: our arithmetic would return the wrong frames."""
    shard, layout = written.path / SHARD, Segment.open(written.path).layout
    content = bytearray(shard.read_bytes())
    stride = layout.stride
    content[: 2 * stride] = content[stride : 2 * stride] + content[:stride]
    index = np.frombuffer(layout.index()[:-4], "<u8").reshape(-1, 2).copy()
    index[[0, 1]] = index[[1, 0]]
    content[-layout.index_bytes :] = index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(content)
    assert np.array_equal(zarr.open_array(written.path, mode="r")[:], written.values)
    with pytest.raises(SegmentError, match="not contiguous"):
        SegmentPool([written.path], written.field).gather([0], [0], [3])
    assert any("not contiguous" in line for line in segment_problems(written.path))


def test_missing_inner_chunk_is_refused_although_zarr_fills_it(written):
    """Zarr would return its fill value for a chunk that the index calls missing."""
    shard, layout = written.path / SHARD, Segment.open(written.path).layout
    content = bytearray(shard.read_bytes())
    index = np.frombuffer(layout.index()[:-4], "<u8").reshape(-1, 2).copy()
    index[1] = 2**64 - 1
    content[-layout.index_bytes :] = index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(content)
    assert np.isnan(zarr.open_array(written.path, mode="r")[2:4]).all()
    with pytest.raises(SegmentError, match="inner chunks are missing"):
        Segment.open(written.path)


def test_what_check_accepts_reads_and_what_it_rejects_does_not(tmp_path):
    """Random damage of 1 to 100 bytes anywhere in the folder: data come back whole or not at all."""
    rng = np.random.default_rng(0)
    written = write_segment(tmp_path, [3, 2, 4], dim=4, inner_frames=2)
    files = [written.path / name for name in (str(SHARD), "zarr.json", "manifest.parquet")]
    for _ in range(200):
        file = files[rng.integers(3)]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        at, size = rng.integers(len(whole)), rng.integers(1, 100)
        damaged[at : at + size] = rng.integers(0, 256, min(size, len(whole) - at), dtype=np.uint8).tobytes()
        file.write_bytes(damaged)
        problems = segment_problems(written.path)
        try:
            segment = Segment.open(written.path)
            intact = np.array_equal(segment.read(), written.values) and segment.manifest().num_rows == 3
        except (CorruptError, SegmentError):
            intact = False
        assert intact == (problems == []), (file, at, size, problems)
        file.write_bytes(whole)
