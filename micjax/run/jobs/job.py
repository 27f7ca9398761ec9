"""From a plan to all that a run needs, before anything is computed."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from micjax.core.joint import SHARED, joint, joint_data
from micjax.core.names import unknown_name
from micjax.core.plain import plain
from micjax.core.problem import InverseProblem, neg_log_joint
from micjax.core.ranges import check_ranges
from micjax.core.tree import array_of, named_leaves
from micjax.inference.runner import stages_of
from micjax.run.folder import fingerprints
from micjax.run.jobs.dealt import streamed
from micjax.run.plans.priors import check_prior, parse_prior
from micjax.run.plans.settings import NO_DEFAULT, Setting, checked, settings_of, takes_anything
from micjax.run.plans.solve import PartPlan, SolvePlan
from micjax.run.registry import RegistryEntry, find

JOINT = "micjax.problems.joint"  # by its name: a plan of another problem need not import it
log = logging.getLogger("micjax")

_ANY = Setting("", None, NO_DEFAULT, "")  # what `**options` of a load takes


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan with its problem built and its data read."""

    plan: SolvePlan  # resolved: every option and setting has its value
    entry: RegistryEntry
    problem: InverseProblem  # with the priors and values of the plan
    as_built: InverseProblem  # without them: module.problem(**problem_options)
    problem_options: dict[str, Any]
    engine: dict[str, Any]  # the settings that were asked for; the solver has the others
    x: Any
    y: Any
    truth: InverseProblem | None  # of an example
    key: Array
    inputs: dict[str, dict[str, Any]]  # {"file": {path, sha256, bytes}}
    parts: dict[str, "Job"] = dataclasses.field(default_factory=dict)  # of a joint problem


def prepare(plan: SolvePlan, trusted: Collection[str] | None = (), dealt_out: bool = False) -> Job:
    """Find the problem, check every name of the plan, read the data, build the problem.

    **Arguments:**

    - `trusted`: packages whose code the plan may name, see `micjax.run.registry.find`.
    - `dealt_out`: whether other processes fit the blocks of a map, who read its file themselves.

    **Raises:** `ValueError`, `OSError` or `ImportError` with one line on what is wrong.
    """
    entry = find(plan.problem, trusted)
    of_engine = engine_settings(entry)
    ours = entry.ours or entry.function("stages") is None
    engine = checked("engine setting", plan.engine, of_engine, ours)
    priors = {n: _prior(n, text) for n, text in plan.priors.items()}
    for name, value in plan.values.items():
        check_ranges(f"values.{name}", value, entry.ours)
    for name, prior in priors.items():
        if prior is not None:
            check_prior(name, prior, entry.ours)
    example_key, key = jax.random.split(jax.random.key(plan.seed))
    parts = _parts(entry, plan, trusted)
    start = None
    if parts:
        start, problem_options, (truth, x, y) = _joint(plan, parts)
        options = {}
    elif plan.file is None:
        options, problem_options, (truth, x, y) = _example(entry, plan, example_key)
    else:
        options, problem_options, (truth, x, y) = _file(entry, plan, dealt_out)
    files, weights = fingerprints(options), fingerprints({"net": engine.get("net")})
    # a resolved plan is read from anywhere; the values of the problem keep what they were built of
    options = {n: _absolute(n, v, files) for n, v in options.items()}
    as_built = entry.module.problem(**problem_options)
    problem = _with_priors(_with_values(start or as_built, plan.values), priors)
    if dealt_out and not streamed.is_map(problem):
        raise ValueError(f"{plan.problem} is no map of fits, whose blocks could be dealt out")
    _check_start(problem, x, y)
    if streamed.is_map(problem) and (begun := sorted(set(plan.values) & set(problem.priors))):
        log.warning(
            "values of %s do not count: fits of a map begin where the data of each pixel say; what "
            "is known has no prior (priors.NAME=null)",
            ", ".join(begun),
        )
    if isinstance(y, streamed.LoadedRows):
        streamed.search_of(entry.module, problem, x, y, engine)
    plan = plan.model_copy(
        update={
            "file": None if plan.file is None else str(pathlib.Path(plan.file).absolute()),
            "options": options,
            "engine": _resolved(engine, of_engine) | {n: w["path"] for n, w in weights.items()},
            "parts": {n: _part_plan(job.plan) for n, job in parts.items()},
        }
    )
    return Job(
        plan=plan,
        entry=entry,
        problem=problem,
        as_built=as_built,
        problem_options={n: plain(v) for n, v in problem_options.items()},
        engine=engine,
        x=x,
        y=y,
        truth=truth,
        key=key,
        # the data, options which are the path of a file, weights of a network
        inputs=fingerprints({"file": plan.file})
        | {f"options.{n}": known for n, known in files.items()}
        | {f"engine.{n}": known for n, known in weights.items()}
        | {f"parts.{n}.{k}": v for n, job in parts.items() for k, v in job.inputs.items()},
        parts=parts,
    )


