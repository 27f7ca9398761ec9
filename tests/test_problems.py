"""Every problem in micjax/problems keeps the contract, and `check` finds out who does not."""

import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import nnx

import micjax
from micjax import Gaussian, InverseProblem, parameter
from micjax.core.foreign.modules import references
from micjax.inference.check import ContractError
from micjax.problems import edge

BUILT_IN = [m for m in references().values() if m.startswith("micjax.")]


@pytest.mark.parametrize("name", BUILT_IN)
def test_contract(name):
    report = micjax.check(name)
    assert all(fault == "" for _, fault in report.rows) and len(report.rows) == 8


class Line(eqx.Module):
    slope: jax.Array = parameter()

    def __call__(self, x):
        return self.slope * x


class Stopped(Line):
    def __call__(self, x):
        return jax.lax.stop_gradient(self.slope) * x


class Scaled(Line):
    scale: float = 2.0

    def __call__(self, x):
        return self.scale * self.slope * x


class Random(Line):
    def __call__(self, x):
        Random.calls = getattr(Random, "calls", 0) + 1
        return self.slope * x + 0.1 * Random.calls


class Dropping(Line):
    drop: nnx.Dropout = eqx.field(default_factory=lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)))

    def __call__(self, x):
        return self.drop(self.slope * x)


class Single(Line):
    def __call__(self, x):
        return (self.slope * x).astype("float32")


def module_of(forward, monkeypatch):
    """A problem module around a forward class, which can be imported by its name."""
    module = types.ModuleType("toy_problem")

    def problem():
        return InverseProblem(forward(2.0), Gaussian(0.1), {"forward.slope": dist.Normal(0.0, 3.0)})

    def example(key):
        truth = problem()
        x = jnp.linspace(0.0, 1.0, 7)
        return truth, x, Line(2.0)(x) + 0.1 * jax.random.normal(key, (7,))

    module.problem, module.example = problem, example
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_a_good_toy_passes(monkeypatch):
    report = micjax.check(module_of(Line, monkeypatch))
    assert "forward is pure" in str(report) and "holds" in str(report)


@pytest.mark.parametrize(
    "forward, faults",
    [
        (Stopped, ["d/d forward.slope is .*finite differences", "stop_gradient"]),
        (Scaled, ["2 compilations for 3 sets of values; .*forward.scale", "parameter()"]),
        (Random, ["two calls gave two results", "is forward random or stateful"]),
        (
            Dropping,
            ["forward is pure +BROKEN: calling it changed .*count and two calls", "no dropout"],
        ),
        (Single, ["let dtypes follow|d/d forward.slope"]),
    ],
)
def test_check_says_what_is_wrong(forward, faults, monkeypatch):
    module = module_of(forward, monkeypatch)
    for fault in faults:
        with pytest.raises(ContractError, match=f"(?s)toy_problem.*{fault}"):
            micjax.check(module)


def test_check_names_all_that_is_wrong_and_only_that(monkeypatch):
    with pytest.raises(ContractError) as error:
        micjax.check(module_of(Stopped, monkeypatch))
    assert str(error.value).count("holds") == 7


def test_values_that_cannot_be_saved_and_loaded(monkeypatch):
    module = module_of(Line, monkeypatch)
    problem, calls = module.problem, []

    def changing():
        calls.append(1)
        return problem() if len(calls) == 1 else problem().given({"forward.slope": None})

    module.problem = changing
    with pytest.raises(ContractError, match="'forward.slope' is no unknown"):
        micjax.check(module)


def test_check_without_an_example():
    module = types.ModuleType("empty")
    with pytest.raises(ContractError, match="no problem and no example"):
        micjax.check(module)


def test_edge_is_recovered():
    truth, x, y = edge.example(jax.random.key(0))
    best = micjax.fit(edge.problem(), x, y, steps=600)
    posterior = micjax.nuts(best.problem, x, y, jax.random.key(1), samples=200, warmup=200)
    mean, sd = posterior.mean(), posterior.sd()
    for name, value in truth.values().items():
        assert abs(mean[name] - value) < 4 * sd[name], name
        assert abs(best.problem.values()[name] - mean[name]) < 1 * sd[name], name
