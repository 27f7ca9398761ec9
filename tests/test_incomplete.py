"""Errors where the posterior is no Gaussian, or the residual is not the noise of the model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from series import coloured

from micjax.core.problem import InverseProblem, free, parameter
from micjax.inference.errors.importance import ENOUGH, weighed
from micjax.inference.errors.incomplete import between, growth, unfitted
from micjax.inference.errors.laplace import laplace
from micjax.inference.maps.each import each_pixel
from micjax.inference.maps.stage import fit_each_pixel
from micjax.inference.runner import run
from micjax.inference.verdicts.correlation import Correlations, correlations
from micjax.inference.verdicts.residual import Residual
from micjax.physics.noise import Gaussian, Poisson

KEY = jax.random.key(0)


class Line(eqx.Module):
    level: jax.Array = parameter(default=0.0)
    slope: jax.Array = parameter(default=0.0)

    def __call__(self, x):
        return self.level + self.slope * x


class Square(eqx.Module):
    side: jax.Array = parameter(default=1.0)

    def __call__(self, x):
        return self.side**2 + 0.0 * x


class Wave(eqx.Module):
    frequency: jax.Array = parameter(default=1.0)

    def __call__(self, x):
        return jnp.sin(2.0 * jnp.pi * self.frequency * x)


class Many(eqx.Module):
    values: jax.Array = parameter(default_factory=lambda: jnp.zeros(13))

    def __call__(self, x):
        return self.values[0] + self.values.sum() * x


def line(sigma=1.0, unit=1.0):
    priors = {"forward.level": dist.Normal(0.0, 3.0 * unit), "forward.slope": free()}
    return InverseProblem(Line(), Gaussian(sigma * unit), priors)


def test_draws_of_a_gaussian_are_the_gaussian():
    """Conjugate: the mean and variance of a level with a normal prior are known."""
    problem = InverseProblem(Line(), Gaussian(1.0), {"forward.level": dist.Normal(0.0, 0.5)})
    x, y = np.zeros(4), np.full(4, 1.0)
    precision = 4.0 + 1.0 / 0.25
    mode = 4.0 / precision
    gaussian = laplace(problem.at({"forward.level": mode}), x, y)
    drawn = weighed(gaussian, x, y)
    assert drawn.effective > ENOUGH and drawn.better < 1e-6
    assert drawn.draws.mean() == pytest.approx(mode, abs=0.1 / np.sqrt(precision))
    assert drawn.draws.std() == pytest.approx(precision**-0.5, rel=0.05)
    assert drawn.widened == {} and drawn.identified == gaussian.identified
    np.testing.assert_array_equal(weighed(gaussian, x, y).draws, drawn.draws)


def test_both_roots_are_drawn():
    """y = side^2: the curvature at one root knows nothing of the other."""
    problem = InverseProblem(Square(), Gaussian(0.2), {"forward.side": dist.Normal(0.0, 2.0)})
    x, y = np.zeros(4), np.full(4, 1.0)
    drawn = weighed(laplace(problem, x, y), x, y)
    assert np.mean(drawn.draws > 0) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(np.abs(drawn.draws).mean(), 1.0, atol=0.03)
    assert drawn.sd()["forward.side"] == pytest.approx(1.0, abs=0.05)
    assert drawn.widened["forward.side"] > 5.0


def test_a_lower_minimum_elsewhere_is_told():
    """The frequency of a wave, from a start that is several periods off."""
    priors = {"forward.frequency": dist.Uniform(0.1, 3.0)}
    problem = InverseProblem(Wave(0.5), Gaussian(0.3), priors)
    x = jnp.linspace(0.0, 10.0, 80)
    y = Wave(1.3)(x) + 0.3 * np.random.default_rng(1).normal(size=80)
    wrong = run(problem, x, y, key=KEY)
    assert abs(float(wrong.problem.values()["forward.frequency"]) - 1.3) > 0.2
    assert wrong.converged is False
    assert any("a minimum that is not the lowest" in s for s in wrong.statements)
    right = run(problem.at({"forward.frequency": 1.3}), x, y, key=KEY)
    assert right.converged is True and right.laplace.better < 1.0


def test_many_unknowns_and_those_that_nothing_bounds_stay_gaussian():
    priors = {"forward.values": dist.Normal(jnp.zeros(13), 1.0).to_event(1)}
    many = InverseProblem(Many(), Gaussian(1.0), priors)
    x, y = np.linspace(0.0, 1.0, 9), np.zeros(9)
    assert weighed(laplace(many, x, y), x, y).draws is None
    flat = InverseProblem(Line(), Gaussian(1.0), {"forward.slope": free()})
    assert weighed(laplace(flat, np.zeros(9), y), np.zeros(9), y).draws is None


@pytest.mark.parametrize("reach", [0, 1, 4])
def test_how_far_residuals_are_alike(reach):
    """Moving averages over a few data: nothing beyond their range is kept."""
    rng = np.random.default_rng(3)
    white = rng.normal(size=(20, 300 + reach))
    kernel = np.ones(reach + 1) / np.sqrt(reach + 1)
    unit = np.stack([np.convolve(row, kernel, "valid") for row in white])
    told = correlations(unit, np.ones(unit.shape, bool))
    assert told.covariance[0] == pytest.approx(1.0, abs=0.05)
    assert (told.reach == 0) is (reach == 0)
    # of a sum of k such neighbours: k in place of 1
    assert told.factor() == pytest.approx(np.sqrt(reach + 1), rel=0.1)
    assert not told.covariance[2 * max(told.reach, 1) : -2 * max(told.reach, 1)].any()


def test_residuals_of_an_image_are_alike_along_its_lines():
    unit = coloured(64, 0.6, rows=64)
    told = correlations(unit[None], np.ones((1, 64, 64), bool))
    assert told.likeness > 0.3 and told.surprise > 20
    along = told.covariance[0, 1:3] / told.covariance[0, 0]
    np.testing.assert_allclose(along, [0.6, 0.36], atol=0.03)
    assert not told.covariance[1:].any()


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_errors_of_a_line_in_coloured_noise(unit):
    """Against the scatter of straight lines through many such series."""
    n, r = 300, 0.6
    x = np.linspace(-1.0, 1.0, n)
    design = np.stack([np.ones(n), x], axis=1)
    fitted = coloured(n, r, rows=3000, seed=5) @ np.linalg.pinv(design).T
    y = unit * coloured(n, r, seed=6)[0]
    solution = run(line(1.0, unit), x, y, key=KEY)
    sd = solution.laplace.sd()
    for name, column in (("forward.level", 0), ("forward.slope", 1)):
        assert sd[name] / unit == pytest.approx(fitted[:, column].std(), rel=0.3)
        assert solution.laplace.grown[name] > 1.4
    assert any("have been made up to" in s for s in solution.statements)


def test_counts_that_scatter_twice_as_much():
    """Each particle counted twice: errors grow by the square root of two."""
    rng = np.random.default_rng(2)
    priors = {"forward.level": dist.HalfNormal(1000.0)}
    problem = InverseProblem(Line(80.0), Poisson(1.0), priors)
    x, y = np.zeros(400), 2.0 * rng.poisson(50.0, size=400)
    solution = run(problem, x, y, key=KEY)
    assert solution.laplace.grown["forward.level"] == pytest.approx(np.sqrt(2.0), rel=0.1)
    assert solution.laplace.sd()["forward.level"] == pytest.approx(np.sqrt(200 / 400), rel=0.15)


def test_the_sandwich_by_hand():
    """With the covariance as a matrix."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(2, 12))
    covariance = np.zeros(24)
    covariance[[0, 1, 2, -1, -2]] = 1.3, 0.5, 0.2, 0.5, 0.2
    matrix = covariance[np.subtract.outer(np.arange(12), np.arange(12))]
    extra = between(slopes, covariance)
    # what makes R no covariance is left out of its spectrum, and nothing of this one is
    assert np.fft.fft(covariance).real.min() > 0
    np.testing.assert_allclose(extra, slopes @ (matrix - np.eye(12)) @ slopes.T, rtol=1e-10)
    inverse = np.linalg.inv(slopes @ slopes.T)
    expected = np.sqrt(np.diag(inverse + inverse @ extra @ inverse) / np.diag(inverse))
    np.testing.assert_allclose(growth(inverse, extra), np.maximum(expected, 1.0))


