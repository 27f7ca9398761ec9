"""Rewards as functions of window, band, sparsity and image: derivatives are finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import polycrystal
from micjax.physics.patches.unmixing import rewards
from micjax.physics.patches.unmixing.equivariant import encode, learn
from micjax.physics.patches.unmixing.tuning import Look, as_seen, pure_patches
from micjax.physics.patches.windows import GaussianWindow
from micjax.problems import phase_map

LOOK = Look(0.42, 0.12, 0.7, 0.06)


@pytest.fixture(scope="module")
def seen():
    """An image of two phases, and what the templates are means of."""
    rng = np.random.default_rng(3)
    lattices = phase_map.palladium_selenides()
    crystal = polycrystal(rng, lattices, (112, 128), sampling_A=0.5, grains=3)
    image = jnp.asarray((crystal.image - crystal.image.mean()) / crystal.image.std())
    polar = Polar(LocalSpectra(GaussianWindow(0.42), 40, 12, 0.5, 0.8), 0.1, 12, 36)
    rings = polar(polar.local(image)).reshape(-1, 12, 36)
    templates = learn(rings, 2, rng, starts=2, steps=8).templates
    rings = rings / jnp.linalg.norm(rings.reshape(len(rings), -1), axis=1)[:, None, None]
    pure = pure_patches(encode(rings, templates)[0], 2)
    look = jax.tree.map(jnp.asarray, LOOK)
    return look, image, polar, pure, as_seen(look, image, polar, pure)


REWARDS = {
    "purity": rewards.purity,
    "compactness": rewards.compactness,
    "balance": rewards.balance,
    "separation": rewards.separation,
}


def reward_of(name, seen, other=None):
    if name == "explained":
        return seen.explained
    if name == "agreement":
        return rewards.agreement(seen.abundance, other)
    return REWARDS[name](seen.abundance)


@eqx.filter_jit
def with_gradient(name, look, image, polar, pure, other):
    def reward(look, image):
        return reward_of(name, as_seen(look, image, polar, pure), other)

    return jax.value_and_grad(reward, (0, 1))(look, image)


@pytest.mark.parametrize("name", [*REWARDS, "explained", "agreement"])
def test_rewards_by_finite_differences(seen, name):
    look, image, polar, pure, begun = seen
    other = begun.abundance[::-1] + 0.1
    (of_look, of_image), step = with_gradient(name, look, image, polar, pure, other)[1], 1e-6

    def differences(change):
        ends = []
        for sign in (1.0, -1.0):
            at = jax.tree.map(lambda v, d, s=sign: v + s * step * d, (look, image), change)
            ends.append(float(with_gradient(name, *at, polar, pure, other)[0]))
        return (ends[0] - ends[1]) / (2.0 * step)

    still = jax.tree.map(jnp.zeros_like, (look, image))
    for i, field in enumerate(Look._fields):
        along = (still[0]._replace(**{field: jnp.asarray(1.0)}), still[1])
        assert float(of_look[i]) == pytest.approx(differences(along), rel=1e-6, abs=2e-8)
    wave = jnp.asarray(np.random.default_rng(0).normal(size=image.shape))
    slope = float(jnp.sum(of_image * wave))
    assert slope == pytest.approx(differences((still[0], wave)), rel=1e-6, abs=2e-8)
    assert abs(slope) > 1e-6 and np.abs(np.asarray(of_look)).max() > 1e-3


def test_it_sees_the_phases(seen):
    *_, begun = seen
    assert 0.7 < float(begun.explained) <= 1.0
    assert float(rewards.purity(begun.abundance)) > 0.7


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_the_image_is_nothing(seen, unit):
    look, image, polar, pure, begun = seen
    same = as_seen(look, unit * image + unit, polar, pure)
    np.testing.assert_allclose(same.abundance, begun.abundance, atol=1e-6)


def test_pure_patches_are_of_one_phase(seen):
    *_, pure, _ = seen
    np.testing.assert_allclose(pure.weight.sum(axis=0), 1.0, rtol=1e-6)
    assert not np.any((pure.weight > 0).sum(axis=1) > 1)
