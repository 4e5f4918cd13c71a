import json
import os

import numpy as np
import pyarrow as pa
import pytest
import store_toy as toy
from store_toy import CLS, DATASET, MODALITY, TOKENS

from store import TEXT, TEXTS, text_id, thumbnail_path
from store.bank import Bank
from store.catalog import QueryError
from store.errors import UnknownNameError
from store.layout import SegmentError
from store.places import path_part
from store.plan import PlanError
from store.register import DuplicateClipError, LabelError
from store.runs import RunError
from store.segment import FieldShapeError
from store.spec import FeatureSpec, FieldSpec, SpecError
from store.tables import RegisterError
from store.texts import MissingTextError
from store.writer import WriterError


def rows(bank: Bank, sql: str, *params) -> list[tuple]:
    return [tuple(row.values()) for row in bank.sql(sql, list(params)).to_pylist()]


def write(bank: Bank, names, version=1, fields=(CLS, TOKENS), spec=None, **options):
    with bank.writer(DATASET, MODALITY, spec or toy.spec(), fields, **options) as writer:
        for name in names:
            toy.add(writer, name, version)
    return writer


# --- registering


def test_registering_counts_and_again_writes_nothing(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    arguments = dict(
        clips=toy.clips(12), media=toy.media(12), splits=toy.splits(12), label_texts=toy.label_texts()
    )
    counts = bank.register(DATASET, **arguments, root="/data", config={"adapter": "toy"})
    assert counts == {
        "clips": 12, "new": 12, "changed": 0, "media": 12, "splits": 12, "label_texts": 3,
        "changed_media": 0, "new_texts": 3,
    }  # fmt: skip
    before = os.stat(bank.catalog.path).st_mtime_ns
    with toy.Holder(bank, read_only=True):  # would block any write
        again = bank.register(DATASET, **arguments)
    assert (again["new"], again["changed"], again["new_texts"]) == (0, 0, 0)
    assert os.stat(bank.catalog.path).st_mtime_ns == before
    assert bank.datasets().to_pylist() == [
        {"name": DATASET, "adapter": "toy", "root": "/data", "config": '{"adapter":"toy"}'}
    ]


def test_only_what_differs_is_replaced(tmp_path):
    bank = toy.registered(tmp_path)
    changed = toy.clips(12).set_column(3, "subject", pa.array([9] + [n % 4 for n in range(1, 12)]))
    counts = bank.register(DATASET, clips=changed.slice(0, 6))
    assert (counts["new"], counts["changed"]) == (0, 1)
    assert rows(bank, "SELECT subject FROM clips ORDER BY clip_id LIMIT 2") == [("9",), ("1",)]
    assert rows(bank, "SELECT count(*) FROM clips") == [(12,)]  # clips that are not listed stay
    assert rows(bank, "SELECT count(*) FROM media") == [(12,)]


def test_a_modality_that_is_gone_is_dropped_and_splits_are_replaced(tmp_path):
    bank = toy.registered(tmp_path)
    bank.register(
        DATASET, clips=toy.clips(12), media=toy.media(12).slice(1), splits=toy.splits(12).slice(0, 3)
    )
    assert rows(bank, "SELECT count(*), min(clip_id) FROM media") == [(11, "clip 001")]
    assert rows(bank, "SELECT count(*) FROM splits") == [(3,)]


def test_numbers_become_text_and_structures_json(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    clips = pa.table({"clip_id": ["a"], "subject": [7], "attributes": [{"note": "ü", "n": 1}]})
    options = pa.array([[("key", "d_depth")]], pa.map_(pa.string(), pa.string()))
    media = pa.table({"clip_id": ["a"], "modality": ["depth"], "path": ["ä b\n.mat"], "options": options})
    bank.register("one", clips=clips, media=media)
    assert rows(bank, "SELECT subject, attributes->>'note' FROM clips WHERE subject IN (7, 8)") == [
        ("7", "ü")
    ]
    plan = bank.plan("one", "depth", toy.spec(), ["cls"]).to_pylist()[0]
    assert plan["path"] == "ä b\n.mat" and json.loads(plan["options"]) == {"key": "d_depth"}


def test_duplicate_clip_ids_are_refused(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    twice = pa.table({"clip_id": ["a", "b", "a"]})
    with pytest.raises(DuplicateClipError, match="clip ids occur twice: a;"):
        bank.register("x", clips=twice)
    assert bank.datasets().num_rows == 0


@pytest.mark.parametrize("label", [3, -1])
def test_labels_outside_the_class_list_are_refused(tmp_path, label):
    bank = Bank.open(tmp_path, create=True)
    clips = pa.table({"clip_id": ["a", "b"], "label": [0, label]})
    with pytest.raises(LabelError, match=rf"labels {label} are outside the class list"):
        bank.register("x", clips=clips, label_texts=toy.label_texts())
    assert rows(bank, "SELECT count(*) FROM clips") == [(0,)]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"clips": pa.table({"name": ["a"]})}, "unknown columns name"),
        ({"clips": pa.table({"label": [1]})}, "1 rows without 'clip_id'"),
        ({"clips": pa.table({"clip_id": ["a"], "label": ["x"]})}, "column 'label' is string"),
        ({"clips": pa.table({"clip_id": [""]})}, "empty clip id"),
        ({"splits": pa.table({"protocol": ["p"], "clip_id": ["z"], "part": ["test"]})}, "not listed: z"),
        (
            {"splits": pa.table({"protocol": ["p", "p"], "clip_id": ["a", "a"], "part": ["test", "train"]})},
            r"several parts of one protocol: a \(p\)",
        ),
        (
            {"media": pa.table({"clip_id": ["a"] * 2, "modality": ["ir"] * 2, "path": ["1", "2"]})},
            "several media of one modality for: a",
        ),
    ],
)
def test_wrong_tables_are_refused_whole(tmp_path, tables, message):
    bank = Bank.open(tmp_path, create=True)
    with pytest.raises(RegisterError, match=message):
        bank.register("x", **{"clips": pa.table({"clip_id": ["a"]})} | tables)
    assert rows(bank, "SELECT count(*) FROM clips") == [(0,)]


