"""Reading segments: what was written comes back, whatever the batch, and no damaged byte ever does."""

import os
import shutil
import threading

import numpy as np
import pytest
from fixtures.segments import flip, write_segment

from store.layout import SHARD, CorruptError, SegmentError
from store.mapped import Segment
from store.pieces import Geometry, cut, merge_ranges
from store.reader import ReadRangeError, SegmentPool
from store.spec import FieldSpec

# Three segments of different inner sizes: the middle one holds one short chunk.
COUNTS = [[8, 24, 1, 17, 9, 12], [2, 3], [5, 40, 8, 30]]
INNER = [7, None, 16]


class Bank:
    """Segments with all their clips in one flat list, as a catalog would see them."""

    def __init__(self, root, tokens=2, dim=4, dtype="float16"):
        self.written = [
            write_segment(root, counts, tokens, dim, dtype, inner, f"segment-{number}", seed=number)
            for number, (counts, inner) in enumerate(zip(COUNTS, INNER, strict=True))
        ]
        self.paths = [written.path for written in self.written]
        self.field = self.written[0].field
        self.clips = [clip for written in self.written for clip in written.clips]
        self.segments = np.repeat([0, 1, 2], [len(counts) for counts in COUNTS])
        self.first = np.concatenate([written.first for written in self.written])
        self.count = np.array([len(clip) for clip in self.clips])

    def batch(self, rows):
        return self.segments[rows], self.first[rows], self.count[rows]

    def pool(self, **options):
        return SegmentPool(self.paths, self.field, **options)


@pytest.fixture
def bank(tmp_path):
    return Bank(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gather_equals_the_clips_one_by_one(tmp_path, dtype):
    bank, rng = Bank(tmp_path, dtype=dtype), np.random.default_rng(0)
    pool = bank.pool()
    for size in (1, 5, 12, 200):
        rows = rng.integers(0, len(bank.clips), size)
        values, offsets = pool.gather(*bank.batch(rows))
        expected = np.concatenate([bank.clips[row] for row in rows])
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()
        assert offsets.tolist() == [0, *np.cumsum(bank.count[rows]).tolist()]


def test_gather_of_parts_of_clips_and_of_nothing(bank):
    rng, pool = np.random.default_rng(1), bank.pool()
    whole = [written.values for written in bank.written]
    segments = rng.integers(0, 3, 300)
    first = np.array([rng.integers(0, len(whole[segment]) + 1) for segment in segments])
    count = np.array([rng.integers(0, len(whole[s]) - f + 1) for s, f in zip(segments, first, strict=True)])
    values, offsets = pool.gather(segments, first, count)
    for row, (s, f, c) in enumerate(zip(segments, first, count, strict=True)):
        assert np.array_equal(values[offsets[row] : offsets[row + 1]], whole[s][f : f + c])
    none, offsets = pool.gather(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
    assert none.shape == (0, 2, 4)
    assert offsets.tolist() == [0]


def test_gather_fills_the_given_out_and_nothing_beyond(bank):
    out = np.full((300, 2, 4), 7, np.float16)
    values, offsets = bank.pool().gather(*bank.batch([3, 0]), out=out)
    assert np.shares_memory(values, out)
    assert np.array_equal(values, np.concatenate([bank.clips[3], bank.clips[0]]))
    assert (out[offsets[-1] :] == 7).all()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, 2, 4), np.float16),
        np.empty((300, 2, 4), np.float32),
        np.empty((300, 2, 5), np.float16),
        np.empty((300, 2, 8), np.float16)[:, :, ::2],
        np.empty((300, 8), np.float16),
    ],
)
def test_unfit_out_is_refused(bank, out):
    with pytest.raises(ReadRangeError, match=r"needs contiguous float16 \(8, 2, 4\)"):
        bank.pool().gather(*bank.batch([0]), out=out)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 72), (71, 1), (0, -1), (2**40, 1)])
def test_frames_that_are_not_there_are_an_error(bank, first, count):
    with pytest.raises(ReadRangeError, match=r"segment-0: frames .* it has 71"):
        bank.pool().gather([0], [first], [count])
    with pytest.raises(ReadRangeError):
        Segment.open(bank.paths[0]).read(first, count)


@pytest.mark.parametrize("segment", [-1, 3])
def test_segments_that_are_not_there_are_an_error(bank, segment):
    with pytest.raises(ReadRangeError, match="there are 3"):
        bank.pool().gather([segment], [0], [1])


def test_blocks_yield_every_frame_in_order(bank):
    for block_bytes in (1, 200, 1 << 20):
        seen = [[], [], []]
        for segment, first, block in bank.pool().blocks(block_bytes=block_bytes):
            assert first == sum(map(len, seen[segment]))
            seen[segment].append(block.copy())
        for blocks, written in zip(seen, bank.written, strict=True):
            assert np.array_equal(np.concatenate(blocks), written.values)
    assert [segment for segment, _, _ in bank.pool().blocks(order=[2, 0])] == [2, 0]


