"""Projected electrostatic potentials of atoms, slice by slice, smooth in every position.

The Fourier coefficients of a slice are an exact sum over its atoms,

    V(k) = h^2 / (2 pi m e) / area  sum_j o_j f_j(k) exp(-2 pi^2 u_j k^2) exp(-2 pi i k . r_j)

with o the occupancy, f the scattering factor and u the mean square displacement along an axis.
Nothing is put on a grid first, so nothing depends on where an atom lies between the pixels. The sum
is a product of one factor along y and one along x, that is one matrix product for each element
(`structure_factors`). An atom lies in one slice, or with `finite` in all that it reaches.

Lengths are in Å, potentials in V Å, images `[iy, ix]` with the corner as origin. Positions are
(x, y, z) as in ase; the beam travels along +z.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.physics import finite, structure_factors
from micjax.physics.atoms import Atoms as Atoms
from micjax.physics.atoms import atoms_of as atoms_of
from micjax.physics.multislice import frequencies_inv_A
from micjax.physics.scattering import VOLT_A2, scattering_factors_A

SUMS = {
    "exact": structure_factors.exact,
    "gridded": structure_factors.gridded,
    "abtem": structure_factors.splat,
}
PROJECTIONS = (*SUMS, "finite")
EDGE_A = 1e-9  # an atom on the border of two slices lies in the upper one


def capacities(
    atoms: Atoms,
    thickness_A: Float[np.ndarray, "slices"],
    spare: float = 1.0,
    projection: str = "exact",
) -> tuple[Any, ...]:
    """The most atoms of each element in one slice, times `spare` for those that move about; for the
    finite projection the `finite.Room` of each Gaussian."""
    thickness_A = jnp.asarray(thickness_A, float)
    if projection == "finite":
        return finite.rooms(atoms, thickness_A, spare)
    index = np.asarray(_slice_of(atoms, thickness_A))
    numbers, count = np.asarray(atoms.numbers), len(thickness_A)
    most = (np.bincount(index[numbers == z], minlength=count).max() for z in atoms.elements)
    return tuple(int(np.ceil(spare * m)) for m in most)


def potential_VA(
    atoms: Atoms,
    shape: tuple[int, int],
    thickness_A: Float[Array, "slices"] | Float[np.ndarray, "slices"],
    *,
    table: str = "lobato",
    projection: str = "exact",
    capacity: tuple[Any, ...] | None = None,
) -> Float[Array, "slices ny nx"]:
    """The potential of each slice, projected along z.

    **Arguments:**

    - `shape`: (ny, nx) pixels over the box.
    - `thickness_A`: of the slices; together they fill the box.
    - `table`: of scattering factors.
    - `projection`: "exact": an atom counts with all of its potential in the slice in which its
        centre lies. "gridded": the same by a fast Fourier transform of points, for many atoms in a
        slice, those of an element with one `u_A2`. "finite": each slice holds what lies in it,
        smooth in the heights of the atoms and the borders of the slices as well (table "peng"
        only). "abtem": as "exact", but atoms are spread over four pixels first as abTEM 1.0 does
        (for comparison only: not smooth, and too low at high angles).
    - `capacity`: room for so many atoms in a slice (`capacities`, of the same projection); needed
        under `jit`, where the positions are not known yet. More atoms than that are an error.

    **Raises:** `ValueError` for another projection, a table without Gaussians for a finite one,
    slices that do not fill the box, no capacity.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection {projection!r}; there are {', '.join(PROJECTIONS)}")
    if projection == "finite" and table != "peng":
        raise ValueError(f"a finite projection needs table 'peng', all Gaussians; not {table!r}")
    _fills(atoms, thickness_A)
    thickness_A = jnp.asarray(thickness_A, float)
    if capacity is None:
        if isinstance(atoms.position_A, jax.core.Tracer):
            raise ValueError("under jit the capacity has to be given: see `capacities`")
        capacity = capacities(atoms, np.asarray(thickness_A), projection=projection)
    sampling = (atoms.box_A[1] / shape[0], atoms.box_A[0] / shape[1])
    ky, kx = frequencies_inv_A(shape, sampling)
    kx = kx[:, : shape[1] // 2 + 1]
    if projection == "finite":
        terms = list(zip(finite.gaussians(atoms.elements), capacity, strict=True))
        groups = [finite.members(atoms, thickness_A, *term) for term in terms]
        spectra = [functools.partial(finite.spectrum, atoms, shape, *term) for term in terms]
    else:
        total = SUMS[projection]
        factors = scattering_factors_A(atoms.elements, ky**2 + kx**2, table)
        groups = [
            _members(atoms, thickness_A, z, room)
            for z, room in zip(atoms.elements, capacity, strict=True)
        ]
        spectra = [lambda m, f=f: f * total(atoms, shape, m) for f in factors]
    volts = shape[0] * shape[1] * VOLT_A2 / (atoms.box_A[0] * atoms.box_A[1])

    def one(members):
        each = (spectrum(m) for spectrum, m in zip(spectra, members, strict=True))
        return jnp.fft.irfft2(sum(each), s=shape) * volts

    return jax.lax.map(one, groups)


def layers(atoms: Atoms, thickness_A: Float[np.ndarray, "slices"]) -> tuple[tuple[int, ...], ...]:
    """Which atoms lie in each slice; their heights have to be known."""
    index = np.asarray(_slice_of(atoms, jnp.asarray(thickness_A, float)))
    found = (np.flatnonzero(index == i).tolist() for i in range(len(thickness_A)))
    return tuple(tuple(one) for one in found)


def _slice_of(atoms: Atoms, thickness_A: Float[Array, "slices"]) -> Int[Array, "n"]:
    """In which slice each atom lies."""
    z = jnp.mod(atoms.position_A[:, 2], atoms.box_A[2])
    found = jnp.searchsorted(jnp.cumsum(thickness_A) - EDGE_A, z, side="right")
    return jnp.minimum(found, len(thickness_A) - 1)


def _members(atoms: Atoms, thickness_A, element: int, room: int):
    """For each slice the atoms of an element in it, `[slices, room]`, and how much of each."""
    own = np.flatnonzero(np.asarray(atoms.numbers) == element)
    index, slices = _slice_of(atoms, thickness_A), len(thickness_A)
    order = jnp.argsort(index[own], stable=True)
    where = index[own][order]
    starts = jnp.searchsorted(where, jnp.arange(slices + 1))
    places = starts[:-1, None] + jnp.arange(room)
    there = places < starts[1:, None]
    too_many = jnp.max(jnp.diff(starts)) > room
    atom = jnp.asarray(own)[order][jnp.minimum(places, len(own) - 1)]
    atom = eqx.error_if(
        atom,
        too_many,
        f"more than {room} atoms of Z = {element} in a slice: more capacity is needed",
    )
    return atom, jnp.where(there, atoms.occupancy[atom], 0.0)


def _fills(atoms: Atoms, thickness_A) -> None:
    """**Raises:** `ValueError` for known slices that do not fill a known box."""
    if isinstance(thickness_A, jax.core.Tracer) or isinstance(atoms.box_A, jax.core.Tracer):
        return
    thickness_A, height = np.asarray(thickness_A, float), float(np.asarray(atoms.box_A)[2])
    if not np.all(thickness_A > 0.0):
        raise ValueError(f"slices of {thickness_A.tolist()} Å: thicknesses are positive")
    if not np.isclose(thickness_A.sum(), height, rtol=1e-5):
        raise ValueError(
            f"slices of {thickness_A.sum():g} Å together do not fill a box of {height:g} Å"
        )
