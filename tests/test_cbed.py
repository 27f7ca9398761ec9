"""Convergent-beam patterns: the quick model equals the plain one, and the truth comes back."""

import functools
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.inference.errors import laplace
from micjax.inference.runner import solve
from micjax.io import Field, FieldAxis, write_nexus
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.grids import quick_size
from micjax.physics.electrons.multislice import (
    band_limit,
    highest_angle_mrad,
    propagate,
    transmission,
)
from micjax.physics.electrons.pacbed import (
    CLOSER,
    between,
    camera,
    diffuse,
    directions,
    finer_for,
    mean_transmission,
    planes,
    rocking,
    seen,
)
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.scattering import scattering_factors_A
from micjax.problems import cbed
from micjax.run.jobs.job import prepare
from micjax.run.plans.plan import make_plan

ENERGY_KEV, TILT_MRAD, SEMIANGLE_MRAD = 200.0, (3.0, -2.0), 7.0
BOX_A, N, FINER = np.array([3.905, 3.6, 3.905]), 18, 3
PLACES_A = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.4, 0, 0.5]]) * BOX_A
WHICH = directions(BOX_A, SEMIANGLE_MRAD, ENERGY_KEV, FINER, 20.0)


@pytest.fixture(scope="module")
def crystal():
    thickness = np.full(2, BOX_A[2] / 2)
    sampling = (BOX_A[1] / N, BOX_A[0] / N)
    potential = potential_VA(Atoms((38, 22, 8), PLACES_A, BOX_A), (N, N), thickness)
    return transmission(potential, ENERGY_KEV, band_limit((N, N), sampling))


def test_rocking_curves_are_those_of_plain_multislice(crystal):
    cells, beam = 3, (2, -3)
    ours = rocking(crystal, jnp.asarray(BOX_A), cells, WHICH, SEMIANGLE_MRAD, ENERGY_KEV, TILT_MRAD)
    shape, sampling = (FINER * N, FINER * N), (BOX_A[1] / N, BOX_A[0] / N)
    wave = jnp.fft.ifft2(jnp.zeros(shape, complex).at[beam].set(1.0))
    after = propagate(
        wave,
        jnp.tile(crystal, (cells, FINER, FINER)),
        BOX_A[2] / 2,
        sampling,
        ENERGY_KEV,
        tilt_mrad=TILT_MRAD,
        limit=band_limit(shape, sampling),
    )
    expected = np.asarray(diffraction(after))
    gy, gx = (np.arange(-r, r + 1) for r in WHICH.reflections)
    expected = expected[np.ix_(beam[0] + FINER * gy, beam[1] + FINER * gx)]
    found = ours.intensity[cells, beam[0] + WHICH.beams[0], beam[1] + WHICH.beams[1]]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(between(ours.total, cells - 1.0), ours.total[cells - 1], rtol=1e-6)


@pytest.fixture(scope="module")
def curves(crystal):
    def at(finer):
        which = directions(BOX_A, SEMIANGLE_MRAD, ENERGY_KEV, finer, 20.0)
        args = (which, SEMIANGLE_MRAD, ENERGY_KEV, TILT_MRAD)
        return which, rocking(crystal, jnp.asarray(BOX_A), 10, *args)

    return at


def test_a_camera_interpolates_smooth_curves(curves):
    """Three beams in each vector of the lattice are as good as nine."""
    lattice = jnp.asarray(1e3 * float(optics.wavelength_A(ENERGY_KEV)) / BOX_A[1::-1], float)
    x = camera(0.7 * np.arange(-28, 29), 0.7 * np.arange(-28, 29), 0.3)

    def pattern(finer):
        which, found = curves(finer)
        centre = jnp.array([0.4, -0.3])
        return seen(found.intensity[10], x, which, lattice, SEMIANGLE_MRAD - 0.5, centre)

    coarse, fine = np.asarray(pattern(3)), np.asarray(pattern(9))
    np.testing.assert_allclose(coarse, fine, atol=5e-3 * fine.max())


