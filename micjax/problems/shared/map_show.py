"""Figures of a map of fits: maps with errors, spectra of some pixels, how the fits ended."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import some_rows
from micjax.inference.maps.status import STATUS
from micjax.inference.solution import Solution
from micjax.problems.shared.map_conclusion import Quantity, map_axes
from micjax.report.figures import (
    FAINT,
    SERIES,
    captioned,
    common_range,
    curve_with_residual,
    image_panel,
    mask_overlay,
    new_figure,
)

COLUMNS = 4
SHOWN = 6  # spectra
MEAN_NUMBERS, MEAN_PARTS = 1 << 22, 16  # in memory at a time, and how often, for a mean
COLOURS = (SERIES[2], SERIES[4], SERIES[3], SERIES[1], "#7a1f1f", "#cccccc", "#eeeeee", "#ffffff")


def map_figures(solution: Solution, x, y, names: Sequence[str], y_label: str) -> dict[str, Any]:
    """By title.

    **Arguments:**

    - `names`: of the quantities that are drawn.
    - `x`: axis of the spectra, in the order in which lines join them.
    """
    if "fit" not in solution.extra:
        return {}
    every: dict[str, Quantity] = solution.extra["quantities"]
    some = {n: every[n] for n in names if n in every}
    shape = solution.problem.forward.shape
    drawn: dict[str, Any] = {}
    if not some:  # as where no pixel has a line
        pass
    elif min(shape) > 1:
        drawn["Maps"] = lambda: _maps(solution, {n: q.value for n, q in some.items()}, every)
        drawn["Errors"] = lambda: _maps(solution, {n: q.sd for n, q in some.items()}, every, True)
    elif max(shape) > 1:
        drawn["Along the line"] = lambda: _line(solution, some)
    if min(shape) > 1:
        drawn["How the fits ended"] = lambda: _ended(solution)
    as_curve = np.ndim(y) == 3 and (np.diff(x) > 0).all()
    if max(shape) > 1 or not as_curve:
        drawn["Spectra"] = lambda: _spectra(solution, x, y, y_label)
    if as_curve:
        drawn["Mean of all" if max(shape) > 1 else "Spectrum"] = lambda: _mean(
            solution, x, y, y_label
        )
    return drawn


def _titled(name: str, q: Quantity) -> str:
    words = name.removeprefix("edges.").replace("_", " ").removesuffix(f" {q.unit}")
    return f"{words} ({q.unit})" if q.unit else words


def _panels(solution: Solution, count: int):
    ny, nx = solution.problem.forward.shape
    columns = min(COLUMNS, count)
    width = 2.9
    height = float(np.clip((width - 0.9) * ny / nx, 0.8, 4.0)) + 0.75
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, width * columns, height * rows)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes.flat


def _maps(solution: Solution, arrays: dict[str, np.ndarray], every, errors: bool = False) -> Figure:
    figure, axes = _panels(solution, len(arrays))
    for ax, (name, array) in zip(axes, arrays.items(), strict=False):
        low, high = _robust(array)
        title = _titled(name, every[name])
        image_panel(ax, array, title, pixel_nm=_pixel(solution), vmin=low, vmax=high)
        mask_overlay(ax, _vague(solution, name))
    what = "Standard deviations" if errors else "Values"
    return captioned(
        figure,
        f"{what} at each pixel; colours end at the 5th and 95th percentile. White: no fit; pale: "
        "not identified, or at the end of what the prior allows.",
    )


def _vague(solution: Solution, name: str) -> np.ndarray:
    """Where it is only the prior that says this number."""
    fit = solution.extra["fit"]
    full = f"forward.{name}"
    if full not in fit.identified:
        return np.zeros(fit.status.shape, bool)
    return fit.usable() & (~fit.identified[full] | fit.bound[full])


def _robust(array: np.ndarray) -> tuple[float, float]:
    finite = array[np.isfinite(array)]
    return tuple(np.quantile(finite, [0.05, 0.95]).tolist()) if finite.size else (0.0, 1.0)


def _pixel(solution: Solution) -> tuple[float, float] | None:
    return solution.problem.forward.pixel_nm


def _ended(solution: Solution) -> Figure:
    fit = solution.extra["fit"]
    figure, axes = new_figure(1, 3, 11.0, 3.4)
    left = axes[0, 0]
    shown = image_panel(
        left, fit.status, "status", pixel_nm=_pixel(solution), colour_bar=False, vmin=0.0, vmax=1.0
    )
    shown.set_cmap(ListedColormap(COLOURS))
    shown.set_norm(BoundaryNorm(np.arange(len(STATUS) + 1) - 0.5, len(STATUS)))
    present = [i for i, s in enumerate(STATUS) if fit.counts()[s]]
    for i in present:
        left.plot([], [], "s", color=COLOURS[i], mec=FAINT, label=STATUS[i])
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=2, frameon=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_datum = fit.chi_squared / np.maximum(fit.points, 1)
    per_datum = np.where(fit.usable(), per_datum, np.nan)
    for ax, array, title in (
        (axes[0, 1], per_datum, "chi^2 per datum"),
        (axes[0, 2], np.where(fit.usable(), fit.correlated, np.nan), "likeness of neighbours (sd)"),
    ):
        low, high = _robust(array)
        image_panel(ax, array, title, pixel_nm=_pixel(solution), vmin=low, vmax=high)
    return captioned(
        figure,
        "Status of each fit; misfit; and the correlation of neighbouring residuals in standard "
        "deviations of white noise: above 4 the model leaves something out.",
    )


def _line(solution: Solution, some: dict[str, Quantity]) -> Figure:
    axis = max(map_axes(solution.problem.forward), key=lambda a: len(a.values))
    figure, axes = new_figure(len(some), 1, 7.6, 1.9 * len(some) + 0.4, sharex=True)
    for ax, (name, q) in zip(axes[:, 0], some.items(), strict=True):
        value, sd = np.ravel(q.value), np.ravel(q.sd)
        ax.fill_between(axis.values, value - sd, value + sd, color=SERIES[0], alpha=0.25, lw=0)
        ax.plot(axis.values, value, "o-", ms=3, lw=1.0, color=SERIES[0])
        low, high = common_range(value)
        room = 0.15 * (high - low) + float(np.nanmedian(sd))
        ax.set_ylim(low - room, high + room)
        ax.set_ylabel(_titled(name, q), fontsize=8)
    axes[-1, 0].set_xlabel(f"{axis.name} ({axis.unit})", fontsize=8)
    return captioned(figure, "Each fit along the line; the band is one standard deviation.")


def _mean(solution: Solution, x, y, y_label: str) -> Figure:
    """Of the pixels that have a fit: what no single spectrum shows; one spectrum as it is."""
    usable = solution.extra["fit"].usable()
    rows = max(MEAN_NUMBERS // math.prod(y.shape[1:]), 1)  # at a time
    parts = -(-len(usable) // rows)
    shown = np.unique(np.linspace(0, parts - 1, min(parts, MEAN_PARTS)).astype(int))
    sums = np.zeros((3, y.shape[-1]))
    for first in (rows * shown).tolist():
        data, model = _some(solution, x, y, first, min(first + rows, len(usable)))
        seen = np.isfinite(data) & usable[first : first + rows, :, None]
        for total, array in zip(sums, (data, model, seen), strict=True):
            total += np.where(seen, array, 0.0).sum(axis=(0, 1))
    data, model = sums[:2] / np.maximum(sums[2], 1)
    alone = usable.size == 1
    label = y_label if alone else f"{y_label}, mean"
    figure = curve_with_residual(
        np.asarray(x), data, model, x_label=_axis_label(solution), label=label
    )
    of = (
        "all spectra"
        if len(shown) == parts
        else f"a share of {len(shown) / parts:.2g} of all spectra"
    )
    what = f"The mean of {of}, that of their fits, and what is left of it."
    return captioned(figure, "The spectrum, its fit, and what is left of it." if alone else what)


def _some(solution: Solution, x, y, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Data and fits of some rows."""
    rows = some_rows(solution.problem, first, last)
    return np.asarray(y[first:last], float), np.asarray(_predicted(rows, x), float)


