"""Crystals along a zone axis, and which of some a template is of."""

import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import polycrystal
from micjax.physics.patches.projection import ZONES, projected
from micjax.physics.patches.unmixing.naming import lattice_template, likeness
from micjax.physics.patches.windows import Hann

FCC = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
DIAMOND = np.concatenate([FCC, FCC + 0.25])
EDGE = 5.43


@pytest.mark.parametrize(
    ("zone", "edges", "columns"),
    [
        ((0, 0, 1), (1.0, 1.0), 8),
        ((0, 1, 1), (0.5**0.5, 1.0), 4),
        # the two atoms of the basis above each other, at four places
        ((1, 1, 1), ((2 / 3) ** 0.5, (2 / 3) ** 0.5), 4),
    ],
)
def test_silicon_along_its_axes(zone, edges, columns):
    """The area of a cell times the repeat along the axis is the volume; atoms are all there."""
    lattice = projected(EDGE * np.eye(3), DIAMOND, np.full(8, 14), zone)
    lengths = np.sort(np.linalg.norm(lattice.vectors_A, axis=1))
    np.testing.assert_allclose(lengths, EDGE * np.sort(edges), rtol=1e-6)
    assert len(lattice.basis) <= columns
    repeat = np.linalg.norm(np.array(zone) * EDGE)
    area = abs(np.linalg.det(lattice.vectors_A))
    assert area * repeat == pytest.approx(EDGE**3, rel=1e-6)
    assert np.sum(lattice.weight) == pytest.approx(8 * 14**1.7)


def test_dumbbells_of_silicon():
    """Along [011] columns stand in pairs a / 4 apart (1.36 Å)."""
    lattice = projected(EDGE * np.eye(3), DIAMOND, np.full(8, 14), (0, 1, 1))
    apart = lattice.basis[:, None] - lattice.basis
    distance = np.linalg.norm((apart - np.round(apart)) @ lattice.vectors_A, axis=-1)
    assert np.min(distance[distance > 0.1]) == pytest.approx(EDGE / 4, rel=1e-6)


def test_a_skewed_cell_has_the_same_columns():
    """Another cell of the same crystal: the same area and the same distances."""
    skew = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    cell = EDGE * skew
    places = (DIAMOND @ np.linalg.inv(skew)) % 1.0
    one, other = (
        projected(c, p, np.full(8, 14), (0, 0, 1))
        for c, p in ((EDGE * np.eye(3), DIAMOND), (cell, places))
    )
    assert len(one.basis) == len(other.basis)
    np.testing.assert_allclose(
        abs(np.linalg.det(one.vectors_A)), abs(np.linalg.det(other.vectors_A)), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("zone", "cell", "said"),
    [((0, 0, 0), np.eye(3), "no direction"), ((0, 0, 1), np.zeros((3, 3)), "volume_A3")],
)
def test_what_has_no_projection(zone, cell, said):
    with pytest.raises(ValueError, match=said):
        projected(5.0 * cell, DIAMOND, np.full(8, 14), zone)


def test_a_crystal_is_named_however_it_lies():
    polar = Polar(LocalSpectra(Hann(), 48, 16, 0.4, 0.9), 0.12, 16, 60)
    crystals = {
        "silicon": (DIAMOND, np.full(8, 14), EDGE),
        "salt": (
            np.concatenate([FCC, FCC + [0.5, 0, 0]]),
            np.repeat([11, 17], 4),
            5.64,
        ),
        "copper": (FCC, np.full(4, 29), 3.61),
    }
    lattices = {
        (name, zone): projected(edge * np.eye(3), places, numbers, zone)
        for name, (places, numbers, edge) in crystals.items()
        for zone in ZONES[2:5:2]
    }
    known = jnp.stack([lattice_template(v, polar) for v in lattices.values()])
    for i, lattice in enumerate(lattices.values()):
        rng = np.random.default_rng(i)
        seen = polycrystal(
            rng, [lattice], (96, 96), sampling_A=0.4, grains=1, electrons_per_px=20.0
        ).image
        rings = polar(polar.local(jnp.asarray(seen - seen.mean())))
        template = jnp.mean(rings.reshape(-1, 16, 60), axis=0)
        for mirrored in (template, template[:, ::-1]):
            cosines = likeness(mirrored[None], known)[0]
            assert np.argmax(cosines) == i and cosines[i] > 0.9
