"""Multislice, potentials, detectors: abTEM's reference files, closed forms, derivatives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.electrons import optics, prism
from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.detectors import (
    annulus,
    centre_of_mass_mrad,
    collected,
    diffraction,
    integrated,
    pixelated,
    segments,
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
from micjax.physics.electrons.stem import scanned

pytestmark = pytest.mark.usefixtures("double")
ENERGY_KEV = 200.0


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def reference(shared):
    return lambda name: np.load(shared / "reference" / "electron" / f"{name}.npz")


def relative(found, theirs):
    """abTEM's arrays are [x, y]."""
    found = np.swapaxes(np.asarray(found), -1, -2)
    return np.linalg.norm(found - theirs) / np.linalg.norm(theirs)


def grid_of(case):
    shape = tuple(map(int, case["gpts"]))[::-1]
    return shape, tuple(map(float, case["sampling"][::-1]))


def atoms_in(case, positions=None):
    return Atoms(
        case["numbers"], case["positions"] if positions is None else positions, case["cell"]
    )


def abtem_potential(case, name="lobato", positions=None):
    shape, _ = grid_of(case)
    atoms = atoms_in(case, positions)
    return potential_VA(atoms, shape, case["slice_thickness"], table=name, projection="abtem")


def plane(shape):
    return jnp.full(shape, 1.0 / np.prod(shape), complex)


# --- abTEM -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["ongrid", "offgrid"])
@pytest.mark.parametrize("name", ["lobato", "kirkland"])
def test_plane_wave_is_that_of_abtem(reference, grid, name):
    case = reference(f"case1_planewave_{grid}_{name}")
    shape, sampling = grid_of(case)
    potential = abtem_potential(case, name)
    assert relative(potential, case["potential"]) < 1e-6
    wave = multislice(plane(shape), potential, case["slice_thickness"], sampling, ENERGY_KEV)
    assert relative(wave * np.prod(shape), case["exit_wave_64"]) < 1e-7
    assert relative(diffraction(wave), case["diffraction_full_64"]) < 1e-7


def test_single_precision_is_enough(reference):
    case = reference("case1_planewave_offgrid_lobato")
    shape, sampling = grid_of(case)
    with jax.enable_x64(False):
        potential = abtem_potential(case)
        wave = multislice(
            plane(shape), potential, case["slice_thickness"].astype(np.float32), sampling, 200.0
        )
        assert wave.dtype == jnp.complex64
        found = np.asarray(wave) * np.prod(shape)
    assert relative(found, case["exit_wave_64"]) < 1e-5


@pytest.fixture(scope="module")
def case2(reference):
    return reference("case2_probe_cbed_lobato")


def probes(case, positions, aberrations):
    """Waves of focused probes at (x, y)."""
    shape, sampling = grid_of(case)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
    wave = optics.probe(
        angles, float(case["semiangle_cutoff"]), optics.cartesian(aberrations), wavelength
    )
    spectrum, per_A = jnp.fft.fft2(wave), 1e-3 / wavelength
    ramps = [jnp.exp(-2j * jnp.pi * per_A * (angles[1] * x + angles[0] * y)) for x, y in positions]
    return jnp.fft.ifft2(spectrum * jnp.stack(ramps)), angles


@pytest.mark.parametrize("tilt", [False, True])
def test_convergent_beams_are_those_of_abtem(case2, tilt):
    _, sampling = grid_of(case2)
    waves, _ = probes(case2, case2["scan_positions"], json.loads(str(case2["aberrations"])))
    after = multislice(
        waves,
        abtem_potential(case2),
        case2["slice_thickness"],
        sampling,
        ENERGY_KEV,
        tilt_mrad=case2["tilt_mrad"][::-1] if tilt else (0.0, 0.0),
    )
    theirs = case2["cbed_full_tilt_64" if tilt else "cbed_full_64"]
    assert relative(diffraction(after), theirs) < 1e-7


def test_stem_detectors_are_those_of_abtem(reference):
    case = reference("case3_stem_scan")
    _, sampling = grid_of(case)
    chosen = [0, 7, 44, 99]
    waves, angles = probes(
        case, case["scan_positions"].reshape(-1, 2)[chosen], json.loads(str(case["aberrations"]))
    )
    thickness = case["slice_thickness"]
    patterns = diffraction(
        multislice(waves, abtem_potential(case), thickness, sampling, ENERGY_KEV)
    )
    rings = json.loads(str(case["detectors"]))
    found = collected(patterns, jnp.stack([annulus(angles, *ends) for ends in rings.values()]))
    for i, name in enumerate(rings):
        theirs = case[name].reshape(-1)[chosen]
        assert np.linalg.norm(found[:, i] - theirs) < 1e-6 * np.linalg.norm(theirs), name
    camera = np.swapaxes(pixelated(patterns, angles, 45.0), -1, -2)
    theirs = case["pixelated_45mrad_shifted"].reshape(100, 46, 46)[chosen]
    inside = slice(23 - 21, 23 + 22)  # theirs has an even number of pixels
    np.testing.assert_allclose(camera, theirs[:, inside, inside], rtol=1e-5, atol=1e-12)
    quarters = collected(patterns, segments(angles, 0.0, 30.0, 2, 4, 0.1))
    theirs = case["segmented_r2_az4_rot0.1_0-30mrad"].reshape(100, 2, 4)[chosen]
    np.testing.assert_allclose(quarters, theirs, rtol=1e-6)


