"""The most probable hyper-parameters: BFGS on the marginal likelihood, from warm starts.

The loop runs on the host around one compiled value and gradient. A fit hands on its inverse
Hessian: after one more datum the next fit begins in the right metric and ends in a few evaluations.
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from micjax.active.gp.process import Observed, buffered
from micjax.core.coordinates import Coordinates
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, Values, neg_log_joint
from micjax.core.tree import replace
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import draw_starts

IMPOSSIBLE = 1e100  # what the optimiser is told where the loss is not finite
FLAT_NATS = 0.02  # a gradient of this many nats per width is no gradient
CLOSE_NATS = 0.01  # what one may miss of the maximum: 0.14 standard deviations off it
FIRST_ON = 256  # a cold fit of more points begins on this many of them


class Template(NamedTuple):
    """A process without its data, taken apart once for all calls of what is compiled for it."""

    leaves: list[Array]
    kind: tuple  # hashable: the rest

    @staticmethod
    def of(problem: InverseProblem) -> "Template":
        arrays, static = eqx.partition(problem, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        others, other_structure = jax.tree.flatten(static)
        return Template(leaves, (structure, tuple(others), other_structure))

    def problem(self) -> InverseProblem:
        structure, others, other_structure = self.kind
        arrays = jax.tree.unflatten(structure, self.leaves)
        return eqx.combine(arrays, jax.tree.unflatten(other_structure, others))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The best hyper-parameters of a process and the way to the next ones."""

    problem: InverseProblem
    loss: float  # minus log posterior density, nats
    metric: Float[np.ndarray, "p p"] | None  # inverse Hessian in unconstrained ones / width
    evaluations: int
    flat: Float[np.ndarray, "p"] = dataclasses.field(repr=False)  # unconstrained
    template: Template = dataclasses.field(repr=False)
    width: Float[np.ndarray, "p"] = dataclasses.field(repr=False)  # units of the unconstrained ones
    of: InverseProblem = dataclasses.field(repr=False)  # the process as it was given


def fit_evidence(
    problem: InverseProblem,
    observed: Observed,
    y: Float[Array, "capacity"],
    *,
    last: Evidence | None = None,
    key: Array | None = None,
    restarts: int = 0,
    evaluations: int = 200,
) -> Evidence:
    """The most probable values of the unknowns of a process (MAP), in float64.

    **Arguments:**

    - `observed`, `y`: as `buffered` makes them.
    - `last`: the fit of the same process before the last data came; starts there.
    - `key`, `restarts`: so many more starts, drawn from the priors.
    - `evaluations`: the most that one start may take.

    **Raises:** `ValueError` when `last` is the fit of another process; `NonFiniteError` when the
    density is finite at none of the starts.
    """
    if last is not None and problem is not last.of and not _same_process(problem, last.of):
        raise ValueError("`last` is the fit of another process: leave it out to begin anew")
    with jax.enable_x64(True):
        observed, y = in_float64((observed, y))
        if last is None:
            last = _begun(problem, in_float64(problem), observed, y, evaluations)
        starts = [last.flat]
        if restarts:
            drawn = draw_starts(key, last.problem, restarts + 1)[1:]
            starts += [np.asarray(_flat_and_widths(last.problem, v)[0]) for v in drawn]
        return _fit(last, observed, y, starts, evaluations)


def _same_process(problem: InverseProblem, other: InverseProblem) -> bool:
    """But for the values of the unknowns, at which a fit may begin anywhere."""
    if problem.priors.keys() != other.priors.keys():
        return False
    return bool(eqx.tree_equal(replace(problem, other.values()), other))


def _begun(
    of: InverseProblem, problem: InverseProblem, observed: Observed, y: Array, evaluations: int
) -> Evidence:
    """Where a cold fit begins: for many points, at what some of them tell."""
    flat, widths = jax.device_get(_flat_and_widths(problem, problem.values()))
    nowhere = Evidence(problem, np.inf, None, 0, flat, Template.of(problem), widths, of)
    count = observed.measured
    if count <= 2 * FIRST_ON:
        return nowhere
    return _fit(nowhere, *_subset(observed, y, count), [flat], evaluations)