def _absolute(name: str, value: Any, files: Mapping[str, Any]) -> Any:
    """The value of an option; what is the path of a file, or a list of them, from the root."""
    if isinstance(value, list | tuple):
        return [_absolute(f"{name}.{i}", v, files) for i, v in enumerate(value)]
    return files[name]["path"] if name in files else value


def _part_plan(plan: SolvePlan) -> PartPlan:
    return PartPlan(**{n: getattr(plan, n) for n in PartPlan.model_fields})


def _prior(name: str, text: str | None) -> dist.Distribution | None:
    try:
        return None if text is None else parse_prior(text)
    except ValueError as error:
        raise ValueError(f"priors.{name}: {error}") from error


def _parts(
    entry: RegistryEntry, plan: SolvePlan, trusted: Collection[str] | None
) -> dict[str, Job]:
    """Each data set of a joint plan as a job of its own; the example of part i has the seed that
    is higher by i."""
    is_joint = entry.reference == JOINT
    if (plan.parts or plan.shared) and not is_joint:
        raise ValueError(f"parts and shared are tables of `problem: joint`, not of {plan.problem}")
    if is_joint and any(v is not None for v in plan.options.values()):
        raise ValueError(
            "the options of a joint problem are those of its parts: parts.PART.options"
        )
    if is_joint and plan.file is not None:
        raise ValueError("the files of a joint problem are those of its parts: parts.PART.file")
    if plan.shared and not plan.parts:
        raise ValueError("shared names the unknowns of parts, and there are no parts")
    jobs = {}
    for i, (name, part) in enumerate(plan.parts.items()):
        own = SolvePlan(seed=plan.seed + i, **part.model_dump())
        try:
            jobs[name] = prepare(own, trusted)
        except (ValueError, OSError, ImportError) as error:
            raise ValueError(f"parts.{name}: {error}") from error
    return jobs


def _joint(plan: SolvePlan, parts: Mapping[str, Job]):
    modules = {n: job.entry.reference for n, job in parts.items()}
    problem = joint({n: job.problem for n, job in parts.items()}, plan.shared, modules)
    x, y = joint_data(problem, {n: (job.x, job.y) for n, job in parts.items()})
    options = {
        "parts": {
            n: {"problem": modules[n], "options": j.problem_options} for n, j in parts.items()
        },
        "shared": plan.shared,
    }
    return problem, options, (_joint_truth(problem, parts), x, y)


def _joint_truth(problem: InverseProblem, parts: Mapping[str, Job]) -> InverseProblem | None:
    """The true values, where all parts are examples and agree about what they share."""
    if any(job.truth is None for job in parts.values()):
        return None
    leaves = {n: float_leaves(job.truth) for n, job in parts.items()}
    true = {f"forward.{n}.{k}": v for n, of in leaves.items() for k, v in of.items()}
    for name, of, leaf in problem.forward.ties:
        value = true.setdefault(f"forward.{SHARED}.{name}", leaves[of][leaf])
        if not bool(jnp.array_equal(value, leaves[of][leaf])):
            return None
    return problem.at(true)


