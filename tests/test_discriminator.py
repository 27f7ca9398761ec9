"""Two networks that play against each other, and one optimiser for both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from micjax.core.tree import replace
from micjax.nets.discriminator import Adversaries, PatchDiscriminator, adversarial
from micjax.nets.layers import conv
from micjax.nets.train import weights_of


@pytest.fixture(scope="module")
def slopes():
    """Of both losses by all weights, of a judge that has an opinion."""
    rngs = nnx.Rngs(0)
    judge = PatchDiscriminator(2, width=8, depth=1, rngs=rngs)
    judge.last = conv(16, 1, rngs, size=1)
    pair = Adversaries(conv(1, 1, rngs), judge)
    given, measured = jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 1))

    def losses(weights):
        both = replace(pair, weights)
        return adversarial(both, given, both.maker(given), measured)

    return jax.jit(lambda w: (losses(w), jax.jacrev(losses)(w)))(weights_of(pair))


def test_each_loss_is_felt_by_its_own_network_only(slopes):
    _, (of_maker, of_judge) = slopes
    names = set(of_maker)
    assert any(n.startswith("maker") for n in names) and any(n.startswith("judge") for n in names)
    for name in names:
        own, other = (of_maker, of_judge) if name.startswith("maker") else (of_judge, of_maker)
        assert np.all(np.asarray(other[name]) == 0.0), name
    assert all(np.any(np.asarray(of_maker[n]) != 0.0) for n in names if n.startswith("maker"))
    assert np.any(np.asarray(of_judge["judge.first.kernel"]) != 0.0)


def test_a_judge_without_an_opinion_loses_half_of_either():
    judge = PatchDiscriminator(2, width=8, depth=2, rngs=nnx.Rngs(0))
    image = jnp.ones((2, 8, 8, 1))
    assert judge(jnp.concatenate([image, image], axis=-1)).shape == (2, 2, 2, 1)
    losses = adversarial(Adversaries(conv(1, 1, nnx.Rngs(1)), judge), image, image, image)
    np.testing.assert_allclose(losses, (1.0, 0.5))
