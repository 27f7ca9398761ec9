"""From a plan to all that a run needs, before anything is computed."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem, neg_log_joint
from micjax.core.tree import array_of, named_leaves
from micjax.run.citizens import Citizen, find
from micjax.run.names import unknown_name
from micjax.run.plan import Plan
from micjax.run.priors import parse_prior
from micjax.run.settings import checked, settings_of, takes_anything
from micjax.run.solve import default_solve

GIVEN_BY_RUN = ("key", "checkpoint", "resume", "on_chunk")


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan with its problem built and its data read."""

    plan: Plan  # resolved: every option and setting has its value
    citizen: Citizen
    problem: InverseProblem  # with the priors and values of the plan
    as_built: InverseProblem  # without them: module.problem(**problem_options)
    problem_options: dict[str, Any]
    x: Any
    y: Any
    truth: InverseProblem | None  # of an example
    key: Array
    inputs: dict[str, dict[str, Any]]  # {"file": {path, sha256, bytes}}

    @property
    def solve(self) -> Callable[..., Any]:
        return self.citizen.function("solve") or default_solve


def prepare(plan: Plan) -> Job:
    """Find the problem, check every name of the plan, read the data, build the problem.

    **Raises:** `ValueError`, `OSError` or `ImportError` with one line on what is wrong.
    """
    citizen = find(plan.problem)
    engine = _settled("engine setting", plan.engine, engine_settings(citizen))
    priors = {n: None if text is None else parse_prior(text) for n, text in plan.priors.items()}
    example_key, key = jax.random.split(jax.random.key(plan.seed))
    if plan.file is None:
        options, problem_options, (truth, x, y) = _example(citizen, plan, example_key)
    else:
        options, problem_options, (truth, x, y) = _file(citizen, plan)
    as_built = citizen.module.problem(**problem_options)
    problem = _with_priors(_with_values(as_built, plan.values), priors)
    _check_start(problem, x, y)
    resolved = {"options": options, "engine": engine, "file": _absolute(plan.file)}
    plan = plan.model_copy(update=resolved)
    return Job(plan, citizen, problem, as_built, problem_options, x, y, truth, key, inputs_of(plan))


def engine_settings(citizen: Citizen) -> dict[str, Any]:
    return settings_of(citizen.function("solve") or default_solve, skip=GIVEN_BY_RUN)


def _settled(what: str, given: Mapping[str, Any], allowed: Mapping[str, Any]) -> dict[str, Any]:
    """`given` after a check, and the defaults of all the others."""
    values = checked(what, given, allowed)
    return {n: values.get(n, plain(s.default)) for n, s in allowed.items()}


def _example(citizen: Citizen, plan: Plan, key: Array):
    """Made-up data; an option may be one of `problem`, of `example`, or of both."""
    of_problem = settings_of(citizen.module.problem)
    of_example = settings_of(citizen.module.example)
    options = _settled(f"option of {plan.problem}", plan.options, of_example | of_problem)
    problem_options = {n: v for n, v in options.items() if n in of_problem}
    asked = {n: options[n] for n in plan.options if n in of_example}
    return options, problem_options, citizen.module.example(key, **asked)


def _file(citizen: Citizen, plan: Plan):
    """The user's data; an option may be one of `load`, or of `problem` if `load` has it not."""
    load = citizen.function("load")
    if load is None:
        raise ValueError(
            f"{plan.problem} reads no files: {citizen.reference} has no load(file, **options)"
        )
    of_load, of_problem = settings_of(load), settings_of(citizen.module.problem)
    allowed = of_problem | of_load
    if takes_anything(load):
        of_load = of_load | {n: s for n, s in allowed.items() if n not in of_problem}
        rest = {n: v for n, v in plan.options.items() if n not in allowed}
    else:
        rest = {}
    what = f"option of {plan.problem}"
    given = checked(what, {n: v for n, v in plan.options.items() if n not in rest}, allowed)
    options = {n: plain(s.default) for n, s in of_load.items()} | given | rest
    for_load = {n: v for n, v in (given | rest).items() if n in of_load or n in rest}
    problem_options, x, y = load(plan.file, **for_load)
    overrides = {n: v for n, v in given.items() if n not in of_load}
    problem_options = {n: plain(v) for n, v in problem_options.items()} | overrides
    return options, problem_options, (None, x, y)


def plain(value: Any) -> Any:
    """Numbers and lists of Python for those of NumPy and JAX, so that JSON can hold them."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def float_leaves(problem: InverseProblem) -> dict[str, Array]:
    """Every float array of the problem by name, known or not, without those of the priors."""
    leaves = {n: array_of(leaf) for n, leaf in named_leaves(problem).items()}
    return {
        n: leaf
        for n, leaf in leaves.items()
        if not n.startswith("priors.") and eqx.is_inexact_array(leaf)
    }


def _with_values(problem: InverseProblem, values: Mapping[str, Any]) -> InverseProblem:
    leaves, new = float_leaves(problem), {}
    for name, value in values.items():
        if name not in leaves:
            raise ValueError(unknown_name("value", name, leaves))
        try:
            array = jnp.asarray(value, dtype=float)
            new[name] = jnp.broadcast_to(array, leaves[name].shape)
        except (TypeError, ValueError) as error:
            shape = leaves[name].shape
            raise ValueError(f"value {name!r} does not fit the shape {shape}: {error}") from error
    return problem.at(new)


def _with_priors(problem: InverseProblem, priors: Mapping[str, Any]) -> InverseProblem:
    for name, prior in priors.items():
        if prior is None and name not in problem.priors:
            raise ValueError(unknown_name("prior", name, problem.priors))
    return problem.given(priors)


def _check_start(problem: InverseProblem, x, y) -> None:
    """The values must be allowed by their priors, and the prediction comparable with the data."""
    if not problem.priors:
        raise ValueError("nothing is unknown: every prior is null")
    for name, prior in problem.unknowns().items():
        value = problem.values()[name]
        if not bool(jnp.all(prior.support(value))):
            shown = f"{float(value):.6g}" if value.size == 1 else "its starting array"
            raise ValueError(
                f"{name} starts at {shown}, which its prior does not allow; "
                f"set values.{name} to another value"
            )
    theta = problem.unconstrain(problem.values())
    try:
        eqx.filter_eval_shape(neg_log_joint, theta, problem, x, y)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the problem does not fit the data: {reason}") from error


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(pathlib.Path(path).absolute())


def inputs_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """Every file the plan names: the data, and options which are the path of a file."""
    named = {"file": plan.file} | {f"options.{n}": v for n, v in plan.options.items()}
    paths = {n: pathlib.Path(v) for n, v in named.items() if isinstance(v, str) and v}
    return {n: fingerprint(path) for n, path in paths.items() if _is_file(path)}


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a long text is no path
        return False


def fingerprint(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path.absolute()), "sha256": digest, "bytes": path.stat().st_size}
