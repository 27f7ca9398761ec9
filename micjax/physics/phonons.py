"""Frozen phonons: thermal motion as a mean over displaced crystals (Loane, Xu & Silcox 1991).

An electron is through before an atom has moved, so intensities are averaged. The intensity of the
mean wave was scattered elastically; what the mean intensity has beside it is thermal diffuse.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Complex, Float, PyTree

from micjax.physics.detectors import diffraction
from micjax.physics.devices import mean
from micjax.physics.potentials import Atoms


class Thermal(NamedTuple):
    """Patterns of a vibrating crystal, `[..., ny, nx]`."""

    total: Float[Array, "..."]
    elastic: Float[Array, "..."]

    @property
    def diffuse(self) -> Float[Array, "..."]:
        return self.total - self.elastic


def displaced(key: Array, atoms: Atoms) -> Atoms:
    """The atoms at rest in one moment: each coordinate moved by Normal(0, sqrt(u)), uncorrelated
    (Einstein). Their own damping is gone, since it stands for the same motion. A key stands for the
    same moment in single and in double precision."""
    normal = jax.random.normal(key, atoms.position_A.shape, jnp.float32)
    moved = atoms.position_A + jnp.sqrt(atoms.u_A2) * normal.astype(atoms.position_A.dtype)
    return Atoms(
        atoms.numbers, moved, atoms.box_A, u_A2=0.0 * atoms.u_A2, occupancy=atoms.occupancy
    )


def averaged(
    exit_waves: Callable[[Any], Complex[Array, "..."]],
    configurations: Iterable[Any] | PyTree,
    mesh: Mesh | None = None,
) -> Thermal:
    """Over configurations (keys, atoms, transmission functions), one after the other.

    **Arguments:**

    - `exit_waves`: the waves behind one of them; jitted, if there are many and no mesh.
    - `mesh`: devices that take a share each of configurations in arrays `[n, ...]`
        (`devices.row`), else one.

    **Raises:** `ValueError` when there is none.
    """

    def both(one):
        after = exit_waves(one)
        return after, diffraction(after)

    wave, total = mean(both, configurations, mesh)
    return Thermal(total, diffraction(wave))
