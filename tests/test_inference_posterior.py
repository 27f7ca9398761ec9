"""`laplace`, `nuts` and `svi` against a posterior known in closed form; results by name."""

import json
import os

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import micjax
import micjax.inference.errors.nuts as sample
from micjax import Gaussian, InverseProblem, Posterior, free, laplace, nuts, parameter, svi
from micjax.inference.result import load_posterior
from micjax.problems import edge

SIGMA = 0.3


class Lines(eqx.Module):
    """x @ w + offset: linear, so that its posterior under Gaussian priors is Gaussian."""

    w: jax.Array = parameter()
    offset: jax.Array = parameter()

    def __call__(self, x):
        return x @ self.w + self.offset


def lines(w_prior=None, offset_prior=None):
    priors = {
        "forward.w": w_prior or dist.Normal(0.5, 2.0),
        "forward.offset": offset_prior or dist.Normal(0.0, 1.0),
    }
    return InverseProblem(Lines([0.0, 0.0], 0.0), Gaussian(SIGMA), priors)


X = jax.random.normal(jax.random.key(0), (12, 2)) @ jnp.array([[1.0, 0.7], [0.0, 0.5]])
Y = X @ jnp.array([1.0, -2.0]) + 0.5 + SIGMA * jax.random.normal(jax.random.key(1), (12,))


def closed_form(precision=(0.25, 0.25, 1.0), prior_mean=(0.5, 0.5, 0.0)):
    """Mean and covariance of (w, offset) given Y."""
    design = np.column_stack([X, np.ones(len(X))])
    covariance = np.linalg.inv(design.T @ design / SIGMA**2 + np.diag(precision))
    force = design.T @ np.asarray(Y) / SIGMA**2 + np.multiply(precision, prior_mean)
    return covariance @ force, covariance


def at_the_mode(problem, mean):
    return problem.at({"forward.w": jnp.asarray(mean[:2]), "forward.offset": jnp.asarray(mean[2])})


def test_laplace_is_the_closed_form():
    mean, covariance = closed_form()
    got = laplace(at_the_mode(lines(), mean), X, Y)
    assert got.names == ["forward.offset", "forward.w"]
    order = [2, 0, 1]
    np.testing.assert_allclose(got.mean, mean[order], rtol=1e-12)
    np.testing.assert_allclose(got.covariance, covariance[np.ix_(order, order)], rtol=1e-9)
    np.testing.assert_allclose(got.sd()["forward.w"], np.sqrt(np.diag(covariance))[:2], rtol=1e-9)
    assert got.identified == {"forward.w": True, "forward.offset": True}
    assert got.flat_directions == []
    draws = got.sample(jax.random.key(0), 20_000)
    assert draws["forward.w"].shape == (20_000, 2)
    np.testing.assert_allclose(np.cov(draws["forward.w"].T), covariance[:2, :2], rtol=0.1)


def test_laplace_over_some_names_holds_the_others():
    got = laplace(lines(), X, Y, names=["forward.offset"])
    np.testing.assert_allclose(got.sd()["forward.offset"], (12 / SIGMA**2 + 1) ** -0.5, rtol=1e-9)
    with pytest.raises(ValueError, match="no unknowns: .'forward.of'."):
        laplace(lines(), X, Y, names=["forward.of"])


def test_laplace_by_the_delta_method():
    truth, x, y = edge.example(jax.random.key(0))
    best = micjax.fit(edge.problem(), x, y, steps=600).problem
    got = laplace(best, x, y)
    draws = got.sample(jax.random.key(0), 20_000)
    for name, sd in got.sd().items():
        np.testing.assert_allclose(draws[name].std(), sd, rtol=0.03)
        assert got.identified[name]


def test_what_the_data_do_not_tell_is_not_identified():
    twins = jnp.stack([X[:, 0], X[:, 0]], axis=1)  # only the sum of the two weights is seen
    got = laplace(lines(w_prior=free()), twins, Y)
    assert got.identified == {"forward.w": False, "forward.offset": True}
    assert got.flat_directions == [{"forward.w": pytest.approx(1.0)}]
    assert np.isinf(got.sd()["forward.w"]).all() and got.sd()["forward.offset"] < 0.2
    assert np.isfinite(got.covariance).all() and np.linalg.eigvalsh(got.covariance).min() > -1e-12


