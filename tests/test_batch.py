import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from micjax.active.acquire import hypervolume as H
from micjax.active.acquire.batch import (
    fantasy_batch,
    fantasy_batch_in,
    greedy_improvement,
    greedy_improvement_in,
    log_improvement,
    positive,
    thompson,
)
from micjax.active.acquire.paths import draw_paths, draw_values, peaks
from micjax.active.acquire.search import Box
from micjax.active.acquire.values import log_expected_improvement, upper_confidence_bound
from micjax.active.gp import process as gp
from micjax.active.gp.kernels import RBF, Linear, Matern, Periodic
from micjax.active.learner.cost import (
    Budget,
    Cost,
    affordable_tour,
    detour_s,
    per_second_of_detour,
    tour,
    travel_s,
)

N = scipy.stats.norm
improvement = jax.jit(log_improvement)
gain = jax.jit(H.log_hypervolume_improvement)


def surface(points):
    return np.sin(6 * points[:, 0]) + np.cos(4 * points[:, 1])


def state_of(kernel, noise=0.05, count=12):
    problem = gp.process([0, 0], [2, 1], kernel=kernel, priors={}, noise=gp.White(noise))
    points = np.random.default_rng(1).uniform([0, 0], [2, 1], (count, 2))
    return gp.condition(problem, *gp.buffered(points, surface(points)))


@pytest.fixture(scope="module")
def state():
    return state_of(RBF(np.full(2, 0.25), 1.0))


@pytest.fixture(scope="module")
def paths(state):
    return draw_paths(state, jax.random.key(0), 16, 256)


@pytest.fixture(scope="module")
def candidates():
    axes = np.meshgrid(np.linspace(0, 2, 9), np.linspace(0, 1, 7), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 2)


# --- paths -------------------------------------------------------------------------------------

FEW = np.array([[0.1, 0.2], [0.12, 0.2], [1.0, 0.5], [1.9, 0.9], [0.5, 0.95]])
S = 4000


def has_moments(draws, mean, covariance, tolerance):
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 4.5 * sd / np.sqrt(len(draws)))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=tolerance)


def test_paths_are_draws_of_the_posterior():
    state = state_of(Matern([0.3, 0.5], 1.0))
    paths = draw_paths(state, jax.random.key(0), S, 4096)
    # the covariance has the error of the features, and 4.5 / sqrt(S) of the draws
    mean, covariance = gp.joint(state, jnp.asarray(FEW))
    has_moments(np.asarray(paths(FEW)), mean, covariance, 0.1 * np.diag(covariance).max())
    np.testing.assert_allclose(np.diag(covariance), gp.predict(state, FEW)[1], rtol=1e-6)


def test_paths_of_an_exact_feature_map_are_exact():
    """A linear kernel is its features: only the number of draws is left."""
    state = state_of(Linear([0.5, 0.7], 2.0), noise=0.5)
    mean, covariance = gp.joint(state, jnp.asarray(FEW))
    largest = np.diag(covariance).max()
    paths = draw_paths(state, jax.random.key(0), S)
    has_moments(np.asarray(paths(FEW)), mean, covariance, 6 / np.sqrt(S) * largest)


def test_joint_draws_are_exact_and_need_no_features(state):
    mean, covariance = gp.joint(state, jnp.asarray(FEW))
    draws = draw_values(state, jax.random.key(3), S, FEW)
    has_moments(draws, mean, covariance, 6 / np.sqrt(S) * np.diag(covariance).max())
    periodic = state_of(Periodic([1.0, 1.0], [0.7, 0.9], 1.0))
    with pytest.raises(ValueError, match="Periodic has no random features"):
        draw_paths(periodic, jax.random.key(0), 2)
    many = np.random.default_rng(0).uniform([0, 0], [2, 1], (520, 2))
    assert np.isfinite(draw_values(periodic, jax.random.key(0), 3, many)).all()


def test_paths_pass_through_what_is_known_exactly():
    state = state_of(RBF(np.full(2, 0.25), 1.0), noise=1e-6)
    measured = np.asarray(state.observed.points)[:5]
    for draws in (
        np.asarray(draw_paths(state, jax.random.key(0), 16, 256)(measured)),
        draw_values(state, jax.random.key(0), 16, measured),
    ):
        np.testing.assert_allclose(draws, np.tile(surface(measured), (16, 1)), atol=1e-3)


