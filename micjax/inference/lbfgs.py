"""L-BFGS on the flat vector of unknowns, for many short fits of one problem from many starts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Theta, neg_log_joint
from micjax.inference.finite import NonFiniteError, non_finite

FAR = 20.0  # bound of the unconstrained coordinates: exp(20) and its square are still float32


def flat(problem: InverseProblem) -> Float[Array, "d"]:
    """The current values, unconstrained, as one vector."""
    return ravel_pytree(problem.unconstrain(problem.values()))[0]


def named(theta: Float[Array, "d"], problem: InverseProblem) -> Theta:
    """The flat vector as {name: unconstrained array}."""
    return ravel_pytree(problem.unconstrain(problem.values()))[1](theta)


def widths(problem: InverseProblem) -> Float[np.ndarray, "d"]:
    """Standard deviations of the unknowns that may be any real number; 1 for the others, which the
    bijection onto their support has brought to the order of one, and for improper priors."""

    def width(prior, value):
        support = getattr(prior.support, "base_constraint", prior.support)
        if support is not dist.constraints.real or isinstance(prior, dist.ImproperUniform):
            return jnp.ones_like(value)
        return jnp.sqrt(prior.variance)

    at = problem.values()
    found = {n: width(prior, at[n]) for n, prior in problem.unknowns().items()}
    return np.asarray(ravel_pytree(found)[0], float)


def lbfgs(
    theta: Float[Array, "d"],
    problem: InverseProblem,
    x,
    y,
    steps: int,
    scale: float | Float[np.ndarray, "d"] = 1.0,
) -> tuple[float, Float[Array, "d"]]:
    """(loss, theta) after at most `steps`, from `theta`. Compiled once for one set of shapes.

    **Arguments:**

    - `scale`: of the coordinates, which should all be of the order of one after division by it.

    **Raises:** `NonFiniteError` where the loss is not finite.
    """

    def objective(flat):
        loss, gradient = _slope(jnp.asarray(scale * flat, theta.dtype), problem, x, y)
        return float(loss), scale * np.asarray(gradient, float)

    end = scipy.optimize.minimize(
        objective,
        np.asarray(theta, float) / scale,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-FAR, FAR)] * len(theta),
        options={"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-7},
    )
    theta = jnp.asarray(scale * end.x, theta.dtype)
    if not np.isfinite(end.fun):
        wrong = non_finite(named(theta, problem), problem, x, y)
        raise NonFiniteError(f"the loss is not finite: {wrong}")
    return float(end.fun), theta


@eqx.filter_jit
def _slope(theta, problem: InverseProblem, x, y):
    return jax.value_and_grad(lambda t: neg_log_joint(named(t, problem), problem, x, y))(theta)
