"""Projected electrostatic potentials of atoms, slice by slice, smooth in every position.

The Fourier coefficients of a slice are an exact sum over its atoms,

    V(k) = h^2 / (2 pi m e) / area  sum_j o_j f_j(k) exp(-2 pi^2 u_j k^2) exp(-2 pi i k . r_j)

with o the occupancy, f the scattering factor and u the mean square displacement along an axis.
Nothing is put on a grid first, so nothing depends on where an atom lies between the pixels. The sum
is a product of one factor along y and one along x, that is one matrix product for each element.

Lengths are in Å, potentials in V Å, images `[iy, ix]` with the corner as origin. Positions are
(x, y, z) as in ase; the beam travels along +z.
"""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter
from micjax.physics.cis import cis
from micjax.physics.multislice import frequencies_inv_A
from micjax.physics.scattering import VOLT_A2, scattering_factors_A

PROJECTIONS = ("exact", "abtem")
EDGE_A = 1e-9  # an atom on the border of two slices lies in the upper one


class Atoms(eqx.Module):
    """Atoms in a periodic box with right angles.

    **Arguments:**

    - `numbers`: atomic numbers, static.
    - `position_A`: `[n, 3]`, (x, y, z); outside the box they are wrapped.
    - `box_A`: its edges along x, y, z.
    - `u_A2`: mean square displacement B / (8 pi^2), along any axis `[n]` or along each `[n, 3]`.
    - `occupancy`: `[n]`.

    **Raises:** `ValueError` for shapes that do not fit, numbers that are not finite, or no atoms.
    """

    position_A: Float[Array, "n 3"] = parameter()
    box_A: Float[Array, "3"] = parameter()
    u_A2: Float[Array, "n 3"] = parameter()
    occupancy: Float[Array, "n"] = parameter()
    numbers: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        numbers: Iterable[int] | Int[np.ndarray, "n"],
        position_A,
        box_A,
        *,
        u_A2: Any = 0.0,
        occupancy: Any = 1.0,
    ):
        self.numbers = tuple(int(z) for z in numbers)
        n = len(self.numbers)
        if not n:
            raise ValueError("there are no atoms")
        self.position_A = _shaped("position_A", position_A, (n, 3))
        self.box_A = _shaped("box_A", box_A, (3,))
        u = jnp.asarray(u_A2, float)
        self.u_A2 = jnp.broadcast_to(u[:, None] if u.ndim == 1 and u.size == n else u, (n, 3))
        self.occupancy = jnp.broadcast_to(jnp.asarray(occupancy, float), (n,))
        _finite("position_A", self.position_A)
        if not isinstance(self.box_A, jax.core.Tracer) and not np.all(np.asarray(self.box_A) > 0.0):
            raise ValueError(f"box_A = {np.asarray(self.box_A)}: edges are positive")

    @property
    def elements(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.numbers)))

    def repeated(self, nx: int, ny: int, nz: int) -> "Atoms":
        """So many boxes along each axis as one."""
        if min(nx, ny, nz) < 1:
            raise ValueError(f"{nx} x {ny} x {nz} boxes are none")
        steps = np.stack(np.meshgrid(*map(np.arange, (nx, ny, nz)), indexing="ij"), -1)
        steps = steps.reshape(-1, 3)
        count, n = len(steps), len(self.numbers)
        moved = self.position_A[None] + jnp.asarray(steps, float)[:, None] * self.box_A
        return Atoms(
            self.numbers * count,
            moved.reshape(-1, 3),
            self.box_A * jnp.asarray([nx, ny, nz], float),
            u_A2=jnp.broadcast_to(self.u_A2, (count, n, 3)).reshape(-1, 3),
            occupancy=jnp.tile(self.occupancy, count),
        )


def atoms_of(structure: Any, u_A2: Any = 0.0) -> Atoms:
    """From an `ase.Atoms` (or anything with `numbers`, `positions` and `cell`).

    **Raises:** `ValueError` for a cell whose angles are not right ones, or that is flat.
    """
    cell = np.asarray(structure.cell[:], dtype=float)
    lengths = np.linalg.norm(cell, axis=1)
    if not np.allclose(cell, np.diag(np.diag(cell)), atol=1e-6 * lengths.max()):
        raise ValueError(
            f"the cell {cell.tolist()} has no right angles along x, y, z; make an orthogonal one "
            "first (for instance with ase.build.cut or ase.build.surface)"
        )
    if not np.all(np.diag(cell) > 0.0):
        raise ValueError(f"the cell {np.diag(cell).tolist()} is flat; give it a size with vacuum")
    return Atoms(structure.numbers, structure.positions, np.diag(cell), u_A2=u_A2)


