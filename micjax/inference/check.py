"""The contract of a problem module, as a public function: what must hold, and what to do if not."""

import dataclasses
import importlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer.util import log_density

from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, neg_log_joint
from micjax.core.tree import array_of, named_leaves
from micjax.inference.calibration.certificate import certify
from micjax.inference.errors.nuts import model
from micjax.inference.result import load, save
from micjax.inference.runner import floats, parted, stages_of
from micjax.inference.solvers.driver import Objective, Solver
from micjax.inference.stage import Stage, as_solver
from micjax.inference.starts.draw import prior_draws

EPS = 1e-6  # of finite differences: max() has kinks, a larger step would cross them
DIRECTIONS = 20  # so many derivatives are compared, however many unknowns there are


class ContractError(AssertionError):
    """A problem module breaks its contract; the message says where and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` found: (contract, what is wrong or an empty string) in the order of checking."""

    module: str
    rows: list[tuple[str, str]]

    def __str__(self) -> str:
        width = max(len(contract) for contract, _ in self.rows)
        lines = [
            f"{contract:<{width}}  {f'BROKEN: {fault}' if fault else 'holds'}"
            for contract, fault in self.rows
        ]
        return "\n".join([self.module, *lines])


def check(module: ModuleType | str, key: Array | None = None, *, calibrate: bool = False) -> Report:
    """Check a problem module against its contract, in float64.

    The module has `problem(...)`, which works without arguments, and `example(key) -> (truth, x,
    y)`. The objective is NumPyro's density, its gradient agrees with finite differences, other
    values need no new compilation, the forward model is pure, values return by name, and where the
    module has `stages(problem, x, y, **engine)` they are such as `micjax.solve` takes.

    **Arguments:**

    - `module`: the module or its name, `"package.module"`.
    - `key`: of the example; `jax.random.key(0)` if not given.
    - `calibrate`: whether the errors of its solutions hold the truth as often as they say, too: by
        a certificate of 200 runs, ten minutes at most.

    **Returns:** a `Report`; print it.

    **Raises:** `ContractError`, which names every broken contract; `ImportError` if there is no
    such module, `TypeError` for what is none.
    """
    module = importlib.import_module(module) if isinstance(module, str) else module
    if not isinstance(module, ModuleType):
        raise TypeError(
            f"a {type(module).__name__} is no module: save problem() and example(key) in a file "
            "and give its name"
        )
    with jax.enable_x64(True):
        report = Report(module.__name__, list(_rows(module, key)))
    if calibrate and not any(fault for _, fault in report.rows):
        report.rows.append(
            ("errors hold the truth as often as they say", _calibration(module, key))
        )
    if any(fault for _, fault in report.rows):
        raise ContractError(f"broken contracts of {report}")
    return report


def _rows(module: ModuleType, key: Array | None) -> Iterator[tuple[str, str]]:
    missing = [name for name in ("problem", "example") if not callable(getattr(module, name, None))]
    if missing:
        yield "problem() and example(key)", f"there is no {' and no '.join(missing)} in the module"
        return
    key = jax.random.key(0) if key is None else key
    try:
        default = in_float64(module.problem())
        truth, x, y = in_float64(module.example(key))
    except Exception as error:
        yield "problem() and example(key)", f"{type(error).__name__}: {error}"
        return
    yield "problem() and example(key)", ""
    traces = []

    @eqx.filter_jit
    def objective(theta, problem, x, y):
        """Loss and gradient, in one program for all that is asked."""
        traces.append(1)  # runs when it is traced only
        return jax.value_and_grad(neg_log_joint)(theta, problem, x, y)

    contracts: dict[str, Callable[[], str]] = {
        "priors fit their unknowns": lambda: _priors(truth),
        "objective is NumPyro's density": lambda: _objective(objective, truth, x, y),
        "gradient is that of the objective": lambda: _gradient(objective, truth, x, y, key),
        "other values, no new compilation": lambda: _compilations(objective, traces, truth, x, y),
        "forward is pure": lambda: _purity(truth, x),
        "values return by name": lambda: _by_name(default, module),
        "stages are fits, then errors": lambda: _stages(module, truth, x, y),
    }
    for contract, fault in contracts.items():
        try:
            yield contract, fault()
        except Exception as error:  # one broken contract must not hide the next
            yield contract, f"{type(error).__name__}: {error}"


