"""Several data sets as one problem, what they share tied; of any problems.

    -log p(y_a | theta_a, shared) - log p(y_b | theta_b, shared) - log p(theta_a, theta_b, shared)

Each part is fitted by itself first, in the way of its own module; the joint fit goes on from there.
"""

import dataclasses
import importlib
import logging
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from micjax.core.foreign.modules import references
from micjax.core.joint import SHARED, joint, joint_data, part, pieces
from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem, Values, drawn_data, free, neg_log_joint
from micjax.core.tree import array_of, named_leaves
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.runner import SETTLED, parted, stages_of
from micjax.inference.solution import Solution
from micjax.inference.solve import fit_stages
from micjax.inference.solvers.first_order import Adam
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Search, Stage, as_solver
from micjax.inference.tension import tension
from micjax.problems.shared.comparison import comparison
from micjax.report.figures import captioned, curve_with_residual, image_row

log = logging.getLogger("micjax")

EDGE = "micjax.problems.edge"
EDGES = {"left": {"problem": EDGE}, "right": {"problem": EDGE}}
WIDTH = {"width_nm": ("left.forward.width_nm", "right.forward.width_nm")}
UNASKED = (
    "Whether the parts contradict each other is not known: there are no errors of all unknowns."
)


def problem(
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> InverseProblem:
    """The problems of some modules as one; two scans over edges if none are given.

    **Arguments:**

    - `parts`: `{"a": {"problem": "micjax.problems.cbed", "options": {...}}, ...}`, by a name of
        yours.
    - `shared`: `{"thickness_A": ["a.forward.thickness_A", "b.forward.thickness_A"]}`, what is one
        unknown in several parts, with the value and the prior of the first of them.

    **Raises:** `ValueError` for a module that is no problem of micjax and not imported yet, besides
    what `micjax.joint` raises.
    """
    parts, shared = (EDGES, WIDTH) if parts is None else (parts, shared or {})
    modules = {name: _module(name, given) for name, given in parts.items()}
    built = {n: m.problem(**parts[n].get("options", {})) for n, m in modules.items()}
    for leaves in shared.values():
        names = [leaf.partition(".")[::2] for leaf in leaves]
        there = [(n, leaf) for n, leaf in names if n in built]
        # of another prior in the plan, this is known of neither
        prior = next((built[n].priors[k] for n, k in there if k in built[n].priors), free())
        for n, leaf in there:
            built[n] = built[n].given({leaf: prior})
    return joint(built, shared, {n: m.__name__ for n, m in modules.items()})


def _module(part: str, given: Mapping[str, Any]) -> ModuleType:
    """The module of a part: of micjax or an entry point, or one that is imported already, since a
    file may name any, and to import it runs its code."""
    if not isinstance(given, Mapping) or not {"problem"} <= given.keys() <= {"problem", "options"}:
        raise ValueError(f"part {part!r} is {given!r}: a problem and its options are wanted")
    known, name = references(), str(given["problem"])
    reference = known.get(name, name)
    if reference not in known.values() and reference not in sys.modules:
        raise ValueError(
            f"part {part!r}: {unknown_name('problem', name, known)}; to import a module runs its "
            "code: import it first, if you agree"
        )
    module = importlib.import_module(reference)
    if not callable(getattr(module, "problem", None)):
        raise ValueError(f"part {part!r}: {reference} is no problem module")
    return module


def example(key):
    """Two edges, seen with one probe."""
    keys = jax.random.split(key)
    truth = problem().at(
        {
            f"forward.{SHARED}.width_nm": 0.6,
            "forward.left.forward.edge_nm": -0.7,
            "forward.right.forward.edge_nm": 1.2,
        }
    )
    x_nm, data = jnp.linspace(-5.0, 5.0, 64), {}
    for name, k in zip(EDGES, keys, strict=True):
        alone = part(truth, name)
        data[name] = x_nm, drawn_data(alone, x_nm, k)
    return truth, *joint_data(truth, data)


def stages(problem: InverseProblem, x, y, *, steps: int | None = None) -> list:
    """Each part by itself, then all of them from there; Laplace errors.

    **Arguments:**

    - `steps`: of the joint fit, at most; as many as the fits of the parts, or 500, if not given.
    """
    own = _own_stages(problem, x, y)
    fits = {n: parted(entries)[0] for n, entries in own.items()}
    searches = [_alone(name, of, i) for i, (name, of) in enumerate(fits.items())]
    errors = [e for entries in own.values() for e in entries if isinstance(e, LaplaceErrors)]
    expected = bool(errors) and len(errors) == len(own) and all(e.expected for e in errors)
    return [*searches, _descent(fits, steps), LaplaceErrors(expected=expected)]


def _own_stages(problem: InverseProblem, x, y) -> dict[str, list]:
    data, modules = pieces(problem, x, y), dict(problem.forward.modules)
    return {
        name: list(
            stages_of(importlib.import_module(modules[name]))(part(problem, name), x[name], y)
        )
        for name, y in data.items()
        if name in modules
    }


def _alone(name: str, fits: list[Stage | Search], i: int) -> Search:
    """A part by itself; its values of what is shared stay in it, where the joint model does not
    look."""

    def work(problem, x, y, key, report):
        data = pieces(problem, x, y)[name]
        key = jax.random.fold_in(key, i)
        fit = fit_stages(part(problem, name), x[name], data, fits, key=key)
        if fit.stop_reason is StopReason.INTERRUPTED:  # half a search is none
            raise KeyboardInterrupt
        return {f"forward.{name}.{n}": v for n, v in fit.problem.values().items()}

    return Search(work, lambda problem, arrays: problem.at(arrays), f"{name} by itself")


def _descent(fits: Mapping[str, list], steps: int | None) -> Stage:
    """With the solver that the fits of all parts end with, else L-BFGS: Adam, which forgets where
    it comes from, would first go away from the values of the parts."""
    last, *others = [entries[-1] for entries in fits.values()] or [None]
    stage = Stage(LBFGS(), 500, tolerance=SETTLED)
    if isinstance(last, Stage) and all(_same_solver(last, other) for other in others):
        how = {n: getattr(last, n) for n in ("solver", "steps", "chunk", "tolerance", "patience")}
        stage = stage if isinstance(last.solver, Adam) else Stage(**how)
    steps = stage.steps if steps is None else steps
    return dataclasses.replace(stage, steps=steps, starts=_likeliest)


def _same_solver(stage: Stage, other: Stage | Search) -> bool:
    if not isinstance(other, Stage):
        return False
    return bool(eqx.tree_equal(as_solver(stage.solver), as_solver(other.solver)))


def _likeliest(problem: InverseProblem, x, y, candidates, key) -> list[Values]:
    """Of what each part says of what they share, and the mean, whatever suits all of them best."""
    by_unknown: dict[str, dict[str, Any]] = {}
    for name, of, leaf in problem.forward.ties:
        alone = named_leaves(problem.forward.parts[of])[leaf]
        by_unknown.setdefault(f"forward.{SHARED}.{name}", {})[of] = array_of(alone)
    by_unknown = {n: of for n, of in by_unknown.items() if n in problem.priors}
    means = {n: sum(of.values()) / len(of) for n, of in by_unknown.items()}
    by_part = [
        {n: of.get(p, means[n]) for n, of in by_unknown.items()} for p in problem.forward.parts
    ]
    starts = [*by_part, means]
    losses = np.array([_loss(problem.at(start), x, y) for start in starts])
    return [starts[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]]


def _loss(problem: InverseProblem, x, y) -> float:
    theta = problem.unconstrain(problem.values())
    return float(eqx.filter_jit(neg_log_joint)(theta, problem, x, y))


def conclude(solution: Solution, x, y) -> Solution:
    """With what the modules of the parts conclude, and whether the parts contradict each other."""
    metrics, statements, results = dict(solution.metrics), list(solution.statements), {}
    for name, own in _solutions(solution, x, y).items():
        results |= {f"{name}_{n}": field for n, field in own.results.items()}
        metrics |= {f"{name}_{n}": number for n, number in own.metrics.items()}
        statements += [f"{name}: {sentence}" for sentence in own.statements]
    numbers, sentences = _tension(solution, x, y)
    return dataclasses.replace(
        solution, results=results, metrics=metrics | numbers, statements=[*statements, *sentences]
    )


def _solutions(solution: Solution, x, y) -> dict[str, Solution]:
    """Of each part, with data and prediction as maps where its module has none."""
    modules, solutions = dict(solution.problem.forward.modules), {}
    for name, data in pieces(solution.problem, x, y).items():
        own = Solution(part(solution.problem, name))
        module = importlib.import_module(modules[name]) if name in modules else None
        if module is not None and callable(of_module := getattr(module, "conclude", None)):
            own = attempt(f"conclusion of {name}", of_module, own, x[name], data) or own
        if not own.results:
            maps = attempt(f"maps of {name}", comparison, own.problem, x[name], data)
            own = dataclasses.replace(own, results=maps or {})
        solutions[name] = own
    return solutions


def _tension(solution: Solution, x, y) -> tuple[dict[str, float], list[str]]:
    problem, errors = solution.problem, solution.laplace
    if not problem.forward.ties or solution.fit.stop_reason is StopReason.INTERRUPTED:
        return {}, []
    if errors is None or set(errors.names) != set(problem.unknowns()):
        return {}, [UNASKED]
    *_, descent, estimate = stages(problem, x, y)
    how = {"steps": descent.steps, "expected": estimate.expected}
    measured = attempt("tension of the parts", tension, problem, x, y, descent.solver, **how)
    if measured is None:
        return {}, [UNASKED]
    for sentence in measured.statements():
        log.warning("%s", sentence)
    numbers = ("p_value", "chi_squared", "degrees_of_freedom")
    return {f"tension_{n}": getattr(measured, n) for n in numbers}, measured.statements()


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Those of the modules of the parts; of a part without any, data and prediction."""
    makers, modules = {}, dict(solution.problem.forward.modules)
    data = pieces(solution.problem, x, y)
    for name in data:
        maps = {
            n.removeprefix(f"{name}_"): field
            for n, field in solution.results.items()
            if n.startswith(f"{name}_")
        }
        own = Solution(part(solution.problem, name), results=maps)
        true = None if truth is None else part(truth, name)
        module = sys.modules.get(modules.get(name, ""))
        drawn = getattr(module, "figures", _compared)(own, x[name], data[name], truth=true)
        makers |= {f"{name}: {title}": make for title, make in drawn.items()}
    return makers


def _compared(solution: Solution, x, y, truth=None) -> dict[str, Any]:
    maps = {n: field.data for n, field in solution.results.items()}
    if "prediction" not in maps or maps["data"].ndim not in (1, 2):
        return {}

    def draw():
        if maps["data"].ndim == 2:
            return image_row(maps, residuals=("residual",))
        axis = solution.results["data"].axes[0]
        label = f"{axis.name} ({axis.unit})" if axis.unit else axis.name
        return curve_with_residual(axis.values, maps["data"], maps["prediction"], x_label=label)

    def make():
        return captioned(draw(), "The data, the model at the estimate, and what is left.")

    return {"Data and prediction": make}
