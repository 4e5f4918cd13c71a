from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import store_toy as toy
from store_toy import CLS, DATASET, MODALITY, TOKENS

from store import intersect
from store.catalog import QueryError
from store.errors import UnknownNameError
from store.mapped import ReadRangeError
from store.materialise import MaterialiseError, resampled
from store.select import AmbiguousError, EmptySelectionError, NoFeaturesError
from store.selection import RowError
from store.spec import FieldSpec

COUNT = 24


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """24 clips in several segments; every third clip also in a second modality, `ir`, with one token."""
    bank = toy.registered(tmp_path_factory.mktemp("bank"), COUNT)
    for part in (slice(0, 9), slice(9, 17), slice(17, COUNT)):
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
            for clip in reversed(toy.clip_ids(COUNT)[part]):
                toy.add(writer, clip)
    with bank.writer(DATASET, "ir", toy.spec(), [CLS]) as writer:
        for clip in toy.clip_ids(COUNT)[::3]:
            toy.add(writer, clip, version=7)
    return bank


@pytest.fixture
def tokens(bank):
    return bank.select(DATASET, MODALITY, field="tokens")


def test_rows_are_the_clips_in_order(bank, tokens):
    assert len(tokens.segments) == 3
    assert tokens.items.tolist() == toy.clip_ids(COUNT) and len(tokens) == COUNT
    assert tokens.items.dtype == object and tokens.labels.dtype == tokens.lengths.dtype == np.int64
    assert tokens.labels.tolist() == [number % 3 for number in range(COUNT)]
    assert tokens.lengths.tolist() == [len(toy.values(clip)) for clip in toy.clip_ids(COUNT)]
    assert tokens.label_names == dict(enumerate(toy.ACTIONS))
    assert tokens.feature_set == toy.spec().name and tokens.spec == toy.spec()
    assert tokens.space_digest == toy.spec().space_digest and tokens.field == TOKENS


@pytest.mark.parametrize(
    "rows", [[5], [3, 20, 3, 0], [-1], np.arange(COUNT) % 5 == 2, slice(4, 9), None, np.array([], np.int64)]
)
def test_reading_equals_the_naive_way(tokens, rows):
    values, offsets = tokens.read(rows)
    index = np.arange(COUNT) if rows is None else np.arange(COUNT)[rows]
    expected = [toy.values(toy.clip_ids(COUNT)[row]) for row in index]
    assert values.dtype == np.float16 and offsets.tolist() == [0, *np.cumsum([len(one) for one in expected])]
    for (start, stop), one in zip(pairwise(offsets), expected, strict=True):
        np.testing.assert_array_equal(values[start:stop], one)


def test_reading_into_a_buffer(tokens):
    out = np.zeros((100, 3, 8), np.float16)
    values, offsets = tokens.read([2, 1], out)
    assert np.shares_memory(values, out) and len(values) == offsets[-1]
    np.testing.assert_array_equal(values[: offsets[1]], toy.values("clip 002"))
    with pytest.raises(ReadRangeError, match="needs contiguous"):
        tokens.read(None, np.zeros((1, 3, 8), np.float16))


def test_rows_that_are_not_there_are_refused(tokens):
    for rows in ([COUNT], [-COUNT - 1], np.ones(COUNT + 1, bool)):
        with pytest.raises(RowError):
            tokens.read(rows)


def test_conditions_reach_clips_and_splits(bank):
    def items(**options) -> list[str]:
        return bank.select(DATASET, MODALITY, field="cls", **options).items.tolist()

    number = {clip: place for place, clip in enumerate(toy.clip_ids(COUNT))}
    assert [number[item] for item in items(where="label = 1 AND camera = '0'")] == [4, 10, 16, 22]
    assert [number[item] % 4 for item in items(protocol="cross-subject", part="test")] == [2, 3] * 6
    both = items(protocol="cross-subject", where="part = 'test' AND subject IN (1, 2)")
    assert [number[item] % 4 for item in both] == [2] * 6
    assert items(where="clip_id IN (SELECT clip_id FROM media WHERE path LIKE '%07%')") == ["clip 007"]
    assert items(items=["clip 009", "nowhere", "clip 002"]) == ["clip 009", "clip 002"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": "tay"}, UnknownNameError, "did you mean 'toy'"),
        ({"modality": "rgb"}, NoFeaturesError, "python -m extract --dataset toy --modality rgb"),
        ({"encoder": "clip"}, UnknownNameError, "there are: joints@"),
        ({"encoder": "joints@00"}, UnknownNameError, "there are: joints@"),
        ({"field": "pose"}, UnknownNameError, "there are: cls, tokens"),
        ({"protocol": "cross-view"}, UnknownNameError, "there are: cross-subject"),
        ({"protocol": "cross-subject", "part": "val"}, UnknownNameError, "there are: test, train"),
        ({"part": "test"}, AmbiguousError, "of which protocol"),
        ({"where": "subject = 'nobody'"}, EmptySelectionError, "none of its 24 rows fits where="),
        ({"view": 3}, EmptySelectionError, "view=3"),
        ({"items": ["nowhere"]}, EmptySelectionError, "items=nowhere"),
        ({"where": "colour = 'red'"}, QueryError, "colour"),
        ({"where": "1=1); DROP TABLE clips; --"}, QueryError, "DROP"),
    ],
)
def test_what_cannot_be_selected_is_said(bank, arguments, error, message):
    with pytest.raises(error, match=message):
        bank.select(**{"dataset": DATASET, "modality": MODALITY} | arguments)
    assert bank.sql("SELECT count(*) AS n FROM clips")["n"][0].as_py() == COUNT


