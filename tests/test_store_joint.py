"""Feature sets of several modalities at once: planned where a clip has all files, stale when one changes."""

import numpy as np
import pyarrow as pa
import pytest

from store.bank import Bank
from store.spec import FeatureSpec, FieldSpec

SPEC = FeatureSpec("both", {"encoder": "both"}, {"sampling": {"frames": 2}, "precision": "fp32"})
FIELD = FieldSpec("cls", 1, 3)
BOTH = "rgb+depth"


def register(bank, depth_hash="d"):
    """Clips a and b with both files, c without depth, d without RGB; a's depth begins 1 s into its file."""
    rows = []
    for clip in "abc":
        rows.append(("rgb", clip, f"{clip}.avi", "video", f"r{clip}", None))
    for clip in "abd":
        rows.append(
            ("depth", clip, f"{clip}/", "depth-png", f"{depth_hash}{clip}", 1.0 if clip == "a" else None)
        )
    names = ("modality", "clip_id", "path", "reader", "sample_hash", "start_seconds")
    media = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    clips = pa.table({"clip_id": list("abcd"), "start_seconds": [5.0] * 4, "end_seconds": [7.0] * 4})
    bank.register("toys", clips=clips, media=media)


@pytest.fixture
def bank(tmp_path):
    bank = Bank.open(tmp_path / "bank", create=True)
    register(bank)
    return bank


def extract(bank, value=1.0):
    with bank.writer("toys", BOTH, SPEC, [FIELD]) as writer:
        for row in bank.plan("toys", BOTH, SPEC, ["cls"]).to_pylist():
            writer.add(row["item_id"], 0, {"cls": np.full((2, 1, 3), value)}, [0, 1], row["media_key"])


def test_a_clip_with_all_files_is_planned_with_all_of_them(bank):
    a, b = bank.plan("toys", BOTH, SPEC, ["cls"]).to_pylist()
    assert (a["item_id"], b["item_id"]) == ("a", "b")
    assert (a["path"], a["reader"], a["start_seconds"], a["end_seconds"]) == ("a.avi", "video", 5.0, 7.0)
    assert a["beside"] == [
        {"modality": "depth", "path": "a/", "reader": "depth-png", "options": None, "start_seconds": 1.0,
         "end_seconds": 7.0}
    ]  # fmt: skip
    assert b["beside"][0]["start_seconds"] == 5.0  # the clip's own, where the file has none
    single = {row["item_id"]: row["media_key"] for row in bank.plan("toys", "rgb", SPEC, ["cls"]).to_pylist()}
    assert a["media_key"] not in single.values() and a["media_key"] != b["media_key"]


def test_views_fields_and_conditions_are_those_of_any_plan(bank):
    plan = bank.plan("toys", BOTH, SPEC, ["cls", "tokens"], views=3, where="clip_id = 'b'")
    assert plan.num_rows == 6 and set(plan["item_id"].to_pylist()) == {"b"}


@pytest.mark.parametrize("changed", ["rgb", "depth"])
def test_replacing_either_file_makes_the_features_stale_and_missing(bank, changed):
    extract(bank)
    assert bank.plan("toys", BOTH, SPEC, ["cls"]).num_rows == 0
    assert bank.select("toys", BOTH).items.tolist() == ["a", "b"]
    (row,) = bank.sql(f"SELECT * FROM coverage WHERE modality = '{BOTH}'").to_pylist()
    assert (row["clips"], row["encoded"], row["percent"]) == (2, 2, 100.0)
    with bank.catalog.transaction() as connection:  # as a new hash of that file would
        connection.execute(f"UPDATE media SET media_key = 'x' WHERE clip_id = 'b' AND modality = '{changed}'")
    assert bank.plan("toys", BOTH, SPEC, ["cls"])["item_id"].to_pylist() == ["b"]
    assert bank.select("toys", BOTH).items.tolist() == ["a"]
    stale = bank.sql("SELECT clip_id FROM clip_features WHERE stale")["clip_id"].to_pylist()
    assert stale == ["b"]
    extract(bank, 2.0)
    assert bank.select("toys", BOTH).items.tolist() == ["a", "b"]


def test_registering_a_changed_file_reaches_the_joint_set(bank):
    extract(bank)
    register(bank, depth_hash="other")
    assert bank.plan("toys", BOTH, SPEC, ["cls"])["item_id"].to_pylist() == ["a", "b"]


def test_explain_names_the_files_and_what_is_stale(bank):
    from store.lineage import lines

    extract(bank)
    told = list(lines(bank, "toys/a"))
    assert "  files     those of rgb and depth" in told and not any("STALE" in line for line in told)
    register(bank, depth_hash="other")
    assert any("STALE" in line for line in lines(bank, "toys/a"))
