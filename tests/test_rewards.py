import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.patches.unmixing import rewards

RNG = np.random.default_rng(0)
HALVES = np.zeros((6, 8, 2))
HALVES[:, :4, 0] = HALVES[:, 4:, 1] = 1.0
MIXED = np.full((6, 8, 2), 0.5)
RANDOM = RNG.uniform(0.05, 1.0, (6, 8, 3))
OF_MAPS = (rewards.purity, rewards.compactness, rewards.balance, rewards.separation)


def test_values_of_halves_and_mixtures():
    halves, mixed = jnp.asarray(HALVES), jnp.asarray(MIXED)
    assert rewards.purity(halves) == 1.0 and rewards.purity(mixed) == 0.5
    assert rewards.compactness(halves) == pytest.approx(
        1.0 - 0.5 / 7.0
    )  # one of seven steps along x
    assert rewards.compactness(mixed) == 1.0
    assert rewards.balance(halves) == pytest.approx(1.0)
    assert rewards.balance(halves.at[:, 4:].set(halves[:, :4])) == pytest.approx(0.0)
    assert rewards.separation(halves) == 1.0 and rewards.separation(mixed) == pytest.approx(0.0)
    assert rewards.agreement(halves, halves) == 1.0
    assert rewards.agreement(halves, halves[..., ::-1]) == 1.0  # whatever the order
    assert rewards.agreement(halves, mixed) == 0.5
    assert rewards.shift_agreement(halves, halves) == pytest.approx(1.0 - 0.5 / 7.0)
    shuffled = RNG.permutation(HALVES.reshape(-1, 2)).reshape(HALVES.shape)
    assert rewards.compactness(jnp.asarray(shuffled)) < rewards.compactness(halves)


def test_held_out_frequencies():
    template = RNG.uniform(size=(2, 10))
    abundance = RNG.uniform(size=(30, 2))
    data, held = abundance @ template, np.arange(10) > 6
    wrong = np.where(held, 3.0 * data, 7.0)  # neither scale nor what was fitted counts
    model = np.where(np.arange(10) % 2, data, 0.0)
    share = np.sum(model[:, held] ** 2) / np.sum(data[:, held] ** 2)
    for given, expected in ((wrong, 1.0), (0 * data, 0.0), (model, share)):
        found = rewards.held_out(*(jnp.asarray(v) for v in (data, given, held)))
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("reward", OF_MAPS)
def test_scale_is_nothing_and_derivatives_are_finite_differences(reward):
    given = jnp.asarray(RANDOM)
    scales = RNG.uniform(1.0, 9.0, (6, 8, 1))  # of each patch
    for unit in (1e-9, 1e9):
        assert reward(given * unit * scales) == pytest.approx(float(reward(given)), rel=1e-9)
    check_grads(jax.jit(reward), (given,), order=1, modes=["rev"], eps=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reward", [rewards.agreement, rewards.shift_agreement])
def test_the_gradient_of_agreement(reward):
    other = functools.partial(reward, jnp.asarray(RANDOM[::-1]))
    check_grads(jax.jit(other), (jnp.asarray(RANDOM),), order=1, modes=["rev"], eps=1e-6, rtol=1e-6)


def test_too_many_phases_to_compare():
    with pytest.raises(ValueError, match="6 phases at most"):
        rewards.agreement(*(jnp.ones((2, 2, 7)) for _ in range(2)))
