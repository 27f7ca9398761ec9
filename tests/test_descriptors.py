"""Descriptors of patches against closed forms and scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.measure

from micjax.physics.patches.features import descriptors
from micjax.physics.patches.features.descriptors import Descriptors

N, SAMPLING = 48, 0.5
Y, X = np.mgrid[:N, :N] - 23.5
DESCRIBE = Descriptors(SAMPLING, (0.0, 0.1, 0.25, 0.5), (-0.7, 0.2, 0.9))
describe = jax.jit(DESCRIBE)


def wave(period_px: float, angle_rad: float):
    along = X * np.cos(angle_rad) + Y * np.sin(angle_rad)
    return np.cos(2.0 * np.pi * along / period_px + 0.4)


def texture(seed: int = 0, n: int = N):
    rng = np.random.default_rng(seed)
    return np.asarray(descriptors.smoothed(jnp.asarray(rng.gamma(2.0, size=(3, n, n))), 1.0))


@jax.jit
def in_pixels(patches, level):
    """Area, perimeter and Euler characteristic in pixels, of levels in units of the patch."""
    mean, sd = jnp.mean(patches, (1, 2)), jnp.std(patches, (1, 2))
    z = descriptors.standardised(patches)
    return jax.vmap(descriptors._above)(z[:, None], (level - mean) / sd)


def test_area_perimeter_and_euler_number_of_discs_and_rings():
    radius = np.hypot(X, Y)
    disc, ring = 15.2 - radius, 4.6 - np.abs(radius - 12.0)
    area, perimeter, euler = (v[:, 0] for v in in_pixels(jnp.stack([disc, ring]), 0.0))
    # chords of circles: an error of the order of 1 / radius^2
    np.testing.assert_allclose(area[0], np.pi * 15.2**2, rtol=2e-3)
    np.testing.assert_allclose(perimeter[0], 2.0 * np.pi * 15.2, rtol=2e-3)
    np.testing.assert_allclose(area[1], np.pi * (16.6**2 - 7.4**2), rtol=2e-3)
    np.testing.assert_allclose(perimeter[1], 2.0 * np.pi * (16.6 + 7.4), rtol=2e-3)
    assert euler.tolist() == [1.0, 0.0]


def test_a_straight_edge_is_exact():
    """z is linear: so is the interpolation in the triangles."""
    ramp = X * np.cos(0.3) + Y * np.sin(0.3)
    area, perimeter, euler = (float(v[0, 0]) for v in in_pixels(jnp.asarray(ramp)[None], 0.0))
    np.testing.assert_allclose(area, 0.5 * (N - 1) ** 2, rtol=1e-12)
    np.testing.assert_allclose(perimeter, (N - 1) / np.cos(0.3), rtol=1e-12)
    assert euler == 1.0


@pytest.mark.parametrize("level, connectivity", [(0.51, 1), (0.49, 2)])
def test_euler_numbers_are_those_of_scikit_image(level, connectivity):
    """Two pixels that touch at a corner are linked where the level is below their mean."""
    masks = (
        np.random.default_rng(1).random((4, 16, 16)) < np.array([0.2, 0.4, 0.6, 0.8])[:, None, None]
    )
    euler = in_pixels(jnp.asarray(masks, float), level)[2][:, 0]
    assert euler.tolist() == [skimage.measure.euler_number(m, connectivity) for m in masks]


def test_perimeter_is_that_of_scikit_images_contours():
    image = texture(2)[0]
    level = image.mean() + 0.5 * image.std()
    squares = skimage.measure.find_contours(image, level)
    length = sum(np.hypot(*np.diff(c, axis=0).T).sum() for c in squares)
    triangles = float(in_pixels(jnp.asarray(image)[None], level)[1][0, 0])
    np.testing.assert_allclose(triangles, length, rtol=0.03)


def test_densities_are_in_the_units_of_the_sampling():
    patches = jnp.asarray(texture())
    fine, coarse = jax.jit(lambda p: [descriptors.minkowski(p, s, (0.3,)) for s in (0.25, 0.5)])(
        patches
    )
    np.testing.assert_allclose(fine.area, coarse.area)
    np.testing.assert_allclose(fine.perimeter_perA, 2.0 * coarse.perimeter_perA)
    np.testing.assert_allclose(fine.euler_perA2, 4.0 * coarse.euler_perA2)
    pixels = in_pixels(patches, patches.mean((1, 2)) + 0.3 * patches.std((1, 2)))
    for density, total, edge_A in zip(coarse, pixels, (0.0, 1.0, 2.0), strict=True):
        np.testing.assert_allclose(density * (N - 1) ** 2 * 0.5**edge_A, total, rtol=1e-9)


@pytest.mark.parametrize("degrees", [-80.0, -45.0, 0.0, 30.0, 90.0])
def test_stripes_have_their_direction(degrees):
    stripes = descriptors.structure_tensor(jnp.asarray(wave(12.0, np.deg2rad(degrees)))[None])
    np.testing.assert_allclose(stripes.coherence, 1.0, atol=2e-3)
    off = np.rad2deg(float(stripes.angle_rad[0])) - degrees
    assert abs((off + 90.0) % 180.0 - 90.0) < 0.5
    crossed = wave(12.0, 0.2) + wave(12.0, 0.2 + np.pi / 2)
    assert descriptors.structure_tensor(jnp.asarray(crossed)[None]).coherence[0] < 0.05


def test_the_power_of_a_wave_is_in_its_ring():
    edges = (0.0, 0.2, 0.4, 0.6)  # the main lobe of the window is 2 / 24 Å wide to either side
    waves = jnp.asarray(np.stack([wave(1.0 / (k * SAMPLING), 0.5) for k in (0.1, 0.3, 0.5)]))
    power = descriptors.radial_power(waves, SAMPLING, edges)
    assert np.all(np.diag(power) > 0.99)
    # of white noise by the number of frequencies; its mean takes 2 of the first ring's 68 with it
    noise = jnp.asarray(np.random.default_rng(3).standard_normal((100, 48, 48)))
    k = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(N, SAMPLING)]))
    expected = np.histogram(k, edges)[0] - np.array([1, 0, 0])
    share = descriptors.radial_power(noise, SAMPLING, edges).mean(0)
    np.testing.assert_allclose(share, expected / (N**2 - 1), rtol=0.07)


def test_moments_of_an_exponential_distribution():
    draws = jnp.asarray(np.random.default_rng(4).exponential(size=(4, 300, 300)))
    np.testing.assert_allclose(descriptors.moments(draws).mean(0), [2.0, 6.0], rtol=0.05)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_brightness_and_contrast_change_nothing(scale):
    patches = texture().astype(np.float32)
    wanted = describe(patches)
    assert wanted.dtype == jnp.float32 and wanted.shape == (3, len(DESCRIBE.names))
    other = describe(np.float32(scale) * (patches + np.float32(7.0)))
    np.testing.assert_allclose(other, wanted, rtol=2e-3, atol=2e-4)


def test_a_patch_turned_by_90_degrees_is_the_same():
    patches = texture(5)
    turned = np.rot90(patches, axes=(1, 2))
    np.testing.assert_allclose(describe(turned), describe(patches), rtol=1e-9, atol=1e-11)


SMALL = Descriptors(SAMPLING, (0.0, 0.3, 0.8), (0.3,))


@jax.jit
def slope(patches, step):
    """Descriptors, and how they change along a step."""
    return jax.jvp(SMALL, (patches,), (step,))


def test_a_constant_patch_has_numbers_and_gradients():
    constant, step = jnp.full((1, 12, 12), 0.1), jnp.asarray(texture(7, 12)[:1])
    assert np.all(descriptors.standardised(constant) == 0.0)
    assert all(np.all(np.isfinite(v)) for v in slope(constant, step))


def test_gradients_are_those_of_finite_differences():
    """A triangle's corner at the level is a kink: none is near it here."""
    patch, step = jnp.asarray(texture(6, 12)[:1]), jnp.asarray(texture(7, 12)[:1])
    smooth = np.array(["Euler" not in name for name in SMALL.names])
    exact = slope(patch, step)[1][0]
    finite = (slope(patch + 1e-6 * step, step)[0] - slope(patch - 1e-6 * step, step)[0])[0] / 2e-6
    np.testing.assert_allclose(exact[smooth], finite[smooth], rtol=1e-5, atol=1e-7)
    assert np.all(np.abs(finite[smooth]) > 1e-4) and np.all(exact[~smooth] == 0.0)


@pytest.mark.parametrize(
    "what, message",
    [
        (lambda p: descriptors.radial_power(p, 0.5, (0.1, 0.1)), "increase from 0"),
        (lambda p: descriptors.radial_power(p, 0.5, (0.1,)), "increase from 0"),
        (lambda p: descriptors.radial_power(p, 0.5, (0.0, 0.01)), "no frequency of a patch"),
        (lambda p: descriptors.radial_power(p, 0.0, (0.0, 1.0)), "sampling_A"),
        (lambda p: descriptors.minkowski(p[:, :1], 0.5, (0.0,)), "2 x 2"),
        (lambda p: descriptors.structure_tensor(p[:, :2]), "3 x 3"),
        (lambda p: Descriptors(0.5, (0.0, 1.0), smoothing_px=-1.0), "smoothing_px"),
    ],
)
def test_what_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        what(jnp.ones((1, 16, 16)))
