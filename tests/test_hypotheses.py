import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jaxtyping import Array
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import micjax
from micjax.active import hypotheses
from micjax.active.gp import process as gp

CANDIDATES = np.linspace(0.0, 2.0, 21)[:, None]
SIGMA, SLOPE = 0.2, 1.5


class Power(eqx.Module):
    """slope x^exponent."""

    slope: Array = micjax.parameter(default=1.0)
    exponent: Array = micjax.parameter(default=1.0)  # one program for all laws

    def __call__(self, x):
        return self.slope * x**self.exponent


def law(exponent):
    """Everything is known but the slope, whose prior is normal: the evidence has a closed form."""
    mean = micjax.InverseProblem(
        Power(1.0, float(exponent)),
        micjax.Gaussian(SIGMA),
        {"forward.slope": dist.Normal(0.0, 2.0)},
    )
    known = {"forward.kernel.lengthscale": None, "forward.kernel.amplitude": None}
    problem = gp.process([0.0], [2.0], mean=mean, priors=known | {"noise.sigma": None})
    return problem.at({"forward.kernel.amplitude": 1e-3, "noise.sigma": SIGMA})


LAWS = {"linear": law(1), "square": law(2)}


def log_evidence(exponent, x, y):
    column = x**exponent
    own = LAWS["linear"].forward.covariance(jnp.asarray(x[:, None]), jnp.asarray(x[:, None]))
    covariance = 4.0 * np.outer(column, column) + SIGMA**2 * np.eye(len(x)) + np.asarray(own)
    return multivariate_normal(np.zeros(len(x)), covariance).logpdf(y)


def begun_and_told(particles):
    """Both laws after three data and, one by one, three more."""
    rng = np.random.default_rng(0)
    x = np.array([0.2, 0.5, 1.0, 1.5, 0.8, 2.0])
    y = SLOPE * x**2 + SIGMA * rng.normal(size=6)
    data = gp.buffered(x[:3, None], y[:3], capacity=8)
    found = hypotheses.begin(LAWS, *data, CANDIDATES, jax.random.key(0), particles=particles)
    first = found
    for i in (3, 4, 5):
        found = hypotheses.tell(found, x[i, None], y[i], jax.random.key(i))
    return first, found, x, y


@pytest.fixture(scope="module")
def told():
    return begun_and_told(64)


@pytest.mark.slow
def test_evidence_has_its_closed_form():
    _, found, x, y = begun_and_told(2048)
    for name, exponent in {"linear": 1, "square": 2}.items():
        exact = log_evidence(exponent, x, y)
        assert hypotheses.log_evidence(found)[name] == pytest.approx(exact, abs=0.2)
    chances = hypotheses.probabilities(found)
    odds = np.exp(log_evidence(2, x, y) - log_evidence(1, x, y))
    assert chances["square"] / chances["linear"] == pytest.approx(odds, rel=0.2)


@pytest.mark.slow
def test_evidence_is_that_of_the_law_that_holds(told):
    """Of few particles: to a twentieth of what lies between the two laws."""
    _, found, x, y = told
    exact = {name: log_evidence(n, x, y) for name, n in {"linear": 1, "square": 2}.items()}
    evidence, chances = hypotheses.log_evidence(found), hypotheses.probabilities(found)
    for name, value in exact.items():
        assert evidence[name] == pytest.approx(value, abs=(exact["square"] - exact["linear"]) / 20)
    assert sum(chances.values()) == pytest.approx(1.0)
    odds = np.exp(evidence["square"] - evidence["linear"])
    assert chances["square"] / chances["linear"] == pytest.approx(float(odds)) and odds > 10.0


def test_the_prediction_is_the_average_of_the_laws(told):
    _, found, *_ = told
    chances = list(hypotheses.probabilities(found).values())
    mean, variance = hypotheses.predict(found)
    means, variances = zip(
        *(hypotheses.streaming.predict(c) for c in found.clouds.values()), strict=True
    )
    second = sum(p * (v + m**2) for p, m, v in zip(chances, means, variances, strict=True))
    expected = sum(p * m for p, m in zip(chances, means, strict=True))
    np.testing.assert_allclose(mean, expected, atol=1e-9)
    np.testing.assert_allclose(variance, second - mean**2, atol=1e-9)


def test_information_is_that_of_the_mixture(told):
    first, *_ = told
    gain = hypotheses.information(first)
    chances = np.array(list(hypotheses.probabilities(first).values()))
    outcomes = [hypotheses.streaming.predict_measured(c) for c in first.clouds.values()]
    z = np.linspace(-20.0, 30.0, 100_001)
    for i in (2, 10, 20):
        each = np.array([norm(m[i], np.sqrt(v[i])).pdf(z) for m, v in outcomes])
        mixture = chances @ each
        tiny = 1e-290
        ratio = np.log(np.maximum(each, tiny) / np.maximum(mixture, tiny))
        expected = chances @ np.trapezoid(each * ratio, z, axis=1)
        assert gain[i] == pytest.approx(expected, abs=2e-3)
    assert gain[0] == pytest.approx(0.0, abs=1e-9)  # at x = 0 both laws say nothing but 0
    assert np.all(gain <= -chances @ np.log(chances) + 1e-9)


def test_a_prior_is_a_prior(told):
    first, *_ = told
    data = first.clouds["linear"].observed, first.clouds["linear"].y
    biased = hypotheses.begin(
        LAWS,
        *data,
        CANDIDATES,
        jax.random.key(0),
        prior={"linear": 3.0, "square": 1.0},
        particles=64,
    )
    odds, before = (
        p["linear"] / p["square"]
        for p in (hypotheses.probabilities(biased), hypotheses.probabilities(first))
    )
    assert odds == pytest.approx(3.0 * before, rel=1e-6)


def test_what_cannot_be_compared():
    data = gp.buffered(np.array([[0.5]]), np.array([1.0]))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="nothing to compare"):
        hypotheses.begin({"linear": LAWS["linear"]}, *data, CANDIDATES, key)
    with pytest.raises(ValueError, match="needs a positive number for each"):
        hypotheses.begin(LAWS, *data, CANDIDATES, key, prior={"linear": 1.0, "cubic": 1.0})


@pytest.mark.parametrize("offset", [0.0, 0.37, 30.0])
def test_information_of_a_sharp_and_a_vague_law(offset):
    """Nodes of the vague one alone would step over the sharp one, or make too much of it."""
    mean, sd = np.array([[0.0], [offset], [1.0]]), np.array([[100.0], [1.0], [0.01]])
    chances = np.array([0.5, 0.3, 0.2])
    y = np.unique(mean + sd * np.linspace(-12, 12, 40001))
    each = norm(mean, sd).logpdf(y)
    mixture = logsumexp(each, axis=0, b=chances[:, None])
    expected = chances @ np.trapezoid(np.exp(each) * (each - mixture), y, axis=1)
    found = hypotheses._information(jnp.asarray(chances), jnp.asarray(mean), jnp.asarray(sd))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
