"""Fisher scoring: the way down where the unknowns are few and the data many.

Derivatives forwards are cheap then, and J^T J with the information of each datum as weights is the
Hessian that is to be expected (least squares for normal noise, over the rate for counts); damped as
Levenberg (1944) and Marquardt (1963) do.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Array, Float

from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem, parameter
from micjax.inference.finite import NonFiniteError
from micjax.inference.solvers.driver import (
    CONVERGED,
    NON_FINITE,
    RUNNING,
    STALLED,
    Solver,
    Step,
    where,
)
from micjax.inference.solvers.laws import LAWS, DataLaw, depends, law_of

FIRST_DAMPING, LARGEST_DAMPING = 1e-2, 1e8


class _Local(NamedTuple):
    loss: Float[Array, ""]  # less that of a model that gives the counts themselves
    gradient: Float[Array, "d"]
    fisher: Float[Array, "d d"]
    prior: Float[Array, "d d"]  # Hessian of -log prior


class _State(NamedTuple):
    here: Float[Array, "d"]
    local: _Local
    damping: Float[Array, ""]


class FisherScoring(Solver):
    """For data of one of the laws of `micjax.inference.solvers.laws`: normal, Poisson, Student's t.

    **Arguments:**

    - `tolerance`: converged when an undamped step is expected to gain less than this (nats).
    """

    tolerance: Float[Array, ""] = parameter(default=1e-3)

    goes_first: ClassVar[bool] = False

    def init(self, objective, theta):
        flat = Coordinates(objective.problem).vector(theta)
        empty = jax.eval_shape(_local, flat, objective.problem, objective.x, objective.y)
        local = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), empty)
        local = local._replace(loss=jnp.full_like(local.loss, jnp.inf))
        return _State(flat, local, jnp.full_like(local.loss, FIRST_DAMPING))

    def offset(self, objective) -> float:
        """What has to be added to the losses: the most that any model gives. Kept apart, because
        single precision would hide small gains in the sum.

        **Raises:** `NonFiniteError` for data that are no counts where counts are needed;
        `ValueError` for a law that is none of these.
        """
        law = _law(objective.problem, objective.x)
        if law == LAWS[dist.Poisson]:
            counts = np.asarray(objective.y, float)
            most = float(np.sum(scipy.stats.poisson.logpmf(counts, np.maximum(counts, 1e-300))))
        else:
            y = jnp.ravel(jnp.asarray(objective.y, float))
            most = float(jnp.sum(law.most(y, *_parameters(objective.problem, objective.x, law))))
        if not np.isfinite(most):
            raise NonFiniteError(
                "the loss is not finite at any values: counts are whole numbers, not below 0, and "
                "other data finite"
            )
        return -most

    def step(self, objective, theta, state):
        coordinates = Coordinates(objective.problem)
        there = coordinates.vector(theta)
        local = _local(there, objective.problem, objective.x, objective.y)
        finite = jnp.isfinite(local.loss) & jnp.all(jnp.isfinite(local.gradient))
        first = ~jnp.isfinite(state.local.loss)
        better = finite & (local.loss < state.local.loss)
        easier = jnp.where(first, FIRST_DAMPING, 0.1 * state.damping)
        moved = _State(there, local, jnp.asarray(easier, local.loss.dtype))
        held = state._replace(damping=10.0 * state.damping)
        state = where(better, moved, held)

        curvature = _curvature(state.local)
        gain = 0.5 * state.local.gradient @ _solved(curvature, state.local.gradient)
        damped = curvature + state.damping * jnp.diag(jnp.diag(curvature))
        ahead = coordinates.theta(state.here - _solved(damped, state.local.gradient))
        stuck = state.damping > LARGEST_DAMPING
        status = jnp.where(stuck, STALLED, RUNNING)
        status = jnp.where(jnp.abs(gain) < self.tolerance, CONVERGED, status)
        status = jnp.where(first & ~finite, NON_FINITE, status)
        return Step(jnp.where(finite, local.loss, jnp.nan), theta, ahead, state, status)


@eqx.filter_jit
def expected_hessian(problem: InverseProblem, x, y) -> Float[Array, "d d"]:
    """Of -log p(theta | y) in the unconstrained coordinates at the current values, in the order of
    their sorted names: what `laplace` takes in place of its own."""
    coordinates = Coordinates(problem)
    local = _local(coordinates.vector(), problem, x, y)
    volume = jax.hessian(coordinates.log_volume)(coordinates.vector())
    return local.fisher + local.prior - volume


def _curvature(local: _Local) -> Float[Array, "d d"]:
    # a prior that is not convex there must not turn the step around
    return local.fisher + jnp.diag(jnp.maximum(jnp.diag(local.prior), 0.0))


def _solved(matrix: Float[Array, "d d"], vector: Float[Array, "d"]) -> Float[Array, "d"]:
    """Each unknown measured in its own curvature: single precision knows no other units."""
    own = jnp.diag(matrix)
    scale = jnp.where(own > 0, own, 1.0) ** -0.5
    return scale * jnp.linalg.solve(matrix * scale[:, None] * scale, scale * vector)


def _local(flat, problem: InverseProblem, x, y) -> _Local:
    """The loss, its gradient, and its expected curvature."""
    coordinates = Coordinates(problem)

    law, y = _law(problem, x), jnp.ravel(jnp.asarray(y, float))

    def prior(flat):
        return -coordinates.log_prior(flat)

    def parameters(flat):
        return _parameters(coordinates.at(flat), x, law)

    def twice(flat):
        values = parameters(flat)
        return [v for v, f in zip(values, free, strict=True) if f], values

    free = depends(parameters, flat)
    slopes, values = jax.jacfwd(twice, has_aux=True)(flat)
    scores = [s for s, f in zip(law.scores(y, *values), free, strict=True) if f]
    whitened = [score.root[:, None] * slope for score, slope in zip(scores, slopes, strict=True)]
    return _Local(
        prior(flat) + jnp.sum(law.misfit(y, *values)),
        sum(s.residual @ w for s, w in zip(scores, whitened, strict=True)) + jax.grad(prior)(flat),
        sum(w.T @ w for w in whitened),
        jax.hessian(prior)(flat),
    )


def _law(problem: InverseProblem, x) -> DataLaw:
    """Joint data are counts where those of all parts are.

    **Raises:** `ValueError` for a distribution that is none of the laws.
    """
    law = eqx.filter_eval_shape(lambda p: p.noise(p.forward(x)), problem)
    return LAWS[dist.Poisson] if hasattr(law, "rate") else law_of(law)


def _parameters(problem: InverseProblem, x, law: DataLaw) -> tuple[Array, ...]:
    """Of the law, a number for each datum."""
    of = problem.noise(problem.forward(x))
    values = [getattr(of, n) for n in law.parameters]
    shape = jnp.broadcast_shapes(*map(jnp.shape, values))
    return tuple(jnp.ravel(jnp.broadcast_to(v, shape)) for v in values)
