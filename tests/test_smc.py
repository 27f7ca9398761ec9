import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import micjax
from micjax.active import streaming
from micjax.active.acquire import values as acquisition
from micjax.active.gp import process as gp
from micjax.core.problem import log_likelihood
from micjax.inference.errors import smc

POINTS = np.linspace(0.0, 1.0, 17)[:, None]


def truth(x):
    return np.sin(7.0 * x[:, 0])


def data(count, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(count, 1))
    return points, truth(points) + 0.2 * rng.normal(size=count)


@pytest.fixture(scope="module")
def cloud():
    points, y = data(8)
    problem = gp.process([0.0], [1.0])
    buffers = gp.buffered(points, y, capacity=32)
    return streaming.begin(problem, *buffers, POINTS, jax.random.key(0), particles=64)


def problem_at(cloud, i):
    return cloud.problem.at({n: v[i] for n, v in values(cloud).items()})


def values(cloud):
    return streaming._physical(cloud.problem, cloud.theta)


def only_sigma():
    """A process of which only the noise is unknown, so that one integral tells everything."""
    return gp.process([0.0], [1.0]).given(
        {name: None for name in gp.process([0.0], [1.0]).priors if name != "noise.sigma"}
    )


def by_quadrature(problem, observed, y):
    """log p(y), and the posterior mean and sd of log sigma, on a fine grid."""
    log_sigma = np.linspace(-6.0, 1.5, 1501)
    prior = dist.LogNormal(np.log(0.1), 1.0)

    def log_joint(t):
        at = problem.at({"noise.sigma": jnp.exp(t)})
        return log_likelihood(at, observed, y) + prior.log_prob(jnp.exp(t)) + t

    logs = np.asarray(jax.jit(lambda t: jax.lax.map(log_joint, t))(jnp.asarray(log_sigma)))
    step = log_sigma[1] - log_sigma[0]
    weights = np.exp(logs - logs.max())
    mean = np.average(log_sigma, weights=weights)
    sd = np.sqrt(np.average((log_sigma - mean) ** 2, weights=weights))
    return logs.max() + np.log(weights.sum() * step), mean, sd


@pytest.mark.slow
def test_a_datum_weighs_every_particle_by_the_change_of_its_likelihood(cloud):
    told = streaming._told(cloud, jnp.asarray([0.3]), jnp.asarray(0.7), jnp.asarray(1.0))

    @eqx.filter_jit
    def likelihoods(cloud):
        def of(i):
            return log_likelihood(problem_at(cloud, i), cloud.observed, cloud.y)

        return jax.vmap(of)(jnp.arange(64))

    gained = np.asarray(likelihoods(told) - likelihoods(cloud))
    changed = np.asarray(told.log_weight - cloud.log_weight)
    np.testing.assert_allclose(changed - changed[0], gained - gained[0], atol=1e-6)
    evidence = float(told.log_evidence - cloud.log_evidence)
    assert evidence == pytest.approx(np.log(np.mean(np.exp(gained))), abs=1e-6)
    assert np.exp(told.log_weight).sum() == pytest.approx(1.0)


def test_each_particle_follows_its_own_posterior(cloud):
    told = streaming._told(cloud, jnp.asarray([0.3]), jnp.asarray(0.7), jnp.asarray(1.0))
    for i in (0, 17):
        state = gp.condition(problem_at(told, i), told.observed, told.y)
        mean, variance = gp.predict(state, POINTS)
        means, variances = streaming.moments(told)
        np.testing.assert_allclose(means[i], mean, atol=1e-7)
        np.testing.assert_allclose(variances[i], variance, atol=1e-7)


def test_the_mixture_is_that_of_its_particles(cloud):
    told = streaming._told(cloud, jnp.asarray([0.3]), jnp.asarray(0.7), jnp.asarray(1.0))
    weight, (means, variances) = np.exp(told.log_weight), streaming.moments(told)
    rng = np.random.default_rng(0)
    rows = rng.choice(64, 400_000, p=weight / weight.sum())
    draws = rng.normal(means[rows, 3], np.sqrt(variances[rows, 3]))
    mean, variance = streaming.predict(told)
    assert mean[3] == pytest.approx(draws.mean(), abs=5 * draws.std() / 632)
    assert variance[3] == pytest.approx(draws.var(), rel=0.01)
    best = float(mean[3])
    gain = np.maximum(draws - best, 0.0).mean()
    assert np.exp(streaming.log_expected_improvement(told, best)[3]) == pytest.approx(
        gain, rel=0.01
    )
    noisy = streaming.predict_measured(told)[1] - variance
    np.testing.assert_allclose(noisy, weight @ np.asarray(values(told)["noise.sigma"]) ** 2)


