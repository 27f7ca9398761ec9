"""From atoms and lenses to patterns and images: derivatives beside finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus, collected, diffraction
from micjax.physics.electrons.multislice import multislice
from micjax.physics.electrons.potentials.finite import rooms
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import placed

pytestmark = pytest.mark.usefixtures("double")

SHAPE, BOX, THICKNESS = (48, 48), (7.2, 7.2, 6.0), np.array([1.5, 1.0, 2.0, 1.5])
SAMPLING, SEMIANGLE_MRAD, WAVELENGTH_A = (0.15, 0.15), 30.0, optics.wavelength_A(100.0)
NUMBERS = (14, 14, 14)


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def given():
    """What is differentiated. Aberrations are in units that turn the phase at the edge of the
    aperture by one radian, so that each of them matters."""
    random = np.random.default_rng(0)
    aberrations = dict(zip(optics.CARTESIAN, random.uniform(-1.0, 1.0, 25), strict=True))
    values = {
        "aberrations": aberrations,
        "semiangle_mrad": SEMIANGLE_MRAD,
        "place_A": random.uniform(1.0, 6.0, 2),
        "tilt_mrad": random.uniform(-20.0, 20.0, 2),
        "energy_keV": 100.0,
        "thickness_A": THICKNESS,
        "position_A": random.uniform(0.1, 0.9, (3, 3)) * BOX,
        "u_A2": random.uniform(0.005, 0.02, (3, 3)),
        "occupancy": random.uniform(0.5, 1.0, 3),
        "focal_spread_A": 40.0,
        "angular_spread_mrad": 0.5,
    }
    return jax.tree.map(jnp.asarray, values)


def unit_A(name):
    order = int(name[1]) + 1
    return order * WAVELENGTH_A / (2.0 * np.pi * (1e-3 * SEMIANGLE_MRAD) ** order)


def atoms_of(x):
    return Atoms(NUMBERS, x["position_A"], BOX, u_A2=x["u_A2"], occupancy=x["occupancy"])


@pytest.fixture(scope="module")
def losses():
    """A sum over pixels and one over rings of a convergent beam, and one over an image."""
    random = np.random.default_rng(1)
    pixels, image_pixels = random.uniform(size=(2, *SHAPE))
    room = rooms(atoms_of(given()), THICKNESS, 1.5)
    # of known angles, since a pixel that leaves a ring would be a jump
    fixed = optics.angles_mrad(SHAPE, np.asarray(SAMPLING), WAVELENGTH_A)
    rings = jnp.stack([annulus(fixed, 0.0, 20.0), annulus(fixed, 20.0, 60.0)])

    @jax.jit
    def losses(x):
        wavelength = optics.wavelength_A(x["energy_keV"])
        angles = optics.angles_mrad(SHAPE, np.asarray(SAMPLING), wavelength)
        aberrations = {n: c * unit_A(n) for n, c in x["aberrations"].items()}
        probe = optics.probe(angles, x["semiangle_mrad"], aberrations, wavelength)
        potential = potential_VA(
            atoms_of(x),
            SHAPE,
            x["thickness_A"],
            table="peng",
            projection="finite",
            rooms=room,
        )
        waves = jnp.concatenate(
            [placed(probe, x["place_A"][None], SAMPLING), jnp.full((1, *SHAPE), 1.0 / 48**2)]
        )
        probe, plane = multislice(
            waves,
            potential,
            x["thickness_A"],
            SAMPLING,
            x["energy_keV"],
            tilt_mrad=x["tilt_mrad"],
        )
        pattern = diffraction(probe)
        transfer = (
            jnp.exp(-1j * optics.chi(angles, aberrations, wavelength))
            * optics.focal_envelope(angles, x["focal_spread_A"], wavelength)
            * optics.angular_envelope(angles, x["angular_spread_mrad"], aberrations, wavelength)
        )
        image = jnp.abs(48**2 * jnp.fft.ifft2(jnp.fft.fft2(plane) * transfer)) ** 2
        return jnp.stack(
            [
                1e3 * jnp.sum(pixels * pattern),
                1e3 * collected(pattern, rings) @ jnp.asarray([1.0, -0.5]),
                10.0 * jnp.sum(image_pixels * (image - 1.0) ** 2),
            ]
        )

    return losses


@pytest.fixture(scope="module")
def slopes(losses):
    """By name, of each loss: JAX's, and those of central differences."""
    x = given()
    flat, unflat = ravel_pytree(x)
    step = 1e-5

    @jax.jit
    def differences(flat):
        def along(i):
            up, down = jax.lax.map(lambda h: losses(unflat(flat.at[i].add(h))), ends)
            return (up - down) / (2 * step)

        ends = jnp.asarray([step, -step])
        return jax.vmap(unflat)(jax.lax.map(along, jnp.arange(len(flat))).T)

    @jax.jit
    def exact(x):
        pull = jax.vjp(losses, x)[1]
        return jax.lax.map(lambda of: pull(of)[0], jnp.eye(3))

    return exact(x), differences(flat)


@pytest.mark.parametrize("name", sorted(set(given()) - {"aberrations"}))
def test_a_derivative_is_a_finite_difference(slopes, name):
    alike(*(s[name] for s in slopes))


@pytest.mark.parametrize("name", optics.CARTESIAN)
def test_an_aberration(slopes, name):
    alike(*(s["aberrations"][name] for s in slopes))


def alike(exact, numeric):
    """Of each loss, to 1e-4 of the derivative with respect to the whole array."""
    exact, numeric = (np.asarray(a).reshape(3, -1) for a in (exact, numeric))
    size = np.linalg.norm(exact, axis=1)
    assert size.max() > 1e-3
    assert np.all(np.linalg.norm(numeric - exact, axis=1) <= 1e-4 * size)