# --- planning


def test_a_plan_is_what_is_missing(tmp_path):
    bank = toy.registered(tmp_path)
    plan = bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"], views=2)
    assert plan.num_rows == 12 * 2 * 2
    assert plan.slice(0, 1).to_pylist()[0] | {"media_key": ""} == {
        "item_id": "clip 000", "view": 0, "field": "cls", "path": "clip 000.avi", "reader": None,
        "options": None, "start_seconds": None, "end_seconds": None, "frames": None, "fps": None,
        "duration_seconds": None, "media_key": "",
    }  # fmt: skip
    write(bank, toy.clip_ids(12), fields=[CLS])
    left = bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"])
    assert set(left["field"].to_pylist()) == {"tokens"} and left.num_rows == 12
    assert bank.plan(DATASET, MODALITY, toy.spec(frames=6), ["cls"]).num_rows == 12
    some = bank.plan(DATASET, MODALITY, toy.spec(), ["tokens"], where="subject = '3' AND label = 0")
    assert some["item_id"].to_pylist() == ["clip 003"]


def test_clips_without_media_are_not_planned_but_covered(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    bank.register(DATASET, clips=toy.clips(4), media=toy.media(3))
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"]).num_rows == 3
    lacking = "SELECT clip_id FROM clip_modalities WHERE NOT list_contains(modalities, 'depth')"
    assert rows(bank, lacking) == [("clip 003",)]


def test_a_replaced_file_is_missing_again_and_not_selected(tmp_path):
    bank = toy.filled(tmp_path)
    changed = toy.media(12).to_pylist()
    changed[5]["sample_hash"] = "other"
    bank.register(DATASET, clips=toy.clips(12), media=pa.Table.from_pylist(changed))
    plan = bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"])
    assert plan["item_id"].to_pylist() == ["clip 005"] * 2
    assert "clip 005" not in toy.stored(bank)
    write(bank, ["clip 005"], version=2)
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"]).num_rows == 0
    np.testing.assert_array_equal(toy.stored(bank)["clip 005"], toy.values("clip 005", 2))


def test_moving_the_files_changes_nothing_but_a_new_time_span_does(tmp_path):
    bank = toy.filled(tmp_path)
    changes = {"mtime": 5.0, "end_seconds": None}
    moved = [row | changes | {"path": f"elsewhere/{row['path']}"} for row in toy.media(12).to_pylist()]
    bank.register(DATASET, clips=toy.clips(12), media=pa.Table.from_pylist(moved))
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"]).num_rows == 0
    moved[2]["end_seconds"] = 1.5
    bank.register(DATASET, clips=toy.clips(12), media=pa.Table.from_pylist(moved))
    plan = bank.plan(DATASET, MODALITY, toy.spec(), ["cls"]).to_pylist()
    assert [(row["item_id"], row["end_seconds"]) for row in plan] == [("clip 002", 1.5)]


def test_features_of_the_old_file_written_after_the_new_one_was_registered_stay_missing(tmp_path):
    bank = toy.registered(tmp_path, 1)
    old_key = bank.plan(DATASET, MODALITY, toy.spec(), ["cls"])["media_key"][0].as_py()
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
        bank.register(DATASET, clips=toy.clips(1), media=toy.media(1, version=2))
        writer.add("clip 000", 0, {"cls": np.ones((1, 1, 8))}, [0.0], media_key=old_key)
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"]).num_rows == 1


def test_plans_of_nonsense_are_refused(tmp_path):
    bank = toy.registered(tmp_path)
    with pytest.raises(UnknownNameError, match=r"no dataset named 'toys'.*did you mean 'toy'"):
        bank.plan("toys", MODALITY, toy.spec(), ["cls"])
    with pytest.raises(PlanError, match="0 views"):
        bank.plan(DATASET, MODALITY, toy.spec(), ["cls"], views=0)
    with pytest.raises(SpecError, match="resolve_precision"):
        bank.plan(DATASET, MODALITY, toy.spec(precision="auto"), ["cls"])
    with pytest.raises(QueryError, match="nonsense"):
        bank.plan(DATASET, MODALITY, toy.spec(), ["cls"], where="nonsense = 1")


def test_auto_precision_adopts_that_of_the_only_equal_set(tmp_path):
    bank = toy.registered(tmp_path)
    auto = toy.spec(precision="auto")

    def resolved() -> str | None:
        return bank.resolve_precision(DATASET, MODALITY, auto, "fp32").precision

    assert resolved() == "fp32"
    write(bank, ["clip 000"], spec=toy.spec(frames=3, precision="bf16"))
    assert resolved() == "fp32"  # not otherwise equal
    write(bank, ["clip 000"], spec=toy.spec(precision="bf16"))
    assert resolved() == "bf16"
    write(bank, ["clip 000"], spec=toy.spec(precision="fp32"))
    assert bank.resolve_precision(DATASET, MODALITY, auto, "fp16").precision == "fp16"  # two: no guess
    assert bank.resolve_precision(DATASET, MODALITY, toy.spec(precision="x"), "fp32").precision == "x"


# --- writing


def test_features_come_back_bit_for_bit(tmp_path):
    bank = toy.filled(tmp_path, 12)
    toy.assert_complete(bank, 12)
    assert rows(bank, "SELECT DISTINCT dataset, modality, encoder, stale FROM clip_features") == [
        (DATASET, MODALITY, "joints", False)
    ]


def test_many_commits_end_in_one_merged_segment_per_field(tmp_path):
    bank = toy.registered(tmp_path, 10)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS], max_seconds=0) as writer:
        for number, clip in enumerate(toy.clip_ids(10)):
            toy.add(writer, clip)
            assert bank.sql("SELECT count(*) AS n FROM features")["n"][0].as_py() == 2 * (number + 1)
    assert rows(bank, "SELECT field, count(*), sum(frames)::INT FROM segments GROUP BY ALL ORDER BY ALL") == [
        ("cls", 1, sum(len(toy.values(clip)) for clip in toy.clip_ids(10))),
        ("tokens", 1, sum(len(toy.values(clip)) for clip in toy.clip_ids(10))),
    ]
    directory = tmp_path / "features" / DATASET / MODALITY / toy.spec().name / "cls"
    assert sorted(path.name for path in directory.iterdir()) == [
        *rows(bank, "SELECT segment_id FROM segments WHERE field = 'cls'")[0],
        "readers.lock",
    ]
    toy.assert_complete(bank, 10)


