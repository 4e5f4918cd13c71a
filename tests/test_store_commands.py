import json
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_toy as toy
import torch
from conftest import ROOT
from store_toy import CLS, DATASET, MODALITY, TOKENS

from store.__main__ import COMMANDS
from store.bank import Bank
from store.cli import run
from store.foreign import ForeignFileError, load_arrays
from store.importing import ImportingError, Source, matching


@pytest.fixture
def call(capsys):
    """Run ``python -m store ...`` in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run(COMMANDS, argv=[str(argument) for argument in arguments], prog="python -m store")
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def shared_bank(tmp_path_factory):
    bank = toy.filled(tmp_path_factory.mktemp("bank"), 6)
    with bank.record_run("probe", {"dataset": DATASET}) as run:
        run.used(bank.select(DATASET, MODALITY, field="cls"))
    return bank


def option(bank: Bank) -> list[str]:
    return ["--bank", str(bank.path)]


def test_the_module_runs_and_expected_errors_are_one_line(tmp_path):
    command = [sys.executable, "-m", "store", "info", "--bank", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "python -m extract" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0 and "--bank" in out
    assert COMMANDS[name].__doc__.split("\n")[0].split()[0] in out


def test_info_shows_what_there_is(call, shared_bank):
    code, out, _ = call("info", *option(shared_bank))
    assert code == 0
    assert "2 segments" in out and "cross-subject" in out and "1 runs" in out
    assert [line.split()[-4:-2] for line in out.splitlines() if "tokens  " in line and "joints@" in line]


def test_sql_prints_tables_csv_json_and_parquet(call, shared_bank):
    query = "SELECT camera, count(*) AS clips FROM clips GROUP BY ALL ORDER BY ALL"
    assert call("sql", query, *option(shared_bank))[1].splitlines() == [
        "camera  clips", "------  -----", "0           3", "1           3",
    ]  # fmt: skip
    assert call("sql", query, *option(shared_bank), "--format", "csv")[1] == "camera,clips\n0,3\n1,3\n"
    lines = call("sql", query, *option(shared_bank), "--format", "json")[1].splitlines()
    assert json.loads(lines[0]) == {"camera": "0", "clips": 3}
    sums = "SELECT sum(label) AS s, sum(label) / 4 AS q, now() AS t FROM clips"
    values = json.loads(call("sql", sums, *option(shared_bank), "--format", "json")[1])
    assert (values["s"], values["q"]) == (6, 1.5) and values["t"].startswith("20")
    code, _, err = call("sql", "SELEC 1", *option(shared_bank))
    assert code == 2 and err.startswith("error: catalog query: ") and err.count("\n") == 1


def test_sql_writes_parquet_to_stdout(shared_bank, tmp_path):
    with open(tmp_path / "out.parquet", "wb") as file:
        command = [sys.executable, "-m", "store", "sql", "SELECT * FROM coverage", "--format", "parquet"]
        subprocess.run([*command, *option(shared_bank)], cwd=ROOT, check=True, stdout=file)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3  # two fields, and the texts


def test_explain_traces_file_view_encoder_segment_and_runs(call, shared_bank):
    code, out, _ = call("explain", f"{DATASET}/clip 003", *option(shared_bank))
    assert code == 0
    rows = shared_bank.sql(
        "SELECT location, first_frame, features.frames FROM features JOIN segments USING (segment_id)"
        " WHERE item_id = 'clip 003' AND features.field = 'cls'"
    ).to_pylist()[0]
    last = rows["first_frame"] + rows["frames"] - 1
    assert f"segment {rows['location']} frames {rows['first_frame']} to {last}" in out
    times = " ".join(f"{frame / 4:.3g}" for frame in range(rows["frames"]))
    for text in (
        "clip 003.avi (not there now",
        "label_name wave",
        "cross-subject: test",
        times,
        "probe (done",
    ):
        assert text in out
    assert toy.spec().name in out and toy.spec().space_digest in out
    assert call("explain", "clip 003", *option(shared_bank))[1] == out
    code, _, err = call("explain", "clip 03", *option(shared_bank))
    assert code == 2 and "toy/clip 003" in err
    assert (
        "'a person who does a wave'"
        in call("explain", "_texts/a person who does a wave", *option(shared_bank))[1]
    )


def test_explain_tells_of_failures_and_replaced_files(call, tmp_path):
    bank = toy.filled(tmp_path, 2)
    with bank.writer(DATASET, MODALITY, toy.spec(frames=3), [CLS]) as writer:
        writer.fail("clip 000", "decode", "no frames")
    bank.register(DATASET, clips=toy.clips(2), media=toy.media(2, version=2))
    read = {"clip_id": "clip 000", "modality": MODALITY, "declared_frames": 120, "decoded_frames": 80}
    bank.record_media(DATASET, pa.Table.from_pylist([read]))
    out = call("explain", f"{DATASET}/clip 000", *option(bank))[1]
    assert "80 frames decoded, 120 declared" in out
    assert "STALE" in out and "at decode, 1 times: no frames" in out


def test_diff_says_why_two_sets_differ(call, tmp_path):
    bank = toy.filled(tmp_path, 1)
    other = toy.spec(frames=6, revision=2)
    with bank.writer(DATASET, MODALITY, other, [CLS]) as writer:
        toy.add(writer, "clip 000")
    code, out, _ = call("diff", toy.spec().name, other.name, *option(bank))
    assert code == 1 and "not comparable" in out
    assert [line.split() for line in out.splitlines()[3:]] == [
        ["reading.frames", "12", "6"],
        ["space.revision", "1", "2"],
    ]
    assert call("diff", other.name, other.name, *option(bank))[0] == 0
    assert call("diff", "joints", other.name, *option(bank))[0] == 2


def test_check_names_the_clip_and_forget_makes_it_missing(call, tmp_path):
    bank = toy.filled(tmp_path, 6)
    assert call("check", *option(bank))[0] == 0
    shard = next(tmp_path.rglob("cls/*/c/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    code, out, err = call("check", *option(bank))
    assert code == 1 and "clip 000" in out and "tokens" not in out
    assert "check --forget" in err
    code, out, _ = call("check", "--forget", *option(bank))
    assert code == 1 and "rows dropped" in out
    missing = bank.plan(DATASET, MODALITY, toy.spec(), ["cls", "tokens"])
    assert "clip 000" in missing["item_id"].to_pylist() and set(missing["field"].to_pylist()) == {"cls"}
    with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
        for clip in toy.clip_ids(6):
            toy.add(writer, clip)
    assert call("gc", *option(bank))[0] == 0
    assert call("check", *option(bank))[:1] == (0,)
    toy.assert_complete(bank, 6)


def test_gc_and_compact_report_what_they_did(call, tmp_path):
    bank = toy.registered(tmp_path, 6)
    for clip in toy.clip_ids(6):
        with bank.writer(DATASET, MODALITY, toy.spec(), [CLS, TOKENS]) as writer:
            toy.add(writer, clip)
    assert bank.sql("SELECT count(*) AS n FROM segments")["n"][0].as_py() == 12
    code, out, _ = call("compact", *option(bank))
    assert code == 0 and out == "12 segments rewritten, 12 removed, 0 replaced ones wait for their readers\n"
    assert bank.sql("SELECT count(*) AS n FROM segments")["n"][0].as_py() == 2
    toy.assert_complete(bank, 6)
    assert call("compact", *option(bank))[1].startswith("0 segments rewritten")
    assert "0 B freed" in call("gc", *option(bank))[1]
    assert call("compact", "--megabytes", "0", *option(bank))[0] == 2


def test_reindex_rebuilds_from_the_segments_alone(call, tmp_path):
    bank = toy.filled(tmp_path, 6)
    with bank.record_run("probe", {}) as record:
        record.metric("accuracy", 0.5)
    before = bank.sql("SELECT * EXCLUDE (created_at) FROM feature_sets").to_pylist()
    features = "SELECT * FROM features ORDER BY field, item_id, view"
    rows = bank.sql(features)
    bank.catalog.path.unlink()
    code, out, _ = call("reindex", *option(bank))
    assert code == 0 and out == "2 segments of 1 feature sets and 1 runs are in the catalog\n"
    again = Bank.open(tmp_path)
    assert again.sql("SELECT * EXCLUDE (created_at) FROM feature_sets").to_pylist() == before
    assert again.sql("SELECT value FROM leaderboard")["value"].to_pylist() == [0.5]
    toy.registered(tmp_path, 6)
    toy.assert_complete(again, 6)
    assert again.sql(features).drop_columns(["media_key"]) == rows.drop_columns(["media_key"])


def test_reindex_sets_a_broken_catalog_aside(call, tmp_path):
    bank = toy.filled(tmp_path, 2)
    bank.catalog.path.write_bytes(b"rubbish" * 999)
    code, _, err = call("reindex", *option(bank))
    assert code == 0 and "catalog.duckdb.broken-1" in err
    assert (tmp_path / "catalog.duckdb.broken-1").read_bytes() == b"rubbish" * 999
    toy.registered(tmp_path, 2)
    toy.assert_complete(Bank.open(tmp_path), 2)
    assert call("reindex", "--bank", tmp_path / "none")[0] == 2


def test_export_of_the_catalog_is_parquet(call, shared_bank, tmp_path):
    code, out, _ = call("export", tmp_path / "snap", *option(shared_bank))
    assert code == 0 and str(tmp_path / "snap" / "clips.parquet") in out
    assert pq.read_table(tmp_path / "snap" / "clips.parquet").num_rows == 6
    assert set(pq.read_table(tmp_path / "snap" / "coverage.parquet")["encoded"].to_pylist()) == {0, 6}
    (tmp_path / "file").touch()
    assert call("export", tmp_path / "file", *option(shared_bank))[0] == 2


def test_export_of_a_selection_loads_without_pickle(call, shared_bank, tmp_path):
    file = tmp_path / "out" / "toy.npz"
    code, _, _ = call(
        "export", file, *option(shared_bank), "--dataset", DATASET, "--modality", MODALITY,
        "--field", "tokens", "--where", "label = 1",
    )  # fmt: skip
    assert code == 0
    with np.load(file, allow_pickle=False) as data:
        assert data["items"].tolist() == ["clip 001", "clip 004"] and data["labels"].tolist() == [1, 1]
        np.testing.assert_array_equal(data["values"][: data["offsets"][1]], toy.values("clip 001"))
        assert len(data["times_seconds"]) == len(data["values"])
        assert json.loads(str(data["about"]))["feature_set"] == toy.spec().name
    assert call("export", file, *option(shared_bank), "--dataset", DATASET)[0] == 2
    odd = [tmp_path / "x.csv", *option(shared_bank), "--dataset", DATASET, "--modality", MODALITY]
    assert call("export", *odd)[0] == 2


# --- import


class Payload:
    """Unpickling this makes a file: what a hostile ``.npy`` would do with anything."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def arrays() -> dict[str, np.ndarray]:
    return {clip: toy.values(clip)[:, 0] for clip in toy.clip_ids(3)}


