"""Maps as inverse problems: that of a pixel at each pixel, and the problems made of it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from micjax.__main__ import main
from micjax.core.problem import InverseProblem, free, log_likelihood, parameter
from micjax.inference.maps.blocks import block
from micjax.inference.maps.blocks.block import Pursuit
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.each import each_pixel, one_pixel
from micjax.inference.maps.fit import fit_map
from micjax.inference.maps.result import most_likely
from micjax.inference.maps.stage import fit_each_pixel, map_fit
from micjax.inference.maps.status import STATUS, excess, likeness
from micjax.inference.runner import run
from micjax.io import Field, FieldAxis, read, write_nexus
from micjax.io.fields import ROWS
from micjax.physics.noise import Gaussian, Poisson
from micjax.physics.spectra.plural import plural_scattering
from micjax.problems import edx, eels, loop, peaks, sho
from micjax.problems.eels.thickness import thickness
from micjax.problems.shared.map_conclusion import _common_bias
from micjax.problems.shared.spectrum_images import gain_of, in_unit, spectrum_image
from micjax.run.jobs.explore import source_of
from micjax.run.plans.plan import make_plan

X = np.linspace(-1.0, 1.0, 12)
PIXELS = 5


class Straight(eqx.Module):
    level: jax.Array = parameter(default=0.0)
    slope: jax.Array = parameter(default=0.0)
    scale: jax.Array = parameter(default=1.0)

    def __call__(self, x):
        return self.scale * (self.level + self.slope * x)


PRIORS = {"forward.level": free(), "forward.slope": free()}
NOISE = {"noise.sigma": free(dist.constraints.positive)}
LINE = InverseProblem(Straight(), Gaussian(0.3), PRIORS | NOISE)


def lines(seed=0):
    rng = np.random.default_rng(seed)
    level, slope = rng.normal(size=(2, PIXELS, 1))
    return level + slope * X + 0.3 * rng.normal(size=(PIXELS, len(X)))


@pytest.fixture(scope="module")
def fitted():
    return fit_map(LINE, X, lines(), covariance=True)


def test_unknown_noise_and_errors_are_those_of_regression(fitted):
    """sigma^2 = RSS / (n - p), which the best likelihood has as RSS / n."""
    design = np.stack([np.ones_like(X), X], axis=1)
    solved, rss, *_ = np.linalg.lstsq(design, lines().T, rcond=None)
    sigma = np.sqrt(rss / (len(X) - 2))
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design)))[:, None] * sigma
    np.testing.assert_allclose(fitted.values["noise.sigma"], sigma, rtol=2e-3)
    for i, name in enumerate(("forward.level", "forward.slope")):
        np.testing.assert_allclose(fitted.values[name], solved[i], atol=1e-3)
        np.testing.assert_allclose(fitted.sd[name], spread[i], rtol=3e-3)


def test_errors_of_what_is_derived(fitted):
    """At another x: the covariance of level and slope counts."""
    values, sd = fitted.derived(lambda v: {"there": v["forward.level"] + 2.0 * v["forward.slope"]})
    variance = fitted.sd["forward.level"] ** 2 + 4.0 * fitted.sd["forward.slope"] ** 2
    np.testing.assert_allclose(sd["there"], np.sqrt(variance), rtol=1e-4)  # X is symmetric
    expected = fitted.values["forward.level"] + 2.0 * fitted.values["forward.slope"]
    np.testing.assert_allclose(values["there"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="no covariance"):
        fit_map(LINE, X, lines()[:1]).derived(lambda v: v)


def test_the_evidence_is_that_of_a_line():
    """Of a linear model with normal noise and priors it is exact: a multivariate normal."""
    priors = {"forward.level": dist.Normal(0.0, 2.0), "forward.slope": dist.Normal(0.0, 3.0)}
    known = InverseProblem(Straight(), Gaussian(0.3), priors)
    flat = known.given({"forward.slope": None})
    y = lines()
    fits = [fit_map(p, X, y, covariance=True, tolerance=1e-9) for p in (flat, known)]
    ones, exact = np.ones((len(X), len(X))), []
    for covariance in (4.0 * ones, 4.0 * ones + 9.0 * np.outer(X, X)):
        covariance = covariance + 0.09 * np.eye(len(X))
        exact.append(scipy.stats.multivariate_normal(cov=covariance).logpdf(y))
    ours = [f.log_evidence() for f in fits]
    np.testing.assert_allclose(ours[1] - ours[0], exact[1] - exact[0], atol=1e-3)
    best, probability = most_likely(fits)
    np.testing.assert_array_equal(best, exact[1] > exact[0])
    odds = np.exp(-np.abs(exact[1] - exact[0]))
    np.testing.assert_allclose(probability, 1.0 / (1.0 + odds), atol=1e-3)
    with pytest.raises(ValueError, match="2 fits, .* and 1 numbers of copies"):
        most_likely(fits, [1])


def test_a_map_is_its_pixels():
    y = lines().reshape(1, PIXELS, -1).copy()
    y[0, 1, 3] = np.nan
    whole = each_pixel(LINE, (1, PIXELS), 2.0)
    level = np.arange(PIXELS, dtype=float)
    at = whole.at({"forward.pixel.level": level[None]})
    seen = [np.isfinite(row) for row in y[0]]
    parts = [
        log_likelihood(LINE.at({"forward.level": level[i]}), X[s], y[0, i][s])
        for i, s in enumerate(seen)
    ]
    np.testing.assert_allclose(log_likelihood(at, X, y), sum(parts), rtol=1e-6)
    pixel, known = one_pixel(at)
    assert set(pixel.priors) == set(LINE.priors) and not known
    assert at.forward.pixel_nm == (2.0, 2.0)
    assert list(one_pixel(at.given({"forward.pixel.slope": None}))[1]) == ["forward.slope"]
    with pytest.raises(ValueError, match="forward.scale.*all pixels share"):
        one_pixel(at.given({"forward.pixel.scale": dist.LogNormal(0.0, 1.0)}))
    with pytest.raises(ValueError, match="none of each_pixel"):
        one_pixel(LINE)
    with pytest.raises(ValueError, match="no pixels"):
        each_pixel(LINE, (0, 3))
    with pytest.raises(ValueError, match="one number, or 2"):
        each_pixel(LINE, (2, 3), (1.0, 1.0, 1.0))


def test_the_stage_of_a_map_is_fit_map(fitted):
    y = lines().reshape(1, PIXELS, -1)
    solution = run(each_pixel(LINE, (1, PIXELS)), X, y, [fit_each_pixel()], key=jax.random.key(0))
    fit = map_fit(solution)
    for name, value in fitted.values.items():
        np.testing.assert_array_equal(fit.values[name][0], value)
        own = solution.problem.values()[name.replace(".", ".pixel.", 1)]
        np.testing.assert_array_equal(own[0], value)


def test_a_map_goes_on_where_it_was(monkeypatch):
    """In the second round too, which starts from what the first has led to."""
    y = lines().reshape(1, PIXELS, -1)
    y = np.tile(y, (1, 60, 1))
    monkeypatch.setattr(block, "BLOCK", 128)
    how = Pursuit(neighbours=1, covariance=True)
    whole, part = Fits(LINE, X, y, how=how), Fits(LINE, X, y, how=how)
    assert list(whole.run())[-1] == whole.fits == 600
    steps = part.run()
    while next(steps) < 400:
        pass
    state = {n: np.array(a) for n, a in part.state().items()}
    steps.close()
    again = Fits(LINE, X, y, how=how)
    again.restore(state)
    assert again.round == 1 and 0 < again.done.sum() < 3
    list(again.run())
    for a, b in zip(*map(jax.tree.leaves, (again.result(), whole.result())), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_all_pixels_leave_out_is_told(fitted):
    """Too little to be seen in one of them."""
    fit = fitted
    many = dataclasses.replace(fit, correlated=np.full(fit.status.shape, 0.0))
    assert _common_bias(many) is None
    few = dataclasses.replace(fit, correlated=np.full(fit.status.shape, 3.0))
    n = float(np.median(fit.points))
    assert _common_bias(few) == pytest.approx(np.sqrt(3.0 * np.sqrt(n)))


def test_channels_that_come_first_are_put_last(caplog):
    axes = [FieldAxis("energy", np.arange(3.0), "eV")]
    axes += [FieldAxis(n, np.arange(k) * 1.0, "nm") for n, k in (("y", 4), ("x", 5))]
    data = np.arange(60.0).reshape(3, 4, 5)
    with caplog.at_level("INFO"):
        image = spectrum_image(Field(data, tuple(axes), "", "counts"))
    np.testing.assert_array_equal(image.y, np.moveaxis(data, 0, -1))
    assert image.axis.name == "energy" and "are taken as y, x, energy" in caplog.text
    with pytest.raises(ValueError, match="streamed: counts has axes energy, y, x"):
        spectrum_image(Field(data, tuple(axes), "", "counts", {ROWS: 3}))


def test_what_is_left_of_a_wrong_model_looks_like_a_curve():
    rng = np.random.default_rng(0)
    noise, one = rng.normal(size=(60, 200)), np.ones((60, 200))
    look = jax.jit(likeness)
    assert abs(np.std(look(noise, one)) - 1.0) < 0.15
    wave = 2.0 * np.sin(np.linspace(0.0, 6.0, 60))[:, None]
    assert look(noise + wave, one).min() > 2.0
    np.testing.assert_allclose(look(1e-25 * noise, 1e-50 * one), look(noise, one), rtol=1e-6)
    assert np.isfinite(look(np.nan * noise, one)).all()
    rare = np.full((60, 400), 0.05)
    for of in (look, jax.jit(lambda r, v: excess(r, v, True))):
        assert abs(np.std(of(rng.poisson(rare) - rare, rare)) - 1.0) < 0.2


# --- the problems ---------------------------------------------------------------------------------


def saved(path, data, axis, unit, name="signal"):
    ny, nx = data.shape[:2]
    axes = [FieldAxis(n, 10.0 * np.arange(k), "nm") for n, k in (("y", ny), ("x", nx))]
    write_nexus(path, {name: Field(data, (*axes, FieldAxis("sweep", axis, unit)), "", name)})
    return path


def test_peaks_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Positions within their errors; a dead pixel and dead channels cost nothing."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    x = np.linspace(0.0, 10.0, 60)
    centre = 4.0 + rng.uniform(-1.0, 1.0, (3, 4, 1))
    y = rng.poisson(80.0 * np.exp(-4.0 * np.log(2.0) * ((x - centre) / 1.5) ** 2) + 5.0) * 1.0
    y[0, 1] = np.nan
    y[:, :, 7] = np.nan
    file = saved(tmp_path / "map.nxs", y[..., ::-1], x[::-1], "eV")
    assert main(["fit", "peaks", str(file), "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "11 of 12 fits converged" in out and "No data: 1 pixel." in out
    rows = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert rows[0].startswith("quantity,median") and len(rows) == 6
    fields = [read(tmp_path / "out" / "result.nxs", n) for n in ("peak_1.centre", "status")]
    off = fields[0].data - centre[..., 0]
    assert np.isnan(off[0, 1]) and np.nanmax(np.abs(off)) < 0.15
    assert fields[0].unit == "eV" and fields[0].pixel_nm == (10.0, 10.0)
    assert fields[1].data[0, 1] == STATUS.index("no data")


def test_a_loop_is_the_same_in_any_unit():
    truth, bias, y = loop.example(jax.random.key(1), 2, 3)
    tiny = loop.problem(2, 3, level=1e-9, sigma=5e-11)
    pixel, _ = one_pixel(truth)
    fits = [
        fit_map(one_pixel(p)[0], bias, data, starts=loop.starts(pixel, np.asarray(bias), data))
        for p, data in ((truth, np.asarray(y)), (tiny, 1e-9 * np.asarray(y)))
    ]
    for name in ("forward.coercive_rising_V", "forward.coercive_falling_V"):
        first, second = (f.values[name] for f in fits)
        np.testing.assert_allclose(first, second, atol=0.2 * fits[0].sd[name].max())


def test_a_learner_follows_a_number_of_a_fit(tmp_path):
    truth, bias, y = loop.example(jax.random.key(1), 2, 3)
    y = np.array(y)
    y[1, 2] = np.nan
    path = saved(tmp_path / "map.nxs", y, np.asarray(bias), "V")
    fit = {"fit": "loop", "name": "coercive_rising_V"}
    plan = make_plan({"kind": "explore", "measure": str(path), "signal": fit, "budget": 3}, "test")
    source = source_of(plan)
    expected = loop.problem(2, 3).at(truth.values()).forward.pixel.coercive_rising_V
    assert source.truth.shape == (6,) and np.isnan(source.truth[5])
    off = source.truth.reshape(2, 3) - np.asarray(expected)
    assert np.nanmax(np.abs(off)) < 1.0
    source.instrument.move(source.target({"y": 0.0, "x": 10.0}))
    value, sd = source.reduce(source.instrument.acquire(source.mode))
    assert value == pytest.approx(source.truth[1], abs=0.2 * sd) and 0.05 < sd < 1.0
    for wrong, message in (
        ({"name": "coercive_bias_V"}, "number of loop 'coercive_bias_V'"),
        ({"fit": "tip"}, "tip fits no curves|takes|image"),
        ({"options": {"bias": 1}}, "bias"),
    ):
        with pytest.raises(ValueError, match=message):
            source_of(make_plan(plan.model_dump() | {"signal": fit | wrong}, "test"))


def test_what_no_loop_is(tmp_path):
    bias = np.linspace(-3.0, 3.0, 9)
    y = np.random.default_rng(0).normal(size=(2, 2, 9))
    with pytest.raises(ValueError, match="one direction"):
        loop.load(saved(tmp_path / "a.nxs", y, bias, "V"))
    with pytest.raises(ValueError, match="sweep in nm: one of V, mV, kV"):
        loop.load(saved(tmp_path / "b.nxs", y, bias, "nm"))
    with pytest.raises(ValueError, match="complex128 of shape"):
        loop.load(saved(tmp_path / "c.nxs", y + 1j, bias, "V"))
    with pytest.raises(ValueError, match="complex responses are needed"):
        sho.load(saved(tmp_path / "d.nxs", y, bias, "kHz"))
    with pytest.raises(ValueError, match="2 centres of 1 peaks"):
        peaks.problem(peaks=1, centres=[1.7, 1.9])
    with pytest.raises(ValueError, match="no counts"):
        peaks.load(saved(tmp_path / "e.nxs", y, bias, "eV"), noise="poisson")
    with pytest.raises(ValueError, match="from 5.0 to None: 0 channels of an axis from -3 to 3 eV"):
        peaks.load(saved(tmp_path / "f.nxs", y, bias, "eV"), signal_min=5.0)


def test_resonances_of_a_file(tmp_path):
    truth, band, y = sho.example(jax.random.key(0), 2, 3)
    y, band = np.asarray(y), np.asarray(band)
    file = saved(
        tmp_path / "be.nxs", (y[..., 0] + 1j * y[..., 1])[..., ::-1], 1e3 * band[::-1], "Hz"
    )
    options, x, data = sho.load(file)
    np.testing.assert_allclose(data, y, rtol=1e-6)
    np.testing.assert_allclose(x, band, rtol=1e-6)
    pixel, _ = one_pixel(sho.problem(**options))
    fit = fit_map(pixel, x, data, starts=sho.starts(pixel, np.asarray(x), np.asarray(data)))
    off = fit.values["forward.f0_kHz"] - np.asarray(truth.values()["forward.pixel.f0_kHz"])
    assert np.max(np.abs(off) / fit.sd["forward.f0_kHz"]) < 4.0


def test_one_spectrum_and_a_line_are_maps():
    axis = FieldAxis("energy", np.arange(5.0), "eV")
    for shape in ((5,), (3, 5), (2, 3, 5)):
        axes = [
            FieldAxis(n, np.arange(k) * 1.0, "nm") for n, k in zip("yx", shape[:-1], strict=False)
        ]
        image = spectrum_image(Field(np.ones(shape), (*axes, axis), "", "s"))
        assert image.y.shape == ((1, 1) + shape)[-3:]
    np.testing.assert_allclose(in_unit(axis, {"eV": 1.0}, "axis"), np.arange(5.0))


def test_noise_that_is_known_is_kept():
    y = np.random.default_rng(0).poisson(9.0, (1, 3, 12)).astype(float)
    counted = InverseProblem(Straight(9.0), Poisson(1.0), PRIORS)
    problem = each_pixel(counted, (1, 3))
    assert jnp.isfinite(log_likelihood(problem, X, y))


def test_the_detector_is_calibrated_and_what_is_missing_is_named(tmp_path, caplog):
    """Of a detector that is 10 eV and 0.15 % off; then strontium is left out."""
    energy = np.linspace(0.3, 6.0, 571)
    own = {"offset_keV": 0.01, "gain_error": 1.5e-3, "noise_keV": 0.06}
    truth = edx.problem(1, 2, counts_per_pixel=2e5, **own)
    counts = np.random.default_rng(0).poisson(truth.forward(jnp.asarray(energy)))
    file = saved(tmp_path / "map.nxs", counts[..., ::-1] * 1.0, 1e3 * energy[::-1], "eV")
    with caplog.at_level("INFO", "micjax"):
        options, x, y = edx.load(file, elements=["O", "Ti", "Sr"])
    assert options["families"] == ["O_K", "Ti_L", "Ti_K", "Sr_L"]
    assert "do not explain" not in caplog.text
    assert abs(options["offset_keV"] - 0.01) < 1e-3 and abs(options["noise_keV"] - 0.06) < 2e-3
    np.testing.assert_allclose(x, energy, rtol=1e-5)
    np.testing.assert_array_equal(y, counts)
    edx.load(file, elements=["O", "Ti"])
    assert "peak at 1.8" in caplog.text and "Sr_L" in caplog.text.partition("do not explain")[2]
    with pytest.raises(ValueError, match="names no elements"):
        edx.load(file)
    with pytest.raises(ValueError, match="Au: none has a strong line from 4"):
        edx.load(file, elements=["Au"], low_keV=4.0)


def test_counts_of_an_element_that_is_not_there_are_none():
    truth, energy, y = edx.example(jax.random.key(2), 2, 4)
    pixel, _ = one_pixel(truth.at({"forward.pixel.Sr_L.counts": np.full((2, 4), 1e-3)}))
    rates = [pixel.at({"forward.Sr_L.counts": 1e-3}).forward(energy)] * 64
    y = np.random.default_rng(1).poisson(np.array(rates)).astype(float)
    fit = fit_map(pixel, energy, y, starts=edx.starts(pixel, np.asarray(energy), y))
    counts, sd = fit.values["forward.Sr_L.counts"], fit.sd["forward.Sr_L.counts"]
    assert np.all(counts < 4.0 * sd) and np.median(sd) < 15.0
    assert fit.counts()["not converged"] == 0
    assert fit.bound["forward.Sr_L.counts"].sum() > 20


def test_edges_fold_with_the_low_loss(tmp_path):
    """A thick pixel has the same atoms as a thin one, where its low loss is told."""
    energy = jnp.linspace(450.0, 720.0, 271)
    loss = np.zeros(60)
    loss[5], loss[25:35] = 1.0, 0.08
    low = np.stack([np.eye(60)[5], loss])[None]
    file = saved(tmp_path / "low.nxs", low, np.arange(-5.0, 55.0), "eV")
    folded = eels.problem(1, 2, low_loss=str(file))
    plain = eels.problem(1, 2)
    thin, thick = np.asarray(folded.forward(energy))[0]
    np.testing.assert_allclose(thin, np.asarray(plain.forward(energy))[0, 0], rtol=1e-6)
    assert thick[100:130].mean() < 0.99 * thin[100:130].mean()
    pixel, known = one_pixel(folded)
    assert known["forward.low_loss"].shape == (1, 2, 60)
    with pytest.raises(ValueError, match="channels of 1 eV, those of the edges 2 eV"):
        eels.problem(1, 2, channels=136, low_loss=str(file))
    with pytest.raises(ValueError, match=r"low loss of \(1, 2\) pixels, the map has \(2, 2\)"):
        eels.problem(2, 2, low_loss=str(file))


def test_the_low_loss_says_how_thick_a_pixel_is(tmp_path):
    """Plural scattering of a known thickness; scatter as the errors say."""
    loss = np.arange(-5.0, 115.0)
    zero = 2e4 * np.exp(-0.5 * (loss / 0.8) ** 2)
    single = np.where(loss > 4.0, (loss - 4.0) ** 2 * np.exp(-loss / 6.0), 0.0)
    true = np.repeat([0.3, 1.2], 20)
    zero, single = (jnp.broadcast_to(a, (40, len(loss))) for a in (zero, single))
    y = plural_scattering(zero, single, jnp.asarray(true), 5)
    y = np.random.default_rng(0).poisson(np.maximum(np.asarray(y), 0.0)).astype(float)
    file = saved(tmp_path / "low.nxs", y.reshape(2, 20, -1), loss, "eV")
    problem = eels.problem(2, 20, low_loss=str(file))
    found = thickness(problem, jnp.linspace(450.0, 720.0, 271))
    off = (found.data.ravel() - true) / found.metadata["errors"].ravel()
    assert np.abs(np.mean(found.data, axis=1) / [0.3, 1.2] - 1.0).max() < 0.02
    assert 0.6 < np.std(off[:20]) < 1.5 and 0.6 < np.std(off[20:]) < 1.5
    assert thickness(eels.problem(1, 2), jnp.linspace(450.0, 720.0, 271)) is None


def test_the_gain_of_counts_is_seen():
    y = 7.0 * np.random.default_rng(0).poisson(np.linspace(200.0, 50.0, 300), (20, 300))
    assert abs(gain_of(y) / 7.0 - 1.0) < 0.05


def test_what_no_edge_is(tmp_path):
    with pytest.raises(ValueError, match="'O_M' is no edge"):
        eels.problem(edges=["O_M"])
    with pytest.raises(ValueError, match="C_K is at .* eV: not from 450"):
        eels.problem(edges=["C_K"])
    with pytest.raises(ValueError, match="before the first edge"):
        eels.problem(edges=["O_K"], low_eV=520.0)
    with pytest.raises(ValueError, match="edges=.O_K,Mn_L"):
        eels.load(tmp_path / "any.nxs")
    with pytest.raises(ValueError, match="O_K: its strongest line, at 0.52"):
        edx.problem(families=["O_K"], low_keV=1.0)