@pytest.fixture(scope="module")
def a_map():
    """A map of lines, of a known noise of 1."""
    x = np.linspace(-1.0, 1.0, 200)
    priors = {"forward.level": dist.Normal(0.0, 30.0), "forward.slope": dist.Normal(0.0, 30.0)}
    return each_pixel(InverseProblem(Line(), Gaussian(1.0), priors), (4, 16)), x


def solved(a_map, y):
    problem, x = a_map
    return run(problem, x, jnp.asarray(y.reshape(4, 16, 200)), [fit_each_pixel()], key=KEY)


def test_errors_of_a_map_in_coloured_noise(a_map):
    white = solved(a_map, np.random.default_rng(0).normal(size=(64, 200))).fit.arrays
    assert "grown" not in white
    arrays = solved(a_map, coloured(200, 0.6, rows=64, seed=1)).fit.arrays
    x = a_map[1]
    design = np.stack([np.ones(200), x], axis=1)
    fitted = coloured(200, 0.6, rows=3000, seed=5) @ np.linalg.pinv(design).T
    for name, column in (("forward.level", 0), ("forward.slope", 1)):
        sd = np.median(arrays[f"sd {name}"])
        assert sd == pytest.approx(fitted[:, column].std(), rel=0.2)
        root = np.sqrt(np.median(arrays["covariance"][:, column, column]))
        assert root == pytest.approx(sd, rel=1e-5)
    assert np.all(arrays["grown"] > 1.3)