def test_more_segments_than_open_maps(bank):
    pool, rng = bank.pool(max_open=1), np.random.default_rng(2)
    for _ in range(20):
        rows = rng.integers(0, len(bank.clips), 6)
        values, _ = pool.gather(*bank.batch(rows))
        assert np.array_equal(values, np.concatenate([bank.clips[row] for row in rows]))
        assert len(pool._opened) == 1


def test_each_chunk_is_verified_once(bank, monkeypatch):
    checked = []
    real = Segment.damaged_chunks

    def recording(segment, chunks):
        checked.extend((segment.path.name, chunk) for chunk in chunks.tolist())
        return real(segment, chunks)

    monkeypatch.setattr(Segment, "damaged_chunks", recording)
    pool = bank.pool(max_open=1)  # reopening an unchanged segment does not verify it again
    for _ in range(3):
        for row in range(len(bank.clips)):
            pool.gather(*bank.batch([row]))
    chunks = [Segment.open(path).layout.chunks for path in bank.paths]
    assert sorted(checked) == [(f"segment-{s}", chunk) for s in range(3) for chunk in range(chunks[s])]
    assert list(bank.pool().gather(*bank.batch([0]))[1]) == [0, 8]
    assert len(checked) == sum(chunks) + 2  # a new pool verifies anew: clip 0 touches two chunks


def test_replaced_segment_is_verified_again(bank):
    pool = bank.pool(max_open=1)
    pool.gather(*bank.batch([0]))
    content = bytearray((bank.paths[0] / SHARD).read_bytes())
    content[0] ^= 1
    (bank.paths[0] / "new").write_bytes(content)
    (bank.paths[0] / "new").rename(bank.paths[0] / SHARD)
    pool.gather(*bank.batch([6]))  # evicts it
    with pytest.raises(CorruptError):
        pool.gather(*bank.batch([0]))


def test_gather_in_many_threads(bank):
    pool, wrong = bank.pool(max_open=2), []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            rows = rng.integers(0, len(bank.clips), 8)
            pool.prefetch(*bank.batch(rows))
            values, _ = pool.gather(*bank.batch(rows))
            wrong.extend([rows] * (not np.array_equal(values, np.concatenate([bank.clips[r] for r in rows]))))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    pool.close()


def test_prefetch_advises_exactly_what_is_not_verified(bank, monkeypatch):
    advised = []
    monkeypatch.setattr(
        "store.reader.advise_willneed", lambda start, end: advised.append((end - start).sum())
    )
    pool = bank.pool()
    pool.prefetch(*bank.batch([1])).result()
    stride = Segment.open(bank.paths[0]).layout.stride
    assert advised == [4 * stride]  # frames 8 to 31 lie in chunks 1 to 4 of 7 frames
    pool.gather(*bank.batch([1]))
    advised.clear()
    pool.prefetch(*bank.batch([1])).result()
    assert advised == []
    pool._large = True  # as if beyond the machine's memory: pages may have gone, advise whatever was verified
    pool.prefetch(*bank.batch([1])).result()
    assert advised == [4 * stride]


def test_prefetch_of_a_missing_segment_is_reported_by_both(bank):
    shutil.rmtree(bank.paths[1])
    pool = bank.pool()
    future = pool.prefetch(*bank.batch([6]))
    assert isinstance(future.exception(timeout=10), SegmentError)
    with pytest.raises(SegmentError, match="segment-1: segment missing"):
        pool.gather(*bank.batch([6]))


def test_pool_refuses_a_segment_of_another_field(bank, tmp_path):
    other = write_segment(tmp_path, [3], tokens=1, dim=9, segment_id="other")
    with pytest.raises(SegmentError, match=r"other: holds 1 x 9 float16, the catalog says 2 x 4 float16"):
        SegmentPool([other.path], bank.field).gather([0], [0], [1])


# Damage. A segment small enough to try every byte of its shard.


def _reads(path):
    """Everything that returns data of the segment at ``path``."""
    field = FieldSpec("embedding", 1, 4)
    return {
        "read": lambda: Segment.open(path).read(),
        "gather": lambda: SegmentPool([path], field).gather([0, 0], [0, 3], [3, 2]),
        "blocks": lambda: [block.copy() for _, _, block in SegmentPool([path], field).blocks()],
    }


def test_every_single_flipped_byte_of_a_shard_is_an_error_naming_the_segment(tmp_path):
    written = write_segment(tmp_path, [3, 2], dim=4, inner_frames=2)
    shard = written.path / SHARD
    reads = _reads(written.path)
    for offset in range(written.nbytes):
        flip(shard, offset, bit=offset % 8)
        for read in reads.values():
            with pytest.raises(CorruptError, match=f"{written.path}"):
                read()
        flip(shard, offset, bit=offset % 8)
    for read in reads.values():
        read()


def test_a_flipped_byte_names_frames_and_clips_and_spares_the_others(bank):
    flip(bank.paths[0] / SHARD, 3 * Segment.open(bank.paths[0]).layout.stride + 5)
    pool = bank.pool()
    with pytest.raises(CorruptError, match=r"segment-0: frames 21 to 27 differ .*\(clips: clip-1\)"):
        pool.gather(*bank.batch([0, 1]))
    with pytest.raises(CorruptError):  # and again: a failed check marks nothing as verified
        pool.gather(*bank.batch([1]))
    values, _ = pool.gather(*bank.batch([0, 4, 6, 8]))
    assert np.array_equal(values, np.concatenate([bank.clips[row] for row in (0, 4, 6, 8)]))
    with pytest.raises(CorruptError, match="frames 21 to 27"):
        list(bank.pool().blocks())


