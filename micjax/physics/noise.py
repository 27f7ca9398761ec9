"""Noise models: a prediction -> the distribution of the data."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import parameter


class Gaussian(eqx.Module):
    """y ~ Normal(prediction, sigma); `sigma`: a number, or an array that broadcasts to y."""

    sigma: Float[Array, "..."] = parameter()

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return dist.Normal(prediction, self.sigma)


class StudentT(eqx.Module):
    """y ~ prediction + sigma * t(degrees_of_freedom): Gaussian noise with outliers."""

    sigma: Float[Array, "..."] = parameter()
    degrees_of_freedom: Float[Array, ""] = parameter(default=4.0)

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return dist.StudentT(self.degrees_of_freedom, prediction, self.sigma)


class Poisson(eqx.Module):
    """Counts y ~ Poisson(dose * prediction); `dose` is counts per unit of prediction."""

    dose: Float[Array, ""] = parameter()

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        # no counts from nothing: log_prob(0) at rate 0 would be 0 * log 0 = NaN
        return dist.Poisson(jnp.maximum(self.dose * prediction, 1e-12))


class HeteroscedasticGaussian(eqx.Module):
    """y ~ Normal(mu, sqrt(sigma^2 + gain * |mu|)), mu = prediction: read-out noise plus shot noise
    of `gain` (signal units per quantum), e.g. a scintillator camera (Foi et al. 2008, eq. 4)."""

    sigma: Float[Array, "..."] = parameter()
    gain: Float[Array, ""] = parameter()

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return dist.Normal(prediction, jnp.sqrt(self.sigma**2 + self.gain * jnp.abs(prediction)))


class AmplitudeGaussian(eqx.Module):
    """y = sqrt(counts) ~ Normal(sqrt(dose * prediction), sigma).

    With sigma = 1/2 the variance-stabilised Poisson law (Anscombe 1948), the usual noise model of
    ptychography. The data handed in are the square roots of the counts.
    """

    dose: Float[Array, ""] = parameter()
    sigma: Float[Array, ""] = parameter(default=0.5)

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        # the square root has no derivative at 0; below 1e-12 counts nothing can be measured
        return dist.Normal(jnp.sqrt(jnp.maximum(self.dose * prediction, 1e-12)), self.sigma)
