"""Structures from scans and series of images: the model is plain multislice, the truth returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax import InverseProblem, laplace, neg_log_joint, parameter
from micjax.inference.runner import solve
from micjax.inference.solve import fit
from micjax.inference.solvers.gauss_newton import FisherScoring, expected_hessian
from micjax.io import Field, FieldAxis, write_nexus
from micjax.physics.electrons import optics
from micjax.physics.electrons.detectors import diffraction
from micjax.physics.electrons.multislice import band_limit, lowest, multislice, propagate
from micjax.physics.electrons.potentials.layers import Atoms, potential_VA
from micjax.physics.electrons.stem import placed
from micjax.physics.noise import Poisson
from micjax.problems import structure
from micjax.problems.structure.model import Series, dealt, normal_numbers, pixels, shares
from micjax.problems.structure.peaks import peaks

SMALL = {"tile": [1, 1, 1], "dose": 1e5, "sampling_A": 0.2, "reach_mrad": 60.0, "slice_A": 3.2}
BOX_A = np.array(structure.MOS2[2])
DRIFT = {"offset_sd_A": 0.1, "defocus_sd_A": 20.0}


def small(kind, **options):
    """A problem at other values than it starts from, where it is measured, and its counts."""
    options = {"kind": kind, "moments": 12, "sets": 2, **SMALL, **options}
    problem = structure.problem(**options)
    crystal = problem.forward.crystal
    moved = 0.07 * np.random.default_rng(2).normal(size=crystal.shift_A.shape)
    truth = problem.at(
        {
            "forward.crystal.shift_A": moved,
            "forward.crystal.occupancy": [0.5, 0.9],
            "forward.crystal.u_A2": [0.0075, 0.005],
        }
    )
    if "forward.offset_A" in truth.values():
        offset = np.array([[0.06, -0.04], [-0.03, 0.05], [0.0, 0.1]])
        offset = offset[0] if kind == "stem" else offset
        truth = truth.at({"forward.offset_A": offset, "forward.aberrations_A.C10": 15.0})
    if kind == "stem":
        x = structure.scan_of(BOX_A, 6, 4, 60.0, 12.0)
    else:
        along = (0.25 * jnp.arange(21.0), 0.25 * jnp.arange(12.0))
        x = Series(jnp.asarray([-100.0, 0.0, 100.0]), *along)
    y = truth.noise(truth.forward(x)).sample(jax.random.key(1)).astype(float)
    return problem, truth, x, y


@pytest.fixture(scope="module")
def stem():
    return small("stem")


@pytest.fixture(scope="module")
def drifted():
    return small("stem", **DRIFT)


@pytest.fixture(scope="module")
def hrtem():
    return small("hrtem", **DRIFT)


@pytest.fixture(scope="module", params=["stem", "hrtem"])
def solved(request):
    problem, truth, x, y = request.getfixturevalue(request.param)
    return solve(structure, problem, x, y, key=jax.random.key(0)), truth, x, y


@pytest.mark.slow
def test_the_truth_comes_back_within_its_errors(solved):
    solution, truth, x, y = solved
    true, best, sd = truth.values(), solution.problem.values(), solution.laplace.sd()
    for name, value in true.items():
        assert np.all(np.abs(best[name] - value) < 4.0 * sd[name] + 1e-9), name
    # against one another: together they may move as the images do
    wrong = best["forward.crystal.shift_A"] - true["forward.crystal.shift_A"]
    moved = np.abs(true["forward.crystal.shift_A"])
    assert np.median(np.abs(wrong - wrong.mean(0))) < 0.2 * np.median(moved)
    assert "All unknowns are identified by these data." in solution.statements
    assert 0.8 < solution.metrics["chi_squared_per_datum"] < 1.2
    assert len(solution.table) == 4 and solution.table[1]["occupancy"] == pytest.approx(
        0.5, abs=0.1
    )
    rows = structure.compare(solution, x, y, truth)
    start = next(r for r in rows if r["quantity"] == "shift_A, the start")
    ours = next(r for r in rows if r["quantity"] == "shift_A")
    assert ours["median |error|"] < start["median |error|"]
    assert start["worst"] == pytest.approx(moved.max())
    for make in structure.figures(solution, x, y, truth).values():
        assert make().axes


@eqx.filter_jit
def moved_potential(crystal, normal):
    atoms = crystal.at_rest()
    moved = atoms.position_A.at[:, :2].add(jnp.sqrt(atoms.u_A2[:, :2]) * normal)
    still = Atoms(atoms.numbers, moved, atoms.box_A, occupancy=atoms.occupancy)
    thickness = BOX_A[2] / crystal.slices * np.ones(crystal.slices)
    fine = (4 * crystal.shape[0], 4 * crystal.shape[1])
    return potential_VA(still, fine, thickness, slices=crystal.layers)


def mean_transmissions(crystal, energy_keV, limit):
    """Of each slice the product over its atoms, each a mean over its motion by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    moves = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    weight = jnp.asarray(np.outer(weights, weights).ravel() / (2.0 * np.pi))
    atoms, fine = crystal.at_rest(), (4 * crystal.shape[0], 4 * crystal.shape[1])
    sigma, slices = optics.interaction_rad_per_VA(energy_keV), {}
    for i, z in enumerate(np.asarray(atoms.position_A[:, 2])):

        def phase(move, i=i):
            place = atoms.position_A[i].at[:2].add(jnp.sqrt(atoms.u_A2[i, :2]) * move)
            one = Atoms([atoms.numbers[i]], place[None], BOX_A, occupancy=atoms.occupancy[i])
            return jnp.exp(1j * sigma * potential_VA(one, fine, BOX_A[2:], slices=((0,),))[0])

        mean = jnp.tensordot(weight, jax.lax.map(phase, moves), 1)
        of = int(z / BOX_A[2] * crystal.slices)
        slices[of] = slices.get(of, 1.0) * mean
    stacked = jnp.stack([slices[i] for i in range(crystal.slices)])
    return jnp.fft.ifft2(lowest(jnp.fft.fft2(stacked), crystal.shape) * limit)


