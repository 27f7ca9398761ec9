"""The law of images of an unknown object, against dense covariances frequency by frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons.phase_diversity import (
    Probes,
    ProbeSeries,
    UnknownObject,
    evidence,
    information,
)

SHAPE = (12, 10)
X = ProbeSeries(
    jnp.array([[0.0, 0.0, 0.0], [150.0, 0.0, 0.0], [-100.0, 40.0, -30.0], [9.0, 9.0, 9.0]]),
    jnp.array([1.0, 1.0, 1.0, 0.0]),
)
FOUND_A = {"C10": 80.0, "C12a": -30.0, "C12b": 20.0}


def probes(**moved_A):
    return Probes(FOUND_A | moved_A, 0.9, 200.0, 10.0, SHAPE)


def law(scatter):
    return UnknownObject(200.0, 50.0, 0.1, 5.0, 0.6, scatter, 0.02)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense(series):
    """Covariance of the images at every frequency [ny, nq, images, images], strength 1."""
    h = np.moveaxis(np.asarray(jnp.fft.rfft2(series.probes)), 0, -1)
    noise = np.moveaxis(np.asarray(series.variances()), 0, -1)
    spectrum = np.asarray(series.spectrum)[..., None, None]
    return spectrum * h[..., :, None] * h[..., None, :].conj() + noise[..., None] * np.eye(4)


def test_probes_hold_all_electrons_and_free_rows_none():
    total = np.asarray(probes()(X)).sum(axis=(1, 2))
    np.testing.assert_allclose(total, [1.0, 1.0, 1.0, 0.0], atol=1e-12)


def test_the_likelihood_is_that_of_the_dense_covariances():
    images = jnp.asarray(np.random.default_rng(0).poisson(200.0, (4, *SHAPE)), float)
    series = law(1e-9)(probes()(X))
    y = np.moveaxis(np.asarray(series.windowed(images)), 0, -1)
    covariance = dense(series)
    misfit = np.einsum("...i,...ij,...j", y.conj(), np.linalg.inv(covariance), y).real
    each = misfit + np.linalg.slogdet(covariance)[1]
    expected = -0.5 * np.sum(series.weights() * each)
    assert float(series.log_prob(images)) == pytest.approx(expected, rel=1e-9)


def test_unknown_strengths_are_integrated_out():
    """At one frequency, beside the integral by a fine sum over the strengths."""
    images = jnp.asarray(np.random.default_rng(1).poisson(200.0, (4, *SHAPE)), float)
    z = np.linspace(-8.0, 8.0, 4001)
    chances = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    series = law(0.7)(probes()(X))
    h, noise = np.asarray(jnp.fft.rfft2(series.probes)), np.asarray(series.variances())
    y = np.asarray(series.windowed(images))
    total = 0.0
    for q in np.ndindex(*h.shape[1:]):
        s = float(series.spectrum[q]) * np.exp(0.7 * z)
        power = np.sum(np.abs(h[:, *q]) ** 2 / noise[:, *q])
        seen = np.abs(np.sum(h[:, *q].conj() * y[:, *q] / noise[:, *q])) ** 2
        explained = np.exp(s * seen / (1 + s * power)) / (1 + s * power)
        unseen = np.sum(np.abs(y[:, *q]) ** 2 / noise[:, *q] + np.log(noise[:, *q]))
        total += 0.5 * series.weights()[q] * (np.log(np.sum(chances * explained)) - unseen)
    assert float(series.log_prob(images)) == pytest.approx(total, abs=0.02)


def test_free_rows_change_nothing():
    images = jnp.asarray(np.random.default_rng(0).poisson(200.0, (3, *SHAPE)), float)
    padded = jnp.concatenate([images, jnp.zeros((1, *SHAPE))])
    short = ProbeSeries(X.settings_A[:3], X.present[:3])

    def loss(C10, x, y):
        return -law(0.7)(probes(C10=C10)(x)).log_prob(y)

    slope = jax.jit(jax.grad(loss))
    found = [slope(80.0, x, y) for x, y in ((X, padded), (short, images))]
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-9)


def test_information_is_that_of_the_dense_covariances():
    """1/2 sum_q tr(C^-1 dC_i C^-1 dC_j), dC by finite differences of the whole covariance."""
    series = law(1e-9)(probes()(X))
    middle, noise = dense(series), series.variances()
    slopes = []
    for name, value in FOUND_A.items():
        ends = []
        for sign in (1.0, -1.0):
            moved = law(1e-9)(probes(**{name: value + 1e-2 * sign})(X))
            moved.variances = lambda: noise  # held: the information is that of the transfer
            ends.append(dense(moved))
        slopes.append(np.linalg.solve(middle, (ends[0] - ends[1]) / 2e-2))
    # for complex data the trace counts once for a coefficient and its conjugate, hence 1/2 weights
    expected = [
        [np.sum(series.weights() * np.einsum("...ij,...ji", a, b).real) / 2 for b in slopes]
        for a in slopes
    ]
    found = information(probes(), law(1e-9), evidence(probes(), law(1e-9), X))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.max(expected))
