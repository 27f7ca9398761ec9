import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from micjax.active.acquire import values as A
from micjax.active.acquire.search import Box, maximise

N = scipy.stats.norm


@functools.cache
def exact_h(u):
    """phi + u Phi and Phi, in 120 digits: below u = -100 60 of them cancel."""
    with mpmath.workdps(120):
        u = mpmath.mpf(float(u))
        below = mpmath.erfc(-u / mpmath.sqrt(2)) / 2
        return mpmath.npdf(u) + u * below, below


def differences(function, x, eps=1e-6):
    return (function(x + eps) - function(x - eps)) / (2 * eps)


# compiled: primitive by primitive these would take most of the time of the tests
both = jax.jit(jax.vmap(jax.value_and_grad(A.log_h)))
information = jax.jit(A.max_value_entropy)
feasibility = jax.jit(A.log_feasibility, static_argnums=(2, 3))
feasibility_slopes = jax.jit(jax.grad(A.log_feasibility, (0, 1)), static_argnums=(2, 3))


# --- log-EI ------------------------------------------------------------------------------------

SWITCHES = np.array([-1.0, A.TAIL])
NEAR = np.concatenate([SWITCHES - 1e-12, SWITCHES + 1e-12])
U = np.concatenate([np.linspace(-100, 5, 211), NEAR, [-1e5, -1e3, 10.0, 40.0]])


def test_log_h_is_exact_everywhere():
    expected = np.array([float(mpmath.log(exact_h(u)[0])) for u in U])
    value, _ = both(U)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15)
    assert np.abs(value - expected)[np.abs(U) <= 100].max() < 1e-10


def test_slope_of_log_h_is_exact_everywhere():
    """d log h / du = Phi / h."""
    expected = np.array([float(below / h) for h, below in map(exact_h, U)])
    elsewhere = ~np.isin(U, SWITCHES)
    _, slope = both(U)
    np.testing.assert_allclose(slope[elsewhere], expected[elsewhere], rtol=2e-11)
    moderate = elsewhere & (np.abs(U) < 20)
    by_differences = differences(lambda u: both(u)[0], U, eps=1e-4)
    np.testing.assert_allclose(slope[moderate], by_differences[moderate], rtol=1e-6, atol=1e-8)


def test_slope_of_log_h_at_the_switches():
    expected = np.array([float(below / h) for h, below in map(exact_h, SWITCHES)])
    np.testing.assert_allclose(both(np.resize(SWITCHES, U.shape))[1][:2], expected, rtol=2e-11)


def test_improvement_and_its_probability_are_integrals():
    best = 0.7
    for mean, sd in ((0.3, 0.5), (0.7, 1e-3), (2.0, 0.4), (-1.0, 0.4)):
        density = N(mean, sd)
        ei = scipy.integrate.quad(
            lambda f, d=density: (f - best) * d.pdf(f),
            best,
            max(mean, best) + 12 * sd,
            epsrel=1e-12,
        )[0]
        mean, sd = jnp.asarray(mean), jnp.asarray(sd)
        np.testing.assert_allclose(
            A.log_expected_improvement(mean, sd, best), np.log(ei), rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(
            A.log_probability_of_improvement(mean, sd, best), density.logsf(best), rtol=1e-12
        )


def test_bound_straddle_and_seconds():
    mean, sd = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.5])
    np.testing.assert_allclose(A.upper_confidence_bound(mean, sd, 3.0), [3.0, 3.5])
    # positive where the level lies inside the interval
    lower, upper = N.interval(0.95, mean, sd)
    for level in (-2.5, -1.0, 1.5, 2.5, 3.5):
        inside = (lower < level) & (level < upper)
        np.testing.assert_array_equal(A.straddle(mean, sd, level) > 0, inside)
    np.testing.assert_allclose(A.per_second(jnp.log(6.0), jnp.asarray(3.0)), np.log(2.0))


# --- information, constraints, knowledge -------------------------------------------------------