@eqx.filter_jit
def waves_after(crystal, normal, start, energy_keV):
    sampling, thickness = crystal.sampling_A, BOX_A[2] / crystal.slices
    return multislice(start, moved_potential(crystal, normal), thickness, sampling, energy_keV)


@pytest.mark.slow
def test_a_scan_is_plain_multislice_at_every_place(drifted):
    _, truth, x, _ = drifted
    crystal, energy_keV = truth.forward.crystal, truth.forward.energy_keV
    forward = eqx.tree_at(lambda f: f.smooth_mrad, truth.forward, jnp.asarray(1e-2))
    found = np.asarray(eqx.filter_jit(forward)(x)).reshape(-1, *x.efficiency.shape)
    sampling = tuple(float(a) for a in crystal.sampling_A)
    wavelength = optics.wavelength_A(energy_keV)
    angles = optics.angles_mrad(crystal.shape, np.asarray(sampling), wavelength)
    probe = optics.probe(angles, forward.semiangle_mrad, {"C10": 15.0}, wavelength)
    y_mrad, x_mrad = (np.asarray(a).ravel() for a in angles)
    limit = band_limit(crystal.shape, sampling)
    elastic = mean_transmissions(crystal, energy_keV, limit)
    for of, places in enumerate(dealt(24, 2)):
        p = places[1]
        there = x.position_A.reshape(-1, 2)[p] + jnp.asarray([0.06, -0.04])
        wave = placed(probe, there[None], sampling)[0]
        mean = propagate(
            wave, elastic, BOX_A[2] / crystal.slices, sampling, energy_keV, limit=limit
        )
        pattern = np.asarray(diffraction(mean))
        for n in crystal.normal[of]:
            after = waves_after(crystal, n, wave, energy_keV)
            pattern = pattern + np.asarray(diffraction(after - mean)) / 12
        for i, j in ((2, 4), (4, 3)):
            fine = np.linspace(-0.5, 0.5, 2001)[1::2] * 12.0
            nearest = [
                np.argmin(np.abs(a[:, None] - (m[k] + fine)), axis=0)
                for a, m, k in ((y_mrad, x.y_mrad, i), (x_mrad, x.x_mrad, j))
            ]
            area = 144.0 / ((y_mrad[1] - y_mrad[0]) * (x_mrad[1] - x_mrad[0]))
            expected = area * pattern[np.ix_(*nearest)].mean()
            assert found[p, i, j] == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_few_moments_scatter_as_much_as_many():
    """Dark field of the model, and of independent moments of plain frozen phonons."""
    _, truth, x, _ = small("stem", moments=12, sets=6)
    forward = truth.forward
    angle = np.hypot(np.asarray(x.y_mrad)[:, None], np.asarray(x.x_mrad))
    ring = (angle > 45.0) & (angle < 60.0)
    half = np.random.default_rng(5).normal(size=(400, 6, 2))
    many = eqx.tree_at(
        lambda f: f.crystal.normal, forward, jnp.asarray(np.concatenate([half, -half])[None])
    )
    still = eqx.tree_at(lambda f: f.crystal.normal, forward, jnp.zeros((0, 0, 6, 2)))
    ours, plain, elastic = (
        float(np.asarray(f(x))[..., ring].sum()) for f in (forward, many, still)
    )
    assert abs(ours - plain) < 0.05 * (plain - elastic)


