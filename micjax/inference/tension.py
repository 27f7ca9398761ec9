"""Whether the parts of a joint problem contradict each other about what they share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.stats
from jaxtyping import Array, Float

from micjax.core.coordinates import Coordinates
from micjax.core.joint import JointForward, part, pieces
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, log_likelihood
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.solve import AnySolver, fit
from micjax.inference.solvers.gauss_newton import expected_hessian
from micjax.inference.solvers.lbfgs import LBFGS

TOLD = 0.01  # the p-value below which a tension is told


@dataclasses.dataclass(frozen=True)
class Tension:
    """How much worse the parts are explained together than one by one.

    Where they do not contradict each other, `chi_squared` is distributed as its name says, with
    `degrees_of_freedom`: the numbers that the data of several parts determine. It does not ask
    whether a part is explained at all.
    """

    chi_squared: float
    degrees_of_freedom: float
    p_value: float
    shared: dict[str, dict[str, tuple[float, float]]]  # {name: {part: (value, sd)}}, of numbers

    def statements(self) -> list[str]:
        """What a reader has to know, if anything."""
        if self.p_value >= TOLD:
            return []
        told = "; ".join(
            f"{name}: " + ", ".join(f"{v:.5g} +- {sd:.2g} in {n}" for n, (v, sd) in of.items())
            for name, of in self.shared.items()
        )
        return [
            f"The parts contradict each other (p = {self.p_value:.2g}). Each by itself: {told}."
        ]


def tension(
    problem: InverseProblem,
    x: Mapping[str, Any],
    y: Float[Array, "n"],
    solver: AnySolver | None = None,
    steps: int = 500,
    expected: bool = False,
) -> Tension:
    """Twice the log likelihood that the best values of the parts gain on the joint ones, against
    what noise would give (Raveri & Hu 2019, Phys. Rev. D 99, 043506, eqs. 30 and 36).

    **Arguments:**

    - `problem`: of `micjax.joint`, at its best values.
    - `x`, `y`: its data, of `joint_data`.
    - `solver`, `steps`: for the fits of the parts, which start from the joint values.
    - `expected`: errors by the Hessian that is to be expected of counts, see `LaplaceErrors`.

    **Raises:** `ValueError` for a problem that is not joint, or whose parts share nothing.
    """
    if not isinstance(problem.forward, JointForward):
        raise ValueError("one problem has nothing to contradict: this is for those of micjax.joint")
    if not problem.forward.ties:
        raise ValueError("the parts share nothing, and cannot contradict each other")
    data = pieces(problem, x, y)
    gain, dof = 0.0, -_determined(problem, _errors(problem, x, y, expected))
    shared: dict[str, dict[str, tuple[float, float]]] = {n: {} for n in problem.forward.shared}
    for name, own_x in x.items():
        together = part(problem, name)
        alone = fit(together, own_x, data[name], solver or LBFGS(), steps=steps).problem
        gain += _likelihood(alone, own_x, data[name]) - _likelihood(together, own_x, data[name])
        errors = _errors(alone, own_x, data[name], expected)
        dof += _determined(alone, errors)
        values, sd = alone.values(), errors.sd()
        for n, of, leaf in problem.forward.ties:
            if of == name and values[leaf].size == 1:
                shared[n][name] = float(values[leaf].item()), float(sd[leaf].item())
    # below one half of a number the data of one part determine everything
    dof, chi_squared = max(dof, 0.5), max(2.0 * gain, 0.0)
    p_value = float(scipy.stats.chi2.sf(chi_squared, dof))
    return Tension(chi_squared, dof, p_value, {n: of for n, of in shared.items() if of})


def _errors(problem: InverseProblem, x, y, expected: bool) -> Laplace:
    hessian = expected_hessian(problem, x, y) if expected else None
    return laplace(problem, x, y, hessian=hessian)


def _likelihood(problem: InverseProblem, x, y) -> float:
    with jax.enable_x64(True):
        return float(eqx.filter_jit(log_likelihood)(*in_float64((problem, x, y))))


def _determined(problem: InverseProblem, errors: Laplace) -> float:
    """How many numbers the data determine: all, less those that the priors do."""
    with jax.enable_x64(True):
        prior = np.asarray(_prior_curvature(errors.problem, errors.mean))
    return float(len(errors.mean) - np.sum(errors.covariance * prior))


@eqx.filter_jit
def _prior_curvature(problem: InverseProblem, mean: Array) -> Float[Array, "d d"]:
    coordinates = Coordinates(problem)
    return -jax.hessian(lambda m: coordinates.log_prior(m) + coordinates.log_volume(m))(mean)
