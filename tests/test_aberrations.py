"""The aberrations of a probe from a defocus series: what the likelihoods know, and a fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.core.coordinates import Coordinates
from micjax.inference.errors.laplace import laplace
from micjax.inference.runner import solve
from micjax.inference.solve import fit, fit_stages
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.io import Field, FieldAxis, write_nexus
from micjax.physics.electrons import optics
from micjax.problems import aberrations
from micjax.problems.aberrations.stages import (
    CHUNK,
    DRIFT,
    ERROR,
    TOLERANT,
    left_over,
    odd_times,
    registered,
    stages,
    without_phases,
)

N = 96


@pytest.fixture(scope="module")
def series():
    return aberrations.example(jax.random.key(3), N, N, 400.0)


def test_a_drift_moves_the_image_and_nothing_else(series):
    truth, x, _ = series
    moved_A = truth.forward.sampling_A * jnp.array([[3.0, -2.0], [0.0, 0.0], [0.0, 5.0]])
    forward = eqx.filter_jit(lambda problem: problem.forward(x))
    still, there = (forward(truth.at({DRIFT: d})) for d in (jnp.zeros((3, 2)), moved_A))
    np.testing.assert_allclose(there[0], still[0], atol=1e-9)
    np.testing.assert_allclose(there[1], np.roll(still[1], (3, -2), (0, 1)), atol=1e-7)
    np.testing.assert_allclose(there[3], np.roll(still[3], (0, 5), (0, 1)), atol=1e-7)


@pytest.mark.slow
def test_a_focal_spread_is_the_mean_over_many_foci(series):
    x = series[1]
    spread_A = 20.0
    problem = aberrations.problem(4, N, N, focal_spread_A=spread_A)
    assert problem.forward.foci > 1
    wavelength = optics.wavelength_A(200.0)
    angles = optics.angles_mrad((N, N), 0.25, wavelength)
    foci = np.linspace(-3.5, 3.5, 141)
    weights = np.exp(-(foci**2)) / np.exp(-(foci**2)).sum()

    @jax.jit
    def probes(C10):
        return optics.probe_intensity(angles, 25.0, {"C10": C10}, wavelength)

    expected = sum(w * probes(-50.0 + spread_A * f) for f, w in zip(foci, weights, strict=True))
    np.testing.assert_allclose(problem.forward(x)[1], expected, atol=1e-3 * expected.max())


def test_without_phases_neither_drift_nor_a_mirror_counts(series):
    truth, x, y = series
    law = without_phases(truth).noise

    @eqx.filter_jit
    def loss(problem, y):
        return -law(problem.forward(x)).log_prob(y)

    at = truth.at({DRIFT: jnp.zeros((3, 2))})
    np.testing.assert_allclose(loss(at.at(odd_times(-1.0, at)), y), loss(at, y), rtol=1e-9)
    # in nats: the window leaks a little more of images that are not registered
    assert abs(loss(truth, y) - loss(at, y)) < 0.5
    turned = truth.at({"forward.aberrations_A.C10": -truth.forward.aberrations_A["C10"] - 40.0})
    assert loss(turned, y) > loss(at, y) + 10.0


def test_images_are_registered_to_a_pixel_or_two(series):
    truth, x, y = series
    tolerant = truth.given({ERROR: TOLERANT}).at({ERROR: 0.3, DRIFT: jnp.zeros((3, 2))})
    found = registered(tolerant, x, y).forward.drift_A
    np.testing.assert_allclose(found, truth.forward.drift_A, atol=0.6)
    assert np.abs(truth.forward.drift_A).max() > 1.0


@pytest.fixture(scope="module")
def amorphous(series):
    """Images by the law itself, of an object with fine detail everywhere."""
    truth, x, _ = series
    truth = truth.at({"noise.particles": 300.0, "noise.atoms": 100.0, "noise.scatter": 0.5})
    return truth, x, truth.noise(truth.forward(x)).sample(jax.random.key(5))


def errors_A(values, truth):
    error = {
        c: float(values[n] - truth.values()[n])
        for c, n in zip(aberrations.FOUND, aberrations.NAMES, strict=True)
    }
    return max(map(abs, aberrations.defocus_A(error, 25.0).values()))


@pytest.mark.slow
def test_lbfgs_scales_what_may_be_any_number_and_finds_the_way(amorphous):
    truth, x, y = amorphous
    coordinates = Coordinates(truth)
    by_name = coordinates.theta(coordinates.widths())
    assert by_name["forward.aberrations_A.C30"] == pytest.approx(3e4)
    assert by_name["noise.particles"] == 1.0 and by_name["noise.scatter"] == 1.0
    near = truth.at({n: 0.8 * truth.values()[n] for n in aberrations.NAMES})
    begin = errors_A(near.values(), truth)
    end = fit(near, x, y, LBFGS(), steps=80).problem.values()
    assert begin > 15.0 and errors_A(end, truth) < 10.0
    np.testing.assert_allclose(end[DRIFT], truth.forward.drift_A, atol=0.3)
    sd = laplace(near.at(end), x, y).sd()
    z = [float((end[n] - truth.values()[n]) / sd[n]) for n in aberrations.NAMES]
    assert np.abs(z).max() < 4.0 and 0.4 < np.std(z) < 2.0
    left = np.asarray(left_over(near.at(end), x, y))
    assert left.shape == y.shape and 0.5 < left.std() < 1.2


@pytest.mark.slow
def test_the_truth_comes_back_from_nowhere(amorphous):
    truth, x, y = amorphous
    problem = aberrations.problem(4, N, N, mean_counts=400.0)
    best = fit_stages(problem, x, y, stages(problem, x, y)[:-1])
    assert best.loss == min(best.starts_losses)
    assert errors_A(best.problem.values(), truth) < 10.0


@pytest.mark.slow
def test_an_interrupted_fit_keeps_where_it_had_come_to(series):
    truth, x, y = series

    def stop(done, loss, values):
        raise KeyboardInterrupt

    problem = aberrations.problem(4, N, N, mean_counts=400.0)
    best = fit_stages(problem, x, y, stages(problem, x, y)[:-1], on_chunk=stop)
    assert best.stop_reason == "interrupted" and best.steps == CHUNK
    assert best.problem.forward.aberrations_A["C10"] != problem.forward.aberrations_A["C10"]
    np.testing.assert_array_equal(best.problem.noise.model_error, problem.noise.model_error)


def test_images_that_are_not_those_of_the_problem(series):
    _, x, y = series
    for images in (y[:3], y[:, :-1]):
        with pytest.raises(ValueError, match="the problem has 4|the data have the shape"):
            solve(aberrations, aberrations.problem(4, N, N), x, images, key=jax.random.key(0))


def test_an_aberration_as_a_defocus():
    wavelength = optics.wavelength_A(200.0)
    edge = jnp.array([[0.0]]), jnp.array([[25.0]])
    for name in ("C21a", "C30", "C34a"):
        equal_A = aberrations.defocus_A({name: 1e4}, 25.0)[name]
        np.testing.assert_allclose(
            optics.chi(edge, {name: 1e4}, wavelength),
            optics.chi(edge, {"C10": equal_A}, wavelength),
            rtol=1e-5,
        )


@pytest.mark.slow
def test_images_of_odd_sizes_have_them():
    assert aberrations.example(jax.random.key(0), 33, 32)[2].shape == (4, 33, 32)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampling_A": 0.0}, "sampling_A = 0.0: must be positive"),
        ({"sampling_A": 0.6}, "needs pixels of 0.5016 Å at most"),
        ({"images": 1}, "has two at least"),
        ({"focal_spread_A": 200.0}, "at most 42.4 Å"),
        ({"drift_sd_A": -1.0}, "must not be negative"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        aberrations.problem(**options)


def stack(tmp_path, data, focus=("defocus", "nm"), unit="nm", dx=0.02, dy=0.02):
    count, ny, nx = data.shape
    axes = (
        FieldAxis(focus[0], 5.0 * np.arange(count) - 5.0, focus[1]),
        FieldAxis("y", dy * np.arange(ny), unit),
        FieldAxis("x", dx * np.arange(nx), unit),
    )
    write_nexus(tmp_path / "stack.nxs", {"haadf": Field(data, axes, "", "haadf")})
    return tmp_path / "stack.nxs"


def test_a_file_in_any_unit_tells_its_noise(tmp_path):
    counts = np.random.default_rng(0).poisson(50.0, (3, 64, 48))
    options, x, y = aberrations.load(stack(tmp_path, 0.01 * counts - 3.0))
    assert (options["images"], options["ny"], options["nx"]) == (3, 64, 48)
    assert options["sampling_A"] == pytest.approx(0.2)
    assert options["mean_counts"] == pytest.approx(50.0 * 0.01**2, rel=0.1)
    np.testing.assert_allclose(x.settings_A[:, 0], [50.0, 0.0, -50.0], atol=1e-4)
    aberrations.problem(**options)


@pytest.mark.parametrize(
    "given, options, message",
    [
        ({"focus": ("frame", "")}, {}, "C10 or defocus: set changes_A"),
        ({}, {"changes_A": [1.0]}, "1 values for 3 images"),
        ({}, {"changes_A": [1.0, 1.0, 1.0]}, "not all the same"),
        ({}, {"changes_A": [1.0, float("nan"), 0.0]}, "finite values are needed"),
        ({"unit": "px"}, {}, "no pixel size in the file"),
        ({"dx": 0.03}, {}, "are not square"),
        ({}, {"semiangle_mrad": 60.0}, "are no counted electrons"),
        ({"unit": "px", "dx": 1.0, "dy": 1.0}, {"pixel_nm": 0.09}, "needs pixels"),
    ],
)
def test_bad_files_are_named(tmp_path, given, options, message):
    data = np.random.default_rng(0).normal(0.0, 1.0, (3, 16, 16))
    with pytest.raises(ValueError, match=message):
        aberrations.load(stack(tmp_path, data, **given), **options)


def test_what_is_no_stack(tmp_path):
    data = np.ones((3, 16, 16))
    with pytest.raises(ValueError, match="image 0 is the same everywhere"):
        aberrations.load(stack(tmp_path, data))
    data[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 values are not finite"):
        aberrations.load(stack(tmp_path, data))