@pytest.mark.slow
def test_smoothing_keeps_what_is_smooth(stem):
    forward = stem[1].forward
    angles = optics.angles_mrad(
        forward.crystal.shape, jnp.stack(forward.crystal.sampling_A), 0.0418
    )
    limit = np.asarray(forward.crystal.limit)
    smoothed = np.asarray(forward.smooth(angles)(jnp.ones(limit.shape)))
    np.testing.assert_allclose(smoothed, limit, atol=1e-9)


def test_images_are_plain_multislice_with_a_lens(hrtem):
    _, truth, x, _ = hrtem
    forward, crystal = truth.forward, truth.forward.crystal
    sampling = np.array([float(a) for a in crystal.sampling_A])
    wavelength = float(optics.wavelength_A(forward.energy_keV))
    y, x_mrad = optics.angles_mrad(crystal.shape, sampling, wavelength)
    alpha = 1e-3 * np.hypot(np.asarray(y), np.asarray(x_mrad))
    start = jnp.ones(crystal.shape, complex)
    # a lens with a defocus only: chi = -pi / lambda defocus alpha^2, of -100 - 15 Å
    envelope = np.exp(-((np.pi / (2 * wavelength) * 30.0 * alpha**2) ** 2))
    gradient = 2.0 * np.pi / wavelength * -115.0 * alpha * 1e-3
    envelope *= np.exp(-((0.05 * gradient) ** 2))
    lens = envelope * np.exp(1j * np.pi / wavelength * -115.0 * alpha**2)
    lens *= np.asarray(optics.sharp_aperture((y, x_mrad), 25.0))
    images = [
        np.abs(np.fft.ifft2(np.fft.fft2(waves_after(crystal, n, start, 80.0)) * lens)) ** 2
        for n in crystal.normal.reshape(-1, 6, 2)
    ]
    spectrum = np.fft.fft2(np.mean(images, 0)) / images[0].size
    ky, kx = (np.fft.fftfreq(n, d) for n, d in zip(crystal.shape, sampling, strict=True))
    fine = (np.arange(20) - 9.5) / 20 * 0.25
    at_y, at_x = 7 * 0.25 + 0.06 + fine, 3 * 0.25 - 0.04 + fine
    waves = (
        np.exp(2j * np.pi * at_y[:, None] * ky) @ spectrum @ np.exp(2j * np.pi * kx[:, None] * at_x)
    )
    assert forward(x)[0, 7, 3] == pytest.approx(waves.real.mean(), rel=1e-3)


@pytest.mark.slow
def test_series_have_the_gradient_of_finite_differences(hrtem):
    problem, _, x, y = hrtem
    theta = problem.unconstrain(problem.values())
    keys = dict(zip(theta, jax.random.split(jax.random.key(4), len(theta)), strict=True))
    loss = eqx.filter_jit(jax.value_and_grad(neg_log_joint))
    slopes = loss(theta, problem, x, y)[1]
    for name, key in keys.items():
        way = jax.random.normal(key, theta[name].shape)
        ends = [
            loss({**theta, name: theta[name] + h * way}, problem, x, y)[0] for h in (1e-6, -1e-6)
        ]
        expected = float(ends[0] - ends[1]) / 2e-6
        assert float(jnp.sum(slopes[name] * way)) == pytest.approx(expected, rel=1e-4), name


def test_pixels_of_a_camera_share_those_of_the_wave():
    wave = 3.0 * np.fft.fftfreq(9, 1 / 9)
    weights = np.asarray(shares(jnp.asarray([-7.5, -2.5, 2.5, 7.5]), jnp.asarray(wave)))
    assert weights[2] @ np.ones(9) * 3.0 == pytest.approx(5.0)
    np.testing.assert_allclose(weights[2, [0, 1, 2]], [0.5, 1.0, 1 / 6], atol=1e-12)
    along = np.asarray(pixels(jnp.asarray([0.7]), jnp.asarray([0.7, 1.2]), jnp.asarray([0.6])))
    fine = np.exp(2j * np.pi * 0.6 * (0.7 + np.linspace(-0.25, 0.25, 2001)[1::2]))
    assert along[0, 0] == pytest.approx(fine.mean(), abs=1e-6)


