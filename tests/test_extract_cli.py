"""`python -m extract` as typed: it teaches, says in one line what is wrong, remembers the root, and can be
stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from extract_toys import (
    ENVIRONMENT,
    assert_same,
    command,
    contents,
    install_encoders,
    small_segments,
    start,
    write_corpus,
)

from encoders import ENCODERS
from extract.__main__ import main
from extract.datasets import dataset_names
from extract.progress import Progress, readable_bytes
from store.bank import Bank


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def plain(*arguments, check=2, cwd=ROOT):
    """The command without anything of ours in between; returns its last line on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "extract", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def complaint(capsys):
    """The one line that says what is wrong with some arguments (in this process: that is faster)."""

    def told(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        assert exit_.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line

    return told


@pytest.fixture
def here(capsys):
    """Run the command in this process; (stdout, stderr) after checking the exit status."""
    install_encoders()

    def run(*arguments, check=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in (*arguments, "--workers", 1)])
        out, err = capsys.readouterr()
        assert exit_.value.code == check, out + err
        return out, err

    return run


# --help --------------------------------------------------------


def test_help_answers_in_a_second_loads_nothing_heavy_and_teaches():
    began = time.perf_counter()
    done = plain("--help", check=0)
    assert time.perf_counter() - began < (1.0 if os.getloadavg()[0] < os.cpu_count() else 5.0)
    assert "python -m extract --dataset ntu --modality depth" in done.stdout
    assert (
        "--max-failures" in done.stdout and "--register-only" in done.stdout and "Exit status" in done.stdout
    )
    unwrapped = "".join(done.stdout.split())
    assert all(name in unwrapped for name, place in ENCODERS.items() if place.startswith("encoders."))
    script = "import sys, extract.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print(sorted({'torch', 'duckdb', 'transformers', 'decord', 'pyarrow'} & set(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", script + heavy], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1] == "[]"


# Usage errors --------------------------------------------------


def test_unknown_names_list_what_there_is(corpus, tmp_path, complaint):
    bank = ("--bank", tmp_path / "bank")
    error = complaint("--dataset", "utdmhad", *bank)
    assert "no dataset named 'utdmhad' (did you mean 'utd-mhad'?)" in error
    assert all(name in error for name in dataset_names())
    assert "which dataset?" in complaint(*bank) and "ntu" in complaint(*bank)
    assert not (tmp_path / "bank").exists()  # a mistake makes no bank
    error = complaint("--dataset", corpus, *bank, "--modality", "dept")
    assert "no modality named 'dept'" in error and "rgb, text" in error
    error = complaint("--dataset", corpus, *bank, "--modality", "rgb", "--encoder", "eficientnet")
    assert (
        "no encoder named 'eficientnet' (did you mean 'efficientnet-lite0'?)" in error and "joints" in error
    )
    error = complaint("--dataset", corpus, *bank, "--modality", "rgb", "--encoder", "joints")
    assert "does not encode 'rgb'" in error and "skeleton" in error
    real = ("--encoder", "efficientnet-lite0", "--fields", "clss")
    error = complaint("--dataset", corpus, *bank, "--modality", "rgb", *real)
    assert "no field named 'clss'; it writes: cls, tokens" in error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--frames", 0), "frames=0"),
        (("--frames", 4, "--fps", 2), "exactly one of them"),
        (("--views", 0), "--views 0"),
        (("--workers", 0), "--workers 0"),
        (("--timeout-seconds", 0), "--timeout-seconds 0"),
        (("--max-failures", -1), "--max-failures -1"),
        (("--where", "colour = 'red'"), "colour"),
        (("--device", "gpu9"), "gpu9"),
        (("--weights", "/nowhere.pt"), "/nowhere.pt"),
        (("--no-such-option", 1), "no_such_option"),
        (("--frames", "many"), "frames"),
    ],
)
def test_impossible_options_are_one_line_with_exit_2(corpus, tmp_path, complaint, options, told):
    fixed = ("--dataset", corpus, "--bank", tmp_path / "bank", "--modality", "rgb")
    assert told in complaint(*fixed, "--encoder", "efficientnet-lite0", *options)


def test_without_a_root_the_error_names_the_option(tmp_path, complaint):
    error = complaint("--dataset", "ntu", "--bank", tmp_path / "bank")
    assert "--root DIR" in error and "ntu.yaml" in error
    done = plain("--dataset", "ntu", "--bank", tmp_path / "bank")
    assert done.stderr.splitlines() == [error]  # nothing else, no traceback
    assert "is no folder" in complaint(
        "--dataset", "ntu", "--root", tmp_path / "none", "--bank", tmp_path / "bank"
    )


# What it does --------------------------------------------------


def test_the_root_is_needed_once(corpus, tmp_path, complaint, here):
    """As `python -m extract --dataset ntu` with a root that only the bank knows."""
    config = yaml.safe_load(corpus.read_text())
    root = config.pop("root")
    rootless = tmp_path / "toy.yaml"
    rootless.write_text(yaml.safe_dump(config))
    arguments = ("--dataset", rootless, "--bank", tmp_path / "bank", "--modality", "rgb")
    assert "--root DIR" in complaint(*arguments)
    out, err = here(*arguments, "--root", root)
    assert "12 clips added" in out
    # 12 x 6 frames x (16 + 1) x 3 x 2 bytes
    assert "12 clips to do, about 7.2 KB (tokens 6.8 KB, cls 432 B); fp32 on cpu" in err
    out, _ = here(*arguments)
    assert out.startswith("nothing is missing: all 12 clips of toy/rgb have patches@")


