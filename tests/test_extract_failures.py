"""Extraction and what goes wrong: each failure costs its own clip, is kept, counted and tried again."""

import os
import subprocess
import time

import numpy as np
import pytest
from extract_toys import assert_same, contents, extract, write_corpus
from media_files import cut, noise, write_video

from extract.space import DiskSpaceError
from store.errors import FrameBankError


def test_failures_are_kept_counted_and_tried_again(tmp_path, capsys):
    dataset = write_corpus(tmp_path / "corpus", clips=8)
    (tmp_path / "corpus" / "clip 001.avi").write_bytes(b"")
    (tmp_path / "corpus" / "clip 004.avi").write_text("this is no video")
    good = (tmp_path / "corpus" / "clip 006.avi").read_bytes()
    (tmp_path / "corpus" / "clip 006.avi").unlink()
    bank = extract(dataset, tmp_path / "bank", check=1)
    failures = {row["clip_id"]: row for row in bank.failures().to_pylist()}
    assert set(failures) == {"c001", "c004", "c006"}
    assert all(row["stage"] == "read" and row["attempts"] == 1 for row in failures.values())
    assert "0 bytes" in failures["c001"]["error"] and "no such file" in failures["c006"]["error"]
    assert "all of them: python -m store sql" in capsys.readouterr().err
    (tmp_path / "corpus" / "clip 006.avi").write_bytes(good)
    bank = extract(dataset, tmp_path / "bank", check=1)
    failures = {row["clip_id"]: row["attempts"] for row in bank.failures().to_pylist()}
    assert failures == {"c001": 2, "c004": 2}
    assert len(contents(bank)) == 2 * 6


def test_a_hanging_clip_costs_itself_only(tmp_path):
    """A FIFO that nobody writes to: opening it blocks in the kernel, for ever."""
    dataset = write_corpus(tmp_path / "corpus", clips=6)
    (tmp_path / "corpus" / "clip 003.avi").unlink()
    os.mkfifo(tmp_path / "corpus" / "clip 003.avi")
    started = time.monotonic()
    bank = extract(dataset, tmp_path / "bank", check=1, request={"timeout_seconds": 4.0, "workers": 2})
    assert time.monotonic() - started < 30
    (failure,) = bank.failures().to_pylist()
    assert failure["clip_id"] == "c003" and len(contents(bank)) == 2 * 5


def test_an_encoder_that_fails_for_one_clip_costs_that_clip(tmp_path):
    """Frames of all clips share batches; the white one fails alone."""
    dataset = write_corpus(tmp_path / "corpus", clips=6)
    write_video(
        tmp_path / "corpus" / "clip 002.avi", 9, 10, pattern=lambda k: np.full((48, 64, 3), 255, np.uint8)
    )
    bank = extract(dataset, tmp_path / "bank", check=1, request={"batch_frames": 36})
    (failure,) = bank.failures().to_pylist()
    assert (failure["clip_id"], failure["stage"]) == ("c002", "encode")
    assert failure["error"] == "ValueError: this encoder cannot look at white frames"
    assert len(contents(bank)) == 2 * 5


def test_values_that_are_not_finite_are_a_failure_not_a_feature(tmp_path):
    """White times infinity; black times infinity is NaN."""
    dataset = write_corpus(tmp_path / "corpus", clips=4, options={"gain": 1e30})
    bank = extract(dataset, tmp_path / "bank", check=1)
    assert {row["stage"] for row in bank.failures().to_pylist()} == {"store"} and len(bank.failures()) == 4
    assert not len(bank.sql("SELECT * FROM features"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_in_one_line_and_a_rerun_with_room_does_the_rest(tmp_path, monkeypatch):
    dataset = write_corpus(tmp_path / "corpus", clips=12)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this environment does not let tests mount a small disk")
    try:
        extract(dataset, disk / "bank", request={"register_only": True})
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - (16 << 10)))
        with pytest.raises(DiskSpaceError, match=r"21.5 KB would be written, \d+ B are free"):
            extract(dataset, disk / "bank", views=3)
        with monkeypatch.context() as others:  # who fill the disk after we have looked
            others.setattr("extract.command.require_space", lambda *arguments: None)
            with pytest.raises((FrameBankError, OSError), match=r"(?i)no space left"):
                extract(dataset, disk / "bank", views=3)
        (disk / "filler").unlink()
        bank = extract(dataset, disk / "bank")
        assert_same(contents(extract(dataset, tmp_path / "calm")), contents(bank))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_too_many_failures_stop_the_run_with_the_commonest_error(tmp_path, capsys):
    dataset = write_corpus(tmp_path / "corpus", clips=60, frames=lambda clip: 3)
    for clip in range(0, 60, 2):
        (tmp_path / "corpus" / f"clip {clip:03d}.avi").write_bytes(b"")
    bank = extract(dataset, tmp_path / "bank", check=1)
    told = capsys.readouterr().err
    assert "stopped: " in told and "--max-failures 0.2" in told and "read, DamagedMediaError" in told
    failed, done = len(bank.failures()), len(contents(bank)) // 2
    assert 20 <= failed + done < 60 and failed > 0.2 * (failed + done)
    bank = extract(dataset, tmp_path / "bank", check=1, request={"max_failures": 1.0})
    assert len(contents(bank)) == 2 * 30 and len(bank.failures()) == 30


def test_clips_that_are_cut_short_are_kept_and_recorded(tmp_path):
    dataset = write_corpus(tmp_path / "corpus", clips=3)
    whole = write_video(tmp_path / "whole.avi", 40, pattern=noise, size=(320, 240))
    cut(whole, tmp_path / "corpus" / "clip 001.avi", 0.5)
    bank = extract(dataset, tmp_path / "bank")
    assert len(contents(bank)) == 2 * 3
    sql = "SELECT clip_id FROM media_read WHERE decoded_frames < declared_frames"
    assert bank.sql(sql)["clip_id"].to_pylist() == ["c001"]
    sql = "SELECT declared_frames, decoded_frames, fps, width FROM media_read WHERE clip_id = 'c002'"
    assert bank.sql(sql).to_pylist() == [
        {"declared_frames": 10, "decoded_frames": 10, "fps": 10, "width": 64}
    ]
