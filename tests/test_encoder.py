"""An encoder of images, and mixtures as laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from micjax.nets.encoder import ImageEncoder
from micjax.nets.mixture import mixture_numbers, normal_mixture


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
