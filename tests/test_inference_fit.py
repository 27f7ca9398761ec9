"""`fit`: solvers, starts, stopping, what is not finite, Ctrl-C, checkpoints."""

import logging
import os

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import optimistix
import pytest
import scipy.optimize
from flax import nnx

import micjax
import micjax.inference.errors.svi as variational
import micjax.inference.solvers.driver as driver
from micjax import (
    Gaussian,
    InverseProblem,
    NonFiniteError,
    Poisson,
    draw_starts,
    fit,
    free,
    neg_log_joint,
    parameter,
)
from micjax.inference.errors.density import potential
from micjax.inference.solve import Search, Stage, fit_stages
from micjax.inference.solvers.first_order import Adam
from micjax.inference.solvers.gauss_newton import FisherScoring
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.physics.noise import StudentT
from micjax.problems import edge

TRUTH, X, Y = edge.example(jax.random.key(0))
START = edge.problem().unconstrain(edge.problem().values())


def by_scipy():
    flat, unravel = jax.flatten_util.ravel_pytree(START)
    value_and_gradient = jax.jit(
        jax.value_and_grad(lambda t: neg_log_joint(unravel(t), edge.problem(), X, Y))
    )
    return scipy.optimize.minimize(value_and_gradient, flat, jac=True, tol=1e-9).fun


LOWEST = float(by_scipy())


class Wave(eqx.Module):
    """sin(k x) is a case of many minima in k."""

    k: jax.Array = parameter()

    def __call__(self, x):
        return jnp.sin(self.k * x)


class Root(eqx.Module):
    a: jax.Array = parameter()
    b: jax.Array = parameter()

    def __call__(self, x):
        return jnp.sqrt(self.a) * x + self.b


def wave(k=1.0):
    return InverseProblem(Wave(k), Gaussian(0.1), {"forward.k": dist.Uniform(0.0, 10.0)})


def root(a):
    return InverseProblem(
        Root(a, 0.0), Gaussian(0.1), {"forward.a": free(), "forward.b": dist.Normal()}
    )


@pytest.mark.parametrize(
    "solver, steps",
    [
        (None, 600),
        (optax.lbfgs(), 60),
        (optimistix.BFGS(1e-8, 1e-8), 120),
        (optimistix.NonlinearCG(1e-8, 1e-8), 600),
    ],
    ids=["adam", "lbfgs", "BFGS", "NonlinearCG"],
)
def test_solvers_find_the_minimum(solver, steps):
    best = fit(edge.problem(), X, Y, solver, steps=steps)
    assert best.loss == pytest.approx(LOWEST, abs=2e-3)
    theta = best.problem.unconstrain(best.problem.values())
    assert neg_log_joint(theta, best.problem, X, Y) == pytest.approx(best.loss, abs=1e-9)
    assert best.losses.shape == (best.steps,)
    assert best.loss <= np.nanmin(best.losses)
    assert best.stop_reason in ("steps", "converged")


def test_a_minimiser_stops_when_it_has_converged():
    best = fit(edge.problem(), X, Y, optimistix.BFGS(1e-6, 1e-6), steps=500)
    assert best.stop_reason == "converged" and best.steps < 150


def test_one_compilation_for_all_values_and_data(monkeypatch):
    traces = []

    def counted(*args):
        traces.append(1)
        return neg_log_joint(*args)

    monkeypatch.setattr(driver, "neg_log_joint", counted)
    solver = optax.adam(1e-2)  # a new object: nothing is compiled for it yet
    fit(edge.problem(), X, Y, solver, steps=25, chunk=10)
    first = len(traces)
    fit(edge.problem(edge_nm=0.5, sigma=0.1), X + 1.0, Y * 2.0, solver, steps=37, chunk=10)
    assert 0 < first == len(traces)


def test_the_best_point_is_kept_when_the_solver_leaves_it():
    best = fit(edge.problem(), X, Y, optax.sgd(-1e-5), steps=20)  # uphill
    assert best.loss == best.losses[0] == best.losses.min() and best.losses[-1] > best.loss


def test_the_point_after_the_last_step_counts():
    one = fit(edge.problem(), X, Y, steps=1)
    two = fit(edge.problem(), X, Y, steps=2)
    assert one.loss == pytest.approx(two.losses[1], rel=1e-12) and one.loss < one.losses[0]


