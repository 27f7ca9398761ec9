"""Planning: information matrices, expected information gain, particles, and designs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from jaxtyping import Array, Float

import micjax
from micjax import Gaussian, HeteroscedasticGaussian, InverseProblem, Poisson, parameter
from micjax.active.design import expected, gains, limits, plan
from micjax.active.eig import expected_information, pce
from micjax.active.fisher import (
    a_gain,
    d_gain,
    data_information,
    information,
    learnable,
    log_det,
    metric,
    prior_information,
)
from micjax.active.particles import adopt, choose, row_log_likelihood, start, update
from micjax.active.search import Box
from micjax.problems import resonance

KEY = jax.random.key(0)


class Line(eqx.Module):
    """a + b x"""

    a: Float[Array, ""] = parameter()
    b: Float[Array, ""] = parameter()

    def __call__(self, x):
        return self.a + self.b * x


SIGMA, PRIOR_SD = 0.5, np.array([1.5, 0.8])  # of a and b


def line(noise=None):
    priors = {"forward.a": dist.Normal(0.3, 1.5), "forward.b": dist.Normal(-0.2, 0.8)}
    return InverseProblem(Line(0.3, -0.2), noise or Gaussian(SIGMA), priors)


def line_information(x):
    design = np.stack([np.ones(len(x)), x], 1)
    return design.T @ design / SIGMA**2


PRIOR = np.diag(PRIOR_SD**-2.0)
X = np.array([-1.0, 0.2, 0.9])


# --- information --------------------------------------------------------------------------------


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


# --- expected information gain --------------------------------------------------------------------


def line_gain(x, names=("forward.a", "forward.b")):
    wanted = [i for i, n in enumerate(("forward.a", "forward.b")) if n in names]
    return float(d_gain(PRIOR + line_information(x), PRIOR, wanted))


def line_draws(count):
    a, b = np.random.default_rng(1).normal(size=(2, count))
    return {"forward.a": 0.3 + 1.5 * jnp.asarray(a), "forward.b": -0.2 + 0.8 * jnp.asarray(b)}


@pytest.mark.parametrize("names", [None, ["forward.b"]])
def test_information_gain_of_a_line(names):
    found = expected_information(KEY, line(), line_draws(4096), X, names, outer=4096, inner=512)
    wanted = line_gain(X, names or ("forward.a", "forward.b"))
    for bound in (found.lower, found.upper):
        assert abs(bound - wanted) < 0.05 * wanted
    assert found.lower < found.upper and not found.saturated
    assert found.ceiling == pytest.approx(np.log(4096))
    assert found.error < 0.02 * wanted


def test_information_gain_from_weighted_draws():
    """Draws from a wider law, weighted back."""
    wide = {n: v + 0.6 * (v - v.mean()) for n, v in line_draws(4096).items()}
    priors = line().unknowns()
    log_weights = sum(
        priors[n].log_prob(v) - dist.Normal(v.mean(), 1.6 * priors[n].scale).log_prob(v)
        for n, v in wide.items()
    )
    found = expected_information(
        KEY, line(), wide, X, ["forward.b"], log_weights=log_weights, outer=4096, inner=512
    )
    wanted = line_gain(X, ["forward.b"])
    assert abs(found.lower - wanted) < 0.05 * wanted
    assert abs(found.upper - wanted) < 0.05 * wanted
    assert found.ceiling < np.log(4096)


def test_saturation_is_told():
    precise = line(Gaussian(1e-6))
    found = expected_information(KEY, precise, line_draws(64), X, outer=64)
    assert found.saturated and found.lower <= found.ceiling + 1e-9
    assert found.ceiling == pytest.approx(np.log(64))


def test_gradients_with_respect_to_the_design():
    draws = line_draws(64)

    def lower(x):
        return pce(KEY, line(), draws, x, ["forward.b"], outer=32, inner=16)

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


def known_noise():
    return resonance.problem().given({"noise.sigma": None})


def response(f0, Q, amplitude, phase, f):
    """The oscillator once more, in NumPy."""
    return amplitude * np.exp(1j * phase) * f0**2 / (f0**2 - f**2 + 1j * f0 * f / Q)


def drawn(rng, shape):
    return (
        rng.uniform(300.0, 420.0, shape),
        120.0 * np.exp(0.4 * rng.normal(size=shape)),
        np.exp(0.5 * rng.normal(size=shape)),
        rng.uniform(-np.pi, np.pi, shape),
    )


@pytest.mark.slow
@pytest.mark.parametrize("names", [None, ["forward.f0_kHz"]])
def test_resonance_gain_agrees_with_a_long_nested_run(names):
    f, sigma, rng, gain = 350.0, 8.0, np.random.default_rng(0), []
    for _ in range(200):  # blocks of 200 simulated data, each among 4000 fresh draws
        f0, Q, amplitude, phase = drawn(rng, 200)
        y = response(f0, Q, amplitude, phase, f)
        y = y + sigma * (rng.normal(size=200) + 1j * rng.normal(size=200))
        among = response(*drawn(rng, 4000), f)
        own = response(f0, Q, amplitude, phase, f)[:, None]
        if names:
            own = response(f0[:, None], *drawn(rng, (200, 4000))[1:], f)
        log_p = [-0.5 * np.abs(y[:, None] - mean) ** 2 / sigma**2 for mean in (own, among[None])]
        known, mixed = (scipy.special.logsumexp(p, axis=1) - np.log(p.shape[1]) for p in log_p)
        gain.append(known - mixed)
    wanted = np.mean(gain)
    assert np.std(gain) / np.sqrt(np.size(gain)) < 0.01 * wanted
    particles = start(KEY, known_noise(), jnp.array([f]), count=8192)
    draws = particles.values(known_noise())
    found = expected_information(
        KEY, known_noise(), draws, jnp.array([f]), names, outer=8192, inner=1024
    )
    assert abs(found.lower - wanted) < 0.05 * wanted
    assert abs(found.upper - wanted) < 0.05 * wanted


# --- particles ------------------------------------------------------------------------------------


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
    counts = np.bincount(choose(KEY, log_weights, 1000), minlength=4)
    assert np.all(np.abs(counts - [500, 0, 300, 200]) <= 1)


# --- plans ----------------------------------------------------------------------------------------


def test_the_best_designs_of_a_line():
    """Two points: the ends, for the slope and for both; one point for the offset: the middle."""
    problem, box = line(), Box([-1.0], [1.0])
    particles = start(KEY, problem, X, count=64)
    found = plan(KEY, problem, particles, box, 2)
    np.testing.assert_allclose(np.sort(found.x), [-1.0, 1.0], atol=1e-6)
    assert found.gain == pytest.approx(line_gain(np.array([-1.0, 1.0])), rel=1e-9)
    assert found.ceiling == np.inf
    found = plan(KEY, problem, particles, box, 1, ["forward.a"])
    np.testing.assert_allclose(found.x, [0.0], atol=1e-3)


def test_designs_from_a_list():
    problem, pool = line(), jnp.linspace(-1.0, 1.0, 9)
    particles = start(KEY, problem, X, count=64)
    for measure in ("D", "A"):
        found = plan(KEY, problem, particles, pool, 3, measure=measure)
        designs = [
            np.array(pool)[[i, j, k]] for i in range(9) for j in range(i + 1) for k in range(j + 1)
        ]
        gain = d_gain if measure == "D" else a_gain
        best = max(float(gain(PRIOR + line_information(x), PRIOR, [0, 1])) for x in designs)
        assert found.gain == pytest.approx(best, rel=1e-9)
    alone = gains(KEY, problem, particles, pool)
    np.testing.assert_allclose(alone, [line_gain(np.array([x])) for x in np.array(pool)], rtol=1e-9)


@pytest.mark.slow
def test_a_plan_by_contrast_finds_the_slope():
    problem = line()
    particles = start(KEY, problem, X, count=512)
    box, names = Box([-1.0], [1.0]), ["forward.b"]
    found = plan(KEY, problem, particles, box, 1, names, measure="pce", steps=5)
    np.testing.assert_allclose(np.abs(found.x), [1.0], atol=0.05)
    assert 0.0 < found.gain < 1.2 * line_gain(found.x, names)  # a lower bound
    assert found.ceiling == pytest.approx(np.log(512))


def test_an_adaptive_plan_compiles_once():
    traces = []

    class Counted(Line):
        def __call__(self, x):
            traces.append(1)  # runs when it is traced only
            return super().__call__(x)

    problem = InverseProblem(Counted(0.3, -0.2), Gaussian(SIGMA), line().priors)
    particles, pool, counts = start(KEY, problem, X, count=64), jnp.linspace(-1.0, 1.0, 5), []
    for i in range(5):
        x = plan(jax.random.key(i), problem, particles, pool, 1).x
        particles = update(jax.random.key(i), particles, problem, x, jnp.array([0.1 * i]))
        problem = problem.at({"noise.sigma": 0.5 + 0.01 * i})
        counts.append(len(traces))
    assert counts[1:] == counts[:1] * 4


def test_float32_comes_in_and_float64_goes_out():
    with jax.enable_x64(False):
        problem, x = line(), jnp.asarray([0.5], jnp.float32)
        particles = start(KEY, problem, x, count=64)
        particles = update(KEY, particles, problem, x, jnp.zeros(1, jnp.float32))
        found = plan(KEY, problem, particles, jnp.asarray([[0.1], [0.9]], jnp.float32)[:, 0], 1)
        assert found.x.dtype == particles.log_weights.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(found.x), 0.9, rtol=1e-6)


def test_limits_of_a_space():
    """With all points at x = 0 the slope stays as it was."""
    problem = line()
    particles = start(KEY, problem, X, count=64)
    found = limits(KEY, problem, particles, jnp.zeros(2), 2)
    assert found.identified == {"forward.a": True, "forward.b": False}
    wanted = np.sqrt(1 / (1 + 2 * 1.5**2 / SIGMA**2))
    np.testing.assert_allclose(found.relative_sd["forward.a"], wanted, rtol=1e-6)
    assert [set(d) for d in found.flat_directions] == [{"forward.b"}]
    assert "forward.b: at best 1 of the prior's width, not identifiable" in str(found)
    found = limits(KEY, problem, particles, jnp.array([-1.0, 1.0]), 2)
    assert all(found.identified.values()) and found.flat_directions == []
    covariance = np.linalg.inv(PRIOR + line_information(np.array([-1.0, 1.0])))
    np.testing.assert_allclose(found.sd["forward.b"], np.sqrt(covariance[1, 1]), rtol=1e-6)


def test_what_was_measured_counts():
    """With the offset known from many points the next one is for the slope."""
    problem, x = line(), jnp.zeros(16)
    particles = start(KEY, problem, x, count=256)
    particles = update(KEY, particles, problem, x, jnp.full(16, 0.3))
    assert abs(plan(KEY, problem, particles, jnp.array([0.0, 0.4, -1.0])).x[0]) == 1.0
    after = expected(KEY, problem, particles, jnp.zeros(1))
    np.testing.assert_allclose(
        after.sd["forward.a"], np.sqrt(1 / (1.5**-2 + 17 / SIGMA**2)), rtol=1e-6
    )


def test_wrong_plans_are_refused():
    problem = line()
    particles = start(KEY, problem, X, count=16)
    pool = jnp.linspace(-1.0, 1.0, 3)
    with pytest.raises(ValueError, match="no unknowns: ..forward.c"):
        plan(KEY, problem, particles, pool, names=["forward.c"])
    with pytest.raises(ValueError, match="names is empty"):
        plan(KEY, problem, particles, pool, names=[])
    with pytest.raises(ValueError, match="measure 'E'; there are"):
        plan(KEY, problem, particles, pool, measure="E")
    with pytest.raises(ValueError, match="a box of 2 axes; one row of x has 1"):
        plan(KEY, problem, particles, Box([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="candidates .3, 1."):
        plan(KEY, problem, particles, pool[:, None])
    with pytest.raises(ValueError, match="no design has a finite gain"):
        plan(KEY, problem, particles, pool * jnp.nan)
