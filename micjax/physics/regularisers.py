"""Regularisers as priors: improper distributions of whole arrays, named like any other prior."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints


class Curvature(dist.Distribution):
    """Surfaces that bend little: log p = -sum [sqrt(l^2 + s^2) - s] / scale, l the Laplacian.

    A Laplace (heavy-tailed) law of the curvature, so that steps and grain boundaries stay; planes
    cost nothing. Improper, for use where the data pin the rest.

    **Arguments:**

    - `scale_nm`: typical |l| in nm per pixel^2; smaller is smoother.
    - `softness_nm`: s, below which the law is Gaussian.
    - `shape`: of the surfaces, `(frames, ny, nx)`.
    """

    arg_constraints = {"scale_nm": constraints.positive, "softness_nm": constraints.positive}
    support = constraints.independent(constraints.real, 3)
    reparametrized_params = ["scale_nm", "softness_nm"]

    def __init__(self, scale_nm, softness_nm, shape: tuple[int, int, int], *, validate_args=None):
        self.scale_nm, self.softness_nm = jnp.asarray(scale_nm), jnp.asarray(softness_nm)
        super().__init__((), tuple(shape), validate_args=validate_args)

    def log_prob(self, value: Float[Array, "frames ny nx"]) -> Float[Array, ""]:
        middle = value[:, 1:-1, 1:-1]
        across = value[:, 1:-1, 2:] + value[:, 1:-1, :-2] - 2 * middle
        down = value[:, 2:, 1:-1] + value[:, :-2, 1:-1] - 2 * middle
        bend = jnp.sqrt((across + down) ** 2 + self.softness_nm**2) - self.softness_nm
        return -jnp.sum(bend) / self.scale_nm
