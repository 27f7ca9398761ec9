"""`micjax simulate`: results equal those of the functions below it, and what is wrong is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.__main__ import main
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import annulus, collected, diffraction, source_blurred
from micjax.physics.electrons.grids import quick_size
from micjax.physics.electrons.multislice import multislice
from micjax.physics.electrons.phonons import averaged, displaced
from micjax.physics.electrons.potentials.layers import Atoms, layers, potential_VA
from micjax.physics.electrons.stem import placed
from micjax.run.jobs.simulate.job import prepare, simulate
from micjax.run.plans.plan import make_plan

pytest.importorskip("ase", reason="reading structures needs micjax[structures]")
import ase  # noqa: E402
import ase.io  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crystal = ase.Atoms(
        "SrTiO3",
        scaled_positions=[
            (0, 0, 0.25),
            (0.5, 0.5, 0.75),
            (0.5, 0.5, 0.25),
            (0.5, 0, 0.75),
            (0, 0.5, 0.75),
        ],
        cell=[3.905, 4.1, 3.905],
        pbc=True,
    )
    ase.io.write("sto.cif", crystal)
    ase.io.write("sto.xyz", crystal)
    crystal.positions[4] = crystal.positions[3]
    ase.io.write("double.xyz", crystal)
    crystal.set_cell([[3.905, 0, 0], [2.0, 3.4, 0], [0, 0, 3.905]])
    ase.io.write("skewed.xyz", crystal)
    (tmp_path / "nonsense.cif").write_text("data\n")
    return tmp_path


COARSE = ["--set", "sampling_A=0.15", "--set", "tile=[2,2,2]"]
RINGS = ["--set", "detectors={bf: [0, 8], adf: [15, 40]}"]


def test_a_scan(folder, capsys):
    settings = [*COARSE, *RINGS, "--set", "scan=[3,2]", "--set", "u_A2.Sr=0.01"]
    settings += ["--set", "patterns=true", "--set", "semiangle_mrad=12"]
    assert main(["simulate", "stem", "sto.cif", *settings, "--out", "run"]) == 0
    assert "40 atoms, 4 slices" in capsys.readouterr().out
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    image = read(folder / "run" / "result.nxs", "adf")
    assert image.data.shape == (3, 2)

    setup = prepare(plan("stem", sampling_A=0.15, tile=(2, 2, 2), u_A2={"Sr": 0.01}))
    wavelength = optics.wavelength_A(200.0)
    probe = optics.probe(setup.angles, 12.0, {}, wavelength)
    place = jnp.asarray([[4.1 / 3, 3.905 / 2]])
    fine = tuple(2 * n for n in setup.shape)
    potential = potential_VA(setup.atoms, fine, setup.thickness_A)
    wave = multislice(
        placed(probe, place, setup.sampling_A),
        potential,
        setup.thickness_A,
        setup.sampling_A,
        200.0,
    )
    expected = collected(diffraction(wave), annulus(setup.angles, 15.0, 40.0)[None])[0, 0]
    np.testing.assert_allclose(image.data[1, 1], expected, rtol=1e-5)
    field = read(folder / "run" / "patterns.nxs")
    assert [(a.name, a.unit) for a in field.axes[::2]] == [("y", "nm"), ("ky", "mrad")]
    np.testing.assert_allclose(field.axes[0].values, 0.41 / 3 * np.arange(3), atol=1e-6)
    pixel_mrad = float(setup.angles[1].ravel()[1])
    np.testing.assert_allclose(np.diff(field.axes[3].values), pixel_mrad, rtol=1e-5)
    patterns = field.data
    assert field.axes[2].values[patterns.shape[2] // 2] == 0.0
    assert patterns.shape[:2] == (3, 2) and patterns.shape[2] % 2 == patterns.shape[3] % 2 == 1
    assert np.all((0.9 < patterns.sum((2, 3))) & (patterns.sum((2, 3)) < 1.0 + 1e-5))


def plan(what, structure="sto.cif", **options):
    if what == "stem":
        options = {"detectors": {"bf": (0.0, 8.0), "adf": (15.0, 40.0)}} | options
    return make_plan({"kind": "simulate", "what": what, "structure": structure, **options}, "test")


@pytest.mark.slow
def test_a_turned_scan_and_a_list_are_the_same_places(folder):
    """A scan with an origin, turned by 90 degrees, beside its places one by one."""
    settings = {"sampling_A": 0.2, "semiangle_mrad": 8.0}
    grid = {"scan": (2, 3), "scan_size_A": (2.0, 3.0), "scan_origin_A": (0.5, 0.25)}
    scanned = simulate(plan("stem", **settings, **grid, scan_rotation_deg=90.0), folder).fields
    at = [(0.5 + x, 0.25 - y) for y in (0.0, 1.0) for x in (0.0, 1.0, 2.0)]
    listed = simulate(plan("stem", **settings, places_A=at, patterns=True), folder).fields
    assert listed["adf"].axes[0].name == "place" and scanned["adf"].data.shape == (2, 3)
    np.testing.assert_allclose(listed["adf"].data, scanned["adf"].data.ravel(), rtol=1e-9)
    np.testing.assert_allclose(listed["place_x"].data, 0.1 * np.asarray(at)[:, 1])
    assert scanned["adf"].data.std() > 1e-3 * scanned["adf"].data.mean()
    patterns = read(folder / "patterns.nxs")
    assert patterns.data.shape[0] == 6 and [a.name for a in patterns.axes] == ["place", "ky", "kx"]
    shifted = simulate(plan("stem", **settings, **grid), folder).fields["adf"]
    np.testing.assert_allclose(shifted.axes[0].values, [0.05, 0.15])
    np.testing.assert_allclose(shifted.data[0, 0], scanned["adf"].data[0, 0], rtol=1e-9)


def test_a_scan_with_a_dose_a_source_and_a_beam_stop(folder):
    """A scan with a dose beside the same one without."""
    settings = {"sampling_A": 0.2, "scan": (4, 3), "semiangle_mrad": 8.0, "patterns": True}
    ideal = simulate(plan("stem", **settings), folder).fields["bf"].data
    beams = read(folder / "patterns.nxs").data
    settings |= {"dose": 1e8, "source_fwhm_A": 0.8, "beam_stop_mrad": (5.0, 0.0)}
    counted = simulate(plan("stem", **settings), folder).fields["bf"].data
    blurred = source_blurred(jnp.asarray(ideal), (4.1 / 4, 3.905 / 3), 0.8)
    assert np.all(np.abs(counted - 1e8 * blurred) < 5.0 * np.sqrt(1e8 * blurred))
    assert np.any(np.abs(counted - 1e8 * ideal) > 10.0 * np.sqrt(1e8 * ideal))
    field = read(folder / "patterns.nxs")
    patterns = field.data
    assert field.unit == "electrons"
    middle = tuple(n // 2 for n in beams.shape[2:])
    assert np.all(patterns[:, :, *middle] == 0.0)
    beams[:, :, *middle] = 0.0
    error = (patterns - 1e8 * beams) / np.sqrt(1e8 * beams + 1.0)
    assert np.all(patterns == np.round(patterns)) and np.abs(error).max() < 6.0
    assert 0.9 < error[beams > 1e-6].std() < 1.1


@pytest.mark.slow
def test_diffraction_of_a_vibrating_crystal(folder, monkeypatch):
    settings = {"sampling_A": 0.15, "u_A2": 0.02, "phonons": 3, "semiangle_mrad": 8.0}
    found = simulate(plan("cbed", **settings), folder)
    total, elastic, diffuse = (
        found.fields[n].data for n in ("pattern", "elastic", "thermal_diffuse")
    )
    np.testing.assert_allclose(total, elastic + diffuse, atol=1e-9)
    assert diffuse.sum() > 0.0 and np.all(total >= 0.0)
    y, x = np.unravel_index(np.argmax(total), total.shape)
    assert (
        np.hypot(
            found.fields["pattern"].axes[0].values[y], found.fields["pattern"].axes[1].values[x]
        )
        < 9.0
    )
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)  # several, a row of one
    stopped = simulate(plan("cbed", **settings, beam_stop_mrad=(10.0, 0.0)), folder)
    assert stopped.said[-1] == "Devices: 1."
    angle = np.hypot(*np.meshgrid(*(a.values for a in found.fields["pattern"].axes), indexing="ij"))
    for name, field in found.fields.items():
        expected = np.where(angle < 10.0, 0.0, field.data)
        np.testing.assert_allclose(stopped.fields[name].data, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("projection", "many", "expected"),
    [(None, 1, "gridded"), (None, 2000, "exact"), ("exact", 1, "exact"), ("finite", 1, "finite")],
)
def test_projections(folder, monkeypatch, projection, many, expected):
    used = {}

    def potential(atoms, shape, thickness_A, **options):
        used.update(options)
        return jnp.zeros((len(thickness_A), *shape))

    monkeypatch.setattr("micjax.run.jobs.simulate.setup.potential_VA", potential)
    monkeypatch.setattr("micjax.run.jobs.simulate.setup.MANY", many)
    setup = prepare(plan("cbed", sampling_A=0.4, projection=projection, table="peng"))
    assert used["projection"] == expected
    if expected != "finite":
        assert used["slices"] == layers(setup.atoms, setup.thickness_A)


def test_an_image_with_a_dose(folder):
    settings = {"sampling_A": 0.15, "aberrations": {"C10": -300.0}}
    clean = simulate(plan("hrtem", **settings), folder).fields["image"].data
    counted = simulate(plan("hrtem", **settings, dose=1e6, mtf=0.1), folder).fields["image"].data
    fy, fx = (np.fft.fftfreq(n) for n in clean.shape)
    mtf = 0.1 ** (4.0 * (fy[:, None] ** 2 + fx**2))
    expected = 1e6 * np.fft.ifft2(np.fft.fft2(clean) * mtf).real
    assert np.all(counted == np.round(counted))
    error = (counted - expected) / np.sqrt(expected)
    assert abs(error.mean()) < 4.0 / np.sqrt(error.size) and 0.8 < error.std() < 1.2
    assert ((counted - 1e6 * clean) / np.sqrt(1e6 * clean)).std() > 2.0


def test_the_mean_of_many_displaced_potentials_is_the_damped_one():
    atoms = Atoms([14, 38], [[1.0, 1.2, 0.5], [3.1, 2.0, 0.7]], (4.0, 4.2, 1.0), u_A2=[0.01, 0.02])
    shape, thickness = (28, 26), np.array([1.0])
    keys = jax.random.split(jax.random.key(0), 3000)

    @jax.jit
    def one(key):
        return potential_VA(displaced(key, atoms), shape, thickness, slices=((0, 1),))

    many = jax.lax.map(one, keys)
    spread = many.std(0) / np.sqrt(len(keys))
    difference = (many.mean(0) - potential_VA(atoms, shape, thickness)) / (spread + 1e-3)
    assert float(jnp.abs(difference).max()) < 5.0


def test_the_diffuse_part_has_no_bias():
    """Waves m + sigma normal: |m|^2 is elastic, sigma^2 diffuse, from however few of them."""
    random, m, sigma = np.random.default_rng(0), 2.0 - 1.0j, 1.5
    for count in (2, 3, 8):
        noise = random.normal(size=(count, 20_000, 1, 1, 2)) @ [1.0, 1.0j]
        thermal = averaged(lambda wave: wave, jnp.asarray(m + sigma * np.sqrt(0.5) * noise))
        for part, expected in ((thermal.elastic, abs(m) ** 2), (thermal.diffuse, sigma**2)):
            error = float(part.mean() - expected) / (float(part.std()) / np.sqrt(part.size))
            assert abs(error) < 4.0
        np.testing.assert_allclose(thermal.elastic + thermal.diffuse, thermal.total)
    with pytest.raises(ValueError, match="one configuration does not tell"):
        averaged(lambda wave: wave, [jnp.ones((1, 1), complex)]).diffuse  # noqa: B018


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no configurations"):
        averaged(lambda atoms: atoms, [])


def test_sizes_that_an_fft_likes():
    assert [quick_size(n, multiple_of=2) for n in (1.0, 7.0, 101.0, 128.0)] == [2, 8, 108, 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stem", "none.cif"], "no such structure"),
        (["stem", "nonsense.cif"], "is no structure"),
        (["stem", "skewed.xyz"], "no right angles"),
        (["stem", "double.xyz"], "less than 0.5 Å apart"),
        (["stem", "sto.cif", "--set", "sampling_A=0.15"], "sampling_A="),
        (["cbed", "sto.cif", "--set", "semiangle_mrad=190"], "scatters up to"),
        (["cbed", "sto.cif", "--set", "energy=200"], "no key 'energy' (nearest: energy_keV"),
        (["cbed", "sto.cif", "--set", "phonons=-1"], "phonons is -1"),
        (["cbed", "sto.cif", "--set", "phonons=2"], "phonons=2 of atoms that do not move"),
        (["cbed", "sto.cif", "--set", "u_A2=-0.01"], "u_A2"),
        (["cbed", "sto.cif", "--set", "u_A2=.nan"], "u_A2"),
        (["cbed", "sto.cif", "--set", "tilt_mrad=[400,0]"], "tilt"),
        (
            ["stem", "sto.cif", *RINGS, "--set", "scan_size_A=[500,3]"],
            "repeats itself: tile=[1,122,1] would hold it",
        ),
        (
            ["stem", "sto.cif", "--set", "detectors={narrow: [20.1, 20.2]}"],
            "the detector narrow from 20.1 to 20.2 mrad lies between the pixels",
        ),
        (["stem", "sto.cif", "--set", "places_A=[]"], "places_A is empty"),
        (
            ["stem", "sto.cif", "--set", "places_A=[[0,0]]", "--set", "scan=[2,2]"],
            "scan is a setting of a grid of places",
        ),
        (
            [
                "stem",
                "sto.cif",
                *RINGS,
                "--set",
                "source_fwhm_A=1",
                "--set",
                "scan_rotation_deg=10",
            ],
            "cells, turned: whole numbers",
        ),
        (["cbed", "sto.cif", "--set", "u_A2.Ba=0.1"], "no element 'Ba'"),
        (["cbed", "sto.cif", "--set", "table=doyle"], "there are lobato"),
        (["cbed", "sto.cif", "--set", "aberrations.C13=2"], "no aberration coefficient"),
        (["cbed", "sto.cif", "--set", "projection=abtem"], "projection is 'abtem'"),
        (["cbed", "sto.cif", "--set", "projection=finite"], "needs table 'peng'"),
        (["cbed", "sto.cif", "--set", "mtf=0"], "mtf is 0"),
        (["cbed", "sto.cif", "--set", "source_fwhm_A=0.5"], "is a setting of stem, not cbed"),
        (["hrtem", "sto.cif", "--set", "outer_mrad=20"], "of stem and cbed, not hrtem"),
        (["stem", "sto.cif", "--set", "beam_stop_mrad=[5,0]"], "patterns=true"),
        (
            ["stem", "sto.cif", *RINGS, "--set", "source_fwhm_A=1", "--set", "scan_size_A=[4.1,2]"],
            "1 x 0.5122 cells",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, capsys, arguments, message):
    assert main(["simulate", *arguments, "--out", "run"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1


def test_a_folder_that_is_full(folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "a").touch()
    assert main(["simulate", "cbed", "sto.cif", *COARSE, "--out", "run"]) == 2
    assert "holds no micjax run to simulate" in capsys.readouterr().err
