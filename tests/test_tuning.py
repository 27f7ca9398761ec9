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
from micjax.physics.patches.unmixing.tuning import (
    Look,
    alternate_bands,
    as_seen,
    held_out_rings,
    pure_patches,
    rings_of,
)
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


OF_MAPS = ("purity", "compactness", "balance", "separation")
COMPARED = ("agreement", "shift_agreement")
NAMES = (*OF_MAPS, *COMPARED, "explained", "held_out")


@eqx.filter_jit
def all_rewards(look, image, polar, pure, other):
    found = as_seen(look, image, polar, pure)
    values = [getattr(rewards, name)(found.abundance) for name in OF_MAPS]
    values += [getattr(rewards, name)(found.abundance, other) for name in COMPARED]
    held = jnp.asarray(alternate_bands(12, 3))
    rings = rings_of(look.width, image, polar)
    values += [found.explained, held_out_rings(look, rings, polar, pure, held)]
    return jnp.stack(values)


@pytest.fixture(scope="module")
def derivatives(seen):
    """Of each reward along each field of the look and along a wave in the image: both ways."""
    look, image, polar, pure, begun = seen
    held = polar, pure, begun.abundance[::-1] + 0.1
    of_look, of_image = eqx.filter_jit(jax.jacrev(all_rewards, (0, 1)))(look, image, *held)
    wave, step = jnp.asarray(np.random.default_rng(0).normal(size=image.shape)), 1e-6
    exact = [*of_look, jnp.sum(of_image * wave, axis=(1, 2))]
    changes = [(look._replace(**{f: getattr(look, f) + step}), image) for f in Look._fields]
    back = [(look._replace(**{f: getattr(look, f) - step}), image) for f in Look._fields]
    changes, back = [*changes, (look, image + step * wave)], [*back, (look, image - step * wave)]
    differences = [
        (all_rewards(*ahead, *held) - all_rewards(*behind, *held)) / (2.0 * step)
        for ahead, behind in zip(changes, back, strict=True)
    ]
    return np.array(exact), np.array(differences)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_by_finite_differences(derivatives, name):
    exact, differences = (d[:, NAMES.index(name)] for d in derivatives)
    np.testing.assert_allclose(exact, differences, rtol=1e-6, atol=2e-8)
    assert abs(exact[-1]) > 1e-6 and np.abs(exact[:-1]).max() > 1e-3


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
