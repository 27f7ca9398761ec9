"""PRISM: one multislice for each beam of the aperture, and then any probe as a sum of them.

    psi(r; r0) = sum_b A_b exp(-i chi_b) exp(-2 pi i k_b . r0) S_b(r)

S_b is what the crystal makes of the plane wave k_b (Ophus 2017, Adv. Struct. Chem. Imaging 3, 13).
It depends neither on the place of the probe nor on its aberrations, so that a scan, a focal series
and a fit of the aberrations all share it. With an interpolation f only every f-th beam is computed,
and the probe is cut out of a window of 1/f of the cell: quick, and right as long as the wave stays
in it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from micjax.physics import optics
from micjax.physics.cis import cis
from micjax.physics.detectors import collected, diffraction
from micjax.physics.multislice import Sampling, Tilt, propagate


class Beams(NamedTuple):
    """The plane waves of an aperture.

    `index` `[b, 2]` counts them in periods of the cell along (y, x); `window` is the shape of what
    is cut out for a probe; `shape` that of the cell.
    """

    index: Int[np.ndarray, "b 2"]
    window: tuple[int, int]
    shape: tuple[int, int]


def beams(
    shape: tuple[int, int],
    sampling_A: tuple[float, float],
    semiangle_mrad: float,
    energy_keV: float,
    interpolation: int = 1,
) -> Beams:
    """Those within the aperture, its soft edge included, of a window of 1 / interpolation.

    **Raises:** `ValueError` for a shape that the interpolation does not divide.
    """
    if interpolation < 1 or any(n % interpolation for n in shape):
        raise ValueError(f"an interpolation of {interpolation} does not divide {shape} pixels")
    window = (shape[0] // interpolation, shape[1] // interpolation)
    angles = optics.angles_mrad(window, np.asarray(sampling_A), optics.wavelength_A(energy_keV))
    inside = np.argwhere(np.asarray(optics.aperture(angles, semiangle_mrad)) > 0.0)
    signed = (inside + np.asarray(window) // 2) % window - np.asarray(window) // 2
    return Beams(signed * interpolation, window, shape)


def scattering_matrix(
    beams: Beams,
    transmissions: Complex[Array, "slices ny nx"],
    thickness_A: float | Float[Array, "..."] | Float[np.ndarray, "..."],
    sampling_A: Sampling,
    energy_keV: float | Float[Array, ""],
    *,
    tilt_mrad: Tilt = (0.0, 0.0),
    limit: Float[Array, "ny nx"] | None = None,
) -> Complex[Array, "b ny nx"]:
    """S_b of each beam, behind the last slice. `limit` as in `multislice.transmission`."""
    ny, nx = beams.shape
    y, x = (np.arange(n) / n for n in beams.shape)
    per_window = (ny // beams.window[0]) * (nx // beams.window[1]) / (ny * nx)

    def wave(index):
        turns_y, turns_x = index[0] * y, index[1] * x
        both = (turns_y - jnp.round(turns_y))[:, None] + (turns_x - jnp.round(turns_x))
        return per_window * cis(2.0 * jnp.pi * both).astype(transmissions.dtype)

    def one(index):
        return propagate(
            wave(index),
            transmissions,
            thickness_A,
            sampling_A,
            energy_keV,
            tilt_mrad=tilt_mrad,
            limit=limit,
        )

    return jax.lax.map(one, jnp.asarray(beams.index, float))


def probe_weights(
    beams: Beams,
    sampling_A: tuple[float, float],
    semiangle_mrad: float | Float[Array, ""],
    coefficients: optics.Coefficients,
    energy_keV: float | Float[Array, ""],
) -> Complex[Array, "b"]:
    """A_b exp(-i chi_b), sum |.|^2 = 1: smooth in the aberrations."""
    wavelength = optics.wavelength_A(energy_keV)
    angles = optics.angles_mrad(beams.window, np.asarray(sampling_A), wavelength)
    step = [n // w for n, w in zip(beams.shape, beams.window, strict=True)]
    here = tuple((beams.index // step).T)
    amplitude = optics.aperture(angles, semiangle_mrad)[here]
    phase = optics.chi(angles, coefficients, wavelength)[here]
    return amplitude * cis(-phase) / jnp.linalg.norm(amplitude)


def waves_at(
    positions_A: Float[Array, "n 2"],
    weights: Complex[Array, "b"],
    matrix: Complex[Array, "b ny nx"],
    beams: Beams,
    sampling_A: Sampling,
) -> Complex[Array, "n wy wx"]:
    """The waves behind the crystal, in a window whose middle is the pixel next to the probe.

    **Arguments:**

    - `positions_A`: (y, x) of each probe.
    """
    size = [n * d for n, d in zip(beams.shape, sampling_A, strict=True)]
    pixels = jnp.asarray([float(d) for d in sampling_A])

    def at(place):
        turns = beams.index[:, 0] * (place[0] / size[0]) + beams.index[:, 1] * (place[1] / size[1])
        ramp = cis(-2.0 * jnp.pi * (turns - jax.lax.stop_gradient(jnp.round(turns))))
        coefficients = (weights * ramp).astype(matrix.dtype)
        if beams.window == beams.shape:
            return jnp.tensordot(coefficients, matrix, 1)
        corner = jnp.round(place / pixels).astype(int) - jnp.asarray(beams.window) // 2
        iy, ix = (
            (c + np.arange(w)) % n
            for c, w, n in zip(corner, beams.window, beams.shape, strict=True)
        )
        return jnp.tensordot(coefficients, matrix[:, iy[:, None], ix[None]], 1)

    return jax.lax.map(at, positions_A)


def scanned(
    positions_A: Float[Array, "n 2"],
    weights: Complex[Array, "b"],
    matrix: Complex[Array, "b ny nx"],
    beams: Beams,
    sampling_A: Sampling,
    masks: Bool[Array, "*masks wy wx"],
) -> Float[Array, "n ..."]:
    """The fraction of the beam on each mask (of patterns of the window), place by place."""

    def seen(place):
        wave = waves_at(place[None], weights, matrix, beams, sampling_A)
        return collected(diffraction(wave), masks)[0]

    return jax.lax.map(seen, positions_A)
