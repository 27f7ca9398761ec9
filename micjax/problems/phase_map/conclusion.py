"""What is told of a phase map: maps, a row for each phase, and how sure the number of them is."""

import dataclasses
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float

from micjax.inference.solution import Solution
from micjax.inference.stage import Arrays
from micjax.io import Field, FieldAxis
from micjax.physics.patches.local_spectra import LocalSpectra, window_means
from micjax.physics.patches.mapping import SMOOTHING, borders
from micjax.physics.patches.unmixing.phases import Trial, similarities
from micjax.problems.phase_map.grains import (
    Grain,
    angle_map,
    grains_of,
    strain_map,
    strained,
    turned,
)
from micjax.problems.phase_map.model import SampledPatches
from micjax.problems.phase_map.naming import LEAST_AGREEMENT, Name, named
from micjax.problems.phase_map.stages import templates_of

BORDER = 0.06  # of a cell: standard deviation of where a border is, see experiments/phase_map


def conclude(solution: Solution, x: SampledPatches, y: Float[Array, "n r t"]) -> Solution:
    """With the maps, numbers and sentences of the phases."""
    forward, arrays = solution.problem.forward, solution.fit.arrays
    if "map_phase" not in arrays:
        return solution  # interrupted before
    count = len(templates_of(forward))
    local = forward.polar.local
    phase, grain, angle = (arrays[f"map_{n}"] for n in ("phase", "grain", "angle_rad"))
    border = borders(phase, grain)
    cell_px = forward.cell_A / local.sampling_A
    grains = grains_of(phase, grain, angle, count, cell_px)
    image = np.nan_to_num(np.asarray(x.image, float))
    strains = [strained(image, phase >= 0, forward.polar, g, cell_px) for g in grains]
    grains = [turned(g, s) for g, s in zip(grains, strains, strict=True)]
    degrees = np.rad2deg(angle_map(angle, grains))
    results = {
        "phase": _field(np.where(phase < 0, np.nan, phase), local, "phase", ""),
        "orientation": _field(degrees, local, "orientation", "deg"),
        "border": _field(border, local, "border", ""),
        "image": _field(np.asarray(x.image), local, "image", ""),
        "abundance": _abundance(arrays, count, local, cell_px),
        "probability": _field(arrays["map_probability"], local, "probability", ""),
        "strain": _strain(strain_map(phase.shape, grains, strains), local),
    }
    templates = templates_of(forward)
    names = None if forward.known is None else named(templates, forward.known, forward.polar)
    there = phase >= 0
    metrics = dict(solution.metrics) | {
        "phases": float(count),
        "grains": float(sum(map(len, grains))),
        "no_crystal_fraction": float(np.mean(phase[there] == count)),
        "patches_learnt_from": float(len(y)),
    }
    alike = similarities(templates)
    tried = [Trial(int(t[0]), *map(float, t[1:])) for t in arrays["tried"]]
    return dataclasses.replace(
        solution,
        results=results,
        metrics=metrics,
        table=[
            _row(k, phase, there, grains[k], strains[k], alike)
            | ({} if names is None else _name(names[k]))
            for k in range(count)
        ],
        statements=[
            *_statements(count, tried, len(forward.template)),
            *_doubts(names or []),
            *solution.statements,
        ],
        extra={"tried": tried, "templates": np.asarray(templates)},
    )


def _field(data: np.ndarray, local: LocalSpectra, name: str, unit: str) -> Field:
    axes = (
        FieldAxis(n, 0.1 * local.sampling_A * np.arange(k), "nm")
        for n, k in zip("yx", data.shape, strict=True)
    )
    return Field(data, tuple(axes), unit, name)


