"""A border between two lattices, found within a row of atoms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from micjax.physics.patches import grains
from micjax.physics.patches import waves as waves_of_grains
from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.unmixing.equivariant import Code
from micjax.physics.patches.windows import Hann

LOCAL = LocalSpectra(Hann(), 32, 8, 0.5, 0.6)
SHAPE = (96, 104)
Y, X = np.indices(SHAPE)
CYCLES = [np.array([[0.02, 0.151], [0.158, -0.03]]), np.array([[-0.06, 0.132], [0.124, 0.071]])]
LEFT = X + 0.3 * Y < 66.0


def waves(cycles, phase):
    return sum(
        a * np.cos(2 * np.pi * (ky * Y + kx * X) + phase + i)
        for i, ((ky, kx), a) in enumerate(zip(cycles, (1.0, 0.6), strict=True))
    )


def image(unit=1.0):
    thicker = 1.0 + 0.3 * X / SHAPE[1]  # which is no border
    clean = thicker * (3.0 + np.where(LEFT, waves(CYCLES[0], 0.0), waves(CYCLES[1], 2.0)))
    return unit * (clean + np.random.default_rng(0).normal(0.0, 0.5, SHAPE))


def shares():
    """How much of the window of each patch lies to the left."""
    y, x = LOCAL.corners(SHAPE)
    t = (np.arange(32) + 0.5) / 16.0 - 1.0
    window = np.cos(0.5 * np.pi * t) ** 2
    window = np.outer(window, window) / window.sum() ** 2
    return np.array([[np.sum(window * LEFT[i : i + 32, j : j + 32]) for j in x] for i in y])


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_a_border_is_found_within_a_row_of_atoms(unit):
    left = shares()
    found = [grains.Orientation(0, 3, left), grains.Orientation(1, 40, 1.0 - left)]
    mapped = grains.pixel_map(image(unit), LOCAL, found, CYCLES, 2.0, 2)
    right = mapped.orientation == np.where(LEFT, 0, 1)
    away = np.abs(X + 0.3 * Y - 66.0) > 3.0  # half of a period of the lattice
    assert right[away].mean() > 0.995 and right.mean() > 0.97
    assert (left > 0.5).mean() == pytest.approx(LEFT.mean(), abs=0.1)
    # what is left is the noise, away from the border
    inside = np.abs(X + 0.3 * Y - 66.0) > 12.0
    assert np.sqrt(np.mean(mapped.residual.min(0)[inside])) == pytest.approx(0.5 * unit, rel=0.1)


def test_amplitudes_are_sums_over_patches():
    rng = np.random.default_rng(1)
    values, window = rng.normal(2.0, 1.0, (40, 50)), np.hanning(12)
    corners, cycles = np.array([[0, 3], [17, 38], [28, 0]]), rng.uniform(-0.3, 0.3, (4, 2))
    level, of_waves = waves_of_grains.amplitudes(values, corners, cycles, window)
    both = np.outer(window, window) / window.sum() ** 2
    for i, (y, x) in enumerate(corners):
        patch, (dy, dx) = values[y : y + 12, x : x + 12], np.indices((12, 12))
        assert level[i] == pytest.approx(np.sum(both * patch))
        for j, (ky, kx) in enumerate(cycles):
            wave = np.exp(-2j * np.pi * (ky * (y + dy) + kx * (x + dx)))
            wanted = np.sum(both * (patch - np.sum(both * patch)) * wave)
            assert of_waves[i, j] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("size", "step", "grid"), [(12, 4, (5, 7)), (13, 5, (4, 3)), (12, 3, (1, 6)), (9, 1, (3, 1))]
)
def test_waves_are_carried_on_between_patches(size, step, grid):
    rng = np.random.default_rng(2)
    shape = tuple(size + step * (n - 1) + extra for n, extra in zip(grid, (0, 2), strict=True))
    cycles = rng.uniform(-0.4, 0.4, (3, 2))
    amplitude = rng.normal(size=(3, *grid)) + 1j * rng.normal(size=(3, *grid))
    near = rng.uniform(size=grid) > 0.4
    centres = [step * np.arange(n) + 0.5 * (size - 1) for n in grid]
    seen = waves_of_grains.Waves(cycles, amplitude, near)
    found, reached = waves_of_grains.predicted(seen, centres, step, shape, np.dtype(float))
    y, x = np.indices(shape)

    def between(v):
        at = [np.clip(p, c[0], c[-1]) for p, c in zip((y, x), centres, strict=True)]
        at = [(p - c[0]) / step for p, c in zip(at, centres, strict=True)]
        return scipy.ndimage.map_coordinates(v, at, order=1, mode="nearest")

    wanted = sum(
        2.0 * np.real(between(a) * np.exp(2j * np.pi * (ky * y + kx * x)))
        for (ky, kx), a in zip(cycles, amplitude, strict=True)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    share = between(near.astype(float))
    clear = np.abs(share - 0.5) > 1e-6
    np.testing.assert_array_equal(reached[clear], share[clear] > 0.5)
    single, _ = waves_of_grains.predicted(seen, centres, step, shape, np.dtype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, wanted, atol=2e-5)


def test_a_grain_that_is_nowhere_alone_is_not_measured():
    mixed = np.full(shares().shape, 0.5)
    found = [grains.Orientation(0, 3, mixed), grains.Orientation(1, 40, np.ones_like(mixed))]
    mapped = grains.pixel_map(image(), LOCAL, found, CYCLES, 2.0, 2)
    assert set(np.unique(mapped.orientation)) == {1}


def test_reflections_lie_between_the_frequencies_of_a_patch():
    clean = 2.0 + waves(CYCLES[0], 0.4)
    power = np.asarray(LOCAL(jnp.asarray(clean)).power).mean((0, 1))
    found = grains.reflections(power, LOCAL, 0.1)
    assert len(found) >= 2
    # the stronger one first; where kx < 0, its other half
    np.testing.assert_allclose(found[0], CYCLES[0][0], atol=1e-3)
    np.testing.assert_allclose(found[1], -CYCLES[0][1], atol=1e-3)


def test_angles_of_each_phase_are_those_of_its_atoms():
    rng = np.random.default_rng(0)
    turns = np.where(np.arange(400) % 2, 20, 44) + rng.integers(-1, 2, 400)
    turns[:6] = 80  # too few to be a grain
    phase = np.where(np.arange(400) % 2, 0, 1)
    weight = np.stack([np.ones(400), np.zeros(400)], axis=1)
    code = Code(*(np.stack([v, v], axis=1) for v in (phase, turns)), weight)
    found = grains.orientations(code, (20, 20), 90, min_share=0.02)
    assert sorted((o.phase, o.turn) for o in found) == [(0, 20), (1, 44)]
    np.testing.assert_allclose(sum(o.share for o in found).ravel()[6:], 1.0)
    assert sum(o.share for o in found).ravel()[:6].max() == 0.0


def test_a_grain_that_its_template_does_not_fit_is_one():
    """Whose second atom, at an angle of its own, makes up for the distortion in all its patches."""
    left = np.arange(400) < 200
    turn = np.stack([np.where(left, 20, 44), np.where(left, 70, 80)], axis=1)
    weight = np.stack([np.where(left, 1.0, 0.7), np.where(left, 0.01, 0.3)], axis=1)
    code = Code(np.zeros((400, 2), int), turn, weight)
    by_turn = {o.turn: o.share.ravel() for o in grains.orientations(code, (20, 20), 90)}
    assert set(by_turn) == {20, 44}
    np.testing.assert_allclose(by_turn[44][~left], 1.0)
    assert by_turn[44][left].max() == 0.0
    # what is too little to be an orientation keeps its share
    np.testing.assert_allclose(by_turn[20][left], 1.0 / 1.01)


def test_an_image_with_gaps_is_refused():
    gaps = image()
    gaps[3, 4:6] = np.nan
    with pytest.raises(ValueError, match="2 of 9984 pixels are not finite"):
        grains.pixel_map(gaps, LOCAL, [], [], 2.0, 1)
