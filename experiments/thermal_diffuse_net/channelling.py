"""How much of the beam the atoms of each site feel: channelling decides how much they scatter.

The wave goes once through atoms that are blurred by their motion, as for the damped pattern; where
it is on its way costs nothing more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from crystals import Crystal, Settings
from jaxtyping import Array, Float
from patterns import ENERGY_KEV, SEMIANGLE_MRAD, layer_cake, sampling_A, transmissions

from micjax.physics.electrons import optics
from micjax.physics.electrons.multislice import band_limit, propagator
from micjax.physics.electrons.stem import placed

CORE_A = 0.1  # of an atom at rest, for electrons that are scattered far
SITES = range(3)


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
def felt(settings: Settings, crystal: Crystal, factors) -> Float[Array, "thickness place site"]:
    """Sums over the atoms of each site, down to each thickness; evenly spread: atoms a cell times
    cells."""
    shape, sampling = (settings.pixels,) * 2, sampling_A(settings, crystal.edge_A)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, jnp.stack(sampling), wavelength)
    probe = optics.probe(angles, SEMIANGLE_MRAD, {}, wavelength)
    spectra = jnp.fft.fft2(placed(probe, crystal.place_A, sampling))
    travel = propagator(shape, sampling, crystal.edge_A / 2, ENERGY_KEV)
    travel = (travel * band_limit(shape, sampling)).astype(spectra.dtype)
    still = jnp.zeros((5 * settings.across**2, 2))
    slices = transmissions(settings, crystal, factors, still, crystal.u_A2)
    atoms = near_atoms(settings, crystal.edge_A, crystal.u_A2)

    def of_probe(spectrum):
        def cell(i, state):
            spectrum, total = state
            for transmission, near in zip(slices, atoms, strict=True):
                wave = jnp.fft.ifft2(spectrum)
                # the squared spectrum adds up to 1
                density = (wave.real**2 + wave.imag**2) * wave.size
                total = total + jnp.einsum("syx,yx->s", near, density)
                spectrum = jnp.fft.fft2(transmission * wave) * travel
            return spectrum, total

        state, sums, start = (spectrum, jnp.zeros(len(SITES))), [], 0
        for k in range(settings.thicknesses):
            state = jax.lax.fori_loop(start, crystal.cells[k], cell, state)
            sums.append(state[1])
            start = crystal.cells[k]
        return jnp.stack(sums)

    return jnp.swapaxes(jax.lax.map(of_probe, spectra), 0, 1)
