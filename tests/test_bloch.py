"""Multislice beside Bloch waves: two ways to the same diffracted intensities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import multislice
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.scattering import scattering_factors_A

pytestmark = pytest.mark.usefixtures("double")
CELL_A, NUMBERS = 3.905, (38, 22, 8, 8, 8)
PLACES = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
U_A2 = 0.01


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bloch_intensities(energy_keV, thickness_A, tilt_inv_A, most):
    """Of the beams (h, k, 0) with |h|, |k| <= most, `[ky, kx]`, by the eigenvectors of the
    structure matrix (Kirkland 2010, sec. 6.2; Zuo & Spence 2017, ch. 5).

    The amplitudes behind a thickness t are the column of the direct beam of exp(2 pi i A t), with

        A_gg = -(g^2 + 2 K.g) / 2 k0,  A_gh = U_(g-h) / 2 k0,  U_g = gamma / (pi volume) F_g,

    K the tilt, gamma the relativistic mass by the rest mass, and F the structure factor.
    """
    index = np.arange(-most, most + 1)
    g = np.stack(np.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)  # (y, x)
    step = g[:, None] - g
    k_squared = np.sum((step / CELL_A) ** 2, -1)
    factors = np.asarray(scattering_factors_A(NUMBERS, jnp.asarray(k_squared)))
    phases = [np.exp(-2j * np.pi * (step[..., 1] * x + step[..., 0] * y)) for x, y, _ in PLACES]
    gamma = 1.0 + energy_keV / 510.99895
    damping = np.exp(-2.0 * np.pi**2 * U_A2 * k_squared)
    structure = damping * sum(f * p for f, p in zip(factors, phases, strict=True))
    u = gamma / (np.pi * CELL_A**3) * structure
    k0 = 1.0 / optics.wavelength_A(energy_keV)
    g_inv_A = g / CELL_A
    excitation = -np.sum(g_inv_A * (g_inv_A + 2.0 * tilt_inv_A), -1) / (2.0 * k0)
    matrix = np.where(np.eye(len(g), dtype=bool), excitation[:, None], u / (2.0 * k0))
    values, vectors = np.linalg.eigh(matrix)
    direct = vectors[len(g) // 2].conj()
    waves = vectors @ (np.exp(2j * np.pi * np.outer(values, thickness_A)) * direct[:, None])
    return (np.abs(waves) ** 2).T.reshape(-1, 2 * most + 1, 2 * most + 1)


@pytest.mark.parametrize(
    "tilt_mrad", [pytest.param((0.0, 0.0), marks=pytest.mark.slow), (6.0, -3.0)]
)
@pytest.mark.parametrize("energy_keV", [80.0, 300.0])
def test_diffracted_intensities(energy_keV, tilt_mrad):
    """Both project the potential along the beam. What is left, up to 1.2e-4 of the beam, is the
    splitting into slices, and goes with their number squared."""
    shape, slices_a_cell, most = (48, 48), 16, 13
    cell = Atoms(NUMBERS, np.asarray(PLACES) * CELL_A, [CELL_A] * 3, u_A2=U_A2)
    projected = potential_VA(cell, shape, np.array([CELL_A]))[0] / slices_a_cell
    thickness, sampling = CELL_A / slices_a_cell, (CELL_A / 48, CELL_A / 48)
    tilt_inv_A = np.tan(1e-3 * np.asarray(tilt_mrad)) / optics.wavelength_A(energy_keV)
    cells = [26, 52, 78]  # 100 to 300 Å
    expected = bloch_intensities(energy_keV, CELL_A * np.asarray(cells), tilt_inv_A, most)
    beams = np.arange(-most, most + 1)
    slices = jnp.broadcast_to(projected, (26 * slices_a_cell, *shape))
    wave = jnp.full(shape, 1.0 / np.prod(shape), complex)
    for theirs in expected:
        wave = multislice(wave, slices, thickness, sampling, energy_keV, tilt_mrad=tilt_mrad)
        found = diffraction(wave)[np.ix_(beams, beams)]
        np.testing.assert_allclose(found, theirs, atol=2e-4)
