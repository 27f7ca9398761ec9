"""Electron optics: tabulated wavelengths, closed forms, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.electrons import optics

LAMBDA_A = optics.wavelength_A(200.0)
ANGLES = optics.angles_mrad((48, 40), np.array([0.3, 0.35]), LAMBDA_A)
ALL = {name: 10.0 ** (2 + int(name[1])) * (1 + 0.1 * i) for i, name in enumerate(optics.CARTESIAN)}


@pytest.mark.parametrize(
    "energy_keV, wavelength_A, sigma",  # ASE with CODATA 2014, agrees to 1e-8
    [
        (80.0, 0.04175716056, 1.0087066046e-3),
        (200.0, 0.02507934032, 7.2884010859e-4),
        (300.0, 0.01968748890, 6.5261614647e-4),
    ],
)
def test_constants_of_the_electron(energy_keV, wavelength_A, sigma):
    np.testing.assert_allclose(optics.wavelength_A(energy_keV), wavelength_A, rtol=3e-8)
    np.testing.assert_allclose(optics.interaction_rad_per_VA(energy_keV), sigma, rtol=3e-8)


def test_phase_is_the_polar_sum():
    """All 25 coefficients against the formula in alpha and phi, term by term."""
    y, x = (np.asarray(a) * 1e-3 for a in ANGLES)
    alpha, phi = np.hypot(y, x), np.arctan2(y, x) + 0 * y
    coefficients = optics.polar(ALL)
    expected = sum(
        alpha ** (int(name[1]) + 1)
        / (int(name[1]) + 1)
        * c
        * np.cos(int(name[2]) * (phi - coefficients.get(f"phi{name[1:]}", 0.0)))
        for name, c in coefficients.items()
        if name.startswith("C")
    )
    np.testing.assert_allclose(
        optics.chi(ANGLES, ALL, LAMBDA_A), 2 * np.pi / LAMBDA_A * expected, rtol=1e-11, atol=1e-11
    )


def test_polar_and_cartesian_are_inverse():
    back = optics.cartesian(optics.polar(ALL))
    assert set(back) == set(ALL) == set(optics.CARTESIAN)
    for name, value in ALL.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)


def test_no_aberration_is_no_phase():
    np.testing.assert_array_equal(optics.chi(ANGLES, {}, LAMBDA_A), np.zeros((48, 40)))


def test_defocus_alone_is_a_ring_as_large_as_geometry_says():
    """Without diffraction the probe is a disc of radius |C10| semiangle."""
    angles = optics.angles_mrad((256, 256), 0.4, LAMBDA_A)
    disc = optics.probe_intensity(angles, 20.0, {"C10": 1000.0}, LAMBDA_A)
    np.testing.assert_allclose(disc.sum(), 1.0, rtol=1e-12)
    r_A = 0.4 * np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(256, 1 / 256)]))
    inside = float(disc[r_A < 1000.0 * 20e-3].sum())
    assert 0.9 < inside < 1.0
    # the mean square radius of an even disc is R^2 / 2, whatever the wavelength
    assert float((disc * r_A**2 * (r_A < 60)).sum()) == pytest.approx(20.0**2 / 2, rel=0.05)


def test_astigmatism_at_its_focus_is_a_line():
    """C10 = C12a = C: chi grows with alpha_x^2 only, so the probe is a line along x with the mean
    square (2 C semiangle)^2 / 4 of a projected disc; C12b turns it by 45 degrees."""
    angles = optics.angles_mrad((128, 128), 0.3, LAMBDA_A)
    index = np.fft.fftfreq(128, 1 / 128)
    y, x = np.meshgrid(index, index, indexing="ij")

    def moments(astigmatism):
        p = optics.probe_intensity(angles, 15.0, {"C10": 400.0, **astigmatism}, LAMBDA_A)
        p = np.where(np.hypot(y, x) < 60, p, 0.0)  # as many pixels on either side
        return [float((p * m).sum()) for m in (y**2, x**2, x * y)]

    yy, xx, xy = moments({"C12a": 400.0})
    assert xx == pytest.approx((2 * 400.0 * 15e-3 / 0.3) ** 2 / 4, rel=0.02)
    assert yy < 0.05 * xx and abs(xy) < 1e-12 * xx
    yy, xx, xy = moments({"C12b": 400.0})
    assert xy > 0.9 * xx and xx == pytest.approx(yy)


def test_aperture():
    edge = np.asarray(optics.aperture(ANGLES, 12.0))
    alpha = np.hypot(*np.broadcast_arrays(*map(np.asarray, ANGLES)))
    pixel = max(float(a.ravel()[1]) for a in ANGLES)
    assert (edge[alpha < 12 - pixel / 2] == 1).all() and (edge[alpha > 12 + pixel / 2] == 0).all()
    pixels = np.pi * 12.0**2 / np.prod([float(a.ravel()[1]) for a in ANGLES])
    assert edge.sum() == pytest.approx(pixels, rel=0.01)


def test_contrast_transfer_of_a_weak_phase_object():
    """Against the image itself: 1 + i epsilon f, seen through exp(-i chi), has the spectrum
    2 epsilon sin(chi) F(f) to first order; the envelopes multiply it."""
    aberrations = {"C10": -500.0, "C30": 1e7, "C12a": 50.0}
    f = np.random.default_rng(0).normal(size=(48, 40))
    wave = np.fft.fft2(1 + 1e-6j * f) * np.exp(-1j * optics.chi(ANGLES, aberrations, LAMBDA_A))
    contrast = np.fft.fft2((np.abs(np.fft.ifft2(wave)) ** 2 - 1) / 2e-6)
    expected = np.fft.fft2(f) * optics.contrast_transfer(ANGLES, aberrations, LAMBDA_A)
    np.testing.assert_allclose(contrast, expected, atol=1e-3)
    damped = optics.contrast_transfer(ANGLES, aberrations, LAMBDA_A, 40.0, 0.3)
    envelopes = optics.focal_envelope(ANGLES, 40.0, LAMBDA_A) * optics.angular_envelope(
        ANGLES, 0.3, aberrations, LAMBDA_A
    )
    sine = optics.contrast_transfer(ANGLES, aberrations, LAMBDA_A)
    np.testing.assert_allclose(damped, envelopes * sine, atol=1e-12)


def test_gradient_of_the_probe_is_that_of_finite_differences():
    """Also at zero aberration, where the polar form has none."""
    angles = optics.angles_mrad((16, 16), 0.4, LAMBDA_A)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(16, 16)))

    def seen(c):
        c10, c12a, c12b, c30 = c * jnp.array([10, 10, 10, 1e5])
        coefficients = {"C10": c10, "C12a": c12a, "C12b": c12b, "C30": c30}
        return (weights * optics.probe_intensity(angles, 20.0, coefficients, LAMBDA_A)).sum()

    check_grads(jax.jit(seen), (jnp.zeros(4),), order=2, modes=("rev",), rtol=1e-5)
    check_grads(jax.jit(seen), (jnp.array([3.0, 1.0, -2.0, 1.0]),), order=1, rtol=1e-5)


def test_float32_stays_float32():
    with jax.enable_x64(False):
        angles = optics.angles_mrad((16, 16), 0.4, optics.wavelength_A(200.0))
        probe = optics.probe(angles, 20.0, {"C10": jnp.float32(100.0)}, LAMBDA_A)
        assert probe.dtype == jnp.complex64 and bool(jnp.isfinite(probe).all())


@pytest.mark.parametrize(
    "function, name, nearest",
    [
        (lambda c: optics.chi(ANGLES, c, LAMBDA_A), "C12", "C12a"),
        (optics.cartesian, "C12a", "C12"),
        (optics.polar, "phi12", "C12"),
        (optics.cartesian, "C11", "C12"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(function, name, nearest):
    with pytest.raises(ValueError, match=rf"no aberration coefficient '{name}'.*{nearest}"):
        function({name: 1.0})
