"""Diffraction patterns of one crystal: at rest, damped, and averaged over thermal motion.

Scattering factors, displacements and thicknesses are data, so that one compiled program serves all
compositions.
"""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from crystals import EDGE_A, Crystal, Settings
from jaxtyping import Array, Complex, Float

from micjax.physics.electrons import optics
from micjax.physics.electrons.multislice import (
    CUTOFF,
    band_limit,
    frequencies_inv_A,
    highest_angle_mrad,
    propagator,
    transmission,
)
from micjax.physics.electrons.potentials.atoms import Atoms
from micjax.physics.electrons.potentials.exact import exact
from micjax.physics.electrons.scattering import VOLT_A2, scattering_factors_A
from micjax.physics.electrons.stem import placed

ENERGY_KEV, SEMIANGLE_MRAD = 200.0, 30.0
SIDE, PIXEL_MRAD, PIXEL_A = 64, 1.91, 0.2  # of patterns and Z maps
A, B, X = range(3)
BASIS = ((A, 0.0, 0.0, 0), (X, 0.5, 0.5, 0), (B, 0.5, 0.5, 1), (X, 0.5, 0.0, 1), (X, 0.0, 0.5, 1))
AXIS = np.arange(SIDE) - (SIDE - 1) / 2  # symmetric: the beam goes between the middle pixels

Spectra = Complex[Array, "thicknesses places ny nx"]
Patterns = Float[Array, "thicknesses places ny nx"]


