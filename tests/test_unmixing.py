import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar, harmonics, radial
from micjax.physics.patches.unmixing import equivariant, nnls
from micjax.physics.patches.windows import Hann

RNG = np.random.default_rng(0)
K, F = 4, 9
TEMPLATES = RNG.uniform(size=(K, F))
PATCHES = np.maximum(RNG.normal(0.3, 0.5, size=(12, K)), 0) @ TEMPLATES
PATCHES = np.maximum(PATCHES + 0.2 * RNG.normal(size=PATCHES.shape), 0)
GIVEN = jnp.asarray(PATCHES), jnp.asarray(TEMPLATES)


def lattice(angle_rad, shape=(64, 64), sampling_A=0.4):
    """An oblique one, whose spectrum is turned against the image by the angle."""
    y, x = np.indices(shape) * sampling_A
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    waves = [(0.25, 0.0, 1.0), (0.05, 0.32, 0.6), (-0.2, 0.32, 0.4)]
    return sum(
        a * np.cos(2 * np.pi * ((c * kx - s * ky) * x + (s * kx + c * ky) * y))
        for kx, ky, a in waves
    )


@functools.cache
def polar():
    return Polar(LocalSpectra(Hann(), 48, 16, 0.4, 0.5, 3), 0.1, 24, 90)


@functools.cache
def rings(angle_rad):
    local = polar().local
    return jax.jit(lambda image: polar()(local(image))[0, 0])(jnp.asarray(lattice(angle_rad)))


def test_a_turned_crystal_is_a_shifted_spectrum():
    steps = 7
    turned = jnp.roll(rings(0.2), steps, axis=-1)
    found = rings(0.2 + steps * np.pi / 90)
    error = np.linalg.norm(found - turned) / np.linalg.norm(turned)
    assert error < 0.05
    np.testing.assert_allclose(radial(found), radial(turned), atol=0.02 * radial(turned).max())
    strong = harmonics(turned, 6)
    np.testing.assert_allclose(harmonics(found, 6), strong, atol=0.03 * strong.max())
    assert np.linalg.norm(rings(0.2) - turned) / np.linalg.norm(turned) > 0.8


def test_rings_lie_where_the_reflections_are():
    grid = polar().grid
    r, t = np.unravel_index(np.argmax(rings(0.3)), (24, 90))
    assert grid.radius_perA[r] == pytest.approx(0.25, abs=0.01)
    assert grid.angle_rad[t] == pytest.approx(0.3, abs=0.03)


def test_two_templates_at_two_angles_are_taken_apart():
    templates = np.stack([rings(0.0), RNG.uniform(size=(24, 90)) ** 8])
    templates /= np.linalg.norm(templates, axis=(1, 2), keepdims=True)
    wanted = [(0, 5, 0.7, 1, 40, 0.3), (1, 80, 0.6, 1, 20, 0.5), (0, 10, 1.0, 0, 10, 0.0)]
    patches = np.stack(
        [
            a * np.roll(templates[k], t, -1) + b * np.roll(templates[m], u, -1)
            for k, t, a, m, u, b in wanted
        ]
    )
    code, left = equivariant.encode(jnp.asarray(patches), jnp.asarray(templates))
    for i, (k, t, a, m, u, b) in enumerate(wanted):
        assert (code.phase[i, 0], code.turn[i, 0]) == (k, t)
        np.testing.assert_allclose(code.weight[i], (a, b), atol=1e-8)
        if b:
            assert (code.phase[i, 1], code.turn[i, 1]) == (m, u)
    assert np.abs(left).max() < 1e-8
    np.testing.assert_allclose(
        equivariant.abundances(code, 2), [[0.7, 0.3], [0.0, 1.1], [1.0, 0.0]], atol=1e-8
    )


