"""Unknowns and their priors as text, for the report and the terminal alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.report.table import number, number_beside

Row = dict[str, Any]


def readable_length(unit: str, far: float) -> tuple[float, str]:
    """What to multiply a length in metres by, and its unit then; other units stay.

    **Arguments:**

    - `far`: the largest number there is.
    """
    if unit == "m" and far < 1e-3:
        return (1e9, "nm") if far < 1e-6 else (1e6, "µm")
    return 1.0, unit


def describe_prior(prior: dist.Distribution) -> str:
    """`LogNormal(3, 0.5)`; an array of numbers is told by its range."""
    if isinstance(prior, dist.ImproperUniform):
        return f"flat, {_constraint(prior.support)}"
    base = getattr(prior, "base_dist", None)
    if base is not None and type(prior).__name__ in ("Independent", "ExpandedDistribution"):
        return describe_prior(base)
    names = list(getattr(prior, "reparametrized_params", [])) or list(prior.arg_constraints)
    parts = [_parameter(getattr(prior, n)) for n in names if hasattr(prior, n)]
    return f"{type(prior).__name__}({', '.join(parts)})"


def _constraint(support: Any) -> str:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__.strip("_").lower()


def _parameter(value: Any) -> str:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.size == 0:
        return "…"
    low, high = float(array.min()), float(array.max())
    return f"{low:.6g}" if low == high else f"{low:.4g}…{high:.4g}"


def unknown_rows(solution: Solution, truth: InverseProblem | None = None) -> list[Row]:
    """A row for each unknown: estimate, how sure it is and by which method, prior, identified."""
    true = {} if truth is None else truth.values()
    spread, quantiles, flags = _spread(solution), _quantiles(solution), _identified(solution)
    problem, rows = solution.problem, []
    for name, prior in problem.unknowns().items():
        value = np.asarray(problem.values()[name])
        row: Row = {"unknown": name}
        if value.size == 1:
            sd = spread.get(name)
            sd = None if sd is None else float(np.asarray(sd).ravel()[0])
            row["estimate"] = number_beside(float(value.ravel()[0]), sd or np.nan)
            row["sd"] = None if sd is None else number(sd, 2)
        else:
            shape = " × ".join(map(str, value.shape))
            row["estimate"] = f"{shape} numbers, {number(value.min())} to {number(value.max())}"
            row["sd"] = _range(spread.get(name))
        if quantiles:
            row["5 % to 95 %"] = _interval(quantiles.get(name)) if value.size == 1 else None
        if truth is not None:
            known = name in true and np.size(true[name]) == 1
            row["truth"] = number(float(np.asarray(true[name]).ravel()[0])) if known else None
        row["prior"] = describe_prior(prior)
        if flags:
            row["identified"] = flags.get(name)
        rows.append(row)
    return rows


def _interval(quantiles: tuple[np.ndarray, np.ndarray] | None) -> str | None:
    if quantiles is None:
        return None
    low, high = (number(float(q.ravel()[0])) for q in quantiles)
    return f"{low} to {high}"


def _range(sd: Any) -> str | None:
    if sd is None:
        return None
    low, high = number(float(np.min(sd)), 2), number(float(np.max(sd)), 2)
    return low if low == high else f"{low} to {high}"


def _spread(solution: Solution) -> Mapping[str, Any]:
    if solution.posterior is not None:
        return solution.posterior.sd()
    return {} if solution.laplace is None else solution.laplace.sd()


def spread_by(solution: Solution) -> str:
    """Where the standard deviations come from."""
    if solution.posterior is not None:
        return "posterior draws"
    return "" if solution.laplace is None else "Laplace approximation"


def held_unknowns(solution: Solution) -> list[str]:
    """The unknowns that the standard deviations leave out."""
    if solution.posterior is not None:
        varied = solution.posterior.draws
    elif solution.laplace is not None:
        varied = solution.laplace.names
    else:
        return []
    return [n for n in solution.problem.unknowns() if n not in varied]


def _quantiles(solution: Solution) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if solution.posterior is None:
        return {}
    both = solution.posterior.quantiles([0.05, 0.95])
    return {n: (np.asarray(q[0]), np.asarray(q[1])) for n, q in both.items()}


def _identified(solution: Solution) -> dict[str, bool]:
    return {} if solution.laplace is None else solution.laplace.identified
