"""Noise models: a prediction -> the distribution of the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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


class Rice(dist.Distribution):
    """|size + sigma (n + i m)| with standard normal n and m (Rice 1945, eq. 3.10-11)."""

    arg_constraints = {"size": dist.constraints.real, "sigma": dist.constraints.positive}
    support = dist.constraints.nonnegative
    reparametrized_params = ["size", "sigma"]

    def __init__(self, size, sigma, *, validate_args=None):
        self.size, self.sigma = jnp.broadcast_arrays(size, sigma)
        super().__init__(jnp.shape(self.size), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        drawn = jax.random.normal(key, (2, *sample_shape, *self.batch_shape), self.size.dtype)
        return jnp.hypot(self.size + self.sigma * drawn[0], self.sigma * drawn[1])

    def log_prob(self, value):
        # through exp(-x) I0(x), as I0 itself overflows; no amplitude has a density of 0 at 0
        y = jnp.maximum(value, 1e-6 * self.sigma)
        bessel = jnp.log(jax.scipy.special.i0e(y * self.size / self.sigma**2))
        return (
            jnp.log(y)
            - 2.0 * jnp.log(self.sigma)
            - 0.5 * ((y - jnp.abs(self.size)) / self.sigma) ** 2
            + bessel
        )

    @property
    def mean(self):
        u = 0.25 * (self.size / self.sigma) ** 2
        even, odd = jax.scipy.special.i0e(u), jax.scipy.special.i1e(u)
        return self.sigma * np.sqrt(0.5 * np.pi) * (even + 2.0 * u * (even + odd))

    @property
    def variance(self):
        ratio = (self.sigma / jnp.maximum(jnp.abs(self.size), self.sigma)) ** 2
        # the difference of squares loses its digits where sigma is small
        far = self.sigma**2 * (1.0 - 0.5 * ratio - 0.5 * ratio**2)
        near = 2.0 * self.sigma**2 + self.size**2 - self.mean**2
        return jnp.where(ratio < 0.02, far, near)


class Rician(eqx.Module):
    """Amplitudes of a complex signal, each part of which has Gaussian noise of `sigma`: y = |F|."""

    sigma: Float[Array, "..."] = parameter()

    def __call__(self, prediction: Float[Array, "..."]) -> dist.Distribution:
        return Rice(prediction, self.sigma)
