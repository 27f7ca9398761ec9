"""What several devices find together is what one finds, and so are its derivatives.

A process has as many virtual devices as it was started with, so this file also runs as a program:
it computes everything on one and on several of them.
"""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from micjax.core import devices
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus, collected
from micjax.physics.electrons.multislice import band_limit, multislice, transmission
from micjax.physics.electrons.phonons import averaged, displaced
from micjax.physics.electrons.potentials.finite import Room
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import scanned
from micjax.run.jobs.simulate import job as simulate
from micjax.run.plans.plan import make_plan

DEVICES = 3
SHAPE, SAMPLING_A, DZ_A, ENERGY_KEV = (16, 18), (0.25, 0.25), 1.5, 200.0
PLACES = np.random.default_rng(0).uniform(0.0, 4.0, size=(7, 2))  # not a multiple of 2 or 3


def beam():
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(SHAPE, np.asarray(SAMPLING_A), wavelength)
    return angles, optics.probe(angles, 12.0, {"C10": 50.0}, wavelength)


def scan(mesh):
    """Signals of a scan; how their sum, weighted, changes with the specimen and the probe."""
    angles, probe = beam()
    masks = jnp.stack([annulus(angles, 0.0, 8.0), annulus(angles, 8.0, 30.0)])
    limit = band_limit(SHAPE, SAMPLING_A)

    def loss(potential, probe, places):
        t = transmission(potential, ENERGY_KEV, limit)

        def detect(patterns):
            return collected(patterns, masks), patterns[:, ::4, ::4]

        options = {"limit": limit, "mesh": mesh}
        seen = scanned(probe, places, t, DZ_A, SAMPLING_A, ENERGY_KEV, detect, **options)
        return jnp.sum(seen[0] * jnp.arange(1.0, 15.0).reshape(7, 2)), seen

    potential = jnp.asarray(np.random.default_rng(1).uniform(0.0, 200.0, size=(3, *SHAPE)))
    by_both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, seen), slopes = by_both(potential, probe, jnp.asarray(PLACES))
    return {
        **dict(zip(("signals", "patterns"), seen, strict=True)),
        **dict(zip(("by potential", "by probe", "by place"), slopes, strict=True)),
    }


def thermal(mesh):
    """Patterns of a specimen that trembles; how the diffuse one changes with the amplitude."""
    angles, probe = beam()
    rest = jnp.asarray(np.random.default_rng(1).uniform(0.0, 200.0, size=(3, *SHAPE)))

    def loss(amplitude, probe, keys):
        def behind(key):
            v = rest + amplitude * jax.random.normal(key, rest.shape)
            options = {"memory": "reversible", "limited": False}
            return multislice(probe, v, DZ_A, SAMPLING_A, ENERGY_KEV, **options)

        moments = [keys[i] for i in range(3)] if mesh is None else keys
        found = averaged(behind, moments, mesh)
        return jnp.sum(found.diffuse * jnp.hypot(*angles)), found

    by_both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    keys = jax.random.split(jax.random.key(0), 3)
    (_, found), slopes = by_both(jnp.asarray(20.0), probe, keys)
    return {
        "total": found.total,
        "elastic": found.elastic,
        **dict(zip(("by amplitude", "by wave"), slopes, strict=True)),
    }


def too_many_atoms(mesh):
    """Whether it is told."""
    atoms = Atoms([14, 14], [[1.0, 1.0, 0.7], [3.0, 3.0, 0.9]], (4.5, 4.0, 3.0), u_A2=1e-4)

    def behind(key):
        options = {"table": "peng", "projection": "finite", "rooms": (Room(1, (9, 9)),) * 5}
        return potential_VA(displaced(key, atoms), SHAPE, np.full(2, DZ_A), **options) + 0j

    keys = jax.random.split(jax.random.key(0), 3)
    try:
        jax.block_until_ready(jax.jit(lambda keys: averaged(behind, keys, mesh))(keys))
    except jax.errors.JaxRuntimeError as error:
        return "more capacity is needed" in str(error)
    return False


def simulated(folder, alone):
    """A scan of five lines, with its patterns, as `micjax simulate` has it."""
    import ase.io

    structure = folder / "gold.xyz"
    ase.io.write(structure, ase.Atoms("Au", cell=[4.0, 4.0, 3.0], pbc=True))
    prepare = simulate.prepare
    settings = {"scan": (5, 2), "sampling_A": 0.3, "semiangle_mrad": 10.0, "patterns": True}
    settings |= {"detectors": {"adf": (5.0, 20.0)}, "tile": (2, 2, 1), "u_A2": 0.01, "phonons": 2}
    plan = make_plan(
        {"kind": "simulate", "what": "stem", "structure": str(structure), **settings}, "test"
    )
    if alone:
        simulate.prepare = lambda plan: prepare(plan)._replace(mesh=None)
    found = simulate.simulate(plan, folder).fields["adf"].data
    simulate.prepare = prepare
    return {"adf of lines": found, "patterns of lines": read(folder / "patterns.nxs").data}


def compute(path):
    jax.config.update("jax_enable_x64", True)
    two, three = devices.row(jax.devices()[:2]), devices.row()
    found = {"1": scan(None) | thermal(None), "several": scan(three) | thermal(two)}
    folder = pathlib.Path(path).parent
    found["1"] |= simulated(folder, alone=True)
    found["several"] |= simulated(folder, alone=False)
    arrays = {f"{name}, {n}": np.asarray(a) for n, all in found.items() for name, a in all.items()}
    np.savez(path, **arrays, raised=too_many_atoms(two), count=jax.device_count())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    surroundings = os.environ | {"XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__, path], env=surroundings, check=True, timeout=300)
    with np.load(path) as file:
        assert file["count"] == DEVICES
        return dict(file)


NAMES = ("signals", "patterns", "by potential", "by probe", "by place")
NAMES += ("total", "elastic", "by amplitude", "by wave")
ON_DISK = ("adf of lines", "patterns of lines")  # in single precision


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_together_they_find_what_one_finds(found, name):
    one, together = found[f"{name}, 1"], found[f"{name}, several"]
    largest = np.abs(one).max()
    assert one.shape == together.shape and largest > 0.0
    np.testing.assert_allclose(together, one, rtol=0, atol=1e-11 * largest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_DISK)
def test_a_simulation_is_the_same(found, name):
    one, together = found[f"{name}, 1"], found[f"{name}, several"]
    assert one.shape[:2] == (5, 2) and one.min() >= 0.0 and one.max() > 1e-4
    np.testing.assert_allclose(together, one, rtol=1e-5, atol=1e-7 * one.max())


@pytest.mark.slow
def test_an_error_on_a_device_is_told(found):
    assert found["raised"]


def test_a_row_of_one():
    items = jnp.arange(4.0)
    mesh = devices.row()
    np.testing.assert_array_equal(devices.each(lambda x: x**2, items, mesh), items**2)
    assert devices.mean(lambda x: {"cube": x**3}, items, mesh)["cube"] == 9.0


def test_bad_input():
    other = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    for call in (devices.each, devices.mean):
        with pytest.raises(ValueError, match="no row of devices"):
            call(lambda x: x, jnp.arange(4.0), other)
    for mesh in (None, devices.row()):
        with pytest.raises(ValueError, match="no configurations"):
            devices.mean(lambda x: x, jnp.zeros((0, 2)), mesh)


if __name__ == "__main__":
    compute(pathlib.Path(sys.argv[1]))
