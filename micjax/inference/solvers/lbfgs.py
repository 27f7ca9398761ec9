"""Limited-memory BFGS: the way down where the objective is smooth, or nearly so.

The two-loop recursion of Nocedal (1980, Math. Comput. 35, 773) with the bisection line search of
Lewis & Overton (2013, Math. Program. 141, 135), which needs no more than descent and survives kinks
and values that are not finite. Each step of the driver is one evaluation.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from micjax.core.coordinates import Coordinates
from micjax.core.problem import parameter
from micjax.inference.solvers.driver import (
    CONVERGED,
    NON_FINITE,
    RUNNING,
    STALLED,
    Solver,
    Step,
    where,
)

SUFFICIENT, CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
FARTHEST = 5.0  # longest step along any coordinate, in its width
TRIALS = 25  # of one line search: 2^-25 is the rounding of float32


class _State(NamedTuple):
    width: Float[Array, "d"]  # the coordinates are measured in it
    here: Float[Array, "d"]  # the last point that was accepted
    loss: Float[Array, ""]
    gradient: Float[Array, "d"]
    steps: Float[Array, "memory d"]  # from point to point, the newest last
    changes: Float[Array, "memory d"]  # of the gradient
    count: Int[Array, ""]  # how many of them there are
    direction: Float[Array, "d"]
    length: Float[Array, ""]  # of the step that is tried, in units of `direction`
    low: Float[Array, ""]  # too short
    high: Float[Array, ""]  # too long
    trials: Int[Array, ""]


class LBFGS(Solver):
    """Unknowns are measured in the widths of their priors, so that units decide nothing.

    **Arguments:**

    - `tolerance`: converged when the quadratic model expects to gain less than this (nats), or
        less than the loss can resolve.
    - `memory`: how many steps the model is made of.
    """

    tolerance: Float[Array, ""] = parameter(default=1e-3)
    memory: int = eqx.field(static=True, default=10)

    goes_first: ClassVar[bool] = False

    def init(self, objective, theta):
        coordinates = Coordinates(objective.problem)
        width = coordinates.widths()
        point = coordinates.vector(theta) / width
        none = jnp.zeros((self.memory, point.size), point.dtype)
        infinite = jnp.asarray(jnp.inf, jax.eval_shape(objective, theta).dtype)
        zero, number = jnp.zeros((), point.dtype), jnp.asarray(0)
        return _State(
            width, point, infinite, 0 * point, none, none, number, 0 * point, zero, zero,
            jnp.full_like(zero, jnp.inf), number,
        )  # fmt: skip

    def step(self, objective, theta, state):
        coordinates = Coordinates(objective.problem)

        def scaled(vector):
            return objective(coordinates.theta(state.width * vector))

        there = state.here + state.length * state.direction
        loss, gradient = jax.value_and_grad(scaled)(there)
        finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient))
        first = ~jnp.isfinite(state.loss)
        slope, old_slope = gradient @ state.direction, state.gradient @ state.direction
        resolution = jnp.finfo(loss.dtype).eps * jnp.abs(loss)
        descends = loss <= state.loss + SUFFICIENT * state.length * old_slope + resolution
        too_long = ~finite | ~(first | descends)
        too_short = ~too_long & ~first & (slope < CURVATURE * old_slope)
        accepted = ~too_long & ~too_short

        low = jnp.where(too_short, state.length, state.low)
        high = jnp.where(too_long, state.length, state.high)
        bisected = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * state.length)
        trying = state._replace(low=low, high=high, length=bisected, trials=state.trials + 1)

        moved = _remembered(state, there, loss, gradient)
        direction, gain = _newton(moved)
        moved = _aimed(moved, direction)
        # from the same point again, as if nothing were known of its curvature
        again = state._replace(count=0 * state.count)
        again = _aimed(again, _newton(again)[0])

        exhausted = trying.trials >= TRIALS
        state = where(accepted, moved, where(exhausted, again, trying))
        settled = accepted & (moved.count > 0) & (gain < jnp.maximum(self.tolerance, resolution))
        stuck = ~accepted & exhausted & (trying.count == 0)
        status = jnp.where(settled, CONVERGED, jnp.where(stuck, STALLED, RUNNING))
        status = jnp.where(first & ~finite, NON_FINITE, status)
        ahead = coordinates.theta(state.width * (state.here + state.length * state.direction))
        return Step(jnp.where(finite, loss, jnp.nan), theta, ahead, state, status)


def _remembered(state: _State, there, loss, gradient) -> _State:
    """At the accepted point; a step along which the curvature is not positive teaches nothing."""
    step, change = there - state.here, gradient - state.gradient
    small = jnp.finfo(step.dtype).eps * jnp.linalg.norm(step) * jnp.linalg.norm(change)
    keep = jnp.isfinite(state.loss) & (step @ change > small)
    size = len(state.steps)
    steps = jnp.roll(state.steps, -1, axis=0).at[-1].set(step)
    changes = jnp.roll(state.changes, -1, axis=0).at[-1].set(change)
    return state._replace(
        here=there,
        loss=loss,
        gradient=gradient,
        steps=jnp.where(keep, steps, state.steps),
        changes=jnp.where(keep, changes, state.changes),
        count=jnp.where(keep, jnp.minimum(state.count + 1, size), state.count),
    )


def _newton(state: _State) -> tuple[Float[Array, "d"], Float[Array, ""]]:
    """-H g by the two-loop recursion, and what the quadratic model gains by it: g H g / 2."""
    size = len(state.steps)
    known = jnp.arange(size) >= size - state.count
    products = jnp.sum(state.steps * state.changes, axis=1)
    inverse = jnp.where(known, 1.0 / jnp.where(known, products, 1.0), 0.0)

    def backwards(q, pair):
        step, change, inverse = pair
        alpha = inverse * (step @ q)
        return q - alpha * change, alpha

    def forwards(r, pair):
        step, change, inverse, alpha = pair
        return r + step * (alpha - inverse * (change @ r)), None

    pairs = (state.steps, state.changes, inverse)
    q, alphas = jax.lax.scan(backwards, state.gradient, pairs, reverse=True)
    last = state.changes[-1]
    norm = jnp.linalg.norm(state.gradient)
    # nothing known yet: a step of one width
    unknown = 1.0 / jnp.where(norm > 0, norm, 1.0)
    curvature = jnp.where(state.count > 0, products[-1] / jnp.maximum(last @ last, 1e-37), unknown)
    r, _ = jax.lax.scan(forwards, curvature * q, (*pairs, alphas))
    return -r, 0.5 * (state.gradient @ r)


def _aimed(state: _State, direction: Float[Array, "d"]) -> _State:
    """Before a line search along `direction`, no longer than `FARTHEST`."""
    longest = jnp.max(jnp.abs(direction))
    direction = direction * jnp.minimum(1.0, FARTHEST / jnp.where(longest > 0, longest, 1.0))
    return state._replace(
        direction=direction,
        length=jnp.ones_like(state.length),
        low=jnp.zeros_like(state.low),
        high=jnp.full_like(state.high, jnp.inf),
        trials=0 * state.trials,
    )