@eqx.filter_jit
def _predicted(problem: InverseProblem, x):
    return problem.forward(x)


def _axis_label(solution: Solution) -> str:
    return "{} ({})".format(*solution.problem.forward.axis).removesuffix(" ()")


def _spectra(solution: Solution, x, y, y_label: str) -> Figure:
    """Pixels from the best to the worst misfit, as they lie in its order."""
    fit = solution.extra["fit"]
    usable = np.flatnonzero(fit.usable())
    if not usable.size:
        usable = np.arange(fit.status.size)
    alike = np.ravel(fit.correlated)[usable]
    ranked = usable[np.argsort(alike, kind="stable")]
    places = np.unique(np.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).astype(int))
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure, axes = new_figure(rows, columns, 3.6 * columns, 2.6 * rows)
    for ax in axes.flat[len(places) :]:
        ax.set_axis_off()
    for ax, place in zip(axes.flat, places, strict=False):
        i = ranked[place]
        at = np.unravel_index(i, fit.status.shape)
        data, model = (a[0, at[1]] for a in _some(solution, x, y, int(at[0]), int(at[0]) + 1))
        if data.ndim == 2:  # two channels of one response: its size
            data, model = (np.hypot(*a.T) for a in (data, model))
        ax.plot(x, data, ".", ms=3, color=FAINT)
        ax.plot(x, model, "-", lw=1.4, color=SERIES[0])
        ax.plot(x, data - model, "-", lw=0.7, color=SERIES[1])
        status = STATUS[int(np.ravel(fit.status)[i])]
        ax.set_title(f"pixel {at[0]}, {at[1]}: {status}", fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel(_axis_label(solution), fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel(y_label, fontsize=8)
    return captioned(
        figure,
        "Data (grey), fit (blue) and what is left (red), from the pixel whose residual looks most "
        "like noise to the one whose residual looks least like it.",
    )