def entropy_of_truncated(u):
    """Of a standard normal below u, by quadrature."""
    log_mass = N.logcdf(u)

    def integrand(z):
        log_p = N.logpdf(z) - log_mass
        return -np.exp(log_p) * log_p

    low = min(-12.0, u - 3.0)
    split = min(u, max(low, u - 10.0 / max(1.0, -u)))
    ends = [(low, split), (split, min(u, 12.0))]
    return sum(scipy.integrate.quad(integrand, a, b, epsabs=1e-13, limit=200)[0] for a, b in ends)


def test_information_on_the_maximum_is_a_difference_of_entropies():
    before = 0.5 * np.log(2 * np.pi * np.e)
    sd, maxima = 0.5, np.array([0.4, 1.0, 2.0])
    for mean in (-0.5, 0.4, 1.3, 6.0):
        after = [entropy_of_truncated((m - mean) / sd) for m in maxima]
        found = information(mean, sd, maxima)
        np.testing.assert_allclose(np.exp(found), before - np.mean(after), rtol=1e-7)


def test_information_far_below_the_maximum_is_ordered():
    for mean in (-40.0, -60.0, -200.0):
        u = 1.0 - mean  # of the nearer one of two maxima; information ~ u phi / 2 for u >> 1
        found = information(mean, 1.0, np.array([1.0, 2.0, 2.0]))
        np.testing.assert_allclose(found, np.log(u / 6) + N.logpdf(u), rtol=1e-3)


def test_feasibility_is_a_probability_without_cancellation():
    cases = [(0.0, 1.0, -0.3), (0.0, 1.0, 0.6), (0.0, 1.0, 30.0), (-np.inf, 1.0, 9.0)]
    cases += [(0.0, np.inf, -20.0), (0.0, 1e-3, 12.0), (-np.inf, np.inf, 0.0)]
    for lower, upper, mean in cases:
        with mpmath.workdps(200):
            a, b = (mpmath.mpf(v) - mpmath.mpf(mean) for v in (lower, upper))
            expected = float(mpmath.log(mpmath.ncdf(b) - mpmath.ncdf(a)))
        found = feasibility(mean, 1.0, lower, upper)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-15)


def feasibility_slopes_agree(*bounds):
    for mean in (-3.0, 0.2, 4.0):
        expected = (
            differences(lambda m: feasibility(m, 0.7, *bounds), mean),
            differences(lambda s, m=mean: feasibility(m, s, *bounds), 0.7),
        )
        slopes = feasibility_slopes(mean, 0.7, *bounds)
        np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-9)


def test_slope_of_feasibility():
    feasibility_slopes_agree(0.0, 1.0)


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-np.inf, 0.0), (-np.inf, np.inf)])
def test_slope_of_feasibility_on_one_side(bounds):
    feasibility_slopes_agree(*bounds)


gradient = jax.jit(A.knowledge_gradient)


def test_knowledge_gradient_of_two_lines():
    """|ds| h(-gap / |ds|) with h(u) = phi(u) + u Phi(u), however far apart they are."""
    gaps = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 20.0])
    with mpmath.workdps(120):
        expected = np.array([0.4 * float(exact_h(-gap)[0]) for gap in gaps])
    means = 1e3 + np.stack([np.zeros(len(gaps)), -0.4 * gaps])
    steps = np.array([[-0.1], [0.3]])
    for mean, right in zip(means.T, expected, strict=True):
        np.testing.assert_allclose(gradient(mean, steps, np.ones(1)), right, rtol=1e-7)


def test_knowledge_gradient_of_many_lines():
    rng = np.random.default_rng(0)
    mean, covariance, noisy_sd = rng.normal(size=60), rng.normal(size=(60, 8)), np.full(8, 0.7)
    covariance[:30, 0] = covariance[30:, 0]  # parallel lines
    covariance[:, 1] = covariance[0, 1]  # nothing but a common shift
    mean[5] = mean[17]
    covariance[5] = covariance[17]  # the same line twice
    found = gradient(mean, covariance, noisy_sd)
    z = np.linspace(-10, 10, 400001)
    for j in range(8):
        highest = np.max(mean[:, None] + covariance[:, j, None] / noisy_sd[j] * z, axis=0)
        expected = scipy.integrate.trapezoid(highest * N.pdf(z), z) - mean.max()
        np.testing.assert_allclose(found[j], expected, rtol=1e-6, atol=1e-9)
    # nothing is gained where nothing is moved, nor where all is known
    np.testing.assert_array_equal(gradient(mean, 0.0 * covariance, noisy_sd), 0.0)
    np.testing.assert_array_equal(gradient(mean, 0.0 * covariance, 0.0 * noisy_sd), 0.0)


