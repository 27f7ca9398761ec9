"""Multislice, potentials, detectors: closed forms, conservation, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.electrons import optics, prism
from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.detectors import (
    annulus,
    diffraction,
    integrated,
)
from micjax.physics.electrons.multislice import (
    MEMORY,
    band_limit,
    highest_angle_mrad,
    multislice,
    propagate,
    propagator,
    transmission,
)
from micjax.physics.electrons.potentials.layers import Atoms, atoms_of, layers, potential_VA
from micjax.physics.electrons.scattering import TABLES, VOLT_A2, scattering_factors_A, table

pytestmark = pytest.mark.usefixtures("double")
ENERGY_KEV = 200.0


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


# --- closed forms and laws of conservation -------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_element_is_there(name):
    k2 = jnp.linspace(0.0, 12.0, 25) ** 2
    factors = scattering_factors_A(range(1, 99), k2, name)
    assert factors.shape == (98, 25) and bool(jnp.all(factors > 0.0))
    assert bool(jnp.all(jnp.diff(factors, axis=1) < 0.0))


@pytest.mark.parametrize("number", [6, 14, 38, 79])
def test_at_high_angles_an_atom_is_its_nucleus(number):
    """Mott–Bethe: f -> Z / (2 pi^2 a0 k^2), a0 = 0.529177 Å."""
    k = 40.0
    expected = number / (2.0 * np.pi**2 * 0.529177 * k**2)
    (found,) = scattering_factors_A([number], jnp.asarray(k**2))
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_an_element_that_is_not_there():
    with pytest.raises(ValueError, match="Z = 99: the table 'peng' goes from 1 to 98"):
        scattering_factors_A([99], jnp.zeros(()), "peng")
    with pytest.raises(ValueError, match="'labato' of scattering factors; there are lobato"):
        table("labato")


SHAPE, BOX = (30, 24), (4.1, 5.0, 6.0)  # box along x, y, z
SAMPLING = (BOX[1] / SHAPE[0], BOX[0] / SHAPE[1])
THICKNESS = np.array([1.5, 1.0, 2.0, 1.5])
NUMBERS = (22, 8, 8, 38, 22)


def crystal(seed=0, **options):
    position = np.random.default_rng(seed).uniform(size=(5, 3)) * BOX
    return Atoms(NUMBERS, position, BOX, **options)


def test_a_gaussian_atom_has_its_closed_form():
    """A damped atom of Peng's table is a sum of Gaussians, in space as in the spectrum."""
    u = 0.02
    atom = Atoms([14], [[1.3, 2.2, 0.5]], BOX, u_A2=u, occupancy=0.7)
    (found,) = potential_VA(atom, (100, 82), np.array([6.0]), table="peng")
    a, b = np.split(table("peng")[13], 2)
    y, x = (np.arange(n) * L / n for n, L in ((100, BOX[1]), (82, BOX[0])))
    width = b / 4.0 + 2.0 * np.pi**2 * u  # of exp(-width k^2)
    expected = 0.0
    for ny in range(-2, 3):  # its images in the next boxes
        for nx in range(-2, 3):
            r2 = (y[:, None] - 2.2 - ny * BOX[1]) ** 2 + (x - 1.3 - nx * BOX[0]) ** 2
            terms = a * np.pi / width * np.exp(-(np.pi**2) * r2[..., None] / width)
            expected = expected + 0.7 * VOLT_A2 * terms.sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_an_atom_between_pixels_is_a_shifted_one():
    shifted = crystal().position_A + jnp.asarray([SAMPLING[1] * 3, SAMPLING[0] * 5, 0.0])
    moved = Atoms(NUMBERS, shifted, BOX)
    a, b = (potential_VA(atoms, SHAPE, THICKNESS) for atoms in (crystal(), moved))
    np.testing.assert_allclose(b, jnp.roll(a, (5, 3), (1, 2)), atol=1e-9 * float(a.max()))


def test_repeated_boxes():
    one, many = crystal(u_A2=0.01), crystal(u_A2=0.01).repeated(2, 3, 2)
    single = potential_VA(one, SHAPE, THICKNESS)
    several = potential_VA(many, (90, 48), np.tile(THICKNESS, 2))
    np.testing.assert_allclose(
        several, jnp.tile(single, (2, 3, 2)), atol=1e-8 * float(single.max())
    )


