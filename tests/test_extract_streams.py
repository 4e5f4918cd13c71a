"""Several streams of one clip: of different rates, the same moments; of one view, the same crop and flip."""

import csv
import os
import time

import numpy as np
import pytest
import yaml
from extract_toys import contents, extract
from media_files import write_sound, write_video
from PIL import Image

from encoders.errors import EncoderError
from extract.views import views_of
from store.bank import Bank

SECONDS, CLIPS = 2, 3
RGB_FPS, IR_FPS, DEPTH_FPS, SKELETON_FPS = 30, 60, 15, 20
RAMP = np.linspace(0, 200, 64).astype(
    np.uint8
)  # from left to right, so that a crop's brightness is its place
LEAN = 0.3  # metres that the head is to the right


def level(value, size=(64, 48)):
    return np.full((size[1], size[0], 3), value, np.uint8)


def write_depth(folder, frames, image):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(frames):
        Image.fromarray(image(k).astype(np.uint16)).save(folder / f"MDepth-{k + 1:08d}.png")


def skeleton(frames):
    """(T, 25, 3): an upright body whose head leans to the right."""
    body = np.random.default_rng(1).normal([0, 0, 3], 0.1, (25, 3))
    body[[0, 1, 20], 0], body[3, 0] = 0, LEAN
    body[[0, 1, 20], 1] = 0, 0.3, 0.5
    return np.repeat(body[None].astype(np.float32), frames, 0)


def write_streams(folder, rgb, ir, depth, depth_frames=SECONDS * DEPTH_FPS):
    """Clips a, b, c with all four streams of two seconds; returns the dataset's YAML."""
    folder.mkdir(parents=True)
    rows = []
    for clip in "abc"[:CLIPS]:
        write_video(folder / f"{clip}.avi", SECONDS * RGB_FPS, RGB_FPS, pattern=rgb)
        write_video(folder / f"{clip}-ir.avi", SECONDS * IR_FPS, IR_FPS, size=(96, 72), pattern=ir)
        write_depth(folder / f"{clip}-depth", depth_frames, depth)
        np.save(folder / f"{clip}.npy", skeleton(SECONDS * SKELETON_FPS))
        rows.append([clip, f"{clip}.avi", f"{clip}-ir.avi", f"{clip}-depth", f"{clip}.npy", "wave"])
    with (folder / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["clip_id", "rgb", "ir", "depth", "skeleton", "label"], *rows])
    readers = {
        "depth": {"reader": "depth-png", "fps": DEPTH_FPS},
        "skeleton": {"reader": "skeleton-npy", "fps": SKELETON_FPS},
    }
    config = {
        "name": "streams",
        "adapter": "listing",
        "root": str(folder),
        "options": {"readers": readers},
        "modalities": {"rgb": "patches", "ir": "patches", "rgb+depth": "both", "skeleton": "joints"},
    }
    (folder / "streams.yaml").write_text(yaml.safe_dump(config))
    return folder / "streams.yaml"


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    """Streams that tell the time: brightness 4 k of RGB, 2 k of infrared (of twice the rate), 8 k mm."""
    return write_streams(
        tmp_path_factory.mktemp("clocks") / "media",
        rgb=lambda k: level(4 * k),
        ir=lambda k: level(2 * k, (96, 72)),
        depth=lambda k: np.full((24, 32), 8 * k),
        depth_frames=SECONDS * DEPTH_FPS + 7,  # it goes on when the video has ended
    )


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """Streams that tell the place: brighter (and deeper) to the right."""
    wide = np.linspace(0, 200, 96).astype(np.uint8)
    return write_streams(
        tmp_path_factory.mktemp("ramps") / "media",
        rgb=lambda k: np.broadcast_to(RAMP[None, :, None], (48, 64, 3)).copy(),
        ir=lambda k: np.broadcast_to(wide[None, :, None], (72, 96, 3)).copy(),
        depth=lambda k: np.broadcast_to(RAMP[None], (48, 64)),
    )


def brightness(found, clip, view=0, channel=0):
    """(T,) of 0..255, and the times."""
    values, times = found["tokens", view, clip]
    return values[..., channel].astype(np.float32).mean(1) * 255, times


def test_a_stream_of_twice_the_rate_is_seen_at_the_same_times(clocks, tmp_path):
    """CMVRA reads RGB's indices from it, and so sees the first of its two seconds only."""
    bank = extract(clocks, tmp_path / "bank", modality="rgb,ir", frames=12, fields=("tokens",))
    rgb, ir = (contents(bank, "streams", name) for name in ("rgb", "ir"))
    for clip in "abc":
        (seen_rgb, times_rgb), (seen_ir, times_ir) = brightness(rgb, clip), brightness(ir, clip)
        wanted = (np.arange(12) + 0.5) * SECONDS / 12
        assert np.allclose(times_rgb, np.floor(wanted * RGB_FPS + 1e-3) / RGB_FPS, atol=2e-3)
        assert np.allclose(times_ir, np.floor(wanted * IR_FPS + 1e-3) / IR_FPS, atol=2e-3)
        assert np.abs(times_rgb - times_ir).max() <= 1 / RGB_FPS and times_ir[-1] > 1.8
        assert np.allclose(seen_rgb, 4 * RGB_FPS * times_rgb, atol=2)  # the frames themselves say so
        assert np.allclose(seen_ir, 2 * IR_FPS * times_ir, atol=2)


