"""What `micjax.problems.cbed` makes of a file."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from micjax.core.ranges import positive
from micjax.io import read
from micjax.physics.electrons.pacbed import Camera, camera
from micjax.physics.electrons.potentials.layers import Atoms
from micjax.problems.cbed.model import Pixels
from micjax.problems.shared.angles import axes_mrad, centred
from micjax.problems.shared.specimen import atoms_from, start_u_A2


def load(
    file,
    channel: str | None = None,
    structure: str | None = None,
    numbers: list | None = None,
    fractions: list | None = None,
    cell_A: float | list | None = None,
    mrad_per_px: float | list | None = None,
    centre_px: list | None = None,
    rotation_deg: float = 0.0,
    reach_mrad: float | None = None,
    counts_per_unit: float = 1.0,
    dose: float | None = None,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 8.0,
) -> tuple[dict[str, Any], Camera, Pixels]:
    """Counts of a pattern from a microscope's file, or from a bare array (.npy, .npz, .tif).

    **Arguments:**

    - `channel`: which image of the file.
    - `structure`: CIF, XYZ, POSCAR ... of the cell, the beam along z.
    - `numbers`, `fractions`, `cell_A`: the cell, where there is no `structure`; see `problem`.
    - `mrad_per_px`: pixel size, where the axes of the file are no angles; one number, or (y, x).
    - `centre_px`: the middle of the direct disc, [row, column]; where the axes are 0 if they are
        angles, otherwise the middle of the brightest disc.
    - `rotation_deg`: of the camera's x axis against that of the crystal, from x towards y.
    - `reach_mrad`: pixels further out are left out; by default all that fit onto the camera.
    - `counts_per_unit`: of the values in the file; counts are rounded to whole electrons.
    - `dose`: electrons of the whole beam, to within 5 %; by default as many as the camera has seen,
        to within 30 %.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence, to within 2 %.

    **Raises:** `ValueError` for values that are no counts, a pixel size or a crystal that is not
    known, besides what `micjax.io.read` raises. Pixels that are NaN are blind.
    """
    sizes = {"mrad_per_px": mrad_per_px, "reach_mrad": reach_mrad, "dose": dose}
    positive(
        energy_keV=energy_keV,
        semiangle_mrad=semiangle_mrad,
        counts_per_unit=counts_per_unit,
        **{name: given for name, given in sizes.items() if given is not None},
    )
    given = {"numbers": numbers, "fractions": fractions, "cell_A": cell_A}
    atoms = atoms_from(structure, given)
    field = read(file, channel)
    if field.data.ndim != 2 or min(field.data.shape) < 2:
        raise ValueError(
            f"{field.name}: shape {field.data.shape} is no diffraction pattern [my, mx]"
        )
    if np.iscomplexobj(field.data):
        raise ValueError(f"{field.name}: complex values are no electron counts")
    if np.dtype(field.metadata.get("stored", field.data.dtype)).kind == "b":
        raise ValueError(f"{field.name}: a mask (bool) is no electron counts")
    blind = ~np.isfinite(field.data)
    values = np.where(blind, 0.0, field.data)
    counts = np.round(counts_per_unit * values)
    if counts.min() < 0.0 or counts.max() < 1.0:
        raise ValueError(
            f"{field.name}: a diffraction pattern with values from {values.min():g} to "
            f"{values.max():g}, times {counts_per_unit:g}, has no electron counts: set "
            "counts_per_unit; the offset of a camera has to be taken off before"
        )
    axes = axes_mrad(field, field.axes, mrad_per_px, energy_keV)
    steps = [float(abs(a[1] - a[0])) for a in axes]
    if mrad_per_px is not None and centre_px is None:
        centre_px = brightest_disc(counts, [semiangle_mrad / s for s in steps])
    y, x = axes if centre_px is None else centred(axes, centre_px)
    fits = float(min(-y.min(), y.max(), -x.min(), x.max()))
    if not fits > semiangle_mrad:
        raise ValueError(f"the pattern ends {fits:.4g} mrad from its middle, in the direct disc")
    reach_mrad = fits if reach_mrad is None else reach_mrad
    if not semiangle_mrad < reach_mrad:
        raise ValueError(f"reach_mrad = {reach_mrad}: lies in the direct disc, {semiangle_mrad}")
    there = camera(y, x, np.deg2rad(rotation_deg))
    outside = np.linalg.norm(np.asarray(there.direction_mrad), axis=-1) > reach_mrad
    there = there._replace(efficiency=jnp.asarray(~(blind | outside), float))
    options: dict[str, Any] = {
        "dose": float(counts.sum()) if dose is None else dose,
        "dose_sd": 0.3 if dose is None else 0.05,
        "energy_keV": energy_keV,
        "semiangle_mrad": semiangle_mrad,
        "reach_mrad": float(reach_mrad),
        "centre_sd_mrad": float(there.pixel_mrad),
        "semiangle_sd_mrad": 0.02 * semiangle_mrad,
    }
    options |= given if atoms is None else cell_of(atoms)
    return options, there, jnp.asarray(np.where(blind | outside, 0.0, counts), float)


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