def test_multistart_finds_the_better_mode():
    x = jnp.linspace(0.0, 6.0, 80)
    y = jnp.sin(4.0 * x)
    assert abs(fit(wave(), x, y, steps=300).problem.values()["forward.k"] - 4.0) > 0.5
    starts = [{"forward.k": k} for k in (1.0, 4.3, 7.0)] + [{}]
    best = fit(wave(), x, y, steps=300, starts=starts)
    assert best.problem.values()["forward.k"] == pytest.approx(4.0, abs=1e-2)
    assert best.losses.shape == (4, 300)
    assert best.starts_losses.argmin() == 1 and best.starts_losses[1] == best.loss
    assert best.starts_losses[0] == pytest.approx(best.starts_losses[3])
    assert best.starts_values[1]["forward.k"] == best.problem.values()["forward.k"]


def test_draw_starts():
    problem = edge.problem().given({"noise.sigma": free(dist.constraints.positive)})
    starts = draw_starts(jax.random.key(0), problem, 3)
    assert len(starts) == 3 and starts[0] == problem.values()
    assert starts[1]["forward.edge_nm"] != starts[2]["forward.edge_nm"]
    assert starts[2]["noise.sigma"] == problem.values()["noise.sigma"]


@pytest.mark.parametrize(
    "starts, message",
    [
        ([], "starts is empty"),
        ([{"forward.widht_nm": 1.0}], "start 0 has .*widht_nm.*forward.width_nm"),
        ([{}, {"noise.sigma": jnp.ones(2)}], r"start 1: 'noise.sigma' has shape \(2,\)"),
    ],
)
def test_starts_that_do_not_fit(starts, message):
    with pytest.raises(ValueError, match=message):
        fit(edge.problem(), X, Y, starts=starts)


class Affine(eqx.Module):
    net: nnx.Linear

    def __call__(self, x):
        return self.net(x)[:, 0]


@pytest.mark.slow
def test_a_flax_network_is_fitted_by_its_name():
    def problem(seed):
        net = nnx.Linear(2, 1, param_dtype=float, rngs=nnx.Rngs(seed))
        return InverseProblem(Affine(net), Gaussian(0.1), {"forward.net": dist.Normal(0.0, 10.0)})

    x = jax.random.normal(jax.random.key(0), (50, 2))
    y = x @ jnp.array([3.0, -1.0]) + 2.0
    starts = [problem(seed).values() for seed in (0, 1)]
    values = fit(problem(0), x, y, optax.lbfgs(), steps=20, starts=starts).problem.values()
    np.testing.assert_allclose(values["forward.net.kernel"][:, 0], [3.0, -1.0], atol=1e-3)
    np.testing.assert_allclose(values["forward.net.bias"], 2.0, atol=1e-3)


def test_early_stop():
    best = fit(edge.problem(), X, Y, steps=5000, tolerance=1e-3, chunk=50)
    assert best.stop_reason == "tolerance" and best.steps < 2000
    assert best.loss == pytest.approx(LOWEST, abs=1e-2)


def test_patience_is_waited_for():
    best = fit(edge.problem(), X, Y, steps=300, tolerance=1e3, patience=120, chunk=50)
    assert best.stop_reason == "tolerance" and best.steps == 150


@pytest.mark.parametrize("solver", [None, optimistix.BFGS(1e-6, 1e-6)], ids=["adam", "BFGS"])
def test_not_finite_from_the_first(solver):
    with pytest.raises(NonFiniteError, match=r"forward.a \(gradient\).*the prediction"):
        fit(root(-1.0), X, Y, solver, steps=5)


def test_a_value_outside_its_support_is_named():
    with pytest.raises(ValueError, match=r"noise.sigma starts at \[-0.1.*, outside of"):
        fit(edge.problem().at({"noise.sigma": -0.1}), X, Y, steps=5)


def test_a_gradient_that_is_not_finite_is_named_although_the_loss_is():
    with pytest.raises(NonFiniteError, match=r"forward.a \(gradient\)$"):
        fit(root(0.0), X, Y, steps=5)