def capacities(
    atoms: Atoms, thickness_A: Float[np.ndarray, "slices"], spare: float = 1.0
) -> tuple[int, ...]:
    """The most atoms of each element in one slice, times `spare` for those that move about."""
    index = np.asarray(_slice_of(atoms, jnp.asarray(thickness_A, float)))
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
    capacity: tuple[int, ...] | None = None,
) -> Float[Array, "slices ny nx"]:
    """The potential of each slice, projected along z.

    An atom counts with all of its potential in the slice in which its centre lies.

    **Arguments:**

    - `shape`: (ny, nx) pixels over the box.
    - `thickness_A`: of the slices; together they fill the box.
    - `table`: of scattering factors.
    - `projection`: "exact", or "abtem", which spreads atoms over four pixels first as abTEM 1.0
        does (for comparison only: not smooth, and too low at high angles).
    - `capacity`: room for so many atoms of each element in a slice (`capacities`); needed under
        `jit`, where the positions are not known yet. More atoms than that are an error.

    **Raises:** `ValueError` for another projection, slices that do not fill the box, no capacity.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection {projection!r}; there are {', '.join(PROJECTIONS)}")
    _fills(atoms, thickness_A)
    thickness_A = jnp.asarray(thickness_A, float)
    if capacity is None:
        if isinstance(atoms.position_A, jax.core.Tracer):
            raise ValueError("under jit the capacity has to be given: see `capacities`")
        capacity = capacities(atoms, np.asarray(thickness_A))
    index = _slice_of(atoms, thickness_A)
    sampling = (atoms.box_A[1] / shape[0], atoms.box_A[0] / shape[1])
    ky, kx = frequencies_inv_A(shape, sampling)
    kx = kx[:, : shape[1] // 2 + 1]
    factors = scattering_factors_A(atoms.elements, ky**2 + kx**2, table)
    area = atoms.box_A[0] * atoms.box_A[1]
    groups = [
        _group(atoms, index, z, room, len(thickness_A))
        for z, room in zip(atoms.elements, capacity, strict=True)
    ]
    amplitude = {"exact": _exact, "abtem": _splat}[projection]

    def one(members):
        each = (f * amplitude(atoms, shape, m) for f, m in zip(factors, members, strict=True))
        return jnp.fft.irfft2(sum(each), s=shape) * (shape[0] * shape[1] * VOLT_A2 / area)

    return jax.lax.map(one, groups)


def _slice_of(atoms: Atoms, thickness_A: Float[Array, "slices"]) -> Int[Array, "n"]:
    """In which slice each atom lies."""
    z = jnp.mod(atoms.position_A[:, 2], atoms.box_A[2])
    found = jnp.searchsorted(jnp.cumsum(thickness_A) - EDGE_A, z, side="right")
    return jnp.minimum(found, len(thickness_A) - 1)


def _group(atoms: Atoms, index, element: int, room: int, slices: int):
    """For each slice the atoms of an element, `[slices, room]`, and whether there is one."""
    own = np.flatnonzero(np.asarray(atoms.numbers) == element)
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
    return atom, there


def _exact(atoms: Atoms, shape: tuple[int, int], members) -> Array:
    """sum_j o_j exp(-2 pi^2 u_j k^2 - 2 pi i k . r_j) on half of the spectrum, `[ny, nx // 2 + 1]`.

    In real numbers: four real products are quicker than a complex one.
    """
    atom, there = members
    weight = jnp.where(there, atoms.occupancy[atom], 0.0)
    (cy, sy), (cx, sx) = (
        _waves(atoms, atom, axis, index)
        for axis, index in (
            (1, jnp.fft.fftfreq(shape[0], 1.0 / shape[0])),
            (0, jnp.arange(shape[1] // 2 + 1)),
        )
    )
    cy, sy = cy * weight, sy * weight
    return jax.lax.complex(cy @ cx.T - sy @ sx.T, -(sy @ cx.T) - cy @ sx.T)


def _waves(atoms: Atoms, atom, axis: int, index) -> tuple[Array, Array]:
    """Cosine and sine of 2 pi k r of each frequency and atom, damped by the thermal motion."""
    turns = index[:, None] * (atoms.position_A[atom, axis] / atoms.box_A[axis])
    angle = 2.0 * jnp.pi * (turns - jax.lax.stop_gradient(jnp.round(turns)))
    k_squared = (index / atoms.box_A[axis]) ** 2
    damped = jnp.exp(-2.0 * jnp.pi**2 * k_squared[:, None] * atoms.u_A2[atom, axis])
    wave = cis(angle)
    return wave.real * damped, wave.imag * damped


def _splat(atoms: Atoms, shape: tuple[int, int], members) -> Array:
    """Each atom over the four pixels around it, divided by sin(q) / q, q = |(ky dy, kx dx)|."""
    atom, there = members
    weight = jnp.where(there, atoms.occupancy[atom], 0.0)
    pixel = atoms.position_A[atom][:, 1::-1] / atoms.box_A[1::-1] * jnp.asarray(shape)
    corner = jnp.floor(pixel)
    part = pixel - corner
    image = jnp.zeros(shape, pixel.dtype)
    for below_y in (0, 1):
        for below_x in (0, 1):
            share = jnp.abs(1 - below_y - part[:, 0]) * jnp.abs(1 - below_x - part[:, 1])
            iy, ix = (corner + jnp.asarray([below_y, below_x])).astype(int).T
            image = image.at[iy % shape[0], ix % shape[1]].add(weight * share)
    fy, fx = jnp.fft.fftfreq(shape[0]), jnp.arange(shape[1] // 2 + 1) / shape[1]
    q = jnp.sqrt(fy[:, None] ** 2 + fx**2)
    return jnp.fft.rfft2(image) / jnp.where(q == 0.0, 1.0, jnp.sin(q) / jnp.where(q == 0.0, 1.0, q))


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


def _shaped(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    values = jnp.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"{name} has the shape {values.shape}, not {shape}")
    return values


def _finite(name: str, values: Array) -> None:
    if not isinstance(values, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(values))):
        raise ValueError(f"{name} holds numbers that are not finite")
