"""What is done with a plan of each kind."""

import contextlib
from collections.abc import Callable
from typing import Any

from micjax.core.foreign.modules import trusted_source
from micjax.core.progress import until_interrupted
from micjax.inference.maps.blocks.dealt import dealt_to
from micjax.inference.solution import Solution
from micjax.instruments import InDoubt
from micjax.report.text import unknown_rows
from micjax.run.folder import RunFolder, fingerprints
from micjax.run.jobs import execute
from micjax.run.jobs.dealt.elsewhere import workers_of
from micjax.run.jobs.explore import (
    Exploration,
    check_code,
    learner_of,
    measured_files,
    source_of,
    with_absolute_paths,
)
from micjax.run.jobs.explore_report import conclude
from micjax.run.jobs.job import prepare
from micjax.run.jobs.simulate.run import SimulateRun
from micjax.run.jobs.train import TrainRun
from micjax.run.lifecycle import Facts, Outcome, Run
from micjax.run.logs import Asked
from micjax.run.plans.explore import ExplorePlan
from micjax.run.plans.solve import SolvePlan
from micjax.run.registry import find

MOST_ROWS = 20  # of unknowns on the terminal


class SolveRun(Run):
    """An inverse problem."""

    def __init__(self, plan: SolvePlan, asked: Asked):
        entry = find(plan.problem, asked.trust)
        parts = [find(part.problem, asked.trust) for part in plan.parts.values()]
        for each in (entry, *parts):
            asked.kept.watch(each.reference.partition(".")[0])
        self.workers = workers_of(asked.processes, asked.on)
        self.job = prepare(plan, asked.trust, self.workers is not None)
        self.plan, self.inputs, self.name = self.job.plan, self.job.inputs, entry.short
        self.title = f"{plan.problem} on {plan.data if plan.file or plan.parts else 'its example'}"
        source = fingerprints({"problem": getattr(entry.module, "__file__", None)})
        self.facts = {"problem": {"reference": entry.reference} | source.get("problem", {})}
        self.facts |= {"problem_options": self.job.problem_options}
        self.trust = [r for c in (entry, *parts) if not _trusted(r := c.reference)]

    def describe(self) -> str:
        values = self.job.problem.values().values()
        return f"{self.title}, {sum(v.size for v in values)} unknown numbers in {len(values)} names"

    def compute(self, folder: RunFolder, facts: Facts, resume: bool) -> Outcome:
        with dealt_to(self.workers):
            return execute.run(self.job, folder, facts, resume=resume)

    def can_go_on(self, folder: RunFolder) -> bool:
        return folder.checkpoint.exists()

    def tables(self, solution: Solution) -> tuple[Any, ...]:
        rows = unknown_rows(solution, self.job.truth)
        return solution.table, solution.comparison, rows if len(rows) <= MOST_ROWS else ()


def _trusted(reference: str) -> bool:
    try:
        trusted_source(reference)
    except (ValueError, ImportError):  # there it is a file that names the module
        return False
    return True


class ExploreRun(Run):
    """An exploration; every measurement is in its journal, whatever else fails."""

    def __init__(self, plan: ExplorePlan, asked: Asked):
        check_code(plan, asked.trust)
        self.plan, self.inputs = with_absolute_paths(plan), measured_files(plan)
        self.name, self.title = f"explore-{plan.outcome}", f"{plan.goal} {plan.outcome}"
        self.in_doubt, self.trust = asked.in_doubt, asked.trust or ()

    def describe(self) -> str:
        if self.plan.mode is not None:
            return f"{self.title} of {self.plan.measure}, which is an instrument and not asked"
        source = source_of(self.plan)
        learner_of(self.plan, source)
        return f"{self.title} over {', '.join(source.space.names)}, {self.plan.budget} measurements"

    def opened(self, folder: RunFolder, resume: bool) -> contextlib.AbstractContextManager:
        how = {"resume": resume, "in_doubt": self.in_doubt}
        try:
            self.exploration = Exploration(self.plan, folder.path, trusted=None, **how)
        except InDoubt as error:
            raise ValueError(f"{error}; here: --in-doubt skip, or --in-doubt again") from error
        return self.exploration

    def compute(self, folder: RunFolder, facts: Facts, resume: bool) -> Outcome:
        exploration, error = self.exploration, None
        try:
            with until_interrupted():
                exploration.run()
        except Exception as failure:  # what was measured is reported all the same
            error, exploration.stop_reason = failure, f"{type(failure).__name__}: {failure}"
        status = "failed" if error else "finished" if exploration.finished else "interrupted"
        known, solution = facts.ended(status, error), None
        facts.write()
        try:
            if len(exploration.learner.data[1]) >= 2:
                solution = conclude(exploration, folder, known)
        except Exception as failure:
            error = error or failure
        report = None if solution is None else folder / "report.html"
        return Outcome(folder, solution, status == "interrupted", report, error)

    def can_go_on(self, folder: RunFolder) -> bool:
        return (folder / self.plan.MARK).exists()


RUNS: dict[str, Callable[[Any, Asked], Run]] = {
    "solve": SolveRun,
    "explore": ExploreRun,
    "simulate": SimulateRun,
    "train": TrainRun,
}
