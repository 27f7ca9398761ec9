"""Every problem in micjax/problems keeps the contract, and `check` finds out who does not."""

import functools
import importlib
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import micjax
from micjax import Gaussian, InverseProblem, Stage, parameter
from micjax.core.foreign.modules import references
from micjax.inference.check import ContractError
from micjax.inference.solvers.first_order import Adam
from micjax.problems import autofocus, cbed, edge, phase_map, structure

BUILT_IN = [m for m in references().values() if m.startswith("micjax.")]


def scan(key):
    """Six patterns of one cell of molybdenum disulphide."""
    truth = structure.problem(**SMALL["structure"])
    x = structure.scan_of(truth.forward.crystal.box_A, 3, 2, 45.0, 15.0)
    return truth, x, truth.noise(truth.forward(x)).sample(key).astype(float)


def pattern(key):
    truth = cbed.problem(**SMALL["cbed"]).at({"forward.tilt_mrad": np.array([1.1, -1.9])})
    x = cbed.camera(3.0 * np.arange(-6, 7), 3.0 * np.arange(-6, 7))
    return truth, x, truth.noise(truth.forward(x)).sample(key).astype(float)


def images(key):
    found_A = {"C10": 300.0, "C12a": 100.0, "C12b": -50.0}
    instrument = autofocus.microscope(0, found_A, (32, 32))
    settings_A = np.array([[0.0, 0.0, 0.0], [400.0, 0.0, 0.0]])
    x, y = autofocus.series(settings_A, [instrument.image(key, s) for s in settings_A])
    truth = autofocus.problem(**SMALL["autofocus"], mean_counts=float(y[0].mean()))
    return truth.at(dict(zip(autofocus.NAMES, found_A.values(), strict=True))), x, y


def crystal(key):
    return phase_map.example(key, 128, 160, grains=2, **SMALL["phase_map"])


# of what is too large for every day: the options, and the example where its own has no sizes
SMALL = {
    "aberrations": {"ny": 32, "nx": 32},
    "autofocus": {"ny": 32, "nx": 32},
    "cbed": {"thickness_A": 12.0, "most_A": 20.0, "reach_mrad": 20.0, "dose": 1e4},
    "feedback": {"ny": 6, "nx": 24},
    "phase_map": {"patches": 12, "radii": 6, "angles": 24},
    "structure": {"tile": [1, 1, 1], "sampling_A": 0.3, "slice_A": 3.2, "reach_mrad": 45.0},
    "tip": {"ny": 24, "nx": 24, "tip_size": 9},
    "tip_characteriser": {"ny": 32, "nx": 32},
}
EXAMPLES = {"autofocus": images, "cbed": pattern, "phase_map": crystal, "structure": scan}


def holds(module):
    report = micjax.check(module)
    assert all(fault == "" for _, fault in report.rows) and len(report.rows) == 8


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(m, marks=[pytest.mark.slow] if m.rpartition(".")[2] in SMALL else [])
        for m in BUILT_IN
    ],
)
def test_contract(name):
    holds(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n,
            marks=[pytest.mark.slow]
            if n in ("aberrations", "autofocus", "cbed", "structure")
            else [],
        )
        for n in SMALL
    ],
)
def test_contract_of_a_small_one(name):
    """Of the same module, whose problem and example are of another size."""
    whole = importlib.import_module(f"micjax.problems.{name}")
    module = types.ModuleType(name)
    module.__dict__.update(vars(whole) | {"__name__": whole.__name__})
    module.problem = functools.partial(whole.problem, **SMALL[name])
    module.example = EXAMPLES.get(name) or functools.partial(whole.example, **SMALL[name])
    holds(module)


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


class Lying(Adam):
    """As if its fields had been swapped."""

    def step(self, objective, theta, state):
        step = super().step(objective, theta, state)
        return step._replace(at=step.theta, theta=step.at)


def test_a_solver_whose_losses_are_of_other_points(monkeypatch):
    module = module_of(Line, monkeypatch)
    module.stages = lambda problem, x, y: [Stage(Lying(0.1), 5)]
    with pytest.raises(ContractError, match="Lying.step: loss .* at `at` it is"):
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


@pytest.mark.slow
def test_edge_is_recovered():
    truth, x, y = edge.example(jax.random.key(0))
    best = micjax.fit(edge.problem(), x, y, steps=600)
    posterior = micjax.nuts(best.problem, x, y, jax.random.key(1), samples=200, warmup=200)
    mean, sd = posterior.mean(), posterior.sd()
    for name, value in truth.values().items():
        assert abs(mean[name] - value) < 4 * sd[name], name
        assert abs(best.problem.values()[name] - mean[name]) < 1 * sd[name], name
