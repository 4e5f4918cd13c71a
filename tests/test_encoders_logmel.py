"""AVLnet's log-mel front end: against the original's output, a naive reference, and what sound is."""

import re
import wave

import golden_fixtures
import numpy as np
import pytest
import torch

from encoders.errors import EncoderError
from encoders.logmel import AvlnetLogMel, fit_frames, mel_power, slaney_filters, slaney_hz, slaney_mel
from extract.readers.audio import AudioReader

RATE_HZ = 16000
SECONDS = np.arange(RATE_HZ) / RATE_HZ


def _frontend(samples, settings):
    frames = AvlnetLogMel()(samples, "audio")
    return frames if settings["use_raw_length"] else fit_frames(frames, settings["target_length"])


def _shares(golden):
    """Errors of each case as a share of what is allowed, and the frames that hold sound."""
    for name, settings in golden.meta["cases"].items():
        number = re.search(r"\d+$", name)[0]
        samples = golden.part("input")[f"wav{number}_int16"].numpy()
        want = golden.part("output")[f"mel{number}"]
        yield golden.errors(torch.from_numpy(_frontend(samples, settings).T.copy()), want), settings


@pytest.mark.parametrize("golden", golden_fixtures.cases("avlnet_spectrogram"))
def test_the_original_s_spectrograms(golden):
    for share, settings in _shares(golden):
        assert share.max() <= 1
        assert settings["use_raw_length"] is False or share.shape[1] == settings["n_frames"]


@pytest.mark.parametrize("golden", golden_fixtures.cases("avlnet_spectrogram"))
def test_the_original_s_spectrograms_from_a_file(golden, tmp_path):
    for name, samples in golden.part("input").items():
        with wave.open(str(tmp_path / "clip.wav"), "wb") as file:
            file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
            file.writeframes(samples.numpy().astype("<i2").tobytes())
        read = AudioReader().read(tmp_path / "clip.wav").values
        np.testing.assert_allclose(
            AvlnetLogMel()(read, "audio"), AvlnetLogMel()(samples.numpy(), "audio"), atol=1e-3, err_msg=name
        )


def _periodic_hamming(monkeypatch):
    symmetric = np.hamming
    monkeypatch.setattr(np, "hamming", lambda size: symmetric(size + 1)[:-1])


def _zeros_beyond_the_ends(monkeypatch):
    pad = np.pad
    monkeypatch.setattr(np, "pad", lambda values, width, mode="constant": pad(values, width))


def _filters_of_equal_height(monkeypatch):
    def flat(*arguments):
        filters = slaney_filters(*arguments)
        return filters / filters.max(1, keepdims=True)

    monkeypatch.setattr("encoders.logmel.slaney_filters", flat)


@pytest.mark.parametrize("fault", [_periodic_hamming, _zeros_beyond_the_ends, _filters_of_equal_height])
@pytest.mark.parametrize("golden", golden_fixtures.cases("avlnet_spectrogram"))
def test_faults_are_caught_by_the_original_s_spectrograms(golden, fault, monkeypatch):
    fault(monkeypatch)
    assert max(float(share.max()) for share, _ in _shares(golden)) > 1


