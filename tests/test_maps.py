"""Fits of whole maps: the same as one by one, and true to what they say."""

import multiprocessing
import pickle
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats

from micjax.core.problem import InverseProblem, free, parameter
from micjax.inference.maps.blocks import block
from micjax.inference.maps.blocks.dealt import Workers, dealt
from micjax.inference.maps.blocks.fits import Fits
from micjax.inference.maps.cholesky import factor, inverse, scaled, solved
from micjax.inference.maps.fit import fit_map
from micjax.inference.maps.status import STATUS
from micjax.inference.solvers.laws import LAWS, depends, law_of
from micjax.physics.noise import Gaussian, HeteroscedasticGaussian, Poisson, Rician, StudentT

POSITIVE = dist.constraints.positive
NAMES = ("height", "centre", "width", "floor")
X = np.linspace(-8.0, 8.0, 48)
CONVERGED = STATUS.index("converged")


class Bump(eqx.Module):
    height: jax.Array = parameter(default=100.0)
    centre: jax.Array = parameter(default=0.0)
    width: jax.Array = parameter(default=1.5)
    floor: jax.Array = parameter(default=10.0)

    def __call__(self, x):
        bump = jnp.exp(-0.5 * ((x - self.centre) / self.width) ** 2)
        return self.height * bump + self.floor


def bump(values, x=X):
    h, c, w, f = (values[:, i, None] for i in range(4))
    return h * np.exp(-0.5 * ((x - c) / w) ** 2) + f


def problem(noise, scale=1.0):
    priors = {
        "forward.height": free(POSITIVE),
        "forward.centre": dist.Uniform(-8.0, 8.0),
        "forward.width": dist.LogNormal(np.log(1.5), 0.5),
        "forward.floor": free(),
    }
    return InverseProblem(Bump(100.0 * scale, floor=10.0 * scale), noise, priors)


def drawn(n, seed=0):
    low, high = [50.0, -2.0, 0.8, 5.0], [150.0, 2.0, 2.0, 15.0]
    return np.random.default_rng(seed).uniform(low, high, (n, 4))


def starts(y):
    return {
        "forward.height": np.ptp(y, axis=-1),
        "forward.centre": X[np.argmax(y, axis=-1)],
        "forward.floor": y.min(axis=-1) + 1e-3 * np.ptp(y, axis=-1),
    }


def columns(fit):
    return np.stack([fit.values[f"forward.{n}"] for n in NAMES], axis=-1)


def errors(fit):
    return np.stack([fit.sd[f"forward.{n}"] for n in NAMES], axis=-1)


@pytest.fixture(scope="module")
def counted():
    truth = drawn(600)
    y = np.random.default_rng(1).poisson(bump(truth)).astype(np.float32)
    return truth, y, fit_map(problem(Poisson(1.0)), X, y, starts=starts(y))


def test_as_scipy_has_it():
    """Flat priors but for the width, which is wide: least squares."""
    truth = drawn(12)
    y = bump(truth) + np.random.default_rng(2).normal(size=(12, len(X)))
    flat = problem(Gaussian(1.0)).given({"forward.width": free(POSITIVE), "forward.centre": free()})
    fit = fit_map(flat, X, y, starts=starts(y))
    assert (fit.status == CONVERGED).all()
    for row, sd, data in zip(columns(fit), errors(fit), y, strict=True):
        there, covariance = scipy.optimize.curve_fit(
            lambda x, *p: bump(np.array([p]), x)[0], X, data, p0=row, sigma=np.ones(len(X)),
            absolute_sigma=True,
        )  # fmt: skip
        np.testing.assert_allclose(row, there, atol=0.02 * np.sqrt(np.diag(covariance)).max())
        np.testing.assert_allclose(sd, np.sqrt(np.diag(covariance)), rtol=0.02)


def test_intervals_of_counts_hold(counted):
    truth, _, fit = counted
    assert np.mean(fit.status == CONVERGED) > 0.99
    held = np.abs(columns(fit) - truth) < 1.645 * errors(fit)
    np.testing.assert_allclose(held.mean(axis=0), 0.9, atol=0.04)  # three of their errors
    assert np.mean(fit.chi_squared / (fit.points - 4)) == pytest.approx(1.0, abs=0.05)


class Level(eqx.Module):
    rate: jax.Array = parameter(default=1.0)

    def __call__(self, x):
        return self.rate + 0.0 * x