def test_segments_close_at_their_size(tmp_path):
    bank = toy.filled(tmp_path, 10, max_bytes=500)
    sizes = [size for (size,) in rows(bank, "SELECT bytes FROM segments WHERE field = 'tokens'")]
    assert len(sizes) >= 3 and max(sizes) < 1500
    toy.assert_complete(bank, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_values_that_are_not_finite_go_to_failures_with_all_fields_of_the_clip(tmp_path, bad):
    bank = toy.registered(tmp_path, 2)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        broken = toy.values("clip 000").copy()
        broken[-1, -1, -1] = bad
        times = np.arange(len(broken))
        assert writer.add("clip 000", 0, {"cls": broken[:, :1], "tokens": broken}, times) is False
        assert toy.add(writer, "clip 001") is True
    assert list(writer.failures) == ["clip 000"] and writer.added == 1
    assert rows(bank, "SELECT clip_id, stage, attempts, encoder, feature_set FROM failures") == [
        ("clip 000", "store", 1, "joints", toy.spec().name)
    ]
    assert list(toy.stored(bank, "cls")) == ["clip 001"]
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"])["item_id"].to_pylist() == ["clip 000"]


def test_a_failure_counts_attempts_and_success_clears_it(tmp_path):
    bank = toy.registered(tmp_path, 3)
    for _ in range(2):
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
            writer.fail("clip 001", "decode", "clip 001.avi: cut in the middle")
    failed = bank.failures(DATASET).to_pylist()
    assert [(row["clip_id"], row["stage"], row["attempts"]) for row in failed] == [("clip 001", "decode", 2)]
    assert rows(bank, "SELECT failed, clips, encoded FROM coverage WHERE dataset = 'toy'") == [(1, 3, 0)]
    plan = bank.plan(DATASET, MODALITY, toy.spec(), ["cls"], retry_failed=False)
    assert plan["item_id"].to_pylist() == ["clip 000", "clip 002"]
    bank.register(DATASET, clips=toy.clips(3), media=toy.media(3, version=2))
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"], retry_failed=False).num_rows == 3
    write(bank, ["clip 001"])
    assert bank.failures().num_rows == 0


def test_a_clip_written_twice_in_one_run_counts_once(tmp_path):
    bank = toy.registered(tmp_path, 1)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        toy.add(writer, "clip 000", version=1)
        toy.add(writer, "clip 000", version=2)
    toy.assert_complete(bank, 1, version=2)


def test_misuse_of_the_writer_is_named(tmp_path):
    bank = toy.registered(tmp_path, 1)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS]) as writer:
        with pytest.raises(WriterError, match="this writer takes"):
            writer.add("clip 000", 0, {"pose": np.ones((1, 1, 8))}, [0.0])
        with pytest.raises(FieldShapeError, match=r"\(T >= 1, 1, 8\)"):
            writer.add("clip 000", 0, {"cls": np.ones((1, 1, 9))}, [0.0])
        with pytest.raises(FieldShapeError, match="2 frames but 3 times"):
            writer.add("clip 000", 0, {"cls": np.ones((2, 1, 8))}, [0.0, 1.0, 2.0])
    assert rows(bank, "SELECT count(*) FROM segments") == [(0,)]
    with pytest.raises(SpecError, match="resolve_precision"):
        bank.writer(DATASET, MODALITY, toy.spec(precision="auto"), [CLS])