def _subset(observed: Observed, y: Array, count: int) -> tuple[Observed, Array]:
    rows = np.linspace(0, count - 1, FIRST_ON).astype(int)
    kept = np.flatnonzero(np.asarray(observed.present) > 0)[rows]
    points, ratio = np.asarray(observed.points)[kept], np.asarray(observed.noise_ratio)[kept]
    return buffered(points, np.asarray(y)[kept], ratio)


def _fit(
    last: Evidence, observed: Observed, y: Array, starts: list[np.ndarray], evaluations: int
) -> Evidence:
    width = last.width

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        return loss_and_gradient(last, z, observed, y)

    best, spent, metric = None, 0, last.metric
    for start in starts:
        descent = _descend(loss, start / width, metric, evaluations)
        spent += descent.nfev
        if best is None or descent.fun < best.fun:
            best = descent
        metric = None  # it belongs to the first start only
    problem, flat = last.problem, width * best.x
    if best.fun < IMPOSSIBLE:
        problem = replace(problem, _constrained(flat, last.template.leaves, last.template.kind))
    else:
        fault = non_finite(problem.unconstrain(problem.values()), problem, observed, y)
        raise NonFiniteError(f"the density is finite at none of {len(starts)} starts: {fault}")
    metric = 0.5 * (best.hess_inv + best.hess_inv.T)
    return dataclasses.replace(
        last, problem=problem, loss=float(best.fun), metric=metric, evaluations=spent, flat=flat
    )


def loss_and_gradient(
    at: Evidence, z: Float[np.ndarray, "p"], observed: Observed, y: Float[Array, "capacity"]
) -> tuple[float, Float[np.ndarray, "p"]]:
    """Minus the log posterior density of physical values, nats, at the unconstrained ones z width
    of the process of `at`, and its slope in z; in float64. `IMPOSSIBLE` where it is not finite."""
    template = at.template
    parts = jax.device_get(
        _value_and_gradient(at.width * z, template.leaves, observed, y, template.kind)
    )
    if not all(np.isfinite(part).all() for part in parts):
        return IMPOSSIBLE, np.zeros_like(z)
    return float(parts[0]), at.width * parts[1]


def _descend(loss, start: np.ndarray, metric: np.ndarray | None, evaluations: int):
    first = value, gradient = loss(start)
    # what a quasi-Newton step would gain: after one more datum mostly nothing worth one
    if metric is not None and 0.5 * gradient @ metric @ gradient < CLOSE_NATS:
        return scipy.optimize.OptimizeResult(x=start, fun=value, hess_inv=metric, nfev=1)

    def known(flat: np.ndarray) -> tuple[float, np.ndarray]:
        return first if np.array_equal(flat, start) else loss(flat)

    with warnings.catch_warnings():
        # where rounding stops the line search the minimum has been reached
        warnings.simplefilter("ignore", RuntimeWarning)
        options = {"gtol": FLAT_NATS, "maxiter": evaluations, "hess_inv0": metric}
        return scipy.optimize.minimize(known, start, jac=True, method="BFGS", options=options)


@eqx.filter_jit
def _flat_and_widths(problem: InverseProblem, values: Values) -> tuple[Array, Array]:
    coordinates = Coordinates(problem)
    return coordinates.vector(problem.unconstrain(values)), coordinates.widths()


# plain jit: what is called at every step, and eqx.filter_jit takes a part of a millisecond to begin
@functools.partial(jax.jit, static_argnums=2)
def _constrained(flat: Array, leaves: list[Array], kind: tuple) -> Values:
    return Coordinates(Template(leaves, kind).problem()).values(flat)


@functools.partial(jax.jit, static_argnums=4)
def _value_and_gradient(flat: Array, leaves: list[Array], observed: Observed, y, kind: tuple):
    problem = Template(leaves, kind).problem()
    coordinates = Coordinates(problem)
    return jax.value_and_grad(lambda v: neg_log_joint(coordinates.theta(v), problem, observed, y))(
        flat
    )
