"""What `micjax.problems.cbed` makes of the arrays of a file."""

from typing import Any

import numpy as np

from micjax.physics.electrons.potentials.layers import Atoms
from micjax.problems.shared.specimen import start_u_A2


def brightest_disc(counts: np.ndarray, radius_px: list[float]) -> list[float]:
    """The middle of the disc that holds most of the counts."""
    ny, nx = (np.fft.fftfreq(n, r / n) for n, r in zip(counts.shape, radius_px, strict=True))
    disc = np.hypot(ny[:, None], nx) <= 1.0
    inside = np.fft.ifft2(np.fft.fft2(counts) * np.fft.fft2(disc)).real
    top = np.argwhere(inside > inside.max() - 1e-9 * counts.sum())
    return top.mean(0).tolist()


def cell_of(atoms: Atoms) -> dict[str, Any]:
    """Options of the problem."""
    box = np.asarray(atoms.box_A, float)
    u_A2 = start_u_A2(atoms)
    return {
        "numbers": list(atoms.numbers),
        "fractions": (np.asarray(atoms.position_A, float) / box).tolist(),
        "occupancy": np.asarray(atoms.occupancy, float).tolist(),
        "cell_A": box.tolist(),
        **({} if u_A2 is None else {"u_A2": u_A2}),
    }
