"""From videos to a bank: what is stored is what the videos show; only what is missing is done; failures cost
one clip each."""

import os
import subprocess
import time

import numpy as np
import pytest
import torch
from extract_toys import (
    GRID,
    ClipPatches,
    Patches,
    assert_same,
    contents,
    install_encoders,
    pattern,
    write_corpus,
)
from media_files import cut, noise, write_video

from extract.command import Request, execute
from extract.encode import BatchEncoder
from extract.resolve import Choices
from extract.rivals import Rivals
from extract.views import views_of
from extract.workers import DecodePool
from store.bank import Bank
from store.commit import FeatureSet
from store.errors import FrameBankError
from store.places import thumbnail_path
from store.spec import FeatureSpec


@pytest.fixture(autouse=True)
def toys():
    install_encoders()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Shared by the tests that do not change it."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module", autouse=True)
def shared_pool():
    """One decode process for most tests: starting one takes longer than their clips do."""
    with DecodePool(1) as pool:
        extract.pool = pool
        yield


def extract(dataset, bank, check=0, modality="rgb", request=None, **choices):
    asked = Request(str(dataset), modality, None, str(bank), Choices(**choices), **(request or {}))
    own_pool = {"workers", "timeout_seconds"} & (request or {}).keys()
    assert execute(asked, None if own_pool else extract.pool) == check
    return Bank.open(bank)


# What is stored ------------------------------------------------


