"""A network in place of an unknown image: the same problem, other unknowns."""

import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax.scipy.signal import convolve

import micjax
from micjax import Gaussian, InverseProblem, free, parameter
from micjax.inference.solvers.first_order import Adam
from micjax.nets.deep_prior import deep_prior
from micjax.nets.unet import UNet

SIDE = 16


class Blurred(eqx.Module):
    surface: jax.Array = parameter()
    gain: jax.Array = parameter()

    def __call__(self, x):
        return self.gain * convolve(self.surface, jnp.ones((3, 3)) / 9.0, mode="same") + 0.0 * x


def plain(width=8):
    priors = {"forward.surface": free(), "forward.gain": dist.LogNormal(0.0, 0.1)}
    return InverseProblem(Blurred(jnp.zeros((SIDE, SIDE)), 1.0), Gaussian(0.3), priors)


def problem(width: int = 8):
    network = UNet(width=width, depth=1, rngs=nnx.Rngs(0))
    return deep_prior(plain(), "forward.surface", network, key=jax.random.key(0), scale=1.0)


def example(key):
    y, x = np.indices((SIDE, SIDE)) / SIDE
    true = jnp.asarray(np.where(np.hypot(y - 0.5, x - 0.5) < 0.3, 2.0, 0.0))
    truth = eqx.tree_at(lambda p: p.forward.offset, problem(), true)
    where = jnp.zeros((SIDE, SIDE))
    return truth, where, truth.noise(truth.forward(where)).sample(key).astype(float)


@pytest.mark.slow
def test_it_keeps_the_contract():
    module = types.ModuleType("deep_blurred")
    vars(module).update(problem=problem, example=example, __doc__="Deep.")
    sys.modules["deep_blurred"] = module
    report = micjax.check(module)
    assert all(fault == "" for _, fault in report.rows)
    del sys.modules["deep_blurred"]


def test_its_unknowns_are_weights_and_the_others():
    deep = problem()
    names = set(deep.unknowns())
    assert {n for n in names if not n.startswith("forward.network.")} == {"forward.model.gain"}
    np.testing.assert_array_equal(deep.forward.image, 0.0)


def test_it_finds_the_image_before_the_noise():
    """Without a network the image is best after twenty steps, and worse than this even then."""
    truth, x, y = example(jax.random.key(1))
    deep = micjax.fit(problem(), x, y, Adam(3e-3), steps=60).problem.forward.image
    alone = micjax.fit(plain(), x, y, Adam(1e-1), steps=20).problem.forward.surface
    off = [float(jnp.std(image - truth.forward.offset)) for image in (deep, alone)]
    assert off[0] < 0.7 * off[1]


def test_a_name_that_is_no_image():
    network = UNet(width=8, depth=1, rngs=nnx.Rngs(0))
    for name, message in (
        ("forward.surfac", "nearest: forward.surface"),
        ("forward.gain", "of shape .*: an image is needed"),
        ("noise.sigma", "no unknown of the forward model"),
    ):
        with pytest.raises(ValueError, match=message):
            deep_prior(plain(), name, network, key=jax.random.key(0), scale=1.0)
