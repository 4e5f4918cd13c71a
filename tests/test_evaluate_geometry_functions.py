"""Modality gap, alignment, uniformity, class statistics: closed forms by hand, slow float64 references."""

import numpy as np
import pytest

from evaluate import spread
from evaluate.class_statistics import (
    centre_distances,
    centres,
    class_distances,
    covariance_distance,
    text_distances,
)
from evaluate.modality_gap import alignment, gap
from evaluate.spread import EDGES, effective_rank, pairs

AXES = np.eye(8)


def units(n: int, width: int, seed: int, offset: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(n, width)) + offset
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


# The gap


def test_two_points_are_all_gap() -> None:
    """Each modality one point, at right angles: the distance is the root of 2, and nothing else."""
    found = gap(np.tile(AXES[0], (5, 1)), np.tile(AXES[1], (5, 1)))
    assert found.distance.value == pytest.approx(2**0.5)
    assert found.share.value == pytest.approx(1.0)
    assert (found.share.low, found.share.high) == pytest.approx((1.0, 1.0))
    assert found.chance == pytest.approx((2 / 5) ** 0.5)


def test_antipodes_are_two_apart() -> None:
    found = gap(np.tile(AXES[0], (4, 1)), np.tile(-AXES[0], (4, 1)))
    assert found.distance.value == pytest.approx(2.0)


def test_equal_modalities_have_no_gap() -> None:
    x = units(40, 8, 0)
    found = gap(x, x)
    assert (found.distance.value, found.share.value, found.chance) == (0, 0, 0)
    point = np.tile(AXES[0], (3, 1))
    assert gap(point, point).share.value == 0


def test_gap_by_hand() -> None:
    """x: two antipodal clusters on axis 0 and a shift on axis 1; y: the same clusters, shifted back."""
    x = np.array([[0.6, 0.8], [-0.6, 0.8]])
    y = np.array([[0.6, -0.8], [-0.6, -0.8]])
    found = gap(x, y)
    assert found.distance.value == pytest.approx(1.6)
    assert found.share.value == pytest.approx(1.6**2 / (1.6**2 + 2 * 0.36))


def test_share_is_that_of_the_mean_squared_distance_over_all_pairs() -> None:
    x, y = units(30, 6, 0, 0.5), units(30, 6, 1, -0.2)
    everything = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(2).mean()
    found = gap(x, y)
    between = x.astype(np.float64).mean(0) - y.astype(np.float64).mean(0)
    assert found.distance.value == pytest.approx(np.linalg.norm(between))
    assert found.share.value == pytest.approx(between @ between / everything)


def test_chance_is_what_tossed_coins_give() -> None:
    x, y = units(50, 6, 0, 0.5), units(50, 6, 1, -0.2)
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], (4000, 50))
    tossed = np.linalg.norm(signs @ (x - y).astype(np.float64) / 50, axis=1)
    assert gap(x, y).chance == pytest.approx((tossed**2).mean() ** 0.5, rel=0.03)


def test_gap_and_share_move_with_their_draws_as_the_intervals_say() -> None:
    """The width equals that of a bootstrap over clips."""
    x, y = units(300, 6, 0, 0.6), units(300, 6, 1, 0.1)
    found = gap(x, y)
    rng = np.random.default_rng(0)
    again = [gap(x[rows], y[rows]) for rows in rng.integers(300, size=(800, 300))]
    for name in ("distance", "share"):
        one = getattr(found, name)
        low, high = np.quantile([getattr(each, name).value for each in again], [0.025, 0.975])
        assert one.high - one.low == pytest.approx(high - low, rel=0.15)
        assert one.low < one.value < one.high


def test_alignment_by_hand_and_of_other_powers() -> None:
    """One pair agrees, one is at right angles, one opposite: |x - y|^2 = 0, 2, 4."""
    x, y = AXES[[0, 0, 0]], np.array([AXES[0], AXES[1], -AXES[0]])
    assert alignment(x, y).value == pytest.approx(2.0)
    assert alignment(x, y, alpha=1).value == pytest.approx((0 + 2**0.5 + 2) / 3)
    assert alignment(x, x).value == 0
    with pytest.raises(ValueError, match=r"shapes \(3, 8\) and \(2, 8\)"):
        alignment(x, y[:2])


# The spread


def test_uniformity_by_hand() -> None:
    """All at one point: 0. Two antipodal points: of 4 clips' 6 pairs, 2 at distance 0 and 4 at |.|^2 = 4."""
    none = np.full(4, -1)
    assert pairs(np.tile(AXES[0], (4, 1)), none).uniformity.value == pytest.approx(0)
    two = np.array([AXES[0], AXES[0], -AXES[0], -AXES[0]])
    assert pairs(two, none).uniformity.value == pytest.approx(np.log((2 + 4 * np.exp(-8)) / 6))
    assert pairs(AXES, np.full(8, -1)).uniformity.value == pytest.approx(-4)  # orthogonal: |.|^2 = 2, t = 2
    assert pairs(AXES, np.full(8, -1), t=1).uniformity.value == pytest.approx(-2)


