"""A unit cell with right angles for a crystal whose own has others: hexagonal, primitive, ..."""

import itertools
from typing import Any

import numpy as np

LONGEST = 4  # edges of the old cell in one of the new
ALIKE = 1e-5  # of a length: what is at a right angle but for rounding


def orthogonal(structure: Any) -> Any:
    """The smallest cell with right angles of the same crystal, an `ase.Atoms` with all its arrays.

    What stands along z stays there, so the beam travels through it as before; about z the crystal
    is turned so that the new first edge, of those that there are the nearest to x, lies along x.

    **Raises:** `ValueError` where there is none of moderate size.
    """
    from ase.build import make_supercell

    old = np.asarray(structure.cell[:], float)
    if abs(np.linalg.det(old)) < 1e-9:
        raise ValueError(f"the cell {old.tolist()} is flat; give it a size with vacuum")
    steps = np.array(list(itertools.product(range(-LONGEST, LONGEST + 1), repeat=3)))
    steps = steps[np.any(steps != 0, axis=1)]
    vectors = steps @ old
    length = np.linalg.norm(vectors, axis=1)
    across = np.linalg.norm(vectors[:, :2], axis=1)
    upward = np.flatnonzero((across < ALIKE * length) & (vectors[:, 2] > 0.0))
    level = np.flatnonzero(np.abs(vectors[:, 2]) < ALIKE * length)
    flat, size = vectors[level, :2], length[level]
    right = np.abs(flat @ flat.T) < ALIKE * np.outer(size, size)
    right &= flat[:, None, 0] * flat[None, :, 1] > flat[:, None, 1] * flat[None, :, 0]
    if not upward.size or not right.any():
        raise ValueError(
            f"no cell with right angles of up to {LONGEST} edges of {np.round(old, 4).tolist()} "
            "stands along z: make one (for instance with ase.build.cut or ase.build.surface)"
        )
    first, second = np.nonzero(right)
    area = size[first] * size[second]
    turn = np.abs(np.arctan2(flat[first, 1], flat[first, 0]))
    # lengths and angles that differ by rounding are the same
    best = np.lexsort((np.round(turn, 6), np.round(area / area.min(), 6)))[0]
    up = upward[np.argmin(length[upward])]
    chosen = steps[[level[first[best]], level[second[best]], up]]
    supercell = make_supercell(structure, chosen, wrap=True)
    fractions = np.linalg.solve(np.asarray(supercell.cell[:]).T, supercell.positions.T).T
    supercell.set_cell(np.diag(np.linalg.norm(chosen @ old, axis=1)))
    supercell.positions = (fractions - np.floor(fractions + ALIKE)) * supercell.cell.lengths()
    return supercell
