"""Position-averaged convergent-beam patterns of a crystal, at every thickness in one pass.

A focused probe is a sum of plane waves k within the aperture A. Two of them meet in a pixel only if
they differ by a vector g of the reciprocal lattice, and then the mean over the places of the probe
in a cell takes their interference away (LeBeau et al. 2010, Ultramicroscopy 110, 118):

    I(q) = sum_g A(q - g) R_g(q - g) / area of A,     R_g(k) = |psi_k(g)|^2

Neither aberrations nor places matter, and each wave needs one cell of the crystal only. Where the
discs do not overlap, this is the pattern of a probe at any one place as well. R_g, how much of the
beam goes into the reflection g, is smooth in the direction k: it is computed on a coarse grid, and
interpolated to the pixels of a camera, where the edge of the aperture is drawn sharply.

Lengths are in Å, angles in mrad, arrays `[iy, ix]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from micjax.physics.electrons import optics
from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.multislice import (
    Tilt,
    band_limit,
    frequencies_inv_A,
    lowest,
    propagator,
)
from micjax.physics.electrons.potentials.layers import Atoms
from micjax.physics.electrons.scattering import VOLT_A2, scattering_factors_A

Scalar = float | Float[Array, ""]
CLOSER = 4  # finer grid for exp(i sigma v) of an atom at rest, which is sharper than its mean
ELASTIC = 2.0  # 2 pi sqrt(u) k, beyond which a mean wave has some 1e-3 of its electrons
INTERPOLATED = 3.0  # directions in a fringe of the quickest rocking curve, for a cubic
ALIKE = 1e-3  # of a slice: heights that differ by less differ by rounding


def elastic_mrad(u_A2: float, energy_keV: float) -> float:
    """How far atoms that move by u scatter a mean wave: beyond k = 2 / (2 pi sqrt(u)) thermal
    motion leaves less than exp(-4) = 2 % of what an atom at rest scatters."""
    return float(1e3 * optics.wavelength_A(energy_keV) * ELASTIC / (2.0 * np.pi * np.sqrt(u_A2)))


def planes(heights: Float[np.ndarray, "atoms"], least: int) -> tuple[tuple[int, ...], ...]:
    """Which atoms of a cell act in each of its slices, which are equal.

    So many slices, from `least` to twice that, as put the planes of atoms where slices begin, or
    next to it: a plane between two of them would act too early or too late.

    **Arguments:**

    - `heights`: of the atoms along the beam, in units of the cell.
    """
    above = (np.asarray(heights) + ALIKE) % 1.0  # a little below 0 is 0, and not 1
    above = above - np.min(above)

    def off(n):
        # in steps of ALIKE, so that rounded heights do not decide
        return np.round(np.max(np.abs(above * n - np.round(above * n))) / n / ALIKE)

    slices = min(range(least, 2 * least + 1), key=off)
    layer = np.floor(above * slices + 0.5 + ALIKE).astype(int) % slices
    return tuple(tuple(np.flatnonzero(layer == s).tolist()) for s in range(slices))


def mean_transmission(
    atoms: Atoms, layers: tuple[tuple[int, ...], ...], shape: tuple[int, int], energy_keV: Scalar
) -> Complex[Array, "slices ny nx"]:
    """<exp(i sigma V)> of each slice, over the thermal motion of its atoms.

    Atoms that move independently of one another (Einstein) let the mean wave pass as if each slice
    were its mean: Debye-Waller factor and absorption at once, to all orders of the potential. For
    one atom exp(i sigma v) - 1 is blurred by its motion; the atoms of a slice are multiplied.

    **Arguments:**

    - `atoms`: one cell. `layers`: which of them lie in each slice.
    - `shape`: pixels over the cell. The result is cut at 2/3 of the highest frequency.
    """
    fine = (CLOSER * shape[0], CLOSER * shape[1])
    sampling = (atoms.box_A[1] / shape[0], atoms.box_A[0] / shape[1])
    ky, kx = frequencies_inv_A(fine, (sampling[0] / CLOSER, sampling[1] / CLOSER))
    factors = scattering_factors_A(atoms.elements, ky**2 + kx**2)
    scale = fine[0] * fine[1] * VOLT_A2 / (atoms.box_A[0] * atoms.box_A[1])
    sigma = optics.interaction_rad_per_VA(energy_keV)

    which = jnp.asarray([atoms.elements.index(z) for z in atoms.numbers])
    # all layers have room for the same number, so that one program serves them all
    room = max(map(len, layers))
    index = np.zeros((len(layers), room), int)
    there = np.zeros((len(layers), room))
    for i, layer in enumerate(layers):
        index[i, : len(layer)], there[i, : len(layer)] = layer, 1.0

    def times(others, atom):
        i, present = atom
        position, u = atoms.position_A[i], atoms.u_A2[i]
        place = cis(-2.0 * jnp.pi * ky * position[1]) * cis(-2.0 * jnp.pi * kx * position[0])
        factor = scale * present * atoms.occupancy[i] * factors[which[i]]
        phase = sigma * jnp.fft.ifft2(factor * place).real
        blur = jnp.exp(-2.0 * jnp.pi**2 * (u[1] * ky**2 + u[0] * kx**2))
        return others * (1.0 + jnp.fft.ifft2(jnp.fft.fft2(cis(phase) - 1.0) * blur)), None

    nothing = jnp.ones(fine, jnp.result_type(1j, atoms.position_A.dtype))
    limit = band_limit(shape, sampling)

    def of_slice(layer):
        product = jax.lax.scan(jax.checkpoint(times), nothing, layer)[0]
        return jnp.fft.ifft2(lowest(jnp.fft.fft2(product), shape) * limit)

    there = jnp.asarray(there, atoms.position_A.dtype)
    return jax.lax.map(of_slice, (jnp.asarray(index), there))


class Directions(NamedTuple):
    """Which beams are computed, and which of their reflections, along (y, x)."""

    finer: int  # beams in each vector of the reciprocal lattice
    beams: tuple[int, int]  # they go from -beams to beams
    reflections: tuple[int, int]  # and these from -reflections to reflections
    overlap: tuple[int, int]  # a pixel may lie in the discs of so many neighbours to each side


class Rocking(NamedTuple):
    """Behind 0, 1, 2 ... cells: the intensity of each reflection for each direction of the beam,
    and the sum over all of them, averaged over the aperture."""

    intensity: Float[Array, "cells ky kx gy gx"]
    total: Float[Array, "cells"]


class Camera(NamedTuple):
    """Where the pixels of a camera look, (y, x), how wide they are (the root of their area), and
    how efficient each of them is: 0 where it is blind."""

    direction_mrad: Float[Array, "my mx 2"]
    pixel_mrad: Float[Array, ""]
    efficiency: Float[Array, "my mx"]


def camera(
    y_mrad: Float[Array, "my"] | Float[np.ndarray, "my"],
    x_mrad: Float[Array, "mx"] | Float[np.ndarray, "mx"],
    rotation_rad: float = 0.0,
) -> Camera:
    """Rows and columns of pixels, all efficient.

    **Arguments:**

    - `rotation_rad`: of the camera's x axis against that of the crystal, from x towards y.

    **Raises:** `ValueError` for fewer than two rows or columns.
    """
    if min(len(y_mrad), len(x_mrad)) < 2:
        raise ValueError(f"{len(y_mrad)} rows and {len(x_mrad)} columns have no width of a pixel")
    y, x = jnp.meshgrid(jnp.asarray(y_mrad, float), jnp.asarray(x_mrad, float), indexing="ij")
    c, s = np.cos(rotation_rad), np.sin(rotation_rad)
    width = jnp.sqrt(jnp.abs((y[1, 0] - y[0, 0]) * (x[0, 1] - x[0, 0])))
    return Camera(jnp.stack([c * y + s * x, c * x - s * y], -1), width, jnp.ones(x.shape))


def finer_for(box_A, thickness_A: float, energy_keV: float, reach_mrad: float) -> int:
    """Beams in each vector of the reciprocal lattice, so that rocking curves can be interpolated.

    That of the reflection g has fringes of the angle 1 / (g thickness), whatever the cell.
    """
    wavelength_A = float(optics.wavelength_A(energy_keV))
    fringe_mrad = 1e3 * wavelength_A / (1e-3 * reach_mrad * thickness_A)
    lattice_mrad = 1e3 * wavelength_A / np.min(np.asarray(box_A)[:2])
    return max(1, int(np.ceil(INTERPOLATED * lattice_mrad / fringe_mrad * (1.0 - 1e-6))))


def directions(
    box_A: Float[np.ndarray, "3"],
    semiangle_mrad: float,
    energy_keV: float,
    finer: int,
    reach_mrad: float,
) -> Directions:
    """Enough for an aperture, and for patterns up to `reach_mrad`.

    **Arguments:**

    - `semiangle_mrad`: of the aperture and what its centre may be off the middle.
    - `finer`: of `finer_for`, or more.
    """
    lattice = 1e3 * float(optics.wavelength_A(energy_keV)) / np.asarray(box_A)[1::-1]
    beams = np.ceil(finer * semiangle_mrad / lattice).astype(int) + 1  # cubic: one more
    return Directions(
        finer,
        tuple(beams.tolist()),
        tuple(np.ceil((reach_mrad + semiangle_mrad) / lattice).astype(int).tolist()),
        tuple(np.floor(semiangle_mrad / lattice + 0.5).astype(int).tolist()),
    )


def rocking(
    transmissions: Complex[Array, "slices ny nx"],
    box_A: Float[Array, "3"],
    cells: int,
    which: Directions,
    semiangle_mrad: Scalar,
    energy_keV: Scalar,
    tilt_mrad: Tilt = (0.0, 0.0),
) -> Rocking:
    """Rocking curves of up to `cells` cells, each slice of the same thickness.

    **Arguments:**

    - `transmissions`: of the slices of one cell, band-limited.
    - `tilt_mrad`: of the beam k = 0 against the crystal, (y, x), as in `multislice`.
    """
    slices, ny, nx = transmissions.shape
    wide = (which.finer * ny, which.finer * nx)
    sampling = (box_A[1] / ny, box_A[0] / nx)
    steps = [np.arange(-b, b + 1) for b in which.beams]
    beams = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 2)
    # of the frequencies of `finer` cells side by side, a beam visits those a lattice vector apart
    iy, ix = (
        (beams[:, a, None] + which.finer * np.arange(n)) % (which.finer * n)
        for a, n in enumerate((ny, nx))
    )
    travel = propagator(wide, sampling, box_A[2] / slices, energy_keV, tilt_mrad)
    travel = (travel * band_limit(wide, sampling))[iy[:, :, None], ix[:, None, :]]
    angles = optics.angles_mrad(wide, jnp.stack(sampling), optics.wavelength_A(energy_keV))
    weight = optics.aperture(angles, semiangle_mrad)[iy[:, 0], ix[:, 0]]
    weight = weight / jnp.sum(weight)
    gy, gx = (np.arange(-r, r + 1) for r in which.reflections)

    def curve(travel):
        """Of one beam: its reflections behind each cell, and all that is left of it."""

        def through_a_slice(spectrum, t):
            return jnp.fft.fft2(t * jnp.fft.ifft2(spectrum)) * travel, None

        @jax.checkpoint
        def through_a_cell(spectrum, _):
            intensity = spectrum.real**2 + spectrum.imag**2
            intensities = intensity[gy[:, None], gx], jnp.sum(intensity)
            return jax.lax.scan(through_a_slice, spectrum, transmissions)[0], intensities

        start = jnp.zeros((ny, nx), transmissions.dtype).at[0, 0].set(1.0)
        return jax.lax.scan(through_a_cell, start, length=cells + 1)[1]

    # on a CPU one beam at a time stays in the cache, with its derivatives
    together = 1 if jax.default_backend() == "cpu" else len(beams)
    each, left = jax.lax.map(curve, travel, batch_size=together)
    intensity = jnp.moveaxis(each, 0, 1).reshape(-1, *map(len, steps), len(gy), len(gx))
    return Rocking(intensity, weight @ left)


def between(curves: Float[Array, "cells ..."], cells: Scalar) -> Float[Array, "..."]:
    """At a number of cells that need not be whole.

    By the cubic through its neighbours (Keys 1981): exact at whole numbers, its derivative is
    continuous. From 1 cell to 2 less than there are curves.
    """
    weight = _keys(cells - jnp.arange(len(curves)))
    return jnp.tensordot(weight.astype(curves.dtype), curves, 1)


def seen(
    intensity: Float[Array, "ky kx gy gx"],
    camera: Camera,
    which: Directions,
    lattice_mrad: Float[Array, "2"],
    semiangle_mrad: Scalar,
    centre_mrad: Float[Array, "2"],
) -> Float[Array, "my mx"]:
    """The fraction of the beam that each pixel of a camera would see if all were efficient.

    **Arguments:**

    - `intensity`: of `rocking`, at one thickness.
    - `lattice_mrad`: the vectors of the reciprocal lattice along (y, x).
    - `centre_mrad`: of the aperture, (y, x).
    """
    near = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in which.overlap), indexing="ij"), -1)
    place = (camera.direction_mrad / lattice_mrad)[:, :, None]
    g = jax.lax.stop_gradient(jnp.round(place)) + near.reshape(-1, 2)
    beam = place - g  # [my, mx, neighbours, 2], in vectors of the lattice
    from_centre = beam * lattice_mrad - centre_mrad
    radius = jnp.sqrt(jnp.sum(from_centre**2, -1) + 1e-12)
    # so much of a pixel is lit which the edge of the aperture crosses
    lit = jnp.clip((semiangle_mrad - radius) / camera.pixel_mrad + 0.5, 0.0, 1.0)
    area = jnp.pi * (semiangle_mrad**2 + camera.pixel_mrad**2 / 12.0)

    beams, reflections = np.asarray(which.beams), np.asarray(which.reflections)
    node = which.finer * beam + beams
    taps = jax.lax.stop_gradient(jnp.floor(node))[..., None] + jnp.arange(-1.0, 3.0)
    weight = _keys(node[..., None] - taps)
    k = jnp.clip(taps.astype(int), 0, 2 * beams[:, None])
    g = jnp.clip(g.astype(int) + reflections, 0, 2 * reflections)
    curves = intensity[
        k[..., 0, :, None], k[..., 1, None, :], g[..., 0, None, None], g[..., 1, None, None]
    ]
    value = jnp.einsum("...ts,...t,...s->...", curves, weight[..., 0, :], weight[..., 1, :])
    return jnp.sum(lit * jnp.maximum(value, 0.0), -1) * (camera.pixel_mrad**2 / area)


def diffuse(
    atoms: Atoms, camera: Camera, semiangle_mrad: Scalar, energy_keV: Scalar
) -> Float[Array, "my mx"]:
    """Thermal diffuse scattering of independent atoms, adding up to 1 over the camera.

    sum_j f_j^2 (1 - exp(-4 pi^2 u_j k^2)), averaged over the directions of the aperture; u is that
    along x and y.
    """
    radius, turn = np.sqrt((np.arange(5) + 0.5) / 5), 2.0 * np.pi * np.arange(12) / 12
    inside = (radius[:, None] * np.exp(1j * turn)).ravel()  # rings of equal area
    per_A = 1e3 * optics.wavelength_A(energy_keV)

    def from_beam(beam):
        k = (camera.direction_mrad - semiangle_mrad * beam) / per_A
        factors = scattering_factors_A(atoms.elements, jnp.sum(k**2, -1))
        return sum(
            factors[atoms.elements.index(z)] ** 2
            * -jnp.expm1(-4.0 * jnp.pi**2 * jnp.sum(u[1::-1] * k**2, -1))
            for z, u in zip(atoms.numbers, atoms.u_A2, strict=True)
        )

    beams = jnp.asarray(np.stack([inside.imag, inside.real], -1), float)
    spread = jnp.mean(jax.lax.map(from_beam, beams), 0)
    return spread / jnp.sum(spread)


def _keys(distance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight of a node at this distance in cubic convolution (Keys 1981)."""
    d = jnp.abs(distance)
    near = 1.0 + d**2 * (1.5 * d - 2.5)
    far = 2.0 + d * (-4.0 + d * (2.5 - 0.5 * d))
    return jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))