def test_a_field_keeps_its_shape(tmp_path):
    bank = toy.filled(tmp_path, 2)
    wider = FieldSpec("cls", 1, 9)
    writer = bank.writer(DATASET, MODALITY, toy.spec(), [wider])
    with pytest.raises(ValueError, match="stored as 1 x 8 float16, new features are 1 x 9"), writer:
        raise AssertionError("the block must not be entered")
    toy.assert_complete(bank, 2)


def test_an_error_in_the_block_keeps_what_was_added_before_it(tmp_path):
    bank = toy.registered(tmp_path, 3)
    writer = bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS])
    with pytest.raises(ZeroDivisionError), writer:
        toy.add(writer, "clip 000")
        raise ZeroDivisionError
    assert list(toy.stored(bank)) == ["clip 000"]


def test_views_are_rows_of_their_own(tmp_path):
    bank = toy.registered(tmp_path, 2)
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        for view in (0, 1):
            toy.add(writer, "clip 000", version=view + 1, view=view)
    assert bank.plan(DATASET, MODALITY, toy.spec(), ["cls"], views=3).to_pydict()["view"] == [2, 0, 1, 2]
    np.testing.assert_array_equal(toy.stored(bank, view=1)["clip 000"], toy.values("clip 000", 2))
    views = pa.table({"item_id": ["clip 000"], "view": [1], "top": [0.25], "flip": [True], "end": [0.5]})
    bank.record_views(DATASET, views)
    bank.record_views(DATASET, views)
    assert rows(bank, 'SELECT item_id, top, flip, "end" FROM views') == [("clip 000", 0.25, True, 0.5)]