def test_moments_have_the_thermal_mean_of_their_atoms():
    normal = normal_numbers(9, 24, (0, 1, 1, 2, 1))
    for power, mean in enumerate((1.0, 0.0, 1.0, 0.0, 3.0, 0.0)):
        np.testing.assert_allclose((normal**power).mean(1), mean, atol=1e-12)
    together = np.einsum("smi, smj -> sij", normal[:, :, [1, 2, 4], 0], normal[:, :, [1, 2, 4], 0])
    np.testing.assert_allclose(
        together / 24, np.broadcast_to(np.eye(3), together.shape), atol=1e-12
    )
    squared = normal**2
    for a, b in (((1, 0), (2, 0)), ((1, 1), (4, 1)), ((2, 0), (4, 0)), ((1, 0), (1, 1))):
        assert np.mean(squared[..., *a] * squared[..., *b]) == pytest.approx(1.0)
    assert np.abs(np.einsum("smi, smi -> s", normal[:, :, 0], normal[:, :, 1])).max() > 1.0
    # the damping of an atom, exp(-x^2 / 2), from few moments
    assert np.cos(0.8 * normal).mean() == pytest.approx(np.exp(-0.32), rel=5e-3)


def test_atoms_of_an_element_above_one_another_are_a_column():
    problem = structure.problem(tile=[1, 1, 2])
    crystal = problem.forward.crystal
    assert crystal.column == (0, 1, 1, 2, 3, 3) * 2 and crystal.chosen == (1, 3)
    wrapped = structure.problem(
        numbers=[22, 8, 22], position_A=[[0, 0, 0], [0, 0, 2], [3.95, 0, 2]], box_A=[4, 4, 4],
        tile=[1, 1, 1], vacant=[],
    )  # fmt: skip
    assert wrapped.forward.crystal.column == (0, 1, 0)
    assert "forward.crystal.occupancy" not in wrapped.values()


class Decay(eqx.Module):
    rate_per_s: jax.Array = parameter()

    def __call__(self, x):
        return jnp.exp(-self.rate_per_s * x)


def test_scoring_finds_the_maximum_and_its_curvature():
    priors = {
        "forward.rate_per_s": dist.LogNormal(0.0, 1.0),
        "noise.dose": dist.LogNormal(15.0, 1.0),
    }
    problem = InverseProblem(Decay(2.0), Poisson(1e6), priors)
    x = jnp.linspace(0.0, 3.0, 40)
    y = jnp.round(4e6 * jnp.exp(-0.7 * x))  # as the model has it: the Hessian is the expected one
    found = fit(problem, x, y, FisherScoring(), steps=20, chunk=20)
    assert found.stop_reason == "converged"
    theta = problem.unconstrain(found.problem.values())
    slope = jax.grad(neg_log_joint)(theta, problem, x, y)
    assert all(abs(float(s)) < 1.0 for s in slope.values())
    exact = laplace(found.problem, x, y)
    ours = laplace(found.problem, x, y, hessian=expected_hessian(found.problem, x, y))
    np.testing.assert_allclose(ours.covariance, exact.covariance, rtol=1e-4)
    assert found.problem.values()["noise.dose"] == pytest.approx(4e6, rel=1e-4)


def test_peaks_are_found_around_the_edges():
    box = np.array([6.0, 5.0])
    place = np.stack(np.meshgrid(0.5 * np.arange(12), 0.5 * np.arange(10), indexing="ij"), -1)
    truth = np.array([[0.1, 4.9], [2.9, 2.6]])
    apart = place[:, :, None] - truth
    apart -= box * np.round(apart / box)
    bumps = np.exp(-0.5 * (apart**2).sum(-1) / np.array([0.5, 0.7]) ** 2)
    image = 20.0 + bumps @ np.array([300.0, 150.0])
    found = peaks(image, place, np.array([[0.0, 5.0], [3.0, 2.5]]), [42, 16], box)
    np.testing.assert_allclose(found, truth, atol=1e-4)