def waves_in(count=2, seed=0):
    parts = np.random.default_rng(seed).normal(size=(2, count, *SHAPE))
    waves = jnp.asarray(parts[0] + 1j * parts[1])
    return waves / jnp.sqrt(jnp.sum(diffraction(waves), (1, 2), keepdims=True))


@pytest.mark.parametrize("memory", MEMORY)
def test_nothing_is_lost_without_a_band_limit(memory):
    potential = potential_VA(crystal(), SHAPE, THICKNESS)
    after = multislice(
        waves_in(), potential, THICKNESS, SAMPLING, 80.0, limited=False, memory=memory
    )
    np.testing.assert_allclose(jnp.sum(diffraction(after), (1, 2)), 1.0, rtol=1e-12)


def test_reciprocity():
    """From a point through the crystal into a direction is as much as from the opposite direction
    through the crystal turned around to the point (Pogany & Turner 1968)."""
    potential = potential_VA(crystal(), SHAPE, THICKNESS)
    limited = {"limited": False}
    point = jnp.zeros(SHAPE, complex).at[7, 5].set(1.0)
    # half of the way through vacuum before the first slice, so that both ways are equal
    there = multislice(point, potential, THICKNESS, SAMPLING, ENERGY_KEV, **limited)
    direction = jnp.fft.fft2(there)[3, -2]
    back = jnp.fft.ifft2(jnp.zeros(SHAPE, complex).at[-3, 2].set(np.prod(SHAPE)))
    travel = propagator(SHAPE, SAMPLING, THICKNESS[-1], ENERGY_KEV)
    back = jnp.fft.ifft2(jnp.fft.fft2(back) * travel)
    turned = multislice(
        back, potential[::-1], np.roll(THICKNESS[::-1], -1), SAMPLING, ENERGY_KEV, **limited
    )
    # the last step goes on for the first of the turned slices, which is taken back
    over = propagator(SHAPE, SAMPLING, -THICKNESS[-1], ENERGY_KEV)
    turned = jnp.fft.ifft2(jnp.fft.fft2(turned) * over)
    np.testing.assert_allclose(turned[7, 5], direction, rtol=1e-10)


def test_vacuum_lets_a_probe_spread_and_nothing_else():
    wave = multislice(
        waves_in(), jnp.zeros((4, *SHAPE)), THICKNESS, SAMPLING, ENERGY_KEV, limited=False
    )
    travel = propagator(SHAPE, SAMPLING, float(THICKNESS.sum()), ENERGY_KEV)
    expected = jnp.fft.ifft2(jnp.fft.fft2(waves_in()) * travel)
    np.testing.assert_allclose(wave, expected, atol=1e-12)


def test_an_integrated_shift_gives_the_image_back():
    y, x = np.meshgrid(np.arange(20) / 20.0, np.arange(16) / 16.0, indexing="ij")
    image = np.sin(2 * np.pi * y) * np.cos(4 * np.pi * x)
    gradient = np.stack(
        [
            2 * np.pi * np.cos(2 * np.pi * y) * np.cos(4 * np.pi * x),
            -4 * np.pi * np.sin(2 * np.pi * y) * np.sin(4 * np.pi * x),
        ],
        axis=-1,
    )
    found = integrated(jnp.asarray(gradient), (1 / 20.0, 1 / 16.0))
    np.testing.assert_allclose(found, image, atol=1e-12)


def test_quick_sines_are_sines():
    x = np.linspace(-5000.0, 5000.0, 200_001, dtype=np.float32)
    with jax.enable_x64(False):
        found = np.asarray(jax.jit(cis)(jnp.asarray(x)))
    assert found.dtype == np.complex64
    assert np.abs(found - np.exp(1j * x.astype(float))).max() < 2e-7
    _, slope = jax.jvp(cis, (jnp.asarray(0.3),), (jnp.asarray(2.0),))
    np.testing.assert_allclose(slope, 2j * np.exp(0.3j), rtol=1e-12)


# --- derivatives ---------------------------------------------------------------------------------

WEIGHTS = np.random.default_rng(5).uniform(size=SHAPE)


