"""Frozen phonons: thermal motion as a mean over displaced crystals (Loane, Xu & Silcox 1991).

An electron is through before an atom has moved, so intensities are averaged. The intensity of the
mean wave over all motion was scattered elastically; what the mean intensity has beside it is
thermal diffuse. The mean wave of N configurations still has 1/N of the diffuse intensity in it, so

    diffuse = (total - |mean wave|^2) N / (N - 1),    elastic = total - diffuse

are free of bias (as a sample variance is), and may be below 0 where there is next to nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Complex, Float, PyTree

from micjax.core.devices import mean
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.potentials.layers import Atoms


class Thermal(NamedTuple):
    """Patterns of a vibrating crystal, `[..., ny, nx]`."""

    total: Float[Array, "..."]
    of_mean_wave: Float[Array, "..."]  # with 1 / count of the diffuse part in it
    count: int | Float[Array, ""]  # of configurations

    @property
    def diffuse(self) -> Float[Array, "..."]:
        """Thermal diffuse, without bias.

        **Raises:** `ValueError` for one configuration, from which it is not known.
        """
        if not isinstance(self.count, jax.core.Tracer) and self.count < 2:
            raise ValueError("one configuration does not tell diffuse from elastic scattering")
        return (self.total - self.of_mean_wave) * jnp.divide(self.count, self.count - 1)

    @property
    def elastic(self) -> Float[Array, "..."]:
        return self.total - self.diffuse


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

    def both(configuration):
        after = exit_waves(configuration)
        return after, diffraction(after)

    count = 0 if mesh is None else len(jax.tree.leaves(configurations)[0])

    def counted():
        nonlocal count
        for configuration in configurations:
            count += 1
            yield configuration

    wave, total = mean(both, counted() if mesh is None else configurations, mesh)
    return Thermal(total, diffraction(wave), count)
