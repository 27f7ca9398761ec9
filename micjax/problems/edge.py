"""Probe size from a line scan over a sharp edge."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax import Gaussian, InverseProblem, parameter
from micjax.core.problem import drawn_data
from micjax.core.ranges import positive
from micjax.problems.shared.stress import of_curves


class EdgeScan(eqx.Module):
    """A Gaussian probe crosses a step at `edge_nm`: s(x) = height Phi((x - edge_nm) / width_nm)."""

    edge_nm: Float[Array, ""] = parameter()
    width_nm: Float[Array, ""] = parameter()
    height: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, x_nm: Float[Array, "n"]) -> Float[Array, "n"]:
        return self.height * jax.scipy.stats.norm.cdf((x_nm - self.edge_nm) / self.width_nm)


def problem(edge_nm=0.0, width_nm=1.0, sigma=0.05) -> InverseProblem:
    positive(width_nm=width_nm, sigma=sigma)
    return InverseProblem(
        forward=EdgeScan(edge_nm, width_nm),
        noise=Gaussian(sigma),
        priors={
            "forward.edge_nm": dist.Normal(0.0, 5.0),
            "forward.width_nm": dist.LogNormal(0.0, 1.0),
            "noise.sigma": dist.HalfNormal(0.1),
        },
    )


stress = of_curves()


def example(key):
    truth = problem(edge_nm=1.2, width_nm=0.6)
    x_nm = jnp.linspace(-5.0, 5.0, 64)
    return truth, x_nm, drawn_data(truth, x_nm, key)
