"""Weighted draws that follow the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jaxtyping import Array, Float
from planned_line import KEY, PRIOR, SIGMA, Line, line, line_draws, line_information

import micjax
from micjax import Gaussian, InverseProblem, parameter
from micjax.active.design.particles import adopt, row_log_likelihood, start, update
from micjax.inference.errors.smc import systematic


def measured(problem, x, truth, key=KEY):
    return truth.noise(truth.forward(x)).sample(key)


def test_particles_follow_the_exact_posterior_and_its_evidence():
    problem = line()
    x = jnp.linspace(-2.0, 2.0, 12)
    y = measured(problem, x, problem.at({"forward.a": 2.0, "forward.b": 1.1}))
    particles = start(KEY, problem, x, count=4096, capacity=8)
    for i in range(0, 12, 4):  # grows past the capacity
        particles = update(jax.random.key(i), particles, problem, x[i : i + 4], y[i : i + 4])
    design, prior_mean = np.stack([np.ones(12), x], 1), np.array([0.3, -0.2])
    covariance = np.linalg.inv(PRIOR + line_information(np.asarray(x)))
    mean = covariance @ (PRIOR @ prior_mean + design.T @ y / SIGMA**2)
    marginal = scipy.stats.multivariate_normal(
        design @ prior_mean, SIGMA**2 * np.eye(12) + design @ np.linalg.inv(PRIOR) @ design.T
    )
    found, sd = particles.mean(problem), particles.sd(problem)
    for i, name in enumerate(("forward.a", "forward.b")):
        wanted = np.sqrt(covariance[i, i])
        assert abs(found[name] - mean[i]) < 0.1 * wanted
        assert abs(sd[name] - wanted) < 0.06 * wanted
    assert abs(particles.log_evidence - marginal.logpdf(np.asarray(y))) < 0.15
    assert particles.present.tolist() == [1.0] * 12 + [0.0] * 4
    assert 0.2 < particles.accepted < 0.9


class Even(eqx.Module):
    """a^2 x: the sign of a stays open"""

    a: Float[Array, ""] = parameter()

    def __call__(self, x):
        return self.a**2 * x


def test_both_modes_are_carried_through_a_sharp_datum():
    problem = InverseProblem(Even(1.0), Gaussian(1e-3), {"forward.a": dist.Normal(0.0, 2.0)})
    x = jnp.array([1.0])
    particles = start(KEY, problem, x, count=2048)
    for i in range(4):
        particles = update(jax.random.key(i), particles, problem, x, jnp.array([4.0]))
    a, weights = particles.values(problem)["forward.a"], np.exp(particles.log_weights)
    assert abs(weights @ (np.asarray(a) > 0) - 0.5) < 0.1
    np.testing.assert_allclose(np.abs(a), 2.0, atol=2e-3)
    wanted = 1e-3 / 2 / 4  # sigma / sqrt(n) / |d a^2 / d a|
    spread = np.sqrt(weights @ (np.abs(a) - weights @ np.abs(a)) ** 2)
    assert abs(spread - wanted) < 0.1 * wanted


def test_draws_of_another_sampler_are_adopted():
    problem, x = line(), jnp.linspace(-2.0, 2.0, 12)
    y = measured(problem, x, problem)
    particles = adopt(problem, line_draws(64), x[:8], y[:8], capacity=4)
    assert particles.present.tolist() == [1.0] * 8
    np.testing.assert_array_equal(particles.x, x[:8])
    np.testing.assert_allclose(particles.values(problem)["forward.a"], line_draws(64)["forward.a"])
    assert particles.effective() == pytest.approx(64)


def test_wrong_data_are_refused():
    problem, x = line(), jnp.linspace(-2.0, 2.0, 4)
    particles = start(KEY, problem, x, count=16)
    with pytest.raises(ValueError, match="y holds NaN or infinity in rows .1.: leave them out"):
        update(KEY, particles, problem, x[:2], jnp.array([0.0, jnp.nan]))
    with pytest.raises(ValueError, match="2 rows of x and 3 of y"):
        update(KEY, particles, problem, x[:2], jnp.zeros(3))
    with pytest.raises(ValueError, match="rows of x have shape .2,. and not .."):
        update(KEY, particles, problem, jnp.zeros((2, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="improper priors of ..forward.b"):
        start(KEY, problem.given({"forward.b": micjax.free()}), x)
    with pytest.raises(ValueError, match="first axis must be the measurements"):
        row_log_likelihood(InverseProblem(jnp.sum, Gaussian(1.0), {}), x, 0.0)
    noise = jax.tree_util.Partial(lambda low: dist.Uniform(low, low + 1.0))
    strict = InverseProblem(Line(0.0, 1.0), noise, {"forward.a": dist.Normal(0.0, 1.0)})
    with pytest.raises(micjax.NonFiniteError, match="no draw explains"):
        update(KEY, start(KEY, strict, x, count=16), strict, x[:1], jnp.array([1e6]))


def test_systematic_resampling_keeps_expectations():
    log_weights = jnp.log(jnp.array([0.5, 0.0, 0.3, 0.2]))
    counts = np.bincount(systematic(KEY, log_weights, 1000), minlength=4)
    assert np.all(np.abs(counts - [500, 0, 300, 200]) <= 1)