def test_slope_of_the_knowledge_gradient():
    rng = np.random.default_rng(1)
    mean, covariance, sd = rng.normal(size=7), rng.normal(size=(7, 1)), np.array([0.8])

    def total(moved):
        return gradient(mean + moved[:7], covariance + moved[7:, None], sd)[0]

    slope = jax.grad(total)(jnp.zeros(14))
    for i in range(14):
        step = 1e-5 * np.eye(14)[i]
        np.testing.assert_allclose(
            slope[i], (total(step) - total(-step)) / 2e-5, rtol=1e-5, atol=1e-9
        )


def test_no_nan_in_float32():
    with jax.enable_x64(False):
        mean, sd = jnp.meshgrid(jnp.linspace(-1e4, 1e4, 201), jnp.array([1e-6, 1e-3, 1.0, 100.0]))
        maxima = jnp.array([0.0, 1.0])
        values = {
            "ei": lambda m: A.log_expected_improvement(m, sd, 0.0),
            "pi": lambda m: A.log_probability_of_improvement(m, sd, 0.0),
            "mes": lambda m: A.max_value_entropy(m, sd, maxima),
            "feasible": lambda m: A.log_feasibility(m, sd, 0.0, 1.0),
        }
        for name, value in values.items():
            slopes = jax.grad(lambda m, v=value: v(m).sum())
            found, slope = jax.jit(lambda m, v=value, s=slopes: (v(m), s(m)))(mean)
            assert found.dtype == jnp.float32, name
            assert not np.isnan(found).any() and not np.isnan(slope).any(), name


# --- the choice among candidates ---------------------------------------------------------------


def test_best_allowed():
    score = np.array([1.0, 5.0, np.nan, 3.0, 3.0, -np.inf])
    allowed = np.array([True, True, False, True, True, True])
    np.testing.assert_array_equal(A.best_allowed(score, allowed, 3), [1, 3, 4])
    allowed[1] = False
    np.testing.assert_array_equal(A.best_allowed(score, allowed), [3])
    with pytest.raises(ValueError, match="none of 6 candidates is feasible"):
        A.best_allowed(score, False)
    with pytest.raises(ValueError, match="5 points are wanted and 4 candidates are left"):
        A.best_allowed(score, allowed, 5)
    with pytest.raises(ValueError, match="NaN at 1 of 6 candidates"):
        A.best_allowed(score, True)


def test_ties_of_infinities_are_among_the_allowed():
    nothing = np.array([5.0, -np.inf, -np.inf, 7.0])
    np.testing.assert_array_equal(A.best_allowed(nothing, [False, True, True, False], 2), [1, 2])
    everything = np.array([1.0, np.inf, np.inf])
    np.testing.assert_array_equal(A.best_allowed(everything, [True, False, True], 2), [2, 0])


def test_what_takes_no_time_comes_first_in_the_order_of_its_value():
    seconds = np.array([0.0, 0.0, 1.0, 0.5])
    found = np.asarray(A.per_second(jnp.array([1.0, 2.0, 9.0, 9.0]), seconds))
    np.testing.assert_array_equal(np.argsort(-found), [1, 0, 3, 2])


# --- the highest point of a box ----------------------------------------------------------------

CENTRE = np.array([0.3, -1.2, 4.0])


def bowl(x, centre):
    return -jnp.sum((x - centre) ** 2 * jnp.array([1.0, 30.0, 0.1]), axis=-1)


def two(x, centre):
    return -jnp.sum((x - centre) ** 2, axis=-1)


def branin(x):
    a, b = x[:, 0], x[:, 1]
    square = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return -(square + 10 * (1 - 1 / (8 * np.pi)) * jnp.cos(a) + 10)


