"""The most probable hyper-parameters: BFGS on the marginal likelihood, from warm starts.

The loop runs on the host around one compiled value and gradient. A fit hands on its inverse
Hessian: after one more datum the next fit begins in the right metric and ends in a few evaluations.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from micjax.active.gp import Observed, buffered, double
from micjax.core.problem import InverseProblem, Theta, Values, neg_log_joint
from micjax.core.tree import replace
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.start import draw_starts

IMPOSSIBLE = 1e12  # what the optimiser is told where the loss is not finite
FLAT_NATS = 0.02  # a gradient of this many nats per unit of the logarithm is no gradient
FIRST_ON = 256  # a cold fit of more points begins on this many of them


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The best hyper-parameters of a process and the way to the next ones."""

    problem: InverseProblem
    loss: float  # minus log posterior density, nats
    metric: Float[np.ndarray, "p p"]  # inverse Hessian in the unconstrained coordinates
    evaluations: int


@double
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
    - `last`: the fit before the last data came; starts there.
    - `key`, `restarts`: so many more starts, drawn from the priors.
    - `evaluations`: the most that one start may take.

    **Raises:** `NonFiniteError` when the density is finite at none of the starts.
    """
    count = int(np.sum(np.asarray(observed.present)))
    starts = [problem.values() if last is None else last.problem.values()]
    if restarts:
        starts += draw_starts(key, problem, restarts + 1)[1:]
    if last is None and count > 2 * FIRST_ON:
        some = _fit(problem, *_subset(observed, y, count), starts, None, evaluations)
        return _fit(problem, observed, y, [some.problem.values()], some.metric, evaluations)
    return _fit(problem, observed, y, starts, None if last is None else last.metric, evaluations)


def _subset(observed: Observed, y: Array, count: int) -> tuple[Observed, Array]:
    rows = np.linspace(0, count - 1, FIRST_ON).astype(int)
    kept = np.flatnonzero(np.asarray(observed.present) > 0)[rows]
    points, ratio = np.asarray(observed.points)[kept], np.asarray(observed.noise_ratio)[kept]
    return buffered(points, np.asarray(y)[kept], ratio)


def _fit(
    problem: InverseProblem,
    observed: Observed,
    y: Array,
    starts: list[Values],
    metric: np.ndarray | None,
    evaluations: int,
) -> Evidence:
    loss = _loss(problem, observed, y)
    best, spent = None, 0
    for start in starts:
        flat = np.asarray(_flat(problem, start))
        found = _descend(loss, flat, metric, evaluations)
        spent += found.nfev
        if best is None or found.fun < best.fun:
            best = found
        metric = None  # it belongs to the first start only
    values = _constrained(best.x, problem)
    if not best.fun < IMPOSSIBLE:
        what = non_finite(problem.unconstrain(values), problem, observed, y)
        raise NonFiniteError(f"the density is finite at none of {len(starts)} starts: {what}")
    return Evidence(
        replace(problem, values),
        float(best.fun),
        0.5 * (best.hess_inv + best.hess_inv.T),
        spent,
    )


def _descend(loss, start: np.ndarray, metric: np.ndarray | None, evaluations: int):
    with warnings.catch_warnings():
        # where rounding stops the line search the minimum has been reached
        warnings.simplefilter("ignore", RuntimeWarning)
        options = {"gtol": FLAT_NATS, "maxiter": evaluations, "hess_inv0": metric}
        return scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options=options)


@eqx.filter_jit
def _flat(problem: InverseProblem, values: Values) -> Float[Array, "p"]:
    return ravel_pytree(problem.unconstrain(values))[0]


def _unravel(flat: Float[Array, "p"], problem: InverseProblem) -> Theta:
    return ravel_pytree(problem.unconstrain(problem.values()))[1](flat)


@eqx.filter_jit
def _constrained(flat: Float[Array, "p"], problem: InverseProblem) -> Values:
    return problem.constrain(_unravel(flat, problem))


def _loss(problem: InverseProblem, observed: Observed, y: Array) -> Callable:
    """The loss and its gradient as a function of NumPy arrays."""
    arrays, static = eqx.partition((problem, observed, y), eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    others, other_structure = jax.tree.flatten(static)
    kind = (structure, tuple(others), other_structure)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = jax.device_get(_value_and_gradient(flat, leaves, kind))
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            return IMPOSSIBLE, np.zeros_like(flat)
        return float(value), gradient

    return loss


@functools.partial(jax.jit, static_argnums=2)
def _value_and_gradient(flat: Array, leaves: list[Array], kind: tuple):
    # plain jit: the loop calls it often, and eqx.filter_jit takes a part of a millisecond to begin
    structure, others, other_structure = kind
    arrays = jax.tree.unflatten(structure, leaves)
    problem, observed, y = eqx.combine(arrays, jax.tree.unflatten(other_structure, others))
    return jax.value_and_grad(lambda v: neg_log_joint(_unravel(v, problem), problem, observed, y))(
        flat
    )
