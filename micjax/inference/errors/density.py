"""The posterior density in the unconstrained coordinates, which samplers and Laplace work in."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Theta, neg_log_joint


def potential(theta: Theta, problem: InverseProblem, x, y) -> Float[Array, ""]:
    """-log p(theta | y) up to a constant: `neg_log_joint` - log |d values / d theta|."""
    values = problem.constrain(theta)
    volumes = (
        jnp.sum(dist.biject_to(p.support).log_abs_det_jacobian(theta[n], values[n]))
        for n, p in problem.unknowns().items()
    )
    return neg_log_joint(theta, problem, x, y) - sum(volumes)
