"""Specimens from parts: turned crystals, amorphous films, layers, volumes of voxels.

Positions are (x, y, z) in Å in a box with right angles; the beam travels along +z.
"""

import importlib.resources
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from micjax.physics.electrons.potentials.atoms import Atoms

EDGE_A = 1e-4  # an atom on a face of a new box lies in it, whichever way its place is rounded
ROUNDS = 1000  # in which atoms that are too close are drawn again
G_PER_CM3 = 1.66053906892  # one atomic mass unit in an Å^3 (CODATA 2022)


def rotated(atoms: Atoms, about_x_rad: float, about_y_rad: float, box_A: Any) -> Atoms:
    """A crystal turned about x, then about y, and cut to a box in whose middle its corner lies.

    It is not periodic any more: at the sides of the new box it does not fit to itself.

    **Arguments:**

    - `box_A`: edges (x, y, z) of the new box, which the crystal fills.

    **Raises:** `ValueError` for thermal motion that depends on the axis, or an empty box.
    """
    position, old, u = (np.asarray(a, float) for a in (atoms.position_A, atoms.box_A, atoms.u_A2))
    if np.ptp(u, axis=1).max() > 0.0:
        raise ValueError(
            "u_A2 differs between the axes of an atom; a turned one has to be the same"
        )
    box = np.asarray(box_A, float)
    reach = np.ceil(0.5 * np.linalg.norm(box) / old).astype(int) + 1
    cells = np.stack(np.meshgrid(*(np.arange(-n, n) for n in reach), indexing="ij"), -1)
    everywhere = (cells.reshape(-1, 1, 3) * old + np.mod(position, old)).reshape(-1, 3)
    turned = Rotation.from_euler("xy", [about_x_rad, about_y_rad]).apply(everywhere) + 0.5 * box
    (inside,) = np.nonzero(np.all((turned >= -EDGE_A) & (turned < box - EDGE_A), axis=1))
    which = inside % len(position)
    return Atoms(
        np.asarray(atoms.numbers)[which],
        turned[inside],
        box,
        u_A2=u[which],
        occupancy=atoms.occupancy[which],
    )


def amorphous(
    key: Array,
    formula: Sequence[int],
    density_g_cm3: float,
    box_A: Any,
    closest_A: float,
    *,
    u_A2: Any = 0.0,
) -> Atoms:
    """Atoms at random, none closer to another than `closest_A`, periodic.

    Those that are too close are drawn again until there are none.

    **Arguments:**

    - `formula`: the atomic numbers of one unit: `[6]` for a film of carbon (2.0 g/cm^3, closest
        1.4 Å), `[14, 8, 8]` for a glass.

    **Raises:** `ValueError` for an unknown element, a box without atoms, or a distance that cannot
    be kept.
    """
    box = np.asarray(box_A, float)
    masses = _masses_u()
    if not formula or not all(1 <= z <= len(masses) for z in formula):
        raise ValueError(f"formula {list(formula)}: atomic numbers from 1 to {len(masses)}")
    unit = G_PER_CM3 * sum(masses[z - 1] for z in formula)
    count = round(density_g_cm3 * float(np.prod(box)) / unit)
    if count < 1:
        raise ValueError(f"{density_g_cm3} g/cm^3 in a box of {box.tolist()} Å are no atoms")
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    position = random.uniform(size=(count * len(formula), 3)) * box
    for _ in range(ROUNDS):
        pairs = cKDTree(position, boxsize=box).query_pairs(closest_A, output_type="ndarray")
        if not len(pairs):
            return Atoms(tuple(formula) * count, position, box, u_A2=u_A2)
        again = np.unique(pairs[:, 1])
        position[again] = random.uniform(size=(len(again), 3)) * box
    raise ValueError(
        f"{len(position)} atoms in {box.tolist()} Å could not be kept {closest_A} Å apart; "
        "ask for a smaller distance"
    )


def stacked(*layers: Atoms) -> Atoms:
    """Layers on top of each other along z, the first one first in the beam.

    **Raises:** `ValueError` for boxes that differ in x or y, or no layers.
    """
    if not layers:
        raise ValueError("there are no layers")
    lateral = [np.asarray(a.box_A[:2], float) for a in layers]
    if not all(np.allclose(b, lateral[0], rtol=1e-6) for b in lateral):
        raise ValueError(
            f"boxes of {[b.tolist() for b in lateral]} Å (x, y): they have to be equal"
        )
    heights = jnp.stack([a.box_A[2] for a in layers])
    below = jnp.cumsum(heights) - heights
    return Atoms(
        sum((a.numbers for a in layers), ()),
        jnp.concatenate([a.position_A.at[:, 2].add(z) for a, z in zip(layers, below, strict=True)]),
        layers[0].box_A.at[2].set(jnp.sum(heights)),
        u_A2=jnp.concatenate([a.u_A2 for a in layers]),
        occupancy=jnp.concatenate([a.occupancy for a in layers]),
    )


def voxels_VA(
    potential_V: Float[Array, "nz ny nx"], voxel_A: float | Float[Array, ""], together: int = 1
) -> Float[Array, "slices ny nx"]:
    """Slices of a potential that is given in space, each of `together` voxels along z.

    **Arguments:**

    - `voxel_A`: height of a voxel; a slice is `together * voxel_A` thick.

    **Raises:** `ValueError` for a number that does not divide the voxels.
    """
    count = len(potential_V)
    if together < 1 or count % together:
        raise ValueError(f"{together} voxels in a slice do not divide {count}")
    return voxel_A * potential_V.reshape(-1, together, *potential_V.shape[1:]).sum(1)


def _masses_u() -> Float[np.ndarray, "elements"]:
    file = importlib.resources.files("micjax.physics") / "tables" / "masses.csv"
    with file.open(encoding="utf-8") as lines:
        return np.loadtxt(lines, delimiter=",", skiprows=3)[:, 1]
