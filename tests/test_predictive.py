import numpy as np
import pytest
from scipy.stats import norm

from micjax.active.acquire.scalarise import scale_of
from micjax.active.acquire.values import level_of_best
from micjax.active.learner.predictive import Part, quantiles, thinned, uncertainty

CHANCES = (0.05, 0.5, 0.95)


def part(kind, y, mean, variance, noise, log_weight=0.0):
    mean, variance, noise = (np.atleast_2d(np.asarray(a, float)) for a in (mean, variance, noise))
    return Part(scale_of(y, kind), np.full(len(mean), log_weight), mean, variance, noise)


@pytest.mark.parametrize("kind", ["robust", "linear", "log", "none"])
def test_one_gaussian_has_its_own_quantiles(kind):
    y = np.random.default_rng(0).lognormal(size=30)
    one = part(kind, y, [[-1.0, 0.3]], [[0.2, 1.0]], [[0.1, 0.5]])
    z = one.mean[0] + norm.ppf(CHANCES)[:, None] * np.sqrt((one.variance + one.noise)[0])
    np.testing.assert_allclose(quantiles([one], CHANCES), one.scale.invert(z), rtol=1e-6)


def test_a_mixture_over_scales_has_the_quantiles_of_its_draws():
    rng = np.random.default_rng(1)
    y = rng.lognormal(size=40)
    first = part("log", y, [[0.5], [-0.5]], [[0.3], [0.1]], [[0.2], [0.2]], np.log(0.35))
    second = part("linear", y, [[2.0]], [[0.5]], [[0.1]], np.log(0.3))
    draws = []
    for p, share in ((first, 0.35), (second, 0.3)):
        for mean, variance in zip(p.mean[:, 0], (p.variance + p.noise)[:, 0], strict=True):
            z = mean + np.sqrt(variance) * rng.normal(size=int(1e6 * share))
            draws.append(p.scale.invert(z))
    expected = np.quantile(np.concatenate(draws), CHANCES)
    # of a million draws the quantiles scatter by about 0.2 %
    np.testing.assert_allclose(quantiles([first, second], CHANCES)[:, 0], expected, rtol=0.01)
    # in any order of the parts
    np.testing.assert_allclose(
        quantiles([second, first], CHANCES), quantiles([first, second], CHANCES), rtol=1e-6
    )


def test_weights_far_apart_leave_the_likelier_part():
    y = np.linspace(-1.0, 1.0, 9)
    likely = part("linear", y, [[0.0]], [[1.0]], [[0.0]], -1000.0)
    other = part("linear", y, [[5.0]], [[1.0]], [[0.0]], -1060.0)
    np.testing.assert_allclose(
        quantiles([likely, other], CHANCES), quantiles([likely], CHANCES), atol=1e-9
    )
    assert uncertainty([likely, other])[0] == pytest.approx(1.0)


def test_uncertainty_is_that_of_the_mixture_without_noise():
    y = np.linspace(-1.0, 1.0, 9)
    both = part("linear", y, [[-1.0], [1.0]], [[0.5], [0.5]], [[9.0], [9.0]])
    assert uncertainty([both])[0] == pytest.approx(np.sqrt(0.5 + 1.0))


def test_the_level_of_the_best():
    known, sd = np.array([3.0, -5.0]), np.full(400, 1e-9)
    mean = np.linspace(0.0, 1.0, 400)
    # certain outcomes: 3.0 and the highest 10 of the others
    level = level_of_best(mean, sd, known, 11)
    assert mean[389] < level < mean[390]
    # of uncertain ones as many are expected above the level
    mean, sd = np.random.default_rng(0).normal(size=400), np.full(400, 0.7)
    level = level_of_best(mean, sd, known, 50)
    assert np.sum(known > level) + norm.sf((level - mean) / sd).sum() == pytest.approx(50)


def test_some_draws_stand_for_all_by_their_weights():
    rng = np.random.default_rng(0)
    models = [(np.log(0.6), rng.normal(size=100)), (np.log(0.4), rng.normal(3.0, 1.0, size=50))]
    drawn = [(weight - np.log(len(a)), {"a": a}) for weight, a in models]
    (few, first), (others, second) = thinned(drawn, 40)
    assert len(few) == len(first["a"]) == 24 and len(others) == len(second["a"]) == 16
    assert set(first["a"]) <= set(models[0][1]) and not np.any(few)
    for (log_weight, kept), (given, values) in zip(thinned(drawn, None), drawn, strict=True):
        np.testing.assert_array_equal(kept["a"], values["a"])
        np.testing.assert_array_equal(log_weight, given)
