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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.physics.electrons.multislice import frequencies_inv_A
from micjax.physics.electrons.potentials import exact as structure_factors
from micjax.physics.electrons.potentials import finite
from micjax.physics.electrons.potentials.atoms import Atoms as Atoms
from micjax.physics.electrons.potentials.atoms import atoms_of as atoms_of
from micjax.physics.electrons.potentials.atoms import heights_A
from micjax.physics.electrons.scattering import VOLT_A2, scattering_factors_A

SUMS = {
    "exact": structure_factors.exact,
    "gridded": structure_factors.gridded,
    "abtem": structure_factors.splat,
}
PROJECTIONS = (*SUMS, "finite")
EDGE = 1e-3  # of a slice: far above the rounding of a height, far below what scattering can tell

Layers = tuple[tuple[int, ...], ...]  # the atoms of each slice


def layers(atoms: Atoms, thickness_A: Float[np.ndarray, "slices"]) -> Layers:
    """Which atoms lie in each slice, decided of atoms at rest, whose heights are known.

    An atom on the border of two slices lies in the lower one, the one that the beam reaches later,
    whichever way its height is rounded. Along the beam a specimen does not repeat itself: what
    sticks out of the box lies in the first or the last slice.

    **Raises:** `ValueError` for atoms that are not in the box, or slices that do not fill it.
    """
    z = heights_A(atoms)
    _fills(atoms, thickness_A)
    thickness = np.asarray(thickness_A, float)
    borders = np.cumsum(thickness)[:-1] - EDGE * thickness.min()
    index = np.searchsorted(borders, z, side="right")
    members = (np.flatnonzero(index == i).tolist() for i in range(len(thickness)))
    return tuple(map(tuple, members))


def potential_VA(
    atoms: Atoms,
    shape: tuple[int, int],
    thickness_A: Float[Array, "slices"] | Float[np.ndarray, "slices"],
    *,
    table: str = "lobato",
    projection: str = "exact",
    slices: Layers | None = None,
    rooms: tuple[finite.Room, ...] | None = None,
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
    - `slices`: the atoms of each (`layers` of those at rest); needed under `jit`, where heights are
        not known. Displaced atoms stay in the slice in which they are at rest.
    - `rooms`: of `finite.rooms`, which a finite projection needs instead. More atoms than there is
        room for are an error.

    **Raises:** `ValueError` for another projection, a table without Gaussians for a finite one,
    slices that do not fill the box or lack an atom, or what is needed under `jit`.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection {projection!r}; there are {', '.join(PROJECTIONS)}")
    if projection == "finite" and table != "peng":
        raise ValueError(f"a finite projection needs table 'peng', all Gaussians; not {table!r}")
    _fills(atoms, thickness_A)
    if (rooms if projection == "finite" else slices) is None and _traced(atoms, thickness_A):
        raise ValueError("under jit the slices (see `layers`) or the finite rooms have to be given")
    sampling = (atoms.box_A[1] / shape[0], atoms.box_A[0] / shape[1])
    ky, kx = frequencies_inv_A(shape, sampling)
    kx = kx[:, : shape[1] // 2 + 1]
    if projection == "finite":
        thickness_A = jnp.asarray(thickness_A, float)
        rooms = finite.rooms(atoms, thickness_A) if rooms is None else rooms
        terms = list(zip(finite.gaussians(atoms.elements), rooms, strict=True))
        groups = [finite.members(atoms, thickness_A, *term) for term in terms]
        spectra = [functools.partial(finite.spectrum, atoms, shape, *term) for term in terms]
    else:
        slices = layers(atoms, thickness_A) if slices is None else slices
        _whole(atoms, thickness_A, slices)
        factors = scattering_factors_A(atoms.elements, ky**2 + kx**2, table)
        groups = [_members(atoms, slices, z) for z in atoms.elements]
        total = SUMS[projection]
        spectra = [lambda m, f=f: f * total(atoms, shape, m) for f in factors]
    volts = shape[0] * shape[1] * VOLT_A2 / (atoms.box_A[0] * atoms.box_A[1])

    def of_slice(members):
        each = (spectrum(m) for spectrum, m in zip(spectra, members, strict=True))
        return jnp.fft.irfft2(sum(each), s=shape) * volts

    return jax.lax.map(of_slice, groups)


def _members(atoms: Atoms, slices: Layers, element: int):
    """For each slice the atoms of an element in it, `[slices, most]`, and how much of each."""
    own = [[i for i in members if atoms.numbers[i] == element] for members in slices]
    most, any_one = max(map(len, own)), atoms.numbers.index(element)
    atom = np.array([members + [any_one] * (most - len(members)) for members in own])
    there = np.arange(most) < np.array([[len(members)] for members in own])
    return jnp.asarray(atom), _held(atoms.occupancy, atom, there)


@jax.jit
def _held(occupancy, atom, there):
    return jnp.where(there, occupancy[atom], 0.0)


def _whole(atoms: Atoms, thickness_A, slices: Layers) -> None:
    """**Raises:** `ValueError` for slices of other atoms or another thickness."""
    if len(slices) != len(thickness_A):
        raise ValueError(f"atoms of {len(slices)} slices, thicknesses of {len(thickness_A)}")
    if sorted(i for members in slices for i in members) != list(range(len(atoms.numbers))):
        raise ValueError(f"each of {len(atoms.numbers)} atoms has to be in exactly one slice")


def _traced(atoms: Atoms, thickness_A) -> bool:
    known = (atoms.position_A, atoms.box_A, atoms.u_A2, thickness_A)
    return any(isinstance(a, jax.core.Tracer) for a in known)


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
