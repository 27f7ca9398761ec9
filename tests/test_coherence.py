"""Sources of a size and a spread of foci: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import source_blurred

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_a_point_becomes_the_source():
    step, fwhm, shape = (0.11, 0.13), 0.9, (60, 48)
    image = jnp.zeros((2, *shape)).at[0, 7, 40].set(1.0).at[1, 0, 0].set(3.0)
    found = source_blurred(image, step, fwhm)
    y, x = ((np.arange(n) + n // 2) % n - n // 2 for n in shape)
    r2 = (y[:, None] * step[0]) ** 2 + (x * step[1]) ** 2
    s2 = fwhm**2 / (8.0 * np.log(2.0))
    source = np.exp(-r2 / (2.0 * s2)) * step[0] * step[1] / (2.0 * np.pi * s2)
    np.testing.assert_allclose(found[0], np.roll(source, (7, 40), (0, 1)), atol=1e-9)
    np.testing.assert_allclose(found[1], 3.0 * source, atol=1e-9)


def test_a_spread_of_foci_is_the_envelope_of_a_weak_object():
    """exp(i phi) with a small phase phi, whose image is linear in it."""
    shape, wavelength, spread = (48, 40), optics.wavelength_A(200.0), 30.0
    angles = optics.angles_mrad(shape, 0.5, wavelength)
    aberrations = {"C10": jnp.asarray(-350.0), "C30": jnp.asarray(1e6), "C12a": jnp.asarray(40.0)}
    phase = 1e-6 * np.random.default_rng(0).normal(size=shape)

    def contrast(aberrations, envelope=1.0):
        transfer = jnp.exp(-1j * optics.chi(angles, aberrations, wavelength)) * envelope
        return jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(jnp.exp(1j * phase)) * transfer)) ** 2 - 1.0

    change, weights = optics.focal_nodes_A(spread, 24)
    series = [contrast(aberrations | {"C10": aberrations["C10"] + c}) for c in change]
    found = jnp.tensordot(weights, jnp.stack(series), 1)
    expected = contrast(aberrations, optics.focal_envelope(angles, spread, wavelength))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    difference = jnp.abs(contrast(aberrations) - expected).max()  # one focus is another image
    assert difference > 0.1 * jnp.abs(expected).max()


def test_moments_of_the_foci():
    """A 1/e half-width of 60 Å is a standard deviation of 60 / sqrt(2)."""
    change, weights = optics.focal_nodes_A(60.0, 5)
    moments = [float(jnp.sum(weights * change**n)) for n in range(5)]
    variance = 60.0**2 / 2.0
    np.testing.assert_allclose(moments, [1.0, 0.0, variance, 0.0, 3.0 * variance**2], atol=1e-6)