def brightness(position, u, occupancy, dz, tilt, energy_keV, memory="store", limited=True):
    atoms = Atoms(NUMBERS, position, BOX, u_A2=u, occupancy=occupancy)
    potential = potential_VA(atoms, SHAPE, THICKNESS, slices=SLICES)
    after = multislice(
        waves_in(),
        potential,
        dz,
        SAMPLING,
        energy_keV,
        tilt_mrad=tilt,
        limited=limited,
        memory=memory,
    )
    return jnp.sum(WEIGHTS * diffraction(after))


SLICES = layers(crystal(), THICKNESS)


def arguments():
    return (
        crystal().position_A,
        jnp.full(5, 0.01),
        jnp.linspace(0.6, 1.0, 5),
        jnp.asarray(THICKNESS),
        jnp.asarray([12.0, -7.0]),
        jnp.asarray(ENERGY_KEV),
    )


@pytest.mark.parametrize("limited", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_derivatives_are_finite_differences(limited):
    """Positions, thermal motion, occupancy, thickness, tilt, energy."""
    jitted = jax.jit(lambda *given: brightness(*given, limited=limited))
    check_grads(jitted, arguments(), order=1, modes=["fwd", "rev"], eps=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_prism_is_smooth_in_the_aberrations():
    chosen = prism.beams(SHAPE, SAMPLING, 40.0, ENERGY_KEV)
    t = transmission(potential_VA(crystal(), SHAPE, THICKNESS), ENERGY_KEV)
    matrix = prism.scattering_matrix(chosen, t, THICKNESS, SAMPLING, ENERGY_KEV)

    def seen(c10, c12a, c30, place):
        coefficients = {"C10": c10, "C12a": c12a, "C30": c30}
        weights = prism.probe_weights(chosen, SAMPLING, 40.0, coefficients, ENERGY_KEV)
        (wave,) = prism.waves_at(place[None], weights, matrix, chosen, SAMPLING)
        return jnp.sum(WEIGHTS * diffraction(wave))

    at = (jnp.asarray(-60.0), jnp.asarray(15.0), jnp.asarray(2e4), jnp.asarray([1.0, 2.0]))
    check_grads(jax.jit(seen), at, order=1, modes=["fwd", "rev"], eps=1e-4, rtol=1e-4)


@pytest.mark.parametrize("memory", [pytest.param("segment", marks=pytest.mark.slow), "reversible"])
def test_less_memory_and_the_same_derivative(memory):
    limited = memory != "reversible"
    which = tuple(range(6))
    stored, other = (
        jax.jit(jax.grad(lambda *given, m=m: brightness(*given, m, limited), which))(*arguments())
        for m in ("store", memory)
    )
    for a, b in zip(stored, other, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-8, atol=1e-12)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Atoms([], np.zeros((0, 3)), BOX), "there are no atoms"),
        (lambda: Atoms([6], np.zeros((2, 3)), BOX), r"shape \(2, 3\), not \(1, 3\)"),
        (lambda: Atoms([6], [[np.nan, 0, 0]], BOX), "not finite"),
        (lambda: Atoms([6], np.zeros((1, 3)), (1.0, 0.0, 1.0)), "edges are positive"),
        (lambda: crystal(u_A2=-0.01), "u_A2 goes down to -0.01"),
        (lambda: crystal(u_A2=np.nan), "u_A2 holds numbers that are not finite"),
        (lambda: crystal(occupancy=-0.5), "occupancy goes down to -0.5"),
        (lambda: through(tilt_mrad=(400.0, 0.0)), "up to 60, for small angles"),
        (lambda: crystal().repeated(0, 1, 1), "are none"),
        (lambda: potential_VA(crystal(), SHAPE, THICKNESS, projection="sharp"), "there are exact"),
        (lambda: potential_VA(crystal(), SHAPE, THICKNESS[:2]), "fill"),
        (lambda: potential_VA(crystal(), SHAPE, np.array([0.0, 6.0])), "positive"),
        (lambda: jax.jit(lambda a: potential_VA(a, SHAPE, THICKNESS))(crystal()), "under jit"),
        (lambda: through(memory="reversible"), "limited=False"),
        (lambda: through(memory="none"), "there are store"),
        (lambda: prism.beams(SHAPE, SAMPLING, 20.0, 200.0, 4), "does not divide"),
        (lambda: annulus(optics.angles_mrad(SHAPE, 0.1, 0.025), 5.0, 5.0), "empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def through(**options):
    return multislice(waves_in(), jnp.zeros((1, *SHAPE)), 1.0, SAMPLING, 100.0, **options)


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (((0, 1), (2,), (3,), ()), "each of 5 atoms has to be in exactly one slice"),
        (((0, 1), (2,), (3, 4), (4,)), "each of 5 atoms has to be in exactly one slice"),
        (((0, 1, 2, 3, 4),), "atoms of 1 slices, thicknesses of 4"),
    ],
)
def test_no_atom_is_dropped(slices, message):
    with pytest.raises(ValueError, match=message):
        potential_VA(crystal(), SHAPE, THICKNESS, slices=slices)