@pytest.fixture(scope="module")
def scan(reference):
    """Case 3: its probe, transmissions, masks and four of its places."""
    case = reference("case3_stem_scan")
    shape, sampling = grid_of(case)
    wavelength = optics.wavelength_A(ENERGY_KEV)
    angles = optics.angles_mrad(shape, np.asarray(sampling), wavelength)
    aberrations = json.loads(str(case["aberrations"]))
    limit = band_limit(shape, sampling)
    t = transmission(abtem_potential(case), ENERGY_KEV, limit)
    masks = jnp.stack([annulus(angles, *e) for e in json.loads(str(case["detectors"])).values()])
    places = jnp.asarray(case["scan_positions"].reshape(-1, 2)[CHOSEN, ::-1])
    return case, shape, sampling, angles, aberrations, limit, t, masks, places


CHOSEN = [0, 7, 44, 99]


def test_a_scan_is_that_of_abtem(scan):
    case, _, sampling, angles, aberrations, limit, t, masks, places = scan
    probe = optics.probe(angles, 21.4, aberrations, optics.wavelength_A(ENERGY_KEV))
    thickness = case["slice_thickness"]
    found = scanned(probe, places, t, thickness, sampling, ENERGY_KEV, masks, limit=limit)
    for i, name in enumerate(json.loads(str(case["detectors"]))):
        np.testing.assert_allclose(found[:, i], case[name].ravel()[CHOSEN], rtol=1e-6)
    by_function = scanned(
        probe,
        places[:1],
        t,
        thickness,
        sampling,
        ENERGY_KEV,
        lambda patterns: (collected(patterns, masks), patterns),
        limit=limit,
    )
    np.testing.assert_allclose(by_function[0], found[:1], rtol=1e-12)
    np.testing.assert_allclose(collected(by_function[1], masks), found[:1], rtol=1e-12)


@pytest.mark.parametrize("interpolation", [1, 2, 3])
def test_prism_is_that_of_abtem(reference, scan, interpolation):
    """And with every beam it is multislice."""
    case, shape, sampling, _, aberrations, limit, t, _, places = scan
    theirs = reference("case4_prism")
    chosen = prism.beams(shape, sampling, 21.4, ENERGY_KEV, interpolation)
    assert len(chosen.index) == int(theirs[f"nbeams_{interpolation}"])
    thickness = case["slice_thickness"]
    matrix = prism.scattering_matrix(chosen, t, thickness, sampling, ENERGY_KEV, limit=limit)
    weights = prism.probe_weights(chosen, sampling, 21.4, aberrations, ENERGY_KEV)
    angles = optics.angles_mrad(
        chosen.window, np.asarray(sampling), optics.wavelength_A(ENERGY_KEV)
    )
    rings = json.loads(str(case["detectors"]))
    masks = jnp.stack([annulus(angles, *ends) for ends in rings.values()])
    found = prism.scanned(places, weights, matrix, chosen, sampling, masks)
    for i, name in enumerate(rings):
        expected = theirs[f"{name}_prism{interpolation}"].ravel()[CHOSEN]
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-5)
        if interpolation == 1:
            np.testing.assert_allclose(found[:, i], case[name].ravel()[CHOSEN], rtol=1e-5)


def test_centre_of_mass_is_that_of_abtem(reference):
    case = reference("case3_stem_scan")
    patterns = np.swapaxes(case["pixelated_45mrad_shifted"][3], -1, -2).astype(float)
    frequencies = (jnp.arange(46) - 23) * float(case["pixelated_sampling_invA"][0])
    found = centre_of_mass_mrad(jnp.asarray(patterns), (frequencies[:, None], frequencies[None]))
    theirs = case["com_invA_of_pixelated"][3]
    np.testing.assert_allclose(found[:, 1] + 1j * found[:, 0], theirs, rtol=2e-5)


def test_frozen_phonons_are_those_of_abtem(reference):
    case = reference("case5_frozen_phonons")
    shape, sampling = grid_of(case)
    thickness = case["slice_thickness"]
    room, elements = 8, sorted(set(case["numbers"].tolist()))
    seats = np.arange(len(thickness) * len(elements) * room)
    of_seat = [z for z in elements for _ in range(room)] * len(thickness)
    slices = tuple(map(tuple, seats.reshape(len(thickness), -1).tolist()))

    def seated(positions):
        """Atoms in the slices of abTEM, which wraps them along the beam as well."""
        z = np.mod(positions[:, 2], case["cell"][2])
        where = np.digitize(z, np.cumsum(thickness) - 1e-12)
        at, taken = np.zeros((len(seats), 3)), np.zeros(len(seats))
        for i, element in enumerate(elements):
            for layer in range(len(thickness)):
                own = np.flatnonzero((where == layer) & (case["numbers"] == element))
                first = (layer * len(elements) + i) * room
                assert len(own) <= room
                at[first : first + len(own)], taken[first : first + len(own)] = positions[own], 1.0
        return jnp.asarray(at), jnp.asarray(taken)

    @jax.jit
    def exit_wave(at, taken):
        atoms = Atoms(of_seat, at, case["cell"], occupancy=taken)
        potential = potential_VA(atoms, shape, thickness, projection="abtem", slices=slices)
        return multislice(plane(shape), potential, thickness, sampling, ENERGY_KEV)

    waves = jnp.stack([exit_wave(*seated(p)) for p in case["configurations"]])
    total = diffraction(waves).mean(0)
    elastic = diffraction(waves.mean(0))
    assert relative(total, case["diffraction_full_mean_64"]) < 1e-6
    assert relative(elastic, case["elastic_full_64"]) < 1e-6
    assert relative(total - elastic, case["tds_full_64"]) < 1e-6


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


@pytest.mark.parametrize("limited", [True, False])
def test_derivatives_are_finite_differences(limited):
    """Positions, thermal motion, occupancy, thickness, tilt, energy."""
    jitted = jax.jit(lambda *given: brightness(*given, limited=limited))
    check_grads(jitted, arguments(), order=1, modes=["fwd", "rev"], eps=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize("memory", ["segment", "reversible"])
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
