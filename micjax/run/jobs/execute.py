"""Run a job: solve, then keep the result, then the figures, then the report; in this order, so
that what took long is safe before anything else can fail."""

import dataclasses
import logging
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from micjax.core.interrupts import until_interrupted
from micjax.core.problem import Values
from micjax.inference.attempt import attempt
from micjax.inference.result import save
from micjax.inference.runner import solve
from micjax.inference.solution import Solution
from micjax.io import write_nexus
from micjax.report.default import default_figures
from micjax.report.page import Page, write_page
from micjax.report.pictures import Picture, save_pictures
from micjax.run.folder import RunFolder, now
from micjax.run.interrupts import interrupts
from micjax.run.jobs.fields import comparison
from micjax.run.jobs.job import Job, float_leaves
from micjax.run.provenance import provenance

log = logging.getLogger("micjax")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: RunFolder
    solution: Solution | None  # None: interrupted before there was one
    interrupted: bool
    report: pathlib.Path | None  # None: it could not be written


def run(job: Job, folder: RunFolder, *, resume: bool, argv: list[str]) -> Outcome:
    """Solve `job` and fill `folder`.

    **Raises:** whatever the solver raises; `OSError` when the result cannot be written.
    """
    facts = provenance(job, argv) | {"status": "running", "start": now()}
    plan = job.plan.model_dump(mode="json", exclude={"out"})
    folder.write_json("plan.resolved.json", plan)
    folder.write_json("provenance.json", facts)
    began = time.monotonic()
    try:
        solution, interrupted = _solved(job, folder, resume)
    except Exception as error:
        facts |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        folder.write_json("provenance.json", facts | _ended(began))
        raise
    facts |= {"status": "interrupted" if interrupted else "finished"} | _ended(began)
    if solution is not None:
        _keep(job, solution, folder, facts)
        solution = _compared(job, solution)
    folder.write_json("provenance.json", facts)
    report = None if solution is None else _report(job, solution, folder, facts)
    return Outcome(folder, solution, interrupted, report)


def _solved(job: Job, folder: RunFolder, resume: bool) -> tuple[Solution | None, bool]:
    if not resume:  # a finished run of the same plan may have left its own
        folder.checkpoint.unlink(missing_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    began, module = time.monotonic(), job.citizen.module
    with interrupts() as watch, until_interrupted() as interruption:
        how = {"checkpoint": folder.checkpoint, "resume": resume}
        how |= {"key": job.key, "on_chunk": _recorder(folder, began)}
        solution = solve(module, job.problem, job.x, job.y, **how, **job.engine)
    if interruption.happened:
        log.warning("interrupted before there was a result")
        return None, True
    if job.citizen.function("conclude") is None:
        maps = attempt("maps of data and prediction", comparison, solution.problem, job.x, job.y)
        solution = dataclasses.replace(solution, results=maps or {})
    stopped = solution.fit is not None and solution.fit.stop_reason == "interrupted"
    return solution, watch.seen or stopped


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
    compare = job.citizen.function("compare")
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
    plan = job.plan.model_dump(mode="json")
    try:
        if solution.results:
            errors = {n: f.metadata["errors"] for n, f in solution.results.items() if _has(f)}
            write_nexus(
                folder / "result.nxs",
                solution.results,
                errors=errors,
                title=f"{job.citizen.title} ({job.plan.problem})",
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
            job.citizen.reference,
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
        pictures = _pictures(job, solution, folder)
        page = Page(
            title=job.citizen.title,
            problem=job.plan.problem,
            data=job.plan.file or f"made-up example, seed {job.plan.seed}",
            solution=solution,
            truth=job.truth,
            pictures=pictures,
            provenance=facts,
            plan=job.plan.model_dump(mode="json"),
            log=_log_of(folder),
        )
        return write_page(folder / "report.html", page)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        log.warning("the report was not written: %s", text, exc_info=True)
        (folder / "report.html").unlink(missing_ok=True)  # not the one of an earlier run
        return None


def _log_of(folder: RunFolder) -> str:
    """What was said so far, such as the channel that was chosen."""
    path = folder / "log.txt"
    return path.read_text(encoding="utf-8", errors="replace")[-20_000:] if path.exists() else ""


def _pictures(job: Job, solution: Solution, folder: RunFolder) -> list[Picture]:
    """The figures of the module, and the ones every run has."""
    shutil.rmtree(folder / "figures", ignore_errors=True)  # of an earlier run in this folder
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    own = job.citizen.function("figures")
    figures = {}
    if own is not None:
        try:
            figures = dict(own(solution, job.x, job.y, truth=job.truth))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            log.warning("figures of %s: %s", job.plan.problem, text, exc_info=True)
    common = default_figures(solution, job.x, job.y, job.truth, data=not figures)
    figures |= {title: make for title, make in common.items() if title not in figures}
    return save_pictures(folder / "figures", figures)


def _ended(began: float) -> dict[str, Any]:
    return {"end": now(), "wall_s": round(time.monotonic() - began, 3)}
