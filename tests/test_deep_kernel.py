import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from flax import nnx

from micjax.active.gp import deep as deep_kernel
from micjax.active.gp import process as gp
from micjax.active.gp.kernels import Linear, Matern, Over
from micjax.core.problem import neg_log_joint
from micjax.inference.finite import NonFiniteError

SIDE = 3
AXES = 2 + SIDE**2
BOX = np.zeros(AXES), np.ones(AXES)


def network(seed=0, **settings):
    return deep_kernel.Surroundings(SIDE, rngs=nnx.Rngs(seed), **settings)


def sample(count, seed=0):
    """Places in the unit square, patches, and outcomes that depend on a corner of the patch."""
    rng = np.random.default_rng(seed)
    points = np.hstack([rng.uniform(size=(count, 2)), rng.normal(size=(count, SIDE**2))])
    y = points[:, 6] + 0.5 * np.tanh(points[:, 2]) + 0.3 * np.sin(6.0 * points[:, 0])
    return points, y + 0.1 * rng.normal(size=count)


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


@pytest.fixture(scope="module")
def trained():
    """An ensemble after 20 data, the data, and how to begin another."""
    problem = deep_kernel.deep_process(*BOX, network())
    points, y = sample(20)
    data = gp.buffered(points, y, capacity=32)
    ensemble = deep_kernel.draw_ensemble(problem, jax.random.key(1), members=2)
    return deep_kernel.train(ensemble, *data, 30), data


# --- networks ----------------------------------------------------------------------------------


def test_surroundings_do_not_know_up_from_down():
    patch = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    others = [np.rot90(p, k).ravel() for p in (patch, patch[::-1]) for k in range(4)]
    features = network()(jnp.asarray(np.stack(others)))
    np.testing.assert_allclose(features, np.broadcast_to(features[0], features.shape), atol=1e-14)
    assert len({tuple(o) for o in others}) == 8  # they do differ


def test_far_pixels_tell_less():
    slope = jax.jacobian(network(reach_px=0.3))(jnp.zeros((1, SIDE**2)))
    slope = np.abs(np.asarray(slope)[0, 1, 0].reshape(SIDE, SIDE))
    ratio = np.exp(-0.5 / 0.3**2)  # of the window, from an edge to a corner
    assert 0.0 < slope[0, 0] < 10.0 * ratio * slope[0, 1]


def test_patches_and_their_pixels():
    image = np.arange(42.0).reshape(6, 7)
    pixels, patches = deep_kernel.patches(image, 3)
    assert pixels.shape == (20, 2) and patches.shape == (20, 9)
    np.testing.assert_array_equal(patches[:, 4], image[tuple(pixels.T)])
    np.testing.assert_array_equal(patches[0], image[:3, :3].ravel())


def test_an_even_patch_has_no_middle():
    with pytest.raises(ValueError, match="side 4 has no middle"):
        deep_kernel.Surroundings(4, rngs=nnx.Rngs(0))


# --- the process -------------------------------------------------------------------------------


def test_one_prior_names_all_weights():
    problem = deep_kernel.deep_process(*BOX, network())
    weights = {n for n in problem.unknowns() if n.startswith("forward.kernel.network.")}
    layers = {f"{layer}.{leaf}" for layer in ("hidden", "out") for leaf in ("kernel", "bias")}
    assert weights == {f"forward.kernel.network.{name}" for name in layers}


