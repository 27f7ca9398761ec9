"""Fisher's scoring: the way down for counts, where the unknowns are few and the pixels many.

Derivatives forwards are cheap then, and J^T J / rate is the Hessian that is to be expected.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Theta
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.optimise import Fit

SETTLED = 0.1  # nats: a step that gains less is the last one


class _Local(NamedTuple):
    loss: Float[Array, ""]  # less that of a model that gives the counts themselves
    gradient: Float[Array, "d"]
    fisher: Float[Array, "d d"]
    prior: Float[Array, "d d"]  # Hessian of the prior


def scored(problem: InverseProblem, x, y, steps: int, on_chunk=None) -> Fit:
    """The maximum a posteriori of counts (`problem.noise(...)` has a `rate`), damped as Levenberg
    and Marquardt do; some five steps are enough from a good start.

    **Arguments:**

    - `steps`: at most.
    - `on_chunk`: called as `on_chunk(steps_done, best_loss, best_values)`.

    **Raises:** `NonFiniteError` where the loss is not finite, as for counts that are not whole.
    """
    flat = _flat(problem)
    here, damping, reason = _local(flat, problem, x, y), 1e-2, "steps"
    # the most that any model gives, apart: single precision would hide small gains in the sum
    counts = np.asarray(y, float)
    most = -float(np.sum(scipy.stats.poisson.logpmf(counts, np.maximum(counts, 1e-12))))
    losses = [most + float(here.loss)]
    if not np.isfinite(losses[0]):
        wrong = non_finite(_named(flat, problem), problem, x, y)
        raise NonFiniteError(f"the loss is not finite at the start: {wrong}")
    try:
        for done in range(1, steps + 1):
            there = flat - _step(here, damping)
            new, loss = _local(there, problem, x, y), np.nanmin(losses)
            losses.append(most + float(new.loss))
            if losses[-1] < loss:
                flat, here, damping = there, new, 0.1 * damping
            else:
                damping = 10.0 * damping
            if on_chunk is not None:
                values = problem.constrain(_named(flat, problem))
                on_chunk(done, float(np.nanmin(losses)), values)
            if abs(loss - losses[-1]) < SETTLED:
                reason = "converged"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    best = problem.at(problem.constrain(_named(flat, problem)))
    loss = float(np.nanmin(losses))
    return Fit(
        best, loss, np.asarray(losses), len(losses), reason, np.array([loss]), [best.values()]
    )


def expected_hessian(problem: InverseProblem, x, y) -> Float[Array, "d d"]:
    """Of -log p(theta | y) in the unconstrained coordinates at the current values, the unknowns in
    the order of `problem.unknowns()`: what `laplace` takes in place of its own."""
    flat = _flat(problem)
    here = _local(flat, problem, x, y)
    return here.fisher + here.prior + _volume(flat, problem)


def _step(here: _Local, damping: float) -> Float[Array, "d"]:
    # a prior that is not convex there must not turn the step around
    curvature = here.fisher + jnp.diag(jnp.maximum(jnp.diag(here.prior), 0.0))
    damped = curvature + damping * jnp.diag(jnp.diag(curvature))
    return jnp.linalg.solve(damped, here.gradient)


@eqx.filter_jit
def _local(flat, problem: InverseProblem, x, y) -> _Local:
    """The loss, its gradient, and its expected curvature."""

    def rate(flat):
        at = problem.at(problem.constrain(_named(flat, problem)))
        return at.noise(at.forward(x)).rate.ravel()

    def prior(flat):
        values = problem.constrain(_named(flat, problem))
        return -sum(p.log_prob(values[n]) for n, p in problem.unknowns().items())

    def twice(flat):
        expected = rate(flat)
        return expected, expected

    slope, expected = jax.jacfwd(twice, has_aux=True)(flat)
    counts = y.ravel()
    deviance = jax.scipy.special.xlogy(counts, counts / expected) - (counts - expected)
    loss = prior(flat) + jnp.sum(deviance)
    gradient = (1.0 - counts / expected) @ slope + jax.grad(prior)(flat)
    return _Local(loss, gradient, slope.T @ (slope / expected[:, None]), jax.hessian(prior)(flat))


@eqx.filter_jit
def _volume(flat, problem: InverseProblem) -> Float[Array, "d d"]:
    """Hessian of -log |d values / d theta|."""

    def log_volume(flat):
        theta = _named(flat, problem)
        bijections = {n: dist.biject_to(p.support) for n, p in problem.unknowns().items()}
        return sum(
            jnp.sum(b.log_abs_det_jacobian(theta[n], b(theta[n]))) for n, b in bijections.items()
        )

    return -jax.hessian(log_volume)(flat)


def _flat(problem: InverseProblem) -> Float[Array, "d"]:
    theta = problem.unconstrain(problem.values())
    return ravel_pytree([theta[n] for n in problem.unknowns()])[0]


def _named(flat, problem: InverseProblem) -> Theta:
    names, theta = list(problem.unknowns()), problem.unconstrain(problem.values())
    listed = ravel_pytree([theta[n] for n in names])[1]
    return dict(zip(names, listed(flat), strict=True))