def _abundance(arrays: Arrays, count: int, local: LocalSpectra, cell_px: float) -> Field:
    """The share of each phase, and of no crystal, in the window of each patch, and its sd.

    Within a window a border is off by one and the same distance, and pixels that are unsure are
    wrong together.
    """
    phase, second, sure = (arrays[f"map_{n}"] for n in ("phase", "second", "probability"))
    there = phase >= 0
    sure = np.where(there, np.nan_to_num(sure, nan=1.0), 1.0).astype(float)
    shares, sds = [], []
    for k in range(count + 1):
        length = _border_length(phase == k, there, SMOOTHING * cell_px)
        off = BORDER * cell_px * window_means(length, there, local)
        perhaps = (phase == k) | (second == k)
        unsure = window_means(np.where(perhaps, sure * (1.0 - sure), 0.0), there, local)
        shares.append(window_means(phase == k, there, local))
        sds.append(np.hypot(off, unsure))
    axes = (
        FieldAxis(n, 0.1 * local.sampling_A * c, "nm")
        for n, c in zip("yx", local.centres(phase.shape), strict=True)
    )
    phases = FieldAxis("phase", np.arange(count + 1), "")
    errors = {"errors": np.stack(sds)}
    return Field(np.stack(shares), (phases, *axes), "", "abundance", errors)


def _border_length(inside, there, smoothing_px: float) -> Float[np.ndarray, "h w"]:
    """Of the border of a region, for each pixel of area (1 / pixel); the edge of a hole is none."""
    inside, there = (
        scipy.ndimage.gaussian_filter(np.asarray(v, float), smoothing_px, mode="nearest")
        for v in (inside & there, there)
    )
    return np.hypot(*np.gradient(inside / np.maximum(there, 1e-6)))


def _strain(values_and_errors, local: LocalSpectra) -> Field:
    values, errors = values_and_errors
    axes = (
        FieldAxis(n, 0.1 * local.sampling_A * np.arange(k), "nm")
        for n, k in zip("yx", values.shape[1:], strict=True)
    )
    component = FieldAxis("component (yy, xx, yx)", np.arange(3), "")
    return Field(values, (component, *axes), "", "strain", {"errors": errors})


def _row(k: int, phase, there, grains: list[Grain], strains, alike) -> dict[str, Any]:
    degrees = [np.rad2deg(g.angle_rad) for g in grains]
    shown = ", ".join(f"{a:.1f}" for a in degrees[:6]) + (", ..." if len(grains) > 6 else "")
    of_others = [
        (float(np.abs(np.linalg.eigvalsh(s.matrix)).max()), float(np.diag(s.sd).max()))
        for s in strains
        if np.isfinite(s.matrix).all() and s.matrix.any()
    ]
    largest = max(of_others, default=None)
    return {
        "phase": k,
        "area (%)": 100.0 * float(np.mean(phase[there] == k)),
        "grains": len(grains),
        "orientation of the largest (deg)": shown,
        "most strained against the largest (%)": (
            "" if largest is None else "{:.2g} ± {:.1g}".format(*(100.0 * v for v in largest))
        ),
        "most like another one (cosine)": float(alike[k].max()) if len(alike) > 1 else np.nan,
    }


def _name(name: Name) -> dict[str, Any]:
    return {
        "looks like": str(name),
        "probability of it among those given": name.probability,
        "power of reflections that it predicts (%)": 100.0 * name.agreement,
    }


def _doubts(names: list[Name]):
    for k, name in enumerate(names):
        if name.agreement < LEAST_AGREEMENT:
            yield (
                f"Phase {k} is none of the structures that were given: the likeliest, {name}, "
                f"predicts {100.0 * name.agreement:.0f} % of the power of its reflections."
            )
        elif name.rivals:
            yield (
                f"Phase {k} is {name} with a probability of {name.probability:.2f}; it may as well "
                f"be {' or '.join(name.rivals)}."
            )


def _statements(count: int, tried: list[Trial], most: int):
    if not tried:
        yield f"{count} phase{'s' * (count > 1)}, as was asked for."
        return
    more = next((trial for trial in tried if trial.count == count + 1), None)
    if more is None or (count == most and more.adds_to(tried[count - 1])):
        yield f"{count} phases were found, which are as many as were allowed: there may be more."
        return
    share = more.residual / tried[count - 1].residual
    yield (
        f"{count} phase{'s' * (count > 1)}: one more template leaves {100 * share:.0f} % of the "
        "residual of patches that it was not learnt from, is like another one by "
        f"{more.similarity:.2f}, and the rarest of all has {100 * more.least_used:.0f} % of the "
        "patches."
    )
    if more.similarity < 0.85 and share < 0.95:
        yield (
            "The number of phases is not certain: the template that was left out is unlike the "
            "others. Set phases to one more and compare the maps."
        )