def test_bfloat16_fields_keep_large_values(tmp_path):
    bank = toy.registered(tmp_path, 1)
    field = FieldSpec("embedding", 1, 4, "bfloat16")
    with bank.writer(DATASET, MODALITY, toy.spec(), [field]) as writer:
        writer.add("clip 000", 0, {"embedding": np.full((1, 1, 4), 2.0**100)}, [0.0])
    assert bank.select(DATASET, MODALITY).materialise("mean").tolist() == [[2.0**100] * 4]


# --- texts


def test_every_unique_text_is_encoded_once(tmp_path):
    bank = toy.registered(tmp_path, 3)
    captions = pa.table({"clip_id": toy.clip_ids(3), "text": ["hello", "hello", "a person who does a wave"]})
    bank.register(DATASET, clips=toy.clips(3), captions=captions)
    assert bank.add_texts(["hello", "typed", "typed"]) == [text_id(t) for t in ("hello", "typed", "typed")]
    assert rows(bank, "SELECT count(*) FROM texts") == [(5,)]
    spec = FeatureSpec("minilm", {"name": "minilm"})
    plan = bank.plan(TEXTS, TEXT, spec, ["embedding"])
    assert plan.column_names == ["item_id", "view", "field", "text"] and plan.num_rows == 5
    with pytest.raises(MissingTextError, match="python -m extract"):
        bank.texts(["hello"])
    with bank.writer(TEXTS, TEXT, spec, [FieldSpec("embedding", 1, 2)]) as writer:
        for row in plan.to_pylist():
            writer.add(row["item_id"], 0, {"embedding": np.full((1, 1, 2), float(len(row["text"])))}, [0.0])
    assert bank.plan(TEXTS, TEXT, spec, ["embedding"]).num_rows == 0
    assert bank.texts(["typed", "hello", "typed"]).tolist() == [[5, 5], [5, 5], [5, 5]]
    assert bank.texts(["a person who does a wave"]).dtype == np.float32
    with pytest.raises(MissingTextError, match="'never seen'") as caught:
        bank.texts(["hello", "never seen"])
    assert caught.value.texts == ["never seen"]


def test_texts_are_hashed_exactly_as_given():
    assert len({text_id(text) for text in ("é", "e\u0301", "é ", "É")}) == 4
    assert text_id("hello") == "2cf24dba5fb0a30e26e83b2ac5b9e29e"


# --- runs


