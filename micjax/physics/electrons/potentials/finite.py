"""Finite projection: how much of an atom's potential each slice holds.

An atom of Peng's table is a sum of Gaussians a exp(-b k^2 / 4), in space as in the spectrum, which
thermal motion makes wider. What a slice from z0 to z1 holds of one is a difference of two error
functions,

    w = (erf((z1 - z) / (sqrt(2) s)) - erf((z0 - z) / (sqrt(2) s))) / 2,  s^2 = b / (8 pi^2) + u_z

so that slices are smooth in the heights of the atoms, their own borders and the thermal motion.
What sticks out of the box at the two faces of a specimen counts in the first and in the last slice.
The wide Gaussians reach many slices, but have low frequencies only, and are summed only there.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Complex, Float, Int

from micjax.physics.electrons.potentials import exact as structure_factors
from micjax.physics.electrons.potentials.atoms import Atoms, heights_A
from micjax.physics.electrons.scattering import table

REACH = 6.0  # standard deviations: 2e-9 of a Gaussian lies farther away, at which it is 1.5e-8
MOVES = 6.0  # standard deviations of thermal motion for which there is room: none is larger
ROUNDING_A = 1e-3  # for which there is room as well


class ScatteringGaussian(NamedTuple):
    """One of an element: a in Å, b in Å^2."""

    number: int
    a_A: float
    b_A2: float


class Room(NamedTuple):
    """For the atoms that reach a slice with a Gaussian, and for its frequencies (y, x), counted in
    periods of the box."""

    atoms: int
    frequencies: tuple[int, int]


def gaussians(elements: tuple[int, ...]) -> list[ScatteringGaussian]:
    """Those of each element, one after the other (Peng et al. 1996)."""
    rows = {z: np.split(table("peng")[z - 1], 2) for z in elements}
    return [ScatteringGaussian(z, a, b) for z in elements for a, b in zip(*rows[z], strict=True)]


def rooms(
    atoms: Atoms,
    thickness_A: Float[Array | np.ndarray, "slices"],
    spare: float = 1.0,
) -> tuple[Room, ...]:
    """What each Gaussian needs, thermal motion included, `spare` times as many atoms.

    **Raises:** `ValueError` for atoms that are not in the box.
    """
    heights_A(atoms)

    def room(gaussian: ScatteringGaussian) -> Room:
        own = np.flatnonzero(np.asarray(atoms.numbers) == gaussian.number)
        moves_A = MOVES * np.sqrt(np.asarray(atoms.u_A2)[own, 2].max())
        *_, ends = _reaching(atoms, thickness_A, gaussian, moves_A + ROUNDING_A)
        highest = REACH * np.sqrt(2.0 / gaussian.b_A2)  # exp(-b k^2 / 4): deviation sqrt(2 / b)
        ky, kx = (int(np.ceil(highest * float(atoms.box_A[axis]))) for axis in (1, 0))
        return Room(int(np.ceil(spare * np.ptp(np.asarray(ends), axis=1).max())), (ky, kx))

    return tuple(map(room, gaussians(atoms.elements)))


def members(
    atoms: Atoms, thickness_A: Float[Array, "slices"], gaussian: ScatteringGaussian, room: Room
) -> tuple[Int[Array, "slices room"], Float[Array, "slices room"]]:
    """For each slice the atoms that reach it, and how much of their Gaussian it holds.

    **Raises:** an error where there are more than there is room for.
    """
    atom, z, deviation, border, ends = _reaching(atoms, thickness_A, gaussian)
    places = ends[:, :1] + jnp.arange(room.atoms)
    there = eqx.error_if(
        places < ends[:, 1:],
        jnp.max(ends[:, 1] - ends[:, 0]) > room.atoms,
        f"more than {room.atoms} atoms of Z = {gaussian.number} reach a slice: "
        "more capacity is needed",
    )
    places = jnp.minimum(places, len(z) - 1)
    atom, z, width = atom[places], z[places], jnp.sqrt(2.0) * deviation[places]
    above, below = (erf((b[:, None] - z) / width) for b in (border[:-1], border[1:]))
    share = 0.5 * (below.at[-1].set(1.0) - above.at[0].set(-1.0))  # with what sticks out
    return atom, jnp.where(there, share * atoms.occupancy[atom], 0.0)


def spectrum(
    atoms: Atoms, shape: tuple[int, int], gaussian: ScatteringGaussian, room: Room, members
) -> Complex[Array, "ny kx"]:
    """f(k) times the sum over the atoms, zero where the Gaussian is."""
    ny, nx = (min(n, 2 * k + 1) for n, k in zip(shape, room.frequencies, strict=True))
    low = gaussian.a_A * structure_factors.exact(atoms, (ny, nx), members, gaussian.b_A2)
    low = jnp.pad(low, ((0, 0), (0, shape[1] // 2 + 1 - low.shape[1])))
    between = jnp.zeros((shape[0] - ny, low.shape[1]), low.dtype)
    return jnp.concatenate([low[: (ny + 1) // 2], between, low[(ny + 1) // 2 :]])


def _reaching(atoms: Atoms, thickness_A, gaussian: ScatteringGaussian, farther_A: float = 0.0):
    """The atoms along z in order: which, at which height, how wide; the borders of the slices; and
    from which to which they reach each slice, or would if they reached so much farther."""
    own = np.flatnonzero(np.asarray(atoms.numbers) == gaussian.number)
    return _in_order(own, atoms.position_A, atoms.u_A2, thickness_A, gaussian, farther_A)


@jax.jit
def _in_order(own, position_A, u_A2, thickness_A, gaussian: ScatteringGaussian, farther_A):
    z, u = position_A[own, 2], u_A2[own, 2]
    deviation = jnp.sqrt(gaussian.b_A2 / (8.0 * np.pi**2) + u)
    reach = REACH * jnp.max(deviation) + farther_A
    order = jnp.argsort(z)
    border = jnp.concatenate([jnp.zeros(1), jnp.cumsum(thickness_A)])
    ends = jnp.stack([border[:-1] - reach, border[1:] + reach], axis=1)
    ends = ends.at[0, 0].set(-jnp.inf).at[-1, 1].set(jnp.inf)  # what sticks out is in them
    z = z[order]
    return jnp.asarray(own)[order], z, deviation[order], border, jnp.searchsorted(z, ends)
