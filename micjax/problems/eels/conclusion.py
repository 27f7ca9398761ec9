"""What is told of a map of edges: amounts, ratios, white lines."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import one_pixel
from micjax.inference.solution import Solution
from micjax.problems.eels.model import CoreLoss, LEdge
from micjax.problems.eels.quantification import (
    DENSITY,
    PERCENT,
    areal_densities,
    atomic_percent,
    statements,
    too_many,
)
from micjax.problems.eels.stages import starts
from micjax.problems.eels.thickness import thickness
from micjax.problems.shared.map_conclusion import compare_map, conclude_map
from micjax.problems.shared.map_show import map_figures


def told(model: CoreLoss) -> dict[str, Array]:
    """The ratio of white lines, the atoms of each edge over those of the first, atomic percent."""
    edges, out = model.edges.parts, {}
    first, *others = edges
    for name in others:
        out[f"{name}.atom_ratio"] = edges[name].amount / edges[first].amount
    for name, edge in edges.items():
        if isinstance(edge, LEdge):
            out[f"{name}.l3_to_l2"] = edge.l3_to_l2()
    return out | atomic_percent(model)


def conclude(solution: Solution, x, y) -> Solution:
    """With the maps of all parameters, ratios of white lines, composition, areal densities, the
    thickness."""
    edges = list(solution.problem.forward.pixel.edges.parts)
    solution = conclude_map(
        solution,
        units={PERCENT: "%"},
        derived=told,
        more=lambda every: areal_densities(solution.problem, x, every),
        first=f"edges.{edges[0]}.amount",
    )
    if "quantities" in solution.extra:
        more = [*statements(edges, solution.extra["quantities"])]
        solution = dataclasses.replace(solution, statements=[*solution.statements, *more])
    thick = thickness(solution.problem, x)
    if thick is None or not solution.results:
        return solution
    low, middle, high = np.quantile(thick.data, [0.05, 0.5, 0.95])
    return dataclasses.replace(
        solution,
        results={**solution.results, thick.name: thick},
        statements=[
            *solution.statements,
            f"The low loss says {middle:.3g} mean free paths at the median, {low:.3g} to "
            f"{high:.3g} in nine of ten pixels.",
            *too_many(edges, solution.extra["quantities"], thick),
        ],
    )


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: one value for all pixels, windows on a background, the fits."""
    guess = starts(one_pixel(truth)[0], np.asarray(x), np.asarray(y))
    return compare_map(solution, truth, guess, told)


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps with errors, spectra of some pixels, how the fits ended."""
    edges = solution.problem.forward.pixel.edges.parts
    names = [f"{n}.{DENSITY}" for n in edges]
    if not any(n in solution.extra.get("quantities", {}) for n in names):
        names = [f"edges.{n}.amount" for n in edges]
    names += [
        n for n in told(one_pixel(solution.problem)[0].forward) if not n.endswith("atom_ratio")
    ]
    names += [f"edges.{n}.onset_eV" for n in edges]
    return map_figures(solution, x, y, names, "signal")
