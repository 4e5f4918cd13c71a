"""Loader, augmentation and standardisation on plain arrays, against naive versions of themselves."""

import dataclasses

import numpy as np
import pytest
import torch

from align.augment import augment, time_map, warp
from align.config import AugmentConfig
from align.data import ClipData, Loader, sources, split_groups, text_track, track
from align.standardise import standardise, statistics

OFF = AugmentConfig(frame_drop=0, token_drop=0, time_crop=1, time_warp=0, noise=0, scale=0)


def clip_data(n=12):
    """rgb: two views of T=3; inertial: ragged, clip 2 lacks it; text: 1-3 texts a clip, clip 5 has none."""
    rng = np.random.default_rng(0)
    clips = [f"c{number}" for number in range(n)]
    rgb = rng.normal(size=(2 * n, 3, 2, 4)).astype(np.float16)
    rgb[:, 0, 0, 0] = np.repeat([0, 1], n) * 100 + np.tile(np.arange(n), 2)  # 100 x view + clip
    lengths = rng.integers(1, 6, size=n - 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ragged = rng.normal(size=(offsets[-1], 1, 6)).astype(np.float16)
    owners = [clip for clip in clips if clip != "c2"]
    texts = rng.normal(size=(9, 5)).astype(np.float32)
    choices = [[] if number == 5 else list(range(number % 3, 9, 3 + number % 2)) for number in range(n)]
    tracks = {
        "rgb": track(rgb, clips + clips, clips),
        "inertial": track(ragged, owners, clips, offsets),
        "text": text_track(texts, choices),
    }
    return ClipData(np.array(clips, object), np.arange(n) % 3, tracks), choices


def loader(data, batch=4, config=OFF, clips=None, seed=3):
    clips = np.arange(len(data)) if clips is None else clips
    return Loader(data, sources(data, batch), clips, batch, seed, config)


def test_an_epoch_visits_every_clip_once_with_its_own_features():
    data, choices = clip_data()
    seen = []
    for batch in loader(data).epoch(0):
        for row in range(len(batch)):
            view, clip = divmod(int(batch.features["rgb"][row, 0, 0, 0]), 100)
            seen.append(clip)
            np.testing.assert_array_equal(
                batch.features["rgb"][row], data.tracks["rgb"].features[view * 12 + clip]
            )
            assert batch.present[row].tolist() == [True, clip != 2, clip != 5]
            assert batch.labels[row] == clip % 3
            if clip != 5:
                assert int(batch.texts[row]) in choices[clip]
                np.testing.assert_array_equal(
                    batch.features["text"][row, 0, 0], data.tracks["text"].features[batch.texts[row], 0, 0]
                )
            else:
                assert batch.texts[row] == -1
            if clip != 2:
                ragged = data.tracks["inertial"]
                place = clip - (clip > 2)
                start, end = ragged.offsets[place : place + 2]
                assert int(batch.masks["inertial"][row].sum()) == end - start
                np.testing.assert_array_equal(
                    batch.features["inertial"][row, : end - start], ragged.features[start:end]
                )
                assert (batch.features["inertial"][row, end - start :] == 0).all()
    assert sorted(seen) == list(range(12))


def test_epochs_differ_but_each_can_be_replayed():
    data, _ = clip_data()
    config = AugmentConfig(noise=0.3)
    feed = loader(data, config=config)

    def epoch(number):
        return [batch.features["rgb"].clone() for batch in feed.epoch(number)]

    again = [batch.features["rgb"].clone() for batch in loader(data, config=config).epoch(1)]
    for first, second in zip(epoch(1), again, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(epoch(1)[0], epoch(2)[0])


def test_clips_are_augmented_and_texts_are_not():
    data, _ = clip_data()
    for plain, changed in zip(
        loader(data, config=OFF).epoch(0),
        loader(data, config=dataclasses.replace(OFF, noise=0.3, scale=0.3)).epoch(0),
        strict=True,
    ):
        assert list(plain.features) == list(changed.features)
        for name, values in plain.features.items():
            assert torch.equal(values, changed.features[name]) == data.tracks[name].is_text


def test_views_and_texts_are_drawn_evenly():
    data, choices = clip_data()
    views, texts = [], {}
    for number in range(200):
        for batch in loader(data).epoch(number):
            views += (batch.features["rgb"][:, 0, 0, 0] >= 100).tolist()
            for row in range(len(batch)):
                clip = int(batch.features["rgb"][row, 0, 0, 0]) % 100
                texts.setdefault(clip, []).append(int(batch.texts[row]))
    assert np.mean(views) == pytest.approx(0.5, abs=0.05)
    assert {clip: sorted(set(drawn)) for clip, drawn in texts.items() if clip != 5} == {
        clip: sorted(rows) for clip, rows in enumerate(choices) if clip != 5
    }


def test_validation_is_in_order_with_first_rows_and_all_clips():
    data, _ = clip_data()
    batches = list(Loader(data, sources(data, 5), np.arange(12), 5).in_order())
    assert [len(batch) for batch in batches] == [5, 5, 2]
    batches = Loader(data, sources(data, 5), np.arange(12), 5).in_order()
    first = [int(value) for batch in batches for value in batch.features["rgb"][:, 0, 0, 0]]
    assert first == list(range(12))


def test_rows_of_other_clips_are_never_used_and_order_of_views_is_kept():
    found = track(
        np.arange(8, dtype=np.float32)[:, None], ["b", "x", "a", "b", "y", "a", "b", "x"], ["a", "b", "c"]
    )
    own = [found.index[s : s + c].tolist() for s, c in zip(found.starts, found.counts, strict=True)]
    assert own == [[2, 5], [0, 3, 6], []]
    everything = found.rows(np.array([0, 1, 2]), np.array([0.99, 0.5, 0.5]))
    assert everything.tolist() == [5, 3, 0]


def test_prompts_of_one_class_mean_the_same():
    texts = text_track(np.zeros((4, 2), np.float32), [[0, 1], [2, 3], [], [0, 1]], np.array([5, 5, 7, 7]))
    clips = np.arange(4)
    first, last = (texts.rows(clips, np.full(4, draw)) for draw in (0.0, 0.9))
    assert first.tolist() == [0, 2, 0, 0] and last.tolist() == [1, 3, 0, 1]
    assert texts.meaning(clips, first).tolist() == texts.meaning(clips, last).tolist() == [5, 7, -1, 5]
    texts.meanings = None
    assert texts.meaning(clips, last).tolist() == [1, 3, -1, 1]


# Groups ------------------------------------------------------


def test_held_out_groups_are_whole_and_about_the_asked_share():
    groups = np.array([f"P{number % 10:03d}" for number in range(200)])
    kept, held = split_groups(groups, 0.2, seed=1)
    assert len(held) == 40 and not set(groups[kept]) & set(groups[held])
    assert sorted([*kept, *held]) == list(range(200))
    assert not np.array_equal(split_groups(groups, 0.2, seed=2)[1], held)


def test_at_least_one_group_is_held_out_and_never_all():
    two = np.array(["a"] * 5 + ["b"] * 5)
    for fraction in (0.01, 0.5, 1.0):
        kept, held = split_groups(two, fraction, seed=0)
        assert len(kept) == 5 and len(held) == 5


# Augmentation ------------------------------------------------


def features(seed=0, B=6, T=20, N=3, D=2):
    return torch.randn(B, T, N, D, generator=torch.Generator().manual_seed(seed))


def test_switched_off_changes_nothing():
    inputs = {"rgb": features(), "text": features(T=1, N=1)}
    outputs, masks = augment(inputs, {"rgb": None, "text": None}, OFF, torch.Generator())
    assert all(torch.equal(outputs[name], inputs[name]) for name in inputs)
    assert masks == {"rgb": None, "text": None}


def test_time_moves_forward_within_the_clip_and_alike_in_all_modalities():
    config = dataclasses.replace(OFF, time_crop=0.5, time_warp=0.9)
    generator = torch.Generator().manual_seed(5)
    ramp = torch.linspace(0, 1, 50).reshape(1, 50, 1, 1).repeat(64, 1, 1, 1)
    coarse = torch.linspace(0, 1, 25).reshape(1, 25, 1, 1).repeat(64, 1, 1, 1)
    outputs, _ = augment({"a": ramp, "b": coarse}, {"a": None, "b": None}, config, generator)
    time = outputs["a"][..., 0, 0]
    assert (time.diff(dim=1) >= -1e-6).all() and time.min() >= 0 and time.max() <= 1
    kept = time[:, -1] - time[:, 0]
    assert kept.min() >= 0.5 - 1e-5 and kept.std() > 0.05
    # Same window and same warp at both frame rates: equal at the same share of the clip.
    fine = torch.nn.functional.interpolate(
        outputs["b"][..., 0, 0][:, None], 50, mode="linear", align_corners=True
    )
    torch.testing.assert_close(fine[:, 0], time, atol=0.01, rtol=0)


def test_warping_leaves_padding_out():
    config = dataclasses.replace(OFF, time_crop=0.6, time_warp=0.5)
    values, mask = features(B=2), torch.ones(2, 20, dtype=torch.bool)
    mask[1, 7:] = False
    map_ = time_map(2, config, torch.Generator().manual_seed(0))
    poisoned = torch.where(mask[..., None, None], values, torch.nan)
    assert warp(poisoned, mask, map_).isfinite().all()
    alone = warp(values[1:, :7], None, tuple(part[1:] for part in map_))
    torch.testing.assert_close(warp(poisoned, mask, map_)[1:, :7], alone)


def test_frame_and_token_drop_have_their_rates():
    config = dataclasses.replace(OFF, frame_drop=0.3, token_drop=0.2)
    ones = torch.ones(500, 20, 5, 2)
    outputs, masks = augment({"a": ones}, {"a": None}, config, torch.Generator().manual_seed(0))
    assert masks["a"].float().mean().item() == pytest.approx(0.7 * 0.95 + 0.05, abs=0.02)
    assert masks["a"].any(1).all()
    assert outputs["a"].mean().item() == pytest.approx(0.8, abs=0.03)
    assert ((outputs["a"] == outputs["a"][:, :1, :, :1]).all(dim=(1, 3))).all(), (
        "a token is dropped throughout"
    )


def test_noise_and_scale_have_their_strength():
    zeros = torch.zeros(100, 20, 5, 2)
    noisy, _ = augment({"a": zeros}, {"a": None}, dataclasses.replace(OFF, noise=0.5), torch.Generator())
    assert noisy["a"].std().item() == pytest.approx(0.5, rel=0.05)
    scaled, _ = augment({"a": zeros + 1}, {"a": None}, dataclasses.replace(OFF, scale=0.2), torch.Generator())
    assert scaled["a"].log().std().item() == pytest.approx(0.2, rel=0.25)


# Standardisation ---------------------------------------------


@pytest.mark.parametrize(("per", "axes"), [("token", (0, 1)), ("dim", (0, 1, 2))])
def test_statistics_match_numpy_over_the_given_rows_only(per, axes):
    values = (np.random.default_rng(0).normal(size=(30, 4, 3, 2)) * 3 + 5).astype(np.float16)
    values[20:] = 1000
    rows = np.arange(20)
    found = statistics(values, rows, per, chunk=7)
    exact = values[:20].astype(np.float64)
    np.testing.assert_allclose(found.mean.squeeze(), exact.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(found.scale.squeeze(), exact.std(axes), rtol=1e-4)


def test_constant_features_stay_finite():
    values = np.full((10, 1, 1, 2), 3.0, np.float32)
    values[:, 0, 0, 1] = np.arange(10)
    found = statistics(values, np.arange(10))
    assert found.scale[0, 0] == 1
    assert np.isfinite(found.apply(values)).all() and (found.apply(values)[..., 0] == 0).all()


def test_tracks_are_standardised_in_place_by_training_clips():
    data, _ = clip_data()
    data.tracks["inertial"].features *= 7
    before = data.tracks["text"].features.copy()
    found = standardise(data, np.arange(8), {"rgb": "token", "inertial": "dim", "text": "none"}, chunk=5)
    own = data.tracks["inertial"]
    rows = np.concatenate([own.index[s : s + c] for s, c in zip(own.starts[:8], own.counts[:8], strict=True)])
    seen = np.concatenate([own.features[own.offsets[row] : own.offsets[row + 1]] for row in rows])
    np.testing.assert_allclose(seen.astype(np.float64).mean(0), 0, atol=5e-3)
    np.testing.assert_allclose(seen.astype(np.float64).std(0), 1, atol=5e-3)
    np.testing.assert_array_equal(data.tracks["text"].features, before)
    assert found["rgb"].mean.shape == (2, 4) and found["inertial"].mean.shape == (1, 6)