def test_without_the_network_it_is_the_plain_process():
    """With zero weights the features are the middle pixel: the posterior by the textbook."""
    rng = np.random.default_rng(1)
    zero = jax.tree.map(jnp.zeros_like, network(features=1))
    problem = deep_kernel.deep_process(*BOX, zero)
    points, y = sample(12)
    new = rng.normal(size=(5, AXES))
    state = gp.condition(problem, *gp.buffered(points, y, capacity=16))
    middle, place = (2 + SIDE**2 // 2,), (0, 1)
    kernel = Over(Linear(1.0, 0.7) + Matern(1.0, 0.7), middle) + Over(
        Matern(np.full(2, 0.4), 1.0), place
    )
    gram = np.asarray(kernel(jnp.asarray(points), jnp.asarray(points))) + 0.25 * np.eye(12)
    across = np.asarray(kernel(jnp.asarray(new), jnp.asarray(points)))
    mean, variance = gp.predict(state, new)
    np.testing.assert_allclose(mean, across @ np.linalg.solve(gram, y), rtol=1e-6, atol=1e-8)
    explained = np.einsum("ij,ji->i", across, np.linalg.solve(gram, across.T))
    prior = np.asarray(kernel.diagonal(jnp.asarray(new)))
    np.testing.assert_allclose(variance, prior - explained, rtol=1e-6)


def test_no_places():
    problem = deep_kernel.deep_process(np.zeros(9), np.ones(9), network(), places=0)
    assert not any("place" in name for name in problem.unknowns())
    points, y = sample(8)
    a = jnp.asarray(points[:, 2:])
    expected = (problem.forward.kernel.linear + problem.forward.kernel.smooth)(
        network()(a), network()(a)
    )
    np.testing.assert_allclose(problem.forward.covariance(a, a), expected, rtol=1e-12)


def test_the_objective_is_differentiable_in_the_weights():
    problem = deep_kernel.deep_process(*BOX, network())
    points, y = sample(10)
    observed, y = gp.buffered(points, y, capacity=16)
    theta = problem.unconstrain(problem.values())
    loss = eqx.filter_jit(jax.value_and_grad(neg_log_joint))
    _, gradient = loss(theta, problem, observed, y)
    rng, step = np.random.default_rng(0), 1e-6
    for name in ("forward.kernel.network.hidden.kernel", "forward.kernel.network.out.bias"):
        way = jnp.asarray(rng.normal(size=theta[name].shape))
        ends = [
            loss(theta | {name: theta[name] + s * way}, problem, observed, y)[0]
            for s in (step, -step)
        ]
        difference = (ends[0] - ends[1]) / (2.0 * step)
        np.testing.assert_allclose(jnp.vdot(gradient[name], way), difference, rtol=1e-5)
        assert abs(difference) > 1e-3


# --- the ensemble ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_seed_decides(trained):
    ensemble, data = trained
    new = sample(6, seed=5)[0]

    def again(seed):
        other = deep_kernel.draw_ensemble(ensemble.problem, jax.random.key(seed), members=2)
        return deep_kernel.predict(deep_kernel.train(other, *data, 30), *data, new).mean

    first = deep_kernel.predict(ensemble, *data, new).mean
    np.testing.assert_array_equal(again(1), first)
    assert np.abs(again(2) - first).max() > 1e-3


@pytest.mark.slow
def test_training_goes_on_from_where_it_was(trained):
    ensemble, data = trained
    once = deep_kernel.draw_ensemble(ensemble.problem, jax.random.key(1), members=2)
    half = deep_kernel.train(once, *data, 12)
    both = deep_kernel.train(half, *data, 18)
    for name, values in ensemble.theta.items():
        np.testing.assert_allclose(both.theta[name], values, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_free_rows_do_not_count(trained):
    ensemble, _ = trained
    points, y = sample(20)
    new = sample(6, seed=5)[0]
    found = [
        deep_kernel.predict(deep_kernel.train(ensemble, *data, 5), *data, new)
        for data in (gp.buffered(points, y, capacity=c) for c in (20, 48))
    ]
    np.testing.assert_allclose(found[0].mean, found[1].mean, rtol=1e-7)
    np.testing.assert_allclose(found[0].variance, found[1].variance, rtol=1e-6)


def test_data_that_grow_compile_nothing(trained):
    ensemble, _ = trained
    points, y = sample(32)

    def loop(first, last):
        now = ensemble
        for count in range(first, last):
            data = gp.buffered(points[:count], y[:count], capacity=32)
            now = deep_kernel.train(now, *data, count % 3 + 1)
            deep_kernel.predict(now, *data, points)

    loop(20, 21)
    assert compilations(lambda: loop(21, 30)) == 0


def test_variance_is_that_of_the_mixture(trained):
    ensemble, data = trained
    new = sample(6, seed=5)[0]
    members = []
    for i in range(2):
        theta = {n: v[i] for n, v in ensemble.theta.items()}
        problem = ensemble.problem.at(ensemble.problem.constrain(theta))
        members.append(gp.predict(gp.condition(problem, *data), new))
    means, variances = (np.stack(part) for part in zip(*members, strict=True))
    found = deep_kernel.predict(ensemble, *data, new)
    np.testing.assert_allclose(found.mean, means.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, variances.mean(axis=0) + means.var(axis=0))


def test_a_density_that_is_not_finite_is_told(trained):
    ensemble, (observed, y) = trained
    with pytest.raises(NonFiniteError, match=r"members \[0, 1\]"):
        deep_kernel.train(ensemble, observed, y.at[3].set(jnp.nan), 2)


@pytest.mark.slow
def test_the_network_learns_what_matters():
    """A free network finds the two of ten inputs that count, where the plain process does not."""
    rng = np.random.default_rng(3)
    points = rng.uniform(-1.0, 1.0, (164, 10))
    y = np.sqrt(2.0) * np.sin(2.0 * (points[:, 0] - points[:, 1]))
    known, new = slice(0, 64), slice(64, None)
    data = gp.buffered(points[known], y[known])
    net = deep_kernel.Dense(10, 2, rngs=nnx.Rngs(0))
    box = np.zeros(10), np.ones(10)
    problem = deep_kernel.deep_process(*box, net, places=0)
    ensemble = deep_kernel.draw_ensemble(problem, jax.random.key(0), members=2)
    deep = deep_kernel.predict(deep_kernel.train(ensemble, *data, 400), *data, points[new])
    plain = gp.process(*box, kernel=Matern(1.5, 1.0))
    mean, _ = gp.predict(gp.condition(plain, *data), points[new])
    deep_error, plain_error = (np.mean((m - y[new]) ** 2) for m in (deep.mean, mean))
    assert deep_error < 0.5 * plain_error


# --- several outputs ---------------------------------------------------------------------------


@pytest.mark.slow
def test_outputs_are_independent_normals():
    points, y = sample(9)
    values = np.stack([y, np.cos(3.0 * y)], axis=1)
    observed, z = deep_kernel.buffered_outputs(points, values, capacity=16)
    amplitude, sigma = np.array([0.8, 1.7]), np.array([0.3, 1.2])
    noise = deep_kernel.EachOutput(amplitude, sigma)
    problem = deep_kernel.deep_process(*BOX, network(), noise=noise)
    marginal = problem.forward(observed)
    mean, gram = np.asarray(marginal.mean)[:9], np.asarray(marginal.covariance)[:9, :9]
    expected = sum(
        scipy.stats.multivariate_normal(a * mean, a**2 * (gram + s**2 * np.eye(9))).logpdf(v)
        for a, s, v in zip(amplitude, sigma, values.T, strict=True)
    )
    # the process adds 1e-9 of its variance to the diagonal
    np.testing.assert_allclose(noise(marginal).log_prob(z), expected, rtol=1e-6)
    draws = noise(marginal).sample(jax.random.key(0), (4000,))
    assert draws.shape == (4000, 16, 2)
    variances = amplitude**2 * (np.diag(gram)[:, None] + sigma**2)
    np.testing.assert_allclose(np.var(draws[:, :9], axis=0), variances, rtol=0.15)


def test_one_output_is_the_scalar_process():
    points, y = sample(10)
    new = sample(4, seed=5)[0]
    one = deep_kernel.EachOutput(np.ones(1), np.array([0.5]))
    known = {"noise.amplitude": None}
    results = []
    for noise, data in (
        (None, gp.buffered(points, y, capacity=16)),
        (one, deep_kernel.buffered_outputs(points, y[:, None], capacity=16)),
    ):
        priors = known if noise is one else None
        problem = deep_kernel.deep_process(*BOX, network(), noise=noise, priors=priors)
        theta = {n: v[None] for n, v in problem.unconstrain(problem.values()).items()}
        ensemble = deep_kernel.draw_ensemble(problem, jax.random.key(0), members=1)
        ensemble = deep_kernel.train(ensemble._replace(theta=theta), *data, 10)
        results.append(deep_kernel.predict(ensemble, *data, new))
    scalar, output = results
    np.testing.assert_allclose(output.mean[:, 0], scalar.mean, rtol=1e-9)
    np.testing.assert_allclose(output.variance[:, 0], scalar.variance, rtol=1e-9)
    np.testing.assert_allclose(output.noise[0], scalar.noise, rtol=1e-9)


def test_a_basis_gives_spectra_back():
    rng = np.random.default_rng(0)
    spectra = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 16)) + 2.0
    basis = deep_kernel.basis_of(spectra, 3)
    coefficients = basis.coefficients(spectra)
    np.testing.assert_allclose(coefficients.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(coefficients.std(axis=0), 1.0)
    back, variance = basis.spectra(coefficients, np.zeros_like(coefficients))
    np.testing.assert_allclose(back, spectra)
    np.testing.assert_allclose(variance, 0.0, atol=1e-12)
    with pytest.raises(ValueError, match="have 3 components; 4 are asked for"):
        deep_kernel.basis_of(spectra, 4)


def test_what_a_basis_leaves_out_is_in_the_variance():
    spectra = np.random.default_rng(0).normal(size=(50, 8))
    basis = deep_kernel.basis_of(spectra, 3)
    coefficients = basis.coefficients(spectra)
    back, variance = basis.spectra(coefficients, np.zeros_like(coefficients))
    np.testing.assert_allclose(np.mean((spectra - back) ** 2, axis=0), variance[0])


def test_a_prior_may_be_changed():
    wide = {"forward.kernel.network": dist.Normal(0.0, 2.0), "noise.sigma": None}
    problem = deep_kernel.deep_process(*BOX, network(), priors=wide)
    assert "noise.sigma" not in problem.unknowns()
    prior = problem.unknowns()["forward.kernel.network.out.bias"]
    np.testing.assert_allclose(prior.variance, 4.0)
