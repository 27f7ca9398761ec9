"""Phases and grains of a small polycrystal, from its image alone."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import micjax
from micjax.__main__ import main
from micjax.physics.patches import grains, local_spectra, mapping, samples
from micjax.physics.patches.local_spectra import LocalSpectra, window_means
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import polycrystal
from micjax.physics.patches.rings import band, rings
from micjax.physics.patches.unmixing import phases
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index, matched
from micjax.physics.patches.unmixing.equivariant import Code, correlations, encode, offsets, turned
from micjax.physics.patches.windows import Hann
from micjax.problems import phase_map
from micjax.problems.phase_map import naming
from micjax.problems.phase_map.grains import grains_of
from micjax.problems.phase_map.naming import LEAST_AGREEMENT, candidates, named

PIXEL_A = 0.5
SHAPE = (168, 208)


@pytest.fixture(scope="module")
def crystal():
    return polycrystal(
        np.random.default_rng(5),
        phase_map.palladium_selenides(),
        SHAPE,
        sampling_A=PIXEL_A,
        grains=3,
        electrons_per_px=100.0,
    )


@pytest.fixture(scope="module")
def prepared(crystal):
    return phase_map.prepare(crystal.image, PIXEL_A, patches=60)


@pytest.fixture(scope="module")
def solution(prepared):
    options, x, y = prepared
    problem = phase_map.problem(**options, most_phases=3)
    return micjax.solve(phase_map, problem, x, y, key=jax.random.key(0), steps=3)


def test_band_is_that_of_the_lattices(crystal):
    seen = band(crystal.image, None, PIXEL_A)
    assert 4.0 < seen.cell_A < 7.5 and 0.6 < seen.k_max_perA <= 1.0


def test_rings_are_those_of_the_whole_image(crystal):
    """Seen from the right, 168 x 208 pixels are the same; the first square is not all of them."""
    image = np.asarray(crystal.image)
    from_left, from_right = (rings(v, None, PIXEL_A).power for v in (image, image[:, ::-1]))
    np.testing.assert_allclose(from_left[1:], from_right[1:], rtol=1e-3)


def test_phases_grains_and_angles_are_found(solution, crystal):
    phase = solution.results["phase"].data
    assert solution.metrics["phases"] == 2.0 and solution.metrics["grains"] == 3.0
    assert adjusted_rand_index(phase.astype(int), crystal.phase) > 0.9
    assert solution.metrics["no_crystal_fraction"] < 0.01
    # angles of two grains of one phase differ as they should, up to the symmetry of the spectrum
    angle = solution.results["orientation"].data
    twice = np.flatnonzero(np.bincount(crystal.phase_of_grain) == 2)[0]
    first, second = np.flatnonzero(crystal.phase_of_grain == twice)
    apart = np.subtract(*(np.nanmedian(angle[crystal.grain == g]) for g in (first, second)))
    true = np.rad2deg(crystal.angle_rad[first] - crystal.angle_rad[second])
    assert abs((apart - true + 45.0) % 90.0 - 45.0) < 0.2
    assert any("2 phases: one more template" in s for s in solution.statements)


def test_abundances_are_shares_of_the_windows(solution, crystal):
    shares = solution.results["abundance"].data
    local = solution.problem.forward.polar.local
    np.testing.assert_allclose(shares.sum(0), 1.0, atol=1e-6)
    pairs = matched(solution.results["phase"].data.astype(int), crystal.phase, 2)
    true = [window_means(crystal.phase == pairs[k], np.ones(SHAPE), local) for k in (0, 1)]
    assert np.abs(shares[:2] - true).mean() < 0.03


def test_grains_are_connected_parts_of_one_phase_and_angle():
    rng = np.random.default_rng(4)
    present = [
        mapping.OrientationInTile(0, k, a, 1e-4) for k in (0, 1) for a in (-0.06, 0.03, 0.13)
    ]
    orientation = np.kron(rng.integers(-1, 6, (9, 11)), np.ones((5, 4), int))
    wanted = []
    for i, known in enumerate(present):
        number, count = scipy.ndimage.label(orientation == i)
        wanted += [(*known[1:3], number == j + 1) for j in range(count)]
    grain, phases, half_turns = mapping.joined(orientation, present)
    phase, angle = (np.append(v, 2)[grain] for v in (phases, half_turns * np.pi))
    found = grains_of(phase, grain, angle, 2, 1.0)
    assert sum(map(len, found)) == len(wanted) > 10
    for k, of_phase in enumerate(found):
        assert [g.pixels for g in of_phase] == sorted((g.pixels for g in of_phase), reverse=True)
        for of_grain in of_phase:
            whole = np.zeros(phase.shape, bool)
            whole[of_grain.box] = of_grain.inside
            same = [w for j, a, w in wanted if j == k and a * np.pi == of_grain.angle_rad]
            assert any(np.array_equal(whole, w) for w in same) and whole.sum() == of_grain.pixels


def test_a_grain_across_tiles_is_one():
    """Two tiles side by side; the first grain goes across, and over the end of the half turn."""
    left = [(0, 0.499), (0, 0.2), (1, 0.3), (0, -0.3)]
    right = [(0, -0.499), (0, 0.22), (0, 0.3), (0, -0.3)]
    present = [
        mapping.OrientationInTile(i, *of, 0.001)
        for i, tile in enumerate((left, right))
        for of in tile
    ]
    orientation = np.repeat([[0, 0, 0, 4], [1, 1, 5, 5], [2, 2, 6, 6], [-1, -1, -1, -1]], 2, axis=0)
    orientation[6, 0], orientation[7, 3] = 3, 7  # the same, and do not touch
    grain, phases, half_turns = mapping.joined(orientation, present)
    assert len(phases) == 7 and np.array_equal(grain < 0, orientation < 0)
    assert len(np.unique(grain[:2])) == 1 and half_turns[grain[0, 0]] % 1.0 == pytest.approx(0.4995)
    others = [grain[3, 0], grain[3, 3], grain[5, 0], grain[5, 3], grain[6, 0], grain[7, 3]]
    assert len(set(others)) == 6 and not set(others) & {grain[0, 0]}
    for i in (1, 2, 3, 5, 6, 7):
        known = grain[orientation == i][0]
        assert (phases[known], half_turns[known]) == present[i][1:3]
    # a wide scatter of patches leaves 0.2 and 0.22 the same
    present[5] = present[5]._replace(sd_half_turns=0.01)
    assert len(np.unique(mapping.joined(orientation, present)[0][2:4])) == 1


def test_an_image_without_a_grain_has_none():
    grain, phases, half_turns = mapping.joined(np.full((4, 5), -1), [])
    assert np.all(grain == -1) and len(phases) == len(half_turns) == 0


def test_means_over_windows_are_those_of_each_patch():
    local = LocalSpectra(Hann(), 12, 5, 1.0, 0.5)
    rng = np.random.default_rng(6)
    values, there = rng.normal(size=(30, 41)), rng.uniform(size=(30, 41)) > 0.3
    there[:12, :12] = False
    window = np.outer(*2 * [np.cos(np.pi * ((np.arange(12) + 0.5) / 12.0 - 0.5)) ** 2])
    wanted = [
        [np.sum(w := window * there[y : y + 12, x : x + 12]), w, values[y : y + 12, x : x + 12]]
        for y in range(0, 19, 5)
        for x in range(0, 30, 5)
    ]
    means = [np.sum(w * v) / total if total > 0.0 else np.nan for total, w, v in wanted]
    found = window_means(values, there, local)
    assert found.shape == (4, 6) and np.isnan(found[0, 0])
    np.testing.assert_allclose(found.ravel(), means, atol=1e-12)


def test_grains_that_are_not_strained_have_no_strain(solution, crystal):
    strain = solution.results["strain"]
    twice = np.flatnonzero(np.bincount(crystal.phase_of_grain) == 2)[0]
    grains = np.flatnonzero(crystal.phase_of_grain == twice)
    values, sds = (
        np.array([np.nanmedian(of[:, crystal.grain == g], axis=1) for g in grains])
        for of in (strain.data, strain.metadata["errors"])
    )
    # against the larger one of the two, which has none by definition
    other = int(np.argmin(np.bincount(crystal.grain.ravel())[grains]))
    np.testing.assert_array_equal(values[1 - other], 0.0)
    assert np.all(sds[other] < 3e-3) and np.all(np.abs(values[other]) < 4.0 * sds[other])


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1e9])
def test_units_of_the_image_do_not_matter(unit, crystal, prepared):
    options, x, y = phase_map.prepare(unit * crystal.image, PIXEL_A, patches=60)
    wanted = dict(prepared[0])
    assert options == pytest.approx(wanted, rel=1e-3)
    np.testing.assert_allclose(y, prepared[2], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_holes_are_left_out(crystal):
    holed = np.array(crystal.image)
    holed[60:100, 80:120] = np.nan
    options, x, y = phase_map.prepare(holed, PIXEL_A, phases=2, patches=60)
    corner = np.asarray(x.corner_px)
    inside = np.all((corner + 10 > [60, 80]) & (corner < [80, 100]), axis=1)
    assert not inside.any() and bool(jnp.all(jnp.isfinite(y)))
    problem = phase_map.problem(**options)
    solved = micjax.solve(phase_map, problem, x, y, key=jax.random.key(0), steps=1)
    phase = solved.results["phase"].data
    assert np.isnan(phase[60:100, 80:120]).all() and np.isfinite(phase).sum() == 168 * 208 - 1600
    there = np.isfinite(phase)
    assert adjusted_rand_index(phase[there].astype(int), crystal.phase[there]) > 0.85


def test_forward_turns_a_template_by_any_angle():
    truth = phase_map.problem(phases=1, patches=2, window_px=16, step_px=4, radii=4, angles=30)
    smooth = 1.1 + np.cos(2 * np.pi * np.arange(30) / 30.0 + np.arange(4)[:, None])
    step = np.pi / 30
    truth = truth.at(
        {
            "forward.template": smooth[None],
            "forward.weight": [[0.5, 0.25], [1.0, 1e-9]],
            "forward.angle_rad": [[3 * step, -7 * step], [0.5 * step, 0.0]],
        }
    )
    x = phase_map.SampledPatches(jnp.arange(2), jnp.zeros((2, 2), int), jnp.zeros((16, 16)), None)
    both = truth.forward(x)
    rolled = 0.5 * np.roll(smooth, 3, axis=1) + 0.25 * np.roll(smooth, -7, axis=1)
    np.testing.assert_allclose(both[0], rolled, atol=1e-5)
    between = 1.1 + np.cos(2 * np.pi * (np.arange(30) - 0.5) / 30.0 + np.arange(4)[:, None])
    np.testing.assert_allclose(both[1], between, atol=1e-5)


def test_an_angle_between_two_steps_is_found():
    t = np.arange(90)
    peak = np.exp(-0.5 * ((t - 30.0 + 45) % 90 - 45) ** 2 / 9.0)
    moved = np.exp(-0.5 * ((t - 41.3 + 45) % 90 - 45) ** 2 / 9.0)
    zero = jnp.zeros((1, 2), int)
    code = Code(zero, jnp.array([[11, 50]]), jnp.array([[1.0, 0.0]]))
    seen, template = (jnp.asarray(v[None, None]) for v in (moved, peak))
    off = offsets(correlations(seen, template), correlations(template, template), code)
    assert float(off[0, 0]) == pytest.approx(0.3, abs=0.02)


def test_patches_of_one_grain_are_told_from_those_of_two(crystal, prepared):
    options, x, _ = prepared
    polar = phase_map.problem(**options).forward.polar
    corners = samples.spread(SHAPE, polar.local, 100)
    assert corners.min() == 0 and np.all(corners.max(0) == np.array(SHAPE) - polar.local.size)
    _, likeness = samples.alike(crystal.image, None, polar, corners)
    size = polar.local.size
    inner = slice(size // 6, size - size // 6)
    mixed = np.array(
        [
            len(np.unique(crystal.grain[y : y + size, x : x + size][inner, inner]))
            for y, x in corners
        ]
    )
    assert np.median(likeness[mixed == 1]) > 0.9 > np.median(likeness[mixed > 1])


def test_one_more_template_is_a_phase_only_if_it_explains_more():
    rng = np.random.default_rng(0)
    shapes = np.abs(rng.normal(size=(2, 6, 24))) ** 3
    of = rng.integers(0, 2, 60)
    rings = turned(jnp.asarray(shapes[of]), jnp.asarray(rng.integers(0, 24, 60)))
    rings = rings + 0.1 * np.abs(rng.normal(size=rings.shape))
    rings = rings / jnp.sqrt(jnp.sum(rings**2, axis=(1, 2), keepdims=True))
    tried = [t for t, _ in phases.trials(rings, 6, rng, starts=1, trial_steps=2, steps=6)]
    assert [t.count for t in tried] == [1, 2, 3, 4] and phases.chosen(tried) == 2
    assert phases.chosen(tried[:2]) == 2
    assert phases.taken(tried) == tried[:2] and "explains little more" in tried[2].lacks(tried[1])


def test_the_front_of_few_templates_and_a_small_residual():
    tried = [phases.Trial(n, r, 0.0, 0.2) for n, r in enumerate((0.5, 0.3, 0.31, 0.29), start=1)]
    assert [t.count for t in phases.front(tried)] == [1, 2, 4]
    alike = phases.Trial(2, 0.1, 0.99, 0.01)
    assert alike.lacks(tried[0]) == ["two are alike", "one is rare"] and not tried[1].lacks(
        tried[0]
    )


def test_tiles_cover_an_image_once():
    local = LocalSpectra(Hann(), 16, 4, 1.0, 0.5)
    for shape in ((16, 300), (131, 500), (1000, 90)):
        seen = np.zeros(shape, int)
        for whole, kept in mapping.tiles(shape, local):
            seen[kept] += 1
            for w, k, n in zip(whole, kept, shape, strict=True):
                assert 0 <= w.start <= k.start < k.stop <= w.stop <= n
                assert w.start % local.step == 0
        assert np.all(seen == 1)


def test_atoms_of_an_image_are_those_of_its_patches_one_by_one(crystal):
    polar = Polar(LocalSpectra(Hann(), 16, 2, PIXEL_A, 0.9), 0.1, 6, 30)
    image = crystal.image[:20].astype(np.float64)
    image = np.concatenate([image, image[:, ::-1]], axis=1)  # wider than a strip
    assert len(polar.local.corners(image.shape)[1]) > local_spectra.COLUMNS
    templates = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 6, 30)) ** 4)
    templates /= jnp.sqrt(jnp.sum(templates**2, axis=(1, 2), keepdims=True))
    scale = mapping.PatchScale(1e-3 * float(image.std()), 0.05, 1.0)
    coded = mapping.encode_image(image, None, polar, templates, scale)
    for y, x in ((0, 0), (1, 70), (2, 127), (0, 128), (2, 199)):
        patch = jnp.asarray(image[2 * y : 2 * y + 16, 2 * x : 2 * x + 16])
        rings = samples.polar_of(polar.local(patch), polar)[0]
        code, _ = encode(mapping.scaled(rings, scale), templates)
        for ours, alone in zip(coded, code, strict=False):
            np.testing.assert_allclose(ours[y, x], alone[0], atol=1e-6)
    assert np.all(np.abs(coded.turns - coded.turn) <= 0.5)


def test_a_part_of_the_patches_has_the_same_reflections(crystal, prepared, monkeypatch):
    polar = phase_map.problem(**prepared[0]).forward.polar
    image = crystal.image - crystal.image.mean()
    inside = window_means(crystal.grain == 0, np.ones(SHAPE), polar.local)
    weights = np.where(inside > 0.95, inside, 0.0)
    every = mapping.reflections_in(image, None, polar, weights)
    power = local_spectra.over_strips(polar.local, image, None, local_spectra.power_of)
    whole = grains.reflections(
        np.einsum("yxkl,yx->kl", power, weights), polar.local, polar.k_min_perA
    )
    np.testing.assert_allclose(every, whole, atol=1e-9)
    monkeypatch.setattr(mapping, "MOST", np.sum(weights > 0.0) // 3)
    part = mapping.reflections_in(image, None, polar, weights)
    apart = np.linalg.norm(every[:6, None] - part, axis=-1).min(axis=1)
    assert np.all(apart < 0.05 * polar.local.spacing_perA * PIXEL_A)


@pytest.mark.slow
def test_tiles_agree_with_the_whole(solution, crystal, prepared, monkeypatch):
    monkeypatch.setattr(mapping, "TILE", 2.5)
    stages = importlib.import_module("micjax.problems.phase_map.stages")
    _, x, y = prepared
    arrays = stages._mapped(solution.problem, x, y, None, lambda *progress: None)
    same = arrays["map_phase"] == solution.results["phase"].data
    assert np.mean(same) > 0.98
    of = [arrays[f"map_{n}"] for n in ("phase", "grain", "angle_rad")]
    sizes = [g.pixels for k in grains_of(*of, 2, 10.0) for g in k]
    np.testing.assert_allclose(
        sorted(sizes), np.sort(np.bincount(crystal.grain.ravel())), rtol=0.05
    )


@pytest.mark.parametrize(
    ("image", "options", "said"),
    [
        (np.ones((64, 64)), {}, "constant"),
        (np.full((64, 64), np.nan), {}, "0 finite pixels"),
        (np.random.default_rng(0).normal(size=(64, 64)), {}, "no ring of reflections"),
        (None, {"window_px": 170}, "170 pixels is larger than the image of 168 x 208"),
        (None, {"window_px": 8, "cell_A": 6.0}, "8 pixels, 4 Å, is smaller than a unit cell"),
    ],
)
def test_what_cannot_be_mapped_is_refused(image, options, said, crystal):
    with pytest.raises(ValueError, match=said):
        phase_map.prepare(crystal.image if image is None else image, PIXEL_A, **options)


def test_files_without_what_is_needed_are_refused(tmp_path, crystal):
    np.save(tmp_path / "bare.npy", crystal.image)
    with pytest.raises(ValueError, match="no pixel size in the file, give --set pixel_A="):
        phase_map.load(tmp_path / "bare.npy")
    np.save(tmp_path / "colours.npy", np.zeros((64, 64, 3)))
    with pytest.raises(ValueError, match="a picture in colours"):
        phase_map.load(tmp_path / "colours.npy", pixel_A=0.5)
    np.save(tmp_path / "stack.npy", np.zeros((5, 64, 64)))
    with pytest.raises(ValueError, match=r"\(5, 64, 64\), more than one image .* save one of them"):
        phase_map.load(tmp_path / "stack.npy", pixel_A=0.5)
    np.savez(tmp_path / "oblong.npz", image=crystal.image, pixel_nm=np.array([0.05, 0.06]))
    with pytest.raises(ValueError, match="0.5 x 0.6 Å; they have to be square"):
        phase_map.load(tmp_path / "oblong.npz")
    with pytest.raises(ValueError, match="9 phases of 8 patches"):
        phase_map.problem(phases=9, patches=8)


def test_a_file_becomes_a_report(tmp_path, crystal, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("crystal.npy", crystal.image.astype(np.float32))
    given = ("pixel_A=0.5", "patches=60", "most_phases=3", "engine.steps=3")
    settings = [w for s in given for w in ("--set", s)]
    assert main(["fit", "phase_map", "crystal.npy", *settings, "--out", "r"]) == 0
    assert "2 phases: one more template" in capsys.readouterr().out
    field = micjax.io.read("r/result.nxs")
    assert field.data.shape == SHAPE and field.pixel_nm == pytest.approx((0.05, 0.05))
    report = (tmp_path / "r/report.html").read_text()
    assert "Templates" in report and "Number of phases" in report


def test_phases_are_named_by_files_of_structures(tmp_path, solution, monkeypatch):
    """Both selenides as columns in a flat cell, and copper, which is neither of them."""
    ase = pytest.importorskip("ase")
    for name, lattice in zip(("first", "second"), phase_map.palladium_selenides(), strict=True):
        cell = np.diag([*np.diag(lattice.vectors_A), 3.0])
        symbols = ["Pd" if w > 40.0**1.7 else "Se" for w in lattice.weight]
        places = np.column_stack([lattice.basis, np.zeros(len(symbols))])
        atoms = ase.Atoms(symbols, scaled_positions=places, cell=cell, pbc=True)
        atoms.write(tmp_path / f"{name}.cif")
    copper = ase.Atoms("Cu4", cell=3.61 * np.eye(3), pbc=True)
    copper.set_scaled_positions([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    copper.write(tmp_path / "copper.cif")
    forward = solution.problem.forward
    # three of the axes, among which is the one that it is
    monkeypatch.setattr(naming, "ZONES", ((0, 0, 1), (0, 1, 1), (1, 1, 1)))
    known = candidates(str(tmp_path), forward.polar)
    names = named(forward.template[:2], known, forward.polar)
    assert {str(name) for name in names} == {"first [0 0 1]", "second [0 0 1]"}
    assert all(n.probability > 0.95 and n.agreement > 0.6 and not n.rivals for n in names)
    alone = candidates(str(tmp_path / "copper.cif"), forward.polar)
    others = named(forward.template[:2], alone, forward.polar)
    assert all(name.agreement < LEAST_AGREEMENT for name in others)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no files in this folder"):
        candidates(str(tmp_path / "none"), forward.polar)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ([0, 0, 1, 1], [5, 5, 2, 2], 1.0),
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.0),
        ([0, 0, 0], [1, 1, 1], 1.0),
        # scikit-learn's documentation of adjusted_rand_score
        ([0, 0, 1, 2], [0, 0, 1, 1], 0.5714285714),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
    ],
)
def test_adjusted_rand_index(first, second, wanted):
    assert adjusted_rand_index(np.array(first), np.array(second)) == pytest.approx(wanted)