@pytest.mark.parametrize("chunk", [1, 700, 10**6])
def test_pairs_equal_the_naive_ones_whatever_the_chunk(chunk, monkeypatch) -> None:
    monkeypatch.setattr(spread, "CHUNK_VALUES", chunk)
    x, labels = units(61, 7, 3, 0.3), np.random.default_rng(0).integers(-1, 4, 61)
    found = pairs(x, labels)
    upper = np.triu_indices(61, 1)
    distance = 1 - (x.astype(np.float64) @ x.astype(np.float64).T)[upper]
    assert found.uniformity.value == pytest.approx(np.log(np.exp(-4 * distance).mean()), abs=1e-6)
    known = (labels[upper[0]] >= 0) & (labels[upper[1]] >= 0)
    same = labels[upper[0]] == labels[upper[1]]
    np.testing.assert_array_equal(found.same, np.histogram(distance[known & same], EDGES)[0])
    np.testing.assert_array_equal(found.other, np.histogram(distance[known & ~same], EDGES)[0])


def test_uniformity_moves_with_its_draws_as_the_interval_says() -> None:
    """Over fresh draws of clips (a bootstrap draws clips twice, and those pairs are at distance 0)."""
    none = np.full(200, -1)
    drawn = [pairs(units(200, 4, seed, 0.4), none).uniformity for seed in range(300)]
    values = np.array([one.value for one in drawn])
    assert np.mean([one.high - one.low for one in drawn]) == pytest.approx(2 * 1.96 * values.std(), rel=0.12)


def test_one_clip_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="1 clips have no pairs"):
        pairs(AXES[:1], np.zeros(1))


def test_effective_rank_by_hand() -> None:
    """A point fills 0 directions, two antipodes 1, a centred simplex of k corners k - 1, a cross all."""
    assert effective_rank(np.tile(AXES[0], (5, 1))) == 0
    assert effective_rank(np.array([AXES[0], -AXES[0], AXES[0], -AXES[0]])) == pytest.approx(1)
    assert effective_rank(AXES[:5]) == pytest.approx(4)
    assert effective_rank(np.concatenate([AXES, -AXES])) == pytest.approx(8)
    scaled = np.concatenate([3 * AXES[:1], -3 * AXES[:1], AXES[1:2], -AXES[1:2]])  # shares 3/4 and 1/4
    assert effective_rank(scaled) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))


@pytest.mark.parametrize("shape", [(50, 9), (9, 50)])
def test_effective_rank_is_that_of_the_singular_values(shape) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    lengths = np.linalg.svd(x - x.mean(0), compute_uv=False)
    shares = lengths[lengths > 1e-9] / lengths.sum()
    assert effective_rank(x) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


# Classes


def test_centres_by_hand_leave_out_unlabelled_clips() -> None:
    found = centres(np.array([[1.0, 0], [0, 1], [4, 4], [9, 9]]), np.array([2, 2, 0, -1]))
    assert found.classes.tolist() == [0, 2] and found.counts.tolist() == [1, 2]
    np.testing.assert_allclose(found.means, [[4, 4], [0.5, 0.5]])


def test_centre_distances_are_of_shared_classes() -> None:
    one = centres(np.array([[1.0, 0], [0, 2]]), np.array([0, 1]))
    other = centres(np.array([[0.0, 4], [3, 0], [0, 0]]), np.array([1, 3, 0]))
    straight, cosine = centre_distances(one, other)
    np.testing.assert_allclose(straight, [1, 2])
    np.testing.assert_allclose(
        cosine, [1, 0]
    )  # a centre at the origin has no direction; [0, 2] and [0, 4] agree


@pytest.mark.parametrize(("n", "m", "width"), [(30, 20, 5), (6, 4, 40), (30, 4, 10)])
def test_covariance_distances_are_those_of_the_matrices(n, m, width) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, width)) + 3, 2 * rng.normal(size=(m, width))
    a, b = np.cov(x.T), np.cov(y.T)
    assert covariance_distance(x) == pytest.approx(np.linalg.norm(a))
    assert covariance_distance(x, y) == pytest.approx(np.linalg.norm(a - b))
    assert covariance_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_class_distances_equal_the_naive_ones() -> None:
    x, labels = units(40, 6, 0), np.random.default_rng(1).integers(-1, 4, 40)
    labels[0] = 9  # alone in its class
    same, apart = class_distances(x, labels)
    known = labels >= 0
    distance = 1 - x[known].astype(np.float64) @ x[known].astype(np.float64).T
    equal = labels[known][:, None] == labels[known]
    off = equal & ~np.eye(len(equal), dtype=bool)
    naive = [row[mask].mean() if mask.any() else np.nan for row, mask in zip(distance, off, strict=True)]
    np.testing.assert_allclose(same, naive, atol=1e-6)
    np.testing.assert_allclose(
        apart, [row[~m].mean() for row, m in zip(distance, equal, strict=True)], atol=1e-6
    )
    assert np.isnan(same).sum() == 1
    assert np.isnan(class_distances(x, np.zeros(40, int))[1]).all()


def test_text_distances_by_hand() -> None:
    """Texts along axes 0 to 2; a clip on its own text, one at right angles to all, one opposite its own."""
    x = np.array([AXES[0], AXES[5], -AXES[2], AXES[7]])
    found = text_distances(x, np.array([0, 1, 2, 7]), np.arange(3), AXES[:3])
    np.testing.assert_allclose(found.own, [0, 1, 2])
    np.testing.assert_allclose(found.others, np.ones((3, 2)))
    np.testing.assert_allclose(found.ratio, [0, 1, 2])


def test_collapsed_texts_have_a_ratio_of_one() -> None:
    found = text_distances(np.tile(AXES[0], (4, 1)), np.arange(4) % 2, np.arange(2), np.tile(AXES[0], (2, 1)))
    np.testing.assert_array_equal(found.ratio, 1)
    with pytest.raises(ValueError, match="1 class texts"):
        text_distances(AXES, np.zeros(8, int), np.zeros(1, int), AXES[:1])