def test_not_finite_later_returns_the_best_so_far():
    best = fit(root(0.5), X, 0.0 * X, optax.sgd(1e-4), steps=200)
    assert best.stop_reason == "non-finite" and best.fault.startswith("forward.a (gradient)")
    assert np.isfinite(best.loss) and best.steps < 200 and not np.isfinite(best.losses[-1])
    assert best.problem.values()["forward.a"] > 0


def test_a_start_that_is_not_finite_does_not_stop_the_others():
    starts = [{"forward.a": -1.0}, {"forward.a": 0.5}]
    best = fit(root(0.3), X, X, steps=100, starts=starts)
    assert np.isinf(best.starts_losses[0]) and np.isfinite(best.loss)
    assert best.stop_reason == "steps" and best.steps == 100
    assert np.isnan(best.losses[0]).all() and np.isfinite(best.losses[1]).all()


def test_interrupt_returns_the_best_so_far():
    def interrupt(done, loss, values):
        if done == 40:
            raise KeyboardInterrupt

    best = fit(edge.problem(), X, Y, steps=100, chunk=20, on_chunk=interrupt)
    assert best.stop_reason == "interrupted" and best.steps == 40
    assert best.loss < best.losses[0]


def test_on_chunk_hears_of_every_chunk():
    heard = []
    best = fit(edge.problem(), X, Y, steps=50, chunk=20, on_chunk=lambda *told: heard.append(told))
    assert [done for done, _, _ in heard] == [20, 40, 50]
    assert heard[-1][1] == best.loss and heard[-1][2] == best.problem.values()


@pytest.mark.parametrize(
    "solver, starts",
    [
        (None, None),
        (optax.lbfgs(), None),
        pytest.param(optimistix.BFGS(1e-8, 1e-8), None, marks=pytest.mark.slow),
        (optax.chain(optax.add_noise(0.01, 0.5, 0), optax.adam(1e-2)), [{}, {"noise.sigma": 0.2}]),
    ],
    ids=["adam", "lbfgs", "BFGS", "noisy, two starts"],
)
def test_resume_goes_on_bit_for_bit(solver, starts, tmp_path):
    file = tmp_path / "fit.h5"
    run = dict(chunk=10, starts=starts)
    whole = fit(edge.problem(), X, Y, solver, steps=20, **run)
    fit(edge.problem(), X, Y, solver, steps=10, checkpoint=file, resume=True, **run)
    both = fit(edge.problem(), X, Y, solver, steps=20, checkpoint=file, resume=True, **run)
    assert both.steps == whole.steps == 20
    np.testing.assert_array_equal(both.losses, whole.losses)
    assert both.loss == whole.loss and both.problem.values() == whole.problem.values()
    assert os.listdir(tmp_path) == ["fit.h5"]


def test_without_resume_it_starts_anew(tmp_path):
    run = dict(steps=10, chunk=10, checkpoint=tmp_path / "fit.h5")
    first = fit(edge.problem(), X, Y, **run)
    assert fit(edge.problem(), X, Y, **run).losses[0] == first.losses[0]


@pytest.mark.parametrize(
    "problem, solver, starts, message",
    [
        (edge.problem().given({"noise.sigma": None}), None, None, "noise.sigma.* not in this fit"),
        (edge.problem(), optimistix.BFGS(1e-6, 1e-6), None, "solver .*instead of 'BFGS'"),
        (edge.problem(), optax.sgd(1e-2), None, "mu.* is not in this fit"),
        (edge.problem(), None, [{}, {}], r"\(\) instead of .*\(2,\)"),
    ],
    ids=["problem", "minimiser", "transformation", "starts"],
)
def test_the_checkpoint_of_another_fit(problem, solver, starts, message, tmp_path):
    file = tmp_path / "fit.h5"
    fit(edge.problem(), X, Y, steps=10, chunk=10, checkpoint=file)
    with pytest.raises(ValueError, match=f"the checkpoint of another fit: .*{message}"):
        fit(problem, X, Y, solver, starts=starts, checkpoint=file, resume=True)


def test_a_checkpoint_that_is_none(tmp_path):
    file = tmp_path / "fit.h5"
    file.write_text("not HDF5")
    with pytest.raises(ValueError, match="is not a micjax checkpoint"):
        fit(edge.problem(), X, Y, checkpoint=file, resume=True)


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING, logger="micjax"):
        best = fit(edge.problem(), X, Y, steps=20, chunk=10, checkpoint=tmp_path / "fit.h5")
    assert best.steps == 20 and best.stop_reason == "steps"
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1, 1]
    assert os.listdir(tmp_path) == []


