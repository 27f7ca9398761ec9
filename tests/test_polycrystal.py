import numpy as np
import pytest

from micjax.physics.patches.polycrystal import (
    PlaneLattice,
    columns_px,
    grain_map,
    polycrystal,
)

OBLIQUE = PlaneLattice(np.array([[5.0, 0.0], [1.0, 6.0]]), np.array([[0.0, 0.0]]), np.ones(1))
SQUARE = PlaneLattice(4.0 * np.eye(2), np.array([[0.0, 0.0], [0.5, 0.5]]), np.array([1.0, 0.5]))
SHAPE = (128, 160)


def made(**options):
    return polycrystal(np.random.default_rng(3), [OBLIQUE, SQUARE], SHAPE, grains=4, **options)


def test_columns_are_those_of_the_turned_lattice():
    place, weight = columns_px(OBLIQUE, 0.4, SHAPE, 0.5, np.array([1.0, 2.0]))
    assert len(place) == pytest.approx(64.0 * 80.0 / 30.0, rel=0.03) and set(weight) == {1.0}
    assert place.min() >= 0 and np.all(place < SHAPE)
    a = 5.0 / 0.5 * np.array([np.sin(0.4), np.cos(0.4)])  # (y, x), from x towards y
    nearest = np.linalg.norm(place[:, None] + a - place, axis=2).min(axis=1)
    inside = np.all((place + a > 0) & (place + a < SHAPE), axis=1)
    assert inside.sum() > 100 and nearest[inside].max() < 1e-9


def test_reflections_lie_at_the_reciprocal_lattice():
    single = polycrystal(
        np.random.default_rng(0), [OBLIQUE], (256, 256), grains=1, electrons_per_px=1e4
    )
    power = np.abs(np.fft.fft2(single.image - single.image.mean())) ** 2
    k_perA = np.fft.fftfreq(256, 0.3125)
    strongest = np.unravel_index(np.argsort(-power.ravel())[:8], power.shape)
    c, s = np.cos(single.angle_rad[0]), np.sin(single.angle_rad[0])
    k = np.stack([k_perA[strongest[1]], k_perA[strongest[0]]], axis=1)
    along = k @ np.array([[c, -s], [s, c]]) @ OBLIQUE.vectors_A.T  # whole numbers
    assert np.abs(along - np.round(along)).max() < 6.0 / 80.0 and np.abs(np.round(along)).max() > 0


def test_phases_are_as_bright_as_each_other():
    crystal = made(electrons_per_px=1e4)
    means = [crystal.image[crystal.phase == k].mean() for k in (0, 1)]
    np.testing.assert_allclose(means, 0.5, rtol=2e-3)
    np.testing.assert_array_equal(crystal.phase, crystal.phase_of_grain[crystal.grain])
    assert set(np.unique(crystal.grain)) == {0, 1, 2, 3}


def test_what_is_added_is_there():
    dose = made(electrons_per_px=20.0).image - made(electrons_per_px=1e6).image
    assert np.var(dose) == pytest.approx(0.5 * 0.5 / 20.0, rel=0.1)
    holed = made(holes=0.1)
    assert (holed.phase == 2).mean() == pytest.approx(0.1, abs=0.01)
    assert holed.image[holed.phase == 2].mean() < 0.1
    thick = made(thickness=0.4, electrons_per_px=1e5).image
    thin = made(electrons_per_px=1e5).image
    assert thick.std() > thin.std() and thick.mean() > thin.mean()
    film = made(amorphous=0.3, electrons_per_px=1e5).image
    assert film.mean() == pytest.approx(0.5, abs=0.01) and film.std() < 0.8 * thin.std()
    same = made(angles="phase").angle_rad
    assert len(np.unique(same)) == 2 and len(np.unique(made().angle_rad)) == 4
    np.testing.assert_array_equal(made().image, made().image)
    assert not np.array_equal(made(jitter_px=0.5).image, made().image)


def test_grains_are_compact():
    grain = grain_map(np.random.default_rng(0), (128, 128), 5)
    areas = np.bincount(grain.ravel())
    assert len(areas) == 5 and areas.min() > 0.3 * areas.mean()


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="1 grains of 2 lattices"):
        polycrystal(np.random.default_rng(0), [OBLIQUE, SQUARE], SHAPE, grains=1)
    with pytest.raises(ValueError, match="angles = 'both'"):
        made(angles="both")
    with pytest.raises(ValueError, match="holes"):
        made(holes=-0.1)
