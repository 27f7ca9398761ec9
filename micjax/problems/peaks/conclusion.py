"""What is told of a map of peaks: places, widths, areas, and how many there are."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from micjax.core.names import listed
from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import one_pixel
from micjax.inference.solution import Solution
from micjax.io import Field
from micjax.physics.spectra.composed import SumOf
from micjax.problems.peaks.number import NUMBER, PROBABILITY
from micjax.problems.peaks.setting import Axis
from micjax.problems.peaks.stages import starts
from micjax.problems.shared.map_conclusion import compare_map, conclude_map, map_axes
from micjax.problems.shared.map_show import map_figures
from micjax.report.figures import (
    FAINT,
    SERIES,
    captioned,
    image_panel,
    mask_overlay,
    new_figure,
)

SURE = 0.9  # below this probability a number is ambiguous


def areas(model: SumOf) -> dict[str, Array]:
    """Of the lines, in units of y times those of the axis."""
    return {f"{n}.area": p.area() for n, p in model.parts.items() if hasattr(p, "area")}


def conclude(solution: Solution, x: Axis, y: Any) -> Solution:
    """With the maps of all parameters and of the areas of the lines."""
    unit = solution.problem.forward.axis[1]
    names = ("centre", "fwhm", "fwhm_gaussian", "fwhm_lorentzian", "decay")
    solution = conclude_map(
        solution,
        units=dict.fromkeys(names, unit),
        derived=areas,
        first="peak_1.centre",
    )
    number, probability = how_many(solution)
    if number is None or not solution.results:
        return solution
    axes = map_axes(solution.problem.forward)
    meaning = {"meaning": f"1: the likeliest number has a probability below {SURE}"}
    more = (
        Field(np.where(number < 0, np.nan, number), axes, "", "number_of_peaks"),
        Field(probability, axes, "", "number_probability"),
        Field((probability < SURE).astype(float), axes, "", "number_ambiguous", meaning),
    )
    return dataclasses.replace(
        solution,
        results=dict(solution.results) | {f.name: f for f in more},
        statements=[*_numbers(number, probability), *solution.statements],
    )


def how_many(solution: Solution) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The number of peaks of each pixel that the evidence chose, -1 without a fit, and how sure it
    is; None where there was one number."""
    shape, arrays = solution.problem.forward.shape, solution.fit.arrays
    if NUMBER not in arrays:
        return None, None
    return arrays[NUMBER].reshape(shape), arrays[PROBABILITY].reshape(shape)


def _numbers(number: np.ndarray, probability: np.ndarray) -> Iterator[str]:
    numbers, pixels = np.unique(number[number >= 0], return_counts=True)
    counted = listed([f"{k} in {many:,}" for k, many in zip(numbers, pixels, strict=True)])
    unsure = int(np.sum(probability < SURE))
    yield (
        f"Peaks, by the evidence: {counted} pixels. Ambiguous (a probability below {SURE}): "
        f"{unsure:,}."
    )
    yield "Values and errors are those of the likeliest number of peaks in each pixel."


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: one value for all pixels, the maxima of the spectra, the fits."""
    return compare_map(
        solution, truth, starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y)), areas
    )


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, spectra of some pixels, how the fits ended."""
    lines = solution.problem.forward.pixel.names()
    drawn = [f"{n}.{k}" for k in ("centre", "fwhm", "area") for n in lines]
    out = map_figures(solution, x, y, drawn, "signal")
    number, probability = how_many(solution)
    if number is None or not out or number.size == 1:
        return out
    return {"Number of peaks": lambda: _number_figure(solution, number, probability)} | out


def _number_figure(solution: Solution, number: np.ndarray, probability: np.ndarray) -> Figure:
    forward = solution.problem.forward
    numbers = forward.pixel.numbers
    sure = np.where(probability < SURE, np.nan, number)
    if min(number.shape) == 1:
        axis = max(map_axes(forward), key=lambda a: len(a.values))
        figure, axes = new_figure(2, 1, 7.6, 4.2, sharex=True)
        for array, fill in ((np.where(number < 0, np.nan, number), "none"), (sure, SERIES[0])):
            axes[0, 0].plot(axis.values, np.ravel(array), "o", mfc=fill, color=SERIES[0])
        axes[0, 0].set_yticks(numbers)
        axes[0, 0].set_ylabel("number of peaks")
        axes[1, 0].plot(axis.values, np.ravel(probability), "o-", ms=3, color=SERIES[0])
        axes[1, 0].axhline(SURE, color=FAINT, lw=1.0)
        axes[1, 0].set_ylim(0.0, 1.05)
        axes[1, 0].set_ylabel("probability")
        axes[1, 0].set_xlabel(f"{axis.name} ({axis.unit})")
        return captioned(
            figure,
            f"The likeliest number of peaks, open where its probability is below {SURE}.",
        )
    figure, axes = new_figure(1, 2, 8.0, 3.4)
    colours = [SERIES[i % len(SERIES)] for i in range(len(numbers))]
    step = np.full(number.shape, np.nan)
    for i, k in enumerate(numbers):
        step[number == k] = i
    shown = image_panel(
        axes[0, 0], step, "number of peaks", pixel_nm=forward.pixel_nm, colour_bar=False
    )
    shown.set_cmap(ListedColormap(colours))
    shown.set_norm(BoundaryNorm(np.arange(len(numbers) + 1) - 0.5, len(numbers)))
    mask_overlay(axes[0, 0], probability < SURE)
    for colour, k in zip(colours, numbers, strict=True):
        if (number == k).any():
            axes[0, 0].plot([], [], "s", color=colour, mec=FAINT, label=f"{k}")
    axes[0, 0].legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=6, frameon=False
    )
    image_panel(
        axes[0, 1], probability, "its probability", pixel_nm=forward.pixel_nm, vmin=0.0, vmax=1.0
    )
    return captioned(
        figure,
        "The likeliest number of peaks, by the evidence of each pixel. Pale: ambiguous, a "
        f"probability below {SURE}; white: no fit.",
    )
