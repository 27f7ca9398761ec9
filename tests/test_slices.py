"""Which slice an atom lies in, and whatever else jumps: alike in single and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.__main__ import main
from micjax.io import read_nexus
from micjax.physics.electrons import optics, prism
from micjax.physics.electrons.detectors import annulus, pixelated, rings, segments
from micjax.physics.electrons.phonons import displaced
from micjax.physics.electrons.potentials.finite import rooms
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA
from micjax.physics.electrons.potentials.specimen import rotated, stacked


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("noise_A", [0.0, -1e-17, -1e-13, 1e-13])
@pytest.mark.parametrize(("edge_A", "each"), [(3.905, 2), (5.431, 4), (4.078, 2), (5.3, 3)])
def test_one_plane_for_each_slice(double, noise_A, edge_A, each):
    """Planes on the borders of slices, through 40 cells: each in the slice below its border."""
    planes = np.arange(40 * each) * edge_A / each + noise_A
    with jax.enable_x64(double):
        position = np.stack([0 * planes, 0 * planes, planes], axis=1)
        atoms = Atoms([14] * len(planes), position, [edge_A, edge_A, 40 * edge_A])
        for thickness in (
            np.full(len(planes), edge_A / each),
            np.full(len(planes), np.asarray(atoms.box_A)[2] / len(planes)),  # in its precision
        ):
            assert layers(atoms, thickness) == tuple((k,) for k in range(len(planes)))


def test_atoms_have_to_lie_in_the_specimen():
    thickness, box = np.full(4, 1.5), (4.0, 4.0, 6.0)
    moved = Atoms([6, 6], [[0, 0, -0.2], [0, 0, 6.1]], box)  # by their thermal motion
    assert layers(moved, thickness) == ((0,), (), (), (1,))
    for z in (-1.5, 7.5):
        with pytest.raises(ValueError, match="along the beam it does not repeat itself"):
            layers(Atoms([6], [[0, 0, z]], box), thickness)


@pytest.mark.parametrize("projection", ["exact", "finite"])
def test_frozen_phonons_stay_where_they_are_at_rest(projection):
    """A layer at the entrance face of 60 Å: none of 32 moments finds it at the exit face, or loses
    anything of it."""
    thickness = np.full(30, 2.0)
    atoms = Atoms([79], [[2.0, 2.0, 0.0]], (4.0, 4.0, 60.0), u_A2=0.006)
    options = {"table": "peng", "projection": projection}
    if projection == "finite":
        options["rooms"] = rooms(atoms, thickness)
    else:
        options["slices"] = layers(atoms, thickness)

    @jax.jit
    def moment(key):
        return potential_VA(displaced(key, atoms), (8, 8), thickness, **options).mean((1, 2))

    found = np.asarray(jax.lax.map(moment, jax.random.split(jax.random.key(1), 32)))
    np.testing.assert_allclose(found.sum(1), found.sum(1).mean(), rtol=1e-6)
    assert np.all(found[:, 0] > 0.8 * found.sum(1)) and np.all(found[:, 3:] < 1e-3 * found.max())


def test_a_key_is_one_moment_in_both_precisions():
    found = []
    for double in (False, True):
        with jax.enable_x64(double):
            atoms = Atoms([14] * 50, np.full((50, 3), 2.0), (4.0, 4.0, 4.0), u_A2=0.01)
            found.append(np.asarray(displaced(jax.random.key(7), atoms).position_A, float))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert found[1].std() > 0.05


def test_layers_of_a_stack_keep_their_order():
    """An atom on the first face of a film, but for rounding, is not under it."""
    film = Atoms([6], [[1.0, 1.0, -1e-17]], (4.0, 4.0, 5.0))
    both = stacked(film, film)
    np.testing.assert_allclose(both.position_A[:, 2], [0.0, 5.0], atol=1e-12)


def test_a_crystal_that_is_not_turned_is_what_it_was():
    """Cut at faces through atoms: of those on opposite faces one remains."""
    cell = Atoms([14, 14], [[0, 0, 0], [1.0, 1.5, 2.0]], (2.0, 3.0, 4.0))
    for double in (False, True):
        with jax.enable_x64(double):
            for angle in (0.0, 1e-9):
                assert len(rotated(cell, angle, angle, (12.0, 18.0, 24.0)).numbers) == 2 * 6**3


@pytest.mark.slow
def test_rings_and_sectors_are_the_same_in_both_precisions():
    """Edges on pixels, diagonals on the borders of sectors, places half way between pixels."""
    found = []
    for double in (False, True):
        with jax.enable_x64(double):
            angles = optics.angles_mrad((40, 40), np.asarray((0.1, 0.1)), 0.025079)
            pixel = 1e3 * 0.025079 / 4.0
            masks = [annulus(angles, m * pixel, (m + 3) * pixel) for m in (1, 2, 3, 5, 8, 11)]
            sectors = segments(angles, pixel, 12 * pixel, 3, 8)
            ones = jnp.ones((40, 40))
            sums = [rings(ones, angles, m * pixel) for m in (1, 2, 3, 5)]
            shapes = [pixelated(ones, angles, m * pixel).shape for m in (1, 2, 3, 5, 8, 13, 19)]
            beams = prism.beams((40, 40), (0.1, 0.1), 20.0, 200.0, 2)
            places = (np.arange(20) + 0.5)[:, None] * 0.1 * np.ones(2)
            corners = prism._corners(jnp.asarray(places, float), beams, (0.1, 0.1))
            found.append([*masks, sectors, *sums, shapes, corners])
    for single, double in zip(*found, strict=True):
        np.testing.assert_array_equal(np.asarray(single), np.asarray(double))
    np.testing.assert_array_equal(found[0][-1][:, 0], np.arange(20) + 1 - 10)  # ties go up
    assert np.asarray(found[0][6]).sum() == (np.asarray(found[0][6]).any((0, 1))).sum()


STRONTIUM_TITANATE = """5
Lattice="3.905 0 0 0 3.905 0 0 0 3.905" Properties=species:S:1:pos:R:3 pbc="T T T"
Sr 0 0 0
Ti 1.9525 1.9525 1.9525
O 1.9525 1.9525 0
O 1.9525 0 1.9525
O 0 1.9525 1.9525
"""


@pytest.mark.slow
def test_the_command_line_is_the_same_in_both_precisions(tmp_path, monkeypatch):
    """What is shown to be off by 1.6e-2 when a rounded height decides on a slice."""
    pytest.importorskip("ase", reason="reading structures needs micjax[structures]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sto.xyz").write_text(STRONTIUM_TITANATE)
    settings = ["tile=[1,1,10]", "u_A2=0.008", "phonons=2", "sampling_A=0.2"]
    settings += ["semiangle_mrad=15", "aberrations.C10=-400", "aberrations.C30=1e7"]
    given = [word for one in settings for word in ("--set", one)]
    found = []
    for double in (False, True):
        with jax.enable_x64(double):
            assert main(["simulate", "hrtem", "sto.xyz", *given, "--out", f"{double}"]) == 0
        fields = read_nexus(tmp_path / f"{double}" / "result.nxs")
        wave = fields["exit_amplitude"].data * np.exp(1j * fields["exit_phase"].data)
        found.append((wave, fields["image"].data))
    (single, image), (wave, expected) = found
    assert np.linalg.norm(single - wave) < 1e-5 * np.linalg.norm(wave)
    assert np.abs(image - expected).max() < 1e-5 * expected.max()
