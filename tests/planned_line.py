"""A straight line with Gaussian noise, of which planning can be checked in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax import Gaussian, InverseProblem, parameter
from micjax.active.design.fisher import d_gain

KEY = jax.random.key(0)
SIGMA = 0.5
PRIOR = np.diag([1.5**-2, 0.8**-2])  # precision of a and b
X = np.array([-1.0, 0.2, 0.9])


class Line(eqx.Module):
    """a + b x"""

    a: Float[Array, ""] = parameter()
    b: Float[Array, ""] = parameter()

    def __call__(self, x):
        return self.a + self.b * x


def line(noise=None):
    priors = {"forward.a": dist.Normal(0.3, 1.5), "forward.b": dist.Normal(-0.2, 0.8)}
    return InverseProblem(Line(0.3, -0.2), noise or Gaussian(SIGMA), priors)


def line_information(x):
    design = np.stack([np.ones(len(x)), x], 1)
    return design.T @ design / SIGMA**2


def line_gain(x, names=("forward.a", "forward.b")):
    wanted = [i for i, n in enumerate(("forward.a", "forward.b")) if n in names]
    return float(d_gain(PRIOR + line_information(x), PRIOR, wanted))


def line_draws(count):
    a, b = np.random.default_rng(1).normal(size=(2, count))
    return {"forward.a": 0.3 + 1.5 * jnp.asarray(a), "forward.b": -0.2 + 0.8 * jnp.asarray(b)}