@pytest.mark.slow
def test_all_of_the_beam_falls_onto_a_large_camera(curves):
    """Without a crystal: the disc alone, wherever its centre is."""
    which, found = curves(3)
    lattice = jnp.asarray(1e3 * float(optics.wavelength_A(ENERGY_KEV)) / BOX_A[1::-1], float)
    x = camera(0.4 * np.arange(-25, 26), 0.4 * np.arange(-25, 26))
    centre = jnp.array([0.3, -0.2])
    disc = np.asarray(seen(found.intensity[0], x, which, lattice, 6.0, centre))
    assert disc.sum() == pytest.approx(1.0, abs=2e-3)
    middle = np.einsum("yxa,yx->a", np.asarray(x.direction_mrad), disc)
    np.testing.assert_allclose(middle, centre, atol=5e-3)
    tall = camera(0.8 * np.arange(-12, 13), 0.4 * np.arange(-25, 26))
    assert seen(found.intensity[0], tall, which, lattice, 6.0, centre).sum() == pytest.approx(
        1.0, abs=5e-3
    )


@pytest.mark.slow
def test_mean_transmission_is_the_mean_over_displacements():
    u_A2, shape = np.array([0.006, 0.01, 0.0]), (24, 24)
    fine, thickness = (CLOSER * 24, CLOSER * 24), BOX_A[2:]
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    weights = weights / weights.sum()

    def displaced(zx, zy):
        place = PLACES_A[:1] + np.sqrt(u_A2) * jnp.stack([zx, zy, jnp.zeros(())])
        v = potential_VA(Atoms((38,), place, BOX_A), fine, thickness, slices=((0,),))
        return transmission(v, ENERGY_KEV)[0]

    zx, zy = (jnp.asarray(z.ravel()) for z in np.meshgrid(nodes, nodes))
    every = jax.jit(jax.vmap(displaced))(zx, zy)
    mean = jnp.tensordot(jnp.asarray(np.outer(weights, weights).ravel()), every, 1)
    low = np.fft.fftfreq(24, 1 / 24).astype(int)
    spectrum = jnp.fft.fft2(mean)[np.ix_(low, low)] / CLOSER**2
    expected = jnp.fft.ifft2(spectrum * band_limit(shape, (BOX_A[1] / 24, BOX_A[0] / 24)))

    atoms = Atoms((38,), PLACES_A[:1], BOX_A, u_A2=u_A2)
    found = mean_transmission(atoms, ((0,),), shape, ENERGY_KEV)[0]
    # exp(i sigma v) of an atom at rest is sharper than the fine grid, by so much
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert np.mean(np.abs(found) ** 2) < 0.999  # absorption


def test_between_is_exact_for_quadratics_and_smooth():
    n = jnp.arange(8.0)
    for cells in (1.0, 2.3, 3.0, 5.9):
        assert float(between(n**2, cells)) == pytest.approx(cells**2, rel=1e-6)
    slope = jax.grad(lambda c: between(jnp.sin(n), c))
    assert float(slope(3.0 - 1e-5)) == pytest.approx(float(slope(3.0 + 1e-5)), abs=1e-4)


def test_diffuse_scattering_is_a_sum_over_the_aperture():
    u = 0.008
    atoms = Atoms((38, 8), PLACES_A[[0, 2]], BOX_A, u_A2=u)
    x = camera(2.0 * np.arange(-9, 10), 2.0 * np.arange(-8, 9))
    found = np.asarray(diffuse(atoms, x, SEMIANGLE_MRAD, ENERGY_KEV))
    assert found.shape == (19, 17) and found.sum() == pytest.approx(1.0, rel=1e-5)

    fine = np.linspace(-SEMIANGLE_MRAD, SEMIANGLE_MRAD, 41)
    beams = np.stack(np.meshgrid(fine, fine), -1).reshape(-1, 2)
    beams = beams[np.hypot(*beams.T) <= SEMIANGLE_MRAD]

    def single(iy, ix):
        k2 = np.sum((np.array([2.0 * iy, 2.0 * ix]) - beams) ** 2, -1)
        k2 = jnp.asarray(k2 / (1e3 * float(optics.wavelength_A(ENERGY_KEV))) ** 2)
        f = np.asarray(scattering_factors_A((38, 8), k2))
        return np.sum((f**2).sum(0) * (1.0 - np.exp(-4.0 * np.pi**2 * u * np.asarray(k2))))

    expected = single(7, -3) / single(0, 0)
    assert found[9 + 7, 8 - 3] / found[9, 8] == pytest.approx(expected, rel=0.02)


