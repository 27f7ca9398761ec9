"""The elastic pattern without noise, and what single configurations of atoms depart from it.

Atoms of different slices move independently of each other (Einstein), so that the mean of the waves
over all configurations is one wave, which goes through the mean transmissions of the slices. It
holds the absorption that thermal motion causes, and no number of configurations. What a
configuration departs from it is diffuse; its intensity has no cross terms with the elastic wave.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from crystals import Crystal, Settings
from jaxtyping import Array, Complex, Float
from patterns import (
    ENERGY_KEV,
    SEMIANGLE_MRAD,
    Patterns,
    Spectra,
    intensity,
    layer_cake,
    sampling_A,
    through,
    transmissions,
)

from micjax.physics.electrons import optics
from micjax.physics.electrons.multislice import (
    band_limit,
    frequencies_inv_A,
    propagator,
    transmission,
)
from micjax.physics.electrons.stem import placed

CORE_A = 0.1  # of an atom at rest, for electrons that are scattered far
SITES = range(3)
# of the highest frequency, which is more than a band limit: what wraps around is weak
CUTOFF, COARSE_CUTOFF = 0.9, 0.95


def coarser(settings: Settings, fourths: int) -> Settings:
    """Fewer pixels along each axis: a wave costs half for three fourths, a fifth for two."""
    return dataclasses.replace(settings, pixels=fourths * settings.pixels // 4)


def mean_transmissions(
    settings: Settings, crystal: Crystal, factors, cutoff: float
) -> Complex[Array, "2 ny nx"]:
    """Of the two slices of a cell, averaged over the motion of each atom: exp(i sigma V) - 1 of an
    atom is blurred, not its potential, and the atoms of a slice multiply."""
    n, cell = settings.pixels, settings.pixels // settings.across
    sampling = sampling_A(settings, crystal.edge_A)
    ky, kx = frequencies_inv_A((n, n), sampling)

    def of_site(s):
        alone = transmission(jnp.fft.irfft2(factors[s], s=(n, n))[None], ENERGY_KEV)[0] - 1.0
        blur = jnp.exp(-2.0 * jnp.pi**2 * crystal.u_A2[s] * (ky**2 + kx**2))
        mean = 1.0 + jnp.fft.ifft2(jnp.fft.fft2(alone) * blur)
        for axis in (0, 1):
            shifted = [jnp.roll(mean, i * cell, axis) for i in range(settings.across)]
            mean = functools.reduce(jnp.multiply, shifted)
        return mean

    a, b, x = map(of_site, SITES)
    half = cell // 2
    first = a * jnp.roll(x, (half, half), (0, 1))
    second = jnp.roll(b, (half, half), (0, 1)) * jnp.roll(x, half, 0) * jnp.roll(x, half, 1)
    limit = band_limit((n, n), sampling, cutoff)
    return jnp.fft.ifft2(jnp.fft.fft2(jnp.stack([first, second])) * limit)


def near_atoms(settings: Settings, edge_A, u_A2) -> Float[Array, "layers sites ny nx"]:
    """Gaussians around the atoms of each site: of a beam that is even each atom feels 1."""
    site, place, layer = layer_cake(settings.across)
    n, box = settings.pixels, edge_A * settings.across
    pixel = box / n
    off = edge_A * place[:, 1::-1, None] - pixel * np.arange(n)  # (y, x) of each atom
    off = off - box * jnp.round(off / box)
    width2 = (u_A2 + CORE_A**2)[site][:, None, None]
    one_way = jnp.exp(-0.5 * off**2 / width2) / jnp.sqrt(2.0 * jnp.pi * width2)
    out = []
    for which in range(2):
        members = [(layer == which) & (site == s) for s in SITES]
        out.append([jnp.einsum("ay,ax->yx", one_way[m, 0], one_way[m, 1]) for m in members])
    return edge_A**2 * jnp.stack([jnp.stack(row) for row in out])


@functools.partial(jax.jit, static_argnums=0)
def coherent(
    settings: Settings, crystal: Crystal, factors
) -> tuple[Patterns, Float[Array, "thickness place site"]]:
    """The elastic pattern, and how much of its beam the atoms of each site feel: sums over the
    atoms of a site, down to each thickness; evenly spread, atoms a cell times cells."""
    shape, sampling = (settings.pixels,) * 2, sampling_A(settings, crystal.edge_A)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, jnp.stack(sampling), wavelength)
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
    spectra = jnp.fft.fft2(placed(probe, crystal.place_A, sampling))
    travel = propagator(shape, sampling, crystal.edge_A / 2, ENERGY_KEV)
    travel = (travel * band_limit(shape, sampling, CUTOFF)).astype(spectra.dtype)
    slices = mean_transmissions(settings, crystal, factors, CUTOFF).astype(spectra.dtype)
    atoms = near_atoms(settings, crystal.edge_A, crystal.u_A2)

    def of_probe(spectrum):
        def cell(i, state):
            spectrum, total = state
            for through_slice, near in zip(slices, atoms, strict=True):
                wave = jnp.fft.ifft2(spectrum)
                # the squared spectrum adds up to 1
                density = (wave.real**2 + wave.imag**2) * wave.size
                total = total + jnp.einsum("syx,yx->s", near, density)
                spectrum = jnp.fft.fft2(through_slice * wave) * travel
            return spectrum, total

        state, seen, start = (spectrum, jnp.zeros(len(SITES))), [], 0
        for k in range(settings.thicknesses):
            state = jax.lax.fori_loop(start, crystal.cells[k], cell, state)
            seen.append((intensity(state[0]), state[1]))
            start = crystal.cells[k]
        return tuple(jnp.stack(each) for each in zip(*seen, strict=True))

    pattern, felt = jax.lax.map(of_probe, spectra)
    return jnp.swapaxes(pattern, 0, 1), jnp.swapaxes(felt, 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def mean_wave(settings: Settings, crystal: Crystal, factors) -> Spectra:
    """Of all configurations, with the cutoff of a coarse grid."""
    slices = mean_transmissions(settings, crystal, factors, COARSE_CUTOFF)
    return through(settings, crystal, lambda i: slices, COARSE_CUTOFF)


@functools.partial(jax.jit, static_argnums=0)
def departing(
    settings: Settings, crystal: Crystal, factors, mean: Spectra, key
) -> tuple[Patterns, Patterns]:
    """Of one configuration: what departs from the mean wave, and all of it."""
    site, _, _ = layer_cake(settings.across)
    amplitude = jnp.sqrt(crystal.u_A2)[site][:, None]

    def layers(i):
        moved = amplitude * jax.random.normal(jax.random.fold_in(key, i), (len(site), 2))
        return transmissions(settings, crystal, factors, moved, jnp.zeros(3), COARSE_CUTOFF)

    spectra = through(settings, crystal, layers, COARSE_CUTOFF)
    return intensity(spectra - mean), intensity(spectra)