@pytest.mark.slow
def test_what_the_model_does_not_explain_is_told(solved):
    solution, _, x, y = solved
    elsewhere = y + jnp.round(5.0 * jnp.sqrt(y + 1.0)) * (
        jnp.arange(y.size).reshape(y.shape) % 3 == 0
    )
    again = solve(structure, solution.problem, x, elsewhere, key=jax.random.key(0), steps=2)
    assert any("does not explain" in text for text in again.statements)


@pytest.mark.slow
def test_few_electrons_say_nothing_about_a_column(stem):
    problem, _, x, y = stem
    poor = problem.given({"noise.dose": dist.LogNormal(np.log(2.0), 0.05)}).at({"noise.dose": 2.0})
    few = jax.random.poisson(jax.random.key(0), 1e-4 * y).astype(float)
    solution = solve(structure, poor, x, few, key=jax.random.key(0))
    assert "forward.crystal.shift_A is not identified by these data." in solution.statements


@pytest.mark.parametrize(
    "options, message",
    [
        ({"u_A2": 0.0}, "u_A2 = 0.0: must be positive"),
        ({"offset_sd_A": -1.0}, "offset_sd_A = -1.0: must not be negative"),
        ({"moments": 2}, "a multiple of 12"),
        ({"numbers": [42]}, "belong together"),
        ({"numbers": [142], "position_A": [[0, 0, 0]], "box_A": [3, 3, 3]}, "Z = 142"),
        ({"vacant": [8]}, r"vacant = \[8\]: there are \[16, 42\]"),
        ({"tile": [1, 1]}, "boxes along x, y and z"),
        ({"sampling_A": 0.3}, "70 mrad are needed: take sampling_A = 0.199"),
        ({"aberrations_A": {"C99": 1.0}}, "aberrations_A has"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        structure.problem(**options)


def test_data_of_another_kind_or_shape_are_refused(stem, hrtem):
    problem, _, x, y = stem
    with pytest.raises(ValueError, match="Series for a problem of kind stem"):
        solve(structure, problem, hrtem[2], hrtem[3], key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"data have the shape \(5, 4"):
        solve(structure, problem, x, y[1:], key=jax.random.key(0))


def scan_file(folder, counts, units=("nm", "nm", "mrad", "mrad")):
    names, steps = ("y", "x", "ky", "kx"), (0.09, 0.09, 2.0, 2.0)
    if counts.ndim == 3:
        names, steps = ("defocus", "y", "x"), (1.0, 0.01, 0.01)
    axes = tuple(
        FieldAxis(n, s * (np.arange(size) - (size // 2 if "k" in n else 0)), u)
        for n, s, size, u in zip(names, steps, counts.shape, units, strict=False)
    )
    write_nexus(folder / "scan.nxs", {"scan": Field(counts, axes, "electrons", "scan")})
    return folder / "scan.nxs"


def test_a_scan_from_a_file_becomes_a_problem(tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-20:21, -20:21]
    counts = rng.poisson(np.where(np.hypot(y, x) < 12, 20.0, 1.0), (4, 3, 41, 41)).astype(float)
    counts[0, 0, 4, 5] = np.nan
    (tmp_path / "POSCAR").write_text(
        "iron\n1.0\n2.87 0 0\n0 4.1 0\n0 0 2.87\nFe\n2\nDirect\n0 0 0\n.5 .5 .5"
    )
    file = scan_file(tmp_path, counts)
    options, there, seen = structure.load(
        file,
        structure=str(tmp_path / "POSCAR"),
        energy_keV=80.0,
        origin_A=[0.1, 0.0],
        dose=5000.0,
    )
    assert options["numbers"] == [26, 26] and options["kind"] == "stem"
    np.testing.assert_allclose(there.position_A[2, 1], [0.1 + 1.8, 0.9])
    # 41757 / 4.1 = 10.2 mrad along y and 14.5 along x, so 6 and 8 pixels of 2 mrad together
    assert there.y_mrad[1] - there.y_mrad[0] == pytest.approx(12.0)
    assert there.x_mrad[1] - there.x_mrad[0] == pytest.approx(16.0)
    assert float(there.efficiency.min()) == 0.0 and seen.shape[2:] == there.efficiency.shape
    assert options["dose"] == 5000.0
    problem = structure.problem(**options, moments=0)
    assert problem.forward(there).shape == seen.shape
    row = int(np.argmin(np.abs(np.asarray(there.y_mrad))))
    column = int(np.argmin(np.abs(np.asarray(there.x_mrad))))
    rows, columns = (
        np.flatnonzero(np.abs(2.0 * np.arange(-20, 21) - float(m)) < w / 2)
        for m, w in ((there.y_mrad[row], 12.0), (there.x_mrad[column], 16.0))
    )
    expected = counts[1, 2][np.ix_(rows, columns)].sum()
    assert float(seen[1, 2, row, column]) == pytest.approx(expected)


def test_a_series_from_a_file_becomes_a_problem(tmp_path):
    counts = np.random.default_rng(0).poisson(50.0, (3, 20, 12)).astype(float)
    axes = (FieldAxis("defocus", np.array([-10.0, 0.0, 10.0]), "nm"),) + tuple(
        FieldAxis(n, 0.025 * np.arange(size), "nm") for n, size in (("y", 20), ("x", 12))
    )
    write_nexus(tmp_path / "series.nxs", {"s": Field(counts, axes, "electrons", "s")})
    options, there, seen = structure.load(tmp_path / "series.nxs", energy_keV=80.0, **CELL)
    np.testing.assert_allclose(there.defocus_A, [-100.0, 0.0, 100.0])
    np.testing.assert_allclose(there.y_A[:2], [0.0, 0.25])
    np.testing.assert_allclose(seen, counts)
    problem = structure.problem(**options, moments=0)
    assert problem.forward(there).shape == counts.shape
    axes = (FieldAxis("C10", np.array([-10.0, 0.0, 10.0]), "nm"), *axes[1:])
    write_nexus(tmp_path / "series.nxs", {"s": Field(counts, axes, "electrons", "s")})
    there = structure.load(tmp_path / "series.nxs", energy_keV=80.0, **CELL)[1]
    np.testing.assert_allclose(there.defocus_A, [100.0, 0.0, -100.0])


CELL = dict(zip(("numbers", "position_A", "box_A"), structure.MOS2, strict=True))
GOOD = np.full((4, 3, 41, 41), 5.0)
BLIND = np.where(np.arange(41) == 20, np.nan, GOOD)


@pytest.mark.parametrize(
    "counts, units, options, message",
    [
        (GOOD[0, 0], ("nm", "nm"), {}, "are neither 4D-STEM"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), dict.fromkeys(CELL), "which specimen.*none of them"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"structure": "a.cif"}, "found: numbers, position_A"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"box_A": None}, "which specimen"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"scan_rotation_deg": 60.0}, "set origin_A"),
        (GOOD[:, 0], ("", "mrad", "mrad"), {"places_A": [[0, 0]]}, "4 patterns need 4 finite"),
        (-GOOD, ("nm", "nm", "mrad", "mrad"), {}, "are no electron counts"),
        (np.nan * GOOD, ("nm", "nm", "mrad", "mrad"), {}, "values is finite"),
        (GOOD, ("", "nm", "mrad", "mrad"), {}, "set step_A"),
        (GOOD, ("nm", "nm", "", "mrad"), {}, "set mrad_per_px"),
        (GOOD, ("px", "px", "mrad", "mrad"), {}, "set step_A"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"step_A": 0.0}, "step_A = 0.0: must be positive"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"step_A": [0.9]}, "two numbers"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"tile": [2, 1]}, "boxes along x, y and z"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"reach_mrad": 5.0}, "3 x 3 are the least"),
        (GOOD[..., :1, :], ("nm", "nm", "mrad", "mrad"), {}, "3 x 3 are the least"),
        (BLIND, ("nm", "nm", "mrad", "mrad"), {}, "not all electrons are seen: set dose"),
        (GOOD, ("nm", "nm", "mrad", "mrad"), {"step_A": 2.0}, "set origin_A or take more tiles"),
        (GOOD[..., :9, :9], ("nm", "nm", "mrad", "mrad"), {}, "too coarse for this camera"),
        (GOOD[0, :, :41, :27], ("", "nm", "nm"), {}, "set defocus_A"),
        (
            GOOD[0, :, :41, :27],
            ("", "nm", "nm"),
            {"defocus_A": [1.0]},
            "1 values of defocus_A for 3 images",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, counts, units, options, message):
    file = scan_file(tmp_path, counts, units)
    with pytest.raises(ValueError, match=message):
        structure.load(file, energy_keV=80.0, **(CELL | options))