# --- what is no result ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"steps": 0}, "steps is 0: a whole number from 1 on"),
        ({"steps": -3}, "steps is -3"),
        ({"chunk": 0}, "chunk is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_settings_that_make_no_step(setting, message):
    with pytest.raises(ValueError, match=message):
        fit(edge.problem(), X, Y, **setting)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X[:0], Y[:0], "there are no data"),
        (X, Y[:20], r"the data have the shape \(20,\), the prediction \(64,\)"),
        (X, Y[:1], r"the data have the shape \(1,\)"),  # would be broadcast
        (X, Y[:, None], r"the data have the shape \(64, 1\)"),
    ],
)
@pytest.mark.parametrize("engine", [fit, micjax.laplace, micjax.nuts, micjax.svi])
def test_data_that_are_not_those_of_the_prediction(engine, x, y, message):
    key = (jax.random.key(0),) if engine in (micjax.nuts, micjax.svi) else ()
    with pytest.raises(ValueError, match=message):
        engine(edge.problem(), x, y, *key)


def test_a_start_on_the_edge_of_its_prior_is_refused():
    with pytest.raises(ValueError, match="forward.k starts on the edge of what its prior allows"):
        fit(wave(0.0), X, Y, steps=5)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_start_that_no_step_improves_is_not_a_converged_fit(tolerance):
    best = fit(edge.problem(), X, Y, optax.sgd(-1e-7), steps=60, chunk=20, tolerance=tolerance)
    assert best.stop_reason == "stalled"


# --- L-BFGS and Fisher scoring, in the precision of users ----------------------------------------


class Level(eqx.Module):
    a: jax.Array = parameter()

    def __call__(self, x):
        return self.a + 0.0 * x


class Peak(eqx.Module):
    c: jax.Array = parameter()
    w: jax.Array = parameter()
    h: jax.Array = parameter()

    def __call__(self, x):
        return 1.0 + self.h * jnp.exp(-0.5 * ((x - self.c) / self.w) ** 2)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_lbfgs_measures_an_unknown_in_its_prior_wherever_it_lies(unit):
    """A prior 200 of its widths away from 0, in any unit."""
    with jax.enable_x64(False):
        y = unit * jnp.asarray(1003.0 + 0.1 * np.random.default_rng(0).normal(size=20), float)
        prior = dist.Normal(1000.0 * unit, 5.0 * unit)
        problem = InverseProblem(Level(1000.0 * unit), Gaussian(0.1 * unit), {"forward.a": prior})
        best = fit(problem, jnp.zeros(20), y, LBFGS(), steps=40, chunk=20)
    assert best.stop_reason == "converged"
    # the prior pulls by (0.1 / 5)^2 / 20 of 3
    assert float(best.problem.forward.a) == pytest.approx(float(y.mean()), abs=5e-4 * unit)


def test_lbfgs_needs_few_steps():
    best = fit(edge.problem(), X, Y, LBFGS(), steps=100, chunk=20)
    assert best.stop_reason == "converged" and best.steps <= 40
    assert best.loss == pytest.approx(LOWEST, abs=2e-3)


@pytest.mark.parametrize("solver", [FisherScoring, pytest.param(LBFGS, marks=pytest.mark.slow)])
def test_counts_from_poor_starts(solver):
    with jax.enable_x64(False):
        x = jnp.linspace(-10.0, 10.0, 101)
        priors = {
            "forward.c": dist.Normal(0.0, 5.0),
            "forward.w": dist.LogNormal(0.0, 1.0),
            "forward.h": dist.LogNormal(3.0, 2.0),
        }
        truth = InverseProblem(Peak(0.7, 1.2, 50.0), Poisson(10.0), priors)
        y = truth.noise(truth.forward(x)).sample(jax.random.key(0)).astype(float)
        best = fit(truth, x, y, LBFGS(), steps=60, chunk=20)
        for c, w, h in ((4.0, 1.0, 10.0), (0.5, 3.0, 200.0), (6.0, 1.0, 1.0)):
            start = truth.at({"forward.c": c, "forward.w": w, "forward.h": h})
            found = fit(start, x, y, solver(), steps=60, chunk=20)
            assert found.stop_reason == "converged"
            assert found.loss == pytest.approx(best.loss, abs=0.02)
            theta = found.problem.unconstrain(found.problem.values())
            there = float(neg_log_joint(theta, found.problem, x, y))
            assert found.loss == pytest.approx(there, abs=0.02)