def test_cells_of_ase():
    class Structure:
        numbers, positions = np.array([14, 14]), np.zeros((2, 3))
        cell = np.diag([4.0, 5.0, 6.0])

    found = atoms_of(Structure())
    assert found.numbers == (14, 14) and found.box_A.tolist() == [4.0, 5.0, 6.0]
    Structure.cell = np.array([[4.0, 0, 0], [2.0, 3.4, 0], [0, 0, 6.0]])
    with pytest.raises(ValueError, match="no right angles"):
        atoms_of(Structure())
    Structure.cell = np.diag([4.0, 5.0, 0.0])
    with pytest.raises(ValueError, match="is flat"):
        atoms_of(Structure())


def test_the_highest_angle():
    """2/3 of the highest frequency, at the coarser of two pixels."""
    expected = 1e3 * 0.0250793 * (2 / 3) / (2 * 0.06)
    np.testing.assert_allclose(highest_angle_mrad((0.05, 0.06), 200.0), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_potential_on_finer_pixels_does_not_alias():
    """A heavy atom off the grid: the lowest frequencies, against pixels sixteen times finer."""
    shape, box = (48, 40), (3.6, 3.0)
    atom = Atoms([38], [[1.31, 1.97, 0.5]], [box[1], box[0], 1.0])
    sampling = (box[0] / shape[0], box[1] / shape[1])
    limit = band_limit(shape, sampling)

    def scattered(finer):
        fine = (finer * shape[0], finer * shape[1])
        t = transmission(potential_VA(atom, fine, np.ones(1)), 200.0, limit)
        return jnp.fft.fft2(t).ravel()[1:]

    best = scattered(16)
    errors = [float(jnp.abs(scattered(n) - best).max() / jnp.abs(best).max()) for n in (1, 2, 4)]
    assert errors[0] > 3e-3 and errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]


@pytest.mark.slow
def test_waves_go_through_finer_potentials_in_all_memories():
    shape, sampling = (16, 12), (0.2, 0.25)
    random = np.random.default_rng(0)
    potential = jnp.asarray(random.uniform(0.0, 100.0, (5, 32, 24)))
    waves = jnp.asarray(random.normal(size=(2, *shape)) + 1j * random.normal(size=(2, *shape)))
    limit = band_limit(shape, sampling)
    t = transmission(potential, 100.0, limit)
    spectrum = jnp.fft.fft2(jnp.exp(1j * optics.interaction_rad_per_VA(100.0) * potential))
    kept = np.fft.fftfreq(16, 1 / 16).astype(int)[:, None], np.fft.fftfreq(12, 1 / 12).astype(int)
    np.testing.assert_allclose(t, jnp.fft.ifft2(spectrum[:, *kept] / 4 * limit), atol=1e-12)
    expected = propagate(waves, t, 1.5, sampling, 100.0, limit=limit)
    for memory in ("store", "segment"):
        for i in (slice(0, 2), slice(0, 1), 0):
            found = multislice(waves[i], potential, 1.5, sampling, 100.0, memory=memory)
            np.testing.assert_allclose(found, expected[i], atol=1e-12)
    with pytest.raises(ValueError, match="with limited=True only"):
        multislice(waves, potential, 1.5, sampling, 100.0, limited=False)
    with pytest.raises(ValueError, match="fewer than"):
        multislice(waves, potential[:, ::4, ::4], 1.5, sampling, 100.0)
