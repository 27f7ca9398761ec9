"""The tip problem: bad input is refused in one line, a known tip gives its surface back."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import micjax
from micjax.physics.tips.blind.search import BlindTip
from micjax.physics.tips.dilation import dilate, erode
from micjax.physics.tips.shapes import Double, SphereCone
from micjax.problems import tip as module
from micjax.problems.tip.conclusion import _borne_out, _statements
from micjax.problems.tip.stages import Found


def write(path, heights, pixel_nm=2.0):
    np.savez(path, height=heights, pixel_nm=pixel_nm)
    return path


@pytest.fixture(scope="module")
def truth():
    surface = module.particles(jax.random.key(1), 48, 48, 2.0)
    tip = SphereCone(8.0, 22.0, 2.0, 11)()
    noise = 0.15 * jax.random.normal(jax.random.key(2), surface.shape)
    return surface, tip, dilate(surface, tip) + noise


def test_a_file_becomes_a_problem(tmp_path, truth):
    options, x, y = module.load(str(write(tmp_path / "scan.npz", truth[2])))
    assert options["pixel_nm"] == [2.0, 2.0] and options["tip_size"] == 15
    assert abs(options["sigma_nm"] - 0.15) < 0.05
    problem = module.problem(**options)
    assert problem.forward(x).shape == y.shape


def nan(image):
    return np.where(np.arange(image.size).reshape(image.shape) == 5, np.nan, image)


BAD = {
    "nan": (lambda i: nan(i), {}, "NaN|finite"),
    "constant": (lambda i: np.ones_like(i), {}, "constant"),
    "small": (lambda i: i[:6, :6], {}, "too small"),
    "even tip": (lambda i: i, {"tip_size": 12}, "odd"),
    "large tip": (lambda i: i, {"tip_size": 51}, "larger than the image"),
    "pixel size": (lambda i: i, {"pixel_nm": 3.0}, "pixel"),
    "channel": (lambda i: i, {"channel": "phase"}, "phase"),
    "sigma": (lambda i: i, {"sigma_nm": -1.0}, "sigma_nm"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_computed(tmp_path, truth, name):
    change, given, message = BAD[name]
    path = write(tmp_path / "scan.npz", change(np.asarray(truth[2])))
    with pytest.raises(ValueError, match=message):
        options, _, _ = module.load(str(path), **given)
        module.problem(**options)


def test_no_pixel_size(tmp_path, truth):
    np.save(tmp_path / "scan.npy", truth[2])
    with pytest.raises(ValueError, match="pixel size"):
        module.load(str(tmp_path / "scan.npy"))


@pytest.mark.parametrize(
    "shape, pixel_nm, message",
    [((11, 11), 1.0, "resample"), ((10, 10), 2.0, "odd"), ((51, 51), 2.0, "smaller than the tip")],
)
def test_a_known_tip_must_fit(tmp_path, truth, shape, pixel_nm, message):
    scan = write(tmp_path / "scan.npz", truth[2])
    heights = -np.hypot(*np.meshgrid(np.arange(shape[1]), np.arange(shape[0])))
    known = write(tmp_path / "tip.npz", heights, pixel_nm)
    with pytest.raises(ValueError, match=message):
        module.load(str(scan), known_tip=str(known))


@pytest.mark.parametrize(
    "change, message",
    [(lambda t: -t, "apex down"), (lambda t: 1e-9 * t, "metres|nm high"), (lambda t: t, None)],
)
def test_a_known_tip_apex_down_or_in_metres_is_refused(truth, change, message):
    heights = change(np.asarray(truth[1]))
    options = {"ny": 48, "nx": 48, "tip_heights_nm": (heights - heights.max()).tolist()}
    if message is None:
        module.problem(**options)
        return
    with pytest.raises(ValueError, match=message):
        module.problem(**options)


def test_what_is_not_identified_is_not_called_measured():
    shape = Double(4.0, 25.0, (0.0, 3.0), 1.0, (0.0, 0.0), 2.0, (5, 5))
    numbers = {"classical_nm": shape(), "double": False, "free_form": True}
    numbers |= {"corroborated": 1.0, "bound_nm": shape()}

    def told(passes, bluntness, doubt=None):
        estimate = Found(shape, shape(), **numbers, passes=passes, bluntness=bluntness)
        return " ".join(_statements(estimate, 0.3, 0.5, doubt))

    assert "30 % of the surface is measured" in told(True, 3.0)
    assert "NOT IDENTIFIED" not in told(True, 3.0)
    assert "Nothing is called measured" in told(True, 3.0, "a reason")
    assert "% of the surface is measured" not in told(True, 3.0, "a reason")
    for passes, bluntness in ((False, 3.0), (True, 0.05)):
        text = told(passes, bluntness)
        assert text.startswith("NOT IDENTIFIED") and "%" not in text and "identified" not in text


@pytest.mark.parametrize(
    "corroborated, sharp, kept", [(1.0, False, 49), (0.2, True, 49), (0.2, False, 0)]
)
def test_an_unknown_tip_must_be_borne_out(corroborated, sharp, kept):
    shape = Double(4.0, 25.0, (0.0, 3.0), 1.0, (0.0, 0.0), 2.0, (5, 5))
    bound = jnp.full((5, 5), -100.0 if sharp else 0.0).at[2, 2].set(0.0)
    clean = jnp.asarray(np.random.default_rng(100).normal(0.0, 10.0, (1, 9, 9)))
    numbers = {"double": False, "free_form": False, "passes": True, "bluntness": 2.0}
    estimate = Found(shape, shape(), shape(), **numbers, corroborated=corroborated, bound_nm=bound)
    sure = jnp.zeros((1, 9, 9), bool).at[:, 1:-1, 1:-1].set(True)
    left, doubt = _borne_out(sure, clean, estimate, 0.1, 0.0)
    assert int(left.sum()) == kept and (doubt is None) is (kept > 0)
    assert doubt is None or "20 %" in doubt
    # behind a feedback loop nothing is
    behind, lags = _borne_out(sure, clean, estimate, 0.1, 0.4)
    assert not behind.any() and "a correlation of 0.40" in lags


def test_a_reflected_tip_is_turned(tmp_path, truth):
    scan = write(tmp_path / "scan.npz", truth[2])
    known = write(tmp_path / "tip.npz", np.arange(-120.0, 1.0).reshape(11, 11))
    plain = module.load(str(scan), known_tip=str(known))[0]["tip_heights_nm"]
    turned = module.load(str(scan), known_tip=str(known), tip_reflected=True)[0]["tip_heights_nm"]
    np.testing.assert_array_equal(np.array(plain)[::-1, ::-1], turned)


@pytest.mark.parametrize(
    "options", [{"tip_size": 4}, {"pixel_nm": -1.0}, {"sigma_nm": 0.0}, {"tip_size": 129}]
)
def test_bad_options(options):
    with pytest.raises(ValueError):
        module.problem(**options)


def test_a_prior_on_nothing():
    with pytest.raises(ValueError, match="radius_nm"):
        problem = module.problem(ny=24, nx=24, tip_size=5)
        problem.given({"forward.tip.radius_nm": micjax.free()})


@pytest.mark.slow
def test_with_a_known_tip(truth, tmp_path):
    surface, tip, image = truth
    options = {"ny": 48, "nx": 48, "sigma_nm": 0.15, "tip_heights_nm": np.asarray(tip).tolist()}
    x, y = jnp.arange(1), image[None]
    problem = module.problem(**options)
    solution = micjax.solve(module, problem, x, y, key=jax.random.key(0), steps=200)
    results = {n: f.data for n, f in solution.results.items()}
    inside = (slice(6, -6), slice(6, -6))

    def rms(estimate):
        return float(np.sqrt(np.mean((estimate - surface)[inside] ** 2)))

    assert rms(results["surface"]) < 0.7 * rms(image)
    assert rms(results["surface"]) < 1.02 * rms(np.asarray(erode(image, tip)))
    assert np.all(results["upper_bound"] >= results["surface"] - 1e-9)
    sure = results["certain"].astype(bool)[inside]
    error = np.abs(results["surface"] - surface)[inside][sure]
    assert sure.any() and np.mean(error < 3 * 0.15) >= 0.98
    micjax.save(tmp_path / "values.h5", solution.problem, "micjax.problems.tip", options)
    again = micjax.load(tmp_path / "values.h5")
    np.testing.assert_allclose(again.forward(x), solution.problem.forward(x))


@pytest.mark.slow
def test_line_offsets_are_taken_off(truth):
    _, tip, image = truth
    lines = 1.5 * jax.random.normal(jax.random.key(3), (48,))
    problem = module.problem(
        1, 48, 48, sigma_nm=0.15, tip_heights_nm=np.asarray(tip).tolist(), line_sigma_nm=1.5
    )
    y = (image + lines[:, None])[None]
    solution = micjax.solve(module, problem, jnp.arange(1), y, key=jax.random.key(0), steps=200)
    found = solution.problem.forward.line_offsets_nm[0]
    off = np.asarray(found - lines)
    assert np.std(off - off.mean()) < 0.5 * np.std(lines)


def some_tip(size, pixel_nm) -> BlindTip:
    """Its apex off the middle."""
    shape = Double(4.0, 25.0, (0.0, 3.0), 1.0, (2.0, 0.0), pixel_nm, size)
    numbers = {"misfit": 1.0, "floor": 1.0, "bluntness": 0.5, "singles": None}
    numbers |= {"corroborated": 1.0, "bound_nm": shape()}
    return BlindTip(shape(), shape, False, True, True, classical_nm=jnp.zeros(size), **numbers)


@pytest.mark.slow
def test_a_resumed_fit_does_not_search_the_tip_again(tmp_path, monkeypatch):
    _, x, y = module.example(jax.random.key(3), 16, 16, 2.0, 5)
    problem, searched = module.problem(1, 16, 16, 2.0, 5), []

    def improving(images, sigma_nm, pixel_nm, size, key, **_):
        searched.append(key)
        yield some_tip(size, pixel_nm)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["micjax.problems.tip.stages"], "improving", improving)
    key, file = jax.random.key(0), tmp_path / "checkpoint.h5"

    def solved(**how):
        return micjax.solve(module, problem, x, y, key=key, checkpoint=file, steps=60, **how)

    assert solved(on_chunk=stop).fit.stop_reason == "interrupted"
    again = solved(resume=True)
    assert len(searched) == 1 and again.fit.steps == 60
    whole = solved()
    for name, value in whole.problem.values().items():
        np.testing.assert_array_equal(again.problem.values()[name], value, err_msg=name)
    assert again.problem.forward.tip().shape == (7, 5)  # its apex in the middle
    assert "Blind estimate of the tip: radius 4 nm" in again.statements[0]


def test_an_interrupted_search_gives_the_best_tip_so_far(monkeypatch):
    _, x, y = module.example(jax.random.key(3), 16, 16, 2.0, 5)
    problem = module.problem(1, 16, 16, 2.0, 5)

    def improving(images, sigma_nm, pixel_nm, size, key, **_):
        yield some_tip(size, pixel_nm)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["micjax.problems.tip.stages"], "improving", improving)
    solution = micjax.solve(module, problem, x, y, key=jax.random.key(0))
    assert solution.fit.stop_reason == "interrupted"
    tip = solution.problem.forward.tip()
    assert tip.shape == (7, 5) and solution.converged is not True
    expected = erode(y[0], tip)
    np.testing.assert_allclose(solution.problem.forward.surface_nm[0], expected, atol=1e-6)
    assert "Blind estimate of the tip: radius 4 nm" in solution.statements[0]
    assert any("The classical estimate is flat" in s for s in solution.statements)


def test_images_of_one_tip_from_several_files(tmp_path, truth):
    files = [write(tmp_path / f"{n}.npz", n * np.asarray(truth[2])) for n in (1, 2)]
    options, x, y = module.load(str(files[0]), also=[str(files[1])])
    assert options["frames"] == 2 and y.shape == (2, 48, 48) and list(x) == [0, 1]
    np.testing.assert_allclose(y[1], 2 * y[0], atol=1e-9)
    assert module.problem(**options).forward(x).shape == y.shape
    other = write(tmp_path / "other.npz", np.asarray(truth[2])[:40])
    with pytest.raises(ValueError, match=r"other.npz: \(40, 48\) pixels .* must be alike"):
        module.load(str(files[0]), also=[str(other)])