def test_a_plain_array_needs_sizes_only(tmp_path):
    np.save(tmp_path / "scan.npy", GOOD)
    with pytest.raises(ValueError, match="set step_A"):
        structure.load(tmp_path / "scan.npy", energy_keV=80.0, **CELL)
    sizes = {"step_A": [0.9, 0.8], "mrad_per_px": 2.0, **CELL}
    options, there, _ = structure.load(tmp_path / "scan.npy", energy_keV=80.0, **sizes)
    np.testing.assert_allclose(there.position_A[1, 1], [0.9, 0.8])
    assert options["reach_mrad"] == pytest.approx(30.0, abs=2.5)
    assert options["numbers"] == CELL["numbers"]


def test_a_scan_begins_where_its_axes_do_and_may_be_turned(tmp_path):
    axes = [FieldAxis("y", np.array([0.1, 0.13, 0.16, 0.19]), "nm")]
    axes += [FieldAxis("x", np.array([0.12, 0.15, 0.18]), "nm")]
    axes += [FieldAxis(n, 2.0 * np.arange(-20, 21), "mrad") for n in ("ky", "kx")]
    write_nexus(tmp_path / "scan.nxs", {"scan": Field(GOOD, tuple(axes), "electrons", "scan")})
    given = {"file": tmp_path / "scan.nxs", "energy_keV": 80.0, **CELL}
    straight, turned, moved = (
        np.asarray(structure.load(**given, **options)[1].position_A)
        for options in ({}, {"scan_rotation_deg": 30.0}, {"origin_A": [0.2, 0.0]})
    )
    np.testing.assert_allclose(straight[1, 2], [1.3, 1.8])
    np.testing.assert_allclose(moved[1, 2], [0.5, 0.6])
    # from x towards y
    np.testing.assert_allclose(turned[0, 2], [1.0 + 0.3, 1.2 + 0.6 * np.cos(np.pi / 6)])
    np.testing.assert_allclose(turned[2, 0], [1.0 + 0.6 * np.cos(np.pi / 6), 1.2 - 0.3])