IRON = {"numbers": [26, 26], "fractions": [[0, 0, 0], [0.5, 0.5, 0.5]], "cell_A": 2.87}
ZINCBLENDE = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
ZINCBLENDE = np.array(ZINCBLENDE + [[x + 0.25 for x in place] for place in ZINCBLENDE])


def test_pixels_follow_from_the_cell_and_the_thermal_motion():
    """What is lost is what plain multislice keeps on twice as many pixels."""
    enough, fewer = cbed.problem(**IRON).forward, cbed.problem(**IRON, pixels=24).forward
    assert enough.shape == (32, 32)

    @functools.partial(jax.jit, static_argnums=0)
    def kept(n):
        t, sampling = mean_transmission(fewer.atoms(), fewer.layers, (n, n), 200.0), 2.87 / n
        limit = band_limit((n, n), (sampling, sampling))
        wave, tiles = jnp.ones((n, n), t.dtype), jnp.tile(t, (20, 1, 1))
        after = propagate(wave, tiles, 2.87 / len(t), (sampling, sampling), 200.0, limit=limit)
        return jnp.mean(jnp.abs(after) ** 2)

    at = eqx.tree_at(lambda f: f.thickness_A, fewer, jnp.asarray(20 * 2.87))
    lost = float(at.lost())
    assert lost == pytest.approx(float(kept(48) - kept(24)), abs=1e-5)
    assert float(enough.lost()) < 1e-3 < lost


def test_grids_follow_from_what_is_seen_and_not_from_the_cell():
    gallium_arsenide = {"numbers": [31] * 4 + [33] * 4, "fractions": ZINCBLENDE.tolist()}
    forward = cbed.problem(**gallium_arsenide, cell_A=5.6533).forward
    # 2 sqrt(0.008) pi k = 2 is 89 mrad, and 2/3 of the highest frequency
    assert min(forward.shape) >= 61 and len(forward.layers) == 4
    wide = cbed.problem(**IRON, reach_mrad=150.0).forward
    assert highest_angle_mrad((2.87 / wide.shape[0],) * 2, 200.0) >= 158.0
    small, large = (finer_for([a, a, a], 100.0, 200.0, 30.0) for a in (2.5, 10.0))
    assert small == 4 * large == 4


def test_slices_begin_where_atoms_are():
    heights = ZINCBLENDE[:, 2]
    expected = ((0, 3), (4, 7), (1, 2), (5, 6))
    for rounded in (heights, heights + 0.125, heights - 1e-17, np.float32(heights * 5.65) / 5.65):
        assert planes(np.asarray(rounded) % 1.0, 3) == expected
    # what lies nowhere in particular is in the nearest one, and none is lost
    odd = planes(np.array([0.0, 0.31, 0.97]), 2)
    assert sorted(sum(odd, ())) == [0, 1, 2]


@pytest.mark.parametrize("n, least", [(45, 41.8), (64, 60.3), (540, 501.0), (1080, 1001.0)])
def test_quick_sizes(n, least):
    assert quick_size(least) == n


