"""What planned data say about the unknowns."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jaxtyping import Array, Float
from planned_line import PRIOR, SIGMA, Line, X, line, line_information

import micjax
from micjax import Gaussian, HeteroscedasticGaussian, InverseProblem, parameter
from micjax.active.design.fisher import (
    a_gain,
    d_gain,
    data_information,
    information,
    learnable,
    log_det,
    metric,
    prior_information,
)
from micjax.problems import resonance

DISTRIBUTIONS = {
    "Normal": (lambda e: dist.Normal(*e), (0.3, 1.7)),
    "LogNormal": (lambda e: dist.LogNormal(*e), (0.1, 0.6)),
    "Laplace": (lambda e: dist.Laplace(*e), (0.3, 1.7)),
    "StudentT": (lambda e: dist.StudentT(e[2], e[0], e[1]), (0.3, 1.7, 4.0)),
    "Exponential": (lambda e: dist.Exponential(*e), (1.4,)),
    "Gamma": (lambda e: dist.Gamma(*e), (2.5, 0.7)),
    "Poisson": (lambda e: dist.Poisson(*e), (3.3,)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_information_of_a_distribution_is_the_expected_square_of_its_score(name):
    make, parameters = DISTRIBUTIONS[name]
    noise, parameters = make(parameters), jnp.array(parameters)
    if name == "Poisson":
        y, weight = jnp.arange(80.0), 1.0
    else:  # y = sinh(t): quick where the mass is, far into the tails
        t = jnp.linspace(-12.0, 12.0, 40000)  # without the kink at 0
        positive = not noise.support(-1.0)
        y = jnp.exp(t) if positive else parameters[0] + jnp.sinh(t)
        weight = jnp.exp(t) if positive else jnp.cosh(t)
        weight = weight * (t[1] - t[0])
    score = jax.vmap(jax.jacfwd(lambda e, y: make(e).log_prob(y)), (None, 0))(parameters, y)
    density = jnp.exp(noise.log_prob(y)) * weight
    wanted = jnp.einsum("n,ni,nj->ij", density, score, score)
    eta, found = metric(make(parameters))
    np.testing.assert_allclose(density.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(eta, parameters)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


def test_other_noise_is_refused_by_name():
    with pytest.raises(ValueError, match="Weibull.*Poisson"):
        metric(dist.Weibull(1.0, 2.0))


def test_information_of_a_line_is_that_of_least_squares():
    found = data_information(line(), X, jnp.array([1.0, 0.0, 3.0]))
    np.testing.assert_allclose(found, line_information(X[[0, 2, 2, 2]]), rtol=1e-12)
    np.testing.assert_allclose(prior_information(line()), PRIOR, rtol=1e-12)
    np.testing.assert_allclose(information(line(), X), PRIOR + line_information(X), rtol=1e-12)


def test_information_of_signal_dependent_noise():
    """mu = a + b x, variance v = s^2 + g mu: (1 / v + g^2 / (2 v^2)) J J^T."""
    problem = line(HeteroscedasticGaussian(SIGMA, 0.4)).at({"forward.a": 4.0})
    mu = 4.0 - 0.2 * X
    v = SIGMA**2 + 0.4 * mu
    design = np.stack([np.ones(3), X], 1)
    wanted = design.T @ ((1 / v + 0.4**2 / (2 * v**2))[:, None] * design)
    np.testing.assert_allclose(data_information(problem, X), wanted, rtol=1e-10)


def test_information_agrees_with_the_curvature_of_laplace():
    """With data equal to the prediction the Hessian is the Fisher information (Gaussian noise)."""
    problem = resonance.problem().given({"noise.sigma": None})
    x = jnp.linspace(340.0, 380.0, 21)
    positive = dist.constraints.positive
    flat = {n: micjax.free(positive) for n in problem.priors} | {"forward.phase_rad": micjax.free()}
    errors = micjax.laplace(problem.given(flat), x, problem.forward(x))
    found = learnable(problem.given(flat), x)
    for name, sd in errors.sd().items():
        np.testing.assert_allclose(found.sd[name], sd, rtol=1e-6)
        assert found.identified[name] and found.relative_sd[name] == 0


def test_curvature_of_priors():
    given = {"forward.a": micjax.free(), "forward.b": dist.Laplace(0.0, 2.0)}
    found = np.asarray(prior_information(line().given(given)))
    assert found[0, 0] == 0  # improper
    assert 1 / 8 == pytest.approx(found[1, 1], rel=0.25)  # 1 / variance: the kink has no curvature
    flat = line().given({"forward.a": dist.Uniform(-1.0, 2.0)})
    # the logit of a uniform number is logistic: E[2 s (1 - s)] = 1/3
    assert np.asarray(prior_information(flat))[0, 0] == pytest.approx(1 / 3, rel=0.05)


def test_nuisances_are_integrated_out():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    precision = root @ root.T + np.eye(5)
    covariance = np.linalg.inv(precision)[np.ix_([1, 3], [1, 3])]
    np.testing.assert_allclose(
        log_det(precision, [1, 3]), -np.linalg.slogdet(covariance)[1], rtol=1e-10
    )
    before = np.eye(5)
    np.testing.assert_allclose(
        d_gain(precision, before, [1, 3]), -0.5 * np.linalg.slogdet(covariance)[1], rtol=1e-10
    )
    np.testing.assert_allclose(
        a_gain(precision, before, [1, 3]), -0.5 * np.log(np.trace(covariance) / 2), rtol=1e-10
    )
    scale = np.array([1.0, 0.1, 1.0, 5.0, 1.0])
    wanted = [np.log(np.sum(np.diag(c) / scale[[1, 3]] ** 2)) for c in (np.eye(2), covariance)]
    np.testing.assert_allclose(
        a_gain(precision, before, [1, 3], np.diag(1 / scale)[[1, 3]]),
        0.5 * (wanted[0] - wanted[1]),
        rtol=1e-10,
    )


def test_what_cannot_be_learnt_is_named():
    class Product(Line):
        c: Float[Array, ""] = parameter(default=1.0)

        def __call__(self, x):
            return self.a * self.b * x + 0.0 * self.c

    forward, sd = Product(2.0, 3.0), 0.5
    priors = {"forward.a": dist.LogNormal(np.log(2.0), sd), "forward.c": dist.Normal(0.0, 1.0)}
    problem = InverseProblem(
        forward, Gaussian(1e-3), priors | {"forward.b": dist.LogNormal(np.log(3.0), sd)}
    )
    found = learnable(problem, X)
    # of a and b the quotient stays open: half the variance of the logarithm
    assert found.identified == {"forward.a": True, "forward.b": True, "forward.c": False} or (
        not found.identified["forward.a"] and not found.identified["forward.b"]
    )
    np.testing.assert_allclose(found.relative_sd["forward.a"], np.sqrt(0.5), rtol=1e-3)
    np.testing.assert_allclose(found.sd["forward.a"], 2.0 * sd * np.sqrt(0.5), rtol=1e-3)
    assert found.relative_sd["forward.c"] == pytest.approx(1.0)
    directions = [set(d) for d in found.flat_directions]
    assert {"forward.c"} in directions and {"forward.a", "forward.b"} in directions
    for direction in found.flat_directions:
        assert sum(p**2 for p in direction.values()) == pytest.approx(1.0)
    improper = problem.given({n: micjax.free(p.support) for n, p in problem.unknowns().items()})
    found = learnable(improper, X)
    assert not any(found.identified.values()) and np.isinf(found.sd["forward.a"])
