"""Sampling in seconds: numbers by hand, and properties over rates, spans and counts."""

import numpy as np
import pytest

from extract.sampling import Sampling, SamplingError, frame_duration, frame_indices


def stamps(frames: int, fps: float, first: float = 0.0) -> np.ndarray:
    return first + np.arange(frames) / fps


def test_count_takes_the_middles_of_equal_parts():
    # 12 frames at 12 Hz in 3 parts of 4 frames: the middles are at 2/12, 6/12 and 10/12 seconds.
    assert frame_indices(stamps(12, 12.0), Sampling(frames=3)).tolist() == [2, 6, 10]


def test_twice_the_rate_covers_the_same_span():
    sampling = Sampling(frames=12)
    slow = stamps(60, 15.0)[frame_indices(stamps(60, 15.0), sampling)]
    fast = stamps(120, 30.0)[frame_indices(stamps(120, 30.0), sampling)]
    assert np.abs(slow - fast).max() <= 1 / 15 + 1e-9
    assert slow[-1] > 3.7 and fast[-1] > 3.7  # of 4 seconds: not the first half only


@pytest.mark.parametrize("fps", [15, 23.976, 25, 29.97, 30, 50, 60])
@pytest.mark.parametrize("frames", [1, 2, 7, 30, 301])
@pytest.mark.parametrize(
    "sampling", [Sampling(frames=12), Sampling(fps=4.0, max_frames=8), Sampling(frames="all", max_frames=300)]
)
def test_indices_are_ordered_within_bounds_and_capped(fps, frames, sampling):
    indices = frame_indices(stamps(frames, fps), sampling)
    assert (np.diff(indices) >= 0).all()
    assert indices[0] >= 0 and indices[-1] < frames
    assert len(indices) == 12 if sampling.frames == 12 else len(indices) <= sampling.max_frames
    assert len(indices) >= 1


def test_short_clip_repeats_frames_to_keep_the_count():
    assert frame_indices(stamps(2, 30.0), Sampling(frames=4)).tolist() == [0, 0, 1, 1]


def test_rate_takes_one_frame_a_period():
    # 2 s at 30 Hz, 4 frames a second: middles of 0.25 s, at 0.125, 0.375, ... = frames 3.75 -> 3, 11.25 ->
    # 11.
    indices = frame_indices(stamps(60, 30.0), Sampling(fps=4.0))
    assert indices.tolist() == [3, 11, 18, 26, 33, 41, 48, 56]


def test_rate_above_the_streams_repeats_and_short_clip_gets_one():
    assert len(frame_indices(stamps(10, 10.0), Sampling(fps=20.0))) == 20
    assert frame_indices(stamps(3, 30.0), Sampling(fps=1.0)).tolist() == [1]


def test_cap_thins_over_the_whole_span():
    rated = stamps(900, 30.0)[frame_indices(stamps(900, 30.0), Sampling(fps=4.0, max_frames=6))]
    assert rated.tolist() == pytest.approx([2.5, 7.5, 12.5, 17.5, 22.5, 27.5])
    every = frame_indices(stamps(900, 30.0), Sampling(frames="all", max_frames=3))
    assert every.tolist() == [150, 450, 750]


def test_all_takes_every_frame_of_the_span_and_neighbouring_spans_share_none():
    t = stamps(90, 30.0)
    parts = [frame_indices(t, Sampling(frames="all"), s, s + 1.0) for s in (0.0, 1.0, 2.0)]
    assert np.concatenate(parts).tolist() == list(range(90))


def test_span_inside_a_recording():
    indices = frame_indices(stamps(300, 30.0), Sampling(frames=2), 4.0, 6.0)
    assert indices.tolist() == [135, 165]  # 4.5 s and 5.5 s


def test_span_past_the_end_is_cut_to_what_exists():
    indices = frame_indices(stamps(30, 10.0), Sampling(frames=2), 2.0, 99.0)
    assert indices.tolist() == [22, 27]  # of 2 to 3 s


def test_span_outside_is_an_error_that_names_both():
    with pytest.raises(SamplingError, match=r"5.0 to 6.0 seconds holds none.*0.000 to 3.000"):
        frame_indices(stamps(30, 10.0), Sampling(frames=2), 5.0, 6.0)


def test_no_frames_is_an_error():
    with pytest.raises(SamplingError, match="no frames"):
        frame_indices(np.array([]), Sampling(frames=2))