def _naive(samples):
    """The same by loops: reflected indices, a discrete Fourier transform, one triangle at a time."""
    x = samples - samples.mean()
    x = np.array([x[0], *(x[k] - 0.97 * x[k - 1] for k in range(1, len(x)))])
    window = [0.54 - 0.46 * np.cos(2 * np.pi * n / 399) for n in range(400)]
    corners = [slaney_hz(np.array(mel)) for mel in np.linspace(slaney_mel(20), slaney_mel(8000), 42)]
    powers = np.zeros((1 + len(x) // 160, 40))
    for k in range(len(powers)):
        indices = np.abs(np.arange(400) + 160 * k - 200)
        indices = np.where(indices >= len(x), 2 * (len(x) - 1) - indices, indices)
        phases = 2 * np.pi * np.outer(np.arange(201), np.arange(400)) / 400
        spectrum = np.exp(-1j * phases) @ (window * x[indices])
        for mel in range(40):
            low, centre, high = corners[mel : mel + 3]
            for bin_, value in enumerate(np.abs(spectrum) ** 2):
                hz = bin_ * 40.0
                side = (hz - low) / (centre - low) if hz < centre else (high - hz) / (high - centre)
                powers[k, mel] += max(0.0, side) * 2 / (high - low) * value
    level = 10 * np.log10(np.maximum(powers, 1e-10))
    return np.maximum(level - level.max(), -80)


def test_naive_reference():
    rng = np.random.default_rng(0)
    # Noise that fades in by 120 dB, so that the floor at -80 dB is reached too.
    samples = rng.normal(size=1700) * 10 ** np.linspace(-7, -1, 1700)
    got, want = AvlnetLogMel()(samples, "audio"), _naive(samples)
    assert want.min() == -80
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_mel_scale_by_hand():
    assert slaney_mel(200.0) == pytest.approx(3.0)
    assert slaney_mel(1000.0) == pytest.approx(15.0)
    assert slaney_mel(6400.0) == pytest.approx(42.0)  # 27 mels above 1 kHz, for a factor of 6.4
    assert slaney_hz(np.array([3.0, 15.0, 42.0])) == pytest.approx([200.0, 1000.0, 6400.0])
    filters = slaney_filters(RATE_HZ, 4096, 40, 20.0, 8000.0)
    assert filters.sum(1) * (RATE_HZ / 4096) == pytest.approx(np.ones(40), rel=0.05)  # area 1 over Hz


@pytest.mark.parametrize("hz", [300.0, 1000.0, 3000.0, 7000.0])
def test_a_tone_is_loudest_in_its_own_bin(hz):
    frames = AvlnetLogMel()(np.sin(2 * np.pi * hz * SECONDS).astype(np.float32), "audio")
    corners = slaney_hz(np.linspace(slaney_mel(20.0), slaney_mel(8000.0), 42))
    loudest = frames[10:-10].argmax(1)
    assert len(set(loudest)) == 1
    assert corners[loudest[0]] < hz < corners[loudest[0] + 2]


def test_a_chirp_climbs_through_the_bins():
    chirp = np.sin(2 * np.pi * (200.0 * SECONDS + 3500.0 * SECONDS**2))  # 200 Hz to 7.2 kHz
    loudest = AvlnetLogMel()(chirp, "audio")[5:-5].argmax(1)
    assert (np.diff(loudest) >= 0).all()
    assert loudest[0] < 8 and loudest[-1] > 35


def test_a_click_is_in_the_frame_of_its_time():
    samples = np.zeros(RATE_HZ, np.float32)
    samples[8000] = 1.0  # at 0.5 s
    frames = AvlnetLogMel()(samples, "audio")
    assert frames.shape == (101, 40)
    assert frames.mean(1).argmax() == 50


def test_the_level_of_the_recording_cancels_out():
    samples = np.random.default_rng(1).normal(size=4000) * 0.1
    np.testing.assert_allclose(
        AvlnetLogMel()(samples, "audio"), AvlnetLogMel()(samples * 0.63 + 0.2, "audio"), atol=1e-4
    )
    as_int16 = np.rint(samples * 3276.8).astype(np.int16)
    np.testing.assert_array_equal(
        AvlnetLogMel()(as_int16, "audio"), AvlnetLogMel()((as_int16 / 32768).astype(np.float32), "audio")
    )


@pytest.mark.parametrize("count", [1, 2, 150, 159, 160])
def test_short_and_silent_clips_are_finite(count):
    assert (AvlnetLogMel()(np.zeros(count, np.float32), "audio") == 0).all()
    short = AvlnetLogMel()(np.random.default_rng(2).normal(size=count).astype(np.float32), "audio")
    assert short.shape == (1 + count // 160, 40)
    assert np.isfinite(short).all() and short.min() >= -80


def test_long_sounds_are_transformed_in_blocks(monkeypatch):
    samples, filters = np.random.default_rng(3).normal(size=2000), slaney_filters(8000, 64, 8, 0.0, 4000.0)
    whole = mel_power(samples, np.hamming(64), 16, filters)
    monkeypatch.setattr("encoders.logmel.BLOCK_FRAMES", 7)
    np.testing.assert_allclose(mel_power(samples, np.hamming(64), 16, filters), whole, rtol=1e-12)


def test_filling_up_and_cutting():
    frames = np.full((3, 2), -5.0, np.float32)
    assert fit_frames(frames, 5).tolist() == [[-5, -5]] * 3 + [[0, 0]] * 2
    assert fit_frames(frames, 2).tolist() == [[-5, -5]] * 2


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 9), np.float32), np.zeros(0, np.float32), np.zeros(9, np.int32)]
)
def test_what_is_no_mono_sound_is_refused(wrong):
    with pytest.raises(EncoderError, match=r"log-mel: audio is .* expected \(samples,\) float or int16"):
        AvlnetLogMel()(wrong, "audio")
