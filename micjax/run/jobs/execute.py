"""Run a job: solve, then keep the result, then the figures, then the report; in this order, so
that what took long is safe before anything else can fail."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from micjax.core.problem import Values
from micjax.core.progress import interrupts, until_interrupted
from micjax.inference.attempt import attempt
from micjax.inference.calibration.stored import quoted
from micjax.inference.maps.each import pixel_name
from micjax.inference.result import save
from micjax.inference.runner import solve
from micjax.inference.solution import Solution
from micjax.io import write_nexus
from micjax.problems.shared.comparison import comparison
from micjax.report.default import default_figures
from micjax.run.folder import RunFolder
from micjax.run.jobs.dealt import streamed
from micjax.run.jobs.job import Job, float_leaves
from micjax.run.jobs.page import write_report
from micjax.run.lifecycle import Facts, Outcome

log = logging.getLogger("micjax")


def run(job: Job, folder: RunFolder, facts: Facts, *, resume: bool) -> Outcome:
    """Solve `job` and fill `folder`.

    **Raises:** whatever the solver raises.
    """
    solution, interrupted = _solved(job, folder, resume)
    known = facts.ended("interrupted" if interrupted else "finished")
    if solution is not None:
        try:
            _keep(job, solution, folder, known)
        except OSError as error:  # the estimate is told all the same
            return Outcome(folder, solution, interrupted, None, error)
        solution = _compared(job, solution)
    facts.write()
    report = None if solution is None else _report(job, solution, folder, known)
    return Outcome(folder, solution, interrupted, report)


def _solved(job: Job, folder: RunFolder, resume: bool) -> tuple[Solution | None, bool]:
    if not resume:  # a finished run of the same plan may have left its own
        folder.checkpoint.unlink(missing_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    began, module = time.monotonic(), job.entry.module
    with interrupts() as watch, until_interrupted() as interruption:
        how = {"checkpoint": folder.checkpoint, "resume": resume}
        how |= {"key": job.key, "on_chunk": _recorder(folder, began)}
        by = streamed.solve if isinstance(job.y, streamed.LoadedRows) else solve
        solution = by(module, job.problem, job.x, job.y, **how, **job.engine)
    if interruption.happened:
        log.warning("interrupted before there was a result")
        return None, True
    if job.entry.function("conclude") is None:
        maps = attempt("maps of data and prediction", comparison, solution.problem, job.x, job.y)
        solution = dataclasses.replace(solution, results=maps or {})
    if solution.laplace or solution.posterior or "fit" in solution.extra:  # errors are stated
        unknowns = job.problem.unknowns()
        if quote := quoted(module, {*unknowns, *map(pixel_name, unknowns)}):
            solution = dataclasses.replace(solution, statements=[*solution.statements, quote])
    stopped = solution.fit is not None and solution.fit.stop_reason == "interrupted"
    return solution, watch.happened or stopped


def _recorder(folder: RunFolder, began: float) -> Callable[..., None]:
    def on_chunk(steps: int, loss: float, values: Values) -> None:
        row: dict[str, Any] = {"time_s": round(time.monotonic() - began, 3), "steps": steps}
        row |= {"loss": _finite(loss)}
        row["values"] = {n: _finite(v) for n, v in values.items() if np.size(v) == 1}
        try:
            folder.add_metrics(row)
        except OSError as error:  # the fit is worth more than its diary
            log.warning("metrics.jsonl: %s", error)

    return on_chunk


def _finite(value: Any) -> float | None:
    value = float(np.asarray(value).item())
    return value if np.isfinite(value) else None  # JSON has no NaN


def _compared(job: Job, solution: Solution) -> Solution:
    """With the module's own comparison to the truth, where there is one."""
    compare = job.entry.function("compare")
    if job.truth is None or compare is None:
        return solution
    try:
        rows = compare(solution, job.x, job.y, job.truth)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        log.warning("compare of %s: %s", job.plan.problem, text, exc_info=True)
        return solution
    return dataclasses.replace(solution, comparison=rows)


def _keep(job: Job, solution: Solution, folder: RunFolder, facts: dict[str, Any]) -> None:
    """result.nxs and values.h5. If the first fails the second is still tried."""
    plan = job.plan.resolved()
    try:
        if solution.results:
            errors = {n: f.metadata["errors"] for n, f in solution.results.items() if _has(f)}
            write_nexus(
                folder / "result.nxs",
                solution.results,
                errors=errors,
                title=f"{job.entry.title} ({job.plan.problem})",
                process={"plan": plan, "provenance": facts, "metrics": dict(solution.metrics)},
            )
    finally:
        _save_values(job, solution, folder, plan)


def _has(field: Any) -> bool:
    return "errors" in field.metadata


def _save_values(job: Job, solution: Solution, folder: RunFolder, plan: dict[str, Any]) -> None:
    """The values of the problem as its module builds it, so that `micjax.load` finds its names."""
    leaves, wanted = float_leaves(solution.problem), job.as_built.values()
    changed = {*job.problem.values(), *job.plan.values} - set(wanted)
    if changed:
        log.warning("values.h5 cannot hold what is known to the module: %s", ", ".join(changed))
    try:
        save(
            folder / "values.h5",
            job.as_built.at({n: leaves[n] for n in wanted}),
            job.entry.reference,
            job.problem_options,
            solution.posterior,
            {"plan": plan},
        )
    except Exception as error:  # a solver may give back another problem than it was given
        log.warning("values.h5 was not written: %s: %s", type(error).__name__, error)


def _report(
    job: Job, solution: Solution, folder: RunFolder, facts: dict[str, Any]
) -> pathlib.Path | None:
    try:
        return write_report(
            folder,
            _figures(job, solution),
            title=job.entry.title,
            problem=job.plan.problem,
            data=job.plan.data,
            solution=solution,
            truth=job.truth,
            provenance=facts,
            plan=job.plan.resolved(),
        )
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        log.warning("the report was not written: %s", text, exc_info=True)
        (folder / "report.html").unlink(missing_ok=True)  # not the one of an earlier run
        return None


def _figures(job: Job, solution: Solution) -> dict[str, Any]:
    """The figures of the module, and the ones every run has."""
    own = job.entry.function("figures")
    figures = {}
    if own is not None:
        try:
            figures = dict(own(solution, job.x, job.y, truth=job.truth))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            log.warning("figures of %s: %s", job.plan.problem, text, exc_info=True)
    common = default_figures(solution, job.x, job.y, job.truth, data=not figures)
    return figures | {title: make for title, make in common.items() if title not in figures}