def test_cmvras_rule_over_each_streams_own_frames(clocks, tmp_path):
    recipe = {
        name: {"encoder": "patches", "sampling": {"frames": 5, "rule": "cmvra"}, "fields": "tokens"}
        for name in ("rgb", "ir")
    }
    bank = extract(clocks, tmp_path / "bank", modality="rgb,ir", modalities=recipe)
    for name, frames, step in (("rgb", 60, 4), ("ir", 120, 2)):
        chosen = np.linspace(0, frames - 2, 5).astype(int)
        seen, times = brightness(contents(bank, "streams", name), "a")
        assert np.allclose(seen, step * chosen, atol=2)
        assert np.allclose(times, chosen / frames * SECONDS, atol=2e-3)
    spec = bank.sql("SELECT DISTINCT spec->'reading'->'sampling' AS s FROM feature_sets")["s"].to_pylist()
    assert [yaml.safe_load(one) for one in spec] == [{"frames": 5, "rule": "cmvra"}]
    for number, choice in enumerate(({"frames": 3}, {"fps": 2.0})):  # another count keeps the rule
        bank = extract(clocks, tmp_path / f"{number}", modality="rgb", modalities=recipe, **choice)
        (spec,) = bank.sql("SELECT spec->'reading'->'sampling' AS s FROM feature_sets")["s"].to_pylist()
        assert yaml.safe_load(spec) == ({"frames": 3, "rule": "cmvra"} if "frames" in choice else {"fps": 2})


def test_two_modalities_at_once_are_read_at_the_same_times(clocks, tmp_path):
    bank = extract(clocks, tmp_path / "bank", modality="depth+rgb", frames=8)
    found = contents(bank, "streams", "rgb+depth")
    assert set(found) == {("tokens", 0, clip) for clip in "abc"}
    seen, times = brightness(found, "b")
    depth, _ = brightness(found, "b", channel=3)
    wanted = (np.arange(8) + 0.5) * SECONDS / 8  # of the two seconds that both have, not of depth's 2.5
    assert np.allclose(times, np.floor(wanted * RGB_FPS + 1e-3) / RGB_FPS, atol=2e-3)
    assert np.allclose(seen, 4 * np.floor(wanted * RGB_FPS + 1e-3), atol=2)
    assert np.allclose(depth, 8 * np.floor(wanted * DEPTH_FPS + 1e-3), atol=1)
    (reading,) = bank.sql("SELECT spec->'reading'->'readers' AS r FROM feature_sets")["r"].to_pylist()
    assert set(yaml.safe_load(reading)) == {"video", "depth-png"}
    (row,) = bank.sql("SELECT * FROM coverage WHERE modality = 'rgb+depth'").to_pylist()
    assert (row["clips"], row["encoded"], row["failed"]) == (3, 3, 0)


def test_several_modalities_are_not_among_all_unless_the_yaml_lists_them(clocks, tmp_path):
    bank = extract(clocks, tmp_path / "bank", modality=None, frames=4)
    sets = bank.sql("SELECT DISTINCT modality FROM feature_sets ORDER BY 1")["modality"].to_pylist()
    assert sets == ["ir", "rgb", "rgb+depth", "skeleton"]
    bank = extract(clocks, tmp_path / "other", modality=None, frames=4, modalities={"ir": "patches"})
    assert bank.sql("SELECT DISTINCT modality FROM feature_sets")["modality"].to_pylist() == ["ir"]


def test_without_an_encoder_those_that_take_the_modalities_are_named(clocks, tmp_path):
    with pytest.raises(
        EncoderError, match=r"no encoder is configured for ir\+depth; name one by --encoder: n"
    ):
        extract(clocks, tmp_path / "bank", modality="depth+ir")
    recipe = {"rgb": "patches"}
    with pytest.raises(
        EncoderError, match=r"configured for rgb\+depth; name one by --encoder: .*omnivore-swin-b"
    ):
        extract(clocks, tmp_path / "bank", modality="rgb+depth", modalities=recipe)


def test_every_frame_of_streams_with_different_rates_is_refused(clocks, tmp_path):
    bank = extract(clocks, tmp_path / "bank", check=1, modality="rgb+depth", frames="all")
    errors = bank.failures()["error"].to_pylist()
    assert len(errors) == 3
    assert all("rgb+depth: 60 and 30 frames; every stream must give equally many" in one for one in errors)


