"""Finite projection: how much of an atom's potential each slice holds.

An atom of Peng's table is a sum of Gaussians a exp(-b k^2 / 4), in space as in the spectrum, which
thermal motion makes wider. What a slice from z0 to z1 holds of one is a difference of two error
functions,

    w = (erf((z1 - z) / (sqrt(2) s)) - erf((z0 - z) / (sqrt(2) s))) / 2,  s^2 = b / (8 pi^2) + u_z

so that slices are smooth in the heights of the atoms, their own borders and the thermal motion.
The wide Gaussians reach many slices, but have low frequencies only, and are summed only there.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Complex, Float, Int

from micjax.physics import structure_factors
from micjax.physics.atoms import Atoms
from micjax.physics.scattering import table

REACH = 6.0  # standard deviations: 2e-9 of a Gaussian lies farther away, at which it is 1.5e-8
IMAGES = 4  # boxes above and below from which atoms may reach into this one


class Gaussian(NamedTuple):
    """One of an element: a in Å, b in Å^2."""

    number: int
    a_A: float
    b_A2: float


class Room(NamedTuple):
    """For the atoms that reach a slice with a Gaussian, and for its frequencies (y, x), counted in
    periods of the box."""

    atoms: int
    frequencies: tuple[int, int]


def gaussians(elements: tuple[int, ...]) -> list[Gaussian]:
    """Those of each element, one after the other (Peng et al. 1996)."""
    rows = {z: np.split(table("peng")[z - 1], 2) for z in elements}
    return [Gaussian(z, a, b) for z in elements for a, b in zip(*rows[z], strict=True)]


def rooms(
    atoms: Atoms, thickness_A: Float[Array, "slices"], spare: float = 1.0
) -> tuple[Room, ...]:
    """What each Gaussian needs, `spare` times as many atoms."""

    def room(gaussian: Gaussian) -> Room:
        *_, ends = _reaching(atoms, thickness_A, gaussian)
        highest = REACH * np.sqrt(2.0 / gaussian.b_A2)  # exp(-b k^2 / 4): deviation sqrt(2 / b)
        ky, kx = (int(np.ceil(highest * float(atoms.box_A[axis]))) for axis in (1, 0))
        return Room(int(np.ceil(spare * np.ptp(np.asarray(ends), axis=1).max())), (ky, kx))

    return tuple(map(room, gaussians(atoms.elements)))


def members(
    atoms: Atoms, thickness_A: Float[Array, "slices"], gaussian: Gaussian, room: Room
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
    share = 0.5 * (erf((border[1:, None] - z) / width) - erf((border[:-1, None] - z) / width))
    return atom, jnp.where(there, share * atoms.occupancy[atom], 0.0)


def spectrum(
    atoms: Atoms, shape: tuple[int, int], gaussian: Gaussian, room: Room, members
) -> Complex[Array, "ny kx"]:
    """f(k) times the sum over the atoms, zero where the Gaussian is."""
    ny, nx = (min(n, 2 * k + 1) for n, k in zip(shape, room.frequencies, strict=True))
    low = gaussian.a_A * structure_factors.exact(atoms, (ny, nx), members, gaussian.b_A2)
    low = jnp.pad(low, ((0, 0), (0, shape[1] // 2 + 1 - low.shape[1])))
    between = jnp.zeros((shape[0] - ny, low.shape[1]), low.dtype)
    return jnp.concatenate([low[: (ny + 1) // 2], between, low[(ny + 1) // 2 :]])


def _reaching(atoms: Atoms, thickness_A, gaussian: Gaussian):
    """The images of the atoms along z in order: whose, at which height, how wide; the borders of
    the slices; and from which image to which they reach each slice."""
    own = np.flatnonzero(np.asarray(atoms.numbers) == gaussian.number)
    height, u = atoms.box_A[2], atoms.u_A2[own, 2]
    deviation = jnp.sqrt(gaussian.b_A2 / (8.0 * np.pi**2) + u)
    reach = REACH * jnp.max(deviation)
    height = eqx.error_if(
        height,
        reach > IMAGES * height,
        f"an atom reaches farther than {IMAGES} boxes along z: repeat the box",
    )
    boxes = jnp.arange(-IMAGES, IMAGES + 1.0)[:, None] * height
    z = (jnp.mod(atoms.position_A[own, 2], height) + boxes).ravel()
    order = jnp.argsort(z)
    z, whose = z[order], order % len(own)
    border = jnp.concatenate([jnp.zeros(1), jnp.cumsum(thickness_A)])
    ends = jnp.stack([border[:-1] - reach, border[1:] + reach], axis=1)
    return jnp.asarray(own)[whose], z, deviation[whose], border, jnp.searchsorted(z, ends)