def test_errors_of_a_map_grow_once(a_map):
    """Also where it is gone on with from after that."""
    problem, x = a_map
    y = coloured(200, 0.6, rows=64, seed=1).reshape(4, 16, 200)
    search = fit_each_pixel()
    *_, first = search.work(problem, x, jnp.asarray(y), KEY, lambda *_: None, {})
    first = {n: np.array(a) for n, a in first.items()}
    *_, again = search.work(problem, x, jnp.asarray(y), KEY, lambda *_: None, first)
    np.testing.assert_array_equal(again["sd forward.level"], first["sd forward.level"])


def test_a_map_of_nothing_stays_what_it_is(a_map):
    problem, x = a_map
    arrays = solved(a_map, np.full((64, 200), np.nan)).fit.arrays
    assert "grown" not in arrays and not np.isfinite(arrays["sd forward.level"]).any()


def test_a_map_with_gaps_and_unknowns_in_another_order():
    """Data that are not there say nothing, and factors go to the unknowns that they are of."""

    class Named(eqx.Module):
        zero: jax.Array = parameter(default=0.0)
        above: jax.Array = parameter(default=0.0)

        def __call__(self, x):
            return self.zero + self.above * x

    x = np.linspace(-1.0, 1.0, 200)
    priors = {"forward.zero": dist.Normal(0.0, 30.0), "forward.above": dist.Normal(0.0, 30.0)}
    problem = each_pixel(InverseProblem(Named(), Gaussian(1.0), priors), (4, 16))
    # nothing is measured along the second half
    y = coloured(200, 0.6, rows=64, seed=1)
    y[:, 100:] = np.nan
    arrays = solved((problem, x), y).fit.arrays
    design = np.stack([np.ones(100), x[:100]], axis=1)
    fitted = coloured(100, 0.6, rows=3000, seed=5) @ np.linalg.pinv(design).T
    for name, column in (("forward.zero", 0), ("forward.above", 1)):
        assert np.median(arrays[f"sd {name}"]) == pytest.approx(fitted[:, column].std(), rel=0.25)


def test_what_changes_no_error_is_not_told():
    ones = np.ones(8)
    told = Residual({}, 0.0, Correlations(ones, ones, ones, 0.01, 32, 5.0))
    assert told.sentences({"a": 1.01}) == []
    assert "up to 32 apart" in told.sentences({"a": 1.4})[0]


@pytest.mark.parametrize("numbers", [4, 16])
def test_what_was_fitted_is_not_missing_from_the_covariance(numbers):
    """Cosines fitted to 64 data, each sharing half of its noise with the next, 400 times."""
    n, rng = 64, np.random.default_rng(4)
    white = rng.normal(size=(400, n + 1))
    noise = (white[:, 1:] + white[:, :-1]) / np.sqrt(2.0)
    slopes = np.cos(np.pi * np.arange(numbers)[:, None] * (np.arange(n) + 0.5) / n)
    left = noise - noise @ np.linalg.pinv(slopes) @ slopes
    told = correlations(left, np.ones(left.shape, bool))
    assert told.reach == 1
    assert told.covariance[1] < 0.5 - 0.02 * numbers  # as it is
    np.testing.assert_allclose(unfitted(told, slopes[None])[:2], [1.0, 0.5], atol=0.05)


def test_what_was_fitted_to_an_image_with_gaps():
    """A plane below noise that is alike along the lines, a quarter of it not seen."""
    rows, n = 12, 16
    noise = coloured(n, 0.5, rows=300 * rows, seed=7).reshape(300, rows, n)
    seen = np.ones((rows, n), bool)
    seen[:6, :8] = False
    y, x = np.mgrid[:rows, :n]
    slopes = np.where(seen, np.stack([np.ones_like(x), x, y]), 0.0)
    flat = slopes.reshape(3, -1)
    unit = np.where(seen, noise, 0.0).reshape(300, -1)
    left = (unit - unit @ np.linalg.pinv(flat) @ flat).reshape(noise.shape)
    told = correlations(left, np.broadcast_to(seen, left.shape))
    expected = 0.5 ** np.arange(told.reach + 1)
    np.testing.assert_allclose(
        unfitted(told, slopes[None])[0, : told.reach + 1], expected, atol=0.03
    )


def test_a_pixel_that_the_model_fails_at_leaves_the_errors_of_the_others(a_map):
    """Lines in white noise, one of them below a wave."""
    y = np.random.default_rng(8).normal(size=(64, 200))
    y[7] += 50.0 * np.sin(12.0 * a_map[1])
    grown = solved(a_map, y).fit.arrays["grown"]
    assert grown[7] == pytest.approx(np.sqrt(np.mean(y[7] ** 2)), rel=0.1)
    np.testing.assert_array_equal(np.delete(grown, 7), 1.0)