def write_folder(folder, suffix: str) -> None:
    folder.mkdir()
    for clip, array in arrays().items():
        file = folder / f"{clip}_2d{suffix}"
        if suffix == ".npy":
            np.save(file, array)
        elif suffix == ".npz":
            np.savez(file, features=array)
        elif suffix == ".pt":
            torch.save(torch.from_numpy(array), file)
        else:
            with h5py.File(file, "w") as target:
                target["deep/features"] = array


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
def test_importing_a_file_per_clip(call, tmp_path, suffix):
    bank = toy.registered(tmp_path / "bank", 3)
    write_folder(tmp_path / "in", suffix)
    arguments = ["--dataset", DATASET, "--modality", "rgb", "--encoder", "resnet152", "--fps", "2"]
    pattern = ["--pattern", "{clip_id}_2d" + suffix]
    code, out, _ = call("import", tmp_path / "in", *arguments, *pattern, *option(bank))
    assert code == 0 and out.startswith("3 clips imported as resnet152@")
    selection = bank.select(DATASET, "rgb")
    assert selection.field.name == "cls" and selection.items.tolist() == toy.clip_ids(3)
    for row, (clip, array) in enumerate(arrays().items()):
        np.testing.assert_array_equal(selection.read([row])[0][:, 0], array, clip)
        np.testing.assert_array_equal(selection.times([row])[0], np.arange(len(array)) / 2)
    assert call("import", tmp_path / "in", *arguments, "--pattern", "x.npy", *option(bank))[0] == 2