def test_a_config_file_gives_what_the_command_line_does_not(corpus, tmp_path, here, complaint):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"dataset": str(corpus), "modality": "rgb", "frames": 2, "fields": "cls"})
    )
    out, _ = here("--config", recipe, "--bank", tmp_path / "bank", "--frames", 3)
    assert "12 clips added" in out
    found = contents(Bank.open(tmp_path / "bank"))
    assert {(field, len(values)) for (field, _, _), (values, _) in found.items()} == {("cls", 3)}
    recipe.write_text(yaml.safe_dump({"dataset": str(corpus), "modalty": "rgb"}))
    assert "modalty" in complaint("--config", recipe, "--bank", tmp_path / "bank")


def test_without_modality_everything_that_the_yaml_lists_and_register_only_nothing(corpus, tmp_path, here):
    bank = tmp_path / "bank"
    out, _ = here("--dataset", corpus, "--bank", bank, "--register-only")
    assert "registered: 12 clips of 'toy'" in out
    opened = Bank.open(bank)
    assert len(opened.sql("SELECT * FROM clips")) == 12 and not len(opened.sql("SELECT * FROM features"))
    out, _ = here("--dataset", corpus, "--bank", bank)
    assert "toy/rgb patches@" in out and "texts minilm@" in out
    sets = Bank.open(bank).sql("SELECT dataset, modality FROM feature_sets ORDER BY ALL").to_pylist()
    assert sets == [{"dataset": "_texts", "modality": "text"}, {"dataset": "toy", "modality": "rgb"}]


def test_failed_clips_are_exit_1_and_the_rest_is_done(tmp_path, here):
    dataset = write_corpus(tmp_path / "corpus", clips=5)
    (tmp_path / "corpus" / "clip 003.avi").write_bytes(b"")
    out, err = here("--dataset", dataset, "--bank", tmp_path / "bank", "--modality", "rgb", check=1)
    assert "4 clips added, 1 failed" in out
    assert (
        "failed: c003 (read, attempt 1): DamagedMediaError: " in err and "the file is empty (0 bytes)" in err
    )
    query = err.split('"')[1]
    assert Bank.open(tmp_path / "bank").sql(query)["clip_id"].to_pylist() == ["c003"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_commits_what_is_done_and_a_rerun_does_the_rest(tmp_path, number):
    options = {"delay_seconds": 0.3}
    dataset = write_corpus(tmp_path / "corpus", 16, frames=lambda clip: 6, options=options)
    arguments = ("--dataset", dataset, "--bank", tmp_path / "bank", "--modality", "rgb")
    process = start(*arguments, prepare=small_segments)
    bank, deadline = None, time.monotonic() + 60
    while bank is None or not len(bank.sql("SELECT * FROM features LIMIT 1")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
        bank = Bank.open(tmp_path / "bank") if (tmp_path / "bank" / "features").exists() else None
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "left in " in out
    assert f"interrupted ({number.name}): what was done is committed; run the same command again" in err
    assert "Traceback" not in err
    half = contents(bank)
    assert 0 < len(half) < 2 * 16
    assert not list((tmp_path / "bank").glob("features/**/*.partial-*"))
    out, _ = command(*arguments)
    assert f"{16 - len(half) // 2} clips added" in out
    whole = contents(bank)
    assert len(whole) == 2 * 16
    assert_same(half, {key: whole[key] for key in half})


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_nothing_is_recorded_as_failed(tmp_path):
    """The terminal sends SIGINT to the whole process group."""
    dataset = write_corpus(tmp_path / "corpus", 16, frames=lambda clip: 6, options={"delay_seconds": 0.3})
    arguments = ("--dataset", dataset, "--bank", tmp_path / "bank", "--modality", "rgb")
    process = start(*arguments, prepare=small_segments, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "bank").glob("features/**/manifest.parquet")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not len(Bank.open(tmp_path / "bank").failures())


# Progress ------------------------------------------------------


class Terminal:
    def __init__(self, interactive):
        self.text, self.interactive = "", interactive

    def isatty(self):
        return self.interactive

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_lines_tell_speed_time_left_failures_and_shares(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("extract.progress.time.monotonic", lambda: now[0])
    stream = Terminal(False)
    with Progress("ntu/depth", 400, stream=stream) as progress:
        progress.show()
        assert stream.text == ""  # nothing to tell yet
        for second in range(1, 21):
            now[0] = 100.0 + second
            progress.update(10 * second, second // 10, {"decode": 6.0, "encode": 3.0, "write": 1.0})
            progress.show()
        lines = stream.text.splitlines()
        assert lines == [
            "ntu/depth: 150/400 clips, 1 failed, 10.0 clips/s, ETA 0:00:25, decode 60% encode 30% write 10%"
        ]
    assert stream.text.splitlines()[-1].startswith("ntu/depth: 200/400 clips, 2 failed, 10.0 clips/s")
    assert "\r" not in stream.text and "\x1b" not in stream.text


def test_progress_redraws_one_line_on_a_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("extract.progress.time.monotonic", lambda: now[0])
    stream = Terminal(True)
    with Progress("x", 10, stream=stream) as progress:
        for step in range(1, 11):
            now[0] = float(step)
            progress.update(step, 0, {"decode": 1.0})
            progress.show()
    assert stream.text.count("\n") == 1 and stream.text.count("\r") == 11
    assert "10/10 clips, 1.0 clips/s, ETA done" in stream.text


def test_sizes_read_well():
    told = [readable_bytes(count) for count in (0, 1023, 1536, 7 * 2**20, 2.5 * 2**40)]
    assert told == ["0 B", "1023 B", "1.5 KB", "7.0 MB", "2.5 TB"]
