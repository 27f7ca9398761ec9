"""Scans and series of images from a microscope's file, for `micjax.problems.structure`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.ranges import positive
from micjax.io import Field, FieldAxis, read
from micjax.io.fields import nm_per
from micjax.physics.electrons import optics
from micjax.problems.shared.angles import axes_mrad, both, centred
from micjax.problems.shared.focus import C10_changes_A
from micjax.problems.shared.specimen import atoms_from, only_full, start_u_A2
from micjax.problems.structure.model import Scan, Series

SAME = 0.05  # pixels of a camera that are finer by this are wide enough


def load(
    file,
    channel: str | None = None,
    structure: str | None = None,
    numbers: list | None = None,
    position_A: list | None = None,
    box_A: list | None = None,
    step_A: float | list | None = None,
    mrad_per_px: float | list | None = None,
    centre_px: list | None = None,
    reach_mrad: float | None = None,
    origin_A: list | None = None,
    scan_rotation_deg: float = 0.0,
    places_A: str | list | None = None,
    defocus_A: list | None = None,
    counts_per_unit: float = 1.0,
    tile: list = [1, 1, 1],  # noqa: B006
    energy_keV: float = 200.0,
    offset_sd_A: float = 0.2,
    dose: float | None = None,
) -> tuple[dict[str, Any], Scan | Series, Array]:
    """Counts of a 4D-STEM data set [scan y, scan x, my, mx], of patterns at listed places
    [places, my, mx], or of a series of images [defocus, y, x]; from a microscope's file or a bare
    array (.npy, .npz, .tif).

    **Arguments:**

    - `channel`: which array of the file.
    - `structure`: CIF, XYZ, POSCAR ... of a cell with right angles, the beam along z.
    - `numbers`, `position_A`, `box_A`: the cell, where there is no `structure`; see `problem`.
    - `step_A`: between places of the probe, or pixels of an image, where the axes of the file are
        no lengths; one number, or (y, x).
    - `mrad_per_px`: of the camera, where its axes are no angles; one number, or (y, x).
    - `centre_px`: the middle of the direct disc, [row, column]; where the axes are 0 if they are
        angles, otherwise the middle of the mean pattern.
    - `reach_mrad`: pixels further out are left out; by default all that fit onto the camera.
    - `origin_A`: where in the box of the structure the first place or pixel is, (y, x); by default
        where the axes of the file begin, if they are lengths.
    - `scan_rotation_deg`: of the scan's x axis against that of the structure and the camera, from x
        towards y, around the first place.
    - `places_A`: [[y, x], ...] in the box for each pattern of a list, or a file that holds them.
    - `defocus_A`: of each image (positive: underfocus), where the first axis of the file is no
        length called defocus or C10.
    - `counts_per_unit`: of the values in the file; counts are rounded to whole electrons.
    - `tile`: boxes along x, y, z; together they hold the scan or the image.
    - `energy_keV`: of the electrons.
    - `offset_sd_A`: how far the scan, or each image, may be off.
    - `dose`: electrons for each place of the probe, or for each pixel of an image; by default the
        most that a place has, or the mean of the images.

    Pixels that are NaN are blind; where there are such, `dose` is needed. Neighbouring pixels of
    the camera are added up until they are as wide as those of the wave, wavelength / box.

    **Raises:** `ValueError` for another number of dimensions, values that are no counts, sizes
    that are not known, a scan that does not fit the box, besides what `micjax.io.read` raises.
    """
    positive(energy_keV=energy_keV, counts_per_unit=counts_per_unit)
    if not np.isfinite(scan_rotation_deg):
        raise ValueError(f"scan_rotation_deg = {scan_rotation_deg}: a number of degrees")
    sizes = {"step_A": step_A, "mrad_per_px": mrad_per_px, "reach_mrad": reach_mrad, "dose": dose}
    positive(**{name: given for name, given in sizes.items() if given is not None})
    if len(tile) != 3:
        raise ValueError(f"tile = {tile}: boxes along x, y and z")
    cell = {"numbers": numbers, "position_A": position_A, "box_A": box_A}
    atoms = atoms_from(structure, cell)
    field = read(file, channel)
    listed = places_A is not None
    if field.data.ndim not in ((3,) if listed else (3, 4)) or np.iscomplexobj(field.data):
        raise ValueError(
            f"{field.name}: {field.data.dtype} of the shape {field.data.shape} are neither 4D-STEM "
            "[scan y, scan x, my, mx], nor patterns [places, my, mx] at places_A, nor a series of "
            "images [defocus, y, x]"
        )
    options: dict[str, Any] = {
        "tile": tile,
        "energy_keV": energy_keV,
        "offset_sd_A": offset_sd_A,
        "vacant": [],
    }
    if atoms is not None:
        only_full(atoms)
        cell = {
            "numbers": list(atoms.numbers),
            "position_A": np.asarray(atoms.position_A, float).tolist(),
            "box_A": np.asarray(atoms.box_A, float).tolist(),
        }
        if u_A2 := start_u_A2(atoms):
            options["u_A2"] = u_A2
    options |= cell
    box = np.asarray(cell["box_A"], float) * np.asarray(tile)
    counts = np.round(counts_per_unit * field.data)
    if not np.isfinite(counts).any():
        raise ValueError(f"{field.name}: none of {counts.size} values is finite")
    if np.nanmin(counts) < 0.0 or not np.nanmax(counts) >= 1.0:
        raise ValueError(
            f"{field.name}: values from {np.nanmin(counts):g} to {np.nanmax(counts):g} are no "
            "electron counts: set counts_per_unit"
        )
    if field.data.ndim == 4 or listed:
        camera = (mrad_per_px, centre_px, reach_mrad, dose)
        if listed:
            places = listed_places_A(places_A, len(counts))
            counts = counts[:, None]
        else:
            places = grid_A(field, step_A, origin_A, scan_rotation_deg)
        return scan_from(field, counts, options, box, places, *camera)
    if scan_rotation_deg:
        raise ValueError("scan_rotation_deg is of a scan, and this is a series of images")
    return series_from(field, counts, options, box, step_A, origin_A, defocus_A, dose)


def grid_A(field: Field, step_A, origin_A, rotation_deg: float) -> np.ndarray:
    """The places (y, x) of a scan in the box, its axes turned around the first place."""
    y, x = _along_A(field, field.axes[:2], step_A, origin_A)
    down, across = np.meshgrid(y - y[0], x - x[0], indexing="ij")
    c, s = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    return np.stack([y[0] + c * down + s * across, x[0] + c * across - s * down], -1)


def listed_places_A(given, count: int) -> np.ndarray:
    """`[places, 1, 2]` from a list, or from a file that holds an array of pairs.

    **Raises:** `ValueError` for another number of places, or what are no pairs of numbers.
    """
    data = read(given).data if isinstance(given, str) else given
    try:
        places = np.asarray(data, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"places_A: {error}") from error
    if places.shape != (count, 2) or not np.all(np.isfinite(places)):
        raise ValueError(
            f"places_A has the shape {places.shape}: {count} patterns need {count} finite pairs "
            "(y, x)"
        )
    return places[:, None]


def scan_from(field, counts, options, box, places, mrad_per_px, centre_px, reach_mrad, dose):
    _inside(field, places, box)
    blind = ~np.isfinite(counts).all((0, 1))
    counts = np.where(blind, 0.0, counts)
    mean, energy_keV = counts.mean((0, 1)), options["energy_keV"]
    y, x = _angles_mrad(field, mean, mrad_per_px, centre_px, energy_keV)
    finer = 1e3 * float(optics.wavelength_A(energy_keV)) / box[1::-1]
    widths = [abs(a[1] - a[0]) for a in (y, x)]
    by = [max(1, int(np.ceil(f / w - SAME))) for f, w in zip(finer, widths, strict=True)]
    y, x = (_binned(a, n, 0) / n for a, n in zip((y, x), by, strict=True))
    for axis, n in zip((2, 3), by, strict=True):
        counts = _binned(counts, n, axis)
        blind = _binned(blind, n, axis - 2) > 0
    if min(len(y), len(x)) < 3:
        raise ValueError(
            f"{field.name}: the wave's pixels are {finer.max():.3g} mrad in a box of "
            f"{box[1]:g} x {box[0]:g} Å, too coarse for this camera: take more tiles"
        )
    fits = float(min(-y.min(), y.max(), -x.min(), x.max()))
    reach = fits if reach_mrad is None else float(reach_mrad)
    if not reach > 0.0:
        raise ValueError(f"reach_mrad = {reach:.4g}: the direct beam is not on the camera")
    rows, columns = (np.abs(a) <= reach for a in (y, x))
    if min(rows.sum(), columns.sum()) < 3:
        raise ValueError(
            f"{field.name}: reach_mrad = {reach:.4g} takes in {rows.sum()} x {columns.sum()} "
            "pixels, 3 x 3 are the least"
        )
    seen = np.ix_(rows, columns)
    efficiency = (np.hypot(y[:, None], x) <= reach) & ~blind
    if dose is None and (blind & (np.hypot(y[:, None], x) <= reach)).any():
        raise ValueError(f"{field.name}: pixels are blind, so not all electrons are seen: set dose")
    counts = np.where(efficiency, counts, 0.0)[:, :, rows][..., columns]
    options |= {
        "kind": "stem",
        "dose": float(counts.sum((-2, -1)).max()) if dose is None else dose,
        "reach_mrad": float(reach),
    }
    arrays = (places, y[rows], x[columns], efficiency[seen])
    return options, Scan(*(jnp.asarray(a, float) for a in arrays)), jnp.asarray(counts, float)


def series_from(field, counts, options, box, step_A, origin_A, defocus_A, dose):
    if not np.isfinite(counts).all():
        raise ValueError(f"{field.name}: {int((~np.isfinite(counts)).sum())} values are not finite")
    along = _along_A(field, field.axes[1:], step_A, origin_A)
    _fits(field, along, box)
    if defocus_A is None:
        defocus_A = -C10_changes_A(field, "defocus_A")
    if len(defocus_A) != len(counts):
        raise ValueError(f"{len(defocus_A)} values of defocus_A for {len(counts)} images")
    options |= {"kind": "hrtem", "dose": dose or float(counts.mean()), "images": len(counts)}
    x = Series(*(jnp.asarray(a, float) for a in (defocus_A, *along)))
    return options, x, jnp.asarray(counts, float)


def _along_A(field: Field, axes, step_A, origin_A) -> list[np.ndarray]:
    """Along y and x, in the box of the structure."""
    steps = both("step_A", step_A)
    begins = [None, None] if origin_A is None else both("origin_A", origin_A)
    return [_axis_A(field, *of) for of in zip(axes, steps, begins, strict=True)]


def _axis_A(
    field: Field, axis: FieldAxis, step_A: float | None, begin_A: float | None
) -> np.ndarray:
    scale = nm_per(axis.unit)
    if len(axis.values) < 2:
        raise ValueError(f"{field.name}: a single value along {axis.name} has no spacing")
    if step_A is not None:
        return (begin_A or 0.0) + step_A * np.arange(len(axis.values))
    if scale is None:
        raise ValueError(
            f"{field.name}: axis {axis.name} is in {axis.unit or 'no unit'!r}: set step_A"
        )
    along = 10.0 * scale * np.asarray(axis.values)
    return along if begin_A is None else begin_A + along - along[0]


def _angles_mrad(field: Field, mean, mrad_per_px, centre_px, energy_keV) -> list[np.ndarray]:
    if min(mean.shape) < 3:
        raise ValueError(f"{field.name}: a camera of {mean.shape} pixels: 3 x 3 are the least")
    along = axes_mrad(field, field.axes[-2:], mrad_per_px, energy_keV)
    if mrad_per_px is None and centre_px is None:
        return along
    if centre_px is None:
        centre_px = [
            float(np.average(np.arange(n), weights=mean.sum(1 - axis)))
            for axis, n in enumerate(mean.shape)
        ]
    return centred(along, centre_px)


def _binned(values: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Sums of `n` neighbours; what is left over at both ends is left out."""
    size = values.shape[axis] // n
    start = (values.shape[axis] - size * n) // 2
    values = np.take(values, np.arange(start, start + size * n), axis)
    shape = (*values.shape[:axis], size, n, *values.shape[axis + 1 :])
    return values.reshape(shape).sum(axis + 1)


def _inside(field: Field, places: np.ndarray, box) -> None:
    """**Raises:** `ValueError` where the scan leaves the box; a scan over the whole of it may end a
    step before the edge, or on it."""
    for name, a, edge in zip("yx", np.moveaxis(places, -1, 0), box[1::-1], strict=True):
        if a.min() < -1e-3 * edge or a.max() > edge * (1.0 + 1e-3):
            raise ValueError(
                f"{field.name}: places from {a.min():.4g} to {a.max():.4g} Å along {name}, but the "
                f"box of the structure ends at {edge:.4g} Å: set origin_A or take more tiles"
            )


def _fits(field: Field, along: list[np.ndarray], box) -> None:
    """**Raises:** `ValueError` where the scan leaves the box."""
    for a, edge, name in zip(along, box[1::-1], "yx", strict=True):
        step = a[1] - a[0]
        if a.min() < -1e-6 or a.max() + step > edge * (1.0 + 1e-3) + 0.5 * step:
            raise ValueError(
                f"{field.name}: from {a.min():.4g} to {a.max() + step:.4g} Å along {name}, but the "
                f"box of the structure ends at {edge:.4g} Å: set origin_A or take more tiles"
            )
