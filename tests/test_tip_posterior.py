"""The tip from a known characteriser: multistart finds its basin, NUTS its error bars."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import micjax
from micjax.inference.errors import estimates
from micjax.inference.errors.laplace import laplace
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import Double
from micjax.problems import tip_characteriser as tc
from micjax.problems.tip_characteriser.conclusion import characterised, touched
from micjax.problems.tip_characteriser.stages import screened_starts, spread_starts


@pytest.fixture(scope="module")
def scan():
    return tc.example(jax.random.key(3))


@pytest.fixture(scope="module")
def fitted(scan):
    """From the truth and from one draw of the priors."""
    truth, x, y = scan
    engine = {"draws": 2, "starts": 2, "chains": 0}
    return micjax.solve(tc, truth, x, y, key=jax.random.key(4), **engine)


@pytest.fixture(scope="module")
def sd(scan, fitted):
    """Standard deviations by Laplace, which has no part in the sampling."""
    _, x, y = scan
    return laplace(fitted.problem, x, y).sd()


@pytest.mark.slow
def test_the_tip_lies_within_its_errors(scan, fitted, sd):
    truth, _, _ = scan
    good = fitted.extra["good"]
    assert f"{good.sum()} of 2 starts" in fitted.statements[0]
    near(truth, fitted, sd)


def near(truth, fitted, sd):
    for name, value in truth.values().items():
        error = np.abs(np.asarray(fitted.problem.values()[name] - value))
        assert (error < 4 * sd[name]).all(), name


@pytest.mark.slow
def test_multistart_finds_the_tip_and_sets_wrong_basins_aside(scan):
    """From draws of the priors as they come, so that some end in wrong basins."""
    truth, x, y = scan
    engine = {"draws": 12, "starts": 12, "chains": 0}
    fitted = micjax.solve(tc, tc.problem(), x, y, key=jax.random.key(4), **engine)
    good, losses = fitted.extra["good"], fitted.fit.starts_losses
    assert good.sum() >= 2
    assert np.ptp(losses[good]) < 0.1
    assert (losses[~good] > losses.min() + 100).all()
    assert f"{good.sum()} of 12 starts" in fitted.statements[0]
    near(truth, fitted, laplace(fitted.problem, x, y).sd())


@pytest.mark.slow
def test_chains_start_wider_than_the_posterior(scan, fitted, sd):
    _, x, y = scan
    starts = spread_starts(fitted.fit, x, y, jax.random.key(5), 40)
    for name in ("forward.tip.radius_nm", "forward.tip.offset_nm", "noise.sigma"):
        spread = np.std([np.asarray(s[name]) for s in starts], axis=0)
        assert (spread > 2 * sd[name]).all() and (spread < 4 * sd[name]).all(), name


@pytest.mark.slow
def test_screening_keeps_the_given_values_and_the_smallest_residuals(scan):
    truth, x, y = scan
    starts = screened_starts(jax.random.key(6), truth, x, y, draws=32, n=4)
    assert len(starts) == 4
    assert starts[0]["forward.tip.radius_nm"] == truth.values()["forward.tip.radius_nm"]
    rms = [float(jnp.std(y - truth.at(s).forward(x))) for s in starts[1:]]
    assert rms == sorted(rms)


@pytest.mark.slow
def test_report_of_the_fits_alone(scan, fitted):
    truth, x, y = scan
    rows = {r["quantity"]: r for r in tc.compare(fitted, x, y, truth)}
    ours, classical = (
        next(r["rms error (nm)"] for n, r in rows.items() if name in n)
        for name in ("micjax", "classical")
    )
    assert ours < 0.2 * classical
    for known in (truth, None):
        for title, make in tc.figures(fitted, x, y, known).items():
            assert make().get_label(), title


@pytest.mark.slow
def test_draws_with_known_noise_reach_the_report(scan, monkeypatch):
    truth, x, y = scan
    given = truth.given({"noise.sigma": None})

    def gaussian(problem, x, y, key, *, samples, chains, **_):
        flat = laplace(problem, x, y).sample(key, chains * samples)
        draws = {n: d.reshape(chains, samples, *d.shape[1:]) for n, d in flat.items()}
        return micjax.Posterior(draws)

    monkeypatch.setattr(estimates, "nuts", gaussian)
    engine = {"draws": 2, "starts": 2, "steps": 100, "chains": 2, "samples": 50}
    solution = micjax.solve(tc, given, x, y, key=jax.random.key(7), **engine)
    assert solution.results["tip"].metadata["errors"].shape == (17, 17)
    rows = tc.compare(solution, x, y, given)
    assert rows[0]["z"] == pytest.approx((rows[0]["mean"] - rows[0]["truth"]) / rows[0]["sd"])
    assert tc.figures(solution, x, y, given)["Place of the second apex"]().get_label()
    assert "2 chains of 50 draws" in " ".join(solution.statements)


def test_cones():
    cones = np.asarray(tc.sharp_cones(48, 96, (1.0, 0.5), 24.0, 12.0, 45.0))
    peaks = np.argwhere(cones == 12.0)
    assert peaks.tolist() == [[12, 24], [12, 72], [36, 24], [36, 72]]
    assert cones[12, 26] == pytest.approx(11.0) and cones[0, 0] == 0.0


def test_the_classical_tip_is_exact_without_noise_where_it_touches(scan):
    truth, x, _ = scan
    forward = truth.forward
    touching = touched(forward, x)
    tip = np.asarray(forward.tip())
    classical = characterised(forward(x)[0], forward.surface_nm[0], tip.shape)
    np.testing.assert_allclose(np.asarray(classical)[touching], tip[touching], atol=1e-12)
    assert (np.asarray(classical) >= tip - 1e-12).all()
    assert 0.2 < touching.mean() < 0.9


def test_labels_of_the_apexes_are_exchangeable_only_without_drop():
    moved = jnp.array([2.0, 3.0])
    one = Double(3.0, 18.0, moved, 0.0, size=17)
    other = Double(3.0, 18.0, -moved, 0.0, origin_nm=moved, size=17)
    np.testing.assert_allclose(one(), other(), atol=1e-12)
    with pytest.raises(ValueError, match="must not be negative"):
        Double(3.0, 18.0, -moved, -1.0, size=17)


def test_a_file_with_its_characteriser(tmp_path, scan):
    truth, x, y = scan
    surface = np.asarray(truth.forward.surface_nm[0])
    np.save(tmp_path / "scan.npy", np.asarray(y[0]) + 100.0)
    np.save(tmp_path / "known.npy", surface)
    options, x, image = tc.load(
        tmp_path / "scan.npy", characteriser=str(tmp_path / "known.npy"), pixel_nm=1.0
    )
    problem = tc.problem(**options)
    np.testing.assert_array_equal(problem.forward.surface_nm[0], surface)
    assert image.shape == (1, 48, 48) and abs(float(jnp.mean(image - y))) < 0.5
    assert {"forward.tip.origin_nm", "forward.height_nm"} <= set(problem.priors)
    np.testing.assert_allclose(
        problem.forward(x)[0], dilate(jnp.asarray(surface), problem.forward.tip())
    )
    with pytest.raises(ValueError, match="pixels, the scan has"):
        tc.problem(**(options | {"ny": 50}))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tip_size": 16}, "odd"),
        ({"ny": 9}, "larger than the image"),
        ({"sigma_nm": 0.0}, "sigma_nm = 0.0: must be positive"),
        ({"pixel_nm": [1.0, -1.0]}, "pixel_nm"),
        ({"cone_half_angle_deg": 90.0}, "between 0 and 90"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        tc.problem(**options)


@pytest.mark.slow
def test_posterior_holds_the_truth():
    """The bar: truth within 3 sd, r_hat below 1.01 from spread starts, no divergences."""
    path = pathlib.Path(__file__).parents[1] / "experiments" / "tip_posterior" / "run.py"
    spec = importlib.util.spec_from_file_location("tip_posterior_run", path)
    experiment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiment)
    line = experiment.run(0, 96, draws=256, starts=12, chains=4, samples=1000, warmup=500)
    assert line["starts_in_best_basin"] >= 2
    assert line["worst_z"] < 3
    assert line["worst_r_hat"] < 1.01
    assert line["divergences"] == 0