@pytest.mark.parametrize("replaced", ["rgb", "depth"])
def test_replacing_either_file_makes_that_clip_missing_again(replaced, tmp_path):
    dataset = write_streams(
        tmp_path / "media", lambda k: level(k), lambda k: level(k, (96, 72)), lambda k: np.full((24, 32), k)
    )
    bank = extract(dataset, tmp_path / "bank", modality="rgb+depth", frames=4)
    before = contents(bank, "streams", "rgb+depth")
    if replaced == "rgb":
        changed = write_video(tmp_path / "media" / "b.avi", 60, 30, pattern=lambda k: level(90))
    else:
        write_depth(tmp_path / "media" / "b-depth", 30, lambda k: np.full((24, 32), 90))
        changed = tmp_path / "media" / "b-depth" / "MDepth-00000001.png"
    os.utime(changed, (time.time() + 5, time.time() + 5))
    bank = extract(dataset, tmp_path / "bank", modality="rgb+depth", frames=4)
    added = bank.sql("SELECT value FROM metrics WHERE name = 'extract/clips' ORDER BY 1")["value"].to_pylist()
    assert added == [1, 3]
    after = contents(bank, "streams", "rgb+depth")
    channel = 0 if replaced == "rgb" else 3
    assert np.allclose(brightness(after, "b", channel=channel)[0], 90, atol=2)
    assert all(np.array_equal(before[key][0], after[key][0]) for key in before if key[2] != "b")


def test_sound_has_the_times_of_its_spectrograms_steps_and_the_size_that_was_told(tmp_path, capsys):
    """Clips of 2 and 1 s of one recording, 100 log-mel frames a second, four of them a step."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 4 * 16000))
    write_sound(tmp_path / "talk.wav", sound)
    rows = [["clip_id", "audio", "start", "end"], ["a", "talk.wav", 1, 3], ["b", "talk.wav", 3, 4]]
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    options = {"architecture": "tiny"}
    config = {
        "adapter": "listing",
        "root": str(tmp_path),
        "modalities": {"audio": {"encoder": "davenet", "weights": "random", "options": options}},
    }
    (tmp_path / "talk.yaml").write_text(yaml.safe_dump(config))
    bank = extract(tmp_path / "talk.yaml", tmp_path / "bank", modality="audio")
    assert "2 clips to do, about 1.8 KB (tokens 1.8 KB, embedding 48 B)" in capsys.readouterr().err
    for clip, start, seconds in (("a", 1, 2), ("b", 3, 1)):
        values, times = contents(bank, "talk", "audio")["tokens", 0, clip]
        assert len(values) == len(times) == 25 * seconds + 1  # the last frame is centred on the end
        assert np.allclose(times, start + 0.015 + 0.04 * np.arange(len(times)), atol=0.03)
        assert (np.diff(times) > 0).all() and times[-1] < start + seconds


# Views: crop, flip and window are the clip's, not the modality's


def test_a_view_is_the_same_crop_flip_and_window_of_every_modality(ramps, tmp_path):
    extract(ramps, tmp_path / "bank", modality="rgb,ir,rgb+depth", frames=6, fields=("tokens",), views=6)
    bank = extract(ramps, tmp_path / "bank", modality="skeleton", frames=6, fields=("raw",), views=6)
    views = views_of(bank.catalog, "streams", [(clip, view) for clip in "abc" for view in range(1, 6)])
    found = {name: contents(bank, "streams", name) for name in ("rgb", "ir", "rgb+depth", "skeleton")}
    assert {one.crop.flip for one in views.values()} == {True, False}
    for (clip, view), one in views.items():
        columns = one.crop.left + one.crop.width * (np.arange(4) + 0.5) / 4
        truth = 200 * (columns[::-1] if one.crop.flip else columns)
        for name, channel in (("rgb", 0), ("ir", 0), ("rgb+depth", 0), ("rgb+depth", 3)):
            values, times = found[name]["tokens", view, clip]
            seen = values[..., channel].astype(np.float32).reshape(6, 4, 4).mean((0, 1)) * 255
            assert np.allclose(seen, truth, atol=6), (name, clip, view)
            start, end = (SECONDS * part for part in one.window)
            assert start - 1 / RGB_FPS <= times[0] <= times[-1] < end
        head = found["skeleton"]["raw", view, clip][0][:, 0, 0]
        assert np.allclose(head, -LEAN if one.crop.flip else LEAN, atol=1e-3)
        assert abs(found["skeleton"]["raw", view, clip][1][0] - times[0]) <= 1 / DEPTH_FPS


def test_there_is_no_thumbnail_of_several_modalities(clocks, tmp_path):
    extract(clocks, tmp_path / "bank", modality="rgb+depth", frames=4)
    assert not list((tmp_path / "bank" / "thumbnails").glob("*/*"))
    assert Bank.open(tmp_path / "bank").sql("SELECT count(*) AS n FROM media_read")["n"][0].as_py() == 0
