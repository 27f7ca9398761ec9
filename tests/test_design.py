"""Plans against designs that are known to be the best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planned_line import KEY, PRIOR, SIGMA, Line, X, line, line_gain, line_information

from micjax import Gaussian, InverseProblem
from micjax.active.acquire.search import Box
from micjax.active.design.fisher import a_gain, d_gain
from micjax.active.design.particles import start, update
from micjax.active.design.plan import expected, gains, limits, plan


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


def test_wanted_standard_deviations_weigh_the_unknowns():
    """The ends for the slope, the middle for the offset."""
    problem, pool = line(), jnp.linspace(-1.0, 1.0, 9)
    particles = start(KEY, problem, X, count=64)
    for wanted, x in (
        ({"forward.a": 10.0, "forward.b": 0.1}, 1.0),
        ({"forward.a": 0.1, "forward.b": 10.0}, 0.0),
    ):
        found = plan(KEY, problem, particles, pool, 2, wanted, measure="A")
        np.testing.assert_allclose(np.abs(found.x), x, atol=1e-9)


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="must be positive: ..forward.b.: 0.0"):
        plan(KEY, problem, particles, pool, names={"forward.b": 0.0})
    with pytest.raises(ValueError, match="measure 'E'; there are"):
        plan(KEY, problem, particles, pool, measure="E")
    with pytest.raises(ValueError, match="a box of 2 axes; one row of x has 1"):
        plan(KEY, problem, particles, Box([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match="candidates .3, 1."):
        plan(KEY, problem, particles, pool[:, None])
    with pytest.raises(ValueError, match="no design has a finite gain"):
        plan(KEY, problem, particles, pool * jnp.nan)