def test_importing_one_file_with_all_clips(call, tmp_path):
    bank = toy.registered(tmp_path / "bank", 3)
    np.savez(tmp_path / "all.npz", **arrays())
    torch.save({clip: torch.from_numpy(array) for clip, array in arrays().items()}, tmp_path / "all.pt")
    matrix = np.arange(24, dtype=np.float64).reshape(3, 8)
    np.save(tmp_path / "all.npy", matrix)
    (tmp_path / "ids.txt").write_text("\n".join(reversed(toy.clip_ids(3))) + "\n")
    common = ["--dataset", DATASET, *option(bank)]
    for number, name in enumerate(("all.npz", "all.pt")):
        place = ["--modality", f"m{number}", "--encoder", "other"]
        assert call("import", tmp_path / name, *common, *place)[0] == 0
        np.testing.assert_array_equal(
            bank.select(DATASET, f"m{number}").read([1])[0][:, 0], arrays()["clip 001"]
        )
    place = ["--modality", "m2", "--encoder", "other", "--ids", tmp_path / "ids.txt"]
    assert call("import", tmp_path / "all.npy", *common, *place)[0] == 0
    selection = bank.select(DATASET, "m2")
    assert selection.field.name == "embedding"
    np.testing.assert_array_equal(selection.materialise("mean"), matrix[::-1])
    assert call("import", tmp_path / "all.npy", *common, "--modality", "m3", "--encoder", "other")[0] == 2


