"""Every noise model is the law it says, by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import micjax

MU = np.array([0.2, 1.5, 30.0])
CASES = {
    "Gaussian": (micjax.Gaussian(0.3), stats.norm(MU, 0.3)),
    "StudentT": (micjax.StudentT(0.3), stats.t(4.0, MU, 0.3)),
    "Poisson": (micjax.Poisson(7.0), stats.poisson(7.0 * MU)),
    "HeteroscedasticGaussian": (
        micjax.HeteroscedasticGaussian(0.3, 0.1),
        stats.norm(MU, np.sqrt(0.09 + 0.1 * MU)),
    ),
    "Rician": (micjax.Rician(1.0), stats.rice(MU, scale=1.0)),
    "AmplitudeGaussian": (micjax.AmplitudeGaussian(7.0), stats.norm(np.sqrt(7.0 * MU), 0.5)),
}


@pytest.mark.parametrize("name", CASES)
def test_log_prob_is_scipys(name):
    noise, law = CASES[name]
    y = np.array([1.0, 2.0, 31.0])
    wanted = law.logpmf(y) if name == "Poisson" else law.logpdf(y)
    np.testing.assert_allclose(noise(jnp.asarray(MU)).log_prob(y), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_laws_mean_and_spread(name):
    noise, law = CASES[name]
    draws = noise(jnp.asarray(MU)).sample(jax.random.key(0), (20_000,))
    error = law.std() / np.sqrt(20_000)
    assert np.all(np.abs(np.mean(draws, axis=0) - law.mean()) < 5 * error)
    np.testing.assert_allclose(np.std(draws, axis=0), law.std(), rtol=0.05)


@pytest.mark.parametrize("name", list(CASES)[2:])
def test_the_gradient_is_finite_where_nothing_arrives(name):
    noise, _ = CASES[name]
    gradient = jax.grad(lambda mu: noise(mu).log_prob(jnp.asarray(0.0)))(jnp.asarray(0.0))
    assert jnp.isfinite(gradient)


def test_the_noise_of_each_pixel_may_differ():
    noise = micjax.Gaussian(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(
        noise(jnp.zeros(2)).log_prob(jnp.ones(2)), stats.norm(0, [1.0, 2.0]).logpdf(1.0)
    )


def test_mean_and_variance_of_rice_hold_in_single_precision():
    size, sigma = np.array([0.0, 1e-3, 0.5, 3.0, 7.1, 50.0, 1e4, 1e4]), 1.0
    ours = micjax.Rician(np.float32(1.0))(jnp.asarray(size, jnp.float32))
    # SciPy's own moments fail where sigma is small, those of the series do not
    far = size > 20.0
    law = stats.rice(size[~far], scale=sigma)
    np.testing.assert_allclose(ours.mean[~far], law.mean(), rtol=1e-5)
    np.testing.assert_allclose(ours.variance[~far], law.var(), rtol=2e-3)
    np.testing.assert_allclose(ours.mean[far], size[far] + 0.5 / size[far], rtol=1e-6)
    np.testing.assert_allclose(ours.variance[far], 1.0 - 0.5 / size[far] ** 2, rtol=1e-4)