def test_other_points_are_predicted_alike(cloud):
    mean, variance = streaming.predict(cloud)
    again = streaming.predict(streaming.following(cloud, POINTS[::4]))
    np.testing.assert_allclose(again[0], mean[::4], atol=1e-9)
    np.testing.assert_allclose(again[1], variance[::4], atol=1e-9)


def test_evidence_and_posterior_agree_with_quadrature():
    problem, (points, y) = only_sigma(), data(12)
    cloud = streaming.begin(
        problem, *gp.buffered(points[:4], y[:4]), POINTS, jax.random.key(1), particles=128
    )
    for i in range(4, 12):
        cloud = streaming.tell(cloud, points[i], y[i], jax.random.key(i))
    log_evidence, mean, sd = by_quadrature(problem, *gp.buffered(points, y))
    assert float(cloud.log_evidence) == pytest.approx(log_evidence, abs=0.15)
    sigma = np.log(streaming.draws(cloud, jax.random.key(2), 4000).flat()["noise.sigma"])
    assert sigma.mean() == pytest.approx(mean, abs=0.2 * sd)
    assert sigma.std() == pytest.approx(sd, rel=0.15)


@pytest.mark.slow
def test_moves_keep_the_posterior():
    problem, (points, y) = only_sigma(), data(12)
    observed, y = gp.buffered(points, y)
    _, mean, sd = by_quadrature(problem, observed, y)
    # 256 particles at one place and at the wrong one: they have to find the density by themselves
    theta = jnp.full((256, 1), mean + 2.0 * sd) + 0.1 * sd * jax.random.normal(
        jax.random.key(0), (256, 1)
    )
    density, log_weight = smc.Data(problem, observed, y), jnp.asarray(smc.equal(256))
    now = smc.placed(theta, density)
    for k in range(4):
        now, accepted = smc.walks_and_jumps(
            jax.random.key(k), now, log_weight, jnp.ones(()), density
        )
    assert float(now.theta.mean()) == pytest.approx(mean, abs=0.12 * sd)
    assert float(now.theta.std()) == pytest.approx(sd, rel=0.12)
    assert 0.2 < float(accepted) < 0.9


@pytest.mark.slow
def test_a_surprise_is_let_in_by_degrees():
    """A datum 19 standard deviations off, after which almost every particle is at a wrong place."""
    problem, (points, y) = only_sigma(), data(12)
    cloud = streaming.begin(
        problem, *gp.buffered(points[:8], y[:8]), POINTS, jax.random.key(1), particles=128
    )
    y[8] += 4.0
    assert (
        streaming._told(cloud, points[8], jnp.asarray(y[8]), jnp.asarray(1.0)).effective
        < 0.05 * 128
    )
    told = streaming.tell(cloud, points[8], y[8], jax.random.key(2))
    log_evidence, mean, sd = by_quadrature(problem, *gp.buffered(points[:9], y[:9]))
    assert float(told.log_evidence) == pytest.approx(log_evidence, abs=0.3)
    sigma = np.log(streaming.values(told)["noise.sigma"])
    assert sigma.mean() == pytest.approx(mean, abs=0.2 * sd)
    assert sigma.std() == pytest.approx(sd, rel=0.2)


def test_an_odd_number_of_particles_is_refused():
    observed, y = gp.buffered(*data(12))
    with pytest.raises(ValueError, match="31 particles"):
        streaming.begin(only_sigma(), observed, y, POINTS, jax.random.key(0), particles=31)


