"""The figures of a problem that brings none, and those which every run has."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.inference.starts.draw import prior_draws
from micjax.report import figures

CONVERGENCE = "Convergence"
Maker = Callable[[], Figure]


def default_figures(
    solution: Solution, x: Any, y: Any, truth: InverseProblem | None = None, data: bool = True
) -> dict[str, Maker]:
    """Makers of the generic figures, by title.

    **Arguments:**

    - `data`: also draw data, prediction and residual.
    """
    makers: dict[str, Maker] = {}
    if data and {"data", "prediction", "residual"} <= set(solution.results):
        draw = {1: _curve, 2: _images}.get(np.ndim(solution.results["data"].data))
        if draw is not None:
            makers["Data and prediction"] = partial(draw, solution)
    scalars = _draws(solution)
    if scalars:
        makers["Posterior"] = partial(_marginals, solution, scalars, truth)
        if 1 < len(scalars) <= 6:
            makers["Correlations"] = partial(_corner, scalars, truth)
    if solution.fit is not None and solution.fit.losses.size:
        fit = solution.fit
        makers[CONVERGENCE] = partial(figures.loss_curve, fit.losses, fit.stop_reason)
    return makers


def _label(axis: Any) -> str:
    return f"{axis.name} ({axis.unit})" if axis.unit else axis.name


def _curve(solution: Solution) -> Figure:
    data, prediction = solution.results["data"], solution.results["prediction"]
    axis = data.axes[0]
    figure = figures.curve_with_residual(
        axis.values,
        np.real(data.data),
        np.real(prediction.data),
        x_label=_label(axis),
        label=f"data ({data.unit})" if data.unit else "data",
    )
    return figures.captioned(figure, "The data, the model at the estimate, and what is left.")


def _images(solution: Solution) -> Figure:
    fields = {n: solution.results[n] for n in ("data", "prediction", "residual")}
    try:
        pixel_nm = fields["data"].pixel_nm
    except ValueError:  # axes without a length
        pixel_nm = None
    unit = fields["data"].unit
    figure = figures.image_row(
        {n: f.data for n, f in fields.items()},
        pixel_nm=pixel_nm,
        label=f"({unit})" if unit else "",
        residuals=("residual",),
    )
    return figures.captioned(
        figure,
        "Data and prediction share one colour range; the residual (data − prediction) has its "
        "own, symmetric about zero.",
    )


def _draws(solution: Solution) -> dict[str, np.ndarray]:
    """Draws of the scalar unknowns, from the posterior or else from the Laplace approximation."""
    if solution.posterior is not None:
        flat = solution.posterior.flat()
    elif solution.laplace is not None and np.any(np.diag(solution.laplace.covariance) > 0):
        flat = solution.laplace.sample(jax.random.key(0), 4000)
    else:
        return {}
    return {n: np.ravel(d) for n, d in flat.items() if np.ndim(d) == 1}


def _marginals(solution: Solution, draws: dict[str, np.ndarray], truth) -> Figure:
    unknowns = solution.problem.unknowns()
    with jax.enable_x64(True):  # the numbers of a prior may be in float64
        prior = {
            n: np.asarray(drawn)
            for n in draws
            if n in unknowns
            and (drawn := prior_draws(unknowns[n], jax.random.key(1), (20_000,))) is not None
        }
    figure = figures.marginals(draws, truth=_true(truth, draws), prior=prior)
    by = "posterior draws (NUTS)" if solution.posterior is not None else "the Laplace approximation"
    return figures.captioned(figure, f"From {by}. A posterior as wide as its prior learnt nothing.")


def _corner(draws: dict[str, np.ndarray], truth) -> Figure:
    return figures.captioned(
        figures.corner(draws, truth=_true(truth, draws)),
        "A narrow tilted cloud: two unknowns which the data tell apart only together.",
    )


def _true(truth: InverseProblem | None, draws) -> dict[str, float]:
    if truth is None:
        return {}
    return {n: float(v) for n, v in truth.values().items() if n in draws and np.size(v) == 1}