@pytest.mark.parametrize(
    "options, message",
    [
        ({"u_A2": 0.0}, "u_A2 = 0.0"),
        ({"thickness_A": 300.0}, "between 3.905 and 120"),
        ({"reach_mrad": 80.0, "pixels": 40}, r"need 88 mrad, .* take pixels = \[45, 45\]"),
        ({"pixels": [32, 24]}, r"u_A2 lets the wave scatter up to .* 32 x 24 pixels"),
        ({"numbers": [38]}, "belong together"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cbed.problem(**options)


def pattern_file(tmp_path, data, unit="mrad"):
    axes = tuple(
        FieldAxis(n, 2.0 * (np.arange(size) - size // 2), unit)
        for n, size in zip("yx", data.shape, strict=True)
    )
    write_nexus(tmp_path / "pattern.nxs", {"pattern": Field(data, axes, "electrons", "pattern")})
    return tmp_path / "pattern.nxs"


def test_a_file_becomes_a_problem(tmp_path):
    y, x = np.mgrid[-15:16, -15:16]
    counts = np.where(np.hypot(y - 2, x + 1) < 4.0, 100.0, 3.0)
    counts[0, 0] = np.nan
    structure = tmp_path / "POSCAR"
    structure.write_text("iron\n1.0\n2.87 0 0\n0 2.87 0\n0 0 2.87\nFe\n2\nDirect\n0 0 0\n.5 .5 .5")
    file = pattern_file(tmp_path, counts)
    options, there, seen = cbed.load(file, structure=str(structure), reach_mrad=28.0)
    assert options["numbers"] == [26, 26] and options["cell_A"] == pytest.approx([2.87] * 3)
    assert there.efficiency[0, 0] == 0.0 and seen[0, 0] == 0.0
    np.testing.assert_allclose(there.direction_mrad[15, 15], 0.0, atol=1e-6)
    cbed.problem(**options)
    # a camera need not see the whole beam
    assert options["dose_sd"] == 0.3
    assert cbed.load(file, **IRON, dose=1e4)[0]["dose"] == 1e4

    options, there, _ = cbed.load(pattern_file(tmp_path, counts, ""), mrad_per_px=2.0, **IRON)
    np.testing.assert_allclose(there.direction_mrad[17, 14], 0.0, atol=1e-6)


def test_a_bare_array_is_a_pattern(tmp_path):
    y, x = np.mgrid[-10:11, -10:11]
    counts = np.where(np.hypot(y - 1, x) < 4.0, 90.0, 3.0)
    np.save(tmp_path / "p.npy", counts)
    np.savez(tmp_path / "p.npz", pattern=counts.astype(np.uint16))
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "p.tif", counts.astype(np.float32))
    sizes = {"mrad_per_px": [2.0, 2.5], **IRON}
    plan = {"problem": "cbed", "file": str(tmp_path / "p.npy"), "options": sizes}
    job = prepare(make_plan(plan, "a test"))
    np.testing.assert_array_equal(job.y[11], np.where(job.x.efficiency[11] > 0, counts[11], 0))
    np.testing.assert_allclose(job.x.direction_mrad[12, 11], [2.0, 2.5], atol=1e-6)
    for name in ("p.npz", "p.tif"):
        _, there, seen = cbed.load(tmp_path / name, **sizes)
        np.testing.assert_array_equal(seen, job.y)
        np.testing.assert_array_equal(there.direction_mrad, job.x.direction_mrad)
        with pytest.raises(ValueError, match="no angles in the file: set mrad_per_px"):
            cbed.load(tmp_path / name, **IRON)
    _, _, scaled = cbed.load(tmp_path / "p.npy", mrad_per_px=2.0, counts_per_unit=0.5, **IRON)
    assert float(scaled.max()) == 45.0


def test_axes_in_reciprocal_lengths_are_angles(tmp_path):
    file = pattern_file(tmp_path, np.full((31, 31), 5.0), "1/nm")
    _, there, _ = cbed.load(file, **IRON)
    assert float(there.pixel_mrad) == pytest.approx(2.0 * 2.5079, rel=1e-4)


GOOD = np.full((9, 9), 5.0)


@pytest.mark.parametrize(
    "data, unit, options, message",
    [
        (
            np.full((9, 9), 1e-3),
            "mrad",
            {},
            "from 0.001 to 0.001, times 1, has no elec",
        ),
        (GOOD, "", {}, "set mrad_per_px"),
        (GOOD, "mrad", dict.fromkeys(IRON), "which specimen.* found: none of them"),
        (GOOD, "mrad", {"structure": "a.cif"}, "found: numbers, fractions, cell_A, structure"),
        (GOOD, "mrad", {"mrad_per_px": [1.0, 2.0, 3.0]}, "two numbers"),
        (GOOD, "mrad", {"centre_px": [4, 9]}, "not on a camera of"),
        (GOOD, "mrad", {"dose": -1.0}, "dose = -1.0: must be positive"),
        (np.full((5, 5), 5.0), "mrad", {}, "in the direct disc"),
        (np.full((1, 9), 5.0), "mrad", {}, "is no diffraction pattern"),
        (np.full((9, 9), np.nan), "mrad", {}, "has no electron counts"),
        (np.full((4, 9, 9), 5.0)[0, 0], "mrad", {}, "is no diffraction pattern"),
    ],
)
def test_bad_files_are_named(tmp_path, data, unit, options, message):
    if data.ndim == 1:
        axis = FieldAxis("x", np.arange(data.size), unit)
        write_nexus(tmp_path / "pattern.nxs", {"p": Field(data, (axis,), "electrons", "p")})
        file = tmp_path / "pattern.nxs"
    else:
        file = pattern_file(tmp_path, data, unit)
    with pytest.raises(ValueError, match=message):
        cbed.load(file, **(IRON | options))


def test_a_mask_is_no_pattern(tmp_path):
    np.save(tmp_path / "mask.npy", GOOD > 0)
    with pytest.raises(ValueError, match="a mask .bool. is no electron counts"):
        cbed.load(tmp_path / "mask.npy", mrad_per_px=5.0, **IRON)


@pytest.mark.slow
def test_a_pattern_of_something_else_is_told():
    _, x, y = cbed.example(jax.random.key(3))
    y = y.at[3:6, 3:6].add(300.0)
    solution = solve(cbed, cbed.problem(), x, y, key=jax.random.key(0), starts=1)
    assert any("does not explain" in text for text in solution.statements)


@pytest.mark.slow
def test_the_truth_comes_back(monkeypatch):
    monkeypatch.setattr(laplace, "_hessian", None)  # a dense one takes gigabytes
    truth, x, y = cbed.example(jax.random.key(3))
    x = x._replace(efficiency=x.efficiency.at[:8, 20].set(0.0))  # a beam stop
    y = jnp.where(x.efficiency > 0, y, 0.0)
    solution = solve(cbed, cbed.problem(), x, y, key=jax.random.key(0))
    true, best, sd = truth.values(), solution.problem.values(), solution.laplace.sd()
    assert abs(best["forward.thickness_A"] - true["forward.thickness_A"]) < 2.0
    assert np.abs(best["forward.tilt_mrad"] - true["forward.tilt_mrad"]).max() < 0.2
    assert abs(best["forward.u_A2"] / true["forward.u_A2"] - 1.0) < 0.05
    assert all(np.all(np.abs(best[n] - true[n]) < 4.0 * sd[n]) for n in true)
    assert solution.metrics["electrons_lost_beyond_grid"] < 1e-3
    assert len(solution.statements) == 2 and "are identified" in solution.statements[1]
    assert 0.8 < solution.metrics["chi_squared_per_datum"] < 1.2


@pytest.mark.slow
def test_a_pattern_of_abtem_gives_its_crystal_back(tmp_path):
    """Made by benchmarks/multislice_peers/cbed_pattern.py."""
    of = pathlib.Path(__file__).parents[1] / "experiments/cbed/GaAs"
    truth = json.loads(of.with_suffix(".json").read_text())
    options = {"structure": str(of.with_suffix(".vasp")), "mrad_per_px": truth["mrad_per_px"]}
    plan = {"problem": "cbed", "file": str(of.with_suffix(".npz")), "options": options}
    job = prepare(make_plan(plan, "a test"))
    best = solve(cbed, job.problem, job.x, job.y, key=job.key, starts=1).problem.values()
    assert abs(best["forward.thickness_A"] - truth["thickness_A"]) < 2.0
    assert np.abs(best["forward.tilt_mrad"] - np.array(truth["tilt_mrad"])).max() < 0.2
    assert abs(best["forward.u_A2"] / truth["u_A2"] - 1.0) < 0.15
