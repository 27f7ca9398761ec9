"""PRISM takes probes together: in several groups, the last one filled up, they are as alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import prism

pytestmark = pytest.mark.usefixtures("double")
SHAPE, SAMPLING, SEMIANGLE_MRAD, ENERGY_KEV = (36, 24), (0.2, 0.25), 25.0, 200.0


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def places(order):
    """75 of them: two groups of 32 and one of 11."""
    size = np.array(SHAPE) * SAMPLING
    if order == "scan":
        y, x = np.meshgrid(np.arange(5) * 0.3, np.arange(15) * 0.12, indexing="ij")
        return np.stack([y.ravel(), x.ravel()], 1) + 0.9 * size  # over the border of the cell
    return np.random.default_rng(0).uniform(-0.5, 1.5, size=(75, 2)) * size


@pytest.mark.parametrize("order", ["scan", pytest.param("anywhere", marks=pytest.mark.slow)])
@pytest.mark.parametrize("interpolation", [1, 2])
def test_together_as_alone(order, interpolation):
    beams = prism.beams(SHAPE, SAMPLING, SEMIANGLE_MRAD, ENERGY_KEV, interpolation)
    random = np.random.default_rng(1)
    parts = random.normal(size=(2, len(beams.index), *SHAPE))
    matrix = jnp.asarray(parts[0] + 1j * parts[1])
    aberrations = {"C10": -100.0, "C12a": 30.0}
    weights = prism.probe_weights(beams, SAMPLING, SEMIANGLE_MRAD, aberrations, ENERGY_KEV)
    at = jnp.asarray(places(order))
    masks = jnp.asarray(random.uniform(size=(3, *beams.window)) < 0.5)

    @jax.jit
    def scanned(at):
        return prism.scanned(at, weights, matrix, beams, SAMPLING, masks)

    @jax.jit
    def waves_at(at):
        return prism.waves_at(at, weights, matrix, beams, SAMPLING)

    waves, seen = prism.waves_at(at, weights, matrix, beams, SAMPLING), scanned(at)
    alone = jnp.concatenate([waves_at(one[None]) for one in at[::9]])
    assert waves.shape == (75, *beams.window) and seen.shape == (75, 3)
    np.testing.assert_allclose(waves[::9], alone, atol=1e-12 * float(jnp.abs(alone).max()))
    single = [scanned(one[None])[0] for one in at[::9]]
    np.testing.assert_allclose(seen[::9], jnp.stack(single), rtol=1e-10)
    np.testing.assert_allclose(waves_at(at), waves, atol=1e-12 * float(jnp.abs(alone).max()))


@pytest.mark.parametrize("interpolation", [1, 2])
def test_a_wave_is_the_sum_over_its_beams(interpolation):
    """The definition, pixel by pixel, for the last probe of an incomplete group."""
    beams = prism.beams(SHAPE, SAMPLING, SEMIANGLE_MRAD, ENERGY_KEV, interpolation)
    parts = np.random.default_rng(2).normal(size=(2, len(beams.index), *SHAPE))
    matrix = parts[0] + 1j * parts[1]
    weights = prism.probe_weights(beams, SAMPLING, SEMIANGLE_MRAD, {}, ENERGY_KEV)
    at = places("scan")
    found = prism.waves_at(jnp.asarray(at), weights, jnp.asarray(matrix), beams, SAMPLING)[-1]
    ramp = np.exp(-2j * np.pi * (beams.index / (np.array(SHAPE) * SAMPLING)) @ at[-1])
    whole = np.einsum("b,byx->yx", np.asarray(weights) * ramp, matrix)
    middle = np.round(at[-1] / SAMPLING).astype(int)
    iy, ix = (
        np.arange(w) if w == n else (m - w // 2 + np.arange(w)) % n
        for m, w, n in zip(middle, beams.window, SHAPE, strict=True)
    )
    np.testing.assert_allclose(found, whole[np.ix_(iy, ix)], rtol=1e-9, atol=1e-9)