def test_variable_rate_picks_the_frame_on_screen():
    # A frame shown from 0.1 to 0.9 s is on screen at both 0.25 and 0.75 s.
    assert frame_indices(np.array([0.0, 0.1, 0.9]), Sampling(frames=2), 0.0, 1.0).tolist() == [1, 1]


def test_timestamps_rounded_to_milliseconds_pick_the_same_frames():
    exact, rounded = stamps(300, 30.0), np.round(stamps(300, 30.0), 3)
    for sampling in (Sampling(frames=12), Sampling(fps=5.0), Sampling(fps=30.0)):
        assert (frame_indices(exact, sampling) == frame_indices(rounded, sampling)).all()


def test_cmvras_rule_is_by_frames_and_leaves_the_last_one_out():
    rule = Sampling(frames=5, rule="cmvra")
    assert frame_indices(stamps(10, 30.0), rule).tolist() == [0, 2, 4, 6, 8]  # linspace(0, 8, 5)
    assert frame_indices(stamps(9, 30.0), rule).tolist() == [0, 1, 3, 5, 7]  # 1.75 -> 1, 5.25 -> 5
    assert frame_indices(stamps(90, 30.0), rule, 1.0, 2.0).tolist() == [30, 37, 44, 51, 58]  # of that second
    for frames in (1, 2):
        assert frame_indices(stamps(frames, 30.0), rule).tolist() == [0] * 5
    rng = np.random.default_rng(0)
    for frames, count in zip(rng.integers(2, 400, 50), rng.integers(1, 40, 50), strict=True):
        told = frame_indices(stamps(frames, 30.0), Sampling(frames=int(count), rule="cmvra"))
        assert told.tolist() == np.linspace(0, frames - 2, count).astype(int).tolist()
    with pytest.raises(SamplingError, match="no grid in seconds"):
        rule.times(0.0, 1.0)


def test_times_stay_inside_the_span():
    for sampling in (
        Sampling(frames=5),
        Sampling(fps=3.0),
        Sampling(fps=3.0, max_frames=2),
        Sampling(fps=0.1),
    ):
        times = sampling.times(10.0, 12.5)
        assert times[0] > 10.0 and times[-1] < 12.5
    with pytest.raises(SamplingError, match="no count in seconds"):
        Sampling(frames="all").times(0.0, 1.0)
    with pytest.raises(SamplingError, match="empty or not finite"):
        Sampling(frames=2).times(1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({}, "exactly one"),
        ({"frames": 4, "fps": 2.0}, "exactly one"),
        ({"frames": 0}, "frames=0"),
        ({"frames": True}, "frames=True"),
        ({"frames": "every"}, "frames='every'"),
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": "4"}, "fps='4'"),
        ({"frames": 4, "max_frames": 0}, "max_frames=0"),
        ({"frame": 4}, "unknown key 'frame'"),
        ({"frames": 4, "rule": "cmrva"}, "rule='cmrva'; accepted are: cmvra"),
        ({"fps": 4.0, "rule": "cmvra"}, "give frames: N too"),
        ({"frames": "all", "rule": "cmvra"}, "give frames: N too"),
    ],
)
def test_wrong_samplings_are_refused(value, match):
    with pytest.raises(SamplingError, match=match):
        Sampling.parse(value)


def test_parse_and_key():
    assert Sampling.parse(12) == Sampling.parse({"frames": 12}) == Sampling(frames=12)
    assert Sampling.parse("all") == Sampling(frames="all")
    assert Sampling.parse(Sampling(fps=2)) == Sampling(fps=2)
    # Equal selections have equal keys: the cap does nothing to a count, 4 is 4.0.
    assert Sampling(frames=12, max_frames=99).key() == {"frames": 12}
    assert Sampling(frames=12, rule="cmvra").key() == {"frames": 12, "rule": "cmvra"}
    assert Sampling(fps=4, max_frames=64).key() == {"fps": 4.0, "max_frames": 64}
    assert Sampling(frames="all", max_frames=300).key() == {"frames": "all", "max_frames": 300}


def test_frame_duration_of_a_single_frame_is_the_fallback():
    assert frame_duration(np.array([3.0]), 25.0) == pytest.approx(0.04)
    assert frame_duration(np.array([0.0, 0.1, 0.1, 0.2, 5.0])) == pytest.approx(0.1)
