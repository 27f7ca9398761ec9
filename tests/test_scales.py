"""The same data times 1e-12 and 1e12, or in other units of the axes, give the same answer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import micjax
from micjax.active import streaming
from micjax.active.acquire import hypervolume as H
from micjax.active.acquire import values as acquisition
from micjax.active.acquire.batch import greedy_improvement
from micjax.active.acquire.scalarise import scale_of, spread
from micjax.active.design import eig, fisher, particles
from micjax.active.gp import features as low_rank
from micjax.active.gp import process as gp
from micjax.active.gp import student
from micjax.active.gp.evidence import fit_evidence
from micjax.active.learner.belief import physical_model
from micjax.active.learner.cost import (
    Cost,
    _nearest_neighbours,
    per_second_of_detour,
    tour,
    travel_s,
)
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space

UNITS = [1e-12, 1e12]
X = np.sort(np.random.default_rng(0).uniform(size=(20, 1)), axis=0)
Y = np.sin(6.0 * X[:, 0])
NOISY = Y + 0.05 * np.random.default_rng(1).normal(size=20)
GRID = np.linspace(0.0, 1.0, 11)[:, None]


def process(unit=1.0, x_unit=1.0, sigma=1e-3):
    """Y in units of `unit`, X in units of `x_unit`, with the noise of precise data."""
    at = {
        "noise.sigma": sigma * unit,
        "forward.kernel.lengthscale": np.array([0.3]),
        "forward.kernel.amplitude": 1.3 * unit,
    }
    return gp.process([0.0], [x_unit], y_scale=unit).at(at)


def same(found, expected, unit, rtol=1e-6):
    for f, e, power in zip(found, expected, (1, 2), strict=True):
        np.testing.assert_allclose(
            np.asarray(f) / unit**power, e, rtol=rtol, atol=rtol * np.abs(e).max()
        )


# --- processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("x_unit", [1.0, 1e-9])
@pytest.mark.parametrize("unit", UNITS)
def test_a_posterior_is_that_of_numpy_in_any_unit(unit, x_unit):
    """Against dense NumPy at a noise of 1e-3, which a jitter of 1e-9 would change by 8e-5."""
    p = process()
    k = np.asarray(p.forward.covariance(jnp.asarray(X), jnp.asarray(X))) + 1e-6 * np.eye(20)
    across = np.asarray(p.forward.covariance(jnp.asarray(X), jnp.asarray(GRID)))
    mean = across.T @ np.linalg.solve(k, Y)
    variance = 1.3**2 - np.sum(across * np.linalg.solve(k, across), axis=0)
    state = gp.condition(process(unit, x_unit), *gp.buffered(x_unit * X[:-1], unit * Y[:-1]))
    assert not state.singular
    state = gp.append(state, x_unit * X[-1], unit * Y[-1])
    same(gp.predict(state, x_unit * GRID), (mean, variance), unit)
    q = process(unit, x_unit)
    buffers = gp.buffered(x_unit * X, unit * Y)
    found = float(q.noise(q.forward(buffers[0])).log_prob(buffers[1])) + 20 * np.log(unit)
    expected = -0.5 * (Y @ np.linalg.solve(k, Y) + np.linalg.slogdet(k)[1] + 20 * np.log(2 * np.pi))
    assert found == pytest.approx(expected, abs=1e-5)


def test_full_buffers_and_masked_rows_are_one_answer():
    """Free rows have no share in what rounding asks for."""
    p, y = process(1e-9), 1e-9 * Y
    full = gp.condition(p, *gp.buffered(X, y, capacity=20))
    free = gp.condition(p, *gp.buffered(X, y, capacity=64))
    same(gp.predict(free, GRID), gp.predict(full, GRID), 1.0)


@pytest.mark.parametrize("unit", UNITS)
def test_a_singular_matrix_takes_a_share_of_its_variance_and_says_so(unit):
    twice = np.repeat(X[::4], 2, axis=0)
    p = process(unit, sigma=0.0)
    state = gp.condition(p, *gp.buffered(twice, unit * np.repeat(Y[::4], 2)))
    assert state.singular and float(state.jitter) < 1e-9
    mean, _ = gp.predict(state, X[::4])
    np.testing.assert_allclose(mean / unit, Y[::4], atol=1e-6)
    told = gp.append(gp.condition(p, *gp.buffered(X[::4], unit * Y[::4])), X[0], unit * Y[0])
    assert told.singular
    np.testing.assert_allclose(gp.predict(told, X[::4])[0] / unit, Y[::4], atol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_hyper_parameters_are_fitted_in_any_unit(unit):
    def found(u):
        fit = fit_evidence(process(u, sigma=0.1), *gp.buffered(X, u * (Y + 7.0)))
        values = fit.problem.values()
        return [float(values[n]) / u for n in ("forward.mean.value", "noise.sigma")]

    np.testing.assert_allclose(found(unit), found(1.0), rtol=1e-3)


@pytest.mark.parametrize("unit", UNITS)
def test_inducing_points_and_outliers_in_any_unit(unit):
    def found(u):
        sparse = low_rank.sparse(process(u, sigma=0.05), X[::3])
        state = gp.condition(sparse, *gp.buffered(X[:-1], u * Y[:-1]))
        known = gp.predict(gp.append(state, X[-1], u * Y[-1]), GRID)
        y = Y + 3.0 * (np.arange(20) == 7)
        weights = student.weigh(process(u, sigma=0.05), *gp.buffered(X, u * y)).weights
        chosen = low_rank.spread_out(process(u), X, 8)
        return known, weights, chosen

    (known, weights, chosen), (expected, of_one, at_one) = found(unit), found(1.0)
    same(known, expected, unit)
    np.testing.assert_allclose(weights, of_one, rtol=1e-5)
    np.testing.assert_array_equal(chosen, at_one)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_particles_of_processes_and_laws_in_any_unit(unit):
    def found(u):
        priors = {"forward.kernel.lengthscale": None, "forward.kernel.amplitude": None}
        p = gp.process([0.0], [1.0], y_scale=u, priors=priors)
        data = gp.buffered(X, u * (Y + 0.5))
        cloud = streaming.begin(p, *data, GRID, jax.random.key(0), particles=32)
        cloud = streaming.tell(cloud, [0.5], 0.6 * u, jax.random.key(1))
        return streaming.predict(cloud), streaming.log_expected_improvement(
            cloud, 1.2 * u
        ) - np.log(u)

    (known, gain), (expected, gain_of_one) = found(unit), found(1.0)
    same(known, expected, unit)
    np.testing.assert_allclose(gain, gain_of_one, rtol=1e-5)


class Line(eqx.Module):
    slope: jax.Array = micjax.parameter(default=0.0)
    offset: jax.Array = micjax.parameter(default=0.0)

    def __call__(self, x):
        return self.offset + self.slope * x


def line(unit, x_unit=1.0):
    priors = {
        "forward.offset": dist.Normal(0.0, unit),
        "forward.slope": dist.Normal(0.0, unit / x_unit),
    }
    return micjax.InverseProblem(Line(0.0, 0.0), micjax.Gaussian(0.1 * unit), priors)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_particles_of_a_law_and_its_information_in_any_unit(unit):
    """Offset and slope in units that are 1e12 and more apart, too."""
    x, key = jnp.array([0.2, 0.9]), jax.random.key(0)

    def found(u, x_unit):
        p = line(u, x_unit)
        known = particles.start(key, p, x * x_unit, count=128)
        known = particles.update(key, known, p, x * x_unit, u * jnp.array([0.4, -0.3]))
        told = eig.expected_information(
            key, p, known.values(p), x * x_unit, ["forward.slope"], outer=16, inner=16
        )
        can = fisher.learnable(p, x * x_unit)
        sd = known.sd(p)
        return [
            sd["forward.offset"] / u,
            sd["forward.slope"] / u * x_unit,
            told.lower,
            can.relative_sd["forward.slope"],
            can.relative_sd["forward.offset"],
        ]

    expected = found(1.0, 1.0)
    np.testing.assert_allclose(found(unit, 1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(found(1.0, unit), expected, rtol=1e-5)


# --- acquisitions ------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e12, pytest.param(1e-12, marks=pytest.mark.slow)])
def test_acquisitions_in_any_unit(unit):
    rng = np.random.default_rng(1)
    mean, sd, draws = rng.normal(size=6), rng.uniform(0.1, 1.0, 6), rng.normal(size=(32, 6))
    root = rng.normal(size=(6, 6))

    @jax.jit
    def smooth(u):
        covariance = jnp.asarray(u**2 * root @ root.T)
        return {
            "ei": acquisition.log_expected_improvement(u * mean, u * sd, u) - jnp.log(u),
            "pi": acquisition.log_probability_of_improvement(u * mean, u * sd, u),
            "ucb": acquisition.upper_confidence_bound(u * mean, u * sd) / u,
            "mes": acquisition.max_value_entropy(u * mean, u * sd, u * jnp.array([1.0, 2.0])),
            "straddle": acquisition.straddle(u * mean, u * sd, 0.3 * u) / u,
            "knowledge": acquisition.knowledge_gradient(u * mean, covariance, u * sd) / u,
        }

    def worth(u):
        return smooth(jnp.asarray(u)) | {
            "feasible": acquisition.log_feasibility(u * mean, u * sd, 0.0, u),
            "level": acquisition.level_of_best(u * mean, u * sd, u * mean, 3) / u,
            "greedy": greedy_improvement(u * draws, 0.5 * u, True, 3),
            "volume": H.greedy_hypervolume(
                np.stack([u * draws, draws], -1), np.array([[u, 1.0]]), np.zeros(2), True, 3
            ),
        }

    found = worth(unit)
    for name, expected in worth(1.0).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def test_the_volume_of_three_small_objectives_does_not_underflow():
    draws = np.random.default_rng(0).normal(size=(8, 4, 3))
    boxes = H.boxes_beyond(1e-120 * np.full((1, 1, 3), 0.1), np.zeros(3))
    small = H.log_hypervolume_improvement(1e-120 * jnp.asarray(draws), boxes, np.full(3, 1e-120))
    boxes = H.boxes_beyond(np.full((1, 1, 3), 0.1), np.zeros(3))
    expected = H.log_hypervolume_improvement(jnp.asarray(draws), boxes, np.ones(3))
    np.testing.assert_allclose(small - 3 * np.log(1e-120), expected, rtol=1e-6)


# --- scales, costs, the learner ----------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-300, 1e-12, 1e12, 1e290])
@pytest.mark.parametrize("kind", ["robust", "linear"])
def test_outcomes_of_any_size_have_the_same_scale(unit, kind):
    for y in (Y, np.full(5, 0.1), np.append(Y, 1e6)):
        z = scale_of(unit * y, kind).apply(unit * y)
        np.testing.assert_allclose(z, scale_of(y, kind).apply(y), rtol=1e-9, atol=1e-9)
        width = np.ptp(scale_of(unit * y, kind).invert(np.array([-1.0, 1.0]))) / unit
        np.testing.assert_allclose(width, np.ptp(scale_of(y, kind).invert(np.array([-1.0, 1.0]))))


def test_equal_numbers_have_no_spread():
    assert spread(np.full(7, 0.1)) == 0.0 and spread(np.array([0.3, 0.1 + 0.2])) == 0.0
    np.testing.assert_allclose(spread(Y * 1e-300), Y.std() * 1e-300)
    np.testing.assert_allclose(spread(np.stack([Y, 2 * Y]), axis=1), [Y.std(), 2 * Y.std()])


@pytest.mark.parametrize("x64", [False, True])
def test_seconds_far_from_zero_in_any_precision(x64):
    """10 s of 1e-2 units at 2e5, which float32 knows to 1.6e-2."""
    with jax.enable_x64(x64):
        cost, start, end = Cost([0.001], 0.5, 0.25), np.array([2e5]), np.array([[2e5 + 0.01]])
        np.testing.assert_allclose(cost.seconds(start, end), [10.75], rtol=1e-6)
        assert cost.route_s(start, end) == pytest.approx(10.75, rel=1e-6)
        np.testing.assert_allclose(travel_s(start, end, np.array([0.001])), [10.0], rtol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_tours_in_any_unit(unit):
    places = np.random.default_rng(2).uniform(size=(9, 2))
    start, rates = np.zeros(2), np.ones(2)
    np.testing.assert_array_equal(tour(unit * places, start, rates), tour(places, start, rates))
    weight = per_second_of_detour(places, start, Cost(rates))(np.array([0]))
    scaled = per_second_of_detour(unit * places, start, Cost(unit * rates))(np.array([0]))
    np.testing.assert_allclose(scaled, weight, rtol=1e-6)


def test_ways_that_never_end_lead_to_no_place_twice():
    assert sorted(_nearest_neighbours(np.full((4, 4), np.inf))) == [0, 1, 2, 3]


@pytest.mark.parametrize("unit", [UNITS[0], pytest.param(UNITS[1], marks=pytest.mark.slow)])
def test_a_learner_suggests_the_same_in_any_unit(unit):
    def found(u, x_unit):
        space = Space([SearchAxis("x", 0.0, x_unit)])
        learner = Learner(space, seed=1, initial=5)
        learner.ingest(
            [{"x": x_unit * float(x), "y": u * float(y)} for (x,), y in zip(X, NOISY, strict=True)]
        )
        near = learner.reckoned(x_unit * GRID)
        return learner.suggest()[0]["x"] / x_unit, near.median / u, near.upper / u, learner

    where, median, upper, learner = found(1.0, 1.0)
    for others in (found(unit, 1.0), found(1.0, 1e-9)):
        assert others[0] == pytest.approx(where, abs=0.01)
        # a fit may end 0.01 nats from the maximum, wherever rounding leads it
        np.testing.assert_allclose(others[1], median, atol=2e-3)
        np.testing.assert_allclose(others[2], upper, atol=2e-3)
        assert not others[3].belief.singular


@pytest.mark.parametrize("unit", UNITS)
def test_a_physical_mean_learns_in_any_unit(unit):
    def found(u):
        space = Space([SearchAxis("x", 0.0, 1.0)])
        model = physical_model(space, line(u), y_scale=0.3 * u)
        belief = model(X, u * (Y + 0.5), None, jax.random.key(0))
        assert not belief.singular
        mean, variance = gp.predict(belief.states[0], GRID)
        return mean, variance

    same(found(unit), found(1.0), unit, rtol=1e-3)


def test_a_scale_of_y_without_a_variance_is_refused():
    for wrong in (0.0, -1.0, np.nan, 1e-300):
        with pytest.raises(ValueError, match="y_scale"):
            gp.process([0.0], [1.0], y_scale=wrong)