@pytest.mark.parametrize("law", [Gaussian, lambda sigma: StudentT(sigma, 4.0)])
def test_fisher_scoring_of_other_laws(law):
    """Also of an unknown width of the noise: as the gradient has it."""
    priors = edge.problem().priors | {"noise.sigma": dist.LogNormal(-3.0, 1.0)}
    problem = InverseProblem(edge.problem().forward, law(0.1), priors)
    best = fit(problem, X, Y, LBFGS(), steps=200, chunk=50)
    found = fit(problem, X, Y, FisherScoring(), steps=60, chunk=20)
    assert found.stop_reason == "converged"
    assert found.loss == pytest.approx(best.loss, abs=2e-3)


def test_another_rate_is_no_other_program(monkeypatch):
    traces = []

    def counted(*args):
        traces.append(1)
        return neg_log_joint(*args)

    monkeypatch.setattr(driver, "neg_log_joint", counted)
    fit(edge.problem(), X[:33], Y[:33], Adam(0.1), steps=5, chunk=5)
    first = len(traces)
    fit(edge.problem(), X[:33], Y[:33], Adam(0.02, 5), steps=5, chunk=5)
    assert 0 < first == len(traces)


def test_another_call_of_svi_is_no_other_program(monkeypatch):
    traces = []

    def counted(*args):
        traces.append(1)
        return potential(*args)

    monkeypatch.setattr(variational, "potential", counted)
    for seed, rate in ((0, 0.01), (1, 0.02)):
        micjax.svi(edge.problem(), X[:33], Y[:33], jax.random.key(seed), steps=100, samples=3,
                   learning_rate=rate)  # fmt: skip
        first = len(traces) if seed == 0 else first
    assert 0 < first == len(traces)


# --- stages ---------------------------------------------------------------------------------------


def held_at_one(problem):
    return problem.given({"forward.width_nm": None})


def spread(problem, x, y, candidates, key):
    assert "forward.width_nm" in problem.unknowns()
    best = candidates[0].values
    return [best, best | {"forward.edge_nm": best["forward.edge_nm"] + jax.random.normal(key)}]


STAGES = [
    Stage(LBFGS(), 6, 3, given=held_at_one),
    Stage(LBFGS(), 9, 3, starts=spread, keep=2),
    Stage(Adam(), 6, 3),
]


@pytest.fixture(scope="module")
def staged():
    told = []
    whole = fit_stages(
        edge.problem(), X, Y, STAGES, key=jax.random.key(2), on_chunk=lambda *a: told.append(a)
    )
    return whole, told


def test_stages_hold_screen_and_keep(staged):
    whole, told = staged
    assert whole.losses.shape == (2, 6) and len(whole.starts_values) == 2
    assert whole.steps == told[-1][0] == sum(1 for _ in told) * 3
    assert told[1][2]["forward.width_nm"] == 1.0 != told[-1][2]["forward.width_nm"]
    assert whole.loss == min(whole.starts_losses) < told[1][1]


@pytest.mark.parametrize("chunks", [1, 3, 6])
def test_stages_go_on_from_a_checkpoint_as_if_nothing_had_been(staged, chunks, tmp_path):
    whole, told = staged
    run = dict(key=jax.random.key(2), checkpoint=tmp_path / "fit.h5")
    done = []

    def stop(*args):
        done.append(args)
        if len(done) == chunks:
            raise KeyboardInterrupt

    part = fit_stages(edge.problem(), X, Y, STAGES, on_chunk=stop, **run)
    assert part.stop_reason == "interrupted" and part.problem.values() == done[-1][2]
    again = []
    rest = fit_stages(
        edge.problem(), X, Y, STAGES, resume=True, on_chunk=lambda *a: again.append(a), **run
    )
    assert done + again == told
    assert rest.problem.values() == whole.problem.values()
    np.testing.assert_array_equal(rest.losses, whole.losses)
    assert (rest.steps, rest.stop_reason) == (whole.steps, whole.stop_reason)


