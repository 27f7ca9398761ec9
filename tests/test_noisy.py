"""Acquisitions for noisy measurements, beside what conditioning itself says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from micjax.active.acquire import noisy
from micjax.active.acquire.values import log_expected_improvement
from micjax.active.gp import process as gp
from micjax.active.learner.learner import Learner
from micjax.active.learner.space import SearchAxis, Space
from micjax.core.precision import double

X = np.array([[0.05], [0.2], [0.45], [0.5], [0.8], [0.95]])
Y = np.sin(5.0 * X[:, 0]) + np.array([0.1, -0.2, 0.2, -0.1, 0.05, 0.1])
AT = np.array([[0.1], [0.27], [0.35], [0.5], [0.65]])


def state(sigma):
    values = {"noise.sigma": sigma, "forward.kernel.lengthscale": np.array([0.3])}
    return gp.condition(gp.process([0.0], [1.0]).at(values), *gp.buffered(X, Y))


@double
def improvement(known, sign, draws=256):
    z = jnp.asarray(noisy.normals(draws, len(known.y)))

    def of(points):
        drawn = noisy.truths(known, z, jnp.asarray(sign))
        return noisy.log_noisy_improvement(points, known, drawn, jnp.asarray(sign))

    return np.exp(jax.jit(of)(jnp.asarray(AT)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_noisy_improvement_is_that_over_joint_draws(sign):
    """Beside draws of the function at the data and the points together."""
    known, everywhere = state(0.2), np.concatenate([X, AT])
    with jax.enable_x64(True):
        mean, covariance = map(np.asarray, gp.joint(known, jnp.asarray(everywhere)))
    f = np.random.default_rng(0).multivariate_normal(mean, covariance, size=400_000)
    highest = (sign * f[:, : len(X)]).max(axis=1)
    expected = np.maximum(sign * f[:, len(X) :] - highest[:, None], 0.0).mean(axis=0)
    # of one setting measured before, which is no better than itself, the improvement is 0
    np.testing.assert_allclose(improvement(known, sign), expected, rtol=0.08, atol=3e-4)


def test_without_noise_it_is_the_expected_improvement():
    known = state(1e-4)
    mean, variance = gp.predict(known, AT)
    expected = np.exp(log_expected_improvement(mean, np.sqrt(variance), Y.max()))
    elsewhere = [0, 1, 2, 4]
    np.testing.assert_allclose(
        improvement(known, 1.0)[elsewhere], expected[elsewhere], rtol=0.02, atol=1e-6
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_knowledge_gradient_is_what_conditioning_gains(sign):
    """Beside the highest mean after every outcome that may come, by a fine sum over them."""
    known, z = state(0.2), np.linspace(-6.0, 6.0, 1201)

    @jax.jit
    def after(point, y):
        new = known.with_datum(point, y, 1.0)
        mean, _ = gp.posterior(new, jnp.concatenate([jnp.asarray(X), point[None]]))
        return jnp.max(sign * mean)

    with jax.enable_x64(True):
        found = np.exp(
            jax.jit(noisy.log_knowledge)(jnp.asarray(AT), known, jnp.asarray(X), jnp.asarray(sign))
        )
        for point, gain in zip(jnp.asarray(AT), found, strict=True):
            here = jnp.concatenate([jnp.asarray(X), point[None]])
            mean, variance = gp.posterior(known, here)
            outcomes = mean[-1] + jnp.sqrt(variance[-1] + 0.2**2) * z
            best = np.asarray(jax.vmap(after, (None, 0))(point, outcomes))
            weight = norm.pdf(z) / norm.pdf(z).sum()
            assert gain == pytest.approx(weight @ best - float((sign * mean).max()), rel=1e-3)


@pytest.mark.parametrize("name", ["noisy_ei", "knowledge_gradient"])
def test_a_learner_can_be_told_to(name):
    grid = np.linspace(0.0, 1.0, 21)[:, None]
    space = Space([SearchAxis("u", 0.0, 1.0)], grid)
    learner = Learner(space, acquisition=name, initial=5, seed=1)
    for _ in range(7):
        (point,) = learner.suggest()
        learner.ingest([{**point, "y": -((point["u"] - 0.7) ** 2)}])
    assert len({tuple(p) for p in learner.data[0].tolist()}) == 7
    assert abs(learner.get_best_points()[0][1]["u"] - 0.7) < 0.11
