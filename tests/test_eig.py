"""Expected information gain against closed forms and a long nested run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
from jaxtyping import Array, Float
from planned_line import KEY, X, line, line_draws, line_gain

from micjax import Gaussian, InverseProblem, Poisson, parameter
from micjax.active.design.eig import expected_information, pce
from micjax.active.design.fisher import d_gain, information, prior_information
from micjax.active.design.particles import start
from micjax.problems import resonance


@pytest.mark.parametrize("names", [pytest.param(None, marks=pytest.mark.slow), ["forward.b"]])
def test_information_gain_of_a_line(names):
    found = expected_information(KEY, line(), line_draws(3584), X, names, outer=3584, inner=512)
    wanted = line_gain(X, names or ("forward.a", "forward.b"))
    for bound in (found.lower, found.upper):
        assert abs(bound - wanted) < 0.05 * wanted
    assert found.lower < found.upper and not found.saturated
    assert found.ceiling == pytest.approx(np.log(3584))
    assert found.error < 0.02 * wanted


def test_information_gain_from_weighted_draws():
    """Draws from a wider law, weighted back."""
    wide = {n: v + 0.6 * (v - v.mean()) for n, v in line_draws(2048).items()}
    priors = line().unknowns()
    log_weights = sum(
        priors[n].log_prob(v) - dist.Normal(v.mean(), 1.6 * priors[n].scale).log_prob(v)
        for n, v in wide.items()
    )
    found = expected_information(
        KEY, line(), wide, X, ["forward.b"], log_weights=log_weights, outer=2048, inner=256
    )
    wanted = line_gain(X, ["forward.b"])
    assert abs(found.lower - wanted) < 0.05 * wanted
    assert abs(found.upper - wanted) < 0.05 * wanted
    assert found.ceiling < np.log(2048)


def test_saturation_is_told():
    precise = line(Gaussian(1e-6))
    found = expected_information(KEY, precise, line_draws(64), X, outer=64)
    assert found.saturated and found.lower <= found.ceiling + 1e-9
    assert found.ceiling == pytest.approx(np.log(64))


def test_gradients_with_respect_to_the_design():
    draws = line_draws(16)

    def lower(x):
        return pce(KEY, line(), draws, x, ["forward.b"], outer=8, inner=4)

    def local(x):
        return d_gain(information(line(), x), prior_information(line()), [1])

    for gain in (lower, local):
        slope, eps = jax.grad(gain)(jnp.asarray(X)), 1e-5
        for i in range(len(X)):
            up, down = (gain(jnp.asarray(X).at[i].add(e)) for e in (eps, -eps))
            np.testing.assert_allclose(slope[i], (up - down) / (2 * eps), rtol=1e-4)


class Rate(eqx.Module):
    """exp(a x) counts"""

    a: Float[Array, ""] = parameter()

    def __call__(self, x):
        return jnp.exp(self.a * x)


@pytest.mark.slow
def test_gradient_through_counts():
    """Poisson counts cannot be reparametrised; the exact gain is a sum over all of them."""
    values = np.array([-1.0, 0.2, 0.8, 1.1])
    problem = InverseProblem(Rate(0.0), Poisson(3.0), {"forward.a": dist.Normal(0.0, 1.0)})

    def exact(x):
        rate = 3.0 * jnp.exp(jnp.asarray(values) * x)
        log_p = dist.Poisson(rate[:, None]).log_prob(jnp.arange(120.0))
        mixed = jax.nn.logsumexp(log_p, axis=0) - jnp.log(4.0)
        return jnp.sum(jnp.exp(log_p) * (log_p - mixed)) / 4

    def sampled(key, x):
        draws = {"forward.a": jnp.asarray(values)}
        return pce(key, problem, draws, x[None], outer=20000)

    value, slope = jax.value_and_grad(exact)(jnp.asarray(1.3))
    found, found_slope = jax.value_and_grad(sampled, argnums=1)(KEY, jnp.asarray(1.3))
    np.testing.assert_allclose(found, value, rtol=0.02)
    np.testing.assert_allclose(found_slope, slope, rtol=0.05)


def near_resonance():
    """A resonance known to one width of its line."""
    return resonance.problem(sigma=8.0).given(
        {
            "forward.f0_kHz": dist.Normal(370.0, 3.0),
            "forward.Q": dist.LogNormal(np.log(120.0), 0.2),
            "forward.amplitude": dist.LogNormal(0.0, 0.2),
            "forward.phase_rad": dist.Normal(0.6, 0.3),
            "noise.sigma": None,
        }
    )


def drawn(rng, shape):
    """The same priors in NumPy."""
    return (
        370.0 + 3.0 * rng.normal(size=shape),
        120.0 * np.exp(0.2 * rng.normal(size=shape)),
        np.exp(0.2 * rng.normal(size=shape)),
        0.6 + 0.3 * rng.normal(size=shape),
    )


def response(f0, Q, amplitude, phase, f):
    return amplitude * np.exp(1j * phase) * f0**2 / (f0**2 - f**2 + 1j * f0 * f / Q)


@pytest.mark.slow
@pytest.mark.parametrize("names", [None, ["forward.f0_kHz"]])
def test_resonance_gain_agrees_with_a_long_nested_run(names):
    f, sigma, rng, gain = 368.0, 8.0, np.random.default_rng(0), []
    for _ in range(100):  # blocks of 200 simulated data, each among 4000 fresh draws
        f0, Q, amplitude, phase = drawn(rng, 200)
        own = response(f0, Q, amplitude, phase, f)[:, None]
        y = own + sigma * (rng.normal(size=(200, 1)) + 1j * rng.normal(size=(200, 1)))
        if names:
            own = response(f0[:, None], *drawn(rng, (200, 4000))[1:], f)
        among = response(*drawn(rng, (1, 4000)), f)
        log_p = [-0.5 * np.abs(y - mean) ** 2 / sigma**2 for mean in (own, among)]
        known, mixed = (scipy.special.logsumexp(p, axis=1) - np.log(p.shape[1]) for p in log_p)
        gain.append(known - mixed)
    wanted = np.mean(gain)
    assert np.std(gain) / np.sqrt(np.size(gain)) < 0.01 * wanted
    problem, x = near_resonance(), jnp.array([f])
    draws = start(KEY, problem, x, count=8192).values(problem)
    found = expected_information(KEY, problem, draws, x, names, outer=4096, inner=1024)
    assert abs(found.lower - wanted) < 0.05 * wanted
    assert abs(found.upper - wanted) < 0.05 * wanted
