"""Captions that were generated or imported: stored once, missing again when media are replaced."""

import pyarrow as pa
import pytest
import store_toy as toy
from store_toy import DATASET, MODALITY

from store.captions import (
    Captioned,
    add_captions,
    caption_sources,
    caption_texts,
    commit_captions,
    missing_captions,
)
from store.catalog import QueryError
from store.commit import FAILURE_SCHEMA, FeatureSet
from store.errors import FrameBankError, UnknownNameError
from store.register import RegisterError

OWNER = FeatureSet(DATASET, MODALITY, toy.spec(prompt="what is done?"))
NONE = FAILURE_SCHEMA.empty_table()


def missing(bank, **options):
    return missing_captions(bank.catalog, DATASET, MODALITY, OWNER.name, **options)["clip_id"].to_pylist()


def key_of(bank, clip):
    rows = bank.sql("SELECT media_key FROM media WHERE dataset = ? AND clip_id = ?", [DATASET, clip])
    return rows["media_key"][0].as_py()


def described(bank, *clips, texts=("a wave",)):
    return [Captioned(clip, texts, key_of(bank, clip)) for clip in clips]


def failed(*clips, error="it broke"):
    rows = [{"clip_id": clip, "stage": "caption", "error": error, "media_key": None} for clip in clips]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def sources(bank):
    return {
        row["source"]: (row["clips"], row["texts"])
        for row in caption_sources(bank.catalog, DATASET).to_pylist()
    }


def test_what_is_committed_is_not_missing_and_equal_texts_count_once(tmp_path):
    bank = toy.registered(tmp_path, 4)
    assert missing(bank) == toy.clip_ids(4)
    assert missing(bank, where="label = 0") == ["clip 000", "clip 003"]
    commit_captions(bank.catalog, OWNER, described(bank, "clip 001", texts=("b", "a", "b")), NONE)
    assert missing(bank) == ["clip 000", "clip 002", "clip 003"]
    expected = [{"clip_id": "clip 001", "text": ["a", "b"]}]
    assert caption_texts(bank.catalog, DATASET).to_pylist() == expected
    commit_captions(bank.catalog, OWNER, described(bank, "clip 001", texts=("c",)), NONE)
    assert caption_texts(bank.catalog, DATASET, OWNER.name)["text"].to_pylist() == [["c"]]
    assert sorted(bank.sql("SELECT text FROM texts WHERE length(text) = 1")["text"].to_pylist()) == list(
        "abc"
    )
    with pytest.raises(QueryError):
        missing(bank, where="no such column")


def test_a_replaced_file_makes_its_clip_missing_again(tmp_path):
    bank = toy.registered(tmp_path, 3)
    commit_captions(bank.catalog, OWNER, described(bank, *toy.clip_ids(3)), NONE)
    assert missing(bank) == []
    files = toy.media(3).to_pylist()
    files[1]["sample_hash"] = "replaced"
    bank.register(DATASET, clips=toy.clips(3), media=pa.Table.from_pylist(files))
    assert missing(bank) == ["clip 001"]
    commit_captions(bank.catalog, OWNER, [], failed("clip 001"))
    commit_captions(bank.catalog, OWNER, described(bank, "clip 000"), NONE)
    assert bank.failures()["clip_id"].to_pylist() == ["clip 001"]  # its older captions are no success


def test_failures_are_counted_and_end_with_success(tmp_path):
    bank = toy.registered(tmp_path, 3)
    for _ in range(2):
        commit_captions(bank.catalog, OWNER, described(bank, "clip 000"), failed("clip 001", "clip 002"))
    assert [(row["clip_id"], row["stage"], row["attempts"]) for row in bank.failures().to_pylist()] == [
        ("clip 001", "caption", 2),
        ("clip 002", "caption", 2),
    ]
    assert missing(bank) == ["clip 001", "clip 002"]  # they are tried again
    commit_captions(bank.catalog, OWNER, [], failed("clip 001"))
    bank.register(DATASET, clips=toy.clips(4), media=toy.media(4))
    assert missing(bank) == ["clip 003", "clip 001", "clip 002"]  # after what was never tried
    commit_captions(bank.catalog, OWNER, described(bank, "clip 002"), NONE)
    assert bank.failures()["clip_id"].to_pylist() == ["clip 001"]


def test_reading_the_listing_again_leaves_them_alone_and_replaces_its_own(tmp_path):
    bank = toy.registered(tmp_path, 3)

    def listed(texts, source="annotators"):
        table = pa.table({"clip_id": toy.clip_ids(3), "text": texts, "source": [source] * 3})
        return bank.register(DATASET, clips=toy.clips(3), captions=table)

    listed(["x", "y", "z"])
    commit_captions(bank.catalog, OWNER, described(bank, "clip 000", "clip 001"), NONE)
    add_captions(bank.catalog, DATASET, "friends", [Captioned("clip 002", ["seen", "seen", "heard"])])
    both = {OWNER.name: (2, 2), "friends": (1, 2)}
    assert sources(bank) == {"annotators": (3, 3), **both}
    listed(["x", "y", "z"])
    assert sources(bank) == {"annotators": (3, 3), **both}
    listed(["x", "new", "z"], "others")
    assert sources(bank) == {"others": (3, 3), **both}
    bank.register(DATASET, clips=toy.clips(3), captions=pa.table({"clip_id": [], "text": []}).cast(
        pa.schema([("clip_id", pa.string()), ("text", pa.string())])
    ))  # fmt: skip
    assert sources(bank) == both
    with pytest.raises(RegisterError, match="source friends, as generated or imported"):
        listed(["x", "y", "z"], "friends")
    assert sources(bank) == both


def test_import_refuses_the_listings_source_and_export_asks_which(tmp_path):
    bank = toy.registered(tmp_path, 2)
    with pytest.raises(UnknownNameError, match="source"):
        caption_texts(bank.catalog, DATASET)
    table = pa.table({"clip_id": toy.clip_ids(2), "text": ["x", "y"], "source": ["annotators"] * 2})
    bank.register(DATASET, clips=toy.clips(2), captions=table)
    with pytest.raises(RegisterError, match="'annotators' is that of toy's own captions"):
        add_captions(bank.catalog, DATASET, "annotators", [Captioned("clip 000", ["mine"])])
    add_captions(bank.catalog, DATASET, "friends", [Captioned("clip 000", ["mine"])])
    with pytest.raises(FrameBankError, match="several sources; name one by --source: annotators, friends"):
        caption_texts(bank.catalog, DATASET)
    with pytest.raises(UnknownNameError, match="strangers"):
        caption_texts(bank.catalog, DATASET, "strangers")
    assert caption_texts(bank.catalog, DATASET, "annotators").num_rows == 2