def test_a_search_between_fits_keeps_what_was_fitted(tmp_path):
    stages = [Stage(LBFGS(), 20, 20), Search(lambda *_: {}), Stage(Adam(1e-9), 1, 1)]
    found = fit_stages(edge.problem(), X, Y, stages[:2])
    assert found.loss == pytest.approx(fit_stages(edge.problem(), X, Y, stages[:1]).loss, rel=1e-6)
    assert fit_stages(edge.problem(), X, Y, stages).loss <= found.loss


def counting(until, tell):
    """A search that adds one to the edge, again and again."""

    def work(problem, x, y, key, report, before):
        begun = int(before.get("count", 0))
        tell.append(begun)
        for count in range(begun + 1, 5):
            if count > until:
                raise KeyboardInterrupt
            yield {"count": count}

    def apply(problem, arrays):
        return problem.at({"forward.edge_nm": float(arrays["count"])})

    return [Search(work, apply, goes_on=True), Stage(Adam(1e-9), 1, 1)]


def test_a_search_that_goes_on_where_it_was_broken_off(tmp_path):
    told, run = [], dict(checkpoint=tmp_path / "fit.h5")
    part = fit_stages(edge.problem(), X, Y, counting(2, told), **run)
    assert part.stop_reason == "interrupted" and int(part.arrays["count"]) == 2
    assert float(part.problem.forward.edge_nm) == 2.0 and np.isfinite(part.loss)
    whole = fit_stages(edge.problem(), X, Y, counting(9, told), resume=True, **run)
    assert told == [0, 2] and int(whole.arrays["count"]) == 4
    assert float(whole.problem.forward.edge_nm) == pytest.approx(4.0, abs=1e-6)
    assert whole.stop_reason != "interrupted"


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    run = dict(steps=10, chunk=10, checkpoint=tmp_path / "fit.h5")
    fit(edge.problem(), X, Y, **run)
    with pytest.raises(ValueError, match="of another fit: its data, known values"):
        fit(edge.problem(), X, Y + 1.0, resume=True, **run)
    other = edge.problem().given({"forward.width_nm": dist.Normal(3.0, 0.1)})
    moved = eqx.tree_at(lambda p: p.forward.height, edge.problem(), jnp.asarray(3.0))
    for problem in (other, moved):
        with pytest.raises(ValueError, match="known values, priors"):
            fit(problem, X, Y, resume=True, **run)


@pytest.mark.parametrize(
    "y, message",
    [
        (np.ma.masked_greater(np.linspace(0.0, 1.0, 50), 0.5), "the data are masked"),
        (np.zeros(50, complex), "of type complex128; real numbers are needed"),
        (np.zeros(50, object), "of type object; real numbers are needed"),
    ],
)
def test_data_that_are_no_real_numbers_are_refused(y, message):
    """A mask was not looked at: what it hides was fitted."""
    with pytest.raises(ValueError, match=message):
        fit(edge.problem(), jnp.linspace(-5.0, 5.0, 50), y)


def test_a_start_outside_its_prior_and_a_discrete_prior_are_told():
    peak = edge.problem().given({"forward.edge_nm": dist.Uniform(2.0, 3.0)})
    x = jnp.linspace(-5.0, 5.0, 5)
    with pytest.raises(ValueError, match=r"edge_nm starts at \[0.0\], outside of .*=3.0"):
        fit(peak, x, x)
    with pytest.raises(ValueError, match="is a Poisson, of whole numbers"):
        edge.problem().given({"forward.edge_nm": dist.Poisson(3.0)})


def test_laplace_of_data_that_are_not_finite_is_refused():
    """The curvature of a linear model knows nothing of the data: NaN among them gave the priors."""
    x = jnp.linspace(-5.0, 5.0, 5)
    problem = InverseProblem(
        Level(jnp.array(0.0)), Gaussian(1.0), {"forward.a": dist.Normal(0.0, 1.0)}
    )
    with pytest.raises(NonFiniteError, match="the likelihood"):
        micjax.laplace(problem, x, x.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="names is empty"):
        micjax.laplace(problem, x, x, names=[])
    with pytest.raises(ValueError, match=r"a Hessian of shape \(9, 9\) for"):
        micjax.laplace(problem, x, x, hessian=np.eye(9))
