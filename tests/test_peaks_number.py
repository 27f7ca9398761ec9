"""How many peaks a pixel has, by the evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax.inference.maps.each import one_pixel
from micjax.inference.maps.fit import fit_map
from micjax.inference.runner import solve
from micjax.problems import peaks
from micjax.problems.peaks.number import _places
from micjax.problems.peaks.stages import several_starts, stages

X = np.linspace(0.0, 10.0, 60)
ENERGY = jnp.asarray(X)
AXIS = {"signal_low": 0.0, "signal_high": 10.0, "signal_step": X[1]}
COUNT = np.array([[0, 1, 1, 2], [1, 1, 2, 2]])


def line(height, centre):
    return height[..., None] * np.exp(-4.0 * np.log(2.0) * (X - centre) ** 2)


def data():
    """A peak at 3, and where there are two a weaker one on its shoulder; a dead pixel."""
    mean = 5.0 + line(90.0 * (COUNT > 0), 3.0) + line(50.0 * (COUNT > 1), 4.3)
    y = mean + 5.0 * np.random.default_rng(1).normal(size=mean.shape)
    y[1, 0] = np.nan
    return y


@pytest.fixture(scope="module")
def problem():
    return of_size(1.0)


def of_size(scale):
    size = {"level": 100.0 * scale, "sigma": 5.0 * scale, "noise": "normal"}
    return peaks.problem(2, 4, peaks=[0, 1, 2], **size, **AXIS)


@pytest.fixture(scope="module")
def solution(problem):
    return solve(peaks, problem, ENERGY, jnp.asarray(data()), key=jax.random.key(0), neighbours=0)


def test_the_evidence_chooses_the_number(solution):
    number = solution.results["number_of_peaks"].data
    expected = np.where(np.isnan(data()[..., 0]), np.nan, COUNT)
    np.testing.assert_array_equal(number, expected)
    probability = solution.results["number_probability"].data
    there = np.isfinite(expected)
    assert (probability[there] > 0.5).all() and np.isnan(probability[1, 0])
    ambiguous = solution.results["number_ambiguous"].data
    np.testing.assert_array_equal(ambiguous[there], probability[there] < 0.9)
    assert solution.statements[0].startswith("Peaks, by the evidence: 0 in 1, 1 in 3, 2 in 3")


def test_a_line_that_is_not_there_has_no_value(solution, problem):
    for name, least, place in (("peak_1", 1, 3.0), ("peak_2", 2, 4.3)):
        centre = solution.results[f"{name}.centre"]
        there = (COUNT >= least) & np.isfinite(data()[..., 0])
        np.testing.assert_array_equal(np.isfinite(centre.data), there)
        off = (centre.data - place)[there]
        assert (np.abs(off) < 4.0 * centre.metadata["errors"][there]).all()
        area = solution.results[f"{name}.area"]
        np.testing.assert_array_equal(np.isfinite(area.metadata["errors"]), there)
    # what the model says has no line either
    prediction = np.asarray(solution.problem.forward(ENERGY))
    assert np.ptp(prediction[0, 0]) < 1e-3 < np.ptp(prediction[0, 1])
    assert set(peaks.figures(solution, X, data())) >= {"Number of peaks", "Maps"}


def test_what_is_fitted_of_some_numbers_is_kept(problem):
    """Broken off after the fits without and with one peak: the same answer."""
    y = data()
    (search,) = stages(problem, ENERGY, jnp.asarray(y), neighbours=0)

    def run(before, most=None):
        steps = []
        for arrays in search.work(problem, X, y, None, lambda *_: None, before):
            steps.append(arrays)
            if most is not None and any(n.startswith(most) for n in arrays):
                break
        return len(steps), {n: np.array(a) for n, a in steps[-1].items()}

    whole_steps, whole = run({})
    _, part = run({}, "1 lines: ")
    # as a file gives them back
    steps, again = run({n: part[n] for n in sorted(part)})
    assert steps < whole_steps
    assert sorted(again) == sorted(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    with pytest.raises(ValueError, match="peak_2 has another prior"):
        moved = {"forward.pixel.peak_2.centre": dist.Normal(5.0, 1.0)}
        list(search.work(problem.given(moved), X, y, None, lambda *_: None, {}))


def test_lines_stand_where_those_of_other_pixels_are():
    nan = np.nan
    centres = np.array(
        [
            [6.0, 2.0, nan],
            [2.1, 6.1, nan],
            [6.2, nan, nan],
            [nan, nan, nan],
            [9.0, 2.0, 6.0],
            [0.5, 6.1, 2.2],
        ]
    )
    ordered = np.take_along_axis(centres, _places(centres), axis=-1)
    expected = [
        [2.0, 6.0, nan],
        [2.1, 6.1, nan],
        [nan, 6.2, nan],
        [nan, nan, nan],
        [2.0, 6.0, 9.0],
        [2.2, 6.1, 0.5],
    ]
    np.testing.assert_array_equal(ordered, expected)


def test_numbers_that_cannot_be_chosen(problem):
    for wrong in ([2], [0, 1], [-1, 2]):
        with pytest.raises(ValueError, match="two numbers or more are needed to choose from"):
            peaks.problem(peaks=wrong, background="none")
    with pytest.raises(ValueError, match="centres go with one number"):
        peaks.problem(peaks=[1, 2], centres=[1.7, 1.9])
    with pytest.raises(ValueError, match="peaks = 0: must be positive"):
        peaks.problem(peaks=0)
    with pytest.raises(ValueError, match="go with one number of peaks"):
        stages(problem, ENERGY, jnp.asarray(data()), smooth=["peak_1.centre"])


def test_data_of_any_size_have_the_same_number(solution):
    scale = 1e-9
    y = jnp.asarray(data() * scale)
    tiny = solve(peaks, of_size(scale), ENERGY, y, key=jax.random.key(0), neighbours=0)
    for name in ("number_of_peaks", "number_probability", "peak_2.centre"):
        np.testing.assert_allclose(
            tiny.results[name].data, solution.results[name].data, rtol=1e-3, err_msg=name
        )
    ratio = tiny.results["peak_1.area"].data / solution.results["peak_1.area"].data
    np.testing.assert_allclose(ratio[COUNT > 0][np.isfinite(ratio[COUNT > 0])], scale, rtol=1e-3)


def test_lines_of_a_truth_are_called_as_those_of_an_estimate():
    truth, _, _ = peaks.example(jax.random.key(0), ny=2, nx=3)
    of = "forward.pixel.peak_{}.{}"
    values = truth.values()
    swapped = {
        of.format(i, k): values[of.format(3 - i, k)]
        for i in (1, 2)
        for k in ("centre", "fwhm", "height")
    }
    again = peaks.renamed(truth.at(swapped), truth).values()
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value)
    apart = peaks.problem(ny=2, nx=3, centres=[1.9, 2.1])
    assert peaks.renamed(apart, apart) is apart


def test_a_broad_line_beside_a_narrow_one_is_found():
    """It is no maximum."""
    rng = np.random.default_rng(6)
    x = np.linspace(0.0, 10.0, 64)
    centre, narrow = rng.uniform(3.0, 7.0, (2, 30, 1))
    y = 60.0 * np.exp(-(((x - centre) / 2.5) ** 2)) + 150.0 * np.exp(-(((x - narrow) / 0.35) ** 2))
    y = rng.poisson(y + 10.0).astype(float)
    of = peaks.problem(
        1, 30, peaks=2, level=200.0, signal_low=0.0, signal_high=10.0, signal_step=10 / 63
    )
    pixel, _ = one_pixel(of)
    heights = [f"forward.peak_{i}.height" for i in (1, 2)]
    maxima, both = (
        fit_map(pixel, jnp.asarray(x), y, starts=guess, linear=heights).loss
        for guess in (peaks.starts, several_starts)
    )
    assert (both < maxima + 0.01).all() and np.sum(both < maxima - 5.0) > 3