def test_patterns_at_listed_places_are_those_of_a_scan(tmp_path):
    counts = np.random.default_rng(0).poisson(5.0, (2, 3, 21, 21)).astype(float)
    np.save(tmp_path / "scan.npy", counts)
    np.save(tmp_path / "list.npy", counts.reshape(6, 21, 21))
    places = np.stack(np.meshgrid([0.5, 1.4], [0.3, 1.0, 1.7], indexing="ij"), -1).reshape(6, 2)
    np.save(tmp_path / "places.npy", places)
    sizes = {"mrad_per_px": 4.0, "energy_keV": 80.0, **CELL}
    scan = {"step_A": [0.9, 0.7], "origin_A": [0.5, 0.3]}
    _, there, seen = structure.load(tmp_path / "scan.npy", **scan, **sizes)
    for given in (places.tolist(), str(tmp_path / "places.npy")):
        options, listed, same = structure.load(tmp_path / "list.npy", places_A=given, **sizes)
        assert options["kind"] == "stem" and same.shape == (6, 1, *seen.shape[2:])
        np.testing.assert_allclose(listed.position_A[:, 0], there.position_A.reshape(6, 2))
        np.testing.assert_array_equal(same[:, 0], seen.reshape(same.shape[:1] + same.shape[2:]))


def test_an_image_does_not_depend_on_the_size_of_the_box():
    """The aperture ends between the beams of one cell, and one box of two is the same crystal."""
    images = []
    for tile in ([1, 1, 1], [2, 1, 1]):
        problem = structure.problem("hrtem", tile=tile, moments=0, sampling_A=0.22, images=1)
        along = jnp.asarray(0.5 * np.arange(6))
        images.append(problem.forward(Series(jnp.asarray([50.0]), along, along)))
    np.testing.assert_allclose(*images, rtol=1e-3)


@pytest.mark.slow
def test_what_is_held_has_no_error(stem):
    """And what is not fitted is compared and shown all the same."""
    problem, truth, x, y = stem
    held = problem.given({"forward.crystal.shift_A": None, "forward.crystal.occupancy": None})
    found = solve(structure, held, x, y, key=jax.random.key(0), steps=1)
    assert np.isnan(found.table[0]["x_sd_A"]) and np.isnan(found.table[1]["occupancy_sd"])
    rows = structure.compare(found, x, y, truth)
    assert {"u_A2", "shift_A, the start"} <= {row["quantity"] for row in rows}
