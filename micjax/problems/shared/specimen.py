"""The specimen of a file of data: the file does not say which."""

import logging
from typing import Any

import numpy as np

from micjax.io.readers.structures import read_structure
from micjax.physics.electrons.potentials.layers import Atoms, atoms_of

log = logging.getLogger("micjax")


def atoms_from(structure: str | None, given: dict[str, Any]) -> Atoms | None:
    """The atoms of a structure file; None where the settings `given` tell all of them instead.

    **Raises:** `ValueError` for neither, or for both, besides what `read_structure` raises.
    """
    named = [name for name, value in given.items() if value is not None]
    if structure is not None and not named:
        return atoms_of(read_structure(structure))
    if structure is None and len(named) == len(given):
        return None
    sources = (
        ", ".join([*named, *(["structure"] if structure is not None else [])]) or "none of them"
    )
    raise ValueError(
        "which specimen? Set structure (a CIF, XYZ, POSCAR ... of the cell, the beam along z), or "
        f"{', '.join(given)} together; found: {sources}"
    )


def only_full(atoms: Atoms) -> None:
    """**Raises:** `ValueError` for atoms that are there in part only."""
    if np.any(part := np.asarray(atoms.occupancy) < 1.0 - 1e-6):
        raise ValueError(
            f"{int(part.sum())} of {len(part)} atoms of the structure have an occupancy below 1; "
            "the fit starts from full ones: make a structure of whole atoms"
        )


def start_u_A2(atoms: Atoms) -> float | None:
    """The mean over the atoms and axes of what a structure file says of thermal motion, if it does:
    where a fit begins."""
    u = np.asarray(atoms.u_A2, float)
    if not np.all(u > 0.0):
        return None
    log.info("u_A2 begins at %.3g Å², the mean of the structure's", u.mean())
    return float(u.mean())