def test_features_are_what_the_videos_show(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank")
    found = contents(bank)
    assert len(found) == 2 * 12
    for clip in range(12):
        tokens, times = found["tokens", 0, f"c{clip:03d}"]
        frames = 8 + clip % 5
        wanted = ((np.arange(6) + 0.5) * frames / 6).astype(int)
        assert np.allclose(times, wanted / 10, atol=1e-3)
        assert tokens.shape == (6, GRID * GRID, 3) and tokens.dtype == np.float16
        truth = np.stack([pattern(clip, k) for k in wanted])[:, 6::12, 8::16].reshape(6, 16, 3) / 255
        assert np.abs(tokens - truth).max() < 3 / 255  # the codec's loss
        cls, _ = found["cls", 0, f"c{clip:03d}"]
        assert np.allclose(cls[:, 0], tokens.astype(np.float32).mean(1), atol=1e-3)


def test_a_second_run_does_nothing_and_says_so(corpus, tmp_path, capsys):
    bank = extract(corpus, tmp_path / "bank")
    before = bank.sql("SELECT * FROM features ORDER BY ALL"), bank.sql("SELECT count(*) FROM runs")
    capsys.readouterr()
    bank = extract(corpus, tmp_path / "bank")
    assert "nothing is missing: all 12 clips of toy/rgb have patches@" in capsys.readouterr().out
    assert (bank.sql("SELECT * FROM features ORDER BY ALL"), bank.sql("SELECT count(*) FROM runs")) == before


def test_another_sampling_writes_a_second_set_beside_the_first(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank")
    first = contents(bank)
    bank = extract(corpus, tmp_path / "bank", fps=5.0)
    names = bank.sql("SELECT name FROM feature_sets ORDER BY created_at")["name"].to_pylist()
    assert len(names) == 2
    assert_same(first, contents(bank, encoder=names[0]))
    clip_3 = contents(bank, encoder=names[1])["cls", 0, "c003"]
    assert len(clip_3[0]) == 5 and np.allclose(np.diff(clip_3[1]), 0.2, atol=1e-3)  # 11 frames at 10 Hz


def test_a_field_asked_for_later_is_added_without_writing_the_others_again(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank", fields=("cls",))
    segments = bank.sql("SELECT segment_id FROM segments WHERE field = 'cls'")
    bank = extract(corpus, tmp_path / "bank", fields=("cls", "embedding"))
    assert bank.sql("SELECT segment_id FROM segments WHERE field = 'cls'") == segments
    found = contents(bank)
    for clip in range(12):
        (embedding, time), (cls, times) = (
            found["embedding", 0, f"c{clip:03d}"],
            found["cls", 0, f"c{clip:03d}"],
        )
        assert embedding.shape == (1, 1, 3)
        assert np.allclose(embedding[0], cls.astype(np.float32).mean(0), atol=1e-3)
        assert np.isclose(time[0], (times[0] + times[-1]) / 2, atol=1e-3)


def test_views_differ_are_the_catalogs_and_the_first_is_the_plain_one(corpus, tmp_path):
    plain = contents(extract(corpus, tmp_path / "plain"))
    bank = extract(corpus, tmp_path / "bank", views=3)
    found = contents(bank)
    assert len(found) == 2 * 3 * 12
    assert_same(plain, {key: value for key, value in found.items() if key[1] == 0})
    drawn = views_of(bank.catalog, "toy", [("c004", 1), ("c004", 2)])
    frames = 12
    for view in (1, 2):
        start, end = drawn["c004", view].window
        times = found["tokens", view, "c004"][1]
        assert start * frames / 10 - 0.1 <= times[0] and times[-1] < end * frames / 10
    assert not np.array_equal(found["tokens", 1, "c004"][0], found["tokens", 2, "c004"][0])


def test_a_clip_encoder_with_fewer_steps_has_the_times_of_its_steps(corpus, tmp_path):
    choices = {"encoder": "clip-patches", "fields": ("cls", "embedding"), "frames": 6}
    found = contents(extract(corpus, tmp_path / "bank", **choices))
    full = contents(extract(corpus, tmp_path / "full"))
    for clip in range(12):
        values, times = found["cls", 0, f"c{clip:03d}"]
        assert np.array_equal(values, full["cls", 0, f"c{clip:03d}"][0][::2])
        assert np.allclose(times, full["cls", 0, f"c{clip:03d}"][1].reshape(3, 2).mean(1))
        assert found["embedding", 0, f"c{clip:03d}"][0].shape == (1, 1, 3)


def test_thumbnails_are_made_in_passing(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank")
    for clip in range(12):
        for strip in (False, True):
            assert thumbnail_path(bank, "toy", "rgb", f"c{clip:03d}", strip).stat().st_size > 300


def test_each_run_is_recorded_with_its_measurements(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank")
    (run,) = bank.sql("SELECT command, status, wall_seconds, config->>'feature_set' s FROM runs").to_pylist()
    assert run["command"] == "extract" and run["status"] == "done" and run["wall_seconds"] > 0
    assert run["s"] == bank.sql("SELECT name FROM feature_sets")["name"][0].as_py()
    metrics = dict(zip(*bank.sql("SELECT name, value FROM metrics").to_pydict().values(), strict=True))
    assert metrics["extract/clips"] == 12 and metrics["extract/failed"] == 0
    assert metrics["extract/bytes"] == 12 * 6 * (16 + 1) * 3 * 2
    assert 0 < metrics["extract/encode_seconds"] < run["wall_seconds"] * 4
    assert metrics["extract/decode_seconds"] > 0


def test_every_text_is_encoded_once(corpus, tmp_path, capsys):
    bank = extract(corpus, tmp_path / "bank", modality="text")
    known = bank.sql("SELECT text FROM texts")["text"].to_pylist()
    assert {"wave", "kick", "a wave, take 0", "a kick, take 3"} <= set(known) and len(known) == len(
        set(known)
    )
    features = bank.texts(known)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=2e-3)
    wave, take, kick = bank.texts(["wave", "a wave, take 0", "kick"])
    assert wave @ take > kick @ take
    extract(corpus, tmp_path / "bank", modality="text")
    assert "nothing is missing" in capsys.readouterr().out


def test_precision_auto_adopts_that_of_the_only_equal_set(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Patches, "tolerates_bf16", True)
    monkeypatch.setattr("extract.resolve.default_precision", lambda device, tolerant: "bf16")
    extract(corpus, tmp_path / "bank", precision="fp32")
    capsys.readouterr()
    bank = extract(corpus, tmp_path / "bank")
    assert "nothing is missing" in capsys.readouterr().out
    extract(corpus, tmp_path / "bank", precision="bf16")
    assert len(bank.sql("SELECT * FROM feature_sets")) == 2
    assert len(extract(corpus, tmp_path / "other").sql("SELECT * FROM feature_sets")) == 1


# What is missing -----------------------------------------------


def test_a_replaced_file_is_extracted_again_and_only_that(tmp_path):
    dataset = write_corpus(tmp_path / "corpus", clips=5)
    bank = extract(dataset, tmp_path / "bank")
    before = contents(bank)
    changed = tmp_path / "corpus" / "clip 002.avi"
    write_video(changed, 9, 10, pattern=lambda k: pattern(30, k))
    os.utime(changed, (time.time() + 5, time.time() + 5))
    bank = extract(dataset, tmp_path / "bank")
    assert bank.sql("SELECT value FROM metrics WHERE name = 'extract/clips' ORDER BY 1")[
        "value"
    ].to_pylist() == [1, 5]
    after = contents(bank)
    assert np.allclose(after["tokens", 0, "c002"][0][:, 0], (20 + 3 * 30) / 255, atol=3 / 255)
    del (
        before["tokens", 0, "c002"],
        before["cls", 0, "c002"],
        after["tokens", 0, "c002"],
        after["cls", 0, "c002"],
    )
    assert_same(before, after)


def test_only_the_clips_that_the_condition_names(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank", where="subject = '1' AND label = 0")
    done = bank.sql("SELECT DISTINCT clip_id FROM clip_features ORDER BY 1")["clip_id"].to_pylist()
    truth = bank.sql("SELECT clip_id FROM clips WHERE subject = '1' AND label = 0 ORDER BY 1")[
        "clip_id"
    ].to_pylist()
    assert done == truth and 0 < len(done) < 12
    assert len(contents(extract(corpus, tmp_path / "bank"))) == 24


# What fails ----------------------------------------------------


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
def test_a_full_disk_ends_the_run_in_one_line_and_a_rerun_with_room_does_the_rest(tmp_path):
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
    bank = extract(dataset, tmp_path / "bank", check=1, request={"max_failures": 0.6})
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


# Several at once -----------------------------------------------


def test_runs_of_one_feature_set_start_at_different_ends_and_skip_what_others_did(corpus, tmp_path):
    bank = extract(corpus, tmp_path / "bank", where="label = 0")
    spec = FeatureSpec.from_json(bank.sql("SELECT spec::VARCHAR s FROM feature_sets")["s"][0].as_py())
    owner = FeatureSet("toy", "rgb", spec)
    config = {"dataset": "toy", "modality": "rgb", "feature_set": spec.name}

    def rivals(run):
        return Rivals(bank, owner, ("tokens", "cls"), 1, run.id, look_seconds=0.0)

    with bank.record_run("extract", config) as first, bank.record_run("extract", config) as second:
        with bank.record_run("extract", config | {"modality": "depth"}):
            pass
        assert rivals(second).order(4) == [3, 2, 1, 0]
        with bank.record_run("extract", config) as third:
            assert rivals(third).order(8) == [4, 5, 6, 7, 0, 1, 2, 3]
            with bank.record_run("extract", config) as fourth:
                assert rivals(fourth).order(8) == [2, 3, 4, 5, 6, 7, 0, 1]
        labels = dict(zip(*bank.sql("SELECT clip_id, label FROM clips").to_pydict().values(), strict=True))
        mine = rivals(first)
        assert {clip: mine.has_done(clip, 0) for clip in labels} == {
            c: label == 0 for c, label in labels.items()
        }
    with bank.record_run("extract", config) as alone:
        mine = rivals(alone)
        assert mine.order(4) == [0, 1, 2, 3]
        assert not any(mine.has_done(clip, 0) for clip in labels)


# Batches -------------------------------------------------------


@pytest.mark.parametrize("encoder", [Patches(), ClipPatches()])
def test_results_do_not_depend_on_batches_threads_or_order(encoder):
    rng = np.random.default_rng(0)
    clips = {key: rng.random((int(rng.integers(1, 30)), 16, 3), dtype=np.float32) * 0.9 for key in range(25)}
    fields = ("tokens", "cls", "embedding")

    def run(batch_frames, threads, order):
        with BatchEncoder(encoder, "fp32", "cpu", fields, batch_frames, threads) as batches:
            found = [one for key in order for one in batches.add(key, clips[key])]
            found += list(batches.flush())
        assert sorted(one.key for one in found) == sorted(clips)
        return {one.key: one.fields for one in found}

    reference = run(1, 1, range(25))
    for batch_frames, threads in ((7, 1), (8, 2), (64, 3), (10_000, 1)):
        other = run(batch_frames, threads, rng.permutation(25).tolist())
        for key, features in reference.items():
            for name in fields:
                assert np.array_equal(features[name], other[key][name]), (batch_frames, key, name)


def test_batches_cross_clip_boundaries_and_none_is_larger_than_asked():
    sizes = []

    class Counting(Patches):
        def encode(self, batch):
            sizes.append(len(batch))
            return super().encode(batch)

    with BatchEncoder(Counting(), "fp32", batch_frames=8, threads=2) as batches:
        for key in range(10):
            list(batches.add(key, np.zeros((5, 16, 3), np.float32)))
        list(batches.flush())
    assert sorted(sizes) == [2, *[8] * 6]


def test_the_encoder_runs_under_autocast_in_its_threads():
    seen = []

    class Looking(Patches):
        def encode(self, batch):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
            return super().encode(batch)

    for precision in ("fp32", "bf16"):
        with BatchEncoder(Looking(), precision, threads=2) as batches:
            list(batches.add(0, np.zeros((40, 16, 3), np.float32)))
            list(batches.flush())
    assert set(seen[:5]) == {(False, True)} and set(seen[5:]) == {(True, True)}
