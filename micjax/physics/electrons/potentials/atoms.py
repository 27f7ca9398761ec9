"""Atoms in a box with right angles.

Positions are (x, y, z) in Å as in ase; the beam travels along +z. The box repeats itself along x
and y, along the beam it does not: there a specimen has two faces.
"""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import parameter

WRAP = 1e-6  # of a cell: an atom so little above its first face lies on it, not on the last
STICKS_OUT_A = 1.0  # of the box at most, along the beam: a displaced atom may, by its motion


class Atoms(eqx.Module):
    """Atoms in a box with right angles, periodic along x and y.

    **Arguments:**

    - `numbers`: atomic numbers, static.
    - `position_A`: `[n, 3]`, (x, y, z); outside the box they are wrapped along x and y.
    - `box_A`: its edges along x, y, z.
    - `u_A2`: mean square displacement B / (8 pi^2), along any axis `[n]` or along each `[n, 3]`.
    - `occupancy`: `[n]`.

    **Raises:** `ValueError` for shapes that do not fit, numbers that are not finite, a displacement
    or an occupancy below 0, or no atoms.
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
        _not_negative("u_A2", self.u_A2)
        _not_negative("occupancy", self.occupancy)
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


def heights_A(atoms: Atoms) -> Float[np.ndarray, "n"]:
    """z of each atom, which has to be known.

    **Raises:** `ValueError` for atoms above or below the box.
    """
    z, height = np.asarray(atoms.position_A, float)[:, 2], float(atoms.box_A[2])
    if z.min() < -STICKS_OUT_A or z.max() > height + STICKS_OUT_A:
        raise ValueError(
            f"atoms from z = {z.min():.4g} to {z.max():.4g} Å in a box of {height:.4g} Å: along "
            "the beam it does not repeat itself, so they have to lie within"
        )
    return z


def atoms_of(structure: Any, u_A2: Any = None) -> Atoms:
    """From an `ase.Atoms` (or anything with `numbers`, `positions` and `cell`), with its arrays
    "occupancy" and "u_A2" where it has them.

    A structure that is periodic along z is cut at the faces of its cell: atoms beyond them move by
    whole cells. One that is not (`pbc`) has to lie within its cell.

    **Arguments:**

    - `u_A2`: as in `Atoms`, instead of that of the structure.

    **Raises:** `ValueError` for a cell whose angles are not right ones, or that is flat.
    """
    cell = np.asarray(structure.cell[:], dtype=float)
    lengths = np.linalg.norm(cell, axis=1)
    if not np.allclose(cell, np.diag(np.diag(cell)), atol=1e-6 * lengths.max()):
        raise ValueError(
            f"the cell {cell.tolist()} has no right angles along x, y, z: make an orthogonal one "
            "(`micjax.io.readers.orthogonal`; micjax simulate: orthogonal=true)"
        )
    if not np.all(np.diag(cell) > 0.0):
        raise ValueError(f"the cell {np.diag(cell).tolist()} is flat; give it a size with vacuum")
    positions, height = np.array(structure.positions, float), cell[2, 2]
    if getattr(structure, "pbc", (True,) * 3)[2]:
        positions[:, 2] -= height * np.floor(positions[:, 2] / height + WRAP)
    arrays = getattr(structure, "arrays", {})
    u_A2 = arrays.get("u_A2", 0.0) if u_A2 is None else u_A2
    occupancy = arrays.get("occupancy", 1.0)
    return Atoms(structure.numbers, positions, np.diag(cell), u_A2=u_A2, occupancy=occupancy)


def _shaped(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    values = jnp.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"{name} has the shape {values.shape}, not {shape}")
    return values


def _finite(name: str, values: Array) -> None:
    if not isinstance(values, jax.core.Tracer) and not np.all(np.isfinite(np.asarray(values))):
        raise ValueError(f"{name} holds numbers that are not finite")


def _not_negative(name: str, values: Array) -> None:
    _finite(name, values)
    if not isinstance(values, jax.core.Tracer) and np.any(np.asarray(values) < 0.0):
        raise ValueError(f"{name} goes down to {np.min(values):g}: 0 and more is allowed")