def _calibration(module: ModuleType, key: Array | None) -> str:
    certificate = certify(module, key=key)
    wrong = {n: c for n, c in certificate.claims().items() if not c.holds()}
    return "; ".join(
        f"90 % intervals of {n} hold it in {100.0 * c.ninety:.0f} % of {c.runs} runs: is its noise "
        f"what it is said to be? {c.widening:.2g} times as wide they would be right"
        for n, c in wrong.items()
    )


def _priors(problem: InverseProblem) -> str:
    faults = [] if problem.unknowns() else ["there are no unknowns: give `priors`"]
    values, unknowns = problem.values(), problem.unknowns()
    density_of = jax.jit(lambda values: {n: p.log_prob(values[n]) for n, p in unknowns.items()})
    densities = density_of(values)
    for i, (name, prior) in enumerate(unknowns.items()):
        value, density = values[name], densities[name]
        if density.shape != () or not np.isfinite(density):
            faults.append(
                f"log_prob of {name} at its value is {density}: a prior must be a density of the "
                "whole leaf and allow the value it is built with"
            )
        drawn = jax.eval_shape(partial(prior_draws, prior), jax.random.key(i))
        if drawn is not None and drawn.shape != value.shape:
            faults.append(f"a draw of {name} has shape {drawn.shape} instead of {value.shape}")
    return "; ".join(faults)


@eqx.filter_jit
def _numpyro_density(problem: InverseProblem, x, y):
    return log_density(model, (problem, x, y), {}, problem.values())[0]


def _objective(objective: Callable, problem: InverseProblem, x, y) -> str:
    ours, _ = objective(problem.unconstrain(problem.values()), problem, x, y)
    numpyro_log_p = _numpyro_density(problem, x, y)
    if ours.dtype != jnp.float64:
        return f"it is computed in {ours.dtype} under x64: let dtypes follow the inputs"
    if np.allclose(ours, -numpyro_log_p, rtol=1e-10, atol=0.0):
        return ""
    return f"neg_log_joint is {ours}, -log_density {-numpyro_log_p}: is forward random or stateful?"


def _gradient(objective: Callable, problem: InverseProblem, x, y, key: Array) -> str:
    theta = problem.unconstrain(problem.values())
    loss, gradient = objective(theta, problem, x, y)
    theta, faults = jax.device_get(theta), {}
    for name, direction in _directions(theta, key):
        ends = [
            float(objective(jax.device_put({**theta, name: moved}), problem, x, y)[0])
            for moved in (theta[name] + EPS * direction, theta[name] - EPS * direction)
        ]
        difference = (ends[0] - ends[1]) / (2 * EPS)
        slope = float(np.sum(np.asarray(gradient[name]) * direction))
        # the second term is the rounding of the two losses
        allowed = 1e-4 * abs(difference) + 1e-15 * (abs(float(loss)) + 1.0) * 10 / EPS
        if not abs(slope - difference) <= allowed:  # a NaN is a fault
            faults[name] = f"d/d {name} is {slope:.6g}, by finite differences {difference:.6g}"
    advice = "; look for stop_gradient, integer or float32 casts, or a custom derivative"
    return "; ".join(faults.values()) + advice if faults else ""


def _directions(theta, key: Array) -> Iterator[tuple[str, np.ndarray]]:
    """At most `DIRECTIONS` unit directions: single elements and random ones, leaf by leaf."""
    names, rng = list(theta), np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    for i in range(DIRECTIONS):
        name, turn = names[i % len(names)], i // len(names)
        size, shape = theta[name].size, theta[name].shape
        if turn >= size:
            continue
        if turn % 2 == 0 and size > 1:
            flat = rng.standard_normal(size)
        else:
            flat = (np.arange(size) == rng.integers(size)).astype(float)
        yield name, (flat / np.linalg.norm(flat)).reshape(shape)