def test_several_sets_must_be_told_apart(tmp_path):
    bank = toy.filled(tmp_path, 2)
    with bank.writer(DATASET, MODALITY, toy.spec(frames=6), [CLS]) as writer:
        toy.add(writer, "clip 000", version=2)
    for encoder in (None, "joints", "joints@"):
        with pytest.raises(AmbiguousError, match="2 feature sets fit"):
            bank.select(DATASET, MODALITY, encoder)
    name = toy.spec(frames=6).name
    assert len(bank.select(DATASET, MODALITY, name)) == 1
    assert bank.select(DATASET, MODALITY, name[:-6]).feature_set == name


def test_the_default_field(tmp_path):
    bank = toy.filled(tmp_path, 1)
    assert bank.select(DATASET, MODALITY).field.name == "cls"
    with bank.writer(DATASET, MODALITY, toy.spec(), [FieldSpec("embedding", 1, 4)]) as writer:
        writer.add("clip 000", 0, {"embedding": np.ones((1, 1, 4))}, [0.0])
    assert bank.select(DATASET, MODALITY).field.name == "embedding"
    other = toy.spec(revision=2)
    with bank.writer(DATASET, "ir", other, [FieldSpec("a", 1, 4), FieldSpec("b", 1, 4)]) as writer:
        writer.add("clip 000", 0, {name: np.ones((1, 1, 4)) for name in "ab"}, [0.0])
    with pytest.raises(AmbiguousError, match="several fields: a, b"):
        bank.select(DATASET, "ir")


def test_take_and_intersect_keep_rows_together(bank, tokens):
    ir = bank.select(DATASET, "ir")
    some = tokens.take([23, 3, 6, 0])
    assert some.items.tolist() == ["clip 023", "clip 003", "clip 006", "clip 000"]
    assert some.labels.tolist() == [2, 0, 0, 0]
    a, b = some.align_with(ir)
    assert a.items.tolist() == b.items.tolist() == ["clip 003", "clip 006", "clip 000"]
    np.testing.assert_array_equal(a.read([1])[0], toy.values("clip 006"))
    np.testing.assert_array_equal(b.read([1])[0], toy.values("clip 006", 7)[:, :1])
    assert len(tokens) == COUNT and intersect([]) == []


def test_columns_follow_the_rows(bank, tokens):
    some = tokens.take([5, 2, 5])
    assert some.column("subject").tolist() == ["1", "2", "1"]
    assert some.column("replication").tolist() == [None] * 3
    split = bank.select(DATASET, MODALITY, field="cls", protocol="cross-subject")
    assert split.column("part").tolist() == ["train", "train", "test", "test"] * 6
    with pytest.raises(UnknownNameError, match="no column named 'subjects'"):
        tokens.column("subjects")
    with pytest.raises(UnknownNameError, match="no column named 'part'"):
        tokens.column("part")


def test_times_follow_the_rows(tokens):
    for row, times in zip([7, 0, 23], tokens.times([7, 0, 23]), strict=True):
        assert times.dtype == np.float32
        assert times.tolist() == [frame / 4 for frame in range(tokens.lengths[row])]


