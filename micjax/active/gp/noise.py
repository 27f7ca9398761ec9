"""Noise models of Gaussian processes, and the distribution of what is measured."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.active.gp.algebra import gaussian_loss, jittered_cholesky, masked
from micjax.active.gp.observed import Observed
from micjax.core.problem import parameter


class Marginal(NamedTuple):
    """The prior of the measured values, which the noise model turns into their distribution."""

    mean: Float[Array, "capacity"]
    covariance: Float[Array, "capacity capacity"]
    observed: Observed


class White(eqx.Module):
    """Gaussian noise of standard deviation `sigma` times the ratio of each point."""

    sigma: Float[Array, ""] = parameter()

    def variances(self, x: Observed) -> Float[Array, "n"]:
        return (self.sigma * x.noise_ratio) ** 2

    def __call__(self, prediction: Marginal) -> "MaskedNormal":
        return _noisy(prediction, self.variances(prediction.observed))


class LogLinear(eqx.Module):
    """Heteroscedastic Gaussian noise: sigma exp(slope . (x - origin) / span) times the ratio."""

    sigma: Float[Array, ""] = parameter()
    slope: Float[Array, "d"] = parameter()
    origin: Float[Array, "d"] = parameter()
    span: Float[Array, "d"] = parameter()

    def variances(self, x: Observed) -> Float[Array, "n"]:
        exponent = (x.points - self.origin) / self.span @ self.slope
        return (self.sigma * jnp.exp(exponent) * x.noise_ratio) ** 2

    def __call__(self, prediction: Marginal) -> "MaskedNormal":
        return _noisy(prediction, self.variances(prediction.observed))


def _noisy(prediction: Marginal, variances: Float[Array, "capacity"]) -> "MaskedNormal":
    present = prediction.observed.present
    return MaskedNormal(prediction.mean, prediction.covariance, variances, present)


class MaskedNormal(dist.Distribution):
    """N(mean, covariance + diag(variances)) of the present values; the others do not count."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("loc", "covariance", "variances", "present")

    def __init__(self, mean, covariance, variances, present):
        self.loc, self.covariance = mean, covariance
        self.variances, self.present = variances, present
        super().__init__(batch_shape=(), event_shape=jnp.shape(mean), validate_args=False)

    def _matrix(self):
        return masked(self.covariance, self.variances, self.present)

    def log_prob(self, value):
        residual = self.present * (value - self.loc)
        normalisation = 0.5 * self.present.sum() * jnp.log(2.0 * jnp.pi)
        return -gaussian_loss(self._matrix(), residual) - normalisation

    def sample(self, key, sample_shape=()):
        z = jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype)
        return self.loc + self.present * (z @ jittered_cholesky(self._matrix())[0].T)
