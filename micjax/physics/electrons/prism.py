"""PRISM: one multislice for each beam of the aperture, and then any probe as a sum of them.

    psi(r; r0) = sum_b A_b exp(-i chi_b) exp(-2 pi i k_b . r0) S_b(r)

S_b is what the crystal makes of the plane wave k_b (Ophus 2017, Adv. Struct. Chem. Imaging 3, 13).
It depends neither on the place of the probe nor on its aberrations, so that a scan, a focal series
and a fit of the aberrations all share it. With an interpolation f only every f-th beam is computed,
and the probe is cut out of a window of 1/f of the cell: quick, and right as long as the wave stays
in it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from micjax.physics.electrons import optics
from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.detectors import collected, diffraction
from micjax.physics.electrons.multislice import Sampling, Tilt, propagate

TOGETHER = 32  # probes at a time, for a matrix product instead of 32 sums
TIE = 1e-3  # pixels: a probe between two pixels takes the next, whichever way its place is rounded


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

    def of_beam(index):
        return propagate(
            wave(index),
            transmissions,
            thickness_A,
            sampling_A,
            energy_keV,
            tilt_mrad=tilt_mrad,
            limit=limit,
        )

    return jax.lax.map(of_beam, jnp.asarray(beams.index, float))


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
    at_beams = tuple((beams.index // step).T)
    amplitude = optics.aperture(angles, semiangle_mrad)[at_beams]
    phase = optics.chi(angles, coefficients, wavelength)[at_beams]
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
    return _reduced(positions_A, weights, matrix, beams, sampling_A, lambda waves: waves)


def scanned(
    positions_A: Float[Array, "n 2"],
    weights: Complex[Array, "b"],
    matrix: Complex[Array, "b ny nx"],
    beams: Beams,
    sampling_A: Sampling,
    masks: Bool[Array, "*masks wy wx"],
) -> Float[Array, "n ..."]:
    """The fraction of the beam on each mask (of patterns of the window), place by place."""

    def seen(waves):
        return collected(diffraction(waves), masks)

    return _reduced(positions_A, weights, matrix, beams, sampling_A, seen)


def _reduced(positions_A, weights, matrix, beams: Beams, sampling_A, detect) -> Array:
    """What `detect` makes of the waves `[m, wy, wx]` of m neighbouring probes at a time.

    The sum over beams is one real matrix product over the part of the cell that the windows of
    these probes cover together.
    """
    size = jnp.asarray([n * d for n, d in zip(beams.shape, sampling_A, strict=True)])
    planes = jnp.concatenate([matrix.real, matrix.imag])
    product = functools.partial(jnp.tensordot, axes=1, precision="highest")  # not TF32 on a GPU
    corners = _corners(positions_A, beams, sampling_A)
    together, extent = _neighbours(corners, beams)

    def several(some):
        places, corners = some
        turns = (places / size) @ jnp.asarray(beams.index.T, places.dtype)
        ramp = cis(-2.0 * jnp.pi * (turns - jax.lax.stop_gradient(jnp.round(turns))))
        c = (weights * ramp).astype(matrix.dtype)
        rows = jnp.stack(
            [jnp.concatenate([c.real, -c.imag], 1), jnp.concatenate([c.imag, c.real], 1)]
        )
        if beams.window == beams.shape:
            return detect(jax.lax.complex(*product(rows, planes)))
        first = jnp.min(corners, 0)
        iy, ix = (
            (f + np.arange(w + e)) % n
            for f, w, e, n in zip(first, beams.window, extent, beams.shape, strict=True)
        )
        waves = jax.lax.complex(*product(rows, planes[:, iy[:, None], ix]))
        cut = jax.vmap(lambda wave, at: jax.lax.dynamic_slice(wave, at, beams.window))
        return detect(cut(waves, corners - first))

    def in_groups(rows):
        last = jnp.broadcast_to(rows[-1:], (-len(rows) % together, 2))
        return jnp.concatenate([rows, last]).reshape(-1, together, 2)

    seen = jax.lax.map(several, (in_groups(positions_A), in_groups(corners)))
    return seen.reshape(-1, *seen.shape[2:])[: len(positions_A)]


def _corners(positions_A, beams: Beams, sampling_A):
    """The first pixel of each window: NumPy's where the places are known."""
    known = not any(isinstance(a, jax.core.Tracer) for a in (positions_A, *sampling_A))
    xp = np if known else jnp
    pixel = xp.asarray(positions_A) / xp.asarray([float(d) if known else d for d in sampling_A])
    return xp.floor(pixel + (0.5 + TIE)).astype(int) - np.asarray(beams.window) // 2


def _neighbours(corners, beams: Beams) -> tuple[int, tuple[int, int]]:
    """How many probes to take together, and how far apart (y, x) their windows lie at most.

    One by one where that is not known or too far for a common part of the cell.
    """
    together = max(1, min(TOGETHER, len(corners)))
    if beams.window == beams.shape:
        return together, (0, 0)
    if not isinstance(corners, jax.core.Tracer):
        starts = range(0, len(corners), together)
        extents = [np.ptp(corners[i : i + together], axis=0) for i in starts]
        extent = np.max(extents, axis=0, initial=0)
        if np.all(extent <= np.asarray(beams.shape) - beams.window):
            return together, tuple(int(e) for e in extent)
    return 1, (0, 0)