def needle(x):
    return jnp.exp(-jnp.sum((x - 0.123) ** 2, axis=-1) / (2 * 1e-3**2))


def hole(x):
    return jnp.where(x[:, 0] > 0.5, jnp.nan, x[:, 0])


def test_maximise_finds_the_top_of_known_functions():
    key = jax.random.key(0)
    box = Box([-5.0, -5.0, 0.0], [5.0, 5.0, 10.0])
    point, value = maximise(bowl, box, key, (jnp.asarray(CENTRE),))
    np.testing.assert_allclose(point, CENTRE, atol=1e-6)
    assert value > -1e-10
    # outside: the nearest point of the box, whatever the metric of a separable bowl
    point, _ = maximise(bowl, box, key, (jnp.array([7.0, 1.0, -3.0]),))
    np.testing.assert_allclose(point, [5.0, 1.0, 0.0], atol=1e-6)
    assert np.all(point >= box.lower) and np.all(point <= box.upper)
    point, value = maximise(branin, Box([-5.0, 0.0], [10.0, 15.0]), key)
    np.testing.assert_allclose(value, -0.39788735772973816, rtol=1e-9)


def test_maximise_compiles_once_for_other_arguments():
    traced = []

    def counted(x, centre):
        traced.append(x.shape)
        return bowl(x, centre)

    box = Box([-5.0, -5.0, 0.0], [5.0, 5.0, 10.0])
    maximise(counted, box, jax.random.key(0), (jnp.asarray(CENTRE),))
    first = len(traced)
    maximise(counted, Box([-1.0] * 3, [1.0] * 3), jax.random.key(1), (jnp.asarray(CENTRE) + 1.0,))
    assert len(traced) == first


def test_maximise_looks_closely_where_it_is_told():
    box = Box([0.0, 0.0], [1.0, 1.0])
    near = jnp.array([[0.126, 0.122]])
    point, value = maximise(needle, box, jax.random.key(0), near=near)
    np.testing.assert_allclose(point, 0.123, atol=1e-6)


def test_maximise_steps_over_what_is_not_a_number():
    point, value = maximise(hole, Box([0.0], [1.0]), jax.random.key(0))
    assert 0.49 < value <= 0.5 and point[0] == value


def test_whole_numbers_stay_whole():
    key = jax.random.key(0)
    box = Box([-5.0, 0.0, 0.0], [5.0, 3.0, 10.0], [False, True, True])
    point, _ = maximise(bowl, box, key, (jnp.array([0.3, 2.4, 6.8]),))
    np.testing.assert_allclose(point, [0.3, 2.0, 7.0], atol=1e-6)
    assert point[1] == 2.0 and point[2] == 7.0
    odd = Box([0.1, -7.0], [0.3, 4.0], [False, True])  # 0.1 + 1.0 * 0.2 is above 0.3
    for target in ([9.0, 1.0], [-9.0, -3.0]):
        point, _ = maximise(two, odd, key, (jnp.asarray(target),))
        assert point[1] == target[1] and 0.1 <= point[0] <= 0.3
    # each whole number gets an equal share of the cube, both ends too
    drawn = np.asarray(box.uniform(jax.random.uniform(key, (20000, 3))))
    values, counts = np.unique(drawn[:, 1], return_counts=True)
    np.testing.assert_array_equal(values, [0, 1, 2, 3])
    np.testing.assert_allclose(counts, 5000, atol=5 * np.sqrt(5000))
    assert set(drawn[:, 2]) == set(range(11))


def test_a_box_without_inside_is_refused():
    for lower, upper in (([0.0, 1.0], [1.0, 0.0]), ([0.0], [1.0, 1.0]), ([np.nan], [1.0])):
        with pytest.raises(ValueError, match="is empty"):
            Box(lower, upper)


def test_an_axis_of_no_width_stays():
    box = Box([0.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    point, _ = maximise(bowl, box, jax.random.key(0), (jnp.full(3, 0.5),))
    np.testing.assert_allclose(point, [0.0, 0.5, 0.5], atol=1e-6)
