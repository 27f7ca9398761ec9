"""The data set of elastic and thermal diffuse patterns: physics, split, interruption."""

import dataclasses
import importlib
import pathlib

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import multislice
from micjax.physics.electrons.phonons import averaged
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA
from micjax.physics.electrons.stem import placed

FOLDER = pathlib.Path(__file__).parents[1] / "experiments/thermal_diffuse"
NAMES = ("crystals", "patterns", "baselines", "run")
NETWORK = FOLDER.parent / "thermal_diffuse_net"


@pytest.fixture(scope="module")
def modules():
    """The modules of the folder, by names that other folders have as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NETWORK)
        patch.syspath_prepend(FOLDER)  # before the other, which has a `run` too
        for name in (*NAMES, "channelling", "model"):
            patch.delitem(importlib.sys.modules, name, raising=False)
        yield {n: importlib.import_module(n) for n in (*NAMES, "channelling", "model")}
        for name in (*NAMES, "channelling", "model"):
            importlib.sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def settings(modules):
    return modules["crystals"].Settings(
        configurations=2,
        places=2,
        thicknesses=2,
        fewest_cells=2,
        most_cells=4,
        across=2,
        pixels=96,
    )


@pytest.fixture(scope="module")
def whole(modules, settings, tmp_path_factory):
    """A file that was made without an interruption."""
    path = tmp_path_factory.mktemp("thermal") / "whole.h5"
    modules["run"].make(path, settings, 3)
    return path


def contents(path):
    with h5py.File(path) as file:
        return {name: values[()] for name, values in file.items()}, dict(file.attrs)


@pytest.fixture(scope="module")
def crystal(modules, settings):
    return modules["crystals"].drawn(settings, 0)


@pytest.fixture(scope="module")
def by_the_library(modules, settings, crystal):
    """The waves at each thickness by micjax.physics alone, of displacements `[cells, atoms, 2]` and
    a blur of A, B and X."""
    patterns, across, n = modules["patterns"], settings.across, settings.pixels
    edge, cells = float(crystal.edge_A), settings.most_cells
    sampling = (across * edge / n,) * 2
    wavelength = optics.wavelength_A(patterns.ENERGY_KEV)
    angles = optics.angles_mrad((n, n), np.asarray(sampling), wavelength)
    probe = optics.probe(angles, patterns.SEMIANGLE_MRAD, {}, wavelength)
    waves = placed(probe, jnp.asarray(crystal.place_A), sampling)
    site, place, _ = patterns.layer_cake(across)
    position = np.concatenate([edge * (place + [0, 0, i]) for i in range(cells)])
    numbers, box = np.tile(crystal.elements[site], cells), edge * np.array([across, across, cells])
    slices = np.full(2 * cells, edge / 2)
    room = layers(Atoms(numbers, position, box), slices)

    @jax.jit
    def exit_waves(moved_A, u_A2):
        moved = position + jnp.pad(moved_A.reshape(-1, 2), ((0, 0), (0, 1)))
        atoms = Atoms(numbers, moved, box, u_A2=jnp.tile(u_A2[site], cells))
        potential = potential_VA(atoms, (n, n), slices, slices=room)
        return jnp.stack(
            [
                multislice(waves, potential[: 2 * c], edge / 2, sampling, patterns.ENERGY_KEV)
                for c in crystal.cells
            ]
        )

    return exit_waves


@pytest.mark.slow
@pytest.mark.parametrize("u", [0.0, 0.01])
def test_atoms_at_rest_are_a_plain_multislice_run(modules, settings, crystal, by_the_library, u):
    patterns = modules["patterns"]
    factors, u_A2 = patterns.factors(settings, crystal), jnp.array([u, 2 * u, 3 * u])
    ours = patterns.at_rest(settings, jax.tree.map(jnp.asarray, crystal), factors, u_A2)
    still = jnp.zeros((settings.most_cells, 5 * settings.across**2, 2))
    theirs = diffraction(by_the_library(still, u_A2))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(ours.max()))


@pytest.mark.slow
def test_moving_atoms_are_frozen_phonons(modules, settings, crystal, by_the_library):
    patterns = modules["patterns"]
    key, factors = jax.random.key(3), patterns.factors(settings, crystal)
    wave, total = patterns.moving(settings, jax.tree.map(jnp.asarray, crystal), factors, key, 0, 2)
    site, _, _ = patterns.layer_cake(settings.across)

    def moved(configuration):
        own = jax.random.fold_in(key, configuration)
        keys = [jax.random.fold_in(own, i) for i in range(settings.most_cells)]
        normal = jnp.stack([jax.random.normal(k, (len(site), 2)) for k in keys])
        return normal * np.sqrt(crystal.u_A2)[site][:, None]

    theirs = averaged(lambda m: by_the_library(m, jnp.zeros(3)), [moved(0), moved(1)])
    scale = float(theirs.total.max())
    np.testing.assert_allclose(total / 2, theirs.total, atol=1e-5 * scale)
    np.testing.assert_allclose(jnp.abs(wave / 2) ** 2, theirs.of_mean_wave, atol=1e-5 * scale)
    # the motion matters
    assert float(jnp.abs(total / 2 - theirs.of_mean_wave).max()) > 1e-3 * scale


def test_a_detector_pixel_has_the_beam_on_its_area(modules, settings):
    """Of a pattern that is constant, and of a single beam between the pixels."""
    patterns, n = modules["patterns"], settings.pixels
    seen = patterns.recorded(settings, 3.9, jnp.ones((1, 1, n, n)))
    pixel = 1e3 * optics.wavelength_A(patterns.ENERGY_KEV) / (3.9 * settings.across)
    np.testing.assert_allclose(seen[""], (patterns.PIXEL_MRAD / pixel) ** 2, rtol=1e-6)
    one = jnp.zeros((1, 1, n, n)).at[0, 0, 3, -2].set(1.0)
    seen = patterns.recorded(settings, 3.9, one)
    middle = np.tensordot(seen[""][0, 0].sum(1), patterns.AXIS, 1) * patterns.PIXEL_MRAD
    assert abs(middle - 3 * pixel) < patterns.PIXEL_MRAD / 2
    assert np.argmax(seen[""][0, 0].sum(0)) < patterns.SIDE / 2
    assert float(seen["_inside"][0, 0]) == pytest.approx(1.0)
    assert float(seen["_beyond"][0, 0]) == pytest.approx(0.0, abs=1e-6)


def test_z_map_adds_up_to_the_atomic_numbers(modules):
    """A window of 12.8 Å has (12.8 / a)^2 cells, each with Z_A + Z_B + 3 Z_X."""
    crystals, patterns = modules["crystals"], modules["patterns"]
    edge = patterns.SIDE * patterns.PIXEL_A / 3
    places = np.array([[0.3, 1.0], [0.0, edge / 2]])
    crystal = crystals.Crystal(np.array([38, 22, 8]), np.ones(3), edge, np.array([8]), places)
    found = patterns.z_map(crystal)
    np.testing.assert_allclose(found.sum((1, 2)), 9 * 84 * 2 * np.pi, rtol=1e-6)
    # the probe at the middle of an edge along x: an X column there, and nothing nearer than a/2
    middle = found[1][31:33, 31:33]
    np.testing.assert_allclose(middle, 8 * np.exp(-0.25), rtol=1e-6)


@pytest.mark.slow
def test_energy(whole):
    file, _ = contents(whole)
    for name in ("static", "damped", "total"):
        sums = file[f"{name}_inside"] + file[f"{name}_beyond"]
        assert (sums < 1 + 1e-6).all() and (sums > 0.8).all()
        np.testing.assert_allclose(file[name].sum((-2, -1)), file[f"{name}_inside"], rtol=1e-5)
    assert (file["total"] - file["elastic"] > -1e-9).all()
    assert (file["total_beyond"] > file["elastic_beyond"]).all()
    np.testing.assert_allclose(file["thickness_A"], file["cells"] * file["edge_A"][:, None])


def test_the_split_is_one_of_compositions(modules):
    crystals = modules["crystals"]
    settings = crystals.Settings(seed=5)
    drawn = [crystals.drawn(settings, i).elements for i in range(600)]
    sets = {name: set() for name in crystals.SPLITS}
    for elements in drawn:
        sets[crystals.split_of(elements, 5)].add(frozenset(elements.tolist()))
    for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not sets[a] & sets[b]
    held_out = crystals.held_out(5)
    seen = {name: set().union(*each) for name, each in sets.items()}
    assert len(held_out) == 10 and held_out <= seen["test"]
    assert not held_out & (seen["train"] | seen["validation"])
    known = [s for s in sets["test"] if not s & held_out]
    assert 0.2 < len(known) / len(sets["test"]) < 0.6  # new sets of known elements
    assert crystals.split_of([8, 38, 22], 5) == crystals.split_of([22, 8, 38], 5)
    assert any(crystals.held_out(i) != held_out for i in range(3))


@pytest.mark.slow
def test_resumed_equals_uninterrupted(modules, settings, whole, tmp_path, monkeypatch):
    run, path = modules["run"], tmp_path / "resumed.h5"
    run.make(path, settings, 1)
    good, _ = contents(path)

    def interrupted(settings, number):
        made = record(settings, number)
        made["u_A2"] = Torn()
        return made

    class Torn:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

    record = run.record
    monkeypatch.setattr(run, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.make(path, settings, 3)
    for name, values in contents(path)[0].items():
        assert np.array_equal(values, good[name]), name
    monkeypatch.undo()
    run.make(path, settings, 3)
    (ours, our_attrs), (theirs, their_attrs) = contents(path), contents(whole)
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values), name
    assert our_attrs["complete"] == their_attrs["complete"] == 3

    monkeypatch.setattr(run, "record", None)  # nothing is left to do
    run.make(path, settings, 2)


def test_the_fitted_baseline_finds_its_own_kind(modules):
    baselines = modules["baselines"]
    elastic = np.random.default_rng(0).exponential(size=(3, 64, 64)) * np.exp(-baselines.K2)
    b, c = np.array([0.1, -0.05, 0.4])[:, None, None], np.array([0.0, 0.02, 0.1])[:, None, None]
    total = elastic * np.exp(-b * baselines.K2) + c
    np.testing.assert_allclose(baselines.damped_and_flat(elastic, total), total, rtol=1e-6)
    found = baselines.errors(1.1 * total, total)
    assert found["radial_mean"] == pytest.approx(0.1) == found["radial_worst"]


@pytest.mark.slow
def test_refusals(modules, settings, whole, tmp_path):
    run = modules["run"]
    other = dataclasses.replace(settings, configurations=4)
    with pytest.raises(ValueError, match="made with configurations = 2, not 4"):
        run.make(whole, other, 3)
    torn = tmp_path / "torn.h5"
    torn.write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="no whole file"):
        run.make(torn, settings, 3)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = 1.0
    with pytest.raises(ValueError, match="no format"):
        run.make(foreign, settings, 3)
    with pytest.raises(ValueError, match="91.1 are needed"):
        run.make(tmp_path / "coarse.h5", dataclasses.replace(settings, pixels=48), 1)
    assert not (tmp_path / "coarse.h5").exists()
    with pytest.raises(ValueError, match="no two halves"):
        dataclasses.replace(settings, configurations=3)
    with pytest.raises(ValueError, match="4 thicknesses between 2 and 4 cells"):
        dataclasses.replace(settings, thicknesses=4)


def test_a_file_of_one_split_has_the_crystals_of_that_split(modules, settings):
    crystals = modules["crystals"]
    only = dataclasses.replace(settings, only="test")
    numbers = [crystals.number_of(only, i) for i in range(6)]
    assert [crystals.number_of(settings, i) for i in range(3)] == [0, 1, 2]
    told = [
        number
        for number in range(30)
        if crystals.split_of(crystals.drawn(settings, number).elements, settings.seed) == "test"
    ]
    assert numbers == told
    with pytest.raises(ValueError, match="only = 'tests': one of train, validation, test"):
        dataclasses.replace(settings, only="tests")


# --- the network ---------------------------------------------------------------------------------


def test_atoms_of_an_even_beam_feel_what_they_are(modules, settings):
    near = modules["channelling"].near_atoms(settings, 3.9, jnp.array([0.01, 0.005, 0.02]))
    feels = np.asarray(near.mean((-2, -1)))  # by a beam of 1 that is even over the pixels
    np.testing.assert_allclose(feels, [[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def thin(modules):
    """Of two slices, at many places of the probe: settings, crystal, simulated patterns."""
    crystals, patterns = modules["crystals"], modules["patterns"]
    settings = crystals.Settings(
        configurations=64, places=16, thicknesses=1, fewest_cells=1, most_cells=1, pixels=192
    )
    crystal = crystals.drawn(settings, 3)._replace(elements=np.array([20, 14, 8]))
    return settings, crystal, patterns.simulated(settings, 3, crystal)


@pytest.fixture(scope="module")
def known(modules, thin):
    settings, crystal, _ = thin
    return modules["model"].foreknown(settings, crystal, jax.random.key(1), samples=16)


def test_a_thin_crystal_scatters_as_its_atoms_do(modules, thin, known):
    """On average over the places of a probe: single scattering."""
    diffuse = (thin[2]["total"] - thin[2]["elastic"])[0].mean(0) * 64 / 63
    alone = known["single"][0].sum(1).mean(0) / modules["model"].BEAM
    assert alone.sum() / diffuse.sum() == pytest.approx(1.0, abs=0.1)
    off = modules["baselines"].radial(alone) / modules["baselines"].radial(diffuse) - 1.0
    assert np.abs(off[8:]).mean() < 0.15  # of 16 to 60 mrad


def test_the_elastic_pattern_is_that_of_the_mean_wave(modules, thin, known):
    beam, (_, _, out) = modules["model"].BEAM, thin
    diffuse = (out["total"] - out["elastic"]) * 64 / 63
    elastic = out["total"] - diffuse
    ours = known["elastic"] / beam

    off = np.abs(ours - elastic).sum() / elastic.sum()
    assert off < 4e-3  # of 64 configurations
    # what it lacks was scattered, which the damped pattern does not know
    absorbed = 1.0 - ours.sum((-1, -2)) - out["damped_beyond"]
    scattered = diffuse.sum((-1, -2)) + out["total_beyond"] - out["elastic_beyond"]
    assert absorbed.mean() / scattered.mean() == pytest.approx(1.0, abs=0.03)
    # what configurations depart from it, on a coarser grid
    ours = known["samples"].mean(2) / beam
    assert ours.sum() / diffuse.sum() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(
        1.0 - known["samples_lost"].mean(), out["total_inside"].mean(), atol=5e-3
    )


def test_mirrors_and_turns_are_of_the_same_law(modules):
    model = modules["model"]
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(3, 8, 8)))
    vector = jnp.asarray(rng.normal(size=(3, 8)))
    seen = {"damped": image, "single": image[:, None], "vector": vector}
    turns = jnp.array([[True, False, False], [False, True, False], [False, False, True]])
    out = model.turned(seen, turns)
    np.testing.assert_array_equal(out["damped"][0], image[0, ::-1])
    np.testing.assert_array_equal(out["single"][1, 0], image[1, :, ::-1])
    np.testing.assert_array_equal(out["damped"][2], image[2].T)
    np.testing.assert_array_equal(out["vector"], vector)


@pytest.fixture(scope="module")
def seen(known):
    return {n: a.reshape(-1, *a.shape[2:]) for n, a in known.items()}


def test_what_is_not_elastic_nor_beyond_is_diffuse(modules, seen):
    """A network that was never trained keeps the flux, and begins with the smoothed departures."""
    model = modules["model"]
    law = jnp.zeros(model.CONDITIONS + 1).at[-1].set(jnp.log(1e-6))
    elastic, diffuse = model.parts(model.network(0), law, seen)
    flux = np.asarray((elastic + diffuse).sum((1, 2))) / model.BEAM
    scattered = 1.0 - seen["elastic"].sum((1, 2)) / model.BEAM > 2 * model.LEAST
    assert scattered.sum() > 4
    np.testing.assert_allclose(flux[scattered], 1.0, rtol=1e-5)
    shape = model.smoothed(seen["samples"][:, : model.FEW].mean(1) + model.DIM)
    shape = (
        shape * np.asarray(diffuse).sum((1, 2), keepdims=True) / shape.sum((1, 2), keepdims=True)
    )
    np.testing.assert_allclose(diffuse, shape, rtol=1e-4)


def test_the_law_of_what_goes_beyond_is_found(modules, seen):
    model = modules["model"]
    wanted = np.random.default_rng(0).normal(0.0, 0.1, model.CONDITIONS + 1)
    many = {n: np.concatenate([a] * 6) for n, a in seen.items()}
    many["vector"] = np.random.default_rng(1).normal(size=many["vector"].shape).astype(np.float32)
    for name in (n for n in many if n.startswith("samples")):
        many[name] = np.concatenate([many[name][:, : model.FEW]] * 2, axis=1)
    rows = np.asarray(model.conditions(many))
    share = np.exp(rows @ wanted[:-1] + wanted[-1] - 3.0)
    shape = many["elastic"] / many["elastic"].sum((1, 2), keepdims=True)
    law = model.beyond_law(many | {"total": model.BEAM * (1.0 - share)[:, None, None] * shape})
    np.testing.assert_allclose(np.exp(rows @ law[:-1] + law[-1]), share, rtol=1e-3)
