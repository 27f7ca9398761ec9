"""What networks are held against, how examples are split, and several networks as one answer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from micjax.nets.encoder_decoder import ImageToSpectrum
from micjax.nets.losses import faithful, gradient_difference, ssim
from micjax.nets.train import Schedule, Training, courses, weights_of
from micjax.nets.trust.conformal import conformal_factor
from micjax.nets.trust.ensemble import moments
from micjax.nets.trust.splits import NONE, TEST, TRAIN, VALIDATION, by_block, by_group, without_each

# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1e4])
def test_structural_similarity_is_that_of_scikit_image(level):
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 20, 24))
    b = 0.7 * a + 0.3 * rng.normal(size=a.shape) + 0.1
    own = jax.jit(ssim)(jnp.asarray(a + level, float), jnp.asarray(b + level, float), 3.0)
    a, b = (np.asarray(np.float32(image + level), float) for image in (a, b))
    for i in range(2):
        other = metrics.structural_similarity(a[i], b[i], data_range=3.0)
        assert float(own[i]) == pytest.approx(other, abs=2e-4 if level else 1e-5)


def test_structural_similarity_of_small_images():
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(jnp.zeros((6, 9)), jnp.zeros((6, 9)), 1.0)


def test_the_difference_of_slopes():
    y, x = jnp.meshgrid(jnp.arange(5.0), jnp.arange(4.0), indexing="ij")
    assert float(gradient_difference(2.0 * y - 3.0 * x, jnp.zeros((5, 4)))) == pytest.approx(5.0)
    assert float(gradient_difference(y + 7.0, y)) == pytest.approx(0.0)


def test_the_slope_of_the_mean_does_not_know_the_standard_deviation():
    y = jnp.asarray([1.0, 2.0, 4.0])
    mean, sd = jnp.zeros(3), jnp.asarray([0.1, 1.0, 10.0])
    slope = jax.jit(jax.grad(faithful, (0, 1)))
    np.testing.assert_allclose(slope(mean, sd, y)[0], -2.0 * y / 3.0, rtol=1e-6)
    np.testing.assert_allclose(
        slope(mean, y, y)[1], 0.0, atol=1e-6
    )  # the likeliest is what it is off


# --- splits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_strips_lie_apart(axis):
    sides = by_block((30, 40), gap=3, axis=axis)
    line = np.moveaxis(sides, axis, 0)
    assert (line == line[:, :1]).all()
    line = line[:, 0]
    places = {side: np.flatnonzero(line == side) for side in (TRAIN, VALIDATION, TEST)}
    assert places[VALIDATION][0] - places[TRAIN][-1] == 4
    assert places[TEST][0] - places[VALIDATION][-1] == 4
    assert (line == NONE).sum() == 6 and line[0] == TRAIN and line[-1] == TEST
    assert len(places[TRAIN]) == round(0.6 * (len(line) - 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": 5}, "cannot be split in three"),
        ({"gap": 0, "shares": (0.5, 0.2, 0.2)}, "1 together"),
        ({"gap": 0, "shares": (1.2, -0.1, -0.1)}, "not below 0"),
    ],
)
def test_strips_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        by_block((12, 12), **options)


def test_groups_are_never_on_two_sides():
    groups = [f"scan {i}" for i in range(200) for _ in range(3)]
    sides = by_group(groups)
    assert all(len(set(sides[3 * i : 3 * i + 3])) == 1 for i in range(200))
    shares = np.bincount(sides) / len(sides)
    np.testing.assert_allclose(shares, (0.6, 0.2, 0.2), atol=0.1)
    np.testing.assert_array_equal(by_group(groups[:300]), sides[:300])
    assert (by_group(groups, seed=1) != sides).any()


def test_too_few_groups():
    with pytest.raises(ValueError, match="1 groups: .* none is left to"):
        by_group(["a", "a"])
    with pytest.raises(ValueError, match="all examples are of the group 'a'"):
        without_each(["a", "a"])
    with pytest.raises(ValueError, match="no examples"):
        without_each([])
    left = without_each(["a", "b", "a"])
    assert {n: m.tolist() for n, m in left.items()} == {
        "a": [False, True, False],
        "b": [True, False, True],
    }


# --- conformal factors -------------------------------------------------------------------------


def test_the_factor_is_the_order_statistic():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # 19 of them
    assert conformal_factor(scores, 0.9) == 18.0  # (19 + 1) 0.9 = 18
    assert conformal_factor(scores, 0.91) == 19.0
    assert conformal_factor(scores, 0.95) == 19.0
    assert conformal_factor(scores, 0.951) == math.inf
    assert conformal_factor(scores[:8], 0.9) == math.inf  # 9 are needed


def test_coverage_is_exact():
    """P(new score <= factor) = k / (n + 1) over 20,000 draws of 30 scores and a new one."""
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(20_000, 31))
    held = [row[-1] <= conformal_factor(row[:-1], 0.8) for row in draws]
    assert np.mean(held) == pytest.approx(25 / 31, abs=4 * 0.4 / np.sqrt(20_000))


def test_scores_that_say_nothing():
    for scores in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="scores are NaN"):
            conformal_factor(scores, 0.9)
    with pytest.raises(ValueError, match="level = 1.0"):
        conformal_factor(np.ones(3), 1.0)


# --- several networks ----------------------------------------------------------------------------


def test_moments_are_those_of_the_mixture():
    rng = np.random.default_rng(1)
    means, sds = rng.normal(size=(3, 2)), rng.uniform(0.5, 2.0, (3, 2))
    told = moments(means, sds)
    drawn = stats.norm(means[..., None], sds[..., None]).rvs((3, 2, 200_000), rng)
    np.testing.assert_allclose(told.mean, drawn.mean(axis=(0, 2)), atol=0.02)
    np.testing.assert_allclose(told.sd, drawn.std(axis=(0, 2)), rtol=0.01)
    np.testing.assert_allclose(told.between, means.std(axis=0), rtol=1e-6)


def spectra(key, data):
    """Images and a peak whose height is the pixel in their middle."""
    patches = jax.random.normal(key, (64, 5, 5, 1))
    return patches, patches[:, 2, 2] * data


TRACED = []


def of_spectra(network, batch):
    TRACED.append(1)
    return faithful(*network(batch[0]), batch[1])


@pytest.fixture(scope="module")
def learned():
    """Two networks that began differently, with one compiled step."""
    peak = jnp.exp(-0.5 * (jnp.arange(6.0) - 2.0) ** 2)
    begun = [ImageToSpectrum(6, width=8, latent=2, rngs=nnx.Rngs(i)) for i in range(2)]
    training = Training(begun[0], spectra, of_spectra, peak)
    schedule = Schedule(steps=40, chunk=20, learning_rate=1e-2)
    keys = jax.random.split(jax.random.key(0), 2)
    return begun, [
        list(courses(training, schedule, k, start=n))[-1] for k, n in zip(keys, begun, strict=True)
    ]


def test_an_ensemble_begins_and_ends_differently_and_is_compiled_once(learned):
    begun, ends = learned
    first, second = (weights_of(n)["conv_1.kernel"] for n in begun)
    assert not np.allclose(first, second)
    assert not np.allclose(*(c.state.best["conv_1.kernel"] for c in ends))
    for course in ends:
        assert course.held_out[-1] < course.held_out[0]
    assert len(TRACED) == 2  # a step and a look


def test_a_spectrum_needs_a_middle():
    network = ImageToSpectrum(4, width=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="an odd number has a middle"):
        network(jnp.zeros((1, 4, 4, 1)))
    mean, sd = network(jnp.zeros((3, 2, 5, 5, 1)))
    assert mean.shape == sd.shape == (3, 2, 4) and bool((sd > 0).all())


def test_a_narrow_window_sees_the_middle_only():
    """But for what the convolutions, two pixels far, make of the surroundings."""
    network = ImageToSpectrum(4, width=8, window_px=0.1, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    patch = rng.normal(size=(9, 9, 1))
    other = rng.normal(size=(9, 9, 1))
    other[2:7, 2:7] = patch[2:7, 2:7]
    apply = jax.jit(lambda p: network(p)[0])
    same, different = (np.asarray(apply(jnp.asarray(p, float))) for p in (other, 2.0 * patch))
    np.testing.assert_allclose(apply(jnp.asarray(patch, float)), same, rtol=1e-5)
    assert not np.allclose(same, different, rtol=1e-2)


def test_groups_of_an_array_are_those_of_a_list():
    names = [f"g{i}" for i in range(60)]
    np.testing.assert_array_equal(by_group(names), by_group(np.array(names)))
    numbers = list(range(60))
    np.testing.assert_array_equal(by_group(numbers), by_group(np.arange(60)))
