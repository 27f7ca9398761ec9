"""What is told of an image of instances: labels, a row for each, and how sizes are distributed."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from micjax.inference.solution import Solution
from micjax.inference.stage import Arrays
from micjax.io import Field
from micjax.io.fields import PIXELS, image_axes
from micjax.problems.particles.instances.errors import errors_of
from micjax.problems.particles.instances.table import Shapes, shapes

SURE = 3.0  # standard deviations of the background over areas of the same size
SQUARE = 0.05  # edges of pixels that differ by less are alike
BINS = 12
FILM = 0.9  # of the pixels belong to instances: there is no background


def conclude(solution: Solution, x: Int[Array, "1"], y: Float[Array, "h w"]) -> Solution:
    """With labels, sizes and their errors."""
    arrays = solution.fit.arrays
    if "labels" not in arrays:
        return solution  # interrupted before
    labels = np.asarray(arrays["labels"])
    forward = solution.problem.forward
    edges, unit = ((1.0, 1.0), PIXELS) if forward.pixel_nm is None else (forward.pixel_nm, "nm")
    axes, pixel = image_axes(labels.shape, edges, unit), float(np.sqrt(np.prod(edges)))
    of = shapes(labels, edges)
    # of what a function makes nobody knows how far it is off
    errors = errors_of(of, arrays["doubt"]) if forward.labels is None else {}
    count = len(of.area_px2)
    whole = ~of.cut
    image = Field(np.asarray(y, float), axes, "", "image")
    background = forward(x) - forward.signal
    results = {
        "labels": Field(labels.astype(float), axes, "", "labels"),
        "image": image,
        "contrast": Field(np.asarray(arrays["signal"], float), axes, "", "contrast"),
        "background": Field(np.asarray(background, float), axes, "", "background"),
    }
    metrics = dict(solution.metrics) | {
        "instances": float(count),
        "instances_cut_by_the_edge": float(of.cut.sum()),
        "covered": float((labels > 0).mean()),
    }
    if whole.any():
        diameter = pixel * of.diameter_px[whole]
        metrics |= {
            f"median_diameter_{unit}": float(np.median(diameter)),
            f"mean_diameter_{unit}": float(diameter.mean()),
            f"sd_diameter_{unit}": float(diameter.std()),
        }
    return dataclasses.replace(
        solution,
        results=results,
        metrics=metrics,
        table=rows(of, errors, arrays, edges, unit),
        statements=[*_statements(solution, of, arrays, pixel, unit), *solution.statements],
        extra={"sizes": sizes(pixel * of.diameter_px[whole]), "unit": unit},
    )


def rows(
    of: Shapes,
    errors: dict[str, np.ndarray],
    arrays: Arrays,
    edges: tuple[float, float],
    unit: str,
) -> list[dict[str, Any]]:
    """One of each instance; nothing where no error, or no score, is known."""
    pixel = float(np.sqrt(np.prod(edges)))
    lengths = {
        "diameter": ("diameter_px", pixel),
        "longest diameter": ("longest_px", pixel),
        "shortest diameter": ("shortest_px", pixel),
        "area": ("area_px2", pixel**2),
    }
    told = []
    for i in range(len(of.area_px2)):
        row = {"instance": i + 1}
        row |= {
            f"{n} ({unit})": float(p) for n, p in zip("yx", edges * of.place_px[i], strict=True)
        }
        for name, (field, by) in lengths.items():
            of_unit = f"{unit}^2" if name == "area" else unit
            row[f"{name} ({of_unit})"] = float(by * getattr(of, field)[i])
            row[f"{name} sd"] = float(by * errors[field][i]) if errors else None
        for name in ("aspect", "solidity"):
            row[name] = float(getattr(of, name)[i])
            row[f"{name} sd"] = float(errors[name][i]) if errors else None
        row |= {
            "contrast": float(arrays["contrast"][i]),
            "contrast sd": float(arrays["contrast_sd"][i]),
            "score": float(arrays["score"][i]) if errors else None,
            "cut by the edge": bool(of.cut[i]),
        }
        told.append(row)
    return told


def sizes(diameter: Float[np.ndarray, "n"]) -> Float[np.ndarray, "b 4"]:
    """How many there are of each diameter: from, to, number, and its standard deviation, which is
    that of counting, sqrt(n + 1)."""
    if not len(diameter):
        return np.zeros((0, 4))
    number, edges = np.histogram(diameter, min(BINS, 2 + len(diameter) // 4))
    return np.stack([edges[:-1], edges[1:], number, np.sqrt(number + 1.0)], 1)


def _statements(solution: Solution, of: Shapes, arrays: Arrays, pixel, unit):
    count, given = len(of.area_px2), solution.problem.forward.labels
    if not count:
        yield f"There is nothing here that {given or 'the network'} takes for an instance."
        return
    sure = np.abs(arrays["contrast"]) > SURE * arrays["contrast_sd"]
    film = (np.asarray(arrays["labels"]) > 0).mean() >= FILM
    if not film and sure.mean() < 0.5:
        yield (
            f"NOT TO BE TRUSTED: {int((~sure).sum())} of {count} instances have no contrast that "
            "is more than that of the background's noise. Most are noise, most likely: "
            "engine.zoom = 1 or 0.5, or a polarity, may say what is meant."
        )
    bright = int((arrays["contrast"] > 0).sum())
    whose = f"as {given} has it" if given else f"{bright} of them bright, {count - bright} dark"
    yield f"{count} instances, {whose}; {int(of.cut.sum())} are cut by the edge of the image."
    if given is None:
        zooms, number = np.unique(arrays["zoom"], return_counts=True)
        seen = ", ".join(f"{n} at {z:g}" for z, n in zip(zooms, number, strict=True))
        yield f"Seen at zooms (pixels of the network for one of the image): {seen}."
        dy, dx = solution.problem.forward.pixel_nm or (1.0, 1.0)
        if not np.isclose(dy, dx, rtol=SQUARE):
            yield (
                f"Pixels are {dy:.3g} nm high and {dx:.3g} nm wide: sizes are of such, but the "
                "network sees the image as if they were square."
            )
    whole = of.diameter_px[~of.cut]
    if len(whole) > 1:
        mean, spread = pixel * whole.mean(), pixel * whole.std(ddof=1)
        yield (
            f"Diameters of those that are not: {mean:.3g} +- {spread / np.sqrt(len(whole)):.2g} "
            f"{unit} on average, a standard deviation of {spread:.3g} {unit}."
        )
    if not film and 0.5 <= sure.mean() < 1.0:
        yield (
            f"{int((~sure).sum())} of them have less contrast than {SURE:g} standard deviations "
            "of the background over areas of their size: their contrast does not say that these "
            "are instances."
        )