def test_a_path_is_one_smooth_function(paths):
    together = np.asarray(paths(FEW))
    np.testing.assert_allclose(np.asarray(paths(FEW[2:4])), together[:, 2:4], rtol=1e-12)
    slope = jax.grad(lambda points: paths(points)[1].sum())(jnp.asarray(FEW))
    for axis in range(2):
        step = 1e-5 * np.eye(2)[axis]
        ends = [np.asarray(paths(FEW + s * step))[1] for s in (1, -1)]
        np.testing.assert_allclose(slope[:, axis], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    with jax.enable_x64(False):
        again = paths(jnp.asarray(FEW))
        assert again.dtype == jnp.float64
        np.testing.assert_allclose(again, together, atol=1e-5)


def test_peaks_are_above_a_grid(paths, candidates):
    points, heights = peaks(paths, Box([0.0, 0.0], [2.0, 1.0]), jax.random.key(1))
    np.testing.assert_allclose(heights, np.diagonal(paths(points)), rtol=1e-9)
    assert np.all(heights >= np.asarray(paths(candidates)).max(axis=1))


# --- batches -----------------------------------------------------------------------------------


def test_the_round_corner():
    x, corner = np.array([-1e6, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e6]), 1e-4
    value, slope = jax.vmap(jax.value_and_grad(lambda x: positive(x, corner)))(x)
    np.testing.assert_allclose(value - positive(jnp.asarray(-x), corner), x, rtol=1e-12)  # odd part
    assert np.all(value >= np.maximum(x, 0)) and np.all(np.diff(value) > 0)
    np.testing.assert_allclose(value[:2], corner**2 / -x[:2], rtol=1e-7)
    np.testing.assert_allclose(slope + slope[::-1], 1.0, rtol=1e-12)
    assert np.all(slope > 0) and slope[3] == 0.5


def test_improvement_of_draws_is_the_expected_improvement():
    mean, sd, best = np.array([0.0, 0.5, -1.0]), np.array([1.0, 0.2, 1.0]), 0.4
    draws = mean + sd * N.ppf((np.arange(4096) + 0.5) / 4096)[:, None]
    found = improvement(draws, np.full(len(draws), best), 1.0)
    expected = log_expected_improvement(jnp.asarray(mean), jnp.asarray(sd), best)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_nothing_underflows_where_no_draw_is_better():
    draws = np.linspace(-3000.0, -1000.0, 50) + np.random.default_rng(0).normal(size=(64, 50))
    level = jnp.zeros(64)
    value, slope = jax.value_and_grad(lambda d: log_improvement(d, level, 1.0).sum())(
        jnp.asarray(draws)
    )
    assert np.isfinite(value) and np.all(np.asarray(slope) > 0)
    chosen = greedy_improvement(draws, 0.0, True, 2)
    assert set(chosen) <= set(range(46, 50))


def test_greedy_batch_reaches_its_guarantee(state, candidates):
    draws = draw_values(state, jax.random.key(0), 200, candidates)[:, ::3]
    best, count = np.median(draws.max(axis=1)), 3

    def worth(batch):
        return np.mean(np.maximum(draws[:, list(batch)].max(axis=1) - best, 0.0))

    everything = [worth(b) for b in itertools.combinations(range(draws.shape[1]), count)]
    chosen = greedy_improvement(draws, best, True, count)
    assert len(set(chosen)) == count
    assert worth(chosen[:1]) == max(worth([i]) for i in range(draws.shape[1]))
    assert worth(chosen) >= (1 - 1 / np.e) * max(everything)
    # and is worth more than the best points taken one by one, which are neighbours
    alone = np.argsort([-worth([i]) for i in range(draws.shape[1])])[:count]
    assert worth(chosen) >= worth(alone)


def test_masks_weights_and_errors_of_batches():
    draws = np.random.default_rng(0).normal(size=(32, 10)) + np.arange(10)
    allowed = np.arange(10) < 6
    assert greedy_improvement(draws, 0.0, allowed, 1)[0] == 5
    assert set(greedy_improvement(draws, 0.0, allowed, 6)) == set(range(6))
    weight = np.where(np.arange(10) == 2, 50.0, 0.0)
    assert greedy_improvement(draws, 0.0, True, 1, lambda chosen: weight)[0] == 2
    with pytest.raises(ValueError, match="7 points are wanted and 6 candidates are left"):
        greedy_improvement(draws, 0.0, allowed, 7)
    with pytest.raises(ValueError, match="none of 10 candidates is feasible"):
        greedy_improvement(draws, 0.0, np.zeros(10, bool), 1)
    draws[3, 8] = np.nan
    assert 8 not in greedy_improvement(draws, 0.0, np.arange(10) != 8, 3)
    with pytest.raises(ValueError, match="NaN at 1 of 10 candidates"):
        greedy_improvement(draws, 0.0, True, 2)


def test_what_is_certainly_not_feasible_is_not_chosen():
    draws = np.random.default_rng(0).normal(size=(64, 4))

    def feasible(chosen):
        return np.array([0.0, 0.0, -np.inf, -np.inf])

    allowed = np.arange(4) > 0
    assert greedy_improvement(draws, 0.0, allowed, 1, feasible)[0] == 1
    assert set(greedy_improvement(draws, 0.0, True, 2, feasible)) == {0, 1}
    with pytest.raises(ValueError, match="3 points are wanted and 1"):
        greedy_improvement(draws, 0.0, allowed, 3, feasible)


def test_thompson_takes_the_best_of_each_draw_once():
    draws = np.array([[0.0, 3.0, 2.0], [0.0, 3.0, 1.0], [5.0, 0.0, 0.0]])
    np.testing.assert_array_equal(thompson(draws, True), [1, 2, 0])
    np.testing.assert_array_equal(thompson(draws[:2], np.array([True, False, True])), [2, 0])
    with pytest.raises(ValueError, match="3 points are wanted and 2"):
        thompson(draws, np.array([True, False, True]))


def test_fantasies_are_the_posterior_with_the_expected_values(state, candidates):
    """The third choice is the best by the state conditioned from scratch on the first two."""
    chosen = fantasy_batch(gp.track(state, candidates), upper_confidence_bound, True, 3)
    assert len(set(chosen)) == 3
    n = state.count
    points, y = np.asarray(state.observed.points)[:n], np.asarray(state.y)[:n]
    for i in range(3):
        now = gp.condition(state.problem, *gp.buffered(points, y))
        mean, variance = gp.predict(now, candidates)
        score = upper_confidence_bound(jnp.asarray(mean), jnp.sqrt(variance))
        assert np.argmax(score.at[chosen[:i]].set(-np.inf)) == chosen[i]
        points, y = np.vstack([points, candidates[chosen[i]]]), np.append(y, mean[chosen[i]])


def test_fantasies_outgrow_the_buffers(candidates):
    full = state_of(RBF(np.full(2, 0.25), 1.0), count=31)
    chosen = fantasy_batch(gp.track(full, candidates), lambda mean, sd: sd, True, 4)
    assert len(set(chosen)) == 4
    assert full.count == 31
    with pytest.raises(ValueError, match="NaN at 63 of 63"):
        fantasy_batch(gp.track(full, candidates), lambda mean, sd: mean * np.nan, True, 1)


def deviation(points, state):
    return jnp.sqrt(gp.posterior(state, points)[1])


@pytest.mark.slow
def test_batches_in_a_box(state, paths, candidates):
    box, key = Box([0.0, 0.0], [2.0, 1.0]), jax.random.key(0)
    points = fantasy_batch_in(state, deviation, box, key, 4)
    assert np.all((points >= 0) & (points <= [2, 1]))
    # each is the most uncertain point after the ones before it: no candidate is more so
    now = state
    for point in points:
        assert gp.predict(now, point[None])[1][0] >= gp.predict(now, candidates)[1].max() - 1e-9
        now = gp.append(now, point, gp.predict(now, point[None])[0][0])
    best = np.asarray(state.y).max()
    batch = greedy_improvement_in(paths, best, box, key, 2)
    draws = np.asarray(paths(np.vstack([batch, candidates])))
    found = np.asarray(improvement(draws, np.full(16, best), 1.0))
    assert found[0] >= found[2:].max() - 1e-6
    found = np.asarray(improvement(draws, np.maximum(draws[:, 0], best), 1.0))
    assert found[1] >= found[2:].max() - 1e-6
    with pytest.raises(ValueError, match="at the best point of the box"):
        greedy_improvement_in(paths, np.nan, box, key, 1)


# --- hypervolume -------------------------------------------------------------------------------


def volume_by_counting(values, reference, corner, n=400_000):
    """Quasi-random points between the reference and `corner` that some value dominates."""
    unit = scipy.stats.qmc.Sobol(len(reference), rng=0).random(n)
    z = reference + (corner - reference) * unit
    inside = np.any(np.all(values[None] >= z[:, None], axis=-1), axis=1)
    return inside.mean() * np.prod(corner - reference)


def fronts(k):
    rng = np.random.default_rng(k)
    sphere = np.abs(rng.normal(size=(25, k)))
    sphere /= np.linalg.norm(sphere, axis=1)[:, None]
    yield sphere
    yield np.round(rng.uniform(0.1, 1, (20, k)) * 4) / 4  # ties, duplicates, dominated ones
    yield np.vstack([np.full((1, k), 0.5), rng.uniform(-1, -0.5, (3, k))])  # some below


def test_pareto_front():
    values = np.array([[1.0, 3], [2, 2], [1, 1], [2, 2], [3, 0], [0, 3], [3, 1]])
    np.testing.assert_array_equal(H.pareto_front(values), [0, 1, 6])
    many = np.random.default_rng(0).normal(size=(200, 3))
    kept = H.pareto_front(many)
    for i, value in enumerate(many):
        dominated = np.any(np.all(many >= value, axis=1) & np.any(many > value, axis=1))
        assert (i in kept) == (not dominated)
    with pytest.raises(ValueError, match="not finite"):
        H.pareto_front(np.array([[1.0, np.nan]]))


def test_hypervolume_of_known_bodies():
    np.testing.assert_allclose(H.hypervolume(np.array([[2.0, 3.0]]), np.array([0.0, 1.0])), 4.0)
    np.testing.assert_allclose(
        H.hypervolume(np.array([[1.0, 2.0, 3.0]]), np.array([0.0, 0.0, 1.0])), 4.0
    )
    # a staircase of n steps under x + y = 1, and of the cells under x + y + z = 1
    n = 10
    steps = np.array([[i, n - i] for i in range(1, n)]) / n
    np.testing.assert_allclose(H.hypervolume(steps, np.zeros(2)), n * (n - 1) / 2 / n**2)
    cells = np.array(
        [[i, j, n + 2 - i - j] for i in range(1, n + 1) for j in range(1, n + 2 - i)], float
    )
    np.testing.assert_allclose(H.hypervolume(cells, np.zeros(3)), n * (n + 1) * (n + 2) / 6)


@pytest.mark.parametrize("k", [2, 3])
def test_hypervolume_and_boxes_against_counting(k):
    rng = np.random.default_rng(0)
    reference, corner = np.zeros(k), np.full(k, 1.5)
    for values in fronts(k):
        counted = volume_by_counting(values, reference, corner, 2**16)
        found = H.hypervolume(values, reference)
        np.testing.assert_allclose(found, counted, atol=0.01)
        # the boxes hold every point that is not dominated once, and no other
        boxes = H.boxes_beyond(values[None], reference)
        z = rng.uniform(-0.2, 1.5, (4000, k))
        inside = np.all((z[:, None] > boxes.lower[0]) & (z[:, None] < boxes.upper[0]), axis=-1)
        beyond = np.all(z > reference, axis=1)
        beyond &= ~np.any(np.all(values[None] >= z[:, None], axis=-1), axis=1)
        np.testing.assert_array_equal(inside.sum(axis=1), beyond)
        sides = np.clip(np.minimum(boxes.upper[0], corner) - boxes.lower[0], 0.0, None)
        rest = np.prod(corner - reference) - np.prod(sides, axis=1).sum()
        np.testing.assert_allclose(found, rest, rtol=1e-12)
        used = int(np.sum(np.all(boxes.upper[0] > boxes.lower[0], axis=1)))
        assert used <= (k - 1) * len(H.pareto_front(values)) + 1


def test_hypervolume_does_not_depend_on_the_order_of_the_objectives():
    values = next(fronts(3))
    expected = H.hypervolume(values, np.zeros(3))
    for order in itertools.permutations(range(3)):
        np.testing.assert_allclose(H.hypervolume(values[:, order], np.zeros(3)), expected)


@pytest.mark.parametrize("k", [2, 3])
def test_improvement_of_the_hypervolume_by_brute_force(k):
    rng = np.random.default_rng(0)
    values, reference = next(fronts(k))[:8], np.full(k, 0.05)
    draws = rng.normal(0.6, 0.3, (40, 3, k))
    boxes = H.boxes_beyond(values[None], reference)
    found = gain(draws, boxes, np.ones(k))
    before = H.hypervolume(values, reference)
    gained = [
        [H.hypervolume(np.vstack([values, value]), reference) - before for value in draw]
        for draw in draws
    ]
    # the corners are round by 1e-6 of the scale
    np.testing.assert_allclose(np.exp(found), np.mean(gained, axis=0), rtol=1e-5)
    slope = jax.grad(lambda d: H.log_hypervolume_improvement(d, boxes, np.ones(k)).sum())(
        jnp.asarray(draws)
    )
    step = np.zeros_like(draws)
    step[5, 1, 0] = 1e-4
    ends = [gain(draws + s * step, boxes, np.ones(k)).sum() for s in (1, -1)]
    np.testing.assert_allclose(slope[5, 1, 0], (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_expected_improvement_of_the_hypervolume_in_closed_form(k):
    """Of independent normal objectives: a sum over boxes of products (Emmerich et al. 2011)."""
    values, reference = next(fronts(k))[:6], np.zeros(k)
    boxes = H.boxes_beyond(values[None], reference)
    mean, sd = np.linspace(0.7, 0.9, k), np.linspace(0.2, 0.4, k)

    def side(lower, upper):  # E[max(min(f, upper) - lower, 0)]
        def above(level):  # E[max(f - level, 0)]
            u = (mean - level) / sd
            return np.where(np.isinf(level), 0.0, sd * (N.pdf(u) + u * N.cdf(u)))

        return above(lower) - above(np.where(np.isinf(upper), np.inf, upper))

    with np.errstate(invalid="ignore"):
        expected = np.sum(np.prod(side(boxes.lower[0], boxes.upper[0]), axis=1))
    unit = scipy.stats.qmc.Sobol(k, rng=0).random(2**14)
    draws = mean + sd * N.ppf(unit)
    found = gain(draws[:, None], boxes, np.ones(k))
    np.testing.assert_allclose(np.exp(found[0]), expected, rtol=5e-3)


@pytest.mark.parametrize("k", [2, 3])
def test_greedy_hypervolume_counts_what_is_chosen(k):
    rng = np.random.default_rng(0)
    values, reference = next(fronts(k))[:5], np.zeros(k)
    centre = rng.uniform(0.3, 1.0, (12, k))
    draws = centre + 0.1 * rng.normal(size=(16, 12, k))
    allowed = np.arange(12) != 7
    chosen = H.greedy_hypervolume(draws, values, reference, allowed, 3)
    assert 7 not in chosen

    def expected(batch):
        return np.mean(
            [H.hypervolume(np.vstack([values, d[list(batch)]]), reference) for d in draws]
        )

    for i in range(3):
        options = [j for j in range(12) if allowed[j] and j not in chosen[:i]]
        worth = [expected([*chosen[:i], j]) for j in options]
        assert options[int(np.argmax(worth))] == chosen[i]


def test_a_growing_front_compiles_nothing():
    rng = np.random.default_rng(0)
    draws, reference = rng.normal(size=(4, 6, 2)), np.full(2, -3.0)
    H.greedy_hypervolume(draws, rng.normal(size=(1, 2)), reference, True, 2)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for n in (0, 2, 9, 20):
        H.greedy_hypervolume(draws, rng.normal(size=(n, 2)), reference, True, 2)
    assert not compiled


def test_far_from_the_front_the_hypervolume_has_a_slope():
    boxes = H.boxes_beyond(np.array([[[1.0, 1.0]]]), np.zeros(2))
    far = jnp.array([[[-50.0, -80.0]]])
    value, slope = jax.value_and_grad(
        lambda d: H.log_hypervolume_improvement(d, boxes, np.ones(2)).sum()
    )(far)
    assert np.isfinite(value) and np.all(np.asarray(slope) > 0)


@pytest.mark.slow
def test_hypervolume_in_a_box(state, paths, candidates):
    other = state_of(RBF(np.full(2, 0.4), 1.0))
    other = gp.condition(other.problem, other.observed, -other.y)
    paths = (paths, draw_paths(other, jax.random.key(1), 16, 256))
    n = state.count
    values = np.stack([np.asarray(state.y)[:n], np.asarray(other.y)[:n]], axis=-1)
    reference, box = np.full(2, -2.0), Box([0.0, 0.0], [2.0, 1.0])
    points = H.greedy_hypervolume_in(paths, values, reference, box, jax.random.key(0), 2)
    assert np.all((points >= 0) & (points <= [2, 1]))
    draws = np.stack([np.asarray(p(np.vstack([points, candidates]))) for p in paths], axis=-1)
    chosen = H.greedy_hypervolume(draws, values, reference, True, 1)
    assert chosen[0] == 0  # no candidate of the grid is better


def test_errors_of_the_hypervolume():
    values = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="none of 2 values dominates the reference"):
        H.hypervolume(values, np.array([3.0, 0.0]))
    with pytest.raises(ValueError, match="4 objectives; 2 or 3"):
        H.hypervolume(np.ones((1, 4)), np.zeros(4))
    with pytest.raises(ValueError, match="one finite number for each of 2 objectives"):
        H.hypervolume(values, np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="not finite numbers of shape"):
        H.hypervolume(values * np.inf, np.zeros(2))
    with pytest.raises(ValueError, match="3 boxes do not fit into a capacity of 2"):
        H.boxes_beyond(values[None], np.zeros(2), 2)
    draws = np.ones((2, 3, 2))
    draws[1, 0, 1] = np.nan
    with pytest.raises(ValueError, match="NaN at 1 of 3 candidates"):
        H.greedy_hypervolume(draws, values, np.zeros(2), True, 1)


# --- cost --------------------------------------------------------------------------------------

RATES = np.array([1.0, 0.2])


def length(points, start, order, rates=RATES):
    route = np.vstack([start, points[order]])
    return float(np.sum(np.max(np.abs(np.diff(route, axis=0)) / rates, axis=-1)))


def nearest_neighbours(points, start, rates=RATES):
    here, left, order = start, list(range(len(points))), []
    while left:
        order.append(min(left, key=lambda i: np.max(np.abs(points[i] - here) / rates)))
        here = points[order[-1]]
        left.remove(order[-1])
    return np.array(order)


def test_seconds_of_a_measurement():
    np.testing.assert_allclose(
        travel_s(np.zeros(2), np.array([[3.0, 0.2], [1.0, 1.0]]), RATES), [3.0, 5.0]
    )
    cost = Cost(RATES, settle_s=0.1, dwell_s=0.4, dose_per_s=10.0)
    np.testing.assert_allclose(
        cost.seconds(np.zeros(2), np.array([[3.0, 0.2], [0.0, 0.0]])), [3.5, 0.5]
    )
    route = np.array([[3.0, 0.2], [1.0, 1.0]])
    np.testing.assert_allclose(cost.route_s(np.zeros(2), route), 3.5 + 4.5)
    np.testing.assert_allclose(cost.dose(2), 8.0)
    assert cost.route_s(np.zeros(2), np.zeros((0, 2))) == 0.0
    free = Cost([np.inf, 1.0])
    np.testing.assert_allclose(free.seconds(np.zeros(2), np.array([[9.0, 2.0]])), [2.0])
    slope = jax.grad(lambda p: cost.seconds(jnp.zeros(2), p))(jnp.array([3.0, 0.2]))
    np.testing.assert_allclose(slope, [1.0, 0.0])


def test_errors_of_the_cost():
    for rates in ([1.0, 0.0], [-1.0], [np.nan], 1.0):
        with pytest.raises(ValueError, match="rates .* one positive number for each axis"):
            Cost(rates)
    with pytest.raises(ValueError, match="dwell_s is -1.0; it has to be a number from 0 on"):
        Cost(RATES, dwell_s=-1.0)
    with pytest.raises(ValueError, match="settle_s is nan"):
        Cost(RATES, settle_s=np.nan)


def test_a_tour_is_never_longer_than_nearest_neighbours_and_no_reversal_shortens_it():
    rng = np.random.default_rng(0)
    for n in (1, 2, 9, 40):
        for _ in range(5):
            points, start = rng.uniform(size=(n, 2)), rng.uniform(size=2)
            order = tour(points, start, RATES)
            np.testing.assert_array_equal(np.sort(order), np.arange(n))
            found = length(points, start, order)
            least = length(points, start, nearest_neighbours(points, start))
            assert found <= least * (1 + 1e-12)
            for i, j in itertools.combinations(range(n + 1), 2):
                other = order.copy()
                other[i:j] = order[i:j][::-1]
                assert length(points, start, other) >= found * (1 - 1e-9)
    assert tour(np.zeros((0, 2)), np.zeros(2), RATES).shape == (0,)
    assert tour(np.zeros((4, 2)), np.zeros(2), RATES).shape == (4,)


def test_few_points_are_mostly_toured_on_the_shortest_way():
    rng = np.random.default_rng(0)
    shortest = 0
    permutations = np.array(list(itertools.permutations(range(6))))
    for _ in range(100):
        points, start = rng.uniform(size=(6, 2)), rng.uniform(size=2)
        routes = np.concatenate(
            [np.broadcast_to(start, (len(permutations), 1, 2)), points[permutations]], axis=1
        )
        best = np.max(np.abs(np.diff(routes, axis=1)) / RATES, axis=-1).sum(axis=1).min()
        ratio = length(points, start, tour(points, start, RATES)) / best
        assert ratio > 1 - 1e-9
        shortest += ratio < 1 + 1e-9
    assert shortest >= 70


def test_a_line_is_toured_in_its_order():
    points = np.array([[5.0], [1.0], [4.0], [2.0], [3.0]])
    np.testing.assert_array_equal(tour(points, np.zeros(1), np.ones(1)), [1, 3, 4, 2, 0])


def test_a_detour_is_the_shortest_way_to_put_a_point_in():
    rng = np.random.default_rng(0)
    start, route, points = rng.uniform(size=2), rng.uniform(size=(5, 2)), rng.uniform(size=(7, 2))
    found = detour_s(start, route, points, RATES)
    before = length(route, start, np.arange(5))
    for extra, point in zip(found, points, strict=True):
        ways = [length(np.insert(route, i, point, axis=0), start, np.arange(6)) for i in range(6)]
        np.testing.assert_allclose(extra, min(ways) - before, rtol=1e-9, atol=1e-12)
    empty = detour_s(start, np.zeros((0, 2)), points, RATES)
    np.testing.assert_allclose(empty, travel_s(start, points, RATES))


def test_a_batch_for_each_second_stays_on_the_way():
    """The same uncertainty everywhere: of equal points the near ones, then those on the way."""
    line = np.linspace(0.0, 10.0, 11)[:, None]
    draws = np.random.default_rng(0).normal(size=(4000, 11))
    weight = per_second_of_detour(line, np.zeros(1), Cost([1.0], dwell_s=0.1))
    chosen = greedy_improvement(draws, 0.0, np.arange(11) > 0, 4, weight)
    np.testing.assert_array_equal(chosen, [1, 2, 3, 4])
    # a far point that is worth the way makes all between it free
    draws[:, 10] += 100.0
    chosen = greedy_improvement(draws, 0.0, np.arange(11) > 0, 2, weight)
    assert chosen[0] == 10


def test_a_budget_is_kept():
    cost, start = Cost([1.0, 1.0], dwell_s=1.0, dose_per_s=2.0), np.zeros(2)
    points = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]])
    everything = Budget()
    np.testing.assert_array_equal(affordable_tour(points, start, cost, everything), [1, 2, 0, 3])
    # 3 s of travel and 3 of dwell: the point that is worth least is left out
    np.testing.assert_array_equal(affordable_tour(points, start, cost, Budget(6.0)), [1, 2, 0])
    np.testing.assert_array_equal(affordable_tour(points, start, cost, Budget(5.9)), [1, 0])
    np.testing.assert_array_equal(affordable_tour(points, start, cost, Budget(dose=4.0)), [1, 0])
    assert affordable_tour(points, start, cost, Budget(1.0)).shape == (0,)
    left = Budget(10.0, 8.0).after(cost, start, points[:1])
    np.testing.assert_allclose(left, (6.0, 6.0))
    with pytest.raises(ValueError, match="2 points take 7 s and a dose of 4; there are 6 s and 6"):
        left.after(cost, start, points[:2])