@functools.cache
def layer_cake(across: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Site, (x, y, z) in edges, and layer of the atoms of a slab one cell thick."""
    cells = np.stack(np.meshgrid(np.arange(across), np.arange(across), indexing="ij"), -1)
    cells = cells.reshape(-1, 1, 2)
    site, x, y, layer = np.array(BASIS).T
    lateral = (cells + np.stack([x, y], -1)).reshape(-1, 2)
    site, layer = (np.tile(a.astype(int), len(cells)) for a in (site, layer))
    return site, np.column_stack([lateral, layer / 2]), layer


def sampling_A(settings: Settings, edge_A):
    return (edge_A * settings.across / settings.pixels,) * 2


def check_reach(settings: Settings) -> None:
    """**Raises:** `ValueError` for a grid on which part of the aperture cannot scatter to the edge
    of the detector, since the band limit cuts the potential."""
    reach = highest_angle_mrad(sampling_A(settings, EDGE_A[1]), ENERGY_KEV)
    needed = SEMIANGLE_MRAD + SIDE / 2 * PIXEL_MRAD
    if reach < needed:
        raise ValueError(
            f"{settings.pixels} pixels over {settings.across} cells scatter up to {reach:.1f} mrad;"
            f" {needed:.1f} are needed"
        )


def factors(settings: Settings, crystal: Crystal) -> Float[Array, "3 ky kx"]:
    """Of A, B and X, such that their sum over atoms is the spectrum of a potential in V Å."""
    n, edge = settings.pixels, float(crystal.edge_A)
    ky, kx = frequencies_inv_A((n, n), sampling_A(settings, edge))
    numbers = tuple(int(z) for z in crystal.elements)
    each = scattering_factors_A(numbers, ky**2 + kx[:, : n // 2 + 1] ** 2)
    return each * (VOLT_A2 / sampling_A(settings, edge)[0] ** 2)


def _potentials(settings: Settings, edge_A, factors, moved_A, u_A2) -> Float[Array, "2 ny nx"]:
    """Of the two slices of a slab one cell thick: A with X, B with two X."""
    site, place, layer = layer_cake(settings.across)
    shape, box = (settings.pixels,) * 2, edge_A * jnp.asarray([settings.across] * 2 + [1.0])
    position = edge_A * jnp.asarray(place) + jnp.pad(moved_A, ((0, 0), (0, 1)))
    atoms = Atoms(site, position, box, u_A2=u_A2[site])  # the sites stand for their elements

    def slice_(which):
        spectrum = 0.0
        for s in np.unique(site[layer == which]):
            atom = np.flatnonzero((layer == which) & (site == s))
            members = (jnp.asarray(atom), jnp.ones(len(atom), position.dtype))
            spectrum += factors[s] * exact(atoms, shape, members)
        return jnp.fft.irfft2(spectrum, s=shape)

    return jnp.stack([slice_(0), slice_(1)])


def through(settings: Settings, crystal: Crystal, layers, cutoff: float = CUTOFF) -> Spectra:
    """The waves at each thickness; `layers(i)` are the two transmissions of cell i."""
    shape, sampling = (settings.pixels,) * 2, sampling_A(settings, crystal.edge_A)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, jnp.stack(sampling), wavelength)
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
    spectra = jnp.fft.fft2(placed(probe, crystal.place_A, sampling))
    travel = propagator(shape, sampling, crystal.edge_A / 2, ENERGY_KEV)
    travel = (travel * band_limit(shape, sampling, cutoff)).astype(spectra.dtype)

    def cell(i, spectra):
        first, second = layers(i)

        def pass_(one):
            for t in (first, second):
                one = jnp.fft.fft2(t * jnp.fft.ifft2(one)) * travel
            return one

        return jax.lax.map(pass_, spectra)  # one by one each stays in the cache of a CPU

    seen, start = [], 0
    for k in range(settings.thicknesses):
        spectra = jax.lax.fori_loop(start, crystal.cells[k], cell, spectra)
        seen.append(spectra)
        start = crystal.cells[k]
    return jnp.stack(seen)


def intensity(spectra: Spectra) -> Patterns:
    return spectra.real**2 + spectra.imag**2


def transmissions(
    settings: Settings, crystal: Crystal, factors, moved_A, u_A2, cutoff: float = CUTOFF
):
    """Of the two slices of a cell."""
    limit = band_limit((settings.pixels,) * 2, sampling_A(settings, crystal.edge_A), cutoff)
    potentials = _potentials(settings, crystal.edge_A, factors, moved_A, u_A2)
    return transmission(potentials, ENERGY_KEV, limit)


@functools.partial(jax.jit, static_argnums=0)
def at_rest(settings: Settings, crystal: Crystal, factors, u_A2) -> Patterns:
    """One run through atoms that do not move, each blurred by a mean square displacement."""
    moved = jnp.zeros((5 * settings.across**2, 2))
    alike = transmissions(settings, crystal, factors, moved, u_A2)
    return intensity(through(settings, crystal, lambda i: alike))


@functools.partial(jax.jit, static_argnums=0)
def moving(
    settings: Settings, crystal: Crystal, factors, key, first, after
) -> tuple[Spectra, Patterns]:
    """Sums of the waves and of their intensities over the configurations `first` to `after` - 1.

    Every atom is displaced by itself, along x and y (Einstein; Loane, Xu & Silcox 1991).
    """
    site, _, _ = layer_cake(settings.across)
    amplitude = jnp.sqrt(crystal.u_A2)[site][:, None]

    def add(number, sums):
        own = jax.random.fold_in(key, number)

        def layers(i):
            moved = amplitude * jax.random.normal(jax.random.fold_in(own, i), (len(site), 2))
            return transmissions(settings, crystal, factors, moved, jnp.zeros(3))

        spectra = through(settings, crystal, layers)
        return sums[0] + spectra, sums[1] + intensity(spectra)

    shape = (settings.thicknesses, settings.places, settings.pixels, settings.pixels)
    zero = jnp.zeros(shape)
    return jax.lax.fori_loop(first, after, add, (jax.lax.complex(zero, zero), zero))


@functools.partial(jax.jit, static_argnums=0)
def recorded(settings: Settings, edge_A, patterns: Patterns) -> dict[str, Array]:
    """What the detector sees, each pixel the beam on its area, and the sums inside and beyond."""
    pixel = 1e3 * optics.wavelength_A(ENERGY_KEV) / (edge_A * settings.across)
    middle = pixel * jnp.fft.fftfreq(settings.pixels, 1.0 / settings.pixels)
    edge = PIXEL_MRAD * AXIS[:, None]
    upper = jnp.minimum(middle + pixel / 2, edge + PIXEL_MRAD / 2)
    lower = jnp.maximum(middle - pixel / 2, edge - PIXEL_MRAD / 2)
    share = jnp.clip((upper - lower) / pixel, 0.0)
    seen = jnp.einsum("iy,...yx,jx->...ij", share, patterns, share)
    inside = seen.sum((-2, -1))
    return {"": seen, "_inside": inside, "_beyond": patterns.sum((-2, -1)) - inside}


def z_map(crystal: Crystal) -> Float[np.ndarray, "places ny nx"]:
    """Atomic numbers a cell as Gaussians, sigma one pixel, around each place of the probe."""
    edge = float(crystal.edge_A)
    cells = np.arange(-4, 6)
    out = np.zeros((len(crystal.place_A), SIDE, SIDE))
    for site, x, y, _ in BASIS:
        along_y, along_x = (
            np.exp(-((((cells + f) * edge - p[:, None, None]) / PIXEL_A - AXIS[:, None]) ** 2) / 2)
            for f, p in ((y, crystal.place_A[:, 0]), (x, crystal.place_A[:, 1]))
        )
        out += crystal.elements[site] * along_y.sum(-1)[:, :, None] * along_x.sum(-1)[:, None]
    return out


def simulated(settings: Settings, number: int, crystal: Crystal) -> dict[str, np.ndarray]:
    """All patterns of crystal `number`, by the names which they have in the file."""
    f, key = factors(settings, crystal), jax.random.fold_in(jax.random.key(settings.seed), number)
    ours, half = jax.tree.map(jnp.asarray, crystal), settings.configurations // 2
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # one program uses one core
        sums = pool.map(lambda i: moving(settings, ours, f, key, i * half, (i + 1) * half), (0, 1))
        (first_wave, first), (second_wave, second) = sums
    patterns = {
        "static": at_rest(settings, ours, f, jnp.zeros(3)),
        "damped": at_rest(settings, ours, f, ours.u_A2),
        "elastic": intensity((first_wave + second_wave) / (2 * half)),
        "total": (first + second) / (2 * half),
        "elastic_second": intensity(second_wave / half),
        "total_first": first / half,
    }
    found = {
        name + what: np.asarray(values)
        for name, pattern in patterns.items()
        for what, values in recorded(settings, ours.edge_A, pattern).items()
    }
    return found | {"z_map": z_map(crystal)}
