"""What a scan tells of an unknown tip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from micjax.physics.tips.blind.bound import bound
from micjax.physics.tips.blind.candidates import finer, single_tips, tried
from micjax.physics.tips.blind.search import blind, free_form
from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.evidence import (
    CREASED,
    admissible,
    corroborated,
    creases,
    misfit,
    noise_along_line,
    noise_sigma_nm,
)
from micjax.physics.tips.shapes import Double, SphereCone
from micjax.problems.tip import example, particles

SIGMA = 0.15


@pytest.fixture(scope="module")
def scan():
    """Particles under a sphere-cone of 8 nm, 80 x 80 pixels of 2 nm, 0.15 nm of noise."""
    surface = particles(jax.random.key(7), 80, 80, 2.0)
    tip = SphereCone(8.0, 22.0, 2.0, 15)()
    noise = SIGMA * jax.random.normal(jax.random.key(0), surface.shape)
    return surface, tip, (dilate(surface, tip) + noise)[None]


def test_the_noise_is_estimated(scan):
    _, _, images = scan
    assert abs(noise_sigma_nm(images) - SIGMA) < 0.03


@pytest.mark.parametrize("gain, within", [(1.0, 0.05), (0.7, 0.1), (0.5, 0.1)])
def test_noise_that_went_through_a_loop_is_estimated(gain, within):
    white = np.random.default_rng(100).standard_normal((1, 160, 260))
    noise = lfilter([gain], [1.0, gain - 1.0], white)[..., -160:]
    for scale in (1e-9, 1.0, 1e9):
        estimate = float(noise_sigma_nm(jnp.asarray(scale * noise)))
        assert abs(estimate / (scale * noise.std()) - 1) < within


def test_a_rough_surface_is_not_taken_for_the_noise_of_a_loop(scan):
    surface, _, _ = scan
    assert noise_along_line(scan[2]) < 0.2
    assert noise_along_line(surface[None]) < 0.2


def test_the_bound_is_above_tips_of_any_shape(scan):
    surface = scan[0]
    y, x = np.meshgrid(*2 * [np.arange(-5, 6) * 2.0], indexing="ij")
    noise = SIGMA * jax.random.normal(jax.random.key(100), surface.shape)
    for tip in (-(y**2 + x**2 / 4) / 6, -np.maximum(abs(y) / 0.4, abs(x) / 1.0)):
        image = dilate(surface, jnp.asarray(tip)) + noise
        outer = bound(image[None], (11, 11), 5 * SIGMA)
        assert bool(jnp.all(outer >= tip - SIGMA))


def test_the_tip_of_all_features_is_borne_out_and_that_of_a_single_one_is_not():
    y, x = np.meshgrid(*2 * [np.arange(60.0)], indexing="ij")
    tip = SphereCone(8.0, 22.0, 2.0, 9)()
    needles = np.where((y % 9 == 4) & (x % 9 == 4), 20.0, 0.0)
    single = np.where((y == 22) & (x == 31), 20.0, 0.0)
    for scale in (1e-6, 1.0):
        for surface, least, most in ((needles, 0.99, 1.0), (single, 0.01, 0.2)):
            image = scale * dilate(jnp.asarray(surface), tip)[None]
            share = corroborated(image, scale * tip, scale * SIGMA, 0.7)
            assert least < share <= most
    assert corroborated(image, scale * tip, scale * SIGMA, 1.0) == 0.0


@pytest.mark.parametrize("radius_nm, passes", [(8.0, True), (12.0, False)])
def test_the_true_tip_is_admissible_and_a_blunter_one_is_not(scan, radius_nm, passes):
    _, _, images = scan
    heights = SphereCone(radius_nm, 22.0, 2.0, 15)()
    seen, floor, _ = misfit(images, heights, SIGMA, jax.random.key(1))
    assert bool(admissible(seen, floor)) is passes


@pytest.mark.slow
def test_a_blunt_start_is_sharpened_until_it_passes(scan):
    _, tip, images = scan
    key = jax.random.key(3)
    found, passed = free_form(images, 0.4 * tip, SIGMA, key, steps=300, allowance=1.4)
    start = misfit(images, 0.4 * tip, SIGMA, key)[0]
    assert passed
    assert float(jnp.max(found)) == 0.0
    assert misfit(images, found, SIGMA, key)[0] < 0.5 * start


def test_a_needle_leaves_a_misfit_and_a_gradient_of_zero(scan):
    _, _, images = scan
    needle = jnp.full((15, 15), -1e3).at[7, 7].set(0.0)
    value, slope = jax.value_and_grad(lambda t: misfit(images, t, SIGMA, jax.random.key(1))[0])(
        needle
    )
    assert value < 1e-5 and bool(jnp.all(slope == 0.0))


@pytest.mark.slow
def test_a_second_apex_is_found_where_it_is():
    truth, _, images = example(jax.random.split(jax.random.key(0))[0])
    found = blind(images, SIGMA, 2.0, (21, 21), jax.random.key(1), steps=0)
    true = truth.forward.tip.shape
    assert found.double
    np.testing.assert_allclose(found.shape.offset_nm, true.offset_nm, atol=0.5)
    np.testing.assert_allclose(found.shape.drop_nm, true.drop_nm, atol=0.5)


@pytest.mark.slow
def test_a_second_apex_as_sharp_as_a_pixel_is_found():
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    spectrum = np.fft.fft2(np.random.default_rng(1).standard_normal((96, 96)))
    surface = np.fft.ifft2(spectrum * np.maximum(k, 1 / 32) ** -1.8).real
    surface = jnp.asarray(surface / surface.std() * 20)
    tip = Double(5.0, 30.0, (-10.0, 60.0), 3.0, pixel_nm=10.0, size=(25, 25))()
    noise = 0.5 * jax.random.normal(jax.random.key(2), surface.shape)
    images = (dilate(surface, tip) + noise)[None]
    found = blind(images, noise_sigma_nm(images), 10.0, (25, 25), jax.random.key(3), steps=0)
    assert found.double
    np.testing.assert_allclose(found.shape.offset_nm, (-10.0, 60.0), atol=5.0)


def test_a_smooth_image_is_left_as_it_is(scan):
    y, x = np.meshgrid(*2 * [np.arange(48.0)], indexing="ij")
    noise = SIGMA * np.random.default_rng(100).standard_normal((48, 48))
    for scale in (1e-6, 1.0):
        smooth = jnp.asarray(scale * (4 * np.sin(x / 9) * np.cos(y / 7) + noise))[None]
        assert creases(smooth, scale * SIGMA) < CREASED
        estimate = blind(smooth, scale * SIGMA, 2.0, (9, 9), jax.random.key(0))
        assert estimate.bluntness == 0.0
        np.testing.assert_array_equal(erode(smooth[0], estimate.heights_nm), smooth[0])
    assert creases(scan[2], SIGMA) > CREASED


def test_candidates_fall_back_to_the_nearest_when_none_passes(scan):
    _, _, images = scan
    flat = finer(jax.tree.map(lambda a: a[0], single_tips(12.0, 2.0, (15, 15))))
    candidates = tried(images, flat, SIGMA, jax.random.key(4))
    assert not admissible(candidates.misfit, candidates.floor).any()
    assert 0 <= candidates.best(1.1) < len(candidates.misfit)
