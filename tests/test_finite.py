"""The finite projection: closed forms, conservation, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import erf

from micjax.physics.electrons.potentials.finite import rooms
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.scattering import VOLT_A2, table

pytestmark = pytest.mark.usefixtures("double")

SHAPE, BOX = (30, 24), (4.1, 5.0, 6.0)  # box along x, y, z
THICKNESS = np.array([0.5, 1.0, 1.0, 2.0, 1.5])
NUMBERS = (22, 8, 8, 22)
FINITE = {"table": "peng", "projection": "finite"}


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def crystal(**options):
    position = np.random.default_rng(0).uniform(-0.5, 1.5, size=(4, 3)) * BOX
    position[:, 2] = np.mod(position[:, 2], BOX[2])
    return Atoms(NUMBERS, position, BOX, **options)


@pytest.mark.parametrize("u", [pytest.param(0.0, marks=pytest.mark.slow), [0.01, 0.02, 0.03]])
def test_all_slices_together_are_the_infinite_projection(u):
    atoms = crystal(u_A2=u, occupancy=0.8)
    whole = potential_VA(atoms, SHAPE, np.array([6.0]), table="peng")
    slices = potential_VA(atoms, SHAPE, THICKNESS, **FINITE)
    np.testing.assert_allclose(slices.sum(0), whole[0], atol=1e-7 * float(whole.max()))


def test_a_gaussian_atom_has_its_closed_form():
    """Whatever lies beyond the box comes in again on the other side, but not along the beam."""
    u, z = (0.02, 0.03, 0.05), 5.7
    atom = Atoms([14], [[1.3, 2.2, z]], BOX, u_A2=[u], occupancy=0.7)
    found = potential_VA(atom, (100, 82), THICKNESS, **FINITE)
    a, b = np.split(table("peng")[13], 2)
    y, x = (np.arange(n) * L / n for n, L in ((100, BOX[1]), (82, BOX[0])))
    across = 0.0
    for ny in range(-2, 3):
        for nx in range(-2, 3):
            width_y, width_x = (b / 4.0 + 2.0 * np.pi**2 * of for of in (u[1], u[0]))
            along_y = np.exp(-(np.pi**2) * (y[:, None] - 2.2 - ny * BOX[1]) ** 2 / width_y)
            along_x = np.exp(-(np.pi**2) * (x[:, None] - 1.3 - nx * BOX[0]) ** 2 / width_x)
            height = a * np.pi / np.sqrt(width_y * width_x)
            across = across + height * along_y[:, None] * along_x[None]
    ends = np.concatenate([[-np.inf], np.cumsum(THICKNESS)[:-1], [np.inf]])
    deviation = np.sqrt(b / (8.0 * np.pi**2) + u[2])
    share = 0.5 * np.diff(erf((ends[:, None] - z) / deviation / np.sqrt(2)), axis=0)
    expected = 0.7 * VOLT_A2 * np.einsum("yxg,sg->syx", across, share)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


def test_an_atom_on_a_border_is_in_both_slices():
    atom = Atoms([6], [[1.0, 2.0, 3.0]], BOX)
    below, above = potential_VA(atom, SHAPE, np.array([3.0, 3.0]), **FINITE)
    np.testing.assert_allclose(below, above, atol=1e-9 * float(above.max()))


def test_a_specimen_ends_at_its_faces():
    """An atom that the thermal motion takes out of the first face is not found at the other one."""
    whole = potential_VA(Atoms([6], [[1.0, 2.0, 3.0]], BOX), SHAPE, np.array([6.0]), table="peng")
    for z in (-0.3, -1e-17, 0.0):
        atom = Atoms([6], [[1.0, 2.0, z]], BOX)
        slices = potential_VA(atom, SHAPE, np.full(3, 2.0), **FINITE)
        np.testing.assert_allclose(slices.sum(0), whole[0], atol=1e-7 * float(whole.max()))
        assert float(slices[0].mean()) > 0.9 * float(whole.mean())
        assert float(slices[2].mean()) < 1e-3 * float(whole.mean())


@pytest.mark.slow
def test_low_frequencies_of_wide_gaussians_are_enough():
    """On a fine grid the wide Gaussians are cut, on a coarse one none is: there they agree."""
    coarse = potential_VA(crystal(), (10, 8), THICKNESS, **FINITE)
    fine = potential_VA(crystal(), (60, 48), THICKNESS, **FINITE)
    low = [np.fft.fft2(v) / v[0].size for v in map(np.asarray, (coarse, fine))]
    inside = (slice(None), [*range(4), *range(-3, 0)], slice(4))
    np.testing.assert_allclose(low[0][inside], low[1][inside], atol=1e-9 * abs(low[0]).max())


@pytest.mark.slow
def test_derivatives_are_finite_differences():
    """Heights, the thicknesses of the slices, thermal motion along each axis."""
    weights = np.random.default_rng(1).normal(size=(len(THICKNESS), *SHAPE))
    position, u = np.random.default_rng(2).uniform(size=(2, 3, 3))
    position, u = position * BOX, 0.005 + 0.005 * u
    numbers = (14, 14, 14)
    room = rooms(Atoms(numbers, position, BOX, u_A2=u), THICKNESS, 2.0)

    @jax.jit
    def weighted(position, thickness, u):
        atoms = Atoms(numbers, position, BOX, u_A2=u)
        slices = potential_VA(atoms, SHAPE, thickness, rooms=room, **FINITE)
        return 1e-3 * jnp.sum(weights * slices)

    given = tuple(map(jnp.asarray, (position, THICKNESS, u)))
    check_grads(weighted, given, order=1, modes=["fwd", "rev"], eps=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: potential_VA(crystal(), SHAPE, THICKNESS, projection="finite"),
            ValueError,
            "needs table 'peng', all Gaussians; not 'lobato'",
        ),
        (
            lambda: potential_VA(
                crystal(),
                SHAPE,
                THICKNESS,
                rooms=rooms(crystal(), THICKNESS, 0.2),
                **FINITE,
            ),
            Exception,
            "atoms of Z = 8 reach a slice",
        ),
        (
            lambda: potential_VA(Atoms([55], [[0, 0, 7.5]], BOX), SHAPE, THICKNESS, **FINITE),
            ValueError,
            "from z = 7.5 to 7.5 Å in a box of 6 Å",
        ),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
