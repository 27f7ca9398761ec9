"""How `micjax.problems.structure` is solved, and the table of its columns."""

import dataclasses
import logging
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.inference.errors.estimates import NUTS, LaplaceErrors
from micjax.inference.solution import Solution
from micjax.inference.solvers.gauss_newton import FisherScoring
from micjax.inference.stage import Stage
from micjax.problems.structure.model import Scan, Scanned, Series, first_atoms

log = logging.getLogger("micjax")

CHUNK = 2  # steps between two checkpoints
APART = 0.97  # of a probe within half of the box
NEIGHBOURS = (
    "Only {:.1f} % of the probe lies within half of the box: it meets its neighbours. More tiles "
    "along x and y would keep them apart."
)


def stages(
    problem: InverseProblem,
    x: Scan | Series,
    y: Float[Array, "..."],
    *,
    steps: int = 20,
    sampler: Literal["none", "nuts"] = "none",
    samples: int = 300,
    warmup: int = 300,
    chains: int = 1,
) -> list:
    """Fisher scoring from the starting structure; Laplace errors, or draws of the posterior.

    **Arguments:**

    - `steps`: at most.
    - `sampler`: `none`, or `nuts` to sample the posterior from the best values on.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    - `chains`: how many chains.

    **Raises:** `ValueError` for a scan where the problem has images, and the reverse.
    """
    kind = "stem" if isinstance(problem.forward, Scanned) else "hrtem"
    if (kind == "stem") != isinstance(x, Scan):
        raise ValueError(f"data of a {type(x).__name__} for a problem of kind {kind}")
    draws = [NUTS(samples, warmup, chains)] if sampler == "nuts" else []
    return [Stage(FisherScoring(), steps, CHUNK), LaplaceErrors(expected=True), *draws]


def conclude(solution: Solution, x: Scan | Series, y: Float[Array, "..."]) -> Solution:
    """With a row for each column, and whether the probe meets its neighbours."""
    best, metrics = solution.problem, dict(solution.metrics)
    if isinstance(best.forward, Scanned):
        metrics["probe_within_half_box"] = share = float(best.forward.apart())
        if share < APART:
            log.warning(NEIGHBOURS.format(100.0 * share))
    sd = solution.laplace.sd() if solution.laplace else {}
    return dataclasses.replace(solution, metrics=metrics, table=_table(best, sd))


def _table(problem: InverseProblem, sd) -> list[dict[str, Any]]:
    """A row for each column."""
    crystal, first = problem.forward.crystal, first_atoms(problem.forward.crystal.column)
    place = np.asarray(crystal.at_rest().position_A)[first]
    # what is held has no error
    error = sd.get("forward.crystal.shift_A", np.full((len(first), 2), np.nan))
    spread = sd.get("forward.crystal.occupancy", np.full(len(crystal.chosen), np.nan))
    rows = [
        {
            "column": c,
            "Z": crystal.numbers[i],
            "x_A": float(place[c, 0]),
            "x_sd_A": float(error[c, 0]),
            "y_A": float(place[c, 1]),
            "y_sd_A": float(error[c, 1]),
        }
        for c, i in enumerate(first)
    ]
    for k, c in enumerate(crystal.chosen):
        rows[c]["occupancy"] = float(crystal.occupancy[k])
        rows[c]["occupancy_sd"] = float(spread[k])
    return rows
