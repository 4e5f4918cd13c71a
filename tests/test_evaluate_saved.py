"""Indexes beside the bank: what they find, when they are refused and with which command, how they grow."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from evaluate_bank import aligned_bank, joint_bank, metrics_of, trained

from evaluate.index_commands import build, extend, info
from evaluate.saved import SavedIndexError, index_folder, read_saved, saved_indexes
from evaluate.search import search
from evaluate.source import EvaluateError
from store.bank import Bank
from store.errors import FrameBankError
from store.spec import FeatureSpec, FieldSpec

SPEC, FIELD = FeatureSpec("clip", {"weights": "by hand"}), FieldSpec("embedding", 1, 8)


@pytest.fixture
def bank(tmp_path) -> Bank:
    """Forty clips of four classes in one space with their texts; class k along axis k."""
    return joint_bank(tmp_path / "bank")


def add_clips(bank: Bank, names: list[str]) -> None:
    """Further clips of class 2 (clap)."""
    known = bank.sql("SELECT * EXCLUDE (dataset) FROM clips WHERE dataset = 'joint'").select(
        ["clip_id", "label", "label_name"]
    )
    more = pa.table({"clip_id": names, "label": [2] * len(names), "label_name": ["clap"] * len(names)})
    bank.register("joint", clips=pa.concat_tables([known, more.cast(known.schema)]))
    with bank.writer("joint", "rgb", SPEC, [FIELD]) as writer:
        for name in names:
            writer.add(name, 0, {"embedding": 3 * np.eye(8)[2].reshape(1, 1, 8)}, [0.0])


def found(capsys) -> list[str]:
    """Clips of the table on stdout."""
    lines = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("-----")) + 1
    return [line.split()[2] for line in lines[start : lines.index("", start)]]


@pytest.mark.parametrize("kind", ["flat", "exact", "ivf-pq"])
def test_a_search_by_a_saved_index_finds_what_a_fresh_one_finds(bank, capsys, kind: str) -> None:
    search("clap", str(bank.path), top=7, index="flat")
    fresh = found(capsys)
    build(str(bank.path), kind=kind)
    assert kind in capsys.readouterr().out
    search("clap", str(bank.path), top=7, index=f"joint-rgb-{kind}")
    assert found(capsys) == fresh
    search("c02", str(bank.path), like=True, top=3, index=f"joint-rgb-{kind}")
    assert "c02" not in found(capsys)
    assert metrics_of(bank, "evaluate index")[0]["n"] == 40


def test_one_that_fits_is_taken_unasked_and_named(bank, capsys) -> None:
    build(str(bank.path), name="mine", kind="sq8")
    capsys.readouterr()
    search("clap", str(bank.path))
    assert "by index mine (sq8, approximate)" in capsys.readouterr().out
    search("clap", str(bank.path), index="flat")
    assert "mine" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["flat", "exact", "ivf-pq"])
def test_added_clips_make_it_stale_until_it_is_extended(bank, capsys, kind: str) -> None:
    build(str(bank.path), name="mine", kind=kind)
    before = (index_folder(bank.path, "mine") / "vectors.npy").read_bytes()
    add_clips(bank, ["new one", "new two"])
    with pytest.raises(SavedIndexError, match=r"2 items were added.*index extend --name mine --bank"):
        search("clap", str(bank.path), index="mine")
    extend(str(bank.path))
    assert "mine: 2 items added" in capsys.readouterr().out
    search("clap", str(bank.path), top=2, index="mine")
    assert sorted(read_saved(bank.path, "mine").items()["item_id"].to_pylist()[-2:]) == ["new one", "new two"]
    after = (index_folder(bank.path, "mine") / "vectors.npy").read_bytes()
    assert after[128:].startswith(before[128:])  # beyond the header: nothing was embedded twice
    extend(str(bank.path), "mine")
    assert "nothing is missing" in capsys.readouterr().out


def test_clips_that_were_encoded_again_make_it_stale(bank, capsys) -> None:
    """The media of c07 were replaced: its features have another key."""
    build(str(bank.path), name="mine")
    with bank.catalog.transaction() as connection:
        connection.execute("UPDATE features SET media_key = 'other' WHERE item_id = 'c07'")
    rebuild = "index build --name mine --kind exact --dataset joint --modalities rgb --bank"
    with pytest.raises(SavedIndexError, match=rf"stale: 1 of its 40 items.*'c07'.*{rebuild}"):
        search("clap", str(bank.path), index="mine")
    with pytest.raises(SavedIndexError, match="stale"):
        extend(str(bank.path), "mine")
    capsys.readouterr()
    search("clap", str(bank.path))
    captured = capsys.readouterr()
    assert "embedding all clips instead" in captured.err
    assert "mine" not in captured.out


@pytest.mark.parametrize("name", ["vectors.npy", "structure.faiss", "items.parquet"])
def test_a_flipped_byte_is_found(bank, name: str) -> None:
    build(str(bank.path), name="mine", kind="ivf-pq")
    path = index_folder(bank.path, "mine") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SavedIndexError, match=rf"{name} is damaged or missing; python -m evaluate"):
        info(str(bank.path), "mine")
    with pytest.raises(SavedIndexError, match=f"{name} is damaged or missing"):
        search("clap", str(bank.path), index="mine")


def test_a_truncated_or_edited_description_is_no_index(bank) -> None:
    build(str(bank.path), name="mine")
    path = index_folder(bank.path, "mine") / "index.json"
    whole = path.read_text()
    for wrong in (whole[:50], whole.replace('"joint"', '"other"'), json.dumps([1]), "{}"):
        path.write_text(wrong)
        with pytest.raises(SavedIndexError, match="not an index of ours, or damaged"):
            read_saved(bank.path, "mine")
        assert saved_indexes(bank.path) == []


def test_an_index_of_another_bank_is_refused(bank, tmp_path, capsys) -> None:
    """Same dataset and features by name, other clips."""
    other = joint_bank(tmp_path / "other")
    add_clips(other, ["elsewhere"])
    build(str(other.path), name="theirs")
    shutil.copytree(index_folder(other.path, "theirs"), index_folder(bank.path, "theirs"))
    with pytest.raises(SavedIndexError, match="1 of its 41 items are gone"):
        search("clap", str(bank.path), index="theirs")


def test_an_index_of_another_head_is_refused(tmp_path_factory, capsys) -> None:
    bank, checkpoint = aligned_bank(tmp_path_factory)
    build(str(bank.path), name="aligned", checkpoint=checkpoint, modalities="inertial,skeleton")
    capsys.readouterr()
    search("kick, seen from afar", str(bank.path), index="aligned", top=3, where="label_name = 'sit'")
    out = capsys.readouterr().out
    assert f"{checkpoint.removeprefix('run:')} space of inertial, skeleton and text, by index aligned" in out
    assert out.count("sit") > 2
    assert "kick" not in out.split("\n", 1)[1]
    other = trained(bank, seed=1)
    with pytest.raises(SavedIndexError, match=rf"index aligned: is of head \w+, not \w+.*{checkpoint}"):
        search("kick", str(bank.path), index="aligned", checkpoint=other)
    with pytest.raises(SavedIndexError, match=r"is of features .*inertial"):
        search("kick", str(bank.path), index="aligned", modalities="depth")


def test_names_are_told(bank) -> None:
    with pytest.raises(SavedIndexError, match=r"no index 'tree'; there are: none; `python -m evaluate"):
        search("clap", str(bank.path), index="tree")
    with pytest.raises(EvaluateError, match="'flat' is a kind of index"):
        build(str(bank.path), name="flat")
    with pytest.raises(EvaluateError, match="which index"):
        extend(str(bank.path))
    with pytest.raises(FrameBankError, match="no option named 'nlist'"):
        build(str(bank.path), kind="ivf-flat", options={"nlist": 4})
    assert not list((bank.path / "indexes").glob("*"))  # what failed leaves nothing


def test_what_a_killed_build_left_is_removed_by_the_next(bank) -> None:
    left = index_folder(bank.path, "mine").with_name("mine.partial-999999999")
    left.mkdir(parents=True)
    own = index_folder(bank.path, "mine").with_name(f"mine.partial-{os.getppid()}")
    own.mkdir()
    build(str(bank.path), name="mine")
    assert not left.exists()
    assert own.exists()  # its process lives


def test_info_lists_sizes(bank, capsys) -> None:
    info(str(bank.path))
    assert "no index yet" in capsys.readouterr().out
    build(str(bank.path), name="mine", kind="flat")
    capsys.readouterr()
    info(str(bank.path))
    out = capsys.readouterr().out
    assert "40 x 8" in out
    assert out.rstrip().endswith("fits")
    add_clips(bank, ["new one"])
    info(str(bank.path))
    assert capsys.readouterr().out.rstrip().endswith("1 to add")
    with bank.catalog.transaction() as connection:
        connection.execute("UPDATE features SET media_key = 'other' WHERE item_id = 'c07'")
    info(str(bank.path))
    captured = capsys.readouterr()
    assert captured.out.rstrip().endswith("stale")
    assert "'c07'" in captured.err
    info(str(bank.path), "mine")
    assert "made by python -m evaluate index build --name mine --kind flat" in capsys.readouterr().out


def test_texts_can_be_indexed_and_lead_to_their_clips(tmp_path_factory, capsys) -> None:
    bank, _ = aligned_bank(tmp_path_factory)
    search("clap, seen from afar", str(bank.path), top=2, index="flat", where="subject = 'P001'")
    fresh = found(capsys)
    build(str(bank.path), modalities="text", kind="hnsw", name="texts")
    capsys.readouterr()
    search("clap, seen from afar", str(bank.path), top=2, index="texts", where="subject = 'P001'")
    assert found(capsys) == fresh
