"""Beside abTEM: what tests/references/abtem_*.npz holds, made by
benchmarks/multislice_peers/references.py. Its arrays are [x, y]."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import optics, prism
from micjax.physics.electrons.detectors import (
    annulus,
    centre_of_mass_mrad,
    collected,
    diffraction,
    pixelated,
    segments,
)
from micjax.physics.electrons.multislice import band_limit, multislice, transmission
from micjax.physics.electrons.potentials.finite import rooms
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA
from micjax.physics.electrons.stem import placed, scanned

pytestmark = pytest.mark.usefixtures("double")
ENERGY_KEV = 200.0


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def relative(found, theirs):
    """Theirs may hold every second or fourth row and column of ours only."""
    found = np.swapaxes(np.asarray(found), -1, -2)
    every_x, every_y = (n // m for n, m in zip(found.shape[-2:], theirs.shape[-2:], strict=True))
    found = found[..., ::every_x, ::every_y]
    return np.linalg.norm(found - theirs) / np.linalg.norm(theirs)


def grid_of(case):
    return tuple(map(int, case["gpts"]))[::-1], tuple(map(float, case["sampling"][::-1]))


def angles_of(case):
    shape, sampling = grid_of(case)
    return optics.angles_mrad(shape, np.asarray(sampling), float(case["wavelength"]))


def plane(shape):
    return jnp.ones(shape, complex)


@functools.partial(jax.jit, static_argnames=("numbers", "cell", "shape", "table", "slices"))
def projected(positions, thickness, numbers, cell, shape, table, slices):
    atoms = Atoms(numbers, positions, cell)
    options = {"table": table, "projection": "abtem", "slices": slices}
    return potential_VA(atoms, shape, thickness, **options)


def potential_of(case, table="lobato", positions=None):
    numbers, cell = tuple(case["numbers"].tolist()), tuple(case["cell"].tolist())
    positions = case["positions"] if positions is None else positions
    thickness = case["slice_thickness"]
    slices = layers(Atoms(numbers, positions, cell), thickness)
    given = positions, thickness.astype(jnp.result_type(float))
    return projected(*given, numbers, cell, grid_of(case)[0], table, slices)


@functools.partial(jax.jit, static_argnames="sampling")
def through(waves, potential, thickness, sampling, tilt_mrad=(0.0, 0.0)):
    thickness = thickness.astype(potential.dtype)
    return multislice(waves, potential, thickness, sampling, ENERGY_KEV, tilt_mrad=tilt_mrad)


# --- plane waves -------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["on", "off"])
@pytest.mark.parametrize("table", ["lobato", "kirkland"])
def test_plane_waves(references, grid, table):
    """With atoms on the pixels and between them."""
    case = references(f"abtem_plane_wave_{grid}_grid")
    shape, sampling = grid_of(case)
    potential = potential_of(case, table)
    assert relative(potential, case[f"{table}_potential"]) < 1e-7
    wave = through(plane(shape), potential, case["slice_thickness"], sampling)
    assert relative(wave, case[f"{table}_exit_wave"]) < 1e-7
    assert relative(diffraction(wave / np.prod(shape)), case[f"{table}_diffraction"]) < 1e-7


def test_single_precision_is_enough(references):
    case = references("abtem_plane_wave_off_grid")
    shape, sampling = grid_of(case)
    with jax.enable_x64(False):
        wave = through(plane(shape), potential_of(case), case["slice_thickness"], sampling)
    assert wave.dtype == jnp.complex64
    assert relative(wave, case["lobato_exit_wave"]) < 3e-6


def test_frozen_phonons(references):
    case = references("abtem_frozen_phonons")
    shape, sampling = grid_of(case)
    thickness = case["slice_thickness"]
    potentials = [potential_of(case, positions=p) for p in case["configurations"]]
    waves = [through(plane(shape), p, thickness, sampling) for p in potentials]
    waves = jnp.stack(waves) / np.prod(shape)
    found, elastic = (diffraction(w) for w in (waves, waves.mean(0)))
    total = found.mean(0)
    assert relative(total, case["diffraction"]) < 1e-7
    assert relative(elastic, case["elastic"]) < 1e-7
    assert relative(total - elastic, case["diffraction"] - case["elastic"]) < 2e-7


def test_images_with_both_envelopes(references):
    case = references("abtem_plane_wave_off_grid")
    lens, wavelength = json.loads(str(case["hrtem_lens"])), float(case["wavelength"])
    angles, aberrations = angles_of(case), {name: lens[name] for name in ("C10", "C30")}

    @jax.jit
    def seen(wave):
        transfer = (
            optics.aperture(angles, lens["semiangle"])
            * jnp.exp(-1j * optics.chi(angles, aberrations, wavelength))
            * optics.focal_envelope(angles, lens["focal_spread"], wavelength)
            * optics.angular_envelope(angles, lens["angular_spread"], aberrations, wavelength)
        )
        return jnp.abs(jnp.fft.ifft2(jnp.fft.fft2(wave) * transfer)) ** 2

    assert relative(seen(case["hrtem_wave"].T), case["hrtem_image"]) < 1e-12


# --- probes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probe(references):
    """The case, and waves of an aberrated probe at its places."""
    case = references("abtem_probe")
    angles, sampling = angles_of(case), grid_of(case)[1]
    aberrations = optics.cartesian(json.loads(str(case["aberrations"])))

    @jax.jit
    def waves(places):
        lens = float(case["semiangle"]), aberrations, float(case["wavelength"])
        return placed(optics.probe(angles, *lens), places, sampling)

    return case, waves(jnp.asarray(case["places"][:, ::-1]))


def test_a_probe(probe):
    case, waves = probe
    assert relative(waves[2:], case["probe"]) < 1e-12


@pytest.mark.parametrize("tilted", ["", "tilted_"])
def test_convergent_beams(probe, tilted):
    case, waves = probe
    tilt = case["tilt_mrad"][::-1] if tilted else np.zeros(2)
    sampling, thickness = grid_of(case)[1], case["slice_thickness"]
    after = through(waves, potential_of(case), thickness, sampling, tilt)
    assert relative(diffraction(after), case[f"{tilted}diffraction"]) < 1e-7


# --- scans -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scan(references):
    """The case, the angles of its patterns, coefficients, rings, places (y, x), transmissions."""
    case = references("abtem_scan")
    limit = band_limit(*grid_of(case))
    t = jax.jit(transmission, static_argnums=1)(potential_of(case), ENERGY_KEV, limit)
    aberrations, rings = (json.loads(str(case[name])) for name in ("aberrations", "rings"))
    places = jnp.asarray(case["places"][:, ::-1])
    return case, angles_of(case), aberrations, rings, places, t, limit


def test_detectors(scan):
    """Rings, segments, a camera; by masks and by a function of the patterns."""
    case, angles, aberrations, rings, places, t, limit = scan
    masks = jnp.stack([annulus(angles, *ends) for ends in rings.values()])

    def detect(patterns):
        quarters = collected(patterns, segments(angles, 0.0, 30.0, 2, 4, 0.1))
        return collected(patterns, masks), quarters, pixelated(patterns, angles, 40.0)

    @jax.jit
    def seen():
        lens = float(case["semiangle"]), aberrations, float(case["wavelength"])
        focused = optics.probe(angles, *lens)
        given = focused, places, t, case["slice_thickness"], grid_of(case)[1], ENERGY_KEV
        return [scanned(*given, d, limit=limit) for d in (masks, detect)]

    by_masks, (found, quarters, camera) = seen()
    np.testing.assert_allclose(by_masks, found, rtol=1e-12)
    for of_ring, name in zip(found.T, rings, strict=True):
        np.testing.assert_allclose(of_ring, case[name], rtol=1e-7)
    np.testing.assert_allclose(quarters, case["segments"], rtol=1e-7)
    (ny, nx), middle = camera.shape[1:], case["camera"].shape[1] // 2
    rows, columns = (slice(middle - n // 2, middle + n // 2 + 1) for n in (ny, nx))
    theirs = np.swapaxes(case["camera"], -1, -2)[:, rows, columns]
    np.testing.assert_allclose(camera, theirs, rtol=1e-5, atol=1e-9)
    assert np.linalg.norm(camera - theirs) < 1e-7 * np.linalg.norm(theirs)


@pytest.mark.parametrize("interpolation", [1, 2, 3])
def test_prism(scan, interpolation):
    """And with every beam it is multislice."""
    case, _, aberrations, rings, places, t, limit = scan
    shape, sampling = grid_of(case)
    semiangle = float(case["semiangle"])
    chosen = prism.beams(shape, sampling, semiangle, ENERGY_KEV, interpolation)
    assert len(chosen.index) == int(case[f"prism{interpolation}_beams"])
    angles = optics.angles_mrad(chosen.window, np.asarray(sampling), float(case["wavelength"]))

    @jax.jit
    def seen():
        thickness = case["slice_thickness"]
        matrix = prism.scattering_matrix(chosen, t, thickness, sampling, ENERGY_KEV, limit=limit)
        weights = prism.probe_weights(chosen, sampling, semiangle, aberrations, ENERGY_KEV)
        masks = jnp.stack([annulus(angles, *ends) for ends in rings.values()])
        return prism.scanned(places, weights, matrix, chosen, sampling, masks)

    for of_ring, name in zip(seen().T, rings, strict=True):
        np.testing.assert_allclose(of_ring, case[f"prism{interpolation}_{name}"], rtol=1e-5)
        if interpolation == 1:
            np.testing.assert_allclose(of_ring, case[name], rtol=1e-5)


def test_centres_of_mass(references):
    case = references("abtem_scan")
    patterns = np.swapaxes(case["camera"], -1, -2)
    y, x = (
        (np.arange(n) - n // 2) * sampling
        for n, sampling in zip(patterns.shape[1:], case["camera_sampling"][::-1], strict=True)
    )
    found = jax.jit(centre_of_mass_mrad)(patterns, (y[:, None], x[None]))
    np.testing.assert_allclose(found[:, 1] + 1j * found[:, 0], case["centre_of_mass"], rtol=1e-10)


# --- finite slices -----------------------------------------------------------------------------


def test_finite_slices(references):
    """Theirs of the same table (Peng), and of two others, 1 % away: whole atoms do worse.

    Theirs is periodic along the beam, ours ends: it gets what of its images reaches into the box,
    and four slices more on either side, which hold what reaches out of it.
    """
    case = references("abtem_finite")
    shape, sampling = grid_of(case)
    thickness, cell = case["slice_thickness"], case["cell"]
    depth_A, beyond_A = cell[2], 4.0 * thickness[0]
    images = case["positions"] + depth_A * np.array([-1, 0, 1])[:, None, None] * [0, 0, 1]
    near = (images[..., 2] > -beyond_A) & (images[..., 2] < depth_A + beyond_A)
    numbers = np.broadcast_to(case["numbers"], near.shape)[near]
    repeated = Atoms(
        numbers, images[near] + [0.0, 0.0, beyond_A], cell + [0.0, 0.0, 2.0 * beyond_A]
    )
    longer = np.pad(thickness, 4, mode="edge")
    room = rooms(repeated, longer)
    atoms = Atoms(case["numbers"], case["positions"], cell)
    slices = layers(atoms, thickness)

    @jax.jit
    def exit_waves():
        options = {"projection": "finite", "rooms": room}
        found = potential_VA(repeated, shape, longer, table="peng", **options)[4:-4]
        whole = potential_VA(atoms, shape, thickness, table="peng", slices=slices)
        waves = [through(plane(shape), v, thickness, sampling) for v in (found, whole)]
        return found.mean((1, 2)) / found.mean(), waves

    means, waves = exit_waves()
    for table, of_means, of_waves in (
        ("peng", 1.5e-3, 0.003),
        ("lobato", 4e-3, 0.01),
        ("kirkland", 4e-3, 0.01),
    ):
        theirs = case[f"{table}_slice_means"]
        np.testing.assert_allclose(means, theirs / theirs.mean(), atol=of_means)
        finite, infinite = (relative(wave, case[f"{table}_exit_wave"]) for wave in waves)
        assert finite < of_waves and infinite > 0.018
