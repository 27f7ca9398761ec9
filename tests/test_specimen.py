"""Specimens: distances, densities, heights, and a tilted crystal beside a tilted beam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import multislice
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.potentials.specimen import amorphous, rotated, stacked, voxels_VA


def cell(**options):
    return Atoms(
        [38, 22, 8], [[0, 0, 0], [1.9, 2.0, 2.1], [0.3, 1.9, 2.0]], (4.0, 4.1, 4.2), **options
    )


def test_a_rotation_keeps_distances_and_fills_its_box():
    box = np.array([31.0, 33.0, 35.0])
    turned = rotated(cell(u_A2=0.01), 0.3, -1.1, box)
    expected = np.prod(box) / (4.0 * 4.1 * 4.2) * 3
    assert abs(len(turned.numbers) - expected) < 0.02 * expected
    here = np.asarray(turned.position_A)
    assert np.all((here >= 0.0) & (here < box))
    found = pdist(here[np.asarray(turned.numbers) == 22])
    steps = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), -1).reshape(-1, 3) * [4.0, 4.1, 4.2]
    known = np.linalg.norm(steps, axis=1)
    apart, _ = cKDTree(known[:, None]).query(found[found < 12.0][:, None])
    assert apart.max() < 1e-4


def test_a_turn_about_x_and_then_y():
    """Strontium of the next cell along x goes down, when x turns about y towards -z."""
    middle = np.array([10.0, 10.0, 10.0])
    turned = rotated(cell(), 0.0, 0.2, 2.0 * middle)
    strontium = np.asarray(turned.position_A)[np.asarray(turned.numbers) == 38]
    expected = middle + 4.0 * np.array([np.cos(0.2), 0.0, -np.sin(0.2)])
    assert np.linalg.norm(strontium - expected, axis=1).min() < 1e-5


def test_a_tilted_crystal_is_a_tilted_beam():
    """A column that leans by 8 mrad; to the second order of the angle, and the tilt matters."""
    box, shape, thickness = (10.0, 10.0, 80.0), (40, 40), np.full(40, 2.0)
    column, angle = Atoms([38], [[0.0, 0.0, 1.0]], (10.0, 10.0, 2.0), u_A2=0.02), 8e-3
    plane = jnp.full(shape, 1.0 / np.prod(shape), jnp.complex64)

    def pattern(about_x, tilt_y):
        atoms = rotated(column, about_x, 0.0, box)
        slices = potential_VA(atoms, shape, thickness)
        tilt = (1e3 * tilt_y, 0.0)
        return diffraction(multislice(plane, slices, 2.0, (0.25, 0.25), 100.0, tilt_mrad=tilt))

    crystal = pattern(angle, 0.0)
    beam, neither, opposite = (
        float(jnp.linalg.norm(pattern(0.0, tilt) - crystal)) for tilt in (angle, 0.0, -angle)
    )
    assert beam < 0.02 * neither and beam < 0.05 * opposite


@pytest.mark.parametrize(("formula", "density"), [([6], 2.0), ([14, 8, 8], 2.2)])
def test_an_amorphous_film(formula, density):
    box = (20.0, 25.0, 15.0)
    film = amorphous(jax.random.key(0), formula, density, box, 1.4, u_A2=0.01)
    mass_g = sum({6: 12.011, 14: 28.085, 8: 15.999}[z] for z in film.numbers) / 6.02214076e23
    assert abs(mass_g / (np.prod(box) * 1e-24) / density - 1.0) < 0.01
    position = np.mod(np.asarray(film.position_A, float), box)
    assert not cKDTree(position, boxsize=box).query_pairs(1.399)
    counts = np.histogram(position[:, 2], 3, (0.0, box[2]))[0]  # nothing is layered
    assert np.abs(counts / counts.mean() - 1.0).max() < 0.2
    other = amorphous(jax.random.key(1), formula, density, box, 1.4)
    assert not np.allclose(other.position_A, film.position_A)


def test_layers_lie_on_each_other():
    film = amorphous(jax.random.key(0), [6], 2.0, (4.0, 4.1, 10.0), 1.4)
    both = stacked(film, cell(u_A2=0.01, occupancy=0.5))
    assert both.numbers == film.numbers + (38, 22, 8)
    np.testing.assert_allclose(both.box_A, [4.0, 4.1, 14.2], rtol=1e-6)
    np.testing.assert_allclose(both.position_A[-3:, 2], [10.0, 12.1, 12.0], rtol=1e-6)
    np.testing.assert_allclose(both.u_A2[-1], 0.01, rtol=1e-6)
    np.testing.assert_allclose(both.occupancy[-4:], [1.0, 0.5, 0.5, 0.5])


def test_voxels_are_projected():
    values = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(np.float32)
    found = voxels_VA(jnp.asarray(values), 0.5, together=3)
    np.testing.assert_allclose(found[1], 0.5 * values[3:].sum(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotated(cell(u_A2=[[0.1, 0.1, 0.2]]), 0.1, 0.0, (9, 9, 9)), "differs between"),
        (
            lambda: rotated(Atoms([6], [[1, 1, 1]], (4, 4, 4)), 0.1, 0.0, (0.1, 0.1, 0.1)),
            "no atoms",
        ),
        (lambda: amorphous(jax.random.key(0), [6], 2.0, (1, 1, 1), 1.4), "are no atoms"),
        (lambda: amorphous(jax.random.key(0), [0], 2.0, (9, 9, 9), 1.4), "atomic numbers from 1"),
        (lambda: amorphous(jax.random.key(0), [6], -2.0, (9, 9, 9), 1.4), "are no atoms"),
        (lambda: amorphous(jax.random.key(0), [6], 2.0, (9, 9, 9), 3.0), "3.0 Å apart"),
        (lambda: stacked(), "no layers"),
        (lambda: stacked(cell(), cell().repeated(2, 1, 1)), "have to be equal"),
        (lambda: voxels_VA(jnp.zeros((5, 2, 2)), 1.0, 2), "2 voxels in a slice do not divide 5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
