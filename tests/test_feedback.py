"""The height loop: a plain loop, closed forms, differences; and its gains out of two traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.inference.runner import solve
from micjax.physics.probes import loop as feedback
from micjax.problems import feedback as gains_problem

follow = jax.jit(feedback.follow, static_argnames="window")
trace_and_retrace = jax.jit(feedback.trace_and_retrace, static_argnames="samples_per_pixel")
HEIGHT = np.cumsum(np.random.default_rng(0).normal(size=(3, 203)), axis=1)
GAINS = {"P": (0.1, 0.0), "I": (0.0, 1e-3), "both": (0.05, 2e-3)}


def python_loop(line, proportional, integral, set_point, window, start=None):
    """The recursion as it is written, one sample after the other, every sum anew."""
    z, errors = [line[0] if start is None else start], []
    for i in range(len(line) - 1):
        errors.append(z[i] - line[i] - set_point)
        pulled = z[i] - proportional * errors[i] - integral * sum(errors[-window:])
        z.append(max(line[i + 1], pulled))
    return z


@pytest.mark.parametrize("gains", GAINS.values(), ids=GAINS)
@pytest.mark.parametrize("window", [1, 7, 40, 500])
def test_it_is_the_plain_loop(gains, window):
    ours = follow(jnp.asarray(HEIGHT), *gains, 1.5, window)
    for z, line in zip(ours, HEIGHT.tolist(), strict=True):
        expected = python_loop(line, *gains, 1.5, window)
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-12 * np.ptp(HEIGHT))


def test_single_precision_keeps_to_the_loop_along_a_long_line():
    line = np.cumsum(np.random.default_rng(1).normal(size=4000))
    line = np.convolve(line - line.min(), np.ones(50) / 50, "same")
    set_point = 0.05 * np.ptp(line)
    ours = follow(jnp.asarray(line, jnp.float32), 0.05, 1e-3, set_point)
    expected = python_loop(line.tolist(), 0.05, 1e-3, set_point, 40)
    assert ours.dtype == jnp.float32
    assert np.abs(np.asarray(ours) - expected).max() < 1e-6 * np.ptp(line)


def test_shapes_of_any_kind():
    image = jnp.asarray(HEIGHT)
    line = follow(image[0], 0.1, 1e-3)
    np.testing.assert_allclose(follow(image, 0.1, 1e-3)[0], line, atol=1e-13)
    np.testing.assert_allclose(follow(image[None, :, None], 0.1, 1e-3)[0, 0, 0], line, atol=1e-13)
    assert follow(image[:, :1], 0.1, 1e-3).tolist() == image[:, :1].tolist()


def test_it_settles_at_the_set_point():
    z = follow(jnp.full(2000, 7.0), 0.02, 1e-3, 3.0)
    assert z[0] == 7.0
    np.testing.assert_allclose(z[-100:], 10.0, rtol=1e-9)


def test_an_error_decays_by_the_proportional_gain():
    z = follow(jnp.zeros(50), 0.1, 0.0, 3.0)
    np.testing.assert_allclose(z, 3.0 * (1 - 0.9 ** np.arange(50)), atol=1e-14)


@pytest.mark.parametrize("slope", [-0.03, 0.03])
@pytest.mark.parametrize("gains", [(0.1, 0.0), (0.0, 1e-3), (0.05, 1e-3)])
def test_the_lag_behind_a_slope(slope, gains):
    """e = -c / (P + window I): above the surface downhill, nearer to it uphill."""
    height = slope * jnp.arange(3000.0)
    error = follow(height, *gains, 2.0) - height - 2.0
    np.testing.assert_allclose(error[-100:], -slope / (gains[0] + 40 * gains[1]), rtol=1e-6)


def test_it_stays_where_it_is_settled():
    for z in trace_and_retrace(jnp.full((2, 50), 7.0), 0.02, 1e-3, 3.0, samples_per_pixel=3):
        np.testing.assert_array_equal(z, 10.0)


def test_a_slope_too_steep_for_the_set_point_is_climbed_in_contact():
    height = jnp.arange(1000.0)
    np.testing.assert_array_equal(follow(height, 0.1, 0.0, 2.0)[50:], height[50:])


@pytest.mark.parametrize("window", [10, 40])
def test_the_integral_gain_is_stable_up_to_its_limit(window):
    limit = 2 * np.sin(np.pi / (2 * window)) ** 2
    height = jnp.zeros(1100).at[1:].set(-10.0)  # swings about 0, far away from the surface
    for share, stable in ((0.99, True), (1.01, False)):
        z = follow(height, 0.0, share * limit, 10.0, window)
        assert (np.ptp(z[1000:]) < np.ptp(z[200:300])) == stable


def test_the_probe_never_goes_into_the_surface():
    for gains in GAINS.values():
        for set_point in (0.0, 1.5):
            assert np.all(follow(jnp.asarray(HEIGHT), *gains, set_point) >= HEIGHT)
            both = trace_and_retrace(jnp.asarray(HEIGHT), *gains, set_point, samples_per_pixel=5)
            assert all(np.all(z >= HEIGHT) for z in both)


def test_the_retrace_goes_on_where_the_trace_ended():
    line = HEIGHT[0]
    trace, retrace = trace_and_retrace(jnp.asarray(HEIGHT), 0.05, 1e-3, 1.0)
    way = python_loop([*line, *line[::-1]], 0.05, 1e-3, 1.0, 40, line[0] + 1.0)
    np.testing.assert_allclose(trace[0], way[:203], atol=1e-12)
    np.testing.assert_allclose(retrace[0], way[203:][::-1], atol=1e-12)
    assert np.abs(trace - retrace).max() > 1.0


def test_between_pixels_the_surface_is_straight():
    line = HEIGHT[0, :30]
    there = np.interp(np.arange(29 * 4 + 1) / 4, np.arange(30), line)
    way = python_loop([*there, *there[::-1]], 0.05, 1e-3, 1.0, 40, line[0] + 1.0)
    trace, retrace = trace_and_retrace(jnp.asarray(line), 0.05, 1e-3, 1.0, samples_per_pixel=4)
    np.testing.assert_allclose(trace, way[:117:4], atol=1e-12)
    np.testing.assert_allclose(retrace, way[117:][::-1][::4], atol=1e-12)


def test_the_gradient_is_that_of_differences():
    arguments = (jnp.asarray(HEIGHT[:, :90]), *map(jnp.asarray, (0.05, 1e-3, 1.0)))
    check_grads(follow, arguments, order=1, eps=1e-6, rtol=1e-4)


def test_a_window_of_nothing():
    with pytest.raises(ValueError, match="window = 0: must be one sample or more"):
        follow(jnp.zeros(3), 0.1, 0.1, window=0)


# --- the gains, from both directions --------------------------------------------------------------


@pytest.fixture(scope="module")
def solved():
    truth, x, y = gains_problem.example(jax.random.key(1), 16, 64)
    start = gains_problem.problem(1, 16, 64)
    return solve(gains_problem, start, x, y, key=jax.random.key(0)), x, y, truth


@pytest.mark.slow
def test_the_gains_are_recovered(solved):
    solution, x, y, truth = solved
    found, true = solution.problem.values(), truth.values()
    for name in ("forward.proportional", "forward.integral"):
        assert float(found[name]) == pytest.approx(float(true[name]), rel=0.05)
        expected = float(gains_problem.problem().values()[name])
        assert abs(expected / float(true[name]) - 1) > 0.01  # not what it began with
    rows = {r["surface"]: r["rms error (nm)"] for r in gains_problem.compare(*solved)}
    others = [v for n, v in rows.items() if n != "micjax"]
    assert len(others) == 3 and rows["micjax"] < 0.6 * min(others)
    assert solution.results["surface"].data.shape == (1, 16, 64)
    assert "without error bars" in solution.statements[0]
    for figure in gains_problem.figures(*solved).values():
        assert figure().axes


@pytest.mark.slow
def test_a_loop_with_nothing_to_follow_hides_its_gains():
    truth, x, y = gains_problem.example(jax.random.key(0), 8, 40)
    truth = truth.at({"forward.surface_nm": jnp.zeros((1, 8, 40))})
    y = truth.noise(truth.forward(x)).sample(jax.random.key(1))
    start = gains_problem.problem(1, 8, 40)
    solution = solve(gains_problem, start, x, y, key=jax.random.key(0), steps=2)
    assert solution.statements[0].startswith("NOT IDENTIFIED: trace and retrace differ by")
    assert solution.results["surface"].data.shape == (1, 8, 40)
    for figure in gains_problem.figures(solution, x, y, truth).values():
        assert figure().axes


@pytest.mark.parametrize(
    "name", ["proportional", "integral", "set_point_nm", "samples_per_pixel", "sigma_nm"]
)
def test_bad_options(name):
    with pytest.raises(ValueError, match=f"{name} = -1.*: must be positive"):
        gains_problem.problem(**{name: -1 if name == "samples_per_pixel" else -1.0})
