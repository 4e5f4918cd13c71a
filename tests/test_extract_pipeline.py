"""From videos to a bank: what is stored is what the videos show, and only what is missing is done."""

import os
import time

import numpy as np
import pytest
from extract_toys import GRID, Patches, assert_same, contents, extract, pattern, write_corpus
from media_files import write_video

from extract.views import views_of
from store.places import thumbnail_path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Shared by the tests that do not change it."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


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
    assert 0 < metrics["extract/encode_seconds"] < run["wall_seconds"]
    assert metrics["extract/encode_seconds"] <= metrics["extract/encode_busy_seconds"]
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


def test_only_the_clips_that_the_condition_names(corpus, tmp_path, capsys):
    extract(corpus, tmp_path / "bank", where="subject = 'nobody'")
    assert "no clip of toy/rgb fits --where \"subject = 'nobody'\"" in capsys.readouterr().out
    bank = extract(corpus, tmp_path / "bank", where="subject = '1' AND label = 0")
    done = bank.sql("SELECT DISTINCT clip_id FROM clip_features ORDER BY 1")["clip_id"].to_pylist()
    truth = bank.sql("SELECT clip_id FROM clips WHERE subject = '1' AND label = 0 ORDER BY 1")[
        "clip_id"
    ].to_pylist()
    assert done == truth and 0 < len(done) < 12
    assert len(contents(extract(corpus, tmp_path / "bank"))) == 24
