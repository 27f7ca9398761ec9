"""A crystal along a zone axis: the plane lattice of its columns, as bright as Z^1.7 (Pennycook)."""

import math

import numpy as np
from jaxtyping import Float, Int

from micjax.core.ranges import positive
from micjax.physics.patches.polycrystal import PlaneLattice

BRIGHTNESS = 1.7  # the power of Z in an annular dark-field image (Hartel, Rose & Dinges 1996)
SAME_A = 0.05  # columns that are nearer are one

# low-index zone axes, one of each family of a cubic crystal and all of them up to 1 otherwise
ZONES = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1))


def projected(
    cell_A: Float[np.ndarray, "3 3"],
    fractional: Float[np.ndarray, "n 3"],
    numbers: Int[np.ndarray, "n"],
    zone: tuple[int, int, int],
    occupancy: Float[np.ndarray, "n"] | None = None,
) -> PlaneLattice:
    """Columns along `zone`, seen against the beam.

    **Arguments:**

    - `cell_A`: rows are a, b, c.
    - `fractional`: places of the atoms in the cell.
    - `numbers`: atomic numbers.
    - `zone`: [u, v, w], the direction of the beam.

    **Raises:** `ValueError` for [0, 0, 0], and a cell without a volume.
    """
    u = np.array(zone, int)
    if not u.any():
        raise ValueError(f"zone = {list(zone)} is no direction")
    volume = abs(np.linalg.det(cell_A))
    positive(volume_A3=volume)
    along = (u // math.gcd(*map(int, u))) @ cell_A
    axis = along / np.linalg.norm(along)
    # an x axis that lies in the plane, whatever the zone
    start = cell_A[int(np.argmin(np.abs(cell_A @ axis) / np.linalg.norm(cell_A, axis=1)))]
    x = start - (start @ axis) * axis
    x /= np.linalg.norm(x)
    plane = np.stack([x, np.cross(axis, x)], axis=1)
    vectors = _basis(cell_A @ plane, volume / np.linalg.norm(along))
    places = (fractional @ cell_A @ plane) @ np.linalg.inv(vectors) % 1.0
    weight = np.asarray(numbers, float) ** BRIGHTNESS
    weight = weight if occupancy is None else weight * occupancy
    return PlaneLattice(vectors, *_columns(places, weight, vectors))


def _basis(projected_A: Float[np.ndarray, "3 2"], area_A2: float) -> Float[np.ndarray, "2 2"]:
    """The two shortest vectors of all sums of the three that span the area of a cell."""
    whole = np.stack(np.meshgrid(*3 * [np.arange(-4, 5)], indexing="ij"), -1).reshape(-1, 3)
    sums = whole @ projected_A
    length = np.linalg.norm(sums, axis=1)
    order = np.argsort(length, kind="stable")
    sums, length = sums[order], length[order]
    first = sums[np.argmax(length > 1e-3 * length[-1])]
    for second in sums:
        area = first[0] * second[1] - first[1] * second[0]
        if abs(area / area_A2 - 1.0) < 1e-3:
            return np.stack([first, second])
    raise ValueError("no cell of the projected lattice among sums of up to four edges")


def primitive(lattice: PlaneLattice) -> Float[np.ndarray, "2 2"]:
    """The two shortest vectors by which all columns are moved onto others of the same weight."""
    vectors, basis = np.asarray(lattice.vectors_A, float), np.asarray(lattice.basis, float)
    weight = np.asarray(lattice.weight, float)
    alike = np.isclose(weight[:, None], weight)
    rarest = int(np.argmin(alike.sum(axis=1)))
    cells = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2)
    moves = []
    for move in (basis - basis[rarest])[alike[rarest]]:
        apart = basis[:, None] + move - basis
        distance = np.linalg.norm((apart - np.round(apart)) @ vectors, axis=-1)
        if np.all(np.min(np.where(alike, distance, np.inf), axis=1) < SAME_A):
            moves.append((cells + move) @ vectors)
    every = np.concatenate(moves)
    length = np.linalg.norm(every, axis=1)
    every = every[np.argsort(length, kind="stable")][np.sum(length < SAME_A) :]
    first = every[0]
    across = np.abs(first[0] * every[:, 1] - first[1] * every[:, 0]) / np.linalg.norm(first)
    return np.stack([first, every[np.argmax(across > SAME_A)]])


def _columns(places, weight, vectors) -> tuple[np.ndarray, np.ndarray]:
    """Atoms above each other as one."""
    basis: list[np.ndarray] = []
    sums: list[float] = []
    for place, w in zip(places, weight, strict=True):
        apart = np.array(basis).reshape(-1, 2) - place
        near = np.linalg.norm((apart - np.round(apart)) @ vectors, axis=1) < SAME_A
        if near.any():
            sums[int(np.argmax(near))] += w
        else:
            basis.append(place)
            sums.append(w)
    return np.array(basis), np.array(sums)