def test_particles_are_drawn_as_often_as_their_weights_say():
    weight = np.array([0.5, 0.25, 0.0, 0.125, 0.125])
    with np.errstate(divide="ignore"):
        rows = smc.systematic(jax.random.key(0), jnp.log(jnp.repeat(weight, 8) / 8.0), 40)
    counts = np.bincount(np.asarray(rows) // 8, minlength=5)
    np.testing.assert_array_equal(counts, [20, 10, 0, 5, 5])


def test_a_full_buffer_grows_and_nothing_else_compiles(cloud):
    points, y = data(36, seed=3)
    told = streaming.rejuvenated(
        streaming.tell(cloud, points[0], y[0], jax.random.key(0)), jax.random.key(1)
    )
    streaming.predict(told)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for i in range(1, 24):  # up to 32: one capacity
            told = streaming.tell(told, points[i], y[i], jax.random.key(i))
            streaming.predict(told)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled
    assert told.count == len(told.y) == 32
    told = streaming.tell(told, points[24], y[24], jax.random.key(24))
    assert told.count == 33 and len(told.y) == 64
    assert np.isfinite(streaming.predict(told)[0]).all()


def test_bad_data_and_priors_say_so(cloud):
    with pytest.raises(ValueError, match="datum nan at .* is not finite"):
        streaming.tell(cloud, np.array([0.1]), np.nan, jax.random.key(0))
    observed, y = gp.buffered(*data(4))
    problem = gp.process([0.0], [1.0], priors={"forward.mean.value": micjax.free()})
    with pytest.raises(ValueError, match="improper priors of ..forward.mean.value"):
        streaming.begin(problem, observed, y, POINTS, jax.random.key(0))


def test_single_precision_outside_changes_nothing(cloud):
    with jax.enable_x64(False):
        told = streaming.tell(cloud, np.float32([0.25]), np.float32(0.5), jax.random.key(5))
        mean, _ = streaming.predict(told)
    assert mean.dtype == np.float64 and np.isfinite(mean).all()


@pytest.mark.slow
def test_laplace_and_svi_take_a_process():
    problem, (points, y) = only_sigma(), data(24)
    observed, y = gp.buffered(points, y)
    _, mean, sd = by_quadrature(problem, observed, y)
    at = problem.at({"noise.sigma": np.exp(mean)})
    laplace = micjax.laplace(at, observed, y)
    assert laplace.covariance[0, 0] ** 0.5 == pytest.approx(sd, rel=0.1)
    found = micjax.svi(at, observed, y, jax.random.key(0), steps=600, learning_rate=0.02)
    sigma = np.log(found.flat()["noise.sigma"])
    assert sigma.mean() == pytest.approx(mean, abs=0.3 * sd)
    assert sigma.std() == pytest.approx(sd, rel=0.2)


@pytest.mark.slow
def test_nuts_takes_a_process():
    problem, (points, y) = only_sigma(), data(12)
    observed, y = gp.buffered(points, y)
    _, mean, sd = by_quadrature(problem, observed, y)
    found = micjax.nuts(
        problem, observed, y, jax.random.key(0), samples=600, warmup=200, progress=False
    )
    sigma = np.log(found.flat()["noise.sigma"])
    assert sigma.mean() == pytest.approx(mean, abs=0.3 * sd)
    assert sigma.std() == pytest.approx(sd, rel=0.2)


@pytest.mark.slow
def test_streaming_agrees_with_nuts():
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(60, 2))
    y = np.sin(6.0 * points[:, 0]) + np.cos(9.0 * points[:, 1]) + 0.3 * rng.normal(size=60)
    problem = gp.process([0.0, 0.0], [1.0, 1.0])
    at = rng.uniform(size=(200, 2))
    observed, values = gp.buffered(points[:10], y[:10], capacity=64)
    cloud = streaming.begin(problem, observed, values, at, jax.random.key(0))
    for i in range(10, 60):
        cloud = streaming.tell(cloud, points[i], y[i], jax.random.key(i))
    draws = micjax.nuts(
        problem, cloud.observed, cloud.y, jax.random.key(1), samples=1000, chains=2, progress=False
    ).flat()
    each = [
        gp.predict(
            gp.condition(problem.at({n: d[i] for n, d in draws.items()}), cloud.observed, cloud.y),
            at,
        )
        for i in range(0, 2000, 10)
    ]
    means, variances = np.array(each).swapaxes(0, 1)
    wanted, sd = means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    mean, variance = streaming.predict(cloud)
    assert np.sqrt(np.mean(((mean - wanted) / sd) ** 2)) < 0.1
    assert np.median(np.sqrt(variance) / sd) == pytest.approx(1.0, abs=0.05)


def test_improvement_is_that_of_one_particle_where_all_are_alike(cloud):
    same = cloud._replace(
        followed=jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), cloud.followed)
    )
    means, variances = streaming.moments(same)
    one = acquisition.log_expected_improvement(means[0], jnp.sqrt(variances[0]), 0.5)
    np.testing.assert_allclose(streaming.log_expected_improvement(same, 0.5), one, rtol=1e-12)
