"""Detectors against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import (
    annulus,
    beam_stop,
    blurred,
    collected,
    differential,
    gaussian_mtf,
    highest_annulus_mrad,
    rings,
    segments,
    weak_phase_image,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grid(shape, reach_mrad):
    y, x = (np.fft.fftfreq(n, 0.5 / reach) for n, reach in zip(shape, reach_mrad, strict=True))
    return jnp.asarray(y[:, None]), jnp.asarray(x[None])


def test_rings_add_up_to_annuli():
    angles = grid((40, 32), (50.0, 42.0))
    patterns = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 40, 32)))
    found = jax.jit(lambda p: rings(p, angles, 4.0))(patterns)
    assert found.shape == (2, 3, 10) and highest_annulus_mrad(angles) == 42.0
    for first, last in ((0, 10), (3, 4), (5, 9)):
        ring = annulus(angles, 4.0 * first, 4.0 * last)
        expected = collected(patterns, ring[None])[..., 0]
        np.testing.assert_allclose(found[..., first:last].sum(-1), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="no ring of 43.0 mrad fits"):
        rings(patterns, angles, 43.0)


@pytest.mark.parametrize(("sectors", "rotation_rad"), [(4, 0.0), (4, 0.6), (3, -0.2), (8, 1.0)])
def test_a_disc_that_is_shifted(sectors, rotation_rad):
    angles, radius, shift = grid((400, 360), (30.0, 30.0)), 20.0, np.array([0.3, -0.4])
    disc = optics.aperture((angles[0] - shift[0], angles[1] - shift[1]), radius)
    disc = disc.at[0, 0].set(1.0)
    masks = segments(angles, 0.0, 30.0, 1, sectors, rotation_rad)[0]
    found = differential(collected(disc, masks), rotation_rad)
    expected = sectors * np.sin(np.pi / sectors) / (np.pi * radius) * shift
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("direction_rad", [0.0, np.pi / 2, np.pi])
def test_a_beam_stop_covers_its_disc_and_its_arm(direction_rad):
    angles, radius, arm = grid((600, 600), (30.0, 30.0)), 8.0, 6.0
    free = beam_stop(angles, radius, arm, direction_rad)
    inside = 0.5 * arm * np.sqrt(radius**2 - arm**2 / 4) + radius**2 * np.arcsin(arm / 2 / radius)
    area = np.pi * radius**2 + arm * 30.0 - inside
    assert float((~free).sum()) * 0.1**2 == pytest.approx(area, rel=0.01)
    y, x = (int(np.round(200 * f(direction_rad))) for f in (np.sin, np.cos))
    assert not free[y, x] and free[-y, -x]
    assert bool(beam_stop(angles, radius).sum() == (jnp.hypot(*angles) >= radius).sum())


def test_a_camera_blurs_a_point_to_a_gaussian():
    at_nyquist = 1e-4
    variance = -2.0 * np.log(at_nyquist) / np.pi**2
    y, x = (np.fft.fftfreq(n, 1.0 / n) for n in (24, 30))
    expected = np.exp(-(y[:, None] ** 2 + x**2) / (2.0 * variance)) / (2.0 * np.pi * variance)
    point = jnp.zeros((24, 30)).at[0, 0].set(1.0)
    found = blurred(point, gaussian_mtf(point.shape, at_nyquist))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


@pytest.mark.slow
def test_the_image_of_a_weak_phase():
    shape, wavelength = (41, 47), optics.wavelength_A(200.0)
    angles = optics.angles_mrad(shape, 0.5, wavelength)
    aberrations = {"C10": jnp.asarray(-350.0), "C30": jnp.asarray(1e6), "C12b": jnp.asarray(60.0)}
    phase = 1e-5 * np.random.default_rng(0).normal(size=shape)
    phase = jnp.asarray(phase - phase.mean())
    lens = jnp.exp(-1j * optics.chi(angles, aberrations, wavelength))
    image = jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(jnp.exp(1j * phase)) * lens)) ** 2
    found = weak_phase_image(phase, optics.contrast_transfer(angles, aberrations, wavelength))
    contrast = float(jnp.abs(image - 1.0).max())
    np.testing.assert_allclose(found, image, atol=1e-3 * contrast)