def _compilations(objective: Callable, traces: list, problem: InverseProblem, x, y) -> str:
    theta = problem.unconstrain(problem.values())
    other = jax.tree.map(_nudged, problem)
    objective(theta, problem, x, y)
    known = len(traces)
    objective(jax.tree.map(_nudged, theta), problem, x, y)
    objective(theta, other, x, y)
    count = 1 + len(traces) - known
    if count == 1:
        return ""
    culprits = [n for n, v in named_leaves(problem).items() if _compiles_anew(array_of(v))]
    named = f"; Python or weakly typed floats: {', '.join(culprits)}" if culprits else ""
    return f"{count} compilations for 3 sets of values{named}; declare floats `= parameter()`"


def _nudged(leaf):
    """Another value of the same type, so close that it is allowed where the first was."""
    if _compiles_anew(leaf):
        return leaf * (1 + 1e-9)
    if eqx.is_inexact_array(leaf):  # by NumPy, for which no shape is a program of its own
        return jax.device_put(np.asarray(leaf) * (1 + 1e-9))
    return leaf


def _compiles_anew(leaf) -> bool:
    return isinstance(leaf, float) or bool(getattr(leaf, "weak_type", False))


def _purity(problem: InverseProblem, x) -> str:
    def leaves():
        arrays = {n: array_of(v) for n, v in named_leaves(problem).items()}
        return {n: _comparable(a) for n, a in arrays.items() if eqx.is_array(a)}

    before = leaves()
    first, second = (jax.tree.leaves(_called(problem.forward, x)) for _ in range(2))
    changed = [n for n, a in leaves().items() if not np.array_equal(a, before[n], equal_nan=True)]
    faults = [f"calling it changed {', '.join(changed)}"] if changed else []
    alike = dict(rtol=1e-9, atol=1e-12, equal_nan=True)
    if not all(np.allclose(a, b, **alike) for a, b in zip(first, second, strict=True)):
        faults.append("two calls gave two results")
    advice = ": no dropout, BatchNorm or counters inside a density"
    return " and ".join(faults) + advice if faults else ""


def _called(forward, x):
    """As one program, traced anew: what another call would change shows. Where it cannot be
    traced, as what changes itself cannot be, operation by operation."""
    try:
        eqx.filter_eval_shape(lambda: forward(x))
    except Exception:
        return forward(x)
    return eqx.filter_jit(lambda forward, x: forward(x))(forward, x)


def _comparable(array: Array) -> np.ndarray:
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.array(jax.random.key_data(array) if keys else array)


def _stages(module: ModuleType, problem: InverseProblem, x, y) -> str:
    y = floats(y)
    for stage in parted(stages_of(module)(problem, x, y))[0]:
        if isinstance(stage, Stage) and type(stage.solver).__module__.partition(".")[0] != "micjax":
            if fault := _honest(as_solver(stage.solver), Objective(stage.of(problem), x, y)):
                return fault
    return ""


def _honest(solver: Solver, objective: Objective) -> str:
    """Whether the losses of two steps are those of the points that they name."""
    theta = objective.problem.unconstrain(objective.problem.values())
    state = solver.init(objective, theta)
    for _ in range(2):
        loss, at, theta, state, _ = eqx.filter_jit(solver.step)(objective, theta, state)
        true = float(eqx.filter_jit(objective)(at)) + 0.0 * float(loss)  # NaN: none was evaluated
        if abs(true - float(loss) - solver.offset(objective)) > 1e-3 * max(1.0, abs(true)):
            return f"{type(solver).__name__}.step: loss {float(loss):.6g}, at `at` it is {true:.6g}"
    return ""


def _by_name(problem: InverseProblem, module: ModuleType) -> str:
    other = problem.at({n: _nudged(v) for n, v in problem.values().items()})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "values.h5"
        save(path, other, module.__name__)
        back = load(path, module).values()
    lost = [n for n, v in other.values().items() if not np.array_equal(v, back[n])]
    return f"saved and loaded, these differ: {', '.join(lost)}" if lost else ""
