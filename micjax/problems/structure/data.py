"""Scans and series of images from a microscope's file, for `micjax.problems.structure`."""

import jax.numpy as jnp
import numpy as np

from micjax.io import Axis, Field, read
from micjax.io.fields import nm_per
from micjax.physics.electrons import optics
from micjax.problems.shared.angles import axes_mrad, both, centred
from micjax.problems.shared.focus import C10_changes_A
from micjax.problems.structure.model import Scan, Series

SAME = 0.05  # pixels of a camera that are finer by this are wide enough


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


def _axis_A(field: Field, axis: Axis, step_A: float | None, begin_A: float | None) -> np.ndarray:
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