def test_atoms_are_those_of_a_pursuit_over_all_angles():
    """In the dictionary of every template at every angle, patch by patch."""
    rng = np.random.default_rng(3)
    templates = rng.uniform(size=(3, 5, 20)) ** 3
    templates /= np.linalg.norm(templates, axis=(1, 2), keepdims=True)
    patches = rng.uniform(size=(40, 5, 20)) ** 2
    code, left = equivariant.encode(jnp.asarray(patches), jnp.asarray(templates))
    every = np.array([np.roll(h, t, -1).ravel() for h in templates for t in range(20)])
    for i, patch in enumerate(patches.reshape(40, -1)):
        first = int(np.argmax(every @ patch))
        second = int(np.argmax(every @ (patch - (every[first] @ patch) * every[first])))
        weights = np.linalg.lstsq(every[[first, second]].T, patch)[0]
        if weights.min() < 0.0:
            weights = np.array([every[first] @ patch, 0.0])
        order = np.argsort(-weights)
        places = np.array([first, second])[order]
        np.testing.assert_array_equal(20 * code.phase[i] + code.turn[i], places)
        np.testing.assert_allclose(code.weight[i], weights[order], atol=1e-9)
        model = weights[order] @ every[places]
        np.testing.assert_allclose(left[i].ravel(), patch - model, atol=1e-9)


def test_templates_are_learnt_from_turned_mixtures():
    truth = np.stack([RNG.uniform(size=(8, 36)) ** 6 for _ in range(2)])
    truth /= np.linalg.norm(truth, axis=(1, 2), keepdims=True)
    patches = np.stack(
        [
            a * np.roll(truth[k], t, -1) + (1 - a) * np.roll(truth[m], u, -1)
            for a, k, t, m, u in zip(
                RNG.choice([1.0, 1.0, 0.6], 120),
                RNG.integers(2, size=120),
                RNG.integers(36, size=120),
                RNG.integers(2, size=120),
                RNG.integers(36, size=120),
                strict=True,
            )
        ]
    )
    found = equivariant.learn(jnp.asarray(patches), 2, np.random.default_rng(0), starts=2)
    alike = np.asarray(equivariant.correlations(jnp.asarray(truth), found.templates).max(-1))
    assert found.residual < 0.05
    assert alike.max(axis=1).min() > 0.99 and set(alike.argmax(axis=1)) == {0, 1}
    # the same data in another unit, in another program
    again = equivariant.learn(jnp.asarray(1e-9 * patches), 2, np.random.default_rng(0), starts=2)
    same = equivariant.correlations(found.templates, again.templates).max(axis=-1)
    np.testing.assert_allclose(np.sort(same.ravel())[2:], 1.0, atol=1e-6)  # at any angle
    empty = np.concatenate([np.zeros((30, 8, 36)), patches])  # vacuum
    beside = equivariant.learn(jnp.asarray(empty), 2, np.random.default_rng(0), starts=2)
    assert beside.residual < 0.05 and np.isfinite(beside.templates).all()
    empty[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 150 patches are not finite"):
        equivariant.learn(jnp.asarray(empty), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="121 phases of 120 patches with reflections"):
        equivariant.learn(jnp.asarray(patches), 121, np.random.default_rng(0))


def test_nonnegative_least_squares_are_those_of_lawson_and_hanson():
    found = np.asarray(nnls.unmixed(*GIVEN))
    wanted = [scipy.optimize.nnls(TEMPLATES.T, patch)[0] for patch in PATCHES]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert (found == 0).any() and nnls.residual(
        GIVEN[1] @ GIVEN[1].T, GIVEN[0] @ GIVEN[1].T, jnp.asarray(found)
    ) < 1e-11


def test_abundances_that_add_up_to_one():
    found = np.asarray(nnls.unmixed(*GIVEN, whole=True))
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-12)
    heavy = 1e4  # the sum as one more, very certain datum
    for patch, one in zip(PATCHES, found, strict=True):
        system = np.vstack([TEMPLATES.T, heavy * np.ones(K)])
        wanted = scipy.optimize.nnls(system, np.append(patch, heavy))[0]
        np.testing.assert_allclose(one, wanted, atol=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_derivatives_of_abundances_are_finite_differences(whole):
    def weighted(patches, templates, l1):
        return jnp.sum(jnp.sin(nnls.unmixed(patches, templates, l1, whole=whole)))

    given = (jnp.asarray(PATCHES), jnp.asarray(TEMPLATES), jnp.asarray(0.05))
    check_grads(jax.jit(weighted), given, order=1, modes=["fwd", "rev"], eps=1e-6, rtol=1e-6)
