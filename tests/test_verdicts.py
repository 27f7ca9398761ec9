"""What a solution says of itself: whether it has converged, and what is left of the data."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from series import coloured

from micjax.core.problem import InverseProblem, free, parameter
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.runner import default_stages, run, solve
from micjax.inference.solvers.first_order import Adam
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Stage
from micjax.inference.verdicts.convergence import SWING, how_it_ended
from micjax.inference.verdicts.residual import compared
from micjax.physics.noise import Gaussian
from micjax.problems import edge

KEY = jax.random.key(0)


class Level(eqx.Module):
    level: jax.Array = parameter(default=0.0)

    def __call__(self, x):
        return self.level + 0.0 * x


def level(unit=1.0, sigma=1.0):
    return InverseProblem(Level(0.0), Gaussian(sigma * unit), {"forward.level": free()})


@pytest.fixture(scope="module")
def scan():
    return edge.example(jax.random.key(4))


def test_a_crawl_is_no_convergence(scan):
    """Adam with a rate so low that hardly anything is gained in 100 steps: the loss stays, and the
    minimum is far away."""
    _, x, y = scan
    start = edge.problem(edge_nm=0.9)
    good = solve(edge, start, x, y, key=KEY)
    assert good.converged and good.laplace.left < 0.01
    assert any(s.startswith("The fit converged after") for s in good.statements)
    slow = solve(edge, start, x, y, key=KEY, learning_rate=1e-7, steps=400, tolerance=0.1)
    assert slow.fit.stop_reason == "tolerance"  # which is all that the loss has to say
    assert slow.converged is False
    [told] = [s for s in slow.statements if "has not converged" in s]
    off = abs(float(slow.problem.values()["forward.edge_nm"]) - float(good.problem.forward.edge_nm))
    sd = float(good.laplace.sd()["forward.edge_nm"])
    assert off > sd and f"{slow.laplace.left:.2g} nats" in told


def test_a_loss_that_swings_is_no_minimum():
    x = jnp.linspace(-1.0, 1.0, 40)
    y = 3.0 + jnp.asarray(coloured(40, 0.0)[0])
    swings = Stage(Adam(2.0), 300, tolerance=1e-3)
    solution = run(level(), x, y, [swings], key=KEY)
    losses = solution.fit.losses
    assert np.median(losses[-50:]) - losses.min() > SWING or solution.converged
    rough = dataclasses.replace(solution.fit, losses=np.where(np.arange(300) > 9, 9.0, 1.0))
    told = how_it_ended(rough, swings, None)
    assert told.converged is False and "still swings by 8 nats" in told.sentence


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_metres_and_nanometres(scan, unit):
    """The same answer to 1e-4 of its error."""
    _, x, y = scan

    def solved(unit):
        start = edge.problem().at({"forward.edge_nm": 0.0, "forward.width_nm": unit})
        priors = {
            "forward.edge_nm": dist.Normal(0.0, 5.0 * unit),
            "forward.width_nm": dist.LogNormal(np.log(unit), 1.0),
        }
        start = start.given(priors)
        stages = [Stage(LBFGS(1e-7), 400), LaplaceErrors()]
        with jax.enable_x64(True):
            start, at, data = jax.tree.map(
                lambda a: jnp.asarray(np.asarray(a), float), (start, x * unit, y)
            )
            return run(start, at, data, stages, key=KEY)

    here, there = solved(1.0), solved(unit)
    assert here.converged and there.converged
    sd = here.laplace.sd()
    for name in ("forward.edge_nm", "forward.width_nm"):
        a = float(here.problem.values()[name])
        b = float(there.problem.values()[name]) / unit
        assert abs(a - b) < 1e-4 * float(sd[name])
        np.testing.assert_allclose(there.laplace.sd()[name] / unit, sd[name], rtol=1e-4)


def test_the_default_way_down_is_the_same_in_any_unit(scan):
    _, x, y = scan
    assert isinstance(default_stages(edge.problem(), x, y)[0].solver, LBFGS)
    assert isinstance(default_stages(edge.problem(), x, y, learning_rate=0.1)[0].solver, Adam)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_noise_that_is_white_and_as_large_as_it_should_be(unit):
    x = np.zeros((60, 500))
    y = np.random.default_rng(1).normal(size=x.shape) * unit
    left = compared(level(unit), x, y)
    assert left.is_noise() and left.sentences() == []
    assert left.measures["chi_squared_per_datum"] == pytest.approx(1.0, abs=0.03)
    # 1.24 over 30,000 data is 29 standard deviations
    told = compared(level(unit), x, np.sqrt(1.24) * y).sentences()
    assert len(told) == 1 and "(chi^2 per datum 1.2" in told[0]


@pytest.mark.parametrize("correlation", [0.3, 0.6])
def test_noise_that_is_coloured(correlation):
    """The factor is the true one: that of the mean of many such series."""
    n = 400
    x, y = np.zeros(n), coloured(n, correlation, seed=2)[0]
    told = compared(level(), x, y).sentences()
    [sentence] = [s for s in told if "Neighbouring residuals" in s]
    factor = float(sentence.split("by about ")[1].rstrip("."))
    means = coloured(n, correlation, seed=3, rows=2000).mean(axis=1)
    assert factor == pytest.approx(np.std(means) * np.sqrt(n), rel=0.25)
    y[::2] = np.nan  # no two neighbours are left
    assert compared(level(), x, y).is_noise()


def test_an_edge_beyond_the_scan_has_a_wide_posterior():
    """To one side the data say nothing more: the curvature where they begin to say something is no
    measure of it."""
    x = jnp.linspace(-5.0, 5.0, 64)
    y = 0.05 * jnp.asarray(np.random.default_rng(3).normal(size=64))
    solution = solve(edge, edge.problem(), x, y, key=KEY)
    assert solution.laplace.widened["forward.edge_nm"] > 1.5
    assert any("posterior of forward.edge_nm is wider" in s for s in solution.statements)
    # about what the prior leaves of what is not seen: beyond 5 nm, of a normal law of 5 nm
    sd = float(solution.laplace.sd()["forward.edge_nm"])
    assert 1.5 < sd < 5.0


def test_errors_of_some_unknowns_speak_of_these(scan):
    """The others were fitted, these were held: no error says how far off they are."""
    _, x, y = scan
    held = Stage(LBFGS(), 100, free=("forward.width_nm", "noise.sigma"))
    some = LaplaceErrors(names=["forward.edge_nm"])
    solution = run(edge.problem(edge_nm=1.5), x, y, [held, some], key=KEY)
    assert solution.converged is False
    [told] = [s for s in solution.statements if "has not converged" in s]
    assert "in the unknowns that errors are stated of" in told


def test_a_minimum_that_explains_nothing_may_be_the_wrong_one(scan):
    """A fit from one start of data that no edge is; several starts have looked elsewhere."""
    _, x, _ = scan
    y = 5.0 * jnp.sin(3.0 * x)
    start = InverseProblem(edge.EdgeScan(0.0, 1.0), Gaussian(0.05), edge.problem().priors)
    start = start.given({"noise.sigma": None})
    alone = run(start, x, y, key=KEY)
    assert alone.converged is None
    assert any("came to a minimum" in s for s in alone.statements)
    several = run(start, x, y, default_stages(start, x, y, starts=3), key=KEY)
    assert several.converged is not None