def test_importing_unknown_clips_needs_leave(call, tmp_path):
    np.savez(tmp_path / "all.npz", a=np.ones((2, 4)), b=np.ones((2, 4)))
    arguments = ["import", tmp_path / "all.npz", "--bank", tmp_path / "bank", "--dataset", "new",
                 "--modality", "rgb", "--encoder", "x", "--space", '{"revision": 3}']  # fmt: skip
    code, _, err = call(*arguments)
    assert code == 2 and "clips that it does not have: a, b" in err
    assert call(*arguments, "--add-clips")[0] == 0
    assert Bank.open(tmp_path / "bank").select("new", "rgb").spec.space["revision"] == 3


def test_what_cannot_be_imported_is_a_failure_of_its_clip(call, tmp_path):
    bank = toy.registered(tmp_path / "bank", 6)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "clip 000.npy").write_text("no array")
    np.save(folder / "clip 001.npy", np.ones((2, 4)))
    np.save(folder / "clip 002.npy", np.ones((2, 5)))
    np.save(folder / "clip 003.npy", np.array([[1, np.nan, 1, 1]]))
    np.save(folder / "clip 004.npy", np.array([Payload(tmp_path / "pwned")]), allow_pickle=True)
    np.savez(folder / "clip 005.npz", a=np.ones((1, 4)), b=np.ones((1, 4)))
    arguments = ["--dataset", DATASET, "--modality", "rgb", "--encoder", "x", *option(bank)]
    code, out, _ = call("import", folder, *arguments)
    assert code == 1 and "1 clips imported" in out and "5 failed" in out
    errors = {row["clip_id"]: row["error"] for row in bank.failures(DATASET, "rgb").to_pylist()}
    assert "(T, 1, 4)" in errors["clip 002"] and "nan" in errors["clip 003"]
    assert "could execute code" in errors["clip 004"] and "a, b" in errors["clip 005"]
    assert not (tmp_path / "pwned").exists()


def test_pickled_objects_are_refused_not_executed(tmp_path):
    bomb = tmp_path / "pwned"
    np.save(tmp_path / "a.npy", np.array([Payload(bomb)]), allow_pickle=True)
    np.savez(tmp_path / "b.npz", features=np.array([Payload(bomb)], object))
    torch.save({"features": Payload(bomb)}, tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Payload(bomb)))
    (tmp_path / "e.npy").write_bytes(pickle.dumps(Payload(bomb)))
    for name in ("a.npy", "b.npz", "c.pt", "d.pt", "e.npy"):
        with pytest.raises(ForeignFileError, match=r"could execute code|cannot be read"):
            load_arrays(tmp_path / name)
        assert not bomb.exists()
    with pytest.raises(FileNotFoundError):
        bomb.rmdir()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the payload does work where it is let
    assert bomb.is_dir()


def test_h5_links_out_of_the_file_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(3)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["own"] = np.zeros(2)
        file["outside"] = h5py.ExternalLink("secret.h5", "x")
        file["words"] = "hello"
    assert list(load_arrays(tmp_path / "in.h5")) == ["own"]


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.h5", "a.txt"])
def test_files_that_are_not_what_they_say(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises((ForeignFileError, KeyError), match=name):
        load_arrays(tmp_path / name)


def test_names_of_files_give_clip_ids(tmp_path):
    for name in ("a_2d.npz", "b c_2d.npz", "sub/d_2d.npz", "e_3d.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [clip for clip, _ in matching(tmp_path, "{clip_id}_2d.npz")] == ["a", "b c", "sub/d"]
    assert [clip for clip, _ in matching(tmp_path, None)] == ["a_2d", "b c_2d", "e_3d", "sub/d_2d"]
    with pytest.raises(ImportingError, match=r"must hold \{clip_id\} once"):
        list(matching(tmp_path, "*.npz"))
    (tmp_path / "ids").write_text("a\nb\n")
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    with pytest.raises(ImportingError, match=r"array \(3, 4\) but 2 ids"):
        Source(tmp_path / "x.npy", ids=tmp_path / "ids").entries()


def test_printed_tables_cut_long_cells_only_for_people(call, shared_bank):
    long = "x" * 100
    assert "…" in call("sql", f"SELECT '{long}' AS a", *option(shared_bank))[1]
    assert long in call("sql", f"SELECT '{long}' AS a", *option(shared_bank), "--format", "csv")[1]


def test_a_command_ends_without_the_teardown_of_native_libraries(tmp_path):
    """What runs at exit still runs, output is whole, the code is the command's; statics are left alone."""
    script = tmp_path / "command.py"
    script.write_text(
        "import atexit\nfrom store.cli import run\n\n"
        "def count(to: int = 3) -> int:\n    '''Count.\n\n    Args:\n        to: Last.\n    '''\n"
        "    atexit.register(print, 'at exit')\n    print(to)\n    return 1\n\nrun(count)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "--to", "5"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))},
    )
    assert (done.returncode, done.stdout) == (1, "5\nat exit\n"), done.stderr