def test_every_truncation_and_extension_is_an_error(tmp_path):
    written = write_segment(tmp_path, [3, 2], dim=4, inner_frames=2)
    shard = written.path / SHARD
    whole = shard.read_bytes()
    for content in [whole[:size] for size in range(len(whole))] + [whole + b"\0", whole + whole]:
        shard.write_bytes(content)
        for read in _reads(written.path).values():
            with pytest.raises(SegmentError, match=f"{shard}: truncated or altered: {len(content)} bytes"):
                read()


@pytest.mark.parametrize("victim", ["", "c", str(SHARD), "zarr.json"])
def test_deleted_parts_are_an_error(tmp_path, victim):
    written = write_segment(tmp_path, [3, 2], dim=4)
    target = written.path / victim
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    for read in _reads(written.path).values():
        with pytest.raises(SegmentError, match=f"{written.path}"):
            read()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shape": [\n  5,', '"shape": [\n  6,'),
        ('"float16"', '"uint16"'),
        ('"float16"', '"float32"'),
        ('"little"', '"big"'),
        ('"end"', '"start"'),
        ('"crc32c"', '"adler32"'),
        ("{", ""),
        ('"framebank"', '"framebonk"'),
        ('"zarr_format": 3', '"zarr_format": 2'),
    ],
)
def test_altered_metadata_are_an_error(tmp_path, old, new):
    written = write_segment(tmp_path, [3, 2], dim=4, inner_frames=2)
    metadata = written.path / "zarr.json"
    text = metadata.read_text()
    assert old in text
    metadata.write_text(text.replace(old, new, 1))
    with pytest.raises(SegmentError, match=f"{written.path}"):
        Segment.open(written.path).read()


def test_every_flipped_byte_of_the_metadata_is_an_error_or_changes_nothing(tmp_path):
    """White space may change; no value may."""
    written = write_segment(tmp_path, [3, 2], dim=4, inner_frames=2)
    metadata = written.path / "zarr.json"
    attributes = Segment.open(written.path).attributes
    detected = 0
    for offset in range(metadata.stat().st_size):
        flip(metadata, offset, bit=offset % 8)
        try:
            segment = Segment.open(written.path)
            assert segment.attributes == attributes
            assert np.array_equal(segment.read(), written.values)
        except SegmentError:
            detected += 1
        flip(metadata, offset, bit=offset % 8)
    assert detected > 0.9 * metadata.stat().st_size


def test_every_flipped_byte_of_the_manifest_is_an_error(tmp_path):
    written = write_segment(tmp_path, [3, 2], dim=4)
    manifest = written.path / "manifest.parquet"
    for offset in range(manifest.stat().st_size):
        flip(manifest, offset, bit=offset % 8)
        with pytest.raises(CorruptError, match="differs from its checksum"):
            Segment.open(written.path).manifest()
        flip(manifest, offset, bit=offset % 8)
    assert Segment.open(written.path).manifest()["item_id"].to_pylist() == ["clip-0", "clip-1"]


def test_a_segment_that_shrinks_while_scanned_is_an_error(tmp_path):
    written = write_segment(tmp_path, [40], dim=4, inner_frames=2)
    blocks = SegmentPool([written.path], written.field).blocks(block_bytes=1)
    next(blocks)
    os.truncate(written.path / SHARD, 50)
    with pytest.raises(SegmentError, match="shortened"):
        list(blocks)


# The arithmetic, by hand.


def test_cut_by_hand():
    """Segment 1 has chunks of 4 frames of 10 bytes, 44 bytes apart; clips cross chunks and start inside."""
    geometry = Geometry.unknown(2)
    geometry.inner[:], geometry.stride[:] = [8, 4], [84, 44]
    pieces = cut(np.array([1, 0]), np.array([3, 2]), np.array([6, 3]), geometry, frame_bytes=10)
    assert pieces.segment.tolist() == [1, 1, 1, 0]
    assert pieces.chunk.tolist() == [0, 1, 2, 0]
    assert pieces.source.tolist() == [30, 44, 88, 20]
    assert pieces.source_end.tolist() == [40, 84, 98, 50]
    assert pieces.target.tolist() == [0, 10, 50, 60]
    assert pieces.target_end.tolist() == [10, 50, 60, 90]


def test_merge_ranges_by_hand():
    start, end = merge_ranges(np.array([50, 0, 12, 5, 90]), np.array([60, 30, 20, 8, 95]), gap=20)
    assert (start.tolist(), end.tolist()) == ([0, 90], [60, 95])
    start, end = merge_ranges(np.array([50, 0]), np.array([60, 30]), gap=0)
    assert (start.tolist(), end.tolist()) == ([0, 50], [30, 60])
