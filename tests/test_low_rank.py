import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax.active.gp import features as low_rank
from micjax.active.gp import process as gp
from micjax.active.gp import student
from micjax.active.gp.evidence import fit_evidence
from micjax.active.gp.kernels import Categorical, Matern
from micjax.core.problem import log_likelihood

COUNT = 40
GRID = np.linspace(0.0, 1.0, 23)[:, None]


def data(count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(count, 1))
    return points, np.sin(7.0 * points[:, 0]) + 0.1 * rng.normal(size=count)


def process():
    return gp.process([0.0], [1.0]).at(
        {
            "forward.kernel.lengthscale": np.array([0.3]),
            "forward.kernel.amplitude": 0.9,
            "noise.sigma": 0.12,
        }
    )


POINTS, Y = data()
OBSERVED, PADDED = gp.buffered(POINTS, Y)


def test_inducing_points_at_all_data_are_the_exact_process():
    sparse = low_rank.sparse(process(), POINTS)
    exact = log_likelihood(process(), OBSERVED, PADDED)
    assert float(log_likelihood(sparse, OBSERVED, PADDED)) == pytest.approx(float(exact), abs=1e-4)
    found = gp.predict(gp.condition(sparse, OBSERVED, PADDED), GRID)
    for a, b in zip(
        found, gp.predict(gp.condition(process(), OBSERVED, PADDED), GRID), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_fewer_inducing_points_never_promise_more():
    likelihood = eqx.filter_jit(log_likelihood)
    exact = float(likelihood(process(), OBSERVED, PADDED))
    bounds = []
    for count in (3, 8, 24):
        chosen = low_rank.spread_out(process(), POINTS, count)
        bounds.append(float(likelihood(low_rank.sparse(process(), chosen), OBSERVED, PADDED)))
    assert np.all(np.diff(bounds) > 0.0) and bounds[-1] <= exact + 1e-6
    assert exact - bounds[-1] < 0.1 < exact - bounds[0]


@pytest.mark.slow
def test_random_waves_are_bayesian_linear_regression():
    """Rasmussen & Williams 2006, eq. 2.8 and 2.9, for the features themselves."""
    waves = low_rank.fourier(process(), jax.random.key(0), 64)
    phi, at = (np.asarray(waves.forward.features(jnp.asarray(p))) for p in (POINTS, GRID))
    s2 = 0.12**2
    a = phi.T @ phi / s2 + np.eye(phi.shape[1])
    mean = at @ np.linalg.solve(a, phi.T @ Y / s2)
    variance = np.einsum("ij,ji->i", at, np.linalg.solve(a, at.T))
    found = gp.predict(gp.condition(waves, OBSERVED, PADDED), GRID)
    np.testing.assert_allclose(found[0], mean, atol=1e-8)
    np.testing.assert_allclose(found[1], variance, atol=1e-8)
    covariance = phi @ phi.T + s2 * np.eye(COUNT)
    density = dist.MultivariateNormal(jnp.zeros(COUNT), jnp.asarray(covariance)).log_prob(Y)
    found = log_likelihood(waves, OBSERVED, PADDED)
    assert float(found) == pytest.approx(float(density), abs=1e-7)


def test_many_random_waves_are_nearly_the_process():
    waves = low_rank.fourier(process(), jax.random.key(1), 4096)
    covariance = waves.forward.features(jnp.asarray(GRID))
    exact = process().forward.covariance(jnp.asarray(GRID), jnp.asarray(GRID))
    # 1 / sqrt(2048) = 0.022 of the variance, and the largest of 276 numbers
    np.testing.assert_allclose(covariance @ covariance.T, exact, atol=4 * 0.022 * 0.9**2)


@pytest.mark.parametrize("kind", ["sparse", "fourier"])
def test_one_more_datum_is_a_fit_to_all(kind):
    if kind == "sparse":
        problem = low_rank.sparse(process(), POINTS[:9])
    else:
        problem = low_rank.fourier(process(), jax.random.key(0), 64)
    observed, padded = gp.buffered(POINTS[:-1], Y[:-1], capacity=64)
    state = gp.append(gp.condition(problem, observed, padded), POINTS[-1], Y[-1])
    assert state.count == COUNT
    together = gp.condition(problem, OBSERVED, PADDED)
    for a, b in zip(gp.predict(state, GRID), gp.predict(together, GRID), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_full_buffers_grow():
    points, y = data(65)
    sparse = low_rank.sparse(process(), points[:9])
    full = gp.condition(sparse, *gp.buffered(points[:64], y[:64]))
    state = gp.append(full, points[64], float(y[64]))
    assert state.count == 65
    together = gp.condition(sparse, *gp.buffered(points, y))
    for a, b in zip(gp.predict(state, GRID), gp.predict(together, GRID), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    np.testing.assert_allclose(state.y[:65], y)


def test_no_inducing_point_is_chosen_twice():
    """Three places four times: nothing is left after three, and ties are no choice."""
    places = np.repeat([[0.1], [0.5], [0.9]], 4, axis=0) + 1e-17
    rows = np.arange(12.0)
    problem = gp.process(
        [0.0, 0.0], [1.0, 1e9], kernel=Matern(np.array([0.3, 1e9])), priors={"noise.sigma": None}
    )
    chosen = low_rank.spread_out(problem, np.column_stack([places[:, 0], rows]), 12)
    assert sorted(np.asarray(chosen)[:, 1].tolist()) == rows.tolist()


def test_noise_of_each_point_counts():
    ratio = np.linspace(0.5, 3.0, COUNT)
    observed, padded = gp.buffered(POINTS, Y, ratio)
    sparse = low_rank.sparse(process(), POINTS)
    exact = gp.predict(gp.condition(process(), observed, padded), GRID)
    found = gp.predict(gp.condition(sparse, observed, padded), GRID)
    np.testing.assert_allclose(found[0], exact[0], atol=1e-5)


@pytest.mark.slow
def test_hyper_parameters_of_many_points_are_fitted():
    points, y = data(3000, seed=1)
    start = gp.process([0.0], [1.0])
    sparse = low_rank.sparse(start, low_rank.spread_out(start, points, 24))
    buffers = gp.buffered(points, y)
    best = fit_evidence(sparse, *buffers).problem
    assert float(best.noise.sigma) == pytest.approx(0.1, rel=0.06)
    mean, variance = gp.predict(gp.condition(best, *buffers), GRID)
    wrong = mean - np.sin(7.0 * GRID[:, 0])
    assert np.sqrt(np.mean(wrong**2)) < 0.02
    assert np.mean(np.abs(wrong) < 3.0 * np.sqrt(variance)) > 0.9


def test_what_cannot_be_made_low_rank():
    with pytest.raises(ValueError, match="3 inducing points are wanted of 2"):
        low_rank.spread_out(process(), POINTS[:2], 3)
    names = gp.process([0.0], [1.0], kernel=Categorical(1.0), priors={"noise.sigma": None})
    with pytest.raises(ValueError, match="Categorical has no random features"):
        low_rank.fourier(names, jax.random.key(0), 8)

    def own(prediction):
        return gp.White(0.1)(prediction)

    other = gp.process(
        [0.0], [1.0], kernel=Matern(0.3), noise=own, priors={"forward.mean.value": None}
    )
    with pytest.raises(ValueError, match="features know White and LogLinear"):
        low_rank.sparse(other, POINTS[:3])


# --- Student-t noise -----------------------------------------------------------------------------


def test_without_outliers_many_degrees_of_freedom_are_gaussian():
    weighed = student.weigh(process(), OBSERVED, PADDED, 1e6)
    np.testing.assert_allclose(weighed.weights, 1.0, atol=1e-4)
    exact = float(log_likelihood(process(), OBSERVED, PADDED))
    assert float(weighed.bound) == pytest.approx(exact, abs=0.01)


def test_the_bound_is_below_the_evidence():
    """One datum: p(y) = integral of N(f; 0, k) t(y - f), by quadrature."""
    from scipy.stats import norm, t

    f = np.linspace(-8.0, 8.0, 40001)
    for y in (0.0, 0.8, 3.0):
        buffers = gp.buffered(np.array([[0.5]]), np.array([y]))
        prior, law = norm(0.0, 0.9).pdf(f), t(4.0, scale=0.12).pdf(y - f)
        evidence = np.log(np.trapezoid(prior * law, f))
        bound = float(student.weigh(process(), *buffers, 4.0).bound)
        assert evidence - 0.7 < bound <= evidence + 1e-6


def test_an_outlier_weighs_little_and_pulls_little():
    y = Y.copy()
    y[7] += 5.0
    observed, padded = gp.buffered(POINTS, y)
    weighed = student.weigh(process(), observed, padded)
    weights = np.asarray(weighed.weights)[:COUNT]
    assert weights[7] < 0.01 and np.median(weights) > 0.8
    truth = np.sin(7.0 * GRID[:, 0])

    def rms(at):
        mean, _ = gp.predict(gp.condition(process(), at, padded), GRID)
        return np.sqrt(np.mean((mean - truth) ** 2))

    clean, _ = gp.predict(gp.condition(process(), OBSERVED, PADDED), GRID)
    without = np.sqrt(np.mean((clean - truth) ** 2))
    assert rms(weighed.observed) < 1.3 * without < rms(observed)


def test_the_scale_is_fitted_in_spite_of_outliers():
    points, y = data(60, seed=2)
    y[::10] += 3.0 * np.sign(y[::10])
    buffers = gp.buffered(points, y)
    found = student.fit_student(gp.process([0.0], [1.0]), *buffers)
    plain = fit_evidence(gp.process([0.0], [1.0]), *buffers)
    # s of a t law with 4 degrees of freedom that goes with a noise of 0.1, within its error
    assert 0.05 < float(found.evidence.problem.noise.sigma) < 0.15
    states = (
        gp.condition(found.evidence.problem, found.weighed.observed, buffers[1]),
        gp.condition(plain.problem, *buffers),
    )
    truth = np.sin(7.0 * GRID[:, 0])
    errors = [np.sqrt(np.mean((gp.predict(s, GRID)[0] - truth) ** 2)) for s in states]
    assert errors[0] < 0.1 < 0.3 < errors[1]
    again = student.fit_student(gp.process([0.0], [1.0]), *buffers, last=found)
    s = [float(fit.evidence.problem.noise.sigma) for fit in (found, again)]
    assert s[1] == pytest.approx(s[0], rel=0.05)
    with pytest.raises(ValueError, match="it has to be positive"):
        student.fit_student(gp.process([0.0], [1.0]), *buffers, degrees_of_freedom=0.0)


def test_the_weight_of_a_new_datum_is_its_fixed_point():
    for y in (0.1, 2.0):
        weight = student.weight_of(y, 0.0, 0.3**2, 0.1**2)
        # the posterior of f given that weight, and the weight given that posterior
        gain = 0.3**2 / (0.3**2 + 0.1**2 / weight)
        left, variance = (1.0 - gain) * y, (1.0 - gain) * 0.3**2
        assert weight == pytest.approx(5.0 / (4.0 + (left**2 + variance) / 0.1**2), rel=1e-6)
