"""Strain of grains against lattices that were strained on purpose."""

import numpy as np
import pytest

from micjax.physics.patches import strain

CYCLES = np.array([[0.0, 0.11], [0.09, 0.02], [0.09, 0.13], [0.18, 0.04], [0.09, -0.09]])
AMPLITUDES = np.array([0.1, 0.08, 0.05, 0.03, 0.05])
TURN = 0.4
STRETCH = np.array([[0.010, 0.003], [0.003, -0.006]])


def rotation(angle_rad):
    """Of (y, x), from x towards y."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, s], [-s, c]])


def bicrystal(seed, electrons=60.0, scale=1.0):
    """A crystal on the left, and on the right the same, turned and then strained."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((200, 320), float)
    right = x > 150 + 8 * np.sin(y / 20)
    deformed = np.linalg.inv((np.eye(2) + STRETCH) @ rotation(TURN)).T
    image = np.ones(y.shape)
    for where, matrix in ((~right, np.eye(2)), (right, deformed)):
        for k, a in zip(CYCLES @ matrix.T, AMPLITUDES, strict=True):
            wave = 2 * a * np.cos(2 * np.pi * (k[0] * y + k[1] * x) + rng.uniform(0, 6))
            image += np.where(where, wave, 0.0)
    return scale * rng.poisson(electrons * image) / electrons, [~right, right]


def strained(image, grains, rough):
    parts = [(image, grain) for grain in grains]
    return strain.strains(parts, [0.0, TURN + 0.01], rough, 4.0, 30.0)


def test_the_strain_of_a_grain_is_found_within_its_error():
    z, turns = [], []
    for seed in range(12):
        image, grains = bicrystal(seed)
        rough = CYCLES + 1e-3
        first, second = strained(image, grains, rough)
        np.testing.assert_allclose(first.matrix, 0.0, atol=1e-12)
        z.append((second.matrix - STRETCH) / second.sd)
        turns.append((second.turn_rad - TURN) / second.turn_sd_rad)
        assert second.sd.max() < 5e-4
    upper = np.array(z)[:, [0, 0, 1], [0, 1, 1]]
    assert np.abs(upper.mean()) < 0.6 and 0.6 < np.sqrt(np.mean(upper**2)) < 1.7
    assert 0.5 < np.sqrt(np.mean(np.square(turns))) < 1.8


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_any_unit_gives_the_same(scale):
    of = [strained(*bicrystal(0, scale=s), CYCLES)[1] for s in (1, scale)]
    np.testing.assert_allclose(of[1].matrix, of[0].matrix, rtol=1e-6, atol=1e-9)


def test_too_few_reflections_tell_nothing():
    image, grains = bicrystal(0)
    assert np.isnan(strained(image, grains, CYCLES[:2])[1].matrix).all()
    along = CYCLES[[0]] * np.array([[1.0], [1.5], [2.0]])
    assert np.isnan(strain.between(along, along, np.ones(3)).matrix).all()


def test_a_reflection_that_is_not_there_is_not_used():
    image, grains = bicrystal(0)
    amplitude = strain.refined(image, grains[0].astype(float), np.array([[0.3, 0.33]]))[1]
    assert amplitude[0] < 0.2 * AMPLITUDES.min()


def test_a_grain_without_a_pixel_is_refused():
    image, (left, right) = bicrystal(0)
    with pytest.raises(ValueError, match=r"of 2 grains those numbered \[1\] have no pixel"):
        strained(image, [left, left & right], CYCLES)