def test_mean_and_cls_equal_the_naive_way(tokens):
    naive = [toy.values(clip).astype(np.float64) for clip in toy.clip_ids(COUNT)]
    mean, cls = tokens.materialise("mean"), tokens.materialise("cls")
    assert mean.shape == cls.shape == (COUNT, 8) and mean.dtype == cls.dtype == np.float32
    np.testing.assert_allclose(mean, [one.mean((0, 1)) for one in naive], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cls, [one[:, 0].mean(0) for one in naive], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_resampling_equals_the_naive_way(tokens, steps):
    result = tokens.materialise(f"resample:{steps}")
    assert result.shape == (COUNT, steps, 3, 8) and result.dtype == np.float16
    for row, clip in enumerate(toy.clip_ids(COUNT)):
        values = toy.values(clip).astype(np.float64)
        last = len(values) - 1
        moments = np.linspace(0, last, steps) if steps > 1 else [last / 2]
        for step, moment in enumerate(moments):
            low = min(int(moment), max(last - 1, 0))
            high = min(low + 1, last)
            expected = values[low] * (1 - (moment - low)) + values[high] * (moment - low)
            np.testing.assert_allclose(result[row, step], expected, rtol=2e-3, atol=2e-3)


def test_resampling_goes_by_time_not_by_number():
    """Frames 0, 1, 2 at 0 s, 1 s, 4 s: the middle of the clip, 2 s, is a third of the way from 1 to 2."""
    values = np.array([0.0, 1, 2], np.float32).reshape(3, 1, 1)
    result = resampled(values, np.array([0, 3]), [np.array([0.0, 1, 4], np.float32)], 3)
    np.testing.assert_allclose(result.ravel(), [0, 1 + 1 / 3, 2], atol=1e-6)
    standing = resampled(values, np.array([0, 3]), [np.zeros(3, np.float32)], 3)  # no times: by number
    np.testing.assert_allclose(standing.ravel(), [0, 1, 2])


def test_order_in_time_survives_resampling_but_not_the_mean(tmp_path):
    bank = toy.registered(tmp_path, 2)
    rising = np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 1, 8), np.float32)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
        writer.add("clip 000", 0, {"cls": rising}, np.arange(8))
        writer.add("clip 001", 0, {"cls": rising[::-1]}, np.arange(8))
    selection = bank.select(DATASET, MODALITY)
    mean, resampled_ = selection.materialise("mean"), selection.materialise("resample:4")
    np.testing.assert_array_equal(mean[0], mean[1])
    np.testing.assert_array_equal(resampled_[0], resampled_[1][::-1])
    assert (np.diff(resampled_[0, :, 0, 0].astype(float)) > 0).all()


def test_small_blocks_give_the_same(tokens, monkeypatch):
    whole = [tokens.materialise(reduce) for reduce in ("mean", "cls", "resample:3")]
    monkeypatch.setattr("store.materialise.BLOCK_BYTES", 100)
    for reduce, expected in zip(("mean", "cls", "resample:3"), whole, strict=True):
        np.testing.assert_array_equal(tokens.materialise(reduce), expected)


def test_none_and_files(tokens, tmp_path):
    values, offsets = tokens.materialise("none")
    np.testing.assert_array_equal(values[offsets[4] : offsets[5]], toy.values("clip 004"))
    mapped = tokens.materialise("mean", tmp_path / "mean.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "mean.npy"), tokens.materialise("mean"))
    assert isinstance(mapped, np.memmap)


@pytest.mark.parametrize("reduce", ["median", "resample", "resample:0", "resample:-1", "resample:x", ""])
def test_unknown_reductions_are_refused(tokens, reduce):
    with pytest.raises(MaterialiseError, match="accepted: mean, cls, none, resample:K"):
        tokens.materialise(reduce)


def test_texts_have_their_text_as_a_column(tmp_path):
    bank = toy.registered(tmp_path, 1)
    with bank.writer("_texts", "text", toy.spec(), [FieldSpec("embedding", 1, 2)]) as writer:
        for row in bank.plan("_texts", "text", toy.spec(), ["embedding"]).to_pylist():
            writer.add(row["item_id"], 0, {"embedding": np.ones((1, 1, 2))}, [0.0])
    some = bank.select("_texts", "text", where="text LIKE '%wave'")
    assert some.column("text").tolist() == ["a person who does a wave"] and some.labels.tolist() == [-1]


def test_selecting_while_clips_have_no_label(tmp_path):
    bank = toy.registered(tmp_path, 1)
    bank.register("bare", clips=pa.table({"clip_id": ["x"]}))
    with bank.writer("bare", MODALITY, toy.spec(), [CLS]) as writer:
        writer.add("x", 0, {"cls": np.ones((1, 1, 8))}, [0.0])
    selection = bank.select("bare", MODALITY)
    assert selection.labels.tolist() == [-1] and selection.label_names == {}
