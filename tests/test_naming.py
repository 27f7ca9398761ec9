"""Crystals along a zone axis, and which of some a template is of."""

import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import PlaneLattice, polycrystal
from micjax.physics.patches.projection import ZONES, primitive, projected
from micjax.physics.patches.unmixing.naming import Pattern, compared, mean_rings, pattern, resolved
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


POLAR = Polar(LocalSpectra(Hann(), 48, 16, 0.4, 0.9), 0.12, 16, 60)
CRYSTALS = {
    "silicon": (DIAMOND, np.full(8, 14), EDGE),
    "salt": (np.concatenate([FCC, FCC + [0.5, 0, 0]]), np.repeat([11, 17], 4), 5.64),
    "copper": (FCC, np.full(4, 29), 3.61),
}
LATTICES = [
    projected(edge * np.eye(3), places, numbers, zone)
    for places, numbers, edge in CRYSTALS.values()
    for zone in ZONES[2:5:2]
]


@pytest.fixture(scope="module")
def patterns():
    every = [pattern(v, POLAR) for v in LATTICES]
    return Pattern(*(jnp.stack(of) for of in zip(*every, strict=True)))


def seen(lattice: PlaneLattice, seed: int):
    options = {"sampling_A": 0.4, "grains": 1, "electrons_per_px": 20.0}
    image = polycrystal(np.random.default_rng(seed), [lattice], (96, 96), **options).image
    return mean_rings(jnp.asarray(image - image.mean()), POLAR)


def test_the_cell_of_the_columns():
    """Of a face-centred cube along an edge: columns of both heights are a square of a / 2."""
    fcc = projected(EDGE * np.eye(3), FCC, np.full(4, 29), (0, 0, 1))
    edges = np.linalg.norm(primitive(fcc), axis=1)
    np.testing.assert_allclose(edges, 0.5 * EDGE, rtol=1e-9)
    one = PlaneLattice(np.diag([3.0, 4.0]), np.array([[0, 0], [0.5, 0]]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(np.linalg.norm(primitive(one), axis=1), [3.0, 4.0])
    same = one._replace(weight=np.ones(2))
    np.testing.assert_allclose(np.linalg.norm(primitive(same), axis=1), [1.5, 4.0])


@pytest.fixture(scope="module")
def templates():
    return [np.asarray(seen(lattice, i)) for i, lattice in enumerate(LATTICES)]


@pytest.mark.parametrize(("unit", "count"), [(1e-9, 2), (1.0, len(LATTICES)), (1e9, 2)])
def test_a_crystal_is_named_however_it_lies(patterns, templates, unit, count):
    for i, template in enumerate(templates[:count]):
        both = jnp.asarray(unit * np.stack([template, template[:, ::-1]]))
        named = compared(both, patterns, POLAR)
        assert named.log_evidence.shape == named.agreement.shape == (2, len(LATTICES))
        ahead = np.sort(named.log_evidence, axis=1)
        assert np.all(named.log_evidence.argmax(1) == i) and np.all(ahead[:, -1] - ahead[:, -2] > 3)
        assert np.all(named.agreement[:, i] > 0.5)


def test_a_lattice_with_other_columns_does_not_agree(patterns):
    """Silicon without one column of each pair has its lattice, and other strengths."""
    silicon = LATTICES[1]
    emptied = silicon._replace(weight=np.where(np.arange(4) < 2, silicon.weight, 1.0))
    named = compared(seen(emptied, 0)[None], patterns, POLAR)
    whole = compared(seen(silicon, 0)[None], patterns, POLAR)
    assert named.agreement[0, 1] < 0.6 < whole.agreement[0, 1]


def test_amplitudes_that_a_window_tells_apart():
    """Of white noise: independent powers whose sum scatters as much."""
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal((800, 48, 48)))
    polar = Polar(LocalSpectra(Hann(), 48, 48, 0.4, 1.25), 0.1, 24, 60)
    power = jnp.stack([mean_rings(v, polar) for v in noise]) ** 2 / polar.area**2
    weight = np.broadcast_to(polar.grid.radius_perA[:, None], power.shape[1:])
    total = np.asarray((power * weight).sum((1, 2)))
    # a sum of n independent exponentials has (mean / sd)^2 = n
    effective = (total.mean() / total.std()) ** 2
    assert effective == pytest.approx(resolved(polar), rel=0.2)
