"""The unknowns as one vector, and the sampler that works on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jaxtyping import Array, Float
from planned_line import KEY, PRIOR, SIGMA, line

import micjax
from micjax.core.coordinates import Coordinates
from micjax.core.problem import neg_log_joint
from micjax.inference.errors.density import potential
from micjax.inference.errors.smc import from_priors


class Many(eqx.Module):
    b: Float[Array, "3"] = micjax.parameter()
    a: Float[Array, ""] = micjax.parameter()

    def __call__(self, x):
        return self.a * jnp.sum(self.b)


@pytest.fixture(scope="module")
def many():
    priors = {"forward.b": dist.Normal(0.0, 3.0), "forward.a": dist.LogNormal(0.0, 2.0)}
    return micjax.InverseProblem(Many([1.0, 2.0, 3.0], 0.5), micjax.Gaussian(1.0), priors)


def test_a_vector_is_in_the_order_of_the_sorted_names(many):
    coordinates = Coordinates(many)
    vector = coordinates.vector()
    np.testing.assert_allclose(vector, [np.log(0.5), 1.0, 2.0, 3.0])
    assert coordinates.owner.tolist() == ["forward.a", *["forward.b"] * 3]
    np.testing.assert_array_equal(coordinates.theta(vector)["forward.b"], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(coordinates.widths(), [1.0, 3.0, 3.0, 3.0])


@pytest.mark.parametrize("prior", [micjax.free(), dist.Cauchy(0.0, 2.0)])
def test_a_prior_without_variance_has_width_1(many, prior):
    np.testing.assert_array_equal(
        Coordinates(many.given({"forward.b": prior})).widths(), np.ones(4)
    )


def test_the_density_of_a_vector_is_that_of_the_samplers(many):
    """log p(theta) = log p(values) + log |d values / d theta|, against the parts by themselves."""
    coordinates, y = Coordinates(many), jnp.asarray(1.0)
    theta = coordinates.theta(jnp.asarray([0.3, -1.0, 0.5, 2.0]))
    likelihood = many.noise(many.at(many.constrain(theta)).forward(None)).log_prob(y)
    expected = -potential(theta, many, None, y) - likelihood
    found = coordinates.log_density(coordinates.vector(theta))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    volume = coordinates.log_volume(coordinates.vector(theta))
    assert float(volume) == pytest.approx(0.3)  # of the one logarithm
    assert float(neg_log_joint(theta, many, None, y)) == pytest.approx(
        float(volume - found - likelihood)
    )


@pytest.mark.slow
def test_particles_from_the_priors_have_the_exact_posterior_and_evidence():
    problem, x = line(), jnp.linspace(-2.0, 2.0, 12)
    truth = problem.at({"forward.a": 2.0, "forward.b": 1.1})
    y = truth.noise(truth.forward(x)).sample(KEY)
    theta, log_evidence = from_priors(problem, x, y, jax.random.key(1), particles=512)
    design, prior_mean = np.stack([np.ones(12), x], 1), np.array([0.3, -0.2])
    covariance = np.linalg.inv(PRIOR + design.T @ design / SIGMA**2)
    mean = covariance @ (PRIOR @ prior_mean + design.T @ y / SIGMA**2)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(theta.mean(axis=0) - mean) < 0.25 * sd)
    np.testing.assert_allclose(theta.std(axis=0), sd, rtol=0.15)
    marginal = scipy.stats.multivariate_normal(
        design @ prior_mean, SIGMA**2 * np.eye(12) + design @ np.linalg.inv(PRIOR) @ design.T
    )
    assert float(log_evidence) == pytest.approx(marginal.logpdf(np.asarray(y)), abs=0.4)