def test_errors_of_rates_near_nothing():
    """A rate of n data that are k counts together has the density of a gamma distribution, with a
    standard deviation of sqrt(k) / n by its curvature, and of 1 / n where there is no count."""
    of = InverseProblem(Level(), Poisson(1.0), {"forward.rate": dist.HalfNormal(30.0)})
    n = len(X)
    y = np.random.default_rng(8).poisson(0.02, (400, n)).astype(float)
    begin = {"forward.rate": np.maximum(y.mean(axis=-1), 1e-3)}
    fit = fit_map(of, X, y, starts=begin)
    value, sd = fit.values["forward.rate"], fit.sd["forward.rate"]
    counts = y.sum(axis=-1)
    np.testing.assert_allclose(value[counts > 0], counts[counts > 0] / n, rtol=0.1)
    assert (value[counts == 0] < 0.1 / n).all()
    none, some = counts == 0, counts > 1
    assert none.sum() > 100 and some.sum() > 50
    assert {STATUS[i] for i in fit.status[none]} == {"at a bound"}
    assert {STATUS[i] for i in fit.status[some]} == {"converged"}
    np.testing.assert_allclose(sd[none], 1.0 / n, rtol=0.2)
    np.testing.assert_allclose(sd[some], np.sqrt(counts[some]) / n, rtol=0.1)
    assert np.mean(np.abs(value - 0.02) < 1.645 * sd) > 0.85


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_do_not_matter(scale):
    truth = drawn(130)
    y = bump(truth) + np.random.default_rng(3).normal(size=(130, len(X)))
    here = fit_map(problem(Gaussian(1.0)), X, y, starts=starts(y))
    there = fit_map(problem(Gaussian(scale), scale), X, scale * y, starts=starts(scale * y))
    unit = np.array([scale, 1.0, 1.0, scale])
    np.testing.assert_allclose(columns(there) / unit, columns(here), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(errors(there) / unit, errors(here), rtol=2e-3)
    np.testing.assert_array_equal(there.status, here.status)


def test_every_pixel_has_a_status(counted):
    _, y, whole = counted
    y = y[:8].copy()
    y[0] = np.nan
    y[1, 3:] = np.nan  # three data, four unknowns
    y[2, ::2] = np.nan
    y[3] = 10.0  # no peak: where would it be?
    fit = fit_map(
        problem(Poisson(1.0)), X, y.reshape(2, 4, -1), starts=problem(Poisson(1.0)).values()
    )
    assert fit.status.shape == (2, 4)
    said = [STATUS[i] for i in fit.status.ravel()]
    assert said[:3] == ["no data", "too few data", "converged"]
    assert said[3] in ("not identified", "at a bound")
    assert not fit.identified["forward.centre"][0, 3]
    assert said[4:] == ["converged"] * 4
    np.testing.assert_allclose(columns(fit)[1], columns(whole)[4:8], rtol=1e-3)
    assert np.isnan(fit.values["forward.height"][0, 0])
    assert sum(fit.counts().values()) == 8


def test_outliers_weigh_less_in_a_law_with_tails():
    truth = drawn(40, seed=4)
    rng = np.random.default_rng(5)
    y = bump(truth) + rng.normal(size=(40, len(X)))
    y += 60.0 * (rng.random(y.shape) < 0.04)
    off = {}
    for noise in (Gaussian(1.0), StudentT(1.0)):
        fit = fit_map(problem(noise), X, y, starts=starts(bump(truth)))
        off[type(noise)] = np.median(np.abs(columns(fit) - truth) / errors(fit), axis=0)
    assert (off[StudentT] < 1.2).all()  # 0.67 of a normal law
    assert (off[Gaussian] > 2.0 * off[StudentT]).any()


def test_noise_may_be_unknown_as_well():
    truth = drawn(60, seed=6)
    sigma = np.random.default_rng(7).uniform(0.5, 3.0, 60)
    y = bump(truth) + sigma[:, None] * np.random.default_rng(8).normal(size=(60, len(X)))
    unknown = problem(Gaussian(1.0)).given({"noise.sigma": dist.LogNormal(0.0, 1.0)})
    fit = fit_map(unknown, X, y, starts=starts(bump(truth)))
    assert (fit.status == CONVERGED).all()
    # four other unknowns take a part of the residuals: the most probable sigma is lower by that
    z = (fit.values["noise.sigma"] * np.sqrt(48 / 44) - sigma) / fit.sd["noise.sigma"]
    assert np.mean(np.abs(z) < 1.645) == pytest.approx(0.9, abs=0.11)
    known = fit_map(problem(Gaussian(1.0)), X, y, starts=starts(y), known={"noise.sigma": sigma})
    assert np.mean(known.chi_squared / (known.points - 4)) == pytest.approx(1.0, abs=0.1)


def test_the_better_of_several_starts():
    truth = drawn(20, seed=9)
    y = bump(truth) + np.random.default_rng(10).normal(size=(20, len(X)))
    far = {"forward.centre": np.full(20, 7.5), "forward.width": np.full(20, 0.5)}
    alone = fit_map(problem(Gaussian(1.0)), X, y, starts=far)
    both = fit_map(problem(Gaussian(1.0)), X, y, starts=[far, starts(y)])
    assert (both.loss <= alone.loss + 1e-3 * np.abs(alone.loss)).all()
    np.testing.assert_allclose(both.values["forward.centre"], truth[:, 1], atol=0.2)
    assert np.max(np.abs(alone.values["forward.centre"] - truth[:, 1])) > 1.0


def test_linear_unknowns_need_no_start():
    """Heights and floors begin at 1 and 0, which are far off."""
    truth = drawn(64, seed=11)
    truth[:, 0] *= 30.0
    y = bump(truth) + np.random.default_rng(12).normal(size=(64, len(X)))
    flat = problem(Gaussian(1.0)).given({"forward.height": free()})
    rng = np.random.default_rng(13)
    off = {
        "forward.centre": truth[:, 1] + 0.8 * rng.normal(size=64),
        "forward.width": truth[:, 2] * np.exp(0.3 * rng.normal(size=64)),
        "forward.height": 1.0,
        "forward.floor": 0.0,
    }
    best = fit_map(flat, X, y, starts=starts(y))
    linear = ("forward.height", "forward.floor")
    fits = {names: fit_map(flat, X, y, starts=off, linear=names) for names in ((), linear)}
    assert np.mean(fits[linear].loss > best.loss + 0.1) < 0.1
    assert np.mean(fits[linear].steps) < 0.7 * np.mean(fits[()].steps)
    with pytest.raises(ValueError, match="forward.width may be|forward.centre may be"):
        fit_map(flat, X, y, linear=("forward.centre",))


def test_neighbours_help_those_that_began_badly():
    rng = np.random.default_rng(14)
    centre = np.linspace(-2.0, 2.0, 8)[:, None] + 0.05 * rng.normal(size=(8, 8))
    truth = np.stack([np.full((8, 8), 90.0), centre, np.ones((8, 8)), np.full((8, 8), 9.0)], -1)
    y = bump(truth.reshape(-1, 4)).reshape(8, 8, -1) + rng.normal(size=(8, 8, len(X)))
    y[3, 3] = np.nan
    start = {"forward.centre": np.where(rng.random((8, 8)) < 0.3, 7.0, centre)}
    alone = fit_map(problem(Gaussian(1.0)), X, y, starts=start)
    helped = fit_map(problem(Gaussian(1.0)), X, y, starts=start, neighbours=2)
    good = alone.status != STATUS.index("no data")
    off = [np.abs(f.values["forward.centre"] - centre)[good] > 0.1 for f in (alone, helped)]
    assert off[0].mean() > 0.1 and not off[1].any()
    assert (helped.loss <= alone.loss)[good].all()


def test_neighbours_without_data_cost_nothing():
    y = np.ma.masked_all((2, 3, len(X)))
    fit = fit_map(problem(Gaussian(1.0)), X, y, neighbours=1)
    assert fit.counts()["no data"] == 6


def test_what_was_done_is_kept(counted, monkeypatch):
    """Broken off after a block, and taken up again: equal to the last bit."""
    _, y, whole = counted
    monkeypatch.setattr(block, "BLOCK", 128)
    fits = Fits(problem(Poisson(1.0)), X, y, starts(y))
    steps = fits.run()
    next(steps)
    steps.close()
    assert 0 < fits.done.sum() < 5
    assert list(fits.run())[-1] == 600
    for name, array in fits.result().values.items():
        np.testing.assert_array_equal(array, whole.values[name])


def test_ctrl_c_keeps_what_is_fitted(counted, monkeypatch):
    _, y, whole = counted
    run = Fits.run

    def interrupted(self):
        yield next(run(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(Fits, "run", interrupted)
    monkeypatch.setattr(block, "BLOCK", 128)
    fit = fit_map(problem(Poisson(1.0)), X, y, starts=starts(y))
    assert fit.counts()["not fitted"] == 600 - 128
    np.testing.assert_array_equal(columns(fit)[:128], columns(whole)[:128])
    assert np.isnan(columns(fit)[128:]).all()


def test_bad_input():
    y = bump(drawn(3))
    with pytest.raises(ValueError, match=r"data of shape \(3, 47\); .* axes are \(48,\)"):
        fit_map(problem(Gaussian(1.0)), X, y[:, 1:])
    with pytest.raises(ValueError, match="1 negative counts"):
        fit_map(problem(Poisson(1.0)), X, np.where(y == y.max(), -1.0, y))
    with pytest.raises(ValueError, match="complex"):
        fit_map(problem(Gaussian(1.0)), X, y + 1j)
    with pytest.raises(ValueError, match="no pixels"):
        fit_map(problem(Gaussian(1.0)), X, y[:0])
    with pytest.raises(ValueError, match="no unknowns"):
        fit_map(InverseProblem(Bump(), Gaussian(1.0), {}), X, y)
    with pytest.raises(ValueError, match="a Rice: Gauss-Newton knows Normal, Poisson, StudentT"):
        fit_map(problem(Rician(1.0)), X, y)
    with pytest.raises(ValueError, match="forward.heigth.*forward.height"):
        fit_map(problem(Gaussian(1.0)), X, y, starts={"forward.heigth": 1.0})
    with pytest.raises(ValueError, match=r"forward.width: 3 of 3 are not inside"):
        fit_map(problem(Gaussian(1.0)), X, y, starts={"forward.width": -1.0})
    with pytest.raises(ValueError, match=r"of shape \(4,\); \(3,\) or \(\) is needed"):
        fit_map(problem(Gaussian(1.0)), X, y, starts={"forward.width": np.ones(4)})


@pytest.mark.parametrize(
    "law",
    [dist.Normal(3.0, 2.0), dist.StudentT(5.0, 3.0, 2.0), dist.Poisson(7.0)],
    ids=lambda law: type(law).__name__,
)
def test_scores_are_slopes_of_the_log_likelihood(law):
    """And their squares are, on average, the information."""
    kind = law_of(law)
    free = [n for n in kind.parameters if n != "df"]
    rest = {n: getattr(law, n) for n in kind.parameters}
    y = np.asarray(law.sample(jax.random.key(0), (20_000,)), float)

    def log_likelihood(values, y):
        return type(law)(**(rest | dict(zip(free, values, strict=True)))).log_prob(y)

    values = jnp.asarray([rest[n] for n in free], float)
    slopes = np.asarray(jax.vmap(jax.grad(log_likelihood), (None, 0))(values, jnp.asarray(y)))
    parameters = [jnp.full(len(y), rest[n], float) for n in kind.parameters]
    scores = kind.scores(jnp.asarray(y), *parameters)
    for i in range(len(free)):
        root, residual = (np.asarray(a) for a in scores[i])
        np.testing.assert_allclose(-root * residual, slopes[:, i], rtol=1e-3, atol=1e-4)
        assert np.mean(residual**2) == pytest.approx(1.0, abs=0.06)
    total = kind.most(jnp.asarray(y), *parameters) - kind.misfit(jnp.asarray(y), *parameters)
    np.testing.assert_allclose(total, log_likelihood(values, jnp.asarray(y)), rtol=1e-4, atol=1e-4)


def test_misfits_of_many_counts_keep_their_digits():
    y = np.random.default_rng(0).poisson(1e5, 1000)
    misfit = LAWS[dist.Poisson].misfit(
        jnp.asarray(y, jnp.float32), jnp.full(1000, 1e5, jnp.float32)
    )
    right = scipy.stats.poisson.logpmf(y, y) - scipy.stats.poisson.logpmf(y, 1e5)
    np.testing.assert_allclose(misfit, right, atol=2e-4)


def test_what_depends_on_the_unknowns():
    noise = HeteroscedasticGaussian(1.0, 0.1)
    assert depends(lambda q: (q[0] * 2.0, jnp.ones(3)), jnp.ones(2)) == (True, False)
    law = lambda n: lambda q: (n(q[0] * jnp.ones(3)).loc, n(q[0] * jnp.ones(3)).scale)  # noqa: E731
    assert depends(law(Gaussian(1.0)), jnp.ones(2)) == (True, False)
    assert depends(law(noise), jnp.ones(2)) == (True, True)


def test_small_systems():
    """In units that differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    for d in (1, 4, 9):
        root, unit = rng.normal(size=(7, d, d + 4)), 10.0 ** np.arange(d)
        matrix, right = root @ root.transpose(0, 2, 1), rng.normal(size=(7, d))
        i, j = np.tril_indices(d)
        one, scale = scaled(jnp.asarray((matrix * np.outer(unit, unit))[:, i, j].T), d)
        low = factor(one, d)
        out = scale * solved(low, scale * jnp.asarray((right * unit).T))[0]
        there = np.linalg.solve(matrix, right[..., None])[..., 0]
        np.testing.assert_allclose(out.T * unit, there, rtol=1e-3, atol=1e-3)
        whole = np.asarray(inverse(low) * scale[:, None] * scale) * np.outer(unit, unit)[..., None]
        there = np.linalg.inv(matrix).transpose(1, 2, 0)
        np.testing.assert_allclose(whole, there, rtol=1e-3, atol=1e-3)


# --- elsewhere ------------------------------------------------------------------------------------


class Packed(ThreadPoolExecutor):
    """What it is given and gives back goes through pickle, as between machines."""

    def submit(self, function, *arguments):
        packed = pickle.dumps((function, arguments))

        def unpacked():
            function, arguments = pickle.loads(packed)
            return pickle.loads(pickle.dumps(function(*arguments)))

        return super().submit(unpacked)


class Fragile(Packed):
    """Breaks at its third task, as a pool does of whose workers one was killed."""

    def submit(self, function, *arguments):
        self.tasks = getattr(self, "tasks", 0) + 1
        if self.tasks > 2:
            raise BrokenExecutor
        return super().submit(function, *arguments)


def test_blocks_are_fitted_elsewhere(counted):
    _, y, whole = counted
    with Packed(2) as executor:
        fit = fit_map(problem(Poisson(1.0)), X, y, starts=starts(y), executor=executor)
    for a, b in zip(jax.tree.leaves(fit), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_a_dead_worker_costs_its_block(counted, caplog):
    _, y, whole = counted
    workers = Workers(lambda: Fragile(2), 2)
    fits = Fits(problem(Poisson(1.0)), X, y, starts(y), workers=workers)
    assert len(fits.done) > 3
    list(fits.run())
    assert "a worker died" in caplog.text
    np.testing.assert_allclose(columns(fits.result()), columns(whole), rtol=1e-9)


def test_workers_that_always_die():
    class Dead(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            raise BrokenExecutor

    forking = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(ValueError, match="an executor that forks"):
        Workers.of(forking)
    with pytest.raises(RuntimeError, match="workers died 3 times in a row"):
        list(dealt(abs, range(3), lambda i: (i,), Workers(lambda: Dead(1), 1)))


def test_what_a_broken_executor_has_done_is_kept(counted, caplog):
    _, y, whole = counted
    fit = fit_map(problem(Poisson(1.0)), X, y, starts=starts(y), executor=Fragile(2))
    done = fit.status != STATUS.index("not fitted")
    assert 0 < done.sum() < len(y) and "has broken the executor" in caplog.text
    np.testing.assert_allclose(columns(fit)[done], columns(whole)[done], rtol=1e-9)


def test_guesses_at_the_end_of_a_prior_are_moved_inside(counted):
    """Of a whole map a pixel has its maximum in the last channel: no reason to fit nothing."""
    _, y, whole = counted
    guess = starts(y) | {
        "forward.height": np.where(np.arange(len(y)) == 3, 0.0, np.ptp(y, axis=-1))
    }
    guess["forward.centre"] = np.where(np.arange(len(y)) == 5, X[-1], guess["forward.centre"])
    with pytest.raises(ValueError, match="1 of 600 are not inside of what its prior allows"):
        fit_map(problem(Poisson(1.0)), X, y, starts=guess)
    fit = fit_map(problem(Poisson(1.0)), X, y, starts=lambda problem, x, y: guess)
    others = np.delete(np.arange(len(y)), 5)
    np.testing.assert_allclose(columns(fit)[others], columns(whole)[others], rtol=1e-2)


def test_starts_block_by_block(counted):
    _, y, whole = counted
    fit = fit_map(problem(Poisson(1.0)), X, y, starts=lambda problem, x, y: starts(y))
    np.testing.assert_allclose(columns(fit), columns(whole), rtol=1e-9)
