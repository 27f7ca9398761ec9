"""Adam, any other optax transformation, and the minimisers of optimistix."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import optimistix
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.inference.solvers.driver import (
    CONVERGED,
    NON_FINITE,
    RUNNING,
    STALLED,
    Solver,
    Step,
    all_of,
)

_MOMENTS = optax.scale_by_adam()


class Adam(Solver):
    """Adam (Kingma & Ba 2015), its rate in unconstrained coordinates.

    Rate and steps are arrays: another rate is no other program.

    **Arguments:**

    - `rate`: length of a step.
    - `decay_steps`: after so many steps the rate has fallen to nothing, as half a cosine; infinite
        for a constant rate.
    """

    rate: Float[Array, ""] = parameter(default=2e-2)
    decay_steps: Float[Array, ""] = parameter(default=jnp.inf)

    goes_first: ClassVar[bool] = True

    def init(self, objective, theta):
        return _MOMENTS.init(theta)

    def step(self, objective, theta, state):
        loss, gradient = jax.value_and_grad(objective)(theta)
        done = jnp.minimum(state.count / self.decay_steps, 1.0)
        direction, state = _MOMENTS.update(gradient, state)
        rate = 0.5 * self.rate * (1.0 + jnp.cos(jnp.pi * done))
        there = jax.tree.map(lambda t, d: t - (rate * d).astype(t.dtype), theta, direction)
        return Step(loss, theta, there, state, _finite(loss, gradient))


class Optax(Solver):
    """Any optax transformation. One object, one compilation: keep it to fit again."""

    transformation: optax.GradientTransformation

    goes_first: ClassVar[bool] = True

    def init(self, objective, theta):
        return self.transformation.init(theta)

    def step(self, objective, theta, state):
        if _keeps_value_and_gradient(state):
            loss, gradient = optax.value_and_grad_from_state(objective)(theta, state=state)
        else:
            loss, gradient = jax.value_and_grad(objective)(theta)
        updates, state = optax.with_extra_args_support(self.transformation).update(
            gradient, state, theta, value=loss, grad=gradient, value_fn=objective
        )
        there = optax.apply_updates(theta, updates)
        return Step(loss, theta, there, state, _finite(loss, gradient))


def _finite(loss, gradient):
    finite = jnp.isfinite(loss) & all_of(jnp.isfinite, gradient)
    return jnp.where(finite, RUNNING, NON_FINITE)


def _keeps_value_and_gradient(state) -> bool:
    """Line searches have evaluated the next point already."""
    kept = [optax.tree.get_all_with_path(state, key) for key in ("value", "grad")]
    return all(len(pairs) == 1 and pairs[0][1] is not None for pairs in kept)


class Optimistix(Solver):
    """A minimiser of optimistix, which says itself when it has converged."""

    minimiser: optimistix.AbstractMinimiser

    goes_first: ClassVar[bool] = True

    def init(self, objective, theta):
        fn = partial(_with_point, objective)
        out, aux = jax.eval_shape(fn, theta, None)
        return self.minimiser.init(fn, theta, None, {}, out, aux, frozenset())

    def step(self, objective, theta, state):
        fn = partial(_with_point, objective)
        theta, state, (loss, at, evaluated) = self.minimiser.step(
            fn, theta, None, {}, state, frozenset()
        )
        done, result = self.minimiser.terminate(fn, theta, None, {}, state, frozenset())
        finite = jnp.isfinite(loss) & all_of(lambda a: ~jnp.isnan(a), state)
        status = jnp.where(done, CONVERGED, RUNNING)
        status = jnp.where(result == optimistix.RESULTS.successful, status, STALLED)
        status = jnp.where(finite | ~evaluated, status, NON_FINITE)
        return Step(jnp.where(evaluated, loss, jnp.nan), at, theta, state, status)


def _with_point(objective, theta, args):
    """The objective, and beside it the loss, where it was evaluated, and that it was: a solver
    begins with an `aux` of zeros and may hand that out before it has evaluated anything."""
    loss = objective(theta)
    return loss, (loss, theta, jnp.asarray(True))