def engine_settings(entry: RegistryEntry) -> dict[str, Setting]:
    """The keywords of the `stages` of this problem.

    **Raises:** `ValueError` when it has a `solve` in their place.
    """
    return settings_of(stages_of(entry.module))


def _resolved(given: Mapping[str, Any], allowed: Mapping[str, Setting]) -> dict[str, Any]:
    """`given` and the defaults of all others, as far as JSON can hold them."""
    values = {n: plain(given.get(n, s.default)) for n, s in allowed.items()}
    return {n: v for n, v in values.items() if _is_json(v)}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _example(entry: RegistryEntry, plan: SolvePlan, key: Array):
    """Made-up data; an option may be one of `problem`, of `example`, or of both."""
    of_problem = settings_of(entry.module.problem)
    of_example = settings_of(entry.module.example)
    allowed = of_example | of_problem
    load = entry.function("load")
    for name in plan.options:
        if name not in allowed and load is not None and name in settings_of(load):
            raise ValueError(f"option {name!r} is for reading a file, and no file is given")
    given = checked(f"option of {plan.problem}", plan.options, allowed, entry.ours)
    for_problem, for_example = (
        {n: v for n, v in given.items() if n in names} for names in (of_problem, of_example)
    )
    return _resolved(given, allowed), for_problem, entry.module.example(key, **for_example)


def _file(entry: RegistryEntry, plan: SolvePlan, dealt_out: bool):
    """The user's data; an option may be one of `load`, or of `problem` if `load` has it not."""
    load = entry.function("load")
    if load is None:
        raise ValueError(
            f"{plan.problem} reads no files (which do: micjax list): {entry.reference} has no "
            "load(file, **options)"
        )
    of_load, of_problem = settings_of(load), settings_of(entry.module.problem)
    allowed = of_problem | of_load
    if takes_anything(load):
        of_load |= {n: _ANY for n in plan.options if n not in allowed}
        allowed |= of_load
    given = checked(f"option of {plan.problem}", plan.options, allowed, entry.ours)
    if not pathlib.Path(plan.file).exists():
        raise FileNotFoundError(f"no such file: {plan.file}")
    for_load = {n: v for n, v in given.items() if n in of_load}
    for_problem = {n: v for n, v in given.items() if n not in of_load}
    try:
        rows, channel = None, for_load.get("channel")
        if plan.streamed or "smooth" in engine_settings(entry):  # which maps of fits have
            rows = streamed.rows_of_file(plan.file, channel, plan.streamed, dealt_out)
        if rows is None:
            problem_options, x, y = load(plan.file, **for_load)
        else:
            problem_options, x, y = streamed.loaded(entry, rows, for_load)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if entry.ours else f"load of {plan.file}: {told}") from error
    for name, value in problem_options.items():
        check_ranges(name, value, entry.ours, f"{plan.file}: ")
    options = _resolved(given, of_load | {n: of_problem[n] for n in for_problem})
    return options, {**problem_options, **for_problem}, (None, x, y)


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
        if prior.support is None:
            raise ValueError(f"the prior of {name} states no support: {type(prior).__name__}")
        if not bool(jnp.all(prior.support(value))):
            shown = f"{float(value):.6g}" if value.size == 1 else "its starting array"
            raise ValueError(
                f"{name} starts at {shown}, which its prior does not allow; "
                f"set values.{name} to another value"
            )
    theta = problem.unconstrain(problem.values())
    try:
        if isinstance(y, streamed.LoadedRows):
            y = jax.ShapeDtypeStruct(y.shape, y.dtype)
        eqx.filter_eval_shape(neg_log_joint, theta, problem, x, y)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the problem does not fit the data: {reason}") from error
