"""The potential of many atoms by a fast transform of points is the exact one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA

pytestmark = pytest.mark.usefixtures("double")
BOX = (7.0, 9.0, 4.0)
THICKNESS = np.array([1.5, 2.5])
NUMBERS = (14,) * 30 + (79,) * 10


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def atoms_at(position=None, **options):
    if position is None:
        position = np.random.default_rng(0).uniform(-0.2, 1.2, size=(40, 3)) * BOX
    u = np.where(np.asarray(NUMBERS)[:, None] == 14, [0.01, 0.02, 0.0], [0.004, 0.003, 0.0])
    occupancy = np.linspace(0.5, 1.0, 40)
    return Atoms(NUMBERS, position, BOX, **{"u_A2": u, "occupancy": occupancy} | options)


def differ(shape):
    found, exact = (
        np.asarray(potential_VA(atoms_at(), shape, THICKNESS, projection=p), float)
        for p in ("gridded", "exact")
    )
    return np.abs(found - exact).max() / exact.max()


@pytest.mark.parametrize(
    "shape", [pytest.param((54, 42), marks=pytest.mark.slow), (45, 35), (9, 7)]
)
def test_it_is_the_exact_potential(shape):
    assert differ(shape) < 1e-11
    with jax.enable_x64(False):
        assert differ(shape) < 3e-6


@pytest.mark.slow
def test_derivatives_are_finite_differences():
    shape = (27, 21)
    weights = np.random.default_rng(1).normal(size=(2, *shape))
    room = layers(atoms_at(), THICKNESS)

    @jax.jit
    def weighted(position, occupancy, u):
        u = jnp.where(np.asarray(NUMBERS) == 14, u[0], u[1])
        atoms = atoms_at(position, occupancy=occupancy, u_A2=u)
        slices = potential_VA(atoms, shape, THICKNESS, projection="gridded", slices=room)
        return 1e-3 * jnp.sum(weights * slices)

    given = (atoms_at().position_A, atoms_at().occupancy, jnp.asarray([0.01, 0.004]))
    check_grads(weighted, given, order=1, modes=["fwd", "rev"], eps=1e-6, rtol=1e-5)


def test_different_thermal_motion_is_an_error():
    atoms = atoms_at(u_A2=np.linspace(0.0, 0.01, 40))
    with pytest.raises(Exception, match="differ in u_A2"):
        potential_VA(atoms, (27, 21), THICKNESS, projection="gridded")
