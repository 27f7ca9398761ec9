"""Intervals that cover, mixtures as laws, an encoder of images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from micjax.nets.conformal import conformal_factor
from micjax.nets.encoder import ImageEncoder
from micjax.nets.mixture import mixture_numbers, normal_mixture


def test_the_factor_is_the_order_statistic():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))  # 19 of them
    assert conformal_factor(scores, 0.9) == 18.0  # (19 + 1) 0.9 = 18
    assert conformal_factor(scores, 0.91) == 19.0
    assert conformal_factor(scores, 0.95) == 19.0
    assert conformal_factor(scores, 0.951) == math.inf
    assert conformal_factor(scores[:8], 0.9) == math.inf  # 9 are needed


def test_coverage_is_exact():
    """P(new score <= factor) = k / (n + 1) over 20,000 draws of 30 scores and a new one."""
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(20_000, 31))
    held = [row[-1] <= conformal_factor(row[:-1], 0.8) for row in draws]
    assert np.mean(held) == pytest.approx(25 / 31, abs=4 * 0.4 / np.sqrt(20_000))


def test_scores_that_say_nothing():
    for scores in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="scores are NaN"):
            conformal_factor(scores, 0.9)
    with pytest.raises(ValueError, match="level = 1.0"):
        conformal_factor(np.ones(3), 1.0)


def test_a_mixture_is_that_of_its_numbers():
    numbers = np.random.default_rng(2).normal(size=(4, mixture_numbers(2, 3)))
    z = np.random.default_rng(3).normal(size=(4, 3))
    by_hand = []
    for row, point in zip(numbers, z, strict=True):
        densities, parts = [], row.reshape(2, -1)
        for k, part in enumerate(parts):
            root = np.diag(np.exp(part[4:7]))
            root[1, 0], root[2, 0], root[2, 1] = part[7:]
            mean = part[1:4] + 0.1 * k * np.cos(np.arange(3) + 1.0)
            densities.append(scipy.stats.multivariate_normal(mean, root @ root.T).pdf(point))
        share = np.exp(parts[:, 0]) / np.exp(parts[:, 0]).sum()
        by_hand.append(np.log(share @ densities))
    law = normal_mixture(jnp.asarray(numbers), 2, 3)
    np.testing.assert_allclose(law.log_prob(jnp.asarray(z)), by_hand, rtol=1e-4)
    assert law.sample(jax.random.key(0), (5,)).shape == (5, 4, 3)
    with pytest.raises(ValueError, match="19 numbers: 2 normal laws of 3 need 20"):
        normal_mixture(jnp.zeros(19), 2, 3)


def test_an_encoder_of_any_size():
    encoder = ImageEncoder(2, 3, width=8, depth=2, fold=2, rngs=nnx.Rngs(0))
    assert encoder.multiple == 8
    run = jax.jit(lambda e, i: e(i))
    image = jax.random.normal(jax.random.key(0), (4, 16, 24, 2))
    np.testing.assert_array_equal(run(encoder, image), np.zeros((4, 3)))  # it begins with nothing
    kernel = encoder.last.kernel
    kernel.set_value(jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    together, alone = run(encoder, image), run(encoder, image[1:2])
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.std(together, axis=0).min() > 1e-3
    with pytest.raises(ValueError, match="16 x 20 pixels: multiples of 8"):
        encoder(jnp.zeros((16, 20, 2)))