def test_a_run_is_recorded_with_its_metrics(tmp_path):
    bank = toy.filled(tmp_path, 4)
    with bank.record_run("probe", {"dataset": DATASET, "protocol": "cross-subject", "lr": 0.1}) as run:
        assert rows(bank, "SELECT status FROM runs") == [("running",)]
        assert run.directory.is_dir() and run.directory.parent == tmp_path / "runs"
        run.metric("probe/accuracy", np.float32(0.5), n=4, low=0.25, high=0.75, modality="depth", seed=1)
        run.used(bank.select(DATASET, MODALITY, field="cls"), "other@0123")
    assert rows(bank, "SELECT metric, value, n, low, high, dataset, protocol, run_id FROM leaderboard") == [
        ("probe/accuracy", 0.5, 4, 0.25, 0.75, DATASET, "cross-subject", run.id)
    ]
    assert rows(bank, "SELECT detail->>'modality' FROM metrics") == [("depth",)]
    assert rows(bank, "SELECT feature_set FROM run_sets ORDER BY 1") == [(toy.spec().name,), ("other@0123",)]
    record = json.loads((run.directory / "run.json").read_text())
    assert record["status"] == "done" and record["wall_seconds"] >= 0 and record["versions"]["duckdb"]


def test_a_failed_run_says_why_and_stays_off_the_leaderboard(tmp_path):
    bank = toy.registered(tmp_path)
    with pytest.raises(ZeroDivisionError), bank.record_run("align", {}) as run:
        run.metric("loss", 1.0)
        raise ZeroDivisionError("boom")
    assert rows(bank, "SELECT status, error FROM runs") == [("failed", "ZeroDivisionError: boom")]
    assert rows(bank, "SELECT * FROM leaderboard") == []
    with pytest.raises(RunError, match="a number is needed"), bank.record_run("align", {}) as run:
        run.metric("loss", "high")


def test_a_run_that_finds_the_catalog_busy_is_committed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("store.runs.PATIENCE_SECONDS", 0.1)
    bank = toy.registered(tmp_path)
    patient = bank.catalog.timeout_seconds
    said: list[str] = []
    with toy.Holder(bank) as holder:
        bank.catalog.timeout_seconds = 0.1
        with bank.record_run("probe", {}, notify=said.append) as run:
            run.metric("accuracy", 1.0)
    assert len(said) == 1 and f"pid {holder.pid}" in said[0]
    assert rows(bank, "SELECT * FROM runs") == []
    bank.catalog.timeout_seconds = patient
    with bank.record_run("probe", {}):
        pass
    assert rows(bank, "SELECT status, count(*) FROM runs GROUP BY ALL") == [("done", 2)]
    assert rows(bank, "SELECT run_id, value FROM metrics") == [(run.id, 1.0)]


# --- names and places


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a b", "ü\n", "x" * 300, "", "%41", "A"])
def test_names_become_one_safe_path_part(name, tmp_path):
    part = path_part(name)
    assert "/" not in part and not part.startswith(".") and 0 < len(part.encode()) <= 180
    (tmp_path / part).mkdir()
    assert (tmp_path / part).parent == tmp_path


def test_path_parts_stay_distinct():
    names = ["a/b", "a%2Fb", "x" * 300, "x" * 301, ".", "%2E", " ", "", "a", "A"]
    assert len({path_part(name) for name in names}) == len(names)


def test_thumbnails_have_a_place(tmp_path):
    bank = Bank.open(tmp_path, create=True)
    path = thumbnail_path(bank, "my set", "rgb", "dir/clip 1")
    assert path == tmp_path / "thumbnails/my%20set/rgb/dir%2Fclip%201.jpg"
    assert (
        thumbnail_path(tmp_path, "my set", "rgb", "dir/clip 1", strip=True).name == "dir%2Fclip%201.strip.jpg"
    )


# --- damage


def test_damaged_values_are_an_error_not_data(tmp_path):
    """See test_store_faults for the rest: here only that the bank's own read path verifies."""
    bank = toy.filled(tmp_path, 4)
    shard = next(tmp_path.rglob("tokens/*/c/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SegmentError, match="clip 000"):
        toy.stored(bank, "tokens")