def test_an_unknown_the_data_never_see():
    blind = X * jnp.array([1.0, 0.0])
    proper = laplace(lines(), blind, Y)
    assert proper.identified == {"forward.w": False, "forward.offset": True}
    np.testing.assert_allclose(proper.sd()["forward.w"][1], 2.0, rtol=1e-6)  # as the prior
    improper = laplace(lines(w_prior=free()), blind, Y)
    assert not improper.identified["forward.w"]
    assert np.isinf(improper.sd()["forward.w"][1]) and np.isfinite(improper.sd()["forward.w"][0])


@pytest.mark.parametrize("improper", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nuts_is_the_closed_form(improper):
    if improper:  # no prior draws exist: it starts from the values
        problem, (mean, covariance) = lines(free(), free()), closed_form((0.0, 0.0, 0.0))
    else:
        problem, (mean, covariance) = lines(), closed_form()
    key = jax.random.key(2)
    posterior = nuts(problem, X, Y, key, samples=400, warmup=200, chains=2, progress=False)
    draws = posterior.flat()
    assert posterior.draws["forward.w"].shape == (2, 400, 2)
    assert posterior.draws["forward.w"].dtype == np.float64 and posterior.divergences == 0
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(posterior.mean()["forward.w"], mean[:2], atol=0.25 * sd.max())
    np.testing.assert_allclose(posterior.sd()["forward.w"], sd[:2], rtol=0.2)
    np.testing.assert_allclose(draws["forward.offset"].std(), sd[2], rtol=0.2)
    assert all(np.all(r < 1.05) for r in posterior.r_hat().values())
    assert all(np.all(n > 100) for n in posterior.ess().values())


@pytest.mark.slow
def test_nuts_is_repeatable_and_compiles_once(monkeypatch):
    traces = []

    def counted(theta, **kwargs):
        traces.append(1)
        return potential(theta, **kwargs)

    potential = sample.potential
    monkeypatch.setattr(sample, "potential", counted)
    settings = dict(samples=60, warmup=51, chains=1, max_tree_depth=6)
    first = nuts(lines(), X, Y, jax.random.key(0), **settings)
    n = len(traces)
    again = nuts(lines(), X, Y, jax.random.key(0), **settings)
    other = nuts(lines(dist.Normal(1.0, 3.0)), X, Y + 1.0, jax.random.key(0), **settings)
    assert 0 < n == len(traces)
    np.testing.assert_array_equal(first.draws["forward.w"], again.draws["forward.w"])
    assert not np.array_equal(first.draws["forward.w"], other.draws["forward.w"])
    assert first.draws["forward.w"].shape == (1, 60, 2)


@pytest.mark.slow
def test_nuts_starts():
    run = dict(samples=10, warmup=10, chains=2)
    with pytest.raises(ValueError, match="1 starts for 2 chains"):
        nuts(lines(), X, Y, jax.random.key(0), starts=[{}], **run)
    bad = [{}, {"forward.w": jnp.array([jnp.nan, 0.0])}]
    with pytest.raises(micjax.NonFiniteError, match=r"start of chains \[1\]: forward.w \(value"):
        nuts(lines(), X, Y, jax.random.key(0), starts=bad, **run)
    far = [{"forward.offset": -50.0}, {"forward.offset": 50.0}]
    posterior = nuts(lines(), X, Y, jax.random.key(0), starts=far, **run)
    first = posterior.draws["forward.offset"][:, 0]
    assert first[0] != first[1]


def test_interrupting_nuts_returns_the_draws_so_far(monkeypatch):
    def interrupted_at(when):
        class Bar:
            def __enter__(self):
                return self.show

            def __exit__(self, *error):
                return False

            def show(self, done, text):
                if done >= when:
                    raise KeyboardInterrupt

        return lambda title, total: Bar()

    run = dict(samples=400, warmup=50, chains=1, max_tree_depth=6)
    monkeypatch.setattr(sample.reporting, "progress", interrupted_at(150))
    posterior = nuts(lines(), X, Y, jax.random.key(0), **run)
    assert posterior.draws["forward.w"].shape == (1, 100, 2)
    monkeypatch.setattr(sample.reporting, "progress", interrupted_at(50))
    with pytest.raises(KeyboardInterrupt):
        nuts(lines(), X, Y, jax.random.key(0), **run)


def test_svi_is_the_closed_form():
    mean, covariance = closed_form()
    problem = at_the_mode(lines(offset_prior=free()), mean)
    mean, covariance = closed_form((0.25, 0.25, 0.0))
    run = dict(steps=1500, learning_rate=2e-2, samples=4000)
    full = svi(problem, X, Y, jax.random.key(0), guide="multivariate", **run)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(full.mean()["forward.w"], mean[:2], atol=0.3 * sd.max())
    np.testing.assert_allclose(full.sd()["forward.w"], sd[:2], rtol=0.2)
    assert full.draws["forward.w"].shape == (1, 4000, 2) and full.losses.shape == (1500,)
    assert full.draws["forward.w"].dtype == np.float64
    # without correlations the best Gaussian is as wide as the conditional posterior
    alone = svi(problem, X, Y, jax.random.key(0), guide="normal", **run)
    narrow = np.diag(np.linalg.inv(covariance)) ** -0.5
    np.testing.assert_allclose(alone.sd()["forward.w"], narrow[:2], rtol=0.2)


def test_svi_knows_two_guides():
    with pytest.raises(ValueError, match="guide 'full'; there are .'multivariate', 'normal'."):
        svi(lines(), X, Y, jax.random.key(0), guide="full")


def posterior_of_three():
    draws = np.random.default_rng(0).normal(size=(2, 100, 2))
    return Posterior({"forward.w": draws, "forward.offset": draws[..., 0]}, 3)


def test_the_tables_of_a_posterior():
    posterior = posterior_of_three()
    rows = posterior.summary()
    assert [r["name"] for r in rows] == ["forward.w[0]", "forward.w[1]", "forward.offset"]
    flat = posterior.flat()["forward.w"]
    assert flat.shape == (200, 2)
    assert rows[1]["mean"] == pytest.approx(flat[:, 1].mean())
    assert rows[1]["sd"] == pytest.approx(flat[:, 1].std())
    assert rows[1]["95 %"] == pytest.approx(np.quantile(flat[:, 1], 0.95))
    assert posterior.quantiles([0.1, 0.9])["forward.w"].shape == (2, 2)
    assert rows[2]["r_hat"] == pytest.approx(1.0, abs=0.05) and 100 < rows[2]["ess"] < 400


# --- results by name ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path, problem = tmp_path / "edge.h5", edge.problem(edge_nm=0.25, sigma=0.125)
    micjax.save(
        path,
        problem,
        "micjax.problems.edge",
        options={"width_nm": 3.0},
        posterior=posterior_of_three(),
        metadata={"microscope": "of 1938"},
    )
    return path, problem


def test_save_and_load(saved):
    path, problem = saved
    assert micjax.load(path).values() == problem.values()
    posterior = load_posterior(path)
    assert posterior.divergences == 3
    np.testing.assert_array_equal(
        posterior.mean()["forward.w"], posterior_of_three().mean()["forward.w"]
    )
    with h5py.File(path) as file:
        assert set(json.loads(file.attrs["versions"])) >= {"micjax", "jax", "flax"}
        assert json.loads(file.attrs["metadata"]) == {"microscope": "of 1938"}
        assert file["values/forward.edge_nm"][()] == 0.25


def edited(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_results_that_cannot_be_loaded(saved, tmp_path):
    path, problem = saved
    with pytest.raises(FileNotFoundError, match="no such result"):
        micjax.load(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(ValueError, match="text.h5 is not a micjax result"):
        micjax.load(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = 1.0
    with pytest.raises(ValueError, match="other.h5 is not a micjax result"):
        micjax.load(tmp_path / "other.h5")
    edited(path, lambda f: f.attrs.update(reference="mylab.unknown"))
    with pytest.raises(ValueError, match="'mylab.unknown' cannot be imported"):
        micjax.load(path, "mylab.unknown")
    micjax.save(path, problem, "micjax.problems.edge")
    with pytest.raises(ValueError, match="no posterior"):
        load_posterior(path)


def test_values_of_another_problem(saved):
    path, _ = saved

    def change(file):
        del file["values/forward.edge_nm"], file["values/noise.sigma"]
        file["values/forward.height"] = 1.0
        file["values/noise.sigma"] = np.ones(3)

    with pytest.raises(ValueError) as error:
        micjax.load(edited(path, change))
    for fault in (
        "'forward.edge_nm' is missing",
        "'forward.height' is no unknown",
        r"'noise.sigma' has shape (3,) instead of ()",
    ):
        assert fault in str(error.value)


def test_a_failing_save_leaves_the_old_file(saved, monkeypatch):
    path, problem = saved

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        micjax.save(path, problem.at({"noise.sigma": 1.0}), "micjax.problems.edge")
    assert micjax.load(path).values() == problem.values()
    assert os.listdir(path.parent) == [path.name]
