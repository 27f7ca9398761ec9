import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

import micjax
from micjax.active.acquire import values as acquisition
from micjax.active.gp import algebra
from micjax.active.gp import process as gp
from micjax.active.gp.evidence import fit_evidence
from micjax.active.gp.kernels import (
    RBF,
    Categorical,
    Coregionalised,
    Linear,
    Matern,
    MultiFidelity,
    Over,
    Periodic,
    SpectralMixture,
    Warped,
)
from micjax.problems import edge

RNG = np.random.default_rng(0)
A, B = (jnp.asarray(RNG.uniform(-1.0, 2.0, (n, 2))) for n in (7, 5))
LENGTH = np.array([0.7, 1.9])


def waves(points):
    return np.sin(6.0 * points).sum(axis=1)


def sample(count, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(count, 2))
    return points, waves(points) + noise * rng.normal(size=count)


def compilations(function):
    """How many programs XLA compiles while `function` runs."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if "backend_compile" in name else None
    )
    try:
        function()
    finally:
        jax.monitoring.clear_event_listeners()
    return len(events)


# --- kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_matern_is_the_bessel_formula(smoothness):
    r = np.linalg.norm(A[:, None] / LENGTH - B / LENGTH, axis=-1) * np.sqrt(2.0 * smoothness)
    bessel = scipy.special.kv(smoothness, r) * r**smoothness
    expected = 1.3**2 * 2.0 ** (1.0 - smoothness) / scipy.special.gamma(smoothness) * bessel
    np.testing.assert_allclose(Matern(LENGTH, 1.3, smoothness)(A, B), expected, rtol=1e-10)


def test_near_points_have_their_distance():
    """Through a matrix product the distance of points 1e-9 apart would be that of rounding."""
    a = 5.0 + jnp.arange(4.0)[:, None] * jnp.array([1e-9, 2e-9])
    r = np.linalg.norm(np.asarray(a)[:, None] - np.asarray(a), axis=-1)
    found = Matern(np.ones(2), 1.0, 0.5)(a, a)
    np.testing.assert_allclose(1.0 - found, -np.expm1(-r), rtol=1e-6, atol=2e-15)


@pytest.mark.parametrize("x_unit", [pytest.param(1.0, marks=pytest.mark.slow), 1e-9])
def test_an_index_is_not_scaled_by_the_box(x_unit):
    """Outputs 0 to 2 in a box, whose span is 2: their variances and covariances."""
    weights, own = np.array([[0.5], [1.0], [-2.0]]), np.array([1.0, 4.0, 9.0])
    kernel = Coregionalised(Matern([0.3]), weights, own)
    known = {"forward.kernel.lengthscale": None, "forward.kernel.amplitude": None}
    known["forward.kernel.kernel.lengthscale"] = dist.LogNormal(0.0, 1.0)
    p = gp.process([0.0, 0.0], [x_unit, 2.0], kernel=kernel, priors=known).forward
    points = jnp.array([[0.5 * x_unit, 0.0], [0.5 * x_unit, 1.0], [0.5 * x_unit, 2.0]])
    expected = weights @ weights.T + np.diag(own)
    np.testing.assert_allclose(p.covariance(points, points), expected, rtol=1e-12)
    np.testing.assert_allclose(p.variance(points), np.diag(expected), rtol=1e-12)
    assert np.isnan(p.variance(points.at[:, 1].set(3.0))).all()  # there is no such output
    names = Over(Categorical(np.ones(1)), (1,)) * Over(Matern([0.3]), (0,))
    q = gp.process([0.0, 0.0], [x_unit, 2.0], kernel=names, priors={"noise.sigma": None})
    apart = q.forward.covariance(points * jnp.array([1.0, 1e-9]), points * jnp.array([1.0, 1e-9]))
    np.testing.assert_allclose(apart, np.where(np.eye(3), 1.0, np.exp(-1.0)), rtol=1e-12)


def test_two_fidelities_are_the_law_of_kennedy_and_ohagan():
    """f_high = 1.7 f_low + error: by the joint covariance, and a posterior in dense NumPy."""
    low, error = RBF(np.array([0.4])), Matern(np.array([0.7]), 0.3)
    kernel, white = MultiFidelity(low, error, 1.7), gp.White(0.01)
    p = gp.process([0.0, 0.0], [2.0, 1.0], kernel=kernel, noise=white, priors={"noise.sigma": None})
    x = np.array([0.1, 0.7, 1.2, 1.9])
    at = jnp.asarray(x[:, None] / 2.0)
    k, e = np.asarray(low(at, at)), np.asarray(error(at, at))
    both = np.block([[k, 1.7 * k], [1.7 * k, 1.7**2 * k + e]])
    points = np.column_stack([np.tile(x, 2), np.repeat([0.0, 1.0], 4)])
    found = p.forward.covariance(jnp.asarray(points), jnp.asarray(points))
    np.testing.assert_allclose(found, both, rtol=1e-12)
    np.testing.assert_allclose(p.forward.variance(jnp.asarray(points)), np.diag(both), rtol=1e-12)
    rows, y = np.array([0, 1, 2, 3, 5]), np.array([0.3, -0.2, 0.5, 0.1, 0.6])
    mean, _ = gp.predict(gp.condition(p, *gp.buffered(points[rows], y)), points)
    matrix = both[np.ix_(rows, rows)] + 1e-4 * np.eye(5)
    np.testing.assert_allclose(mean, both[:, rows] @ np.linalg.solve(matrix, y), rtol=1e-9)
    assert np.isnan(p.forward.variance(jnp.array([[0.1, 2.0]]))).all()


def test_periodic_and_linear():
    a = jnp.asarray(A)
    periodic = Periodic(LENGTH, 0.5)
    np.testing.assert_allclose(periodic(a, a + 1.5), periodic(a, a), rtol=1e-10)
    np.testing.assert_allclose(
        Linear(2.0, 3.0)(a, jnp.asarray(B)), 9.0 * (1.0 + A @ B.T / 4.0), rtol=1e-12
    )


def test_spectral_mixture_of_one_at_zero_is_rbf():
    width = 1.0 / (2.0 * np.pi * LENGTH)
    mixture = SpectralMixture(np.ones(1), np.zeros((1, 2)), width[None], 1.3)
    np.testing.assert_allclose(mixture(A, B), RBF(LENGTH, 1.3)(A, B), rtol=1e-10)


MIXTURE = SpectralMixture(np.array([0.3, 0.7]), RNG.uniform(size=(2, 2)), np.full((2, 2), 0.4))
KERNELS = {
    "rbf": RBF(LENGTH, 1.3),
    "matern": Matern(LENGTH, 1.3),
    "mixture": MIXTURE,
    "sum": RBF(LENGTH) + Linear(1.0, 0.5) + Matern(LENGTH, 0.3, 0.5),
    "product": RBF(LENGTH) * Matern(1.0, 1.2),
    "additive": Over(RBF(0.4), (0,)) + Over(Matern(0.8), (1,)),
    "warped": Warped(RBF(1.0), jnp.tanh),
}
MORE = {"periodic": Periodic(LENGTH, 0.5), "category": Categorical(0.5)}


@pytest.mark.parametrize("kernel", (KERNELS | MORE).values(), ids=(KERNELS | MORE).keys())
def test_kernels_are_covariances(kernel):
    covariance = np.asarray(kernel(A, A))
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), kernel.diagonal(A), atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-10


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_random_features_average_to_the_kernel(kernel):
    phi = kernel.features(jax.random.key(1), 8_000)
    # Monte Carlo error 1 / sqrt(4 000) of the variance, here four of them
    close = 0.064 * float(jnp.max(kernel.diagonal(A)))
    np.testing.assert_allclose(phi(A) @ phi(B).T, kernel(A, B), atol=close)


def test_a_kernel_without_spectrum_says_so():
    with pytest.raises(ValueError, match="Categorical has no random features"):
        Categorical(1.0).features(jax.random.key(0), 10)


# --- the likelihood ----------------------------------------------------------------------------


def test_log_evidence_is_that_of_a_multivariate_normal():
    points, y = sample(20)
    problem = gp.process([0, 0], [1, 1])
    observed, padded = gp.buffered(points, y, noise_ratio=np.linspace(1.0, 2.0, 20), capacity=64)
    covariance = np.array(problem.forward.covariance(jnp.asarray(points), jnp.asarray(points)))
    covariance += np.diag((0.1 * np.linspace(1.0, 2.0, 20)) ** 2)
    found = problem.noise(problem.forward(observed)).log_prob(padded)
    expected = scipy.stats.multivariate_normal(np.zeros(20), covariance).logpdf(y)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("count", [200])
def test_gradient_is_that_of_finite_differences(count):
    points, y = sample(count)
    problem = gp.process([0, 0], [1, 1])
    observed, padded = gp.buffered(points, y)
    theta = problem.unconstrain(problem.values())
    both = eqx.filter_jit(jax.value_and_grad(micjax.neg_log_joint))
    _, gradient = both(theta, problem, observed, padded)

    def loss(name, i, step):
        moved = theta[name].ravel().at[i].add(step).reshape(theta[name].shape)
        return both(theta | {name: moved}, problem, observed, padded)[0]

    for name, slope in gradient.items():
        for i, found in enumerate(np.ravel(slope)):
            expected = (loss(name, i, 1e-5) - loss(name, i, -1e-5)) / 2e-5
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def test_inverse_lower_by_halves():
    factor = np.tril(RNG.normal(size=(512, 512))) / 30.0 + np.eye(512)
    inverse = np.asarray(algebra.inverse_lower(jnp.asarray(factor)))
    np.testing.assert_allclose(inverse @ factor, np.eye(512), atol=1e-8)


# --- the posterior -----------------------------------------------------------------------------


def by_hand(problem, points, y, at):
    points = jnp.asarray(points)
    covariance = problem.forward.covariance
    k = np.asarray(covariance(points, points)) + float(problem.noise.sigma) ** 2 * np.eye(len(y))
    cross = np.asarray(covariance(points, at))
    mean = cross.T @ np.linalg.solve(k, y)
    full = np.asarray(covariance(at, at)) - cross.T @ np.linalg.solve(k, cross)
    return mean, full


def test_posterior_is_the_textbook_formula():
    points, y = sample(20)
    problem = gp.process([0, 0], [1, 1])
    state = gp.condition(problem, *gp.buffered(points, y))
    expected_mean, expected = by_hand(problem, points, y, B)
    mean, variance = gp.predict(state, B)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-11)
    np.testing.assert_allclose(variance, np.diag(expected), atol=1e-11)
    np.testing.assert_allclose(gp.joint(state, jnp.asarray(B))[1], expected, atol=1e-11)


def test_rank_one_updates_equal_a_new_factorisation():
    points, y = sample(30)
    problem = gp.process([0, 0], [1, 1])
    tracked = gp.track(gp.condition(problem, *gp.buffered(points[:10], y[:10])), B)
    state = tracked.state
    for point, value in zip(points[10:], y[10:], strict=True):
        tracked, state = gp.tell(tracked, point, value), gp.append(state, point, value)
    whole = gp.condition(problem, *gp.buffered(points, y))
    mean, variance = gp.predict(whole, B)
    np.testing.assert_allclose(tracked.mean, mean, atol=1e-10)
    np.testing.assert_allclose(tracked.variance, variance, atol=1e-10)
    np.testing.assert_allclose(state.root, whole.root, atol=1e-6)
    assert state.count == tracked.state.count == 30


def test_full_buffers_grow():
    points, y = sample(65)
    problem = gp.process([0, 0], [1, 1])
    full = gp.condition(problem, *gp.buffered(points[:64], y[:64]))
    expected = gp.predict(gp.condition(problem, *gp.buffered(points, y)), B)
    appended = gp.append(full, points[64], y[64])
    told = gp.tell(gp.track(full, B), points[64], y[64])
    assert appended.count == told.state.count == 65
    np.testing.assert_allclose(gp.predict(appended, B), expected, atol=1e-10)
    np.testing.assert_allclose((told.mean, told.variance), expected, atol=1e-10)
    # inside a program of one's own they cannot: no number comes out, and no wrong one
    more = jnp.asarray(points[64])
    inside = jax.jit(lambda state: gp.posterior(gp.appended(state, more, 1.0, 1.0), B)[0])
    assert np.isnan(inside(full)).all()


def test_values_of_a_datum_compile_nothing():
    points, y = sample(20)
    state = gp.condition(gp.process([0, 0], [1, 1]), *gp.buffered(points, y))
    tracked = gp.track(state, B)

    def append(point, value, ratio):
        gp.append(state, point, value, ratio)
        gp.tell(tracked, point, value, ratio)

    append([0.5, 0.5], 0.1, 1.0)
    on_device = jnp.array([0.1, 0.2]), jnp.asarray(0.4), jnp.asarray(1.0)
    append(*on_device)

    def others():
        append([0.25, 0.5], 0.2, 1.5)
        append((0.25, 1), 3, 2)
        append(np.array([0.1, 0.2]), np.float32(0.4), np.array(1.0))
        append(*on_device)

    assert compilations(others) == 0


@pytest.mark.parametrize(
    "bad", [([0.5, np.nan], 1.0, 1.0), ([0.5, 0.5], np.inf, 1.0), ([0.5, 0.5], 1.0, -1.0)]
)
def test_a_datum_that_is_no_number_is_refused(bad):
    state = gp.condition(gp.process([0, 0], [1, 1]), *gp.buffered(*sample(20)))
    with pytest.raises(ValueError, match="finite"):
        gp.append(state, *bad)
    with pytest.raises(ValueError, match="noise_ratio is -1"):
        gp.buffered(*sample(20), noise_ratio=-1.0)


def test_a_mean_need_not_have_a_value_at_zero():
    """What free rows hold is asked of the mean too."""
    mean = micjax.InverseProblem(lambda x: jnp.log(x), micjax.Gaussian(1.0), {})
    problem = gp.process([1.0], [2.0], mean=mean)
    x = np.linspace(1.0, 2.0, 5)[:, None]
    state = gp.condition(problem, *gp.buffered(x, np.log(x[:, 0])))
    np.testing.assert_allclose(gp.predict(state, x)[0], np.log(x[:, 0]), atol=1e-9)


def test_a_warm_start_is_of_the_same_process():
    buffers = gp.buffered(*sample(20))
    problem = gp.process([0, 0], [1, 1])
    fit = fit_evidence(problem, *buffers)
    fit_evidence(problem.at({"noise.sigma": 0.3}), *buffers, last=fit)  # another start only
    for other in (gp.process([0, 0], [2, 1]), gp.process([0, 0], [1, 1], y_scale=2.0)):
        with pytest.raises(ValueError, match="another process"):
            fit_evidence(other, *buffers, last=fit)


def test_grown_buffers_keep_the_data():
    points, y = sample(64)
    observed, padded = gp.grown(*gp.buffered(points, y))
    assert len(padded) == 128
    problem = gp.process([0, 0], [1, 1])
    small = gp.predict(gp.condition(problem, *gp.buffered(points, y)), B)
    large = gp.predict(gp.condition(problem, observed, padded), B)
    np.testing.assert_allclose(small, large, atol=1e-12)


def test_one_more_point_compiles_nothing():
    points, y = sample(80)
    problem = gp.process([0, 0], [1, 1])

    def loop(first, last):
        fit, tracked = None, None
        for n in range(first, last):
            observed, padded = gp.buffered(points[:n], y[:n])
            fit = fit_evidence(problem, observed, padded, last=fit)
            state = gp.condition(fit.problem, observed, padded)
            tracked = gp.tell(gp.track(state, A), points[n], y[n])
            gp.predict(tracked.state, A)

    loop(40, 43)
    assert compilations(lambda: loop(43, 53)) == 0
    assert compilations(lambda: loop(70, 71)) > 0  # another capacity: the count can tell


def test_singular_kernels_get_more_jitter_and_say_so():
    # no noise, and points so near that float64 cannot tell them apart
    points = np.stack([np.linspace(0.0, 1e-7, 40), np.zeros(40)], axis=1)
    problem = gp.process([0, 0], [1, 1], kernel=RBF(np.ones(2)), priors={"noise.sigma": None})
    problem = problem.at({"noise.sigma": 0.0})
    state = gp.condition(problem, *gp.buffered(points, np.zeros(40)))
    assert np.isfinite(np.asarray(state.root)).all()
    assert state.singular and 0.0 < float(state.jitter) < 1e-11
    rank_one = jnp.ones((400, 400)) * 1e8  # has eigenvalues of -0.3: 3e-9 of its variances
    factor, jitter = algebra.jittered_cholesky(rank_one - 0.3 * jnp.eye(400))
    assert np.isfinite(np.asarray(factor)).all() and 3e-9 < float(jitter) < 3e-8
    factor, jitter = algebra.jittered_cholesky(rank_one + 0.3 * jnp.eye(400))
    assert float(jitter) == 0.0
    np.testing.assert_allclose(factor @ factor.T, rank_one + 0.3 * jnp.eye(400), rtol=1e-12)


def test_float32_input_gives_no_nan_at_800_points():
    points, y = sample(800, noise=0.0)
    points, y = points.astype(np.float32), y.astype(np.float32)
    problem = gp.process([0, 0], [1, 1], kernel=RBF(np.full(2, 0.5)))
    state = gp.condition(problem.at({"noise.sigma": 1e-4}), *gp.buffered(points, y))
    mean, variance = gp.predict(state, RNG.uniform(size=(500, 2)).astype(np.float32))
    assert mean.dtype == np.float64 and (variance > 0).all()
    assert np.abs(state.white).max() < 1e3
    best = float(y.max())
    values = acquisition.log_expected_improvement(mean, np.sqrt(variance), best)
    assert np.isfinite(values).all()


# --- hyper-parameters --------------------------------------------------------------------------


def test_the_fit_finds_the_hyper_parameters_of_a_draw():
    problem = gp.process([0, 0], [1, 1], kernel=RBF(np.array([0.2, 0.6]), 2.0), priors=RBF_PRIORS)
    problem = problem.at({"noise.sigma": 0.1})
    observed, _ = gp.buffered(RNG.uniform(size=(250, 2)), np.zeros(250))
    y = problem.noise(problem.forward(observed)).sample(jax.random.key(3))
    start = problem.at({"forward.kernel.lengthscale": np.ones(2), "noise.sigma": 1.0})
    fit = fit_evidence(start, observed, y)
    values = fit.problem.values()
    np.testing.assert_allclose(values["forward.kernel.lengthscale"], [0.2, 0.6], rtol=0.15)
    np.testing.assert_allclose(values["noise.sigma"], 0.1, rtol=0.15)
    again = fit_evidence(start, observed, y, last=fit)
    assert again.evaluations <= 4 and again.loss <= fit.loss + 1e-6


RBF_PRIORS = {
    "forward.kernel.lengthscale": dist.LogNormal(0.0, 2.0),
    "forward.kernel.amplitude": dist.LogNormal(0.0, 2.0),
}


@pytest.mark.slow
def test_many_points_start_on_a_part_of_them():
    points, y = sample(600)
    observed, padded = gp.buffered(points, y)
    problem = gp.process([0, 0], [1, 1])
    fit = fit_evidence(problem, observed, padded)
    theta = fit.problem.unconstrain(fit.problem.values())
    slope = eqx.filter_jit(jax.grad(micjax.neg_log_joint))(theta, fit.problem, observed, padded)
    assert max(float(jnp.max(jnp.abs(g))) for g in slope.values()) < 0.1


def test_heteroscedastic_noise_is_found():
    points = RNG.uniform(size=(300, 1))
    y = np.exp(-3.0 + 2.0 * points[:, 0]) * RNG.normal(size=300)
    noise = gp.LogLinear(0.1, np.zeros(1), np.zeros(1), np.ones(1))
    priors = {"noise.slope": dist.Normal(0.0, 3.0), "noise.sigma": dist.LogNormal(-3.0, 2.0)}
    problem = gp.process([0], [1], noise=noise, priors=priors)
    fit = fit_evidence(problem, *gp.buffered(points, y))
    np.testing.assert_allclose(fit.problem.noise.slope, [2.0], atol=0.35)


# --- a physical mean ---------------------------------------------------------------------------


def test_a_physical_mean_brings_its_unknowns():
    physics = edge.problem(edge_nm=0.0, width_nm=1.0)
    problem = gp.process([-5], [5], mean=physics, y_scale=0.1)
    assert {"forward.mean.forward.edge_nm", "forward.mean.forward.width_nm"} <= set(problem.priors)
    truth = edge.problem(edge_nm=1.2, width_nm=0.6)
    x_nm = np.linspace(-5.0, 5.0, 40)
    y = (
        np.asarray(truth.forward(jnp.asarray(x_nm)))
        + 0.01 * RNG.normal(size=40)
        + 0.05 * np.sin(x_nm)
    )
    fit = fit_evidence(problem, *gp.buffered(x_nm[:, None], y))
    assert abs(float(fit.problem.forward.mean.forward.edge_nm) - 1.2) < 0.1


def test_a_mean_of_the_wrong_shape_is_named():
    mean = micjax.InverseProblem(lambda points: points, micjax.Gaussian(1.0), {})
    problem = gp.process([0, 0], [1, 1], mean=mean)
    with pytest.raises(ValueError, match="one real number for each"):
        gp.condition(problem, *gp.buffered(A, np.zeros(7)))


def test_priors_of_unknown_names_are_refused():
    with pytest.raises(ValueError, match="forward.kernel.lengthscale"):
        gp.process([0], [1], priors={"forward.kernel.lenghtscale": dist.LogNormal(0.0, 1.0)})


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "y", "message"),
    [
        (np.zeros(3), np.zeros(3), r"\(3,\)"),
        (np.zeros((3, 2)), np.zeros(2), r"\(2,\)"),
        (np.array([[0.0], [np.nan]]), np.zeros(2), r"points holds NaN or infinity in rows \[1\]"),
        (np.zeros((2, 1)), np.array([np.inf, 0.0]), r"y holds NaN or infinity in rows \[0\]"),
    ],
)
def test_bad_data_are_named(points, y, message):
    with pytest.raises(ValueError, match=message):
        gp.buffered(points, y)


def test_too_many_points_for_a_capacity():
    with pytest.raises(ValueError, match="5 points do not fit into a capacity of 4"):
        gp.buffered(np.zeros((5, 1)), np.zeros(5), capacity=4)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="empty"):
        gp.process([0, 1], [1, 1])


def test_duplicates_and_constant_targets_are_taken():
    points = np.repeat(RNG.uniform(size=(5, 2)), 4, axis=0)
    fit = fit_evidence(gp.process([0, 0], [1, 1]), *gp.buffered(points, np.full(20, 3.0)))
    state = gp.condition(fit.problem, *gp.buffered(points, np.full(20, 3.0)))
    mean, variance = gp.predict(state, points)
    np.testing.assert_allclose(mean, 3.0, atol=0.2)
    assert np.isfinite(variance).all()


def test_a_process_is_a_pytree_of_its_state():
    state = gp.condition(gp.process([0, 0], [1, 1]), *gp.buffered(A, np.zeros(7)))
    doubled = jax.tree.map(lambda leaf: leaf * 2 if eqx.is_inexact_array(leaf) else leaf, state)
    np.testing.assert_allclose(doubled.root, 2.0 * state.root)


def test_what_a_process_cannot_take_is_refused():
    """Points of another number of axes gave a flat prediction, and imaginary parts were dropped."""
    points = np.linspace(0.0, 1.0, 3)[:, None]
    with pytest.raises(ValueError, match=r"they have to be \[n, 1\]"):
        gp.process([0.0], [1.0]).forward.scaled(jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="y holds complex numbers"):
        gp.buffered(points, points[:, 0] + 1j)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="its widths have to be from 1.18e-38 to 3.4e"),
    ):
        gp.process([0.0], [1e300])
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="y_scale is 1e-130; it has to be from 1.18e-36"),
    ):
        gp.process([0.0], [1.0], y_scale=1e-130)
